"""plan.csv, a spreadsheet that is read back with the log's types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hv15_batch.errors import LogSchemaError
from hv15_batch.planning.tables import PLAN_COLUMNS, publish_plan, read_plan
from hv15_batch.rundir.paths import RunDir

LONG_PROMPT = 'a "cat",\nin the rain; ' * 10_000
CLIP: dict[str, Any] = {
    "clip_id": "007_s1",
    "row_id": "007",
    "row_index": 3,
    "line": 4,
    "state": "new",
    "reason": "never tried",
    "from_latents": False,
    "seed": 2**63 - 1,
    "num_frames": 121,
    "guidance_scale": 6.0,
    "fps": 24.0,
    "model": "480p_t2v",
    "off_recipe": True,
    "settings_sha256": "0" * 64,
    "prompt": LONG_PROMPT,
}
ROWS = [dict.fromkeys(PLAN_COLUMNS) | CLIP | {"row_index": index} for index in range(3)]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    directory = RunDir(tmp_path)
    directory.create()
    return directory


def test_a_plan_is_read_back_with_the_types_of_the_log(run_dir: RunDir) -> None:
    assert publish_plan(ROWS, run_dir.plan)

    assert read_plan(run_dir) == ROWS


def test_without_a_plan_there_are_no_clips(tmp_path: Path) -> None:
    assert read_plan(RunDir(tmp_path)) == []


def test_a_plan_is_written_again_only_where_it_changed(run_dir: RunDir) -> None:
    publish_plan(ROWS, run_dir.plan)
    written = run_dir.plan.stat().st_mtime_ns

    assert not publish_plan(ROWS, run_dir.plan)
    assert run_dir.plan.stat().st_mtime_ns == written
    assert publish_plan(ROWS[:1], run_dir.plan)
    assert read_plan(run_dir) == ROWS[:1]


def test_a_damaged_plan_is_refused_with_what_to_do(run_dir: RunDir) -> None:
    publish_plan(ROWS, run_dir.plan)
    run_dir.plan.write_text("clip_id,row_index\na,many\n")

    with pytest.raises(LogSchemaError, match=r"plan\.csv: not readable .*; run again"):
        read_plan(run_dir)
