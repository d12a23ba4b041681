"""When a run is over follows from its own clips, each kind of clip for itself."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes.runs import FakeClock

from hv15_batch.clip import Clip, ClipSettings, make_clip
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import Finished, Job, Note, Ready
from hv15_batch.forecast._eta import ASSUMED_SPREAD, NORMAL_90, EtaBasis, TimeLeft
from hv15_batch.forecast.forecast import Forecast, clip_cost_function, make_forecast
from hv15_batch.forecast.pace import make_pace
from hv15_batch.forecast.seconds import Scales
from hv15_batch.machine.machine import read_machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.variant import ModelConfig, OffloadKind
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.record import FAILED, OK, ClipRecord, asked_record
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import GIB

SETTINGS = ClipSettings(
    prompt="a cat",
    negative_prompt=None,
    image_sha256=None,
    seed=0,
    height=480,
    width=848,
    num_frames=121,
    num_inference_steps=50,
    guidance_scale=1.0,
    flow_shift=5.0,
    fps=24.0,
    video={},
    model="480p_t2v_distilled",
    revision=None,
    weights="random",
    dtype="bfloat16",
    attention_backend="auto",
)


def clips(count: int, *, decoded_only: bool = False, **changes: Any) -> list[PlannedClip]:
    return [
        PlannedClip(
            clip=make_clip(
                row_id=f"r{'-'.join(map(str, changes.values()))}",
                row_index=seed,
                line=seed + 2,
                settings=replace(SETTINGS, seed=seed, **changes),
                image=None,
                image_path=None,
                tags={},
                off_recipe=False,
            ),
            state=State.new,
            reason="new",
            attempts=0,
            has_latents=decoded_only,
            use_latents=decoded_only,
            has_result=False,
            last=None,
        )
        for seed in range(count)
    ]


def record(planned: PlannedClip, status: str = OK, **columns: Any) -> ClipRecord:
    known = {"attempt": 1, "denoise_attempt": 1, "is_cold": False, "status": status}
    return asked_record(planned.clip, **{**known, **columns})


def _nominal_seconds(settings: ClipSettings) -> float:
    return clip_cost_function(None)(settings).seconds


class Eta:
    """A run's pace, and a clock: clips are rendered one after another."""

    def __init__(self, todo: list[PlannedClip], forecast: Forecast | None) -> None:
        self._clock = FakeClock(datetime(2026, 11, 22, tzinfo=timezone.utc))
        self._todo = {p.clip.clip_id: p for p in todo}
        self.pace = make_pace(forecast, RunDir(Path("no latents")), self._clock, todo)

    def started(self, clip_id: str) -> None:
        self.pace.submitted(self._job(clip_id))
        self._began = self._clock.elapsed_seconds()

    def finished(self, record: ClipRecord, seconds: float) -> None:
        assert record.clip_id is not None
        self.started(record.clip_id)
        self._clock.pass_time(seconds)
        self.pace.heard(Ready())
        self.pace.heard(Finished(self._job(record.clip_id), record))
        if record.status != FAILED:
            del self._todo[record.clip_id]

    def left(self, elapsed_seconds: float) -> TimeLeft | None:
        if elapsed_seconds and self._todo:
            self.started(next(iter(self._todo)))
            self._clock.pass_time(elapsed_seconds)
        return self.pace.left()

    def _job(self, clip_id: str) -> Job:
        planned = self._todo[clip_id]
        return Job(planned.clip, 1, planned.use_latents)


def left(eta: Eta, elapsed_seconds: float = 0.0) -> TimeLeft:
    """What is left, known to be known."""
    found = eta.left(elapsed_seconds)
    assert found is not None
    return found


@pytest.fixture
def forecast(tmp_path: Path) -> Forecast:
    """That of an RTX 4090 of which there is no log."""
    gpu = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", 24 * GIB, 24 * GIB, "1", None)
    machine = replace(read_machine(), gpus=(gpu,), ram_total_bytes=64 * GIB)
    model = ModelConfig(name="480p_t2v_distilled", repo="a/b")
    found = make_forecast(Config(model=model), clips(1), machine, tmp_path / "run" / "log")
    assert found is not None
    return found


def test_clips_of_one_kind_take_as_long_as_those_that_were_measured() -> None:
    todo = clips(10)
    eta = Eta(todo, None)
    for planned, seconds in zip(todo[:4], (99.0, 100.0, 101.0, 100.0), strict=True):
        eta.finished(record(planned), seconds)

    assert left(eta).basis is EtaBasis.measured
    assert left(eta).p50_seconds == pytest.approx(600)
    assert 600 < left(eta).p90_seconds < 610


