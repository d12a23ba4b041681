from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.command import Answer, tiny_model

from hv15_batch.config.checks import SAMPLING_FIELDS, check_config, effective_dtype
from hv15_batch.config.compose import Job, run_jobs
from hv15_batch.config.settings import (
    Config,
    OffloadConfig,
    QualityConfig,
    ReportConfig,
    SamplingConfig,
    each_setting,
)
from hv15_batch.config.words import GROUPS, setting_names
from hv15_batch.errors import Refused
from hv15_batch.model.options import conf_dir
from hv15_batch.model.variant import (
    Distillation,
    Dtype,
    ModelConfig,
    Recipe,
    SamplingDefaults,
    Task,
    Weights,
)

OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))
]
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]


@cache
def compose(*words: str) -> Config:
    """The settings of one command line."""
    jobs: list[Job] = []

    def keep(job: Job) -> int:
        jobs.append(job)
        return 0

    assert run_jobs(words, keep) == 0
    return jobs[0].config


# -- every option and preset ------------------------------------------------------------------


def test_there_are_options_in_every_group() -> None:
    assert {group for group, _ in OPTIONS} == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_converts_and_passes_its_checks(group: str, option: str) -> None:
    config = compose(f"{group}={option}")

    check_config(config)
    if group == "model":
        assert config.model.name == option
    if group == "offload":
        assert config.offload.kind.name == option
    if group == "dispatch":
        assert config.dispatch.kind.name == option


@pytest.mark.parametrize("option", EXPERIMENTS)
def test_a_preset_is_the_same_with_and_without_a_plus(option: str) -> None:
    preset = compose(f"experiment={option}")

    assert compose(f"+experiment={option}") == preset
    assert preset != compose()


def test_the_defaults_are_those_of_the_contract() -> None:
    config = compose()

    assert config.model.name == "480p_t2v_distilled"
    assert config.offload == OffloadConfig()
    assert config.sampling.seeds == 0
    assert config.model.default_sampling == SamplingDefaults(
        height=480, width=848, num_frames=121, guidance_scale=1.0, fps=24.0
    )


def test_what_is_typed_beats_a_preset() -> None:
    preset = compose("experiment=h200_vllm_omni")
    typed = compose("experiment=h200_vllm_omni", "sampling.width=848", "model=480p_t2v_distilled")

    assert (preset.model.name, preset.sampling.width) == ("480p_t2v", 832)
    assert (typed.model.name, typed.sampling.width) == ("480p_t2v_distilled", 848)


def test_every_setting_can_be_typed() -> None:
    values = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    assert set(values) - {"defaults", "hydra"} <= {name.split(".")[0] for name in setting_names()}

    config = compose("runtime.dtype=float16", "video.codec=ffv1", "retry.suspect=true", "limit=3")

    assert effective_dtype(config) is Dtype.float16
    assert config.video.codec.name == "ffv1"
    assert config.retry.suspect is True
    assert config.limit == 3


def test_overrides_have_the_fields_of_sampling_and_nothing_else() -> None:
    names = setting_names()

    for section in ("sampling", "override"):
        inside = tuple(n.split(".")[1] for n in names if n.startswith(f"{section}."))
        cache = ("cache", "cache_every", "cache_start", "cache_end")
        assert inside == (*SAMPLING_FIELDS, *cache)


# -- refusals ---------------------------------------------------------------------------------

