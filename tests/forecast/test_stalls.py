"""When a silent worker counts as dead: never a healthy one, always one that hangs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import worker
from fakes.runs import FakeExecutor, Project

from hv15_batch.clock import Clock
from hv15_batch.config.settings import RetryConfig
from hv15_batch.dispatch.protocol import (
    Alive,
    Died,
    Encoded,
    EncodingEnded,
    Event,
    Finished,
    Job,
    Note,
    Ready,
    Stepped,
)
from hv15_batch.forecast._eta import EtaBasis
from hv15_batch.forecast.pace import Pace
from hv15_batch.forecast.seconds import ClipCost, CostBasis
from hv15_batch.record import asked_record
from hv15_batch.run import session
from hv15_batch.run.rendering import supervisor
from hv15_batch.run.rendering.stalls import Patience, StallWatch
from hv15_batch.run.rendering.supervisor import Supervisor

COLD, WARM = 1000.0, 50.0
STEPS = 2


@pytest.fixture
def job(tmp_path: Path) -> Job:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat")
    return worker.jobs(project)["cat"]


class Watch(StallWatch):
    """Hears what its pace hears first, as in a run."""

    def __init__(
        self,
        pace: Pace,
        patience: Patience,
        compiles: bool,
        retry: RetryConfig,
    ) -> None:
        self.pace = pace
        super().__init__(retry, patience, pace, compiles)

    def new_worker(self) -> None:
        self.pace.started_worker()
        super().new_worker()

    def submitted(self, job: Job) -> None:
        self.pace.submitted(job)
        super().submitted(job)

    def heard(self, event: Event) -> None:
        self.pace.heard(event)
        super().heard(event)


def make_watch(
    cost: ClipCost | None = None, compiles: bool = False, minutes: float | None = None
) -> Watch:
    retry = RetryConfig(stall_minutes=minutes)
    return Watch(make_pace(cost), Patience(COLD, WARM), compiles, retry)


def make_pace(cost: ClipCost | None = None) -> Pace:
    prior = None if cost is None else EtaBasis.estimated
    found = cost or ClipCost(1.0, 1.0, CostBasis.estimated)
    return Pace(lambda _: found, prior=prior, has_latents=lambda _: False, clock=Clock())


def finished(job: Job, step: float, decode: float = 1.0, write: float = 1.0) -> Finished:
    columns = {"attempt": 1, "denoise_attempt": 1, "status": "ok", "step_seconds": [step] * STEPS}
    columns |= {"decode_seconds": decode, "write_seconds": write}
    return Finished(job, asked_record(job.clip, **columns))


def denoised(job: Job, step: int = 1) -> Stepped:
    return Stepped(job.clip.clip_id, "denoise", step, STEPS)


def rendered_once(watch: StallWatch, job: Job, step: float, decode: float = 1.0) -> None:
    """Let a worker render a first clip of the size, so that it is warm."""
    watch.submitted(job)
    watch.heard(Ready())
    watch.heard(finished(job, step, decode))


def allowed(watch: StallWatch) -> float | None:
    """Return after how many seconds the worker counts as dead; None for never."""
    for seconds in range(1, 100_000):
        if watch.waited(1.0):
            return seconds - 1
    return None


@pytest.mark.parametrize(
    ("step", "seconds"), [(1.0, WARM), (5.0, WARM), (20.0, 200.0)], ids=["short", "edge", "long"]
)
def test_a_warm_step_has_the_factor_times_the_median_but_at_least_a_floor(
    job: Job, step: float, seconds: float
) -> None:
    watch = make_watch()
    rendered_once(watch, job, step)

    watch.submitted(job)
    watch.waited(WARM - 1)
    watch.heard(denoised(job))

    assert allowed(watch) == seconds


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [(None, COLD), (ClipCost(20.0, 1.0, False), COLD), (ClipCost(800.0, 1.0, False), 4000.0)],
    ids=["unknown card", "fast card", "slow card"],
)
def test_the_first_clip_of_a_size_has_time_to_load_and_to_compile(
    job: Job, cost: ClipCost | None, seconds: float
) -> None:
    watch = make_watch(cost)

    watch.submitted(job)

    assert allowed(watch) == seconds


def test_a_new_worker_is_cold_again_but_knows_how_long_a_step_takes(job: Job) -> None:
    watch = make_watch()
    rendered_once(watch, job, 150.0)

    watch.new_worker()
    watch.submitted(job)

    assert allowed(watch) == 1500.0


def test_another_size_is_cold(job: Job) -> None:
    watch = make_watch()
    rendered_once(watch, job, 1.0)
    settings = replace(job.clip.settings, num_frames=121)

    watch.submitted(replace(job, clip=replace(job.clip, settings=settings)))

    assert allowed(watch) == COLD


@pytest.mark.parametrize(
    "event", [Note("out of memory: continuing with offload=stream_disk"), Encoded(1, 1)]
)
def test_a_change_of_profile_and_late_encoding_make_it_cold_until_the_next_clip(
    job: Job, event: Event
) -> None:
    watch = make_watch()
    rendered_once(watch, job, 1.0)
    watch.submitted(job)

    watch.heard(event)
    watch.heard(denoised(job))

    assert allowed(watch) == COLD


@pytest.mark.parametrize("stage", ["load", "encode"])
def test_loading_in_a_warm_worker_has_its_time(job: Job, stage: str) -> None:
    watch = make_watch()
    rendered_once(watch, job, 1.0)
    watch.submitted(job)

    watch.heard(Stepped(job.clip.clip_id, stage, 0, STEPS))

    assert allowed(watch) == COLD
    watch.heard(denoised(job))
    assert allowed(watch) == WARM


def test_compiled_blocks_may_be_compiled_again_at_the_first_step_of_any_clip(job: Job) -> None:
    watch = make_watch(compiles=True)
    rendered_once(watch, job, 1.0)

    watch.submitted(job)

    assert allowed(watch) == COLD
    watch.heard(denoised(job))
    assert allowed(watch) == WARM


def test_a_decode_has_its_time_and_that_of_the_file_it_waits_for(job: Job) -> None:
    watch = make_watch()
    rendered_once(watch, job, 1.0, decode=30.0)
    watch.submitted(job)

    watch.heard(Stepped(job.clip.clip_id, "decode", STEPS, STEPS))

    assert allowed(watch) == 310.0


def test_a_file_of_the_clip_before_is_no_sign_of_life_of_this_one(job: Job) -> None:
    watch = make_watch()
    rendered_once(watch, job, 1.0)
    watch.submitted(job)
    watch.waited(WARM - 1)

    watch.heard(finished(job, 1.0))

    assert allowed(watch) == 1


def test_a_file_that_is_never_finished_is_a_stall_too(job: Job) -> None:
    watch = make_watch()
    rendered_once(watch, job, 1.0)
    watch.submitted(job)

    watch.heard(Ready())

    assert allowed(watch) == WARM
    watch.heard(finished(job, 1.0))
    assert allowed(watch) is None


def test_an_idle_worker_may_be_silent_for_ever(job: Job) -> None:
    watch = make_watch()
    assert allowed(watch) is None

    watch.encoding()
    watch.heard(EncodingEnded())
    watch.heard(Note("a note"))

    assert allowed(watch) is None


def test_each_encoded_text_begins_a_new_wait() -> None:
    watch = make_watch()
    watch.encoding()

    for number in range(1, 5):
        assert watch.waited(COLD - 1) is None
        watch.heard(Encoded(number, 5))

    assert allowed(watch) == COLD


class Hangs(FakeExecutor):
    """Says nothing more after a clip is handed over."""

    def submit(self, job: Job) -> None:
        pass

    def encode(self, clips: object) -> None:
        pass


def test_time_in_which_the_parent_itself_was_stopped_does_not_count(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-Z and `fg` an hour later the worker has not had an hour: it was stopped too."""
    clock = iter([0.0, 3600.0, 3600.0, 3600.2, *(3600.0 + n for n in range(1, 100))])
    made = Hangs(worker.spec(Project(tmp_path)))
    workers = Supervisor(lambda _: made, RetryConfig(), make_watch())
    workers.start()
    workers.submit(job)
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: next(clock))

    assert workers.poll(0.2) is None
    assert workers.poll(0.2) is None


