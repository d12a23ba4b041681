"""Single-file transformers: layouts, scaled fp8, strictness both ways, and the bytes written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel
from fakes.command import Answer
from fakes.single_files import Tensors, original, saved
from safetensors.torch import load_file

from hv15_batch.errors import Refused
from hv15_batch.model.architectures import component_arguments, read_architecture
from hv15_batch.model.options import model_options
from hv15_batch.weights.layouts import Layout, parts, shapes
from hv15_batch.weights.single_file import open_single_file

OPTIONS = ("480p_t2v", "480p_i2v_step_distilled")


def meta_transformer(option: str, size: str = "full") -> HunyuanVideo15Transformer3DModel:
    arguments = component_arguments("transformer", model_options()[option], read_architecture(size))
    with torch.device("meta"):
        return HunyuanVideo15Transformer3DModel(**arguments)


@pytest.fixture(scope="module")
def tiny() -> Tensors:
    """A tiny transformer, as diffusers names its tensors, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    meta = meta_transformer("480p_t2v", "tiny").state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator).bfloat16()
        for name, tensor in meta.items()
    }


def converted(command: Callable[..., Answer], path: Path) -> Tensors:
    answer = command("convert", path, "--out", path.parent / "out.safetensors")
    assert (answer.code, answer.err) == (0, "")
    return load_file(path.parent / "out.safetensors")


# -- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["full", "tiny"])
@pytest.mark.parametrize("option", OPTIONS)
def test_names_and_shapes_are_those_of_the_class(option: str, size: str) -> None:
    transformer = meta_transformer(option, size)

    wanted = {name: tuple(t.shape) for name, t in transformer.state_dict().items()}
    assert shapes(transformer.config) == wanted


@pytest.mark.parametrize(("fused", "count"), [(False, 1793), (True, 1361)])
def test_every_name_of_a_full_size_file_maps(fused: bool, count: int) -> None:
    transformer = meta_transformer("480p_t2v")
    layout = Layout.comfy if fused else Layout.original

    names = set(original(transformer.state_dict(), fused))

    assert {part.source for part in parts(transformer.config, layout).values()} == names
    assert len(names) == count


# -- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fused", [False, True])
def test_an_original_file_becomes_the_checkpoint_it_was_made_from(
    tiny: Tensors,
    tmp_path: Path,
    command: Callable[..., Answer],
    fused: bool,
    dtype: torch.dtype,
    prefix: str,
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tiny.items()}
    file = {prefix + name: tensor for name, tensor in original(tensors, fused).items()}

    found = converted(command, saved(tmp_path / "file.safetensors", file))

    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype is dtype


