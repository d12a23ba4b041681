"""The dry run's predictions: for this card, another card, and calibrated by a log."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.command import Answer
from fakes.forecasts import SETTINGS, config, machine, row
from fakes.runs import FakeClock
from omegaconf import OmegaConf

from hv15_batch.clip import Clip, ClipSettings, make_clip
from hv15_batch.config.checks import check_config
from hv15_batch.config.compose import Job as Command
from hv15_batch.config.compose import run_jobs
from hv15_batch.config.settings import CacheKind, Config
from hv15_batch.dispatch.protocol import Job
from hv15_batch.errors import Refused
from hv15_batch.forecast._quality import of_setting
from hv15_batch.forecast.cheaper import Trial, cheaper_ways
from hv15_batch.forecast.forecast import machine_with, make_forecast
from hv15_batch.forecast.pace import Pace, make_pace
from hv15_batch.forecast.seconds import WRITE_PIXELS_PER_SECOND
from hv15_batch.machine.cards import find_card
from hv15_batch.machine.machine import Machine
from hv15_batch.model.options import conf_dir, model_options
from hv15_batch.model.variant import Dtype, Linear, ModelConfig
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.record import ClipRecord
from hv15_batch.run import session
from hv15_batch.run._dry_run import predict_run
from hv15_batch.run.schedule import Deadline, Rules, check_window, read_rules
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir

NOW = datetime(2026, 11, 22, 22, 0, tzinfo=timezone.utc)
CLOCK = FakeClock(NOW)
RULES = Rules(CLOCK)


def planned(*settings: ClipSettings, from_latents: bool = False) -> list[PlannedClip]:
    return [
        PlannedClip(made(s, f"clip{n}"), State.new, "", 0, from_latents, True, False, None)
        for n, s in enumerate(settings)
    ]


def made(settings: ClipSettings, clip_id: str) -> Clip:
    clip = make_clip(
        row_id=clip_id,
        row_index=0,
        line=2,
        settings=settings,
        image=None,
        image_path=None,
        tags={},
        off_recipe=False,
    )
    return replace(clip, clip_id=clip_id)


ONE = planned(SETTINGS)


def no_trial(config: Config) -> Trial:
    raise Refused("refused")


def without_card() -> Machine:
    return replace(machine(24), gpus=())


def test_another_card_is_predicted_as_an_estimate(tmp_path: Path) -> None:
    asked = config()
    asked.runtime.card = "rtx_4090"

    _, lines = predict_run(
        asked, planned(*[SETTINGS] * 10), without_card(), tmp_path / "log", RULES, no_trial
    )

    assert len(lines) == 3
    assert "(an estimate from the rtx_4090's vendor figures)" in lines[0]
    assert lines[2].startswith("Memory: offload resident: ")


def test_an_unknown_card_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    asked = config()
    asked.runtime.card = "rtx_9090"

    with pytest.raises(Refused, match=r"^runtime.card=rtx_9090: known cards are rtx_3060, "):
        make_forecast(asked, ONE, without_card(), tmp_path / "log")


@pytest.mark.parametrize(
    "typed", ["4090", "rtx4090", "RTX 4090", "rtx-4090", "NVIDIA GeForce RTX 4090", "rtx_4090"]
)
def test_a_short_form_that_means_one_card_is_that_card(tmp_path: Path, typed: str) -> None:
    asked = config()
    asked.runtime.card = typed
    check_config(asked)

    forecast = make_forecast(asked, ONE, without_card(), tmp_path / "log")

    assert forecast is not None
    assert forecast.card.name == "rtx_4090"


@pytest.mark.parametrize(
    ("typed", "near"),
    [("4099", "rtx_4090"), ("rtx_409", "rtx_4090"), ("3090ti", "rtx_3090"), ("h20", "h200")],
)
def test_an_unknown_card_is_refused_with_near_ones(typed: str, near: str) -> None:
    asked = config()
    asked.runtime.card = typed

    with pytest.raises(Refused) as caught:
        check_config(asked)

    known, _, hint = str(caught.value).partition(". Did you mean ")
    assert known.startswith(f"runtime.card={typed}: known cards are rtx_3060, ")
    assert near in hint


@pytest.mark.parametrize("typed", ["5090 D v2", "RTX 4090 Laptop", "4090 Max-Q"])
def test_another_chip_under_a_known_name_is_not_taken_for_the_card(typed: str) -> None:
    asked = config()
    asked.runtime.card = typed

    with pytest.raises(Refused, match="known cards are"):
        check_config(asked)


def test_each_of_several_sizes_has_a_line_with_its_own_seconds(tmp_path: Path) -> None:
    asked = config()
    asked.runtime.card = "rtx_4090"
    short = replace(SETTINGS, num_frames=9)
    tall = replace(SETTINGS, height=640, width=480, num_frames=33)
    todo = planned(SETTINGS, short, tall, short, SETTINGS)

    forecast, lines = predict_run(asked, todo, without_card(), tmp_path / "l", RULES, no_trial)

    assert forecast is not None
    assert "s per warm clip" not in lines[0]
    for count, settings in ((2, SETTINGS), (1, tall), (2, short)):
        size = f"{settings.height}x{settings.width} {settings.num_frames} frames, "
        (line,) = [line for line in lines if size in line]
        assert line.startswith(f"{count:>6} x {size}{settings.num_inference_steps} steps")
        assert f": {forecast.clip_cost(settings).seconds:.0f} s per warm clip, denoise " in line
    assert any(line.startswith("Stages: once start and load ") for line in lines)


def test_of_many_sizes_those_that_take_longest_have_a_line(tmp_path: Path) -> None:
    asked = config()
    asked.runtime.card = "rtx_4090"
    many = [replace(SETTINGS, num_frames=4 * n + 1) for n in range(2, 12)]

    _, lines = predict_run(asked, planned(*many), without_card(), tmp_path / "l", RULES, no_trial)

    sizes = [line for line in lines if "s per warm clip" in line]
    assert [line.split(" frames")[0].split()[-1] for line in sizes[:3]] == ["45", "41", "37"]
    assert sizes[3].startswith("     7 x 7 more sizes: ")
    assert len(sizes) == 4


def test_without_a_card_the_way_to_predict_is_named(tmp_path: Path) -> None:
    _, lines = predict_run(config(), ONE, without_card(), tmp_path / "log", RULES, no_trial)

    assert lines == ["Time: no known card here; runtime.card=rtx_4090 predicts for that one"]


def log_of_the_4090(folder: Path, **changes: Any) -> dict[str, Any]:
    card = find_card("rtx_4090")
    assert card is not None
    measured = row(gpu_name="NVIDIA GeForce RTX 4090", attention_backend="_native_flash", **changes)
    folder.mkdir(parents=True)
    record = replace(ClipRecord(), **measured, settings_sha256="a", clip_id="a")
    RunLog(folder, "r").append(record)
    return measured


def test_a_log_of_the_same_card_calibrates(tmp_path: Path) -> None:
    measured = log_of_the_4090(tmp_path / "other" / "log")

    forecast = make_forecast(config(), ONE, machine(24), tmp_path / "this" / "log")

    assert forecast is not None
    assert forecast.basis == "calibrated by the log of this NVIDIA GeForce RTX 4090"
    cost = forecast.clip_cost(SETTINGS)
    assert cost.denoise_seconds == pytest.approx(measured["denoise_seconds"])
    assert cost.decode_seconds == pytest.approx(measured["decode_seconds"])


def test_a_card_asked_for_by_name_is_calibrated_by_its_log_too(tmp_path: Path) -> None:
    measured = log_of_the_4090(tmp_path / "other" / "log")
    asked = config()
    asked.runtime.card = "rtx_4090"

    forecast = make_forecast(asked, ONE, without_card(), tmp_path / "this" / "log")

    assert forecast is not None
    assert forecast.clip_cost(SETTINGS).denoise_seconds == pytest.approx(
        measured["denoise_seconds"]
    )


def test_a_log_of_another_profile_is_named(tmp_path: Path) -> None:
    log_of_the_4090(tmp_path / "other" / "log")

    forecast = make_forecast(config("stream"), ONE, machine(24), tmp_path / "this" / "log")

    assert forecast is not None
    assert forecast.basis == "calibrated by this NVIDIA GeForce RTX 4090's log of resident"


@pytest.mark.parametrize(
    "change", [{"mask_free": False}, {"dtype": Dtype.float32}, {"compile": True}]
)
def test_settings_that_change_speed_change_the_prediction(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    changed = config("stream")
    changed.runtime = replace(changed.runtime, **change)
    plain, other = (
        make_forecast(c, ONE, machine(48, 128), tmp_path / "log")
        for c in (config("stream"), changed)
    )

    assert plain is not None
    assert other is not None
    assert abs(other.clip_seconds(ONE[0]) / plain.clip_seconds(ONE[0]) - 1) > 0.05


def test_a_log_that_does_not_say_what_decides_is_no_calibration(tmp_path: Path) -> None:
    log_of_the_4090(tmp_path / "other" / "log")
    short = planned(replace(SETTINGS, num_frames=9))

    disk = make_forecast(config("stream_disk"), ONE, machine(24), tmp_path / "this" / "log")
    far = make_forecast(config(), short, machine(24), tmp_path / "this" / "log")

    assert disk is not None
    assert disk.basis == (
        "an estimate from the rtx_4090's vendor figures; a disk that gives 3 GB/s is assumed"
    )
    assert far is not None
    assert far.basis == (
        "roughly calibrated by the log of this NVIDIA GeForce RTX 4090, of far larger or smaller "
        "clips"
    )
    assert not disk.is_calibrated
    assert not far.is_calibrated


def test_what_is_not_modelled_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    asked = config("stream_disk")
    asked.runtime.attention_backend = "sage"

    forecast = make_forecast(asked, ONE, machine(24), tmp_path / "log")

    assert forecast is not None
    assert forecast.basis == (
        "an estimate from the rtx_4090's vendor figures; a disk that gives 3 GB/s is assumed; "
        "not modelled: attention_backend=sage, taken as _native_flash"
    )


def test_geforce_cards_that_are_not_here_keep_some_memory_for_a_desktop() -> None:
    sizes = []
    for name in ("rtx_4090", "h100"):
        card = find_card(name)
        assert card is not None
        (gpu,) = machine_with(card, without_card()).gpus
        sizes.append((gpu.total_bytes - gpu.free_bytes) / 2**30)

    assert sizes == [pytest.approx(0.5), 0]


def test_all_that_the_run_takes_is_in_the_time(tmp_path: Path) -> None:
    asked, todo = config(), planned(SETTINGS, SETTINGS)
    asked.runtime.compile = True
    forecast = make_forecast(asked, todo, machine(24), tmp_path / "log")
    assert forecast is not None

    _, lines = predict_run(asked, todo, machine(24), tmp_path / "log", RULES, no_trial)

    writing = 480 * 848 * 121 / WRITE_PIXELS_PER_SECOND
    once = forecast.start.seconds + writing
    assert forecast.start.compile_seconds > 20
    total = forecast.total_seconds(todo)
    assert total == pytest.approx(2 * forecast.clip_seconds(ONE[0]) + once)
    done = NOW + timedelta(seconds=total)
    assert f"done {done:%a %H:%M} (" in lines[0]
    cost = forecast.clip_cost(SETTINGS)
    assert lines[1] == (
        f"Stages: a clip denoise {cost.denoise_seconds:.1f} s (10.8 PFLOP) and decode "
        f"{cost.decode_seconds:.1f} s (1.2); once start and load 25 s, encode 0 s, compile 22 s, "
        "last write 3 s"
    )


def test_until_counts_clips_and_names_the_mildest_setting_that_is_enough(tmp_path: Path) -> None:
    todo = planned(*[SETTINGS] * 100)
    forecast = make_forecast(config(), todo, machine(24), tmp_path / "log")
    assert forecast is not None
    seconds = forecast.clip_seconds(ONE[0])

    def try_out(changed: Config) -> Trial:
        if changed.sampling.cache is not None:
            raise Refused("fewer than 10 steps")
        values = {k: v for k, v in vars(changed.override).items() if v is not None}
        clips = planned(*[replace(SETTINGS, **values)] * 100)
        return Trial(clips, make_forecast(changed, clips, machine(24), tmp_path / "log"))

    def first_way(clips: float) -> str:
        until = NOW + timedelta(seconds=clips * seconds)
        rules = Rules(CLOCK, (Deadline("until=07:00", until),))
        _, lines = predict_run(config(), todo, machine(24), tmp_path / "log", rules, try_out)
        assert f"Until {until:%a %H:%M}: {int(clips - 0.7)} of 100 clips" in lines
        return next(line for line in lines if line.startswith("Cheaper: "))

    assert first_way(98.9).startswith("Cheaper: runtime.compile=true would take ")
    assert first_way(50).startswith("Cheaper: override.num_frames=61 would take ")
    assert first_way(35).startswith("Cheaper: override.height=320 override.width=576 would take ")
    assert first_way(3) == "Cheaper: no setting tried here is fast enough; limit=2 fits"
    assert first_way(0.8).endswith(" is fast enough, and not one clip fits")


def words_of(asked: Config, *settings: ClipSettings) -> list[str]:
    return [way.words for way in cheaper_ways(asked, settings)]


def asked_for(model: str) -> Config:
    asked = config()
    option = OmegaConf.load(conf_dir() / "model" / f"{model}.yaml")
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), option)
    asked.model = cast(ModelConfig, OmegaConf.to_object(merged))
    return asked


EIGHT_BIT = ("runtime.linear=int8", "runtime.linear=fp8")


def test_a_distilled_variant_of_the_same_model_is_tried() -> None:
    guided = replace(SETTINGS, num_inference_steps=50, guidance_scale=6.0, negative_prompt="")

    distilled = [
        "model=480p_t2v_distilled",
        "model=480p_t2v_distilled override.num_inference_steps=50 override.guidance_scale=1",
        "model=480p_t2v_4step",
        "model=480p_t2v_4step override.num_inference_steps=4 override.guidance_scale=1",
    ]
    smaller = ["override.height=320 override.width=576"]
    assert words_of(asked_for("480p_t2v"), guided) == [
        "runtime.compile=true",
        "sampling.cache=static",
        *EIGHT_BIT,
        "override.num_frames=61",
        *(f"{words} sampling.cache=static" for words in EIGHT_BIT),
        "sampling.cache=static override.num_frames=61",
        *(f"{words} override.num_frames=61" for words in EIGHT_BIT),
        *distilled,
        *smaller,
        *(f"{words} sampling.cache=static" for words in (*distilled[:2], *smaller)),
        *(f"{words} override.num_frames=61" for words in (*distilled, *smaller)),
    ]
    short = replace(guided, height=720, width=1280, num_frames=61)
    ways = {way.words: way.config.model for way in cheaper_ways(asked_for("720p_i2v"), [short])}
    named = [words for words in ways if words.startswith("model=") and " " not in words]
    assert named == [
        "model=720p_i2v_distilled",
        "model=480p_i2v",
        "model=480p_i2v_distilled",
        "model=480p_i2v_step_distilled",
    ]
    assert ways["model=480p_i2v"].target_size == 640
    own = asked_for("480p_t2v")
    own.model.repo = "my/finetune"  # no other variant has these weights
    assert not any("model=" in words for words in words_of(own, guided))


def test_a_model_with_50_steps_is_offered_the_few_steps_of_others() -> None:
    few = "model=480p_t2v_4step"
    assert few in words_of(asked_for("480p_t2v_distilled"), SETTINGS)
    assert "model=480p_i2v_step_distilled" in words_of(asked_for("480p_i2v_distilled"), SETTINGS)
    assert not any("model=" in words for words in words_of(asked_for(few[6:]), SETTINGS))
    own = asked_for("480p_t2v_distilled")
    own.model.transformer_file = "mine.safetensors"  # no option has these weights
    assert few not in words_of(own, SETTINGS)


def test_nothing_is_offered_that_would_make_a_clip_longer_larger_or_turn_it() -> None:
    asked = config()
    asked.runtime.compile = True
    asked.runtime.linear = Linear.fp8
    asked.sampling.cache = CacheKind.static
    large = replace(SETTINGS, height=720, width=1280)
    small = replace(SETTINGS, height=320, width=576)
    upright = replace(SETTINGS, height=848, width=480)

    smaller = "override.height=320 override.width=576"
    assert words_of(asked, large, replace(small, num_frames=33)) == [smaller]
    assert words_of(asked, large, replace(small, height=304, num_frames=33)) == []
    few = "override.num_frames=61"
    assert words_of(asked, large, small) == [few, smaller, f"{smaller} {few}"]
    upright_smaller = "override.height=576 override.width=320"
    assert words_of(asked, upright) == [few, upright_smaller, f"{upright_smaller} {few}"]
    assert words_of(asked, upright, SETTINGS) == ["override.num_frames=61"]


def test_a_cell_of_image_to_video_leaves_the_size_alone_whatever_the_command_has() -> None:
    asked = asked_for("480p_t2v")
    asked.models = {"480p_i2v": model_options()["480p_i2v"]}
    named = replace(SETTINGS, model="480p_i2v")

    assert any("override.height" in words for words in words_of(asked, SETTINGS))
    assert not any("override.height" in words for words in words_of(asked, SETTINGS, named))
    asked = asked_for("480p_i2v")
    asked.models = {"480p_t2v": model_options()["480p_t2v"]}
    assert any("override.height" in words for words in words_of(asked, SETTINGS))


@pytest.mark.parametrize(
    ("card", "hours", "offered"),
    [
        ("rtx_4090", 39, ["fp8"]),
        ("rtx_4090", 40, ["int8", "fp8"]),
        ("rtx_3090", 85, ["int8"]),  # it has no fp8
        ("h200", 6.75, ["fp8"]),  # int8 is slower there
    ],
)
def test_8_bit_weights_that_the_card_can_do_are_offered_where_they_are_fast_enough(
    card: str, hours: float, offered: list[str], command: Callable[..., Answer]
) -> None:
    words = ("manifests/rtx4090_200_clips.csv", "--dry-run", f"runtime.card={card}")
    words += ("runtime.compile=true", "model.weights=random")

    out = command(*words, f"time_limit={hours * 60:.0f}min").out

    found = re.findall(
        r"^Cheaper: runtime\.linear=(\w+) would .*; quality: (.*)$", out, re.MULTILINE
    )
    assert found == [(linear, of_setting(linear)) for linear in offered]


def test_what_is_offered_fits_when_it_is_typed(tmp_path: Path) -> None:
    """Cells for steps and guidance, which a distilled variant refuses, and a row that is short."""
    manifest = tmp_path / "p.csv"
    manifest.write_text(
        "prompt,num_frames,num_inference_steps,guidance_scale\na,121,50,6\nb,33,40,6\n",
        encoding="utf-8",
    )

    def dry_run(*words: str) -> tuple[int, str]:
        said: list[str] = []
        typed = [str(manifest), "model=480p_t2v", "runtime.card=rtx_4090", "dry_run=true"]
        typed += ["runtime.compile=true", f"run_dir={tmp_path / 'out'}", "time_limit=19min"]

        def run(job: Command) -> int:
            return session.run(job.config, (), None, said.append)

        return run_jobs([*typed, *words], run), "\n".join(said)

    code, text = dry_run()
    offered = re.findall(r"^Cheaper: (.*) would take ", text, re.MULTILINE)
    assert code == 0
    few = "model=480p_t2v_distilled override.num_inference_steps=50 "
    assert any(words.startswith(few) for words in offered), text
    for words in offered:
        code, text = dry_run(*words.split())
        assert code == 0
        assert ": 2 of 2 clips" in text


def test_a_deadline_is_printed_as_it_was_typed_and_a_far_end_with_its_date(tmp_path: Path) -> None:
    class Ticking(FakeClock):
        def now(self) -> datetime:
            self.sleep(0.01)
            return super().now()

    clock = Ticking(datetime(2026, 11, 22, 21, 0).astimezone())
    asked = replace(config(), until="07:00")
    rules = read_rules(asked, clock)

    _, lines = predict_run(
        asked, planned(*[SETTINGS] * 20_000), machine(24), tmp_path / "log", rules, no_trial
    )

    assert lines[3].startswith("Until Mon 07:00: ")
    assert re.search(r"done \w{3} \d\d \w{3} 202[67] \d\d:\d\d \(", lines[0])


def test_time_limit_and_window_say_how_many_clips_and_when_the_last_is_done(
    tmp_path: Path,
) -> None:
    todo = planned(*[SETTINGS] * 600)
    forecast = make_forecast(config(), todo, machine(24), tmp_path / "log")
    assert forecast is not None
    asked = replace(config(), window="22:00-07:00", time_limit="8h")
    clock = FakeClock(datetime(2026, 11, 22, 21, 0).astimezone())
    rules = read_rules(asked, clock)
    ends = list(rules.finishes(forecast.lengths(todo)))
    writing = 480 * 848 * 121 / WRITE_PIXELS_PER_SECOND
    opening = datetime(2026, 11, 22, 22, 0).astimezone()

    _, lines = predict_run(asked, todo, machine(24), tmp_path / "log", rules, no_trial)

    seconds, start = forecast.clip_seconds(ONE[0]), forecast.start.seconds
    assert ends[0] == opening + timedelta(seconds=seconds + start + writing)
    in_the_night = int((9 * 3600 - start - writing) // seconds)
    until_five = int((7 * 3600 - start - writing) // seconds)
    assert lines[3] == f"Until Mon 05:00 (time_limit=8h): {until_five} of 600 clips"
    assert lines[4].startswith(
        f"Window 22:00-07:00: {in_the_night} of 600 clips by Mon 07:00, all 600 on "
        f"{ends[-1]:%a %d %b %H:%M} ("
    )
    assert f"done {ends[-1]:%a %H:%M} (an estimate" in lines[0]
    assert lines[5].startswith("Cheaper: ")


def test_clips_that_only_have_to_be_decoded_are_predicted_so(tmp_path: Path) -> None:
    saved, asked = planned(*[SETTINGS] * 10, from_latents=True), config()
    whole = make_forecast(asked, planned(*[SETTINGS] * 10), machine(24), tmp_path / "log")
    forecast = make_forecast(asked, saved, machine(24), tmp_path / "log")
    assert forecast is not None
    assert whole is not None
    cost = forecast.clip_cost(SETTINGS)

    assert forecast.clip_seconds(saved[0]) == cost.decode_seconds
    assert forecast.start.encode_seconds == 0
    assert forecast.total_seconds(saved) < whole.total_seconds(planned(*[SETTINGS] * 10)) / 5
    narrow = read_rules(replace(asked, window="22:00-22:01"), CLOCK)
    _, lines = predict_run(asked, saved, machine(24), tmp_path / "log", narrow, no_trial)
    assert lines[1].startswith("Stages: a clip denoise 0.0 s (0.0 PFLOP) and decode ")
    assert lines[1].endswith("; 10 of 10 only decoded, from their latents")


def test_a_clip_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    asked = replace(config(), window="22:00-22:01")
    rules = read_rules(asked, CLOCK)

    with pytest.raises(Refused, match=r"^window=22:00-22:01: the longest of 3 clips takes ab"):
        predict_run(asked, planned(*[SETTINGS] * 3), machine(24), tmp_path / "log", rules, no_trial)


def test_a_run_is_refused_a_window_in_which_a_clip_is_never_finished(tmp_path: Path) -> None:
    asked = replace(config(), window="22:00-22:01")
    pace, job = pace_of(asked, tmp_path)

    with pytest.raises(Refused) as refused:
        check_window(read_rules(asked, CLOCK).window, [("cat", pace.clip_seconds(job))])

    assert re.fullmatch(
        r"window=22:00-22:01: cat takes about \d+ min, longer than the window \(1 min\); widen it, "
        r"or render shorter clips\.",
        str(refused.value),
    )


def test_a_card_that_is_known_predicts_before_the_first_clip(tmp_path: Path) -> None:
    pace, job = pace_of(config(), tmp_path)
    forecast = make_forecast(config(), ONE, machine(24), tmp_path / "log")
    assert forecast is not None

    writing = 480 * 848 * 121 / WRITE_PIXELS_PER_SECOND
    assert pace.clip_seconds(job) == pytest.approx(forecast.clip_seconds(ONE[0]) + writing)


def test_a_clip_with_saved_latents_is_predicted_without_denoising(tmp_path: Path) -> None:
    pace, job = pace_of(config(), tmp_path)
    run_dir = RunDir(tmp_path)
    run_dir.create()
    before = pace.clip_seconds(job)

    run_dir.latents_file(job.clip.denoise_sha256).touch()

    assert pace.clip_seconds(job) < before / 5
    assert pace.clip_seconds(replace(job, use_latents=False)) == before


def pace_of(asked: Config, folder: Path) -> tuple[Pace, Job]:
    (cat,) = todo = [replace(ONE[0], clip=made(SETTINGS, "cat"))]
    rules = read_rules(asked, CLOCK)
    forecast = make_forecast(asked, todo, machine(24), folder / "log")
    return make_pace(forecast, RunDir(folder), rules.clock), Job(cat.clip, 1, True)