def test_a_worker_that_stalls_is_ended(job: Job, tmp_path: Path) -> None:
    made = Hangs(worker.spec(Project(tmp_path)))
    killed: list[bool] = []
    made.kill = lambda: killed.append(True)  # type: ignore[method-assign]
    watch = StallWatch(RetryConfig(), Patience(0.0, 0.0), make_pace(), False)
    workers = Supervisor(lambda _: made, RetryConfig(), watch)
    workers.start()
    workers.submit(job)

    event = workers.poll(0.0)

    assert isinstance(event, Died)
    assert (event.error_type, killed) == ("WorkerStalled", [True])


class HangsAtClip(FakeExecutor):
    """Encodes, and says nothing more after a clip is handed over."""

    def submit(self, job: Job) -> None:
        pass


def test_the_clip_of_a_worker_that_stalls_is_logged_as_failed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat")
    hasty = Patience(0.0, 0.0)

    code = session.run(project.config(), (), None, project.said.append, HangsAtClip, hasty)

    assert code == 3
    found = [(r["row_id"], r["attempt"], r["error_type"]) for r in project.records()]
    assert found == [("cat", 1, "WorkerStalled"), ("cat", 2, "WorkerStalled")]


def test_another_programs_steps_are_waited_for_as_long_as_a_first_one(job: Job) -> None:
    clip = replace(job.clip, settings=replace(job.clip.settings, engine="official@0"))
    for each, is_dead in ((job, True), (replace(job, clip=clip), False)):
        watch = make_watch(ClipCost(1.0, 1.0, CostBasis.estimated))
        watch.new_worker()
        for _ in range(2):
            watch.submitted(each)
            watch.heard(Ready())
            watch.heard(finished(each, 1.0))
        watch.submitted(each)

        assert (watch.waited(WARM + 1) is not None) is is_dead