def test_types_may_differ_from_tensor_to_tensor(
    tiny: Tensors, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    tensors = {n: t.float() if n.endswith("norm_q.weight") else t for n, t in tiny.items()}

    found = converted(command, saved(tmp_path / "file.safetensors", original(tensors)))

    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert {t.dtype for t in found.values()} == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", ["old", "new", "row", "block"])
def test_scaled_fp8_is_restored_as_torch_does(
    tiny: Tensors,
    tmp_path: Path,
    command: Callable[..., Answer],
    form: str,
    dtype: torch.dtype,
) -> None:
    whole = original(tiny, fused=True)
    file: Tensors = {}
    wanted: Tensors = {}
    for name, tensor in whole.items():
        if not (name.startswith("double_blocks") and tensor.ndim == 2):
            file[name] = wanted[name] = tensor
            continue
        values = tensor.float()
        if form == "block":
            blocks = values.reshape(values.shape[0], 4, -1)
            scale = blocks.abs().amax(-1, keepdim=True) / 440
            stored = (blocks / scale).to(dtype)
            restored = (stored.float() * scale).reshape(values.shape)
            stored = stored.reshape(values.shape)
        else:
            scale = values.abs().amax(1, keepdim=True) if form == "row" else values.abs().amax()
            scale = scale / 440
            stored = (values / scale).to(dtype)
            restored = stored.float() * scale
        module = name.removesuffix(".weight")
        file[name] = stored
        file[f"{module}.{'weight_scale' if form == 'new' else 'scale_weight'}"] = scale
        file[f"{module}.{'input_scale' if form == 'new' else 'scale_input'}"] = torch.ones(())
        wanted[name] = restored.bfloat16()
    if form == "old":
        file["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    layers = {"layers": {"x": {"format": "float8_e4m3fn"}}}
    metadata = {"_quantization_metadata": json.dumps(layers)} if form == "new" else None

    found = original(converted(command, saved(tmp_path / "f.safetensors", file, metadata)), True)

    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# -- what is refused --------------------------------------------------------------------------


def without(tensors: Tensors) -> Tensors:
    return {n: t for n, t in tensors.items() if n != "double_blocks.1.txt_mlp.fc2.bias"}


def with_more(tensors: Tensors) -> Tensors:
    return {**tensors, "double_blocks.0.mystery.weight": torch.zeros(2)}


def misshapen(tensors: Tensors) -> Tensors:
    return {**tensors, "txt_in.c_embedder.linear_2.bias": torch.zeros(3)}


def without_scale(tensors: Tensors) -> Tensors:
    name = "double_blocks.0.img_mlp.fc1.weight"
    return {**tensors, name: tensors[name].to(torch.float8_e4m3fn)}


def of_ints(tensors: Tensors) -> Tensors:
    name = "double_blocks.0.img_mlp.fc1.weight"
    return {**tensors, name: tensors[name].to(torch.int8)}


def for_super_resolution(tensors: Tensors) -> Tensors:
    width = tensors["img_in.proj.bias"].shape[0]
    return {**tensors, "img_in.proj.weight": torch.zeros(width, 98, 1, 1, 1)}


def with_lost_scale(tensors: Tensors) -> Tensors:
    return {**tensors, "double_blocks.9.img_mlp.fc1.scale_weight": torch.ones(())}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without, "double_blocks.1.txt_mlp.fc2.bias is missing"),
        (with_more, "double_blocks.0.mystery.weight does not belong"),
        (misshapen, r"txt_in.c_embedder.linear_2.bias has the shape \[3\] and must have"),
        (without_scale, "img_mlp.fc1.weight is F8_E4M3 without a scale"),
        (of_ints, "img_mlp.fc1.weight is I8"),
        (for_super_resolution, "a super-resolution transformer"),
        (with_lost_scale, "double_blocks.9.img_mlp.fc1.weight is missing, but its scale is there"),
        (lambda t: {"blocks.0.weight": torch.zeros(2)}, "not a HunyuanVideo-1.5 transformer"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_the_name_of_the_tensor(
    tiny: Tensors, tmp_path: Path, spoil: Callable[[Tensors], Tensors], message: str
) -> None:
    path = saved(tmp_path / "file.safetensors", spoil(original(tiny)))

    with pytest.raises(Refused, match=message):
        open_single_file(path, "file.safetensors")


def test_a_quantisation_that_is_not_known_is_refused(tiny: Tensors, tmp_path: Path) -> None:
    metadata = {"_quantization_metadata": '{"layers": {"x": {"format": "nvfp4"}}}'}
    path = saved(tmp_path / "file.safetensors", original(tiny), metadata)

    with pytest.raises(Refused, match="quantised as nvfp4"):
        open_single_file(path, "file.safetensors")


FORGED = "\n1 of 1 done\x1b[2J" + "x" * 1_000_000


@pytest.mark.parametrize(
    ("more", "metadata"),
    [
        ({f"{FORGED}.weight": torch.zeros(2)}, None),
        ({f"{FORGED}.scale_weight": torch.ones(())}, None),
        ({f"{FORGED}.scale_weight": torch.ones((), dtype=torch.float16)}, None),
        ({}, {"_quantization_metadata": f'{{"format": "{FORGED}"}}'}),
    ],
)
def test_a_text_of_a_file_is_told_on_one_short_line(
    more: Tensors, metadata: dict[str, str] | None, tiny: Tensors, tmp_path: Path
) -> None:
    path = saved(tmp_path / "file.safetensors", original(tiny) | more, metadata)

    with pytest.raises(Refused) as caught:
        open_single_file(path, "file.safetensors")

    assert r"\n1 of 1 done\x1b[2J" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, message in (
        ("cut.safetensors", "cut short or not safetensors"),
        ("model.gguf", "GGUF is not supported"),
        ("pipe.safetensors", "is a pipe and no regular file"),
        ("none.safetensors", "No such file"),
    ):
        with pytest.raises(Refused, match=message):
            open_single_file(tmp_path / name, name)


def test_nothing_is_written_over(
    tiny: Tensors, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    path = saved(tmp_path / "file.safetensors", original(tiny))
    out = tmp_path / "file.diffusers.safetensors"
    out.write_text("mine")

    answer = command("convert", path)

    assert answer.code == 2
    assert "exists, and is never written over" in answer.err
    assert out.read_text() == "mine"


def test_a_result_that_cannot_be_written_leaves_nothing(
    tiny: Tensors, tmp_path: Path, command: Callable[..., Answer], monkeypatch: Any
) -> None:
    path = saved(tmp_path / "file.safetensors", original(tiny))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hv15_batch.weights.command.write_diffusers", full)
    answer = command("convert", path)

    assert answer.code == 2
    assert "No space left on device" in answer.err
    assert os.listdir(tmp_path) == ["file.safetensors"]
