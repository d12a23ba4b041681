"""JSON files: arrays, what stands in their place, and where they break."""

from __future__ import annotations

import json
import time

import pytest
from fakes.manifests import faults_of, read

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_an_array_of_objects_is_read_with_the_line_of_each() -> None:
    content = (
        '[\n  {\n    "prompt": "A cat",\n    "seed": [1, 2]\n  },\n  {"prompt": "A\\ndog"}\n]\n'
    )

    first, second = read("p.json", content).rows

    assert (first.line, first.prompt, first.seeds) == (2, "A cat", (1, 2))
    assert (second.line, second.prompt, second.seeds) == (6, "A\ndog", None)


@pytest.mark.parametrize(
    "content",
    [
        '["A cat", "A dog"]',
        '[{"prompt": "A cat"}, "A dog"]',
        '\ufeff \r\n[\r\n{"prompt":"A cat"}\r\n,{"prompt":"A dog"}\r\n]\r\n',
        '[{"prompt": "A cat"}, {"prompt": "A dog"},]',
        '{"prompt": "A cat"}\n{"prompt": "A dog"}\n',
        '{\n"prompt": "A cat"\n}\n{\n"prompt": "A dog"\n}',
        '[{"prompt": "A cat"}, {}, {"prompt": null, "seed": ""}, {"prompt": "A dog"}]',
    ],
)
def test_arrays_of_objects_and_of_prompts_and_objects_in_turn_are_read(content: str) -> None:
    assert [row.prompt for row in read("p.json", content).rows] == ["A cat", "A dog"]


def test_one_object_is_a_row() -> None:
    assert read("p.json", '{"prompt": "A cat", "seed": 3}').rows[0].seeds == (3,)


OBJECT = 'an array of objects, such as [{"prompt": "a cat"}], or of prompts, and this file is'


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        ('{"prompts": ["A cat"]}', 1, "the array is its member prompts; write that array alone"),
        ('\n{"data": [{"prompt": "A"}]}', 2, "the array is its member data; write that array"),
        ('{"prompt": ["A"], "seed": [1]}', 1, 'columns; in pandas write it with orient="records"'),
        ('{"prompt": {"0": "A cat"}}', 1, 'columns; in pandas write it with orient="records"'),
        ('{"a": {"prompt": "A"}, "b": {}}', 1, "an object of objects; write these as an array"),
        ('"A cat"', 1, f"{OBJECT} something else; write it as one"),
        ("A cat", 1, f"{OBJECT} something else; write it as one"),
        ("prompt,seed\nA cat,1\n", 1, f"{OBJECT} something else; write it as one"),
        ('[{"prompt": "A"}\n {"prompt": "B"}]', 2, "items are separated by commas, and the fi"),
        ('[{"prompt": "A"},\n{"prompt": "B"}', 2, "] of its one array, and it ends before; cor"),
        ('[{"prompt": "A"},\n{"prompt": }]', 2, "breaks there (Expecting value); correct it"),
        ('[\n{\n"prompt": "A",\n"seed" 1}]', 2, "breaks in line 4 (Expecting ':' delimiter)"),
        ('["A"]\n["B"]', 2, "] of its one array, and here is something else; correct it"),
        ("[] x", 1, "] of its one array, and here is something else; correct it"),
        ("[", 1, "] of its one array, and it ends before; correct it"),
        ('["A",', 1, "] of its one array, and it ends before; correct it"),
        ("[,]", 1, "breaks there (Expecting value); correct it"),
        ('["A",\n7]', 2, "item=7: an item is one JSON object, such as"),
        ('["A",\n["B"]]', 2, "or a prompt, and here is something else; write one of these"),
        ('[{"prompt": "A", "seed": 1, "seed": 2}]', 1, "and seed stands twice; remove one"),
        ('[{"prompt": "A", "fps": NaN}]', 1, "numbers are finite, and NaN is not"),
        ('["A",\n{"prompt": ' + "[" * 70, 2, "nested too deeply; write plain values"),
        ("[" * 100_000, 1, "nested too deeply; write plain values"),
        ('[{"prompt": "A' + "\\" * 51, 1, "breaks there ("),
    ],
)
def test_a_broken_or_foreign_file_is_refused_with_line_and_way_out(
    content: str, line: int, told: str
) -> None:
    *_, fault = faults_of("p.json", content)

    assert fault.startswith(f"p.json:{line}: ")
    assert told in fault


def test_an_empty_array_has_no_rows() -> None:
    for content in ("[]", "", " \n", "[ ]"):
        (fault,) = faults_of("p.json", content)
        assert ": rows=0: a manifest has at least one row, and this one has none" in fault


def test_depth_and_length_are_checked_before_anything_is_decoded() -> None:
    started = time.process_time()
    (deep,) = faults_of("p.jsonl", '{"prompt": "a", "tag_a": ' + "[" * 3_000_000 + "\n")
    (long,) = faults_of("p.json", '[{"prompt": "' + "a" * (9 * 2**20) + '"}]')
    (open_,) = faults_of("q.json", '[{"prompt": "' + "a\\\\" * (3 * 2**20))

    assert time.process_time() - started < 5
    assert "nested too deeply" in deep
    assert "an item has at most 8 MiB, and here is one with more; shorten it" in long
    assert "an item has at most 8 MiB" in open_


def test_ten_thousand_objects_on_one_line_are_read_in_time() -> None:
    content = json.dumps([{"prompt": f'A "cat", number {n}', "seed": n} for n in range(10_000)])

    started = time.process_time()
    rows = read("p.json", content).rows

    assert len(rows) == 10_000
    assert time.process_time() - started < 3