T2V = ModelConfig(name="480p_t2v", repo="owner/480p_t2v")
I2V = replace(T2V, name="480p_i2v", task=Task.i2v)
STEP = replace(
    I2V,
    name="480p_i2v_step_distilled",
    distillation=Distillation.step,
    recipe=Recipe(meanflow=True),
)
REASON = (
    "Tencent has published no step-distilled text-to-video checkpoint: theirs is 480p "
    "image-to-video (MeanFlow), and the text-to-video pipeline never passes it timestep_r, so its "
    "frames would be wrong without an error; use model=480p_t2v_4step (LightX2V's weights), "
    "model=480p_t2v_distilled, or model=480p_i2v_step_distilled with an image in every row."
)
REFUSED: list[tuple[Config, str]] = [
    (
        Config(model=replace(STEP, task=Task.t2v)),
        f"model.task=t2v with 480p_i2v_step_distilled: {REASON}",
    ),
    (
        Config(model=replace(T2V, repo="owner/HunyuanVideo-1.5-480p_i2v_step_distilled")),
        f"model.task=t2v with 480p_t2v: {REASON}",
    ),
    (
        Config(model=replace(T2V, weights=Weights.tiny)),
        "model.weights=tiny with model=480p_t2v: only the tiny models have such weights; use "
        "model=tiny_t2v, or model.weights=random for a full-size model without a download.",
    ),
    (
        Config(model=ModelConfig(name="tiny_t2v", weights=Weights.random)),
        "model.weights=random with model=tiny_t2v: it has no repository; leave model.weights out "
        "for a tiny or demo model, and set model.repo for any other.",
    ),
    (
        Config(model=replace(tiny_model("tiny_t2v"), repo="/nope")),
        "model.repo=/nope with model=tiny_t2v: a tiny model is built on this machine and has no "
        "repository; leave model.repo out, or name the model that the repository holds, for "
        "example model=480p_t2v.",
    ),
    (
        Config(model=T2V, limit=0),
        "limit=0: must be 1 or more; leave it out for all clips.",
    ),
    (
        Config(model=T2V, report=ReportConfig(price_per_kwh=float("inf"))),
        "report.price_per_kwh=inf: must be a finite number, 0 or more; leave it out for the "
        "default.",
    ),
    (
        Config(model=T2V, quality=QualityConfig(black_luma=-1)),
        "quality.black_luma=-1: must be 0 (never suspect) to 255; leave it out for the default.",
    ),
    (
        Config(model=T2V, quality=QualityConfig(clipped_share=1.5)),
        "quality.clipped_share=1.5: must be over 0 and at most 1 (never suspect); leave it out for "
        "the default.",
    ),
    (
        Config(model=T2V, quality=QualityConfig(flat_std=float("nan"))),
        "quality.flat_std=nan: must be 0 (never suspect) to 255; leave it out for the default.",
    ),
    (
        Config(model=I2V, override=SamplingConfig(height=480)),
        "override.height=480: an image-to-video model takes its size from the image; leave it out "
        "(the dry run shows the size).",
    ),
    (
        Config(model=T2V, sampling=SamplingConfig(width=850)),
        "sampling.width=850: must be a multiple of 16; nearest are 848 and 864.",
    ),
    (
        Config(model=T2V, override=SamplingConfig(height=0)),
        "override.height=0: must be a multiple of 16; the smallest is 16.",
    ),
    (
        Config(model=T2V, override=SamplingConfig(num_frames=120)),
        "override.num_frames=120: must be 4n+1; nearest are 117 and 121.",
    ),
    (
        Config(model=T2V, override=SamplingConfig(num_inference_steps=0)),
        "override.num_inference_steps=0: must be 1 to 1000; 50 is usual, 8 or 12 for "
        "step-distilled models.",
    ),
    (
        Config(model=T2V, override=SamplingConfig(guidance_scale=0.5)),
        "override.guidance_scale=0.5: must be 1 (no guidance) to 100; 6 is usual.",
    ),
    (
        Config(model=T2V, override=SamplingConfig(flow_shift=float("nan"))),
        "override.flow_shift=nan: must be over 0 and at most 100; 5 to 9 is usual.",
    ),
    (
        Config(model=T2V, override=SamplingConfig(fps=1000)),
        "override.fps=1000: must be 1 to 240; the model was trained at 24.",
    ),
    (
        Config(model=replace(T2V, default_sampling=SamplingDefaults(num_frames=60))),
        "model.default_sampling.num_frames=60: must be 4n+1; nearest are 57 and 61.",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_settings_that_cannot_be_are_refused_with_reason_and_remedy(
    config: Config, message: str
) -> None:
    with pytest.raises(Refused) as refused:
        check_config(config)

    assert str(refused.value) == message


BOUNDED = {name: bounds for name, _, bounds in each_setting(Config()) if "about" in bounds}


def with_value(name: str, value: float) -> Config:
    config = Config(model=replace(T2V))
    *sections, key = name.split(".")
    section: Any = config
    for part in sections:
        section = getattr(section, part)
    setattr(section, key, value)
    return config


@pytest.mark.parametrize("name", BOUNDED)
def test_a_number_with_bounds_is_taken_up_to_them_and_refused_beyond(name: str) -> None:
    bounds = BOUNDED[name]
    least, most = bounds["min"], bounds["max"]
    inside = [least + 0.01 if bounds["is_over"] else least, 10**9 if most == math.inf else most]
    beyond = [least - 1, *([] if most == math.inf else [most + 1])]
    beyond += [least] if bounds["is_over"] else []

    for value in inside:
        check_config(with_value(name, value))
    for value in (*beyond, math.inf, -math.inf, math.nan):
        with pytest.raises(Refused) as refused:
            check_config(with_value(name, value))
        allowed = str(refused.value).removeprefix(f"{name}={value:g}: ")
        assert allowed.replace("a finite number, ", "") == f"{bounds['about']}."


def test_a_limit_of_memory_without_end_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        check_config(with_value("runtime.vram_limit_gib", math.inf))

    assert str(refused.value) == (
        "runtime.vram_limit_gib=inf: must be a finite number, over 0, for example 24."
    )


def test_checks_change_nothing() -> None:
    config = Config(model=T2V)
    before = dataclasses.asdict(config)

    check_config(config)

    assert dataclasses.asdict(config) == before


def test_a_typo_in_an_option_of_ones_own_names_file_and_key(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "offload").mkdir(parents=True)
    (tmp_path / "mine" / "offload" / "typo.yaml").write_text("kind: model\nuse_streem: true\n")

    answer = command("--config-dir", "mine", "offload=typo", "--dry-run")

    assert answer.code == 2
    assert answer.err == (
        "offload/typo.yaml: there is no setting offload.use_streem. All of them: "
        "hv15-batch --cfg job.\n"
    )


def test_a_variant_of_ones_own_is_one_yaml_file(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    tiny = (conf_dir() / "model" / "tiny_t2v.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine" / "model" / "own.yaml").write_text(
        tiny.replace("num_inference_steps: 4", "num_inference_steps: 3")
    )
    (tmp_path / "p.txt").write_text("a cat\n")

    answer = command("p.txt", "--config-dir", "mine", "model=own", "--dry-run")

    assert answer.err == ""
    assert "9 frames at 24 fps, 3 steps" in answer.out


def test_a_few_step_text_to_video_model_is_one_yaml_file_with_its_recipe(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    tiny = (conf_dir() / "model" / "tiny_t2v.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("name: tiny_t2v", "name: four"),
        ("distillation: none", "distillation: step"),
        ("  steps: []\n", "  steps: [4]\n"),
        ("guidance: null", "guidance: 1.0"),
        ("guidance_scale: 6.0", "guidance_scale: 1.0"),
    ):
        assert old in tiny
        tiny = tiny.replace(old, new)
    (tmp_path / "mine" / "model" / "four.yaml").write_text(tiny)
    (tmp_path / "p.txt").write_text("a cat\n")
    words = ("p.txt", "--config-dir", "mine", "model=four", "--dry-run")

    planned = command(*words)
    refused = command(*words, "override.num_inference_steps=8")

    assert (planned.code, planned.err) == (0, "")
    assert "9 frames at 24 fps, 4 steps" in planned.out
    assert (refused.code, refused.err) == (
        2,
        "override.num_inference_steps=8: four is step-distilled for exactly 4 steps; leave it out, "
        "or set runtime.allow_off_recipe=true.\n",
    )