def test_a_clip_of_another_size_and_number_of_steps_does_not_share_the_median() -> None:
    short = clips(4, num_frames=61, num_inference_steps=8)
    long = clips(2)
    eta = Eta([*short, *long], None)
    for planned in short:
        eta.finished(record(planned), 10.0)
    costs = [_nominal_seconds(planned.clip.settings) for planned in (short[0], long[0])]
    ratio = costs[1] / costs[0]

    assert ratio > 10
    assert left(eta).p50_seconds == pytest.approx(2 * 10.0 * ratio)


def test_a_kind_that_was_measured_itself_is_not_scaled_from_others() -> None:
    short, long = clips(3, num_frames=61), clips(3)
    eta = Eta([*short, *long], None)
    for planned in short:
        eta.finished(record(planned), 10.0)
    eta.finished(record(long[0]), 55.0)

    assert left(eta).p50_seconds == pytest.approx(2 * 55.0)


def test_clips_that_are_only_decoded_count_as_a_kind_of_their_own() -> None:
    decoded, denoised = clips(3, decoded_only=True), clips(3, num_frames=61)
    eta = Eta([*decoded, *denoised], None)
    eta.finished(record(decoded[0], attempt=2, denoise_attempt=1), 3.0)
    eta.finished(record(denoised[0]), 50.0)

    assert left(eta).p50_seconds == pytest.approx(2 * 3.0 + 2 * 50.0)


def test_the_wider_clips_scatter_the_later_the_end_that_is_90_percent_sure() -> None:
    ends = []
    for deviation in (1.0, 20.0):
        todo = clips(40)
        eta = Eta(todo, None)
        for index, planned in enumerate(todo[:20]):
            eta.finished(record(planned), 100.0 + deviation * (-1) ** index)
        assert left(eta).p50_seconds == pytest.approx(2000)
        ends.append(left(eta).p90_seconds - 2000)

    # 20 clips and the error of a mean of 20: sqrt(20 + 400/20) deviations.
    assert ends[1] == pytest.approx(20 * ends[0])
    assert ends[0] == pytest.approx(NORMAL_90 * 40**0.5, rel=0.05)


def test_about_nine_of_ten_runs_end_before_the_end_that_is_90_percent_sure() -> None:
    draw = random.Random(0)
    in_time = 0
    for _ in range(300):
        todo = clips(12)
        eta = Eta(todo, None)
        for planned in todo[:4]:
            eta.finished(record(planned), draw.gauss(100, 8))
        in_time += sum(draw.gauss(100, 8) for _ in range(8)) <= left(eta).p90_seconds

    assert 0.85 <= in_time / 300 <= 0.96


def test_before_the_first_clip_the_prediction_is_given_and_called_an_estimate(
    forecast: Forecast,
) -> None:
    found = left(Eta(clips(2), forecast))

    assert found.basis is EtaBasis.estimated
    assert found.p50_seconds == pytest.approx(2 * forecast.clip_seconds(clips(1)[0]))
    assert found.p90_seconds == pytest.approx(
        found.p50_seconds * (1 + NORMAL_90 * ASSUMED_SPREAD["estimated"])
    )


def test_a_prediction_that_a_log_corrected_is_called_calibrated(forecast: Forecast) -> None:
    scales = Scales(((49_290, 2.0),), None, 2.0)
    found = left(Eta(clips(2), replace(forecast, scales=scales, is_calibrated=True)))

    assert found.basis is EtaBasis.calibrated
    assert found.p50_seconds == pytest.approx(4 * forecast.clip_seconds(clips(1)[0]))


def test_nothing_is_said_before_the_first_clip_where_nothing_is_known_of_the_card() -> None:
    assert Eta(clips(2), None).left(0) is None


def test_the_cold_first_clip_gives_an_end_by_its_stages_until_a_warm_one_is_there() -> None:
    todo = clips(3)
    eta = Eta(todo, None)
    cold = record(todo[0], is_cold=True, denoise_seconds=100.0, decode_seconds=10.0)
    eta.finished(cold, 400.0)  # with loading and encoding

    assert left(eta).basis is EtaBasis.first_clip
    assert left(eta).p50_seconds == pytest.approx(220)
    eta.finished(record(todo[1]), 90.0)
    assert (left(eta).basis, left(eta).p50_seconds) == (EtaBasis.measured, pytest.approx(90))


