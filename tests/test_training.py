"""The demo models' training: the world it draws, and its passes against those of the libraries."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
)
from PIL import Image as Picture
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SiglipImageProcessorPil

from hv15_batch.engine.load.demo import build_demo_component
from hv15_batch.engine.load.random_weights import tokenizers
from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.options import small_model
from training import fused, vae_forward
from training.drawing import render
from training.export import load_packaged
from training.image import IMAGE_SIZE, IMAGE_TOKENS, build_image_encoder, encode_images
from training.lettering import read_letters
from training.models import Models, targets, tokenize
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
)
from training.train_vae import Pieces, Stage, build_vae
from training.transformer_forward import IMAGE_WIDTH, Image
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


@pytest.mark.parametrize("name", ["demo_t2v", "demo_i2v"])
def test_the_demo_models_know_the_words_of_their_training(name: str) -> None:
    model, rng = small_model(name), random.Random(0)
    scenes = sample_scenes(3000, torch.Generator().manual_seed(0), two=0.3)
    texts = [re.sub('"[^"]*"', " ", caption(scenes, i, rng).lower()) for i in range(3000)]

    assert {word for text in texts for word in re.findall("[a-z]+", text)} == set(
        model.advice.words.split()
    )


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


@pytest.mark.parametrize("has_image", [False, True])
def test_encoders_and_transformer_equal_the_libraries(has_image: bool) -> None:
    models, tokens = Models().eval(), Tokens()
    _disturb(models)
    full = build_text_encoder(QWEN_LAYERS + 2).eval()
    full.load_state_dict(models.text_encoder.state_dict(), strict=False)
    tokenizer, glyph_tokenizer = tokenizers()
    prompts = tokenize(tokens, list(PROMPTS), ["HELLO", "", ""], torch.device("cpu"))
    latents, sigma = torch.randn(3, 32, 2, 2, 3), torch.tensor([0.3, 0.7, 0.9])
    condition, embeds = torch.zeros(3, 33, 2, 2, 3), torch.zeros(3, 5, IMAGE_WIDTH)
    image = None
    if has_image:
        embeds = torch.randn_like(embeds)
        condition[:, :32, 0] = torch.randn(3, 32, 2, 3)
        condition[:, 32, 0] = 1
        image = Image(condition[:, :32, :1], embeds)
    with torch.no_grad():
        text, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
            full, tokenizer, list(PROMPTS), "cpu", tokenizer_max_length=MAX_TOKENS
        )
        glyphs, glyph_mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(
            glyph_tokenizer, models.text_encoder_2, list(PROMPTS), "cpu", MAX_GLYPHS
        )
        mine = models.encode(prompts, torch.tensor(tokens.prefix))
        v = models.predict(latents, sigma, mine, image)
        for block in models.transformer.transformer_blocks:
            block.attn.processor = HunyuanVideo15AttnProcessor2_0()
        (expected,) = models.transformer(
            torch.cat([latents, condition], dim=1),
            sigma * 1000,
            text,
            mask,
            encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=glyph_mask,
            image_embeds=embeds,
            return_dict=False,
        )
    assert torch.equal(mask.bool(), mine.mask)
    assert torch.equal(glyph_mask.bool(), mine.glyph_mask)
    torch.testing.assert_close(mine.states[mine.mask], text[mine.mask], atol=1e-5, rtol=0)
    there = mine.glyph_mask
    torch.testing.assert_close(mine.glyphs[there], glyphs[there], atol=1e-5, rtol=0)
    torch.testing.assert_close(v, expected, atol=1e-5, rtol=0)


def test_the_first_frame_is_given_as_the_pipeline_gives_it() -> None:
    models, vae = Models(), build_vae().eval()
    scenes = sample_scenes(1, torch.Generator().manual_seed(6))
    frame, _, _ = render(scenes, canvas(1, "cpu", frames=1))
    pixels = ((frame[0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0)
    picture = Picture.fromarray(pixels.numpy())
    processor = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with torch.no_grad():
        expected = HunyuanVideo15ImageToVideoPipeline._get_image_embeds(
            models.image_encoder, processor, picture, "cpu"
        )
        mine = encode_images(models.image_encoder, frame[:, :, 0])
        clip = torch.cat([frame, torch.randn(1, 3, 4, *frame.shape[3:])], dim=2)
        latents = vae_forward.encode(vae, clip, torch.float32)
        alone = vae.encode(frame).latent_dist.mode()
    assert mine.shape == (1, IMAGE_TOKENS, IMAGE_WIDTH)
    assert (mine - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(latents[:, :, :1], alone, atol=2e-5, rtol=0)


def test_the_probe_learns_what_prompts_say_and_where_letters_stand() -> None:
    models, tokens = Models(), Tokens()
    scenes = sample_scenes(8, torch.Generator().manual_seed(7), words=1.0)
    texts = [plain_caption(scenes, i) for i in range(8)]
    words = [scenes.word(i) for i in range(8)]
    prompts = tokenize(tokens, texts, words, torch.device("cpu"))
    optimizer = torch.optim.Adam(models.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        text = models.encode(prompts, torch.tensor(tokens.prefix))
        loss = models.probe.loss(text, targets(scenes), torch.ones(8, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


def test_training_can_go_on_from_the_weights_of_the_package() -> None:
    models = Models()
    load_packaged(models)
    model = small_model("demo_i2v")
    for part in ("transformer", "text_encoder", "text_encoder_2", "image_encoder"):
        component = build_demo_component(part, model, read_architecture("demo"))
        whole = component.state_dict()
        for name, value in getattr(models, part).state_dict().items():
            kept = whole[name][tuple(slice(size) for size in value.shape)]
            used = kept.abs().sum(-1) > 0 if "embed" in name or "shared" in name else ...
            assert torch.equal(value[used], kept[used]), name


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
    pool = Pool(2 * ENCODED, vae, models.image_encoder, tokens, 0, device, torch.float32)

    def step() -> None:
        batch = pool.draw(2, 7, empty)
        text = models.encode(batch.prompts, prefix)
        read = models.probe.loss(text, batch.said, batch.kept)
        for image in (None, batch.image):
            sigma = torch.rand(2, device=device)
            v = models.predict(batch.latents, sigma, text, image)
            read = read + (batch.weights * v.square()).mean()
        read.backward()

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
    vae, image_encoder = build_vae().eval(), build_image_encoder()
    pool = Pool(4, vae, image_encoder, Tokens(), 0, torch.device("cpu"), torch.float32)
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
