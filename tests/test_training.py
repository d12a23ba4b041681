"""The demo models' training: the world it draws, and its passes against those of the libraries."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15Pipeline
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from training import fused, vae_forward
from training.drawing import render
from training.lettering import read_letters
from training.models import Models, tokenize
from training.optimizers import Optimizer
from training.pixels import canvas
from training.pool import ENCODED, Pool
from training.prompts import caption, plain_caption
from training.text import (
    MAX_GLYPHS,
    MAX_TOKENS,
    QWEN_LAYERS,
    Tokens,
    build_text_encoder,
    encode_glyphs,
    encode_prompts,
)
from training.train_vae import Pieces, Stage, build_vae
from training.transformer_forward import velocity
from training.world import (
    COLORS,
    MAX_LETTERS,
    SHAPES,
    SIGN_COLUMN,
    SIGN_ROW,
    even_places,
    is_kept,
    sample_kept,
    sample_scenes,
)

PROMPTS = ('A red ball rises in the snow, with the word "HELLO".', "a blue star", "")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _disturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_the_same_seed_draws_the_same_frames_and_a_piece_is_cut_from_the_clip() -> None:
    one, other = (
        sample_scenes(8, torch.Generator().manual_seed(1), places=even_places(8)) for _ in range(2)
    )
    whole, _, _ = render(one, canvas(8, "cpu", frames=3))
    first = (torch.ones(8), torch.full((8,), 16), torch.full((8,), 32))
    piece, _, _ = render(other, canvas(8, "cpu", 2, (48, 64), first))
    assert whole.min() >= -1
    assert whole.max() <= 1
    assert whole.isfinite().all()
    torch.testing.assert_close(piece, whole[:, :, 1:3, 16:64, 32:96], atol=2e-4, rtol=0)


def test_every_letter_is_read_back_from_its_sign() -> None:
    scenes = sample_scenes(3, torch.Generator().manual_seed(2))
    scenes.letters = torch.arange(1, 28).clamp(max=26).view(3, MAX_LETTERS)
    video, _, sign = render(scenes, canvas(3, "cpu", frames=1))
    read = read_letters(video[:, :, 0], SIGN_ROW, SIGN_COLUMN, MAX_LETTERS)
    assert torch.equal(read, scenes.letters)
    assert sign.amax() == 1


def test_combinations_kept_for_testing_are_never_drawn_for_training() -> None:
    generator = torch.Generator().manual_seed(3)
    trained, kept = sample_scenes(4000, generator), sample_kept(64, generator)

    def test_share(scenes: object) -> float:
        values = (scenes.color[:, 0], scenes.shape[:, 0], scenes.motion, scenes.place)
        return is_kept(*values).float().mean().item()

    assert test_share(trained) == 0
    assert test_share(kept) == 1


def test_prompts_are_words_that_fit() -> None:
    scenes, tokens = sample_scenes(300, torch.Generator().manual_seed(4), two=0.3), Tokens()
    rng = random.Random(0)
    for i in range(300):
        text = caption(scenes, i, rng)
        assert text.isascii()
        assert "  " not in text
        assert (f'"{scenes.word(i)}"' in text) == bool(scenes.word(i))
        assert len(tokens.prompt(text) or ()) <= MAX_TOKENS
    plain = plain_caption(scenes, 0)
    assert any(name in plain for name in COLORS)
    assert any(name in plain for name in SHAPES)


@pytest.mark.parametrize("frames", [1, 5])
def test_the_vae_s_pass_and_gradients_equal_diffusers(frames: int) -> None:
    vae = build_vae()
    video = torch.rand(1, 3, frames, 32, 48) * 2 - 1

    def gradients() -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for n, p in vae.named_parameters() if p.grad is not None}

    latents = vae_forward.encode(vae, video, torch.float32)
    output = vae_forward.decode(vae, latents, torch.float32)
    output.square().sum().backward()
    mine = gradients()
    vae.zero_grad()
    expected = vae.encode(video).latent_dist.mode()
    frames_expected = vae.decode(expected).sample
    frames_expected.square().sum().backward()
    torch.testing.assert_close(latents, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(output, frames_expected, atol=2e-5, rtol=0)
    for name, gradient in gradients().items():
        scale = gradient.norm() + 1e-3
        assert (mine[name] - gradient).norm() / scale < 0.05, name


def test_a_batch_of_clips_equals_its_clips_one_by_one() -> None:
    vae, video = build_vae(), torch.rand(2, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        both = vae_forward.encode(vae, video, torch.float32)
        alone = [vae_forward.encode(vae, v[None], torch.float32) for v in video]
    torch.testing.assert_close(both, torch.cat(alone), atol=2e-5, rtol=0)


def test_text_encoders_and_transformer_equal_the_libraries() -> None:
    models, tokens = Models().eval(), Tokens()
    _disturb(models)
    full = build_text_encoder(QWEN_LAYERS + 2).eval()
    full.load_state_dict(models.text_encoder.state_dict(), strict=False)
    from hv15_batch.engine.load.random_weights import tokenizers

    tokenizer, glyph_tokenizer = tokenizers()
    prompts = tokenize(tokens, list(PROMPTS), ["HELLO", "", ""], torch.device("cpu"))
    latents, sigma = torch.randn(3, 32, 2, 2, 3), torch.tensor([0.3, 0.7, 0.9])
    with torch.no_grad():
        text, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
            full, tokenizer, list(PROMPTS), "cpu", tokenizer_max_length=MAX_TOKENS
        )
        glyphs, glyph_mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(
            glyph_tokenizer, models.text_encoder_2, list(PROMPTS), "cpu", MAX_GLYPHS
        )
        my_text = encode_prompts(models.text_encoder, torch.tensor(tokens.prefix), prompts.ids)
        my_glyphs = encode_glyphs(models.text_encoder_2, prompts.glyph_ids, prompts.glyph_mask)
        mine = velocity(
            models.transformer, latents, sigma, my_text, prompts.mask, my_glyphs, prompts.glyph_mask
        )
        for block in models.transformer.transformer_blocks:
            block.attn.processor = HunyuanVideo15AttnProcessor2_0()
        (expected,) = models.transformer(
            torch.cat([latents, torch.zeros(3, 33, 2, 2, 3)], dim=1),
            sigma * 1000,
            text,
            mask,
            encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=glyph_mask,
            image_embeds=torch.zeros(3, 5, 48),
            return_dict=False,
        )
    assert torch.equal(mask.bool(), prompts.mask)
    assert torch.equal(glyph_mask.bool(), prompts.glyph_mask)
    torch.testing.assert_close(my_text[prompts.mask], text[prompts.mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        my_glyphs[prompts.glyph_mask], glyphs[prompts.glyph_mask], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


class _NoCopiesFromHost(TorchDispatchMode):
    """Fails where a tensor of the host goes to a device, as a CUDA graph would."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta:
            from_host = [t for t in tensors if not t.is_meta and t.ndim > 0]
            assert not from_host, f"{func} copies from the host"
        return out


