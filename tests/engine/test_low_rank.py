"""LoRA: every form changes the latents as merged weights do, and without one nothing is left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import loras
from fakes.checkpoint import at
from fakes.engine import needs_compiler
from fakes.pipelines import (
    T2V,
    denoise_with_guidance,
    tiny_config,
)

from hv15_batch.clip import ClipLora
from hv15_batch.engine.denoise.compilation import is_compiled
from hv15_batch.engine.denoise.low_rank import LoraSet
from hv15_batch.engine.denoise.pipeline import Denoiser, load_denoiser
from hv15_batch.engine.placement.blocks import BlockStream

CPU = torch.device("cpu")
TOLERANCE = 1e-5
Denoise = Callable[[Denoiser], torch.Tensor]


@pytest.fixture(scope="module")
def folder(folder_of: Callable[[str], Path]) -> Path:
    return folder_of(T2V)


@pytest.fixture(scope="module")
def latents_of(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Denoise:
    return denoise_with_guidance(folder, tmp_path_factory.mktemp("embeddings"))


@pytest.fixture(scope="module")
def base(folder: Path, latents_of: Denoise) -> torch.Tensor:
    return latents_of(loaded(folder))


def loaded(folder: Path, **runtime: Any) -> Denoiser:
    config = tiny_config(T2V)
    for name, value in runtime.items():
        setattr(config.runtime, name, value)
    return load_denoiser(config, at(folder))


def clip_lora(path: Path, scale: float = 1.0) -> ClipLora:
    return ClipLora(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), scale)


def weights_of(pipe: Denoiser) -> loras.Tensors:
    return {name: t.clone() for name, t in pipe.transformer.state_dict().items()}


def with_merged(folder: Path, *adapters: tuple[loras.Adapter, float]) -> Denoiser:
    pipe = loaded(folder)
    weights = weights_of(pipe)
    for made, scale in adapters:
        weights = loras.merged(weights, made, scale)
    pipe.transformer.load_state_dict(weights)
    return pipe


@pytest.mark.parametrize("form", loras.FORMS, ids=lambda form: form.__name__)
def test_a_lora_in_each_form_changes_the_latents_as_the_merged_weights_do(
    form: Callable[[loras.Adapter], loras.Tensors],
    folder: Path,
    latents_of: Denoise,
    base: torch.Tensor,
    tmp_path: Path,
) -> None:
    pipe = loaded(folder)
    made = loras.adapter(weights_of(pipe))
    tensors = form(made)
    file = loras.saved_lora(tmp_path / "a.safetensors", tensors)
    adapters = LoraSet(pipe.transformer, CPU)

    adapters.set([clip_lora(file, 0.75)])

    expected = latents_of(with_merged(folder, (made, 0.75)))
    assert (expected - base).abs().max() > 1e-2
    assert (latents_of(pipe) - expected).abs().max() < TOLERANCE
    assert (adapters.num_matched, adapters.num_unmatched) == (len(tensors), 0)


def test_base_one_another_both_and_base_again_leave_nothing_behind(
    folder: Path, latents_of: Denoise, base: torch.Tensor, tmp_path: Path
) -> None:
    pipe = loaded(folder)
    before = weights_of(pipe)
    one, other = loras.adapter(before), loras.adapter(before, seed=1)
    names = list(dict(pipe.transformer.named_parameters()))
    a = clip_lora(loras.saved_lora(tmp_path / "a.safetensors", loras.musubi(one)), 0.5)
    b = clip_lora(loras.saved_lora(tmp_path / "b.safetensors", loras.comfy(other)), -0.5)
    adapters = LoraSet(pipe.transformer, CPU)

    found = []
    for files in ((a,), (b,), (a, b), (), (a,), ()):
        adapters.set(files)
        found.append(latents_of(pipe))

    both = latents_of(with_merged(folder, (one, 0.5), (other, -0.5)))
    assert (found[2] - both).abs().max() < TOLERANCE
    assert torch.equal(found[0], found[4])
    assert torch.equal(found[3], base)
    assert torch.equal(found[5], base)
    assert list(dict(pipe.transformer.named_parameters())) == names
    after = weights_of(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_set_is_read_once_while_it_stays(folder: Path, tmp_path: Path) -> None:
    pipe = loaded(folder)
    made = loras.adapter(weights_of(pipe))
    file = loras.saved_lora(tmp_path / "a.safetensors", loras.diffusers(made))
    adapters, lora = LoraSet(pipe.transformer, CPU), clip_lora(file)
    adapters.set([lora])
    file.unlink()

    adapters.set([lora])

    adapters.set([])
    with pytest.raises(FileNotFoundError) as caught:
        adapters.set([lora])
    assert f"the LoRA {file} cannot be read (No such file or directory); put" in str(caught.value)


def test_a_file_that_was_changed_fails_its_clips(folder: Path, tmp_path: Path) -> None:
    pipe = loaded(folder)
    made = loras.adapter(weights_of(pipe))
    file = loras.saved_lora(tmp_path / "a.safetensors", loras.diffusers(made))
    lora = clip_lora(file)
    loras.saved_lora(file, loras.diffusers(loras.adapter(weights_of(pipe), seed=2)))

    with pytest.raises(ValueError, match="was changed since the run was planned"):
        LoraSet(pipe.transformer, CPU).set([lora])


def test_a_set_that_fails_half_way_leaves_nothing_behind(
    folder: Path, latents_of: Denoise, base: torch.Tensor, tmp_path: Path
) -> None:
    pipe = loaded(folder)
    made = loras.adapter(weights_of(pipe))
    file = loras.saved_lora(tmp_path / "a.safetensors", loras.diffusers(made))
    adapters = LoraSet(pipe.transformer, CPU)
    pipe.transformer.proj_out.__class__ = type("Other", (torch.nn.Linear,), {})

    with pytest.raises(ValueError, match="of the class Other, which is not supported"):
        adapters.set([clip_lora(file)])

    adapters.set([])
    assert torch.equal(latents_of(pipe), base)


def test_streamed_blocks_take_a_lora_and_give_it_back(
    folder: Path, latents_of: Denoise, base: torch.Tensor, tmp_path: Path
) -> None:
    pipe = loaded(folder)
    made = loras.adapter(weights_of(pipe))
    file = loras.saved_lora(tmp_path / "a.safetensors", loras.musubi_comfy(made))
    stream = BlockStream(pipe.transformer.transformer_blocks, CPU)
    adapters = LoraSet(pipe.transformer, CPU)
    stream.open()

    adapters.set([clip_lora(file)])
    changed = latents_of(pipe)
    stream.close()
    adapters.set([])
    stream.open()

    assert (changed - latents_of(with_merged(folder, (made, 1.0)))).abs().max() < TOLERANCE
    assert torch.equal(latents_of(pipe), base)
    stream.free()


@needs_compiler
def test_compiled_blocks_take_a_lora_and_give_it_back(
    folder: Path, latents_of: Denoise, tmp_path: Path
) -> None:
    torch.compiler.reset()
    pipe = loaded(folder, compile=True)
    made = loras.adapter(weights_of(pipe))
    file = loras.saved_lora(tmp_path / "a.safetensors", loras.peft(made))
    adapters = LoraSet(pipe.transformer, CPU)
    plain = latents_of(pipe)

    adapters.set([clip_lora(file)])
    changed = latents_of(pipe)
    adapters.set([])

    assert is_compiled(pipe.transformer)
    expected = latents_of(with_merged(folder, (made, 1.0)))
    assert (changed - expected).abs().max() < 2e-5  # compiled code rounds elsewhere
    assert torch.equal(latents_of(pipe), plain)


@pytest.mark.exhaustive
def test_many_sets_of_changed_modules_are_compiled(
    folder: Path, latents_of: Denoise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, **{**k, "backend": "eager"}))
    torch.compiler.reset()
    pipe, plain = loaded(folder, compile=True), loaded(folder)
    made = loras.adapter(weights_of(plain))
    names = sorted(name for name in made if name.startswith(loras.BLOCK))
    sets, expected = LoraSet(pipe.transformer, CPU), LoraSet(plain.transformer, CPU)
    assert len(names) > 8  # dynamo's own limit
    for count in range(1, len(names) + 1):
        part = {name: made[name] for name in names[:count]}
        file = loras.saved_lora(tmp_path / f"{count}.safetensors", loras.diffusers(part))
        for each in (sets, expected):
            each.set([clip_lora(file)])

        assert torch.equal(latents_of(pipe), latents_of(plain))
