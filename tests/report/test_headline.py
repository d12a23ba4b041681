"""The first line of the page."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import (
    build,
    failed,
    first_line,
    make_run,
    make_status,
    record,
)


def test_the_first_line_is_how_far_what_went_wrong_how_it_ended_and_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    clips = [
        record("a"),
        record("b", 1, status="suspect", quality_flag="black"),
        failed("c", row_index=2),
    ]
    status = {"state": "stopped", "message": "disk full: 0.41 GiB free at /data"}
    run_dir = make_run(tmp_path, clips, [*clips, record("d", 3)], status=status)

    html, _ = build(run_dir)

    assert re.fullmatch(
        r"2 of 4, 1 failed, 1 suspect, stopped [0-9: -]*\d\d:\d\d: disk full; resume with: "
        + re.escape(f"hv15-batch resume={run_dir}"),
        first_line(html),
    )
    assert "disk full: 0.41 GiB free at /data" in html


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "failed", "message": "1 of 2 clips failed"}, r"ended [\d: -]+"),
        ({"state": "interrupted", "message": "interrupted by SIGTERM"},
         r"interrupted [\d: -]+: by SIGTERM"),
        ({"state": "rendering", "pid": 2**22 + 1},
         r"interrupted [\d: -]+: its process is gone, .*"),
        ({"state": "stopped", "message": "until=07:00: the next clip takes about 9 s"},
         r"stopped [\d: -]+: until=07:00"),
    ],
)  # fmt: skip
def test_every_way_to_end_is_said_once(tmp_path: Path, status: Any, words: str) -> None:
    clips = [record("a"), failed("b", row_index=1)]

    html, _ = build(make_run(tmp_path, clips, clips, status=status))

    assert re.fullmatch(rf"1 of 2, 1 failed, {words}; resume with: .*", first_line(html))


def test_a_run_that_goes_on_says_how_long_and_offers_no_command(tmp_path: Path) -> None:
    status = make_status(state="rendering", pid=os.getpid(), eta_p50="2999-01-01T00:00:00+00:00")
    status["updated_at"] = "2999-01-01T00:00:00+00:00"  # not before this process began

    html, _ = build(make_run(tmp_path, [], [record("a")], status=status))

    assert re.fullmatch(r"0 of 1, rendering, about \d+ d \d+ h left", first_line(html))


def test_a_finished_run_is_done_and_nothing_is_to_resume(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a")], [record("a")], status={}))

    assert re.fullmatch(r"1 of 1, done [\d: -]+", first_line(html))


def test_a_run_that_made_done_clips_again_is_resumed_although_every_clip_is_done(
    tmp_path: Path,
) -> None:
    status = {"state": "interrupted", "message": "interrupted by SIGTERM"}
    forced, limited = (
        make_run(
            tmp_path / names[-1],
            [record("a")],
            [record("a")],
            status={**status, "type_again": names},
        )
        for names in (["limit", "force"], ["limit"])
    )

    assert first_line(build(forced)[0]).endswith(
        f"; resume with: hv15-batch resume={forced} (type again if you want them: limit, force)"
    )
    assert "resume with" not in first_line(build(limited)[0])
