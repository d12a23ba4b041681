"""The local executor: a real child process and the ways in which it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.runs import FakeRenderer, Project, fake_local_executor
from fakes.worker import RUN_ID, events_until, jobs, next_event, spec

from hv15_batch.clip import Clip
from hv15_batch.config.settings import RetryConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import (
    Declined,
    Died,
    EncodingEnded,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Ready,
    RendererBroken,
    Stepped,
)
from hv15_batch.errors import Refused
from hv15_batch.record import ClipRecord, asked_record


class StopsEarly:
    """Renderers that cannot be made."""

    def __init__(self, spec: ExecutorSpec) -> None:
        raise Refused("runtime.attention_backend=flash: not here; use auto.")


def broken_renderer(spec: ExecutorSpec) -> Any:
    raise ImportError("libtorch.so: cannot open shared object file")


class IgnoresSignals(FakeRenderer):
    """Sends its own process what the whole group gets, while it encodes."""

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)


class BreaksAtDog(FakeRenderer):
    """Writes slowly, and breaks meanwhile."""

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        if job.clip.row_id == "dog":
            raise RendererBroken("CUDA error", asked_record(job.clip, attempt=job.attempt))
        finish = super().render(job, emit)

        def finish_slowly() -> ClipRecord:
            time.sleep(0.5)
            return finish()

        return finish_slowly


class WritesBadly(FakeRenderer):
    """Breaks while it writes, in a way that no record tells."""

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        super().render(job, emit)

        def break_() -> ClipRecord:
            raise SystemError("no record can be made of it")

        return break_


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,die", "owl,sleep 60")
    project.run_dir.create()
    project.run_dir.run_folder(RUN_ID).mkdir()
    return project


@pytest.fixture
def start(project: Project) -> Iterator[Callable[..., LocalExecutor]]:
    executors: list[LocalExecutor] = []

    def make(renderer: Callable[[ExecutorSpec], Any] = FakeRenderer) -> LocalExecutor:
        executors.append(LocalExecutor(spec(project), renderer))
        executors[-1].start()
        return executors[-1]

    yield make
    for executor in executors:
        executor.kill()


def test_a_child_encodes_renders_and_ends_when_it_is_told_to(
    project: Project, start: Callable[..., LocalExecutor]
) -> None:
    executor = start()
    job = jobs(project)["cat"]

    executor.encode([job.clip])
    assert isinstance(next_event(executor), EncodingEnded)
    executor.submit(job)
    events = events_until(executor, Finished)
    child = psutil.Process(executor.pid)
    executor.close()

    assert sum(isinstance(event, Ready) for event in events) == 1
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.job, finished.record.status) == (job, "ok")
    assert not child.is_running()


def test_what_breaks_while_the_last_clip_is_written_is_noticed_at_once(
    project: Project, start: Callable[..., LocalExecutor]
) -> None:
    executor = start(WritesBadly)

    executor.submit(jobs(project)["cat"])
    events = events_until(executor, Died)  # no other clip is handed over

    died = events[-1]
    assert isinstance(died, Died)
    assert died.reason == "the worker failed: SystemError: no record can be made of it"


def test_a_killed_child_is_an_event_that_says_how_it_died(
    project: Project, start: Callable[..., LocalExecutor]
) -> None:
    executor = start()

    executor.submit(jobs(project)["dog"])

    assert events_until(executor, Died)[-1] == Died(
        "the worker was ended by SIGKILL; the host may have run out of memory"
    )
    executor.submit(jobs(project)["cat"])  # must not raise: the runner may not know yet
    executor.close()


def test_settings_that_the_child_refuses_are_an_event(
    start: Callable[..., LocalExecutor],
) -> None:
    assert next_event(start(StopsEarly)) == Declined(
        "runtime.attention_backend=flash: not here; use auto."
    )


def test_an_error_outside_a_clip_is_told_in_words_and_its_traceback_goes_to_the_log(
    project: Project,
    start: Callable[..., LocalExecutor],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert next_event(start(broken_renderer)) == Died(
        "the worker failed: ImportError: libtorch.so: cannot open shared object file"
    )

    text = project.run_dir.run_log(RUN_ID).read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "Traceback" not in capfd.readouterr().err


def test_signals_that_reach_the_child_too_are_the_parents_to_decide(
    project: Project, start: Callable[..., LocalExecutor]
) -> None:
    executor = start(IgnoresSignals)

    executor.encode([])

    assert isinstance(next_event(executor), EncodingEnded)


def test_ctrl_c_while_the_child_is_still_importing_leaves_no_traceback(
    start: Callable[..., LocalExecutor], capfd: pytest.CaptureFixture[str]
) -> None:
    executor = start()
    assert executor.pid is not None
    for _ in range(20):
        os.kill(executor.pid, signal.SIGINT)
        time.sleep(0.02)

    executor.encode([])

    assert isinstance(next_event(executor), EncodingEnded)
    assert "KeyboardInterrupt" not in capfd.readouterr().err


def test_a_killed_child_is_replaced_and_the_run_goes_on(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,sleep 1 die once", "owl,an owl")

    assert project.run(fake_local_executor) == 0

    results = [(r["row_id"], r["attempt"], r["status"], r["error_type"]) for r in project.records()]
    assert results == [
        ("cat", 1, "ok", None),
        ("dog", 1, "failed", "WorkerDied"),
        ("dog", 2, "ok", None),
        ("owl", 1, "ok", None),
    ]


def test_a_child_outlives_the_thread_that_started_it(
    project: Project, start: Callable[..., LocalExecutor]
) -> None:
    """The kernel's parent-death signal comes with the end of the thread, not of the process."""
    executors: list[LocalExecutor] = []

    def start_and_wait() -> None:
        executors.append(start())
        executors[0].encode([])
        next_event(executors[0])

    thread = threading.Thread(target=start_and_wait)
    thread.start()
    thread.join()
    time.sleep(0.3)

    executors[0].encode([])
    assert isinstance(next_event(executors[0]), EncodingEnded)


