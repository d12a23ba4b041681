"""Several workers render one manifest: each clip once, whoever dies, and each stop as with one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes.runs import FakeRenderer, Project, fake_local_executor

from hv15_batch.clip import Clip
from hv15_batch.config.settings import BenchmarkConfig, DispatchConfig, RetryConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.errors import Refused
from hv15_batch.record import ClipRecord
from hv15_batch.report.render import write_page
from hv15_batch.run.rendering import loop
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.status import read_status
from hv15_batch.status.show import format_status

TWO = DispatchConfig(workers=2)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run(project: Project, dispatch: DispatchConfig = TWO, **changes: Any) -> int:
    return project.run(fake_local_executor, dispatch=dispatch, **changes)


def places(project: Project) -> Counter[str]:
    """Return how many clips each worker finished."""
    return Counter(r["worker_id"] for r in project.records() if r["status"] == "ok")


def attempts(project: Project, row_id: str) -> list[str]:
    return [r["status"] for r in project.records() if r["row_id"] == row_id]


def test_two_workers_render_each_clip_once(project: Project) -> None:
    project.write("id,prompt", *(f"r{n},sleep 0.1 {n}" for n in range(12)))

    assert run(project) == 0
    assert {r["row_id"] for r in project.records()} == {f"r{n}" for n in range(12)}
    assert len(project.records()) == 12
    assert min(places(project).values()) >= 1
    assert set(places(project)) == {"local-0-0", "local-1-0"}
    encodings = (project.folder / "journal.txt").read_text().splitlines()[:2]
    assert encodings == ["encode 12"] * 2, "by one worker, and then the other finds all encoded"

    assert run(project) == 0
    assert len(project.records()) == 12, "everything is done"


def test_there_are_never_more_workers_than_clips(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    assert run(project, DispatchConfig(workers=9)) == 0
    assert set(places(project)) == {"local-0-0", "local-1-0"}


def test_one_worker_has_the_names_and_the_order_of_before(project: Project) -> None:
    project.write("id,prompt,num_frames", "cat,a cat,1", "dog,a dog,5", "owl,an owl,1")

    assert run(project, DispatchConfig()) == 0
    assert [r["row_id"] for r in project.records()] == ["cat", "dog", "owl"]
    assert {r["worker_id"] for r in project.records()} == {"local-0"}
    assert read_status(project.run_dir.path).workers == ()


def test_a_clip_whose_worker_died_is_tried_again_and_the_others_go_on(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (f"r{n},sleep 0.2 {n}" for n in range(6))
    project.write("id,prompt", "bad,die once", *rows)

    assert run(project) == 0
    assert attempts(project, "bad") == ["failed", "ok"]
    assert all(attempts(project, f"r{n}") == ["ok"] for n in range(6))
    died = project.records()[0]
    assert died["error_type"] == "WorkerDied"
    assert "starting another one" in capsys.readouterr().out
    assert {"local-0-1", "local-1-1"} & set(places(project)), "it was replaced"


def test_a_clip_that_kills_every_worker_is_skipped(project: Project) -> None:
    project.write("id,prompt", "bad,die", *(f"r{n},sleep 0.1 {n}" for n in range(6)))

    assert run(project) == 3
    assert set(attempts(project, "bad")) == {"failed"}
    assert all(attempts(project, f"r{n}") == ["ok"] for n in range(6))


def test_a_clip_that_fails_costs_no_other(project: Project) -> None:
    project.write("id,prompt", "bad,fail", *(f"r{n},a clip {n}" for n in range(4)))

    assert run(project) == 3
    assert all(attempts(project, f"r{n}") == ["ok"] for n in range(4))


def test_a_lost_card_leaves_the_others_at_work(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = iter(["the GPU is lost"])
    monkeypatch.setattr(loop, "lost_gpu", lambda _: next(lost, None))
    project.write("id,prompt", "bad,die once", *(f"r{n},sleep 0.1 {n}" for n in range(5)))

    assert run(project) == 0
    assert attempts(project, "bad") == ["failed", "ok"]
    said = capsys.readouterr().out
    assert "is given up, 1 worker left: the GPU is lost" in said
    assert "starting another one" not in said


def test_the_run_stops_when_the_last_card_is_lost(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "lost_gpu", lambda _: "the GPU is lost")
    project.write("id,prompt", *(f"r{n},die {n}" for n in range(6)))

    assert run(project) == 4
    assert any("the GPU is lost" in line for line in project.said)


def test_clips_that_share_latents_go_to_one_worker_in_turn(project: Project) -> None:
    project.write("id,prompt,fps", "slow,sleep 0.3,12", "fast,sleep 0.3,24", "b,a cat,24")

    assert run(project) == 0
    did = Counter(line.split()[0] for line in project.did())
    assert did == {"denoise": 2, "decode": 1}


def test_ctrl_c_finishes_what_each_worker_has(project: Project) -> None:
    project.write("id,prompt", *(f"r{n},sleep 0.6 {n}" for n in range(8)))

    assert interrupted(project, signal.SIGINT) == 130
    assert {r["status"] for r in project.records()} == {"ok"}
    assert 2 <= len(project.records()) < 8
    assert run(project) == 0
    assert Counter(r["row_id"] for r in project.records()) == {f"r{n}": 1 for n in range(8)}


def test_sigterm_ends_every_worker_and_loses_no_clip(project: Project) -> None:
    project.write("id,prompt", *(f"r{n},sleep 30 once {n}" for n in range(3)))

    begin = time.monotonic()
    assert interrupted(project, signal.SIGTERM) == 143
    assert time.monotonic() - begin < 20
    assert [r["status"] for r in project.records()] == ["interrupted", "interrupted"]


def interrupted(project: Project, number: signal.Signals) -> int:
    """Run, and send a signal once both workers have a clip."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def send() -> None:
        path = project.folder / "journal.txt"
        while not path.exists() or path.read_text().count("denoise") < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        return run(project)
    finally:
        thread.join(10)
        signal.signal(signal.SIGINT, before)


