from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hv15_batch.config.checks import check_config, check_sampling_value
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import (
    Advice,
    Dtype,
    HubFile,
    ModelConfig,
    OffloadKind,
    Recipe,
    SamplingDefaults,
    Task,
    Weights,
    check_recipe,
)
from hv15_batch.references.data import Quantity, read_references
from hv15_batch.run.prepare import find_manifest

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NONE, CFG, STEP = "none", "cfg", "step"

# Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 README, "Optimal Inference Configurations".
PUBLISHED = {
    "480p_t2v": ("t2v", NONE, 480, 848, 50, 6.0, 5.0),
    "480p_t2v_distilled": ("t2v", CFG, 480, 848, 50, 1.0, 5.0),
    "480p_i2v": ("i2v", NONE, 480, 848, 50, 6.0, 5.0),
    "480p_i2v_distilled": ("i2v", CFG, 480, 848, 50, 1.0, 5.0),
    "480p_i2v_step_distilled": ("i2v", STEP, 480, 848, 8, 1.0, 7.0),
    "720p_t2v": ("t2v", NONE, 720, 1280, 50, 6.0, 9.0),
    "720p_i2v": ("i2v", NONE, 720, 1280, 50, 6.0, 7.0),
    "720p_i2v_distilled": ("i2v", CFG, 720, 1280, 50, 1.0, 7.0),
}
TINY = ("tiny_i2v", "tiny_i2v_step_distilled", "tiny_t2v")
DEMO = ("demo_i2v", "demo_t2v")
FOUR_STEP = "480p_t2v_4step"


def read_model(name: str) -> ModelConfig:
    schema = OmegaConf.structured(ModelConfig)
    model = OmegaConf.to_object(
        OmegaConf.merge(schema, OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    )
    assert isinstance(model, ModelConfig)
    return model


def compose_config(tmp_path: Path, *overrides: str) -> Config:
    """Compose the groups under a bare root, as the command line does with its own."""
    (tmp_path / "config.yaml").write_text(
        "defaults: [_self_, {model: 480p_t2v_distilled}, {offload: auto}, {dispatch: local}, "
        "{experiment: null}]\n"
        f"hydra: {{searchpath: ['file://{CONF}']}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        composed = compose("config", list(overrides))
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed))
    assert isinstance(config, Config)
    return config


def test_the_models_are_the_published_ones_a_four_step_one_and_small_ones() -> None:
    assert MODELS == sorted([*PUBLISHED, FOUR_STEP, *TINY, *DEMO])


def test_the_four_step_model_is_the_transformer_of_lightx2v_in_the_base_repository() -> None:
    """Source: the card and the configuration of lightx2v/Hy1.5-Distill-Models."""
    model, base = read_model(FOUR_STEP), read_model("480p_t2v")

    assert (model.repo, model.revision, model.task) == (base.repo, base.revision, base.task)
    assert model.transformer_hub == HubFile(
        "lightx2v/Hy1.5-Distill-Models", "hy1.5_t2v_480p_lightx2v_4step.safetensors"
    )
    assert model.default_sampling == SamplingDefaults(480, 848, 121, 4, 1.0, 5.0, 24.0, "")
    assert model.advice == Advice(steps=4, max_frames=81, flow_shift=5.0)
    assert model.replaces_transformer
    assert not base.replaces_transformer


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_settings(name: str) -> None:
    model = read_model(name)
    task, distillation, height, width, steps, guidance, shift = PUBLISHED[name]

    assert model.repo == f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{name}"
    assert (model.task.name, model.distillation.name) == (task, distillation)
    assert (model.weights, model.dtype) == (Weights.pretrained, Dtype.bfloat16)
    assert model.target_size == (640 if height == 480 else 960)
    assert model.default_sampling == SamplingDefaults(
        height, width, 121, steps, guidance, shift, 24.0, ""
    )


