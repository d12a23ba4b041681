"""Random weights: the same modules as the real ones, whole, finite and cheap to build."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel
from PIL import Image
from torch import nn
from transformers import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from hv15_batch.engine.load.random_weights import (
    POOL_SIZE,
    build_component,
    build_feature_extractor,
    build_guider,
    build_scheduler,
    build_without_memory,
    tokenizers,
)
from hv15_batch.model.architectures import (
    COMPONENTS,
    MODULES,
    component_arguments,
    component_names,
    definition_sha256,
    read_architecture,
)
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import (
    Distillation,
    ModelConfig,
    Recipe,
    SamplingDefaults,
    Task,
    Weights,
)

T2V = ModelConfig(name="480p_t2v", repo="some/repo", weights=Weights.random)
STEP = ModelConfig(
    name="480p_i2v_step_distilled",
    repo="some/repo",
    weights=Weights.random,
    task=Task.i2v,
    distillation=Distillation.step,
    recipe=Recipe(guidance=1.0, meanflow=True),
)
# Narrow, but as deep as the full-size components, where values would grow with depth.
SHRINK: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2,
        "text_embed_dim": 64,
        "text_embed_2_dim": 48,
        "image_embed_dim": 40,
    },
    "vae": {"block_out_channels": [8, 16, 32, 64, 64]},
    "text_encoder": {
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "text_encoder_2": {"d_model": 96, "d_ff": 128},
    "image_encoder": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "image_size": 56,
    },
}


def shrunken() -> dict[str, dict[str, Any]]:
    full = read_architecture("full")
    return {name: {**full[name], **SHRINK.get(name, {})} for name in full}


def construct_normally(name: str, model: ModelConfig) -> nn.Module:
    arguments = component_arguments(name, model, shrunken())
    if name == "transformer":
        return HunyuanVideo15Transformer3DModel(**arguments)
    if name == "vae":
        return AutoencoderKLHunyuanVideo15(**arguments)
    if name == "text_encoder":
        return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**arguments))
    if name == "text_encoder_2":
        return T5EncoderModel(T5Config(**arguments))
    return SiglipVisionModel(SiglipVisionConfig(**arguments))


def outputs(name: str, component: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    with torch.no_grad():
        if name == "transformer":
            return [
                component(
                    hidden_states=noise(1, 65, 2, 3, 4),
                    timestep=torch.tensor([500.0], dtype=dtype),
                    encoder_hidden_states=noise(1, 6, 64),
                    encoder_attention_mask=torch.ones(1, 6, dtype=dtype),
                    encoder_hidden_states_2=noise(1, 5, 48),
                    encoder_attention_mask_2=torch.ones(1, 5, dtype=dtype),
                    image_embeds=noise(1, 4, 40),
                    return_dict=False,
                )[0]
            ]
        if name == "vae":
            moments = component.encode(noise(1, 3, 1, 32, 48)).latent_dist.mode()
            return [moments, component.decode(noise(1, 32, 2, 2, 3)).sample]
        if name == "image_encoder":
            return [component(pixel_values=noise(1, 3, 56, 56)).last_hidden_state]
        ids = torch.arange(2, 22)[None]
        mask = torch.ones_like(ids)
        return list(component(ids, attention_mask=mask, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("model", [T2V, STEP], ids=lambda model: model.name)
@pytest.mark.parametrize("name", MODULES)
def test_component_has_the_parameters_and_buffers_of_the_normally_constructed_class(
    name: str, model: ModelConfig
) -> None:
    normal = construct_normally(name, model)

    built = build_component(name, model, torch.bfloat16, "cpu", architecture=shrunken())

    assert type(built) is type(normal)
    shapes = {key: value.shape for key, value in normal.state_dict().items()}
    assert {key: value.shape for key, value in built.state_dict().items()} == shapes
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.is_meta for p in built.parameters())
    assert not any(module.training for module in built.modules())
    buffers = dict(normal.named_buffers())
    assert dict(built.named_buffers()).keys() == buffers.keys()
    for key, buffer in built.named_buffers():
        assert buffer.dtype == buffers[key].dtype
        assert torch.equal(buffer, buffers[key])


def test_the_rotary_frequencies_and_position_ids_are_among_the_compared_buffers() -> None:
    names = {
        buffer
        for name in ("text_encoder", "image_encoder")
        for buffer, _ in construct_normally(name, T2V).named_buffers()
    }

    assert any("inv_freq" in name for name in names)
    assert any("position_ids" in name for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_finite_of_moderate_size_and_not_constant(
    name: str, dtype: torch.dtype
) -> None:
    built = build_component(name, T2V, dtype, "cpu", architecture=shrunken())

    for output in outputs(name, built, dtype):
        assert output.dtype == dtype
        assert torch.isfinite(output).all()
        assert 0.01 < output.float().std() < 30


def test_one_seed_gives_one_set_of_weights_and_another_seed_another() -> None:
    first, again, other = (
        build_component("vae", T2V, torch.float32, "cpu", seed, shrunken()).state_dict()
        for seed in (0, 0, 1)
    )

    assert all(torch.equal(first[key], again[key]) for key in first)
    key = "decoder.conv_in.conv.weight"
    assert not torch.equal(first[key], other[key])


def test_norms_are_one_biases_zero_and_matrices_scaled_by_fan_in() -> None:
    architecture = shrunken()
    transformer = build_component(
        "transformer", T2V, torch.float32, "cpu", architecture=architecture
    )
    vae = build_component("vae", T2V, torch.float32, "cpu", architecture=architecture)

    for name, parameter in (*transformer.named_parameters(), *vae.named_parameters()):
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("gamma") or parameter.ndim == 1:
            assert (parameter == 1).all(), name
    weight = transformer.get_parameter("context_embedder_2.linear_2.weight")
    assert weight.std().item() == pytest.approx(2048**-0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-4


def test_tied_weights_stay_tied() -> None:
    built = build_component("text_encoder_2", T2V, torch.float32, "cpu", architecture=shrunken())

    assert built.shared.weight is built.encoder.embed_tokens.weight


def test_a_matrix_larger_than_the_pool_has_no_equal_rows() -> None:
    rows, columns = POOL_SIZE // 1024 + 300, 1024
    architecture = {**shrunken()}
    architecture["text_encoder"] = {
        **architecture["text_encoder"],
        "vocab_size": rows,
        "hidden_size": columns,
        "num_attention_heads": 8,
        "num_hidden_layers": 1,
    }

    built = build_component("text_encoder", T2V, torch.float32, "cpu", architecture=architecture)

    table = built.get_parameter("embed_tokens.weight")
    assert table.shape == (rows, columns)
    assert table.numel() > POOL_SIZE
    assert torch.unique(table[:, :4], dim=0).shape[0] == rows
    assert table.std().item() == pytest.approx(columns**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("transformer", 8.33),
        ("text_encoder", 7.07),
        ("vae", 1.26),
        ("image_encoder", 0.43),
        ("text_encoder_2", 0.22),
    ],
)
def test_full_size_has_the_published_number_of_parameters(name: str, billions: float) -> None:
    arguments = component_arguments(name, T2V, read_architecture("full"))

    component = build_without_memory(name, arguments)

    parameters = list(component.parameters())
    assert round(sum(p.numel() for p in parameters) / 1e9, 2) == billions
    assert sum(p.nbytes for p in parameters if not p.is_meta) < 2**20


def test_full_size_transformer_takes_task_bucket_and_meanflow_from_the_model() -> None:
    full = read_architecture("full")

    t2v = component_arguments("transformer", T2V, full)
    step = component_arguments("transformer", STEP, full)

    assert (t2v["task_type"], t2v["target_size"], t2v["use_meanflow"]) == ("t2v", 640, False)
    assert (step["task_type"], step["target_size"], step["use_meanflow"]) == ("i2v", 640, True)


def test_scheduler_guider_and_feature_extractor_are_those_of_the_architecture() -> None:
    image = Image.new("RGB", (848, 480), (255, 0, 0))

    pixels = build_feature_extractor(STEP).preprocess(images=image, return_tensors="pt")

    assert build_scheduler(T2V).config.shift == 5.0
    assert build_guider(T2V).guidance_scale == 6.0
    assert build_guider(STEP).guidance_scale == 1.0
    assert pixels["pixel_values"].shape == (1, 3, 384, 384)
    assert pixels["pixel_values"].min() == -1
    assert pixels["pixel_values"].max() == 1


def test_tokenizers_make_one_token_of_each_byte_and_fit_every_vocabulary() -> None:
    tokenizer, tokenizer_2 = tokenizers()
    text = 'A "sign" says 猫, é and 😀\n'

    ids = tokenizer(text)["input_ids"]

    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    for size in ("full", "tiny", "demo"):
        architecture = read_architecture(size)
        assert len(tokenizer) <= architecture["text_encoder"]["vocab_size"]
        assert len(tokenizer_2) <= architecture["text_encoder_2"]["vocab_size"]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    message = (
        "component 'tokenizer': must be one of "
        "transformer, vae, text_encoder, text_encoder_2, image_encoder"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_component("tokenizer", T2V, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"^component 'unet': must be one of transformer, vae, "):
        component_arguments("unet", T2V, read_architecture("full"))
    message = "architecture size 'huge': must be one of full, tiny, demo"
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_architecture("huge")


@pytest.mark.parametrize("size", ["tiny", "demo"])
def test_all_sizes_describe_every_component_with_the_same_settings(size: str) -> None:
    full, small = read_architecture("full"), read_architecture(size)

    assert tuple(full) == tuple(small) == COMPONENTS
    for name in COMPONENTS:
        assert full[name].keys() <= small[name].keys()
    assert "image_encoder" in component_names(Task.i2v)
    assert "image_encoder" not in component_names(Task.t2v)


def test_definition_changes_with_what_decides_the_weights_and_with_nothing_else() -> None:
    base = definition_sha256("full", T2V)
    others = [
        definition_sha256("tiny", T2V),
        definition_sha256("full", ModelConfig(task=Task.i2v)),
        definition_sha256("full", ModelConfig(target_size=960)),
        definition_sha256("full", ModelConfig(distillation=Distillation.cfg)),
    ]

    assert len({base, *others}) == 5
    renamed = ModelConfig(name="x", repo="y", default_sampling=SamplingDefaults(height=16))
    assert definition_sha256("full", renamed) == base


def test_definition_names_meanflow_only_where_the_distillation_does_not_imply_it() -> None:
    """The revision of a version that had no recipe stays what it was."""
    few_steps = replace(STEP, recipe=Recipe([4], guidance=1.0))
    revisions = {
        name: definition_sha256("tiny", option)[:12]
        for name, option in model_options().items()
        if option.weights is Weights.tiny
    }

    assert definition_sha256("full", few_steps) != definition_sha256("full", STEP)
    assert revisions == {
        "tiny_i2v": "472ab85940e7",
        "tiny_i2v_step_distilled": "5107f07dce31",
        "tiny_t2v": "100bad1c3673",
    }


def test_names_and_revisions_need_no_torch() -> None:
    code = (
        "import sys; from hv15_batch.model.architectures import definition_sha256;"
        "from hv15_batch.model.options import tiny_model;"
        "print(definition_sha256('tiny', tiny_model('tiny_t2v')));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers')))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64