def of_script(job: Job) -> Job:
    return replace(job, clip=replace(job.clip, settings=replace(job.clip.settings, engine="e@0")))


@pytest.mark.parametrize(("seconds", "limit"), [(1.0, WARM), (40.0, 400.0)], ids=["short", "long"])
def test_another_programs_step_is_waited_for_by_the_longest_of_its_clip(
    job: Job, seconds: float, limit: float
) -> None:
    watch, job = make_watch(), of_script(job)
    for _ in range(2):  # another process may load and compile again
        watch.submitted(job)
        watch.waited(COLD)  # to load
        watch.heard(denoised(job, 0))
        assert watch.waited(COLD) is None
        watch.heard(denoised(job, 0))
        for step in (1, 2):
            watch.waited(seconds)
            watch.heard(denoised(job, step))
        assert allowed(watch) == limit

    watch.heard(Stepped(job.clip.clip_id, "decode", STEPS, STEPS))
    assert allowed(watch) == COLD


@pytest.mark.parametrize("is_of_script", [False, True])
def test_a_typed_limit_holds_for_all_of_a_clip_but_not_for_its_writing(
    job: Job, is_of_script: bool
) -> None:
    watch = make_watch(ClipCost(800.0, 1.0, CostBasis.estimated), minutes=0.1)
    job = of_script(job) if is_of_script else job
    watch.encoding()
    assert watch.waited(COLD) is None, "the worker starts"
    watch.heard(EncodingEnded())

    watch.submitted(job)
    assert allowed(watch) == 6
    for stage in ("load", "encode", "denoise", "decode"):
        watch.heard(Stepped(job.clip.clip_id, stage, 0, STEPS))
        watch.waited(5.0)
        watch.heard(Alive())
        assert watch.waited(5.0) is None, "a sign of life begins the wait again"
        assert allowed(watch) == 1
    assert "6 s are allowed, see retry.stall_minutes)" in str(watch.waited(1.0))
    watch.heard(Ready())
    assert allowed(watch) not in (None, 6)


def test_a_typed_limit_leaves_a_new_worker_its_time_to_start(job: Job) -> None:
    watch = make_watch(minutes=0.1)

    watch.submitted(job)

    assert allowed(watch) == COLD
    watch.new_worker()
    watch.submitted(job)
    watch.heard(Stepped(job.clip.clip_id, "load", 0, STEPS))
    assert allowed(watch) == 6
