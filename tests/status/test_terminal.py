"""What stands on a terminal while a run goes on: bars at its foot, commands that can be copied."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes.screen import Screen

from hv15_batch.dispatch.protocol import Encoded, Loading, Note
from hv15_batch.record import OK, ClipRecord
from hv15_batch.run import _progress
from hv15_batch.run._progress import Progress
from hv15_batch.rundir.status import Holder, find_latest_run
from hv15_batch.status import _watch as watch
from hv15_batch.status.command import main
from hv15_batch.status.live_line import LiveLine
from hv15_batch.status.overall import current_run
from hv15_batch.status.show import line_facts
from hv15_batch.status.terminal import can_redraw, laid_out, width


class Ticking:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


# -- the live line ----------------------------------------------------------------------------

FACTS = ["2 failed", "end 07:12, 90 % by 08:03", "71 °C", "VRAM 12.3 of 24.0 GiB"]


def test_each_clip_begins_anew_and_its_pace_is_the_median_of_its_own_steps(
    screen: Screen, clock: Ticking
) -> None:
    line = LiveLine(screen, clock)
    for number in range(1, 10):
        name = f"clip{number}_s0_11223344"
        line.show_whole("clips", number - 1, 9)
        line.show_stage(name, "start")
        clock.seconds += 20.0  # loading, encoding, the first step
        for step in range(1, 51):
            line.show_steps(name, "denoise", step, 50)
            clock.seconds += 9.0 if step == 7 else 0.093 * number
        pace = f"{0.093 * number:.3f}"
        expected = f"clips {number - 1}/9 | {name} denoise 50/50 | {pace} s a step"
        assert screen.lines()[-1] == expected
        line.show_steps(name, "decode", 50, 50)
        assert "s a step" not in screen.lines()[-1]


def test_a_step_underway_does_not_slow_the_others(screen: Screen, clock: Ticking) -> None:
    line = LiveLine(screen, clock)
    for step in (1, 2, 3):
        line.show_steps("cat", "denoise", step, 50)
        clock.seconds += 14.25
    clock.seconds += 10.0
    line.tick()

    assert screen.lines()[-1] == "cat denoise 3/50 | 14.2 s a step"


@pytest.mark.parametrize("columns", [200, 80, 40, 25])
def test_a_narrow_terminal_breaks_the_line_between_its_parts(columns: int, clock: Ticking) -> None:
    name = "fox-in-the-snow_s0_11223344"
    with Screen(columns) as screen:
        line = LiveLine(screen, clock)
        line.print("/runs/prompts: new")
        line.show_whole("clips", 143, 200, FACTS)
        for step in (1, 2, 3):
            line.show_steps(name, "denoise", step, 50)
            clock.seconds += 2.0
        line.tick()

        first, *rows = screen.lines()
        assert first == "/runs/prompts: new"
        assert max(map(width, rows)) < columns
        parts = " | ".join(rows).split(" | ")
        working = f"{name} denoise 3/50"
        assert [part for part in parts if "…" not in part] == [
            part
            for part in ("clips 143/200", working, "2.00 s a step", *FACTS)
            if width(part) < columns
        ]
        assert len(rows) == {200: 1, 80: 2, 40: 5, 25: 6}[columns]
        line.close()
        assert screen.lines() == [first, "clips 143/200"]


def test_several_workers_stay_readable(clock: Ticking) -> None:
    with Screen(80) as screen:
        line = LiveLine(screen, clock)
        line.show_whole("clips", 143, 200, FACTS[1:])
        for worker in range(8):
            for step in (1, 2 + worker):
                line.show_steps(f"a-very-long-clip-name_s{worker}", "denoise", step, 50, worker)
                clock.seconds += 0.0
        clock.seconds += 3.0
        line.show_steps("a-very-long-clip-name_s2", "decode", 50, 50, 2)
        line.show_loading("the VAE", 5)
        clock.seconds += 7.0
        line.tick()

        rows = screen.lines()
        assert len(rows) <= 4
        assert max(map(width, rows)) < 80
        text = " | ".join(rows)
        for part in ("0: denoise 2/50", "2: decode 00:07", "5: loading the VAE 00:07", "71 °C"):
            assert part in text


def test_a_terminal_that_is_made_narrower_again_and_again_is_not_flooded(
    screen: Screen, clock: Ticking
) -> None:
    line = LiveLine(screen, clock)
    line.print("/runs/prompts: new")
    line.show_whole("clips", 3, 9, ["end 07:12, 90 % by 08:03"])
    for columns in range(79, 40, -1):
        screen.resize(columns)
        clock.seconds += 1.5
        line.show_steps("a-very-long-clip-name_s0_11223344", "denoise", 80 - columns, 50)
        line.tick()

    lines = screen.lines()
    assert lines[0] == "/runs/prompts: new"
    assert len(lines) == 4
    assert sum("clips 3/9" in row for row in lines) == 1
    line.print("[4/9] a-very-long-clip-name_s0_11223344 72.1 s")
    line.close()
    assert [row.split()[0] for row in screen.lines() if "clip" in row][-1] == "clips"
    assert sum("denoise" in row for row in screen.lines()) == 0


def test_the_cursor_rests_where_a_terminal_that_breaks_lines_anew_keeps_it(
    screen: Screen, clock: Ticking
) -> None:
    screen.resize(25)
    line = LiveLine(screen, clock)
    line.show_whole("clips", 3, 9, FACTS)
    line.show_steps("cat", "denoise", 3, 9)

    cursor = screen._screen.cursor
    assert len(screen.lines()) > 2
    assert (cursor.y, cursor.x) == (0, 0)


@pytest.mark.parametrize(
    ("p50", "p90", "words"),
    [
        ("2026-11-30T07:12:00+00:00", "2026-11-30T08:03:00+00:00", "end 07:12, 90 % by 08:03"),
        ("2026-11-30T23:12:00+00:00", "2026-12-01T00:03:00+00:00", "end 23:12, 90 % by Tue 00:03"),
        ("2026-12-09T23:12:00+00:00", None, "end 2026-12-09 23:12"),
    ],
)
def test_the_end_is_told_on_the_clock(
    p50: str, p90: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    now = datetime(2026, 11, 30, 5, 0, tzinfo=timezone.utc)
    values = {"eta_p50": p50, "eta_p90": p90, "temperature_celsius": 70.6}
    card = {"vram_used_bytes": 2**33, "vram_total_bytes": 3 * 2**33}

    assert line_facts({**values, **card}, 1, 0, now) == [
        "1 failed", words, "71 °C", "VRAM 8.0 of 24.0 GiB",
    ]  # fmt: skip
    assert re.fullmatch(r"RAM [0-9.]+ of [0-9.]+ GiB", line_facts({}, 0, 0, now)[-1])
    monkeypatch.undo()
    time.tzset()


# -- a run ------------------------------------------------------------------------------------


def progress_on(out: Any, tmp_path: Path) -> Progress:
    progress = Progress(tmp_path / "status.json", "r1", total=2, done=0, out=out)
    return progress


def test_what_is_loaded_is_shown_with_the_seconds_that_pass(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = progress_on(screen, tmp_path)
    progress.heard(Loading("PyTorch"))
    assert screen.lines() == ["loading PyTorch 00:00"]
    assert progress.snapshot()["loading"] == "PyTorch"
    time.sleep(1.1)
    progress.tick()
    assert screen.lines() == ["loading PyTorch 00:01"]
    progress.heard(Loading("the text encoder"))
    assert screen.lines()[-1].startswith("loading the text encoder 00:0")
    progress.heard(Encoded(1, 2))

    assert [line.split()[0] for line in screen.lines()] == ["encode"]
    assert progress.snapshot()["loading"] is None
    progress.end("done")


@pytest.mark.parametrize("kind", ["pipe", "dumb"])
def test_elsewhere_a_line_is_written_when_loading_takes_its_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(_progress, "LOADING_SECONDS", 0.2)
    out = Typing() if kind == "dumb" else io.StringIO()
    progress = progress_on(out, tmp_path)
    progress.heard(Loading("PyTorch"))
    progress.tick()
    assert out.getvalue() == ""
    time.sleep(0.3)
    progress.tick()
    progress.tick()
    progress.heard(Note("a note"))
    progress.heard(Loading("the VAE"))
    progress.heard(Encoded(1, 1))
    progress.rendering(1)
    progress.stepped("cat", "denoise", 1, 2)
    progress.finished_clip(ClipRecord(clip_id="cat", status=OK), 1, 1)
    progress.end("done")

    assert out.getvalue().splitlines() == [
        "loading PyTorch",
        "a note",
        "loaded PyTorch in 0 s",
        "encoded 1 text or image",
        "[1/1] cat ",
    ]


class Typing(io.StringIO):
    """A terminal that cannot move its cursor."""

    def isatty(self) -> bool:
        return True


def test_a_clip_that_has_ended_is_not_shown_any_more(screen: Screen, tmp_path: Path) -> None:
    progress = progress_on(screen, tmp_path)
    progress.rendering(2)
    progress.started("cat")
    progress.stepped("cat", "decode", 2, 2)
    progress.finished_clip(ClipRecord(clip_id="cat", status=OK), 1, 2)

    assert [line.split()[0] for line in screen.lines()] == ["[1/2]", "clips"]
    progress.end("done")
    assert [line.split()[0] for line in screen.lines()] == ["[1/2]", "clips"]


def test_a_terminal_that_only_types_is_not_redrawn(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert can_redraw(screen)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(screen)


# -- status -----------------------------------------------------------------------------------

OLD, NEW = "20261122T093000-00-ab12", "20261122T193000-00-cd34"


def write_status(run_dir: Path, run_id: str = OLD, **changes: Any) -> None:
    values: dict[str, Any] = {
        "state": "done",
        "run_id": run_id,
        "pid": os.getpid(),
        "total": 200,
        "done": 143,
        "failed": 0,
        "suspect": 0,
        "updated_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / ".status"
    temporary.write_text(json.dumps(values | changes), encoding="utf-8")
    temporary.rename(run_dir / "status.json")


def hold(run_dir: Path, run_id: str = NEW, pid: int | None = None) -> Path:
    """Write what a run leaves while it has the lock."""
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = {
        "pid": pid or os.getpid(),
        "hostname": socket.gethostname(),
        "run_id": run_id,
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path = run_dir / ".lock.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    return path


@pytest.mark.parametrize("columns", [40, 50, 60])
def test_a_command_is_never_cut_however_narrow_the_terminal_is(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "START_SECONDS", 0.0)
    run_dir = tmp_path / "a folder with a rather long name" / "outputs" / "prompts"
    write_status(run_dir, state="stopped", message="stopped: the disk is full, or nearly so")

    with Screen(columns, rows=12) as screen:
        assert watch.watch(run_dir, screen) == 0
        text = "".join(f"{line:{columns}}" for line in screen.lines())

    assert f"hv15-batch 'resume={run_dir}'" in text
    assert "last update" in text


def test_words_are_broken_between_them_and_a_single_long_one_in_the_middle() -> None:
    assert laid_out("about 6 h left, until 17:10, 90 % sure by 18:00", 30) == [
        "about 6 h left, until 17:10,",
        "  90 % sure by 18:00",
    ]
    assert laid_out("  (from this run's clips)", 40) == ["  (from this run's clips)"]
    assert laid_out("/a/" + "x" * 40, 20) == ["/a/xxxxxxx…xxxxxxxxx"]
    assert laid_out("resume with: hv15-batch resume=/a/b/c/d", 20) == [
        "resume with:",
        "  hv15-batch resume=/a/b/c/d",
    ]


def test_watching_right_after_a_start_waits_for_the_run_that_has_the_lock(tmp_path: Path) -> None:
    write_status(tmp_path, state="stopped", message="the run before")
    holder = hold(tmp_path)
    out = io.StringIO()

    def go_on() -> None:
        time.sleep(0.7)
        write_status(tmp_path, NEW, state="rendering", clip_id="cat_s0_11223344")
        time.sleep(2.5)
        write_status(tmp_path, NEW, state="done", done=200)
        holder.unlink()

    run = threading.Thread(target=go_on)
    run.start()
    assert watch.watch(tmp_path, out) == 0
    run.join()

    assert "the run before" not in out.getvalue()
    assert "rendering cat_s0_11223344" in out.getvalue()
    assert "200 of 200 done" in out.getvalue()


def test_watching_waits_a_moment_for_a_run_that_was_just_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_SECONDS", 0.2)
    out = io.StringIO()

    def start() -> None:
        time.sleep(0.7)  # it reads and plans
        holder = hold(tmp_path)
        time.sleep(0.5)
        write_status(tmp_path, NEW, state="done", done=200)
        holder.unlink()

    run = threading.Thread(target=start)
    run.start()
    assert watch.watch(tmp_path, out) == 0  # there was not even a status
    run.join()

    assert "200 of 200 done" in out.getvalue()


def test_status_tells_of_a_run_that_has_written_none_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, state="stopped", message="the run before")
    hold(tmp_path)

    assert main([str(tmp_path)]) == 0

    told = capsys.readouterr().out
    assert re.search(rf"a run has started \d+ s ago \(process {os.getpid()}\); it has not", told)
    assert "the run before" not in told


def test_what_a_run_that_was_killed_left_holds_nothing(tmp_path: Path) -> None:
    write_status(tmp_path, state="stopped")
    hold(tmp_path, pid=2**22 + 1)
    assert not isinstance(current_run(tmp_path), Holder)

    for nonsense in ("", "[]", '{"pid": -1, "run_id": "x", "started_at": "y"}', "x" * 100_000):
        (tmp_path / ".lock.json").write_text(nonsense, encoding="utf-8")
        assert not isinstance(current_run(tmp_path), Holder)


def test_the_latest_run_is_the_one_that_has_just_started(tmp_path: Path) -> None:
    write_status(tmp_path / "old")
    os.utime(tmp_path / "old" / "status.json", (1, 1))
    hold(tmp_path / "new")

    assert find_latest_run(tmp_path) == tmp_path / "new"
