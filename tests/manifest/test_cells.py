"""Cells: seeds, and how a fault is worded."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest
from fakes.manifests import (
    SEED_FORMS,
    faults_of,
)

from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ManifestError, format_fault, parse_seeds

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.mark.parametrize(
    ("value", "seeds"),
    [
        ("7", (7,)),
        ("1 2 5", (1, 2, 5)),
        ("1,2,5", (1, 2, 5)),
        ("1, 2 ,5\n6", (1, 2, 5, 6)),
        ("0..3", (0, 1, 2, 3)),
        ("0..1 9", (0, 1, 9)),
        ("7.0", (7,)),
        ("007", (7,)),
        (str(2**63 - 1), (2**63 - 1,)),
        (7, (7,)),
        (7.0, (7,)),
        ([5, 1], (5, 1)),
        (["0..1", 3], (0, 1, 3)),
        ("1 2 1", (1, 2, 1)),
    ],
)
def test_every_way_to_write_seeds_is_read(value: Any, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", f"seeds are integers from 0 to 2^63-1, and x is not one; {SEED_FORMS}"),
        ("1,,2", f"seeds are integers from 0 to 2^63-1, and '' is not one; {SEED_FORMS}"),
        ("-1", f"seeds are integers from 0 to 2^63-1, and -1 is not one; {SEED_FORMS}"),
        ("1-5", f"seeds are integers from 0 to 2^63-1, and 1-5 is not one; {SEED_FORMS}"),
        ("٣", f"seeds are integers from 0 to 2^63-1, and ٣ is not one; {SEED_FORMS}"),
        (1.5, f"seeds are integers from 0 to 2^63-1, and 1.5 is not one; {SEED_FORMS}"),
        (True, f"seeds are integers from 0 to 2^63-1, and true is not one; {SEED_FORMS}"),
        (None, f"seeds are integers from 0 to 2^63-1, and null is not one; {SEED_FORMS}"),
        ([[1]], f"seeds are integers from 0 to 2^63-1, and [1] is not one; {SEED_FORMS}"),
        ([], f"seeds are integers from 0 to 2^63-1, at least one; {SEED_FORMS}"),
        (
            2**63,
            "seeds are integers from 0 to 2^63-1, and 9223372036854775808 is larger; "
            "use a smaller one",
        ),
        ("3..0", "a range of seeds goes up, and 3..0 goes down; write 0..3"),
        (
            f"0..{2**62}",
            "a row has at most 10,000 seeds, and this one has 4,611,686,018,427,387,905; "
            "use fewer, or several rows",
        ),
    ],
)
def test_what_is_no_seed_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_seeds(value)


def test_fifty_faults_are_printed_and_the_rest_counted() -> None:
    record = {"prompt": "a cat"} | {f"tag_{number}": [1] for number in range(1300, 1900)}

    faults = faults_of("p.jsonl", json.dumps(record))

    lines = str(ManifestError(faults)).splitlines()
    assert len(faults) == 600
    assert len(lines) == 51
    assert lines[:50] == list(faults[:50])
    assert lines[50] == "and 550 more"


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (
            [",1"] * 527,
            "p.csv:2: prompt='': must not be empty; write what the clip shows, or delete the row "
            "(527 rows: lines 2, 3, 4, 5, 6 and 522 more).",
        ),
        (
            [f"a,{number}x" for number in range(900)],
            "p.csv:2: seed=0x: seeds are integers from 0 to 2^63-1, and 0x is not one; "
            f"{SEED_FORMS} (900 rows: lines 2, 3, 4, 5, 6 and 895 more).",
        ),
        (
            ["a, b, c"] * 5,
            "p.csv:2: line=a, b, c: a record has a cell for each column, and here are 3 for 2; put "
            "a text with commas in quotation marks, without a space before them "
            "(5 rows: lines 2, 3, 4, 5, 6).",
        ),
    ],
)
def test_one_cause_is_one_message_with_the_first_lines(rows: list[str], fault: str) -> None:
    assert faults_of("p.csv", "prompt,seed\n" + "\n".join(rows)) == (fault,)


def test_a_few_faults_of_one_cause_are_told_with_their_values() -> None:
    faults = faults_of("p.csv", "prompt,num_frames\n" + "a,120\nb,8\nc,9\nd,10\n")

    assert [fault.split(":")[1:3] for fault in faults] == [
        ["2", " num_frames=120"],
        ["3", " num_frames=8"],
        ["5", " num_frames=10"],
    ]


def test_a_manifest_error_is_a_configuration_error_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ManifestError(["one", "two"])))

    assert isinstance(error, Refused)
    assert error.faults == ("one", "two")
    assert str(error) == "one\ntwo"


def test_a_fault_is_one_line_with_a_short_value() -> None:
    fault = format_fault("a.csv", 3, "prompt", "x\n" * 1000, "is too long", "shorten it")

    shown = repr(("x\n" * 1000)[:59] + "…")
    assert fault == f"a.csv:3: prompt={shown}: is too long; shorten it."