def test_the_time_that_the_clip_in_hand_took_already_counts_but_never_more_than_it_should() -> None:
    todo = clips(3)
    eta = Eta(todo, None)
    eta.finished(record(todo[0]), 100.0)

    assert left(eta, 30).p50_seconds == pytest.approx(170)
    assert left(eta, 4970).p50_seconds == pytest.approx(100)


def test_a_failed_clip_is_over_until_it_is_tried_again() -> None:
    todo = clips(3)
    eta = Eta(todo, None)
    eta.finished(record(todo[0]), 100.0)
    eta.finished(record(todo[1], FAILED), 7.0)
    assert left(eta).p50_seconds == pytest.approx(100)

    eta.started(todo[1].clip.clip_id)

    assert left(eta).p50_seconds == pytest.approx(200)


def test_when_nothing_is_left_no_time_is_left() -> None:
    todo = clips(1)
    eta = Eta(todo, None)
    eta.finished(record(todo[0]), 100.0)

    assert left(eta, 50) == TimeLeft(0, 0, EtaBasis.measured)


def test_a_record_of_a_clip_that_was_not_planned_is_no_error() -> None:
    stranger: Clip = clips(1, num_frames=5)[0].clip
    eta = Eta(clips(1), None)

    eta.pace.heard(Finished(Job(stranger, 1, False), asked_record(stranger, status=OK)))
    eta.pace.submitted(Job(stranger, 1, False))

    assert eta.left(0) is None


def test_after_a_change_of_profile_only_clips_of_the_new_one_count() -> None:
    todo = clips(6)
    eta = Eta(todo, None)
    for planned in todo[:2]:
        eta.finished(record(planned, step_seconds=[2.0] * 50), 100.0)
    eta.pace.heard(Note("out of memory: continuing with offload=stream", OffloadKind.stream))
    job = Job(todo[5].clip, 1, False)

    assert (left(eta).p50_seconds, eta.pace.expected(job)["step"]) == (pytest.approx(400), 2.0)
    eta.finished(record(todo[2], step_seconds=[20.0] * 50), 1000.0)

    assert (left(eta).p50_seconds, eta.pace.expected(job)["step"]) == (pytest.approx(3000), 20.0)
    assert left(eta).basis is EtaBasis.measured


@pytest.mark.parametrize("is_known", [True, False])
def test_small_models_say_nothing_about_full_size_clips(is_known: bool, forecast: Forecast) -> None:
    small = clips(3, model="tiny_t2v", weights="tiny", num_frames=9)
    full = clips(3)
    eta = Eta([*small, *full], forecast if is_known else None)
    before = eta.left(0)
    job = Job(full[0].clip, 1, False)
    step = eta.pace.expected(job)["step"]
    eta.finished(record(small[0], step_seconds=[9.0] * 50), 450.0)
    eta.finished(record(small[1], step_seconds=[9.0] * 50), 450.0)

    after = eta.left(0)
    assert eta.pace.expected(job)["step"] == step
    if before is None:
        assert after is None
    else:
        expected = before.p50_seconds + 450.0
        assert after == TimeLeft(pytest.approx(expected), after.p90_seconds, before.basis)

    eta.finished(record(full[0]), 100.0)
    assert left(eta).p50_seconds == pytest.approx(2 * 100.0)


def test_the_first_clip_whose_pace_counts_is_full_size(forecast: Forecast) -> None:
    small, full = clips(1, model="tiny_t2v", weights="tiny"), clips(1)
    alone = Eta(small, None)
    mixed = Eta([*small, *full], forecast)

    assert alone.pace.is_modelled(Job(small[0].clip, 1, False))
    assert not mixed.pace.is_modelled(Job(small[0].clip, 1, False))
    assert mixed.pace.is_modelled(Job(full[0].clip, 1, False))


def test_seconds_a_clip_are_those_of_warm_clips_that_were_denoised_here() -> None:
    todo = clips(5)
    eta = Eta(todo, None)
    assert eta.pace.seconds_per_clip is None

    eta.finished(record(todo[0], is_cold=True, total_seconds=900.0), 900.0)
    assert eta.pace.seconds_per_clip is None
    eta.finished(record(todo[1], attempt=2, total_seconds=800.0), 5.0)
    eta.finished(record(todo[2], FAILED, total_seconds=700.0), 5.0)
    assert eta.pace.seconds_per_clip is None
    eta.finished(record(todo[3], total_seconds=110.0, encode_seconds=10.0), 300.0)
    eta.finished(record(todo[4], total_seconds=104.0), 300.0)

    assert eta.pace.seconds_per_clip == 102.0