def test_a_stalled_worker_is_replaced_while_others_send_events(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hv15_batch.run import session
    from hv15_batch.run.rendering.stalls import Patience

    project.write("id,prompt", "bad,stop once", *(f"r{n},sleep 0.3 {n}" for n in range(10)))
    config = project.config(dispatch=TWO)
    patience = Patience(cold_seconds=2.0, warm_seconds=2.0)
    say = project.said.append
    assert session.run(config, (), None, say, fake_local_executor, patience=patience) == 0
    assert attempts(project, "bad") == ["failed", "ok"]
    stalled = next(r for r in project.records() if r["row_id"] == "bad")
    assert stalled["error_type"] == "WorkerStalled"


def test_a_group_with_many_bad_clips_in_a_row_on_one_worker_stops_the_run(
    project: Project,
) -> None:
    project.write("id,prompt", *(f"r{n},fail {n}" for n in range(20)))

    assert run(project, retry=RetryConfig(max_consecutive_bad=3)) == 4
    assert len(project.records()) <= 2 * 3 + 2


def test_status_and_page_show_each_worker(project: Project) -> None:
    project.write("id,prompt", *(f"r{n},sleep 0.1 {n}" for n in range(6)))
    assert run(project) == 0

    status = read_status(project.run_dir.path)
    assert sum(worker.done for worker in status.workers) == 6
    assert [worker.where for worker in status.workers] == ["CPU", "CPU"]
    going_on = status.__class__(**{**vars(status), "state": "rendering", "pid": os.getpid()})
    text = format_status(project.run_dir.path, going_on, datetime.now(timezone.utc))
    for worker in status.workers:
        assert f"worker {worker.worker} (CPU): {worker.done} done" in text
    assert " an hour, idle " in text
    write_page(project.run_dir.path)
    page = project.run_dir.page.read_text(encoding="utf-8")
    assert "local-0" in page
    assert "local-1" in page
    assert "times as long as its like" in page


def test_a_benchmark_measures_one_card_at_a_time(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    with pytest.raises(Refused, match="one card at a time"):
        run(project, benchmark=BenchmarkConfig(repeat=2))
    assert run(project, DispatchConfig(), benchmark=BenchmarkConfig(repeat=2)) == 0
    assert {r["worker_id"] for r in project.records()} == {"local-0"}


@pytest.mark.parametrize("times", [1, 1000])
def test_a_row_that_cannot_be_written_ends_the_run_after_the_clips_in_work(
    project: Project, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    project.write("id,prompt", "long,sleep 1.5", *(f"r{n},a clip {n}" for n in range(6)))
    write, failures = RunLog._write, iter(range(times))

    def fails(self: RunLog, record: ClipRecord) -> None:
        if next(failures, None) is not None:
            raise OSError(28, "No space left on device")
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "_write", fails)
        assert run(project) == 4

    assert project.said[2].startswith("the log could not be written (No space left on device)")
    logged = {r["row_id"]: r["status"] for r in project.records()}
    made = {word.split("_")[0].removeprefix("denoise ") for word in project.did()}
    assert {"long", "r0"} <= made <= {"long", "r0", "r1"}, "r1 is handed out while r0 is written"
    # The row of r0 is written later, with that of the other worker's clip.
    assert logged == (dict.fromkeys(made, "ok") if times == 1 else {})
    assert read_status(project.run_dir.path).done == len(logged)

    assert run(project) == 0
    assert Counter(r["row_id"] for r in project.records()) == Counter(
        ["long", *(f"r{n}" for n in range(6))]
    )
    denoised = [word for word in project.did() if word.startswith("denoise")]
    assert len(denoised) == 7 - len(made), "what had been made is not denoised again"


class NeverStarts(FakeRenderer):
    """Cannot be made on the first worker's place."""

    def __init__(self, spec: ExecutorSpec) -> None:
        if spec.worker_id.startswith("local-0"):
            raise RuntimeError("no such device")
        super().__init__(spec)


def test_a_worker_that_never_starts_is_given_up(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", *(f"r{n},a clip {n}" for n in range(4)))

    code = project.run(lambda spec: LocalExecutor(spec, NeverStarts), dispatch=TWO)
    assert code == 0
    assert set(places(project)) == {"local-1-0"}
    assert "worker 0 is given up" in capsys.readouterr().out


def test_a_worker_that_was_held_back_by_a_pause_goes_on_at_once(project: Project) -> None:
    project.write("id,prompt", "long,sleep 6", *(f"r{n},sleep 0.2 {n}" for n in range(3)))
    journal = project.folder / "journal.txt"

    def pause() -> None:
        while not journal.exists() or journal.read_text().count("denoise") < 2:
            time.sleep(0.02)
        project.run_dir.pause.touch()
        time.sleep(1.0)
        project.run_dir.pause.unlink()

    thread = threading.Thread(target=pause, daemon=True)
    thread.start()
    assert run(project) == 0
    thread.join(10)
    assert [r["row_id"] for r in project.records()][-1] == "long", "the others did not wait for it"


class DeclinesLate(FakeRenderer):
    """Cannot render on the second worker's card."""

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        if self._spec.worker_id.startswith("local-1"):
            raise Refused("runtime.attention_backend=flash: not on this card")
        return super().render(job, emit)


def test_a_worker_that_declines_leaves_its_clips_to_the_others(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", *(f"r{n},sleep 0.2 {n}" for n in range(6)))

    assert project.run(lambda spec: LocalExecutor(spec, DeclinesLate), dispatch=TWO) == 0
    assert [r["status"] for r in project.records()] == ["ok"] * 6
    assert "worker 1 is given up, 1 worker left: runtime.att" in capsys.readouterr().out


class Declines(FakeRenderer):
    """Cannot render anywhere."""

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        raise Refused("runtime.linear=fp8: not on these cards")


def test_a_run_that_every_worker_declines_is_refused(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    with pytest.raises(Refused, match="not on these cards"):
        project.run(lambda spec: LocalExecutor(spec, Declines), dispatch=TWO)
    assert project.records() == []
