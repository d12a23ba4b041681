"""The tiny checkpoints: ordinary ones for the stock pipelines, written once and whole."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from PIL import Image

from hv15_batch.engine.load.random_weights import PROMPT_START
from hv15_batch.engine.load.tiny import CONTENTS, ensure_checkpoint, is_complete, write_checkpoint
from hv15_batch.model.architectures import checkpoint_folder, definition_sha256
from hv15_batch.model.options import tiny_model
from hv15_batch.model.variant import ModelConfig

T2V = tiny_model("tiny_t2v")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def t2v(root: Path) -> Any:
    pipeline = HunyuanVideo15Pipeline.from_pretrained(ensure_checkpoint(T2V, root))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_i2v(name: str, root: Path) -> Any:
    folder = ensure_checkpoint(tiny_model(name), root)
    pipeline = HunyuanVideo15ImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(seed: int, height: int = 96, width: int = 160) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def render(pipeline: Any, prompt: str, seed: int = 0, **call: Any) -> Any:
    """Frames in 0..1 as [F, H, W, 3], or latents if `output_type` says so."""
    call = {"num_frames": 5, "num_inference_steps": 2, "output_type": "np", **call}
    if isinstance(pipeline, HunyuanVideo15Pipeline):
        call = {"height": 96, "width": 160, **call}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt=prompt, generator=generator, **call).frames[0]


def difference(frames: Any, others: Any) -> float:
    """Mean absolute difference in steps of 1/255."""
    return float(np.abs(frames - others).mean() * 255)


def test_stock_pipeline_renders_noise_that_varies_over_space_time_and_colour(t2v: Any) -> None:
    frames = render(t2v, "A cat", num_frames=9, num_inference_steps=4)

    assert frames.shape == (9, 96, 160, 3)
    assert np.isfinite(frames).all()
    assert 50 < frames.mean() * 255 < 200
    assert frames.std(axis=(1, 2)).min() * 255 > 20
    assert frames.std(axis=3).mean() * 255 > 20
    for first, second in itertools.pairwise(frames):
        assert difference(first, second) > 20


@pytest.mark.parametrize("num_inference_steps", [1, 4, 12])
def test_latents_stay_near_one(t2v: Any, num_inference_steps: int) -> None:
    call: dict[str, Any] = {"height": 48, "width": 64, "num_frames": 9, "output_type": "latent"}

    latents = render(t2v, "A cat", num_inference_steps=num_inference_steps, **call)

    assert latents.shape == (32, 3, 3, 4)
    assert 0.5 < latents.std() < 2


def test_frames_differ_visibly_by_prompt_glyph_negative_prompt_and_seed(t2v: Any) -> None:
    frames = render(t2v, "A cat")
    sign = render(t2v, 'A "cat"')

    assert np.array_equal(frames, render(t2v, "A cat"))
    assert difference(frames, render(t2v, "A dog")) > 4
    assert difference(frames, render(t2v, "A cat", negative_prompt="blurred")) > 4
    assert difference(sign, render(t2v, 'A "dog"')) > 8
    assert difference(frames, render(t2v, "A cat", seed=1)) > 30


def test_prompts_differ_without_guidance_too(t2v: Any) -> None:
    guider = t2v.guider
    t2v.guider = guider.new(guidance_scale=1.0)

    frames, others = render(t2v, "A cat"), render(t2v, "A dog")

    t2v.guider = guider
    assert difference(frames, others) > 1


def test_stock_crop_begins_at_the_first_byte_of_the_prompt(t2v: Any) -> None:
    chat = format_text_input(["a 猫"], t2v.system_message)[0]

    ids = t2v.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]

    assert t2v.prompt_template_encode_start_idx == PROMPT_START == 108
    ending = "<|im_end|><|im_start|><|assistant|>"
    assert t2v.tokenizer.decode(ids[108:]) == "a 猫" + ending
    assert t2v.tokenizer.convert_ids_to_tokens(ids[107]) == "<|user|>"
    assert len(ids[108:]) == len("a 猫".encode()) + 3


def test_embeddings_depend_on_the_prompt_and_not_on_the_padding_behind_it(t2v: Any) -> None:
    def encode(prompt: str, max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return t2v._get_mllm_prompt_embeds(
            t2v.text_encoder, t2v.tokenizer, prompt, "cpu", max_length
        )

    with torch.no_grad():
        padded, mask = encode("A cat", 1000)
        short, short_mask = encode("A cat", 20)
        other, _ = encode("A dog", 20)

    valid = len(b"A cat") + 3
    assert mask.sum() == short_mask.sum() == valid
    assert mask[0, :valid].all()
    assert torch.allclose(padded[:, :valid], short[:, :valid], atol=1e-5)
    assert not torch.allclose(short[:, 2], other[:, 2], atol=0.1)


def test_only_text_in_quotes_reaches_the_glyph_encoder(t2v: Any) -> None:
    with torch.no_grad():
        *_, plain, plain_mask = t2v.encode_prompt("A sign says cat")
        *_, cat, cat_mask = t2v.encode_prompt('A sign says "cat"')
        *_, dog, _ = t2v.encode_prompt("A sign says “dog”")

    assert plain_mask.sum() == 0
    assert not plain.any()
    assert cat_mask.sum() == len('Text "cat". ') + 1
    assert not torch.allclose(cat, dog, atol=0.1)


def test_image_decides_size_and_frames_of_an_image_to_video_clip(root: Path) -> None:
    pipeline = load_i2v("tiny_i2v", root)

    frames = render(pipeline, "A cat", image=picture(0))
    others = render(pipeline, "A cat", image=picture(1))
    tall = render(pipeline, "A cat", image=picture(0, 160, 96), num_frames=1)

    assert frames.shape == (5, 96, 160, 3)
    assert tall.shape == (1, 144, 96, 3)
    assert np.isfinite(frames).all()
    assert difference(frames, others) > 4
    assert difference(frames, render(pipeline, "A dog", image=picture(0))) > 1


def test_step_distilled_model_uses_the_next_timestep(root: Path) -> None:
    pipeline = load_i2v("tiny_i2v_step_distilled", root)
    seen = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["timestep_r"])), with_kwargs=True
    )

    frames = render(pipeline, "A cat", image=picture(0))

    assert pipeline.transformer.config.use_meanflow
    assert seen == [*pipeline.scheduler.timesteps[1:].tolist(), 0.0]
    assert np.isfinite(frames).all()


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_checkpoint_has_the_same_bytes_wherever_it_is_written(root: Path, tmp_path: Path) -> None:
    folder = ensure_checkpoint(T2V, root)

    write_checkpoint(T2V, tmp_path / "again")

    assert hashes(tmp_path / "again") == hashes(folder)


def test_folder_carries_the_definition_and_is_written_only_once(root: Path) -> None:
    folder = ensure_checkpoint(T2V, root)
    written = (folder / CONTENTS).stat().st_mtime_ns

    again = ensure_checkpoint(T2V, root)

    assert again == folder == checkpoint_folder(T2V, root)
    assert folder.name == f"tiny_t2v-{definition_sha256('tiny', T2V)[:12]}"
    assert (folder / CONTENTS).stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["truncated", "deleted", "unlisted", "cut list", "empty"])
def test_a_damaged_checkpoint_is_written_again(root: Path, tmp_path: Path, damage: str) -> None:
    folder = checkpoint_folder(T2V, tmp_path)
    shutil.copytree(ensure_checkpoint(T2V, root), folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    before = hashes(folder)
    if damage == "truncated":
        os.truncate(weights, 1000)
    elif damage == "deleted":
        weights.unlink()
    elif damage == "unlisted":
        (folder / CONTENTS).unlink()
    elif damage == "cut list":
        os.truncate(folder / CONTENTS, 20)
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert not is_complete(folder)

    ensure_checkpoint(T2V, tmp_path)

    assert hashes(folder) == before


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    folder = checkpoint_folder(T2V, tmp_path)
    partial = tmp_path / f".{folder.name}.partial"
    partial.mkdir()
    (partial / "leftover").write_text("half")

    ensure_checkpoint(T2V, tmp_path)

    assert not partial.exists()
    assert not (folder / "leftover").exists()
    assert set(json.loads((folder / CONTENTS).read_text())) == set(hashes(folder)) - {CONTENTS}


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    folder = checkpoint_folder(T2V, tmp_path)
    with (tmp_path / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=ensure_checkpoint, args=(T2V, tmp_path))
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive()
        write_checkpoint(T2V, folder)
        written = (folder / CONTENTS).stat().st_mtime_ns

    waiting.join(timeout=60)

    assert not waiting.is_alive()
    assert (folder / CONTENTS).stat().st_mtime_ns == written


def test_two_commands_at_once_print_one_whole_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hv15_batch.engine.load.tiny", "tiny_t2v", str(tmp_path)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    printed = [process.communicate(timeout=120) for process in both]

    folder = checkpoint_folder(T2V, tmp_path)
    assert [process.returncode for process in both] == [0, 0], printed
    assert [out for out, _ in printed] == [f"{folder}\n"] * 2
    assert is_complete(folder)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [folder.name]


def test_a_model_with_other_weights_is_refused(tmp_path: Path) -> None:
    model = ModelConfig(name="480p_t2v", repo="some/repo")

    message = r"^model=480p_t2v has pretrained weights; only tiny and demo ones are written here$"
    with pytest.raises(ValueError, match=message):
        ensure_checkpoint(model, tmp_path)
    message = "^tiny model 'tiny': must be one of tiny_i2v, tiny_i2v_step_distilled, tiny_t2v$"
    with pytest.raises(ValueError, match=message):
        tiny_model("tiny")