RECIPES = {
    CFG: Recipe([50], [], guidance=1.0),
    STEP: Recipe([8, 12], [4], guidance=1.0, meanflow=True),
    NONE: Recipe(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_published_recipe_of_its_distillation(name: str) -> None:
    option = model_options()[name]

    # LightX2V's model takes other numbers of steps, which are told.
    own = Recipe([], [], guidance=1.0) if name == FOUR_STEP else None
    assert option.recipe == (own or RECIPES[option.distillation.name])
    assert option == read_model(name)
    assert option.recipe == read_model(name).recipe


def test_known_revisions_are_whole_commits() -> None:
    revisions = {name: read_model(name).revision for name in MODELS}

    known = {name for name, revision in revisions.items() if revision is not None}
    t2v = {"480p_t2v", "480p_t2v_distilled", FOUR_STEP}
    assert known == {*t2v, "480p_i2v_step_distilled", "720p_i2v"}
    assert all(len(revisions[name] or "") == 40 for name in known)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_named_as_its_file_and_passes_its_own_checks(name: str) -> None:
    model = read_model(name)

    check_config(Config(model=model))
    assert model.name == name
    assert (
        check_recipe(
            model, model.default_sampling.num_inference_steps, model.default_sampling.guidance_scale
        )
        is None
    )
    for field in dataclasses.fields(model.default_sampling):
        value = getattr(model.default_sampling, field.name)
        assert check_sampling_value(field.name, value, Task.t2v) is None


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_says_every_setting_itself(name: str) -> None:
    written = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())

    # A transformer of one's own is no option's, and only one option has another repository's.
    left_out = {"transformer_file", "loras"}
    if name != FOUR_STEP:
        left_out |= {"transformer_hub"}
    if name not in (FOUR_STEP, *DEMO):
        left_out |= {"advice"}
    assert set(written) == {f.name for f in dataclasses.fields(ModelConfig)} - left_out
    if "advice" in written:
        assert set(written["advice"]) == {field.name for field in dataclasses.fields(Advice)}
    assert set(written["recipe"]) == {field.name for field in dataclasses.fields(Recipe)}
    assert set(written["default_sampling"]) == {
        field.name for field in dataclasses.fields(SamplingDefaults)
    } - {"negative_prompt"}


@pytest.mark.parametrize("name", [*TINY, *DEMO])
def test_a_small_model_needs_no_download(name: str) -> None:
    model = read_model(name)

    weights = Weights.tiny if name in TINY else Weights.demo
    assert (model.repo, model.weights, model.dtype) == (None, weights, Dtype.float32)


def test_every_offload_kind_has_its_file() -> None:
    for kind in OffloadKind:
        path = CONF / "offload" / f"{kind.name}.yaml"
        assert yaml.safe_load(path.read_text()) == {"kind": kind.name}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_preset_begins_with_its_command_line_and_is_short(name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()

    assert lines[:2] == [
        "# @package _global_",
        f"# python -m hv15_batch experiment={name}",
    ]
    assert len(lines) <= 12


PRESETS = {
    "h200_vllm_omni": ("480p_t2v", "auto", {"width": 832}),
    "rtx4090_200_clips": (FOUR_STEP, "auto", {}),
    "rtx4090_14gb": ("480p_t2v", "stream", {}),
    "rtx4090_24gb": ("480p_t2v", "resident", {}),
    "rtx4090_standard": ("480p_t2v", "auto", {}),
    "rtx4090_step_distilled": ("480p_i2v_step_distilled", "auto", {"num_inference_steps": 8}),
    "this_card": (FOUR_STEP, "auto", {}),
    "recipe_option_a": ("480p_t2v_distilled", "auto", {}),
    "recipe_option_b": ("480p_t2v", "model", {"num_frames": 61, "fps": 15.0}),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_preset_composes_to_what_it_names(name: str, tmp_path: Path) -> None:
    model, offload, typed = PRESETS[name]

    config = compose_config(tmp_path, f"experiment={name}")

    check_config(config)
    assert config.manifest is not None
    read_manifest(find_manifest(config.manifest), config.model.task)
    assert (config.model.name, config.offload.kind.name) == (model, offload)
    sampling = dataclasses.asdict(config.sampling)
    assert {key: value for key, value in sampling.items() if value is not None} == typed


def test_the_h200_preset_has_the_settings_of_its_reference(tmp_path: Path) -> None:
    config = compose_config(tmp_path, "experiment=h200_vllm_omni")
    (reference,) = (r for r in read_references(CONF / "reference") if r.name == "vllm_omni_121")

    for name in ("height", "width", "num_frames", "guidance_scale", "flow_shift"):
        asked = getattr(config.sampling, name) or getattr(config.model.default_sampling, name)
        assert asked == getattr(reference, name), name
    assert reference.num_inference_steps == (config.model.default_sampling.num_inference_steps,)


def test_every_published_figure_is_there_with_source_and_what_is_open() -> None:
    references = {r.name: r for r in read_references(CONF / "reference")}

    seconds = {
        name: (r.hardware, r.seconds_min, r.seconds_max)
        for name, r in references.items()
        if r.quantity is not Quantity.vram
    }
    assert seconds == {
        "tencent_step_distilled": ("RTX 4090", None, 75),
        "recipe_step_distilled": ("RTX 4090", None, 75),
        "recipe_standard": ("RTX 4090", 180, 720),
        "recipe_load": ("RTX 4090", 60, 120),
        "vllm_omni_diffusers_121": ("1x H200", 1135.7, 1135.7),
        "vllm_omni_121": ("1x H200", 259.4, 259.4),
        "vllm_omni_diffusers_33": ("1x H200", 87.0, 87.0),
        "vllm_omni_33": ("1x H200", 29.9, 29.9),
        "comfyui_rtx5090": ("RTX 5090", 284, 284),
        "rtx5090d_masked": ("RTX 5090 D", 509, 509),
        "rtx5090d_unmasked": ("RTX 5090 D", 272, 272),
        "comfyui_rtx4090_48gb": ("RTX 4090 48 GB", 3600, 3600),
        "tencent_rtx4090_defaults": ("RTX 4090", 1200, 1200),
    }
    assert references["tencent_minimum_vram"].vram_gb_min == 14
    assert references["recipe_vram"].vram_gb_min == 24
    assert len(references) == 15
    assert all(r.source and r.not_stated for r in references.values())


def test_a_stated_setting_is_not_also_called_open() -> None:
    words = {"height": "height and width", "num_frames": "frames", "task": "task",
             "num_inference_steps": "steps", "guidance_scale": "guidance"}  # fmt: skip
    for reference in read_references(CONF / "reference"):
        for field, word in words.items():
            is_open = word in reference.not_stated
            assert not (is_open and getattr(reference, field) is not None), (reference.name, word)


def test_models_of_references_are_options() -> None:
    for reference in read_references(CONF / "reference"):
        assert reference.model is None or reference.model in MODELS


def test_a_figure_may_have_a_date_of_its_own() -> None:
    references = {r.name: r for r in read_references(CONF / "reference")}

    assert references["comfyui_rtx4090_48gb"].date == datetime.date(2025, 11, 25)
    assert references["tencent_rtx4090_defaults"].date == datetime.date(2025, 11, 28)


MISSING = object()
"""Of a key that is left out."""
GOOD: dict[str, Any] = {
    "name": "one",
    "quantity": "clip_seconds",
    "figure": "75 s",
    "seconds_max": 75,
    "hardware": "RTX 4090",
    "not_stated": ["frames"],
}


def write_references(folder: Path, figure: dict[str, Any], **top: Any) -> Path:
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({"source": "somebody", **top, "figures": [figure]}))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 61}, "unknown key 'frames' in figure one; known keys are name, quantity"),
        ({"hardware": MISSING}, "missing key 'hardware' in figure one."),
        ({"hardware": None}, "hardware=None in figure one: must be str."),
        ({"seconds_max": None}, "missing key 'seconds_max' in figure one: a clip_seconds figure"),
        ({"num_frames": "61"}, "num_frames='61' in figure one: must be int or null."),
        ({"num_frames": True}, "num_frames=True in figure one: must be int or null."),
        ({"task": "v2v"}, "task='v2v' in figure one: must be one of t2v, i2v."),
        (
            {"num_inference_steps": 8},
            "num_inference_steps=8 in figure one: must be a list or null.",
        ),
        (
            {"num_inference_steps": [8, "12"]},
            "num_inference_steps[1]='12' in figure one: must be int.",
        ),
        ({"date": "soon"}, "date='soon' in figure one: Invalid RFC3339 encoded date."),
        ({"model": "480p"}, "model='480p' in figure one: must be one of 480p_i2v, "),
        ({"models": ["480p"]}, "models='480p' in figure one: must be one of 480p_i2v, "),
    ],
)
def test_a_fault_in_a_reference_names_file_figure_and_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    figure = {name: v for name, v in {**GOOD, **change}.items() if v is not MISSING}
    path = write_references(tmp_path, figure)

    with pytest.raises(Refused) as caught:
        read_references(tmp_path)

    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_good_reference_is_read_with_its_types(tmp_path: Path) -> None:
    write_references(tmp_path, {**GOOD, "task": "i2v", "num_inference_steps": [8, 12]}, url="u")

    (reference,) = read_references(tmp_path)

    assert (reference.source, reference.url, reference.date) == ("somebody", "u", None)
    assert (reference.seconds_max, reference.task) == (75.0, Task.i2v)
    assert reference.num_inference_steps == (8, 12)


def test_an_unknown_key_of_the_file_is_refused(tmp_path: Path) -> None:
    path = write_references(tmp_path, GOOD, author="x")

    with pytest.raises(Refused) as caught:
        read_references(tmp_path)

    assert str(caught.value) == (
        f"{path}: unknown key 'author'; known keys are source, figures, url, date."
    )


def test_two_figures_of_one_name_are_refused(tmp_path: Path) -> None:
    write_references(tmp_path, GOOD)
    (tmp_path / "b.yaml").write_text((tmp_path / "a.yaml").read_text())

    with pytest.raises(Refused, match="two figures are named 'one'"):
        read_references(tmp_path)


@pytest.mark.parametrize("text", ["figures: [", "source: x", "- 1", "source: x\nfigures: [3]"])
def test_a_file_that_holds_no_figures_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)

    with pytest.raises(Refused, match=r"a\.yaml: "):
        read_references(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_references(tmp_path / "none")
