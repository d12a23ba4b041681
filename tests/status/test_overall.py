"""`hv15-batch status` over a run directory that shards render."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.command import Answer

from hv15_batch.config.shard import parse_shard
from hv15_batch.errors import Refused
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import Holder, find_latest_run
from hv15_batch.status.overall import OverallStatus, current_run, overall_status

NOW = datetime.now(timezone.utc)


def write(top: Path, shard: str | None, **values: Any) -> Path:
    """Write the status of a shard, or of a run of all clips."""
    path = RunDir(top, parse_shard(shard)).status
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {
        **{"state": "done", "total": 10, "done": 10, "failed": 0, "suspect": 0, "message": ""},
        **{"updated_at": datetime.now(timezone.utc).isoformat(), "pid": os.getpid()},
        **{"run_id": f"run-of-{shard}", "hostname": socket.gethostname(), "type_again": []},
    }
    path.write_text(json.dumps(known | values), encoding="utf-8")
    return path


def count(top: Path, number: int) -> None:
    (top / "run.json").write_text(json.dumps({"shards": number}), encoding="utf-8")


def in_minutes(number: int) -> str:
    return (NOW + timedelta(minutes=number)).isoformat(timespec="seconds")


def test_counts_are_added_and_the_last_end_is_that_of_the_slowest(tmp_path: Path) -> None:
    count(tmp_path, 3)
    write(tmp_path, "1/3", state="rendering", done=4, suspect=1, eta_p50=in_minutes(60))
    write(tmp_path, "2/3", state="rendering", done=2, failed=1, eta_p50=in_minutes(90))
    write(tmp_path, "3/3", total=9, done=9)

    status = overall_status(tmp_path)

    assert isinstance(status, OverallStatus)
    assert (status.total, status.done, status.failed, status.suspect) == (29, 15, 1, 1)
    assert (status.state, status.eta_p50) == ("rendering", in_minutes(90))
    assert [name for name, _ in status.shards] == ["1/3", "2/3", "3/3"]


def test_no_end_is_known_before_each_active_shard_knows_its_own(tmp_path: Path) -> None:
    count(tmp_path, 2)
    write(tmp_path, "1/2", state="rendering", done=4, eta_p50=in_minutes(60))
    write(tmp_path, "2/2", state="encoding", done=0)

    assert overall_status(tmp_path).eta_p50 is None


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (["done", "done"], "done"),
        (["done", "stopped"], "stopped"),
        (["failed", "interrupted"], "failed"),
        (["failed", "waiting"], "waiting"),
    ],
)
def test_the_state_is_that_of_an_active_shard_else_the_worst(
    tmp_path: Path, states: list[str], whole: str
) -> None:
    count(tmp_path, 2)
    for number, state in enumerate(states, start=1):
        write(tmp_path, f"{number}/2", state=state)

    assert overall_status(tmp_path).state == whole


def test_a_shard_whose_process_is_gone_is_interrupted(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    count(tmp_path, 4)
    gone = next(pid for pid in range(4_000_000, 2, -1) if not psutil.pid_exists(pid))
    write(tmp_path, "1/4", state="rendering", done=3, pid=gone, clip_id="a_s0_12345678")
    write(tmp_path, "2/4")
    write(tmp_path, "3/4", state="rendering", done=5, clip_id="b_s0_12345678")

    lines = command("status", tmp_path).out.splitlines()

    assert lines[:3] == [str(tmp_path), "18 of 30 done", "rendering b_s0_12345678"]
    assert lines[3:7] == [
        "4 shards, 1 of them not started; the counts are of those started",
        f"  1/4: 3 of 10 done, interrupted: process {gone} is gone, and wrote no last status",
        f"  3/4: 5 of 10 done, rendering, b_s0_12345678 by process {os.getpid()}",
        "  2/4: 10 of 10 done, done",
    ]


def test_what_to_type_to_resume_names_the_shard_setting(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    count(tmp_path, 2)
    write(tmp_path, "1/2", state="stopped", done=3, message="time limit", type_again=["shard"])
    write(tmp_path, "2/2", type_again=["shard", "until"])

    out = command("status", tmp_path).out

    assert f"resume with: hv15-batch resume={tmp_path}\n" in out
    assert "type again if you want them: shard, until\n" in out


def test_a_later_run_of_all_clips_is_the_one_that_is_shown(tmp_path: Path) -> None:
    count(tmp_path, 2)
    write(tmp_path, "1/2", updated_at=in_minutes(-2))
    write(tmp_path, "2/2", updated_at=in_minutes(-1))
    write(tmp_path, None, total=20, done=20)
    assert not isinstance(overall_status(tmp_path), OverallStatus)

    write(tmp_path, None, updated_at=in_minutes(-3))
    assert isinstance(overall_status(tmp_path), OverallStatus)


def test_shards_of_another_count_are_history(tmp_path: Path) -> None:
    write(tmp_path, "1/2", state="stopped", done=3)
    write(tmp_path, "0/3", total=7, done=7)
    write(tmp_path, "3/3", total=7, done=6, updated_at=in_minutes(-5))
    count(tmp_path, 3)

    status = overall_status(tmp_path)

    assert isinstance(status, OverallStatus)
    assert [name for name, _ in status.shards] == ["0/3"]  # 3/3 is the same one, and older
    assert (status.state, status.total) == ("done", 7)


def test_a_status_without_run_json_and_shards_is_that_of_the_directory(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no run has written its status here"):
        overall_status(tmp_path)
    write(tmp_path, None, done=4)
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")

    assert overall_status(tmp_path).done == 4


def test_a_first_shard_that_starts_is_seen(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, parse_shard("1/2"))
    run_dir.create()
    with run_dir.locked("20261122T000000-0000-abcd"):
        found = current_run(tmp_path)

    assert isinstance(found, Holder)
    assert found.run_id == "20261122T000000-0000-abcd"


def test_the_latest_run_is_found_by_a_shard_of_it(tmp_path: Path) -> None:
    write(tmp_path / "older", None)
    os.utime(RunDir(tmp_path / "older").status, (1, 1))
    write(tmp_path / "newer", "1/2")
    write(tmp_path / "some.sweep" / "a", "1/2")
    os.utime(RunDir(tmp_path / "some.sweep" / "a", parse_shard("1/2")).status, (2, 2))

    assert find_latest_run(tmp_path) == tmp_path / "newer"


def test_the_json_of_shards_is_their_sum_with_each_of_them(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    count(tmp_path, 2)
    write(tmp_path, "1/2", done=3)
    write(tmp_path, "2/2", clip_id="a\x1b[31m")

    answer = command("status", tmp_path, "--json")
    found = json.loads(answer.out)

    assert (found["total"], found["done"], found["num_shards"]) == (20, 13, 2)
    assert [name for name, _ in found["shards"]] == ["1/2", "2/2"]
    assert "\x1b" not in answer.out