def test_what_is_being_written_is_finished_before_a_broken_renderer_ends(
    project: Project, start: Callable[..., LocalExecutor]
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog", "owl,an owl")
    executor = start(BreaksAtDog)
    work = jobs(project)

    executor.submit(work["cat"])
    executor.submit(work["dog"])
    events = events_until(executor, Died)

    kinds = [type(event) for event in events if not isinstance(event, Stepped)]
    assert kinds == [Ready, Finished, Died]
    assert events[-1] == Died("CUDA error", record=asked_record(work["dog"].clip, attempt=1))


def test_the_memory_of_a_child_is_known_while_it_lives(
    start: Callable[..., LocalExecutor],
) -> None:
    executor = start()
    executor.encode([])
    next_event(executor)

    assert 2**20 < (executor.resident_bytes() or 0) < 2**34
    executor.kill()
    assert executor.resident_bytes() is None


def test_a_recycled_child_has_written_and_logged_everything_before_it_is_closed(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,seed", "cat,a cat,0..4")

    assert project.run(fake_local_executor, retry=RetryConfig(max_clips_per_worker=2)) == 0

    assert [(r["seed"], r["attempt"], r["status"]) for r in project.records()] == [
        (seed, 1, "ok") for seed in range(5)
    ]
    (log,) = project.run_dir.runs.glob("*/run.log")
    assert log.read_text(encoding="utf-8").count("the worker is replaced after 2 clips") == 2


_PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from fakes.runs import FakeRenderer, Project
from fakes.worker import jobs, next_event, spec
from hv15_batch.dispatch.local import LocalExecutor
if __name__ == "__main__":
    project = Project(Path({folder!r}))
    executor = LocalExecutor(spec(project), FakeRenderer)
    executor.start()
    executor.encode([])
    next_event(executor)
    executor.submit(jobs(project)["owl"])
    print(executor.pid, flush=True)
    time.sleep(60)
"""


def test_a_child_whose_parent_is_killed_ends_in_the_middle_of_a_clip(project: Project) -> None:
    script = project.folder / "parent.py"
    script.write_text(
        _PARENT.format(tests=str(Path(__file__).parents[1]), folder=str(project.folder)),
        encoding="utf-8",
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()

    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_never_comes_up_is_no_clips_fault(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    assert project.run(lambda spec: LocalExecutor(spec, broken_renderer)) == 4

    assert project.records() == []
    assert [row["state"] for row in project.plan()] == ["new", "new"]
    assert any(
        line.startswith(
            "the worker failed: ImportError: libtorch.so: cannot open shared object file, twice "
            "before its first clip; look at run.log for the cause; resume with: "
        )
        for line in project.said
    )


def test_a_worker_that_ends_before_it_is_up_is_no_clips_fault_either(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    project.run()

    assert project.run(lambda spec: LocalExecutor(spec, ends_at_once), force=True) == 4

    assert all(record["status"] == "ok" for record in project.records())


def ends_at_once(spec: ExecutorSpec) -> Any:
    os._exit(7)
