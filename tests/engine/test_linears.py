"""8-bit linear modules: their arithmetic, how they are loaded, and what they go together with."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import HunyuanVideo15Transformer3DModel
from fakes import loras
from fakes.checkpoint import at
from fakes.engine import needs_compiler
from fakes.pipelines import (
    I2V,
    MEANFLOW,
    T2V,
    denoise_with_guidance,
    tiny_config,
)
from safetensors.torch import load_file, save_file
from torch import nn

from hv15_batch.clip import ClipLora
from hv15_batch.engine.denoise.compilation import is_compiled
from hv15_batch.engine.denoise.low_rank import LoraSet
from hv15_batch.engine.denoise.pipeline import Denoiser, load_denoiser
from hv15_batch.engine.load import linears, random_weights
from hv15_batch.engine.load.components import load_component
from hv15_batch.engine.load.linears import (
    ComputedLinear,
    EightBits,
    StoredLinear,
    check_linears,
    in_eight_bits,
)
from hv15_batch.engine.placement.blocks import BlockStream
from hv15_batch.errors import Refused
from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.linears import COMPUTED, STORED
from hv15_batch.model.variant import Linear, ModelConfig
from hv15_batch.weights.transformer import OwnTransformer

CPU = torch.device("cpu")
DTYPES = {Linear.fp8: torch.float8_e4m3fn, Linear.int8: torch.int8}
KINDS = tuple(DTYPES)
Denoise = Callable[[Denoiser], torch.Tensor]


# -- arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_rows_come_back_from_8_bits_within_their_rounding(dtype: torch.dtype) -> None:
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 3
    rows[3] *= 1e4
    rows[4] *= 1e-6
    rows[5] = 0

    values, scale = in_eight_bits(rows, dtype)

    assert (values.dtype, scale.dtype, scale.shape) == (dtype, torch.float32, (64, 1))
    back = values.float() * scale
    # fp8 has three bits behind the point, and an integer is half a step off at most.
    allowed = scale / 2 if dtype is torch.int8 else (back.abs() / 16).clamp(min=2e-3 * scale)
    assert ((back - rows).abs() <= allowed * 1.01).all()
    largest = 127 if dtype is torch.int8 else 448
    assert (values[:5].float().abs().amax(1) == largest).all()
    assert (back[5] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_value_that_is_not_finite_is_not_hidden(dtype: torch.dtype, value: float) -> None:
    module = eight_bit_linear(ComputedLinear, dtype)
    x = torch.randn(1, 4, 32)
    x[0, 2, 5] = value

    found = module(x)

    assert torch.isnan(found[0, 2]).all()
    assert torch.isfinite(found[0, [0, 1, 3]]).all()


def eight_bit_linear(cls: type[linears.EightBitLinear], dtype: torch.dtype) -> Any:
    """A linear module of 32 inputs and 48 outputs with a weight in 8 bits."""
    generator = torch.Generator().manual_seed(1)
    module = nn.Linear(32, 48).requires_grad_(False)
    module.weight.copy_(torch.randn(48, 32, generator=generator))
    module.bias.copy_(torch.randn(48, generator=generator))
    plain = module.weight.clone()
    module.__class__ = cls
    module.hold(plain, dtype, CPU)
    return module


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES.values())
@torch.no_grad()
def test_a_computed_product_is_that_of_the_quantised_numbers(
    dtype: torch.dtype, parameters: torch.dtype
) -> None:
    module = eight_bit_linear(ComputedLinear, dtype)
    module.bias.data = module.bias.to(parameters)
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2)).to(parameters)

    found = module(x)

    values, scale = in_eight_bits(x.reshape(14, 32), dtype)
    weight = module.weight.double() * module.weight_scale
    expected = (values.double() * scale) @ weight.t() + module.bias.double()
    assert (found.dtype, found.shape) == (parameters, (2, 7, 48))
    off = (found.reshape(14, 48) - expected).norm() / expected.norm()
    assert off < (1e-6 if parameters is torch.float32 else 5e-3)


@torch.no_grad()
def test_fp8_on_the_cpu_gives_what_torchs_own_operator_gives() -> None:
    """Which is what a card runs."""
    module = eight_bit_linear(ComputedLinear, torch.float8_e4m3fn)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))

    values, scale = in_eight_bits(x, torch.float8_e4m3fn)
    scales = {"scale_a": scale, "scale_b": module.weight_scale.t()}
    try:
        own = torch._scaled_mm(values, module.weight.t(), **scales, out_dtype=torch.float32)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch {torch.__version__} has it for cards only: {error}")

    torch.testing.assert_close(module(x), own + module.bias)


@pytest.mark.parametrize("dtype", DTYPES.values())
@torch.no_grad()
def test_a_stored_weight_is_multiplied_in_the_type_of_the_input(dtype: torch.dtype) -> None:
    module = eight_bit_linear(StoredLinear, dtype)
    x = torch.randn(2, 7, 32).bfloat16()
    module.bias.data = module.bias.bfloat16()

    expected = F.linear(x, (module.weight.float() * module.weight_scale).bfloat16(), module.bias)

    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("dtype", DTYPES.values())
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = eight_bit_linear(ComputedLinear, dtype)
    x = torch.randn(1, 11, 32)
    whole = module(x)

    monkeypatch.setattr(linears, "_ROWS", 4)
    assert torch.equal(module(x), whole)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(linears, "_COLUMNS", 20)
    assert torch.equal(module(x), whole)


# -- loading ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(folder_of: Callable[[str], Path]) -> Path:
    return folder_of(T2V)


def transformer_of(folder: Path, linear: Linear, name: str = T2V) -> Any:
    config = tiny_config(name)
    config.runtime.linear = linear
    return load_component("transformer", config, at(folder), CPU)


def assert_eight_bits(transformer: Any, plain: dict[str, torch.Tensor], linear: Linear) -> None:
    """Check that exactly the right weights are in 8 bits, and all others are as they were."""
    state = transformer.state_dict()
    eight_bits = {
        f"transformer_blocks.{n}.{name}.weight"
        for n in range(len(transformer.transformer_blocks))
        for name in COMPUTED + STORED
    }
    assert state.keys() == plain.keys() | {f"{name}_scale" for name in eight_bits}
    for name, tensor in plain.items():
        found = state[name]
        if name in eight_bits:
            is_computed = name.split(".", 2)[2].removesuffix(".weight") in COMPUTED
            dtype = DTYPES[linear] if is_computed else torch.int8  # fp8 rounds more
            values, scale = in_eight_bits(tensor, dtype)
            assert torch.equal(found.view(torch.uint8), values.view(torch.uint8)), name
            assert torch.equal(state[f"{name}_scale"], scale)
        else:
            assert torch.equal(found, tensor), name
    assert not any(p.requires_grad for p in transformer.parameters())
    assert not transformer.training
    assert transformer.dtype is torch.float32


@pytest.mark.parametrize("linear", KINDS)
@pytest.mark.parametrize("name", [T2V, I2V, MEANFLOW])
def test_a_checkpoint_is_read_as_diffusers_reads_it_but_for_8_bits(
    folder_of: Callable[[str], Path], name: str, linear: Linear
) -> None:
    plain = transformer_of(folder_of(name), Linear.bf16, name)

    found = transformer_of(folder_of(name), linear, name)

    assert type(found) is HunyuanVideo15Transformer3DModel
    assert dict(found.config) | {"_name_or_path": None} == dict(plain.config) | {
        "_name_or_path": None
    }
    assert_eight_bits(found, plain.state_dict(), linear)
    buffers = dict(plain.named_buffers())
    assert all(torch.equal(b, buffers[n]) for n, b in found.named_buffers())


def shards_of(folder: Path, target: Path, without: str = "") -> dict[str, torch.Tensor]:
    """Copy a checkpoint with its transformer in two files; return the tensors."""
    shutil.copytree(folder, target)
    stem = target / "transformer" / "diffusion_pytorch_model"
    tensors = load_file(stem.with_suffix(".safetensors"))
    stem.with_suffix(".safetensors").unlink()
    weight_map = {}
    for n, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"{stem.name}-0000{n + 1}-of-00002.safetensors"
        save_file({k: tensors[k] for k in names if k != without}, stem.parent / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (stem.parent / f"{stem.name}.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def test_a_checkpoint_in_several_files_is_read_too(folder: Path, tmp_path: Path) -> None:
    tensors = shards_of(folder, tmp_path / "sharded")

    assert_eight_bits(transformer_of(tmp_path / "sharded", Linear.int8), tensors, Linear.int8)


def test_a_transformer_in_place_of_the_checkpoints_is_quantised(
    folder: Path, tmp_path: Path
) -> None:
    """Which a single file becomes, scaled fp8 too: converted, then quantised row by row."""
    plain = transformer_of(folder, Linear.bf16).state_dict()
    shutil.copytree(folder, tmp_path / "base")
    own = shutil.move(tmp_path / "base" / "transformer", tmp_path / "own")
    (tmp_path / "base" / "transformer").mkdir()
    shutil.copy(tmp_path / "own" / "config.json", tmp_path / "base" / "transformer")
    file = OwnTransformer(tmp_path / "a.safetensors", "0" * 64, "a kind", 1, Path(own))
    config = tiny_config(T2V)
    config.runtime.linear = Linear.fp8

    checkpoint = replace(at(tmp_path / "base"), transformer=file)

    assert_eight_bits(load_component("transformer", config, checkpoint, CPU), plain, Linear.fp8)


def test_a_missing_tensor_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    name = "transformer_blocks.1.attn.to_q.weight"
    shards_of(folder, tmp_path / "sharded", without=name)

    with pytest.raises(Refused, match=f"lack parameters of this network: {name}"):
        transformer_of(tmp_path / "sharded", Linear.fp8)


def test_a_tensor_of_another_shape_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "transformer" / "diffusion_pytorch_model.safetensors"
    name = "transformer_blocks.0.ff.net.2.weight"
    save_file(load_file(file) | {name: torch.zeros(3, 4)}, file)

    with pytest.raises(Refused, match=rf"{name} has shape \[3, 4\] where"):
        transformer_of(tmp_path / "copy", Linear.fp8)


def test_random_weights_are_those_without_8_bits_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = read_architecture("tiny")
    arguments = ("transformer", ModelConfig(name=T2V), torch.float32, "cpu", 0, architecture)
    plain = random_weights.build_component(*arguments).state_dict()

    found = random_weights.build_component(*arguments, EightBits(Linear.fp8, CPU))

    assert_eight_bits(found, plain, Linear.fp8)


@pytest.mark.parametrize("is_random", [False, True])
def test_no_two_plain_weights_are_held_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_random: bool
) -> None:
    taken: list[weakref.ref[torch.Tensor]] = []
    take = EightBits.take

    def counted(
        self: EightBits, module: nn.Module, name: str, values: torch.Tensor, device: Any
    ) -> bool:
        gc.collect()
        assert not any(values() is not None for values in taken)
        is_taken = take(self, module, name, values, device)
        if is_taken:
            taken.append(weakref.ref(values))
        return is_taken

    monkeypatch.setattr(EightBits, "take", counted)
    gc.freeze()  # what exists already is not searched at each tensor
    if is_random:
        architecture = read_architecture("tiny")
        arguments = ("transformer", ModelConfig(name=T2V), torch.float32, "cpu", 0, architecture)
        random_weights.build_component(*arguments, EightBits(Linear.int8, CPU))
    else:
        transformer_of(folder, Linear.int8)

    gc.unfreeze()
    assert len(taken) == 2 * len(COMPUTED + STORED)


@pytest.mark.parametrize("linear", [*KINDS, Linear.bf16])
def test_the_cpu_takes_all_of_them(linear: Linear) -> None:
    config = tiny_config(T2V)
    config.runtime.linear = linear

    check_linears(config)


def test_a_card_is_asked_for_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(T2V)
    config.runtime.linear = Linear.int8
    monkeypatch.setattr(linears, "execution_device", lambda _config: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")

    with pytest.raises(Refused, match=r"runtime.linear=int8: .* and Tesla T4 has 7\.5; use "):
        check_linears(config)


# -- denoising ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latents_of(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Denoise:
    return denoise_with_guidance(folder, tmp_path_factory.mktemp("embeddings"))


def loaded(folder: Path, linear: Linear, **runtime: Any) -> Denoiser:
    config = tiny_config(T2V)
    for name, value in {"linear": linear, **runtime}.items():
        setattr(config.runtime, name, value)
    return load_denoiser(config, at(folder))


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("linear", "most"), [(Linear.fp8, 0.05), (Linear.int8, 0.02)])
def test_latents_are_a_little_off_and_the_same_each_time(
    folder: Path, latents_of: Denoise, linear: Linear, most: float
) -> None:
    found = latents_of(loaded(folder, linear))

    assert 1e-4 < off(found, latents_of(loaded(folder, Linear.bf16))) < most
    assert torch.equal(found, latents_of(loaded(folder, linear)))


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("linear", KINDS)
def test_streamed_blocks_give_the_same_latents_in_fewer_bytes(
    folder: Path, latents_of: Denoise, linear: Linear, on_disk: bool, tmp_path: Path
) -> None:
    plain = BlockStream(loaded(folder, Linear.bf16).transformer.transformer_blocks, CPU)
    pipe = loaded(folder, linear)
    expected = latents_of(pipe)

    stream = BlockStream(
        pipe.transformer.transformer_blocks, CPU, tmp_path / "blocks" if on_disk else None
    )
    stream.open()

    assert torch.equal(latents_of(pipe), expected)
    assert stream.block_bytes < 0.35 * plain.block_bytes  # of float32
    stream.close()
    stream.free()
    plain.free()


@pytest.mark.parametrize("linear", KINDS)
def test_a_lora_is_added_beside_8_bits_and_leaves_nothing_behind(
    folder: Path, latents_of: Denoise, linear: Linear, tmp_path: Path
) -> None:
    pipe = loaded(folder, linear)
    base = latents_of(pipe)
    plain = {n: t.clone() for n, t in loaded(folder, Linear.bf16).transformer.state_dict().items()}
    made = loras.adapter(plain)
    file = loras.saved_lora(tmp_path / "a.safetensors", loras.peft(made))
    adapters = LoraSet(pipe.transformer, CPU)
    x = torch.randn(1, 4, 64)
    module = pipe.transformer.transformer_blocks[0].attn.to_q
    before = module(x)

    adapters.set([ClipLora(str(file), hashlib.sha256(file.read_bytes()).hexdigest(), 1.0)])
    changed, with_lora = module(x), latents_of(pipe)
    kept = module.weight.dtype
    adapters.set([])

    assert kept is DTYPES[linear]
    name = "transformer_blocks.0.attn.to_q.weight"
    added = loras.merged(plain, made, 1.0)[name] - plain[name]
    torch.testing.assert_close(changed - before, x @ added.t(), rtol=1e-4, atol=1e-5)
    assert off(with_lora, base) > 1e-4
    assert torch.equal(latents_of(pipe), base)


@pytest.mark.parametrize("linear", KINDS)
def test_blocks_are_one_graph(folder: Path, latents_of: Denoise, linear: Linear) -> None:
    """Without a C++ compiler: only that dynamo meets nothing that it cannot follow."""
    pipe = loaded(folder, linear)
    expected = latents_of(pipe)
    torch.compiler.reset()

    for block in pipe.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, backend="eager")

    assert off(latents_of(pipe), expected) < 1e-4


@needs_compiler
@pytest.mark.exhaustive
@pytest.mark.parametrize("linear", KINDS)
def test_compiled_blocks_give_nearly_the_same_latents(
    folder: Path, latents_of: Denoise, linear: Linear
) -> None:
    torch.compiler.reset()
    expected = latents_of(loaded(folder, linear))
    pipe = loaded(folder, linear, compile=True)

    found = latents_of(pipe)

    assert is_compiled(pipe.transformer)
    # Another order of sums makes some numbers round to the other side.
    assert off(found, expected) < 0.02