def test_recorded_steps_never_copy_from_the_host() -> None:
    # Tensors on `meta` stand for a card: values cannot be read back from there either.
    device, tokens = torch.device("meta"), Tokens()
    models, vae = Models().to(device), build_vae().to(device)
    prefix = torch.tensor(tokens.prefix, device=device)
    empty = tokenize(tokens, [""], [""], device)
    pool = Pool(2 * ENCODED, vae, tokens, 0, device, torch.float32)

    def step() -> None:
        latents, weights, prompts = pool.draw(2, 7, empty)
        v = models.predict(latents, torch.rand(2, device=device), prompts, prefix)
        (weights * v.square()).mean().backward()

    pieces = Pieces(
        Stage(1, 8, 1, (32, 32)), torch.Generator().manual_seed(0), torch.device("meta")
    )
    for recorded in (pool.encode, step, pieces.draw):
        recorded()
        with _NoCopiesFromHost():
            recorded()


@pytest.mark.slow
def test_every_batch_of_the_pool_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.pool.ENCODED", 2)
    pool = Pool(4, build_vae().eval(), Tokens(), 0, torch.device("cpu"), torch.float32)
    pool.fill()
    assert not torch.equal(pool.latents[:2], pool.latents[2:])
    pool.encode = lambda: None
    with pytest.raises(RuntimeError, match="encoded twice"):
        pool.fill()


def test_the_optimiser_finds_the_least_squares() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    optimizer = Optimizer(list(model.named_parameters()), lambda _, p: p.ndim == 2)
    x, target = torch.randn(64, 8), torch.randn(8, 4)
    losses = []
    for i in range(300):
        loss = (model(x) - x @ target).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.rate.fill_(0.02 * (1 - i / 300))
        optimizer.step(1.0)
    assert losses[-1] < 0.02 * losses[0]
    assert not optimizer.gradient.any()


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("has_norm", [True, False])
def test_the_kernels_equal_plain_torch(channels: int, has_norm: bool) -> None:
    results = []
    x = torch.randn(2, 3, 8, 12, channels, device="cuda", requires_grad=True)
    gamma = (torch.rand(channels, device="cuda") + 0.5).requires_grad_() if has_norm else None
    direction = None
    for is_fused in (False, True):
        x.grad = None
        if gamma is not None:
            gamma.grad = None
        out = fused.pad(x, gamma, is_fused)
        direction = torch.randn_like(out) if direction is None else direction
        out.backward(direction)
        results.append((out.detach(), x.grad, None if gamma is None else gamma.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
