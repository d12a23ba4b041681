"""What a row is given: its first frame as planned, a folder of its own, a process that lives."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hv15_batch.external._process import Program
from hv15_batch.external.renderer import with_checked_image
from hv15_batch.files import SCRATCH, remove_scratch


@dataclass(frozen=True)
class Row:
    image_path: str | None
    settings: Any = field(default=None)


def test_a_first_frame_is_a_copy_of_what_was_planned(tmp_path: Path) -> None:
    image, folder = tmp_path / "a.png", tmp_path / "scratch"
    folder.mkdir()
    image.write_bytes(b"first")
    planned = SimpleNamespace(image_sha256=hashlib.sha256(b"first").hexdigest())
    row: Any = Row(str(image), planned)

    given = with_checked_image(row, folder).image_path
    image.write_bytes(b"second")

    assert given is not None
    assert Path(given).parent == folder
    assert Path(given).read_bytes() == b"first"
    with pytest.raises(ValueError, match=r"a\.png has changed since the run began; run again"):
        with_checked_image(row, folder)
    text: Any = Row(None)
    assert with_checked_image(text, folder) is text


def test_a_scratch_folder_goes_as_a_whole_and_through_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "a").write_text("x")
    scratch = tmp_path / f"{SCRATCH}r0"
    (scratch / "deep" / "deeper").mkdir(parents=True)
    (scratch / "deep" / "deeper" / "b").write_text("x")
    (scratch / "link").symlink_to(kept)
    (tmp_path / f"{SCRATCH}r1").symlink_to(kept)

    assert remove_scratch(scratch) == 1
    assert remove_scratch(tmp_path / f"{SCRATCH}r1") == 0

    assert not scratch.exists()
    assert (kept / "a").is_file()


def test_a_process_that_died_is_known_before_it_gets_a_row(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "input()"]
    with Program(words, tmp_path, {}, has_results=True) as program:
        assert not program.has_ended
        program.write("go")
        program.wait()
        assert program.has_ended
