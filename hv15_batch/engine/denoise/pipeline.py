"""Load transformer and VAE once, and denoise clips from cached embeddings.

The pipelines' `__call__` stays diffusers' own: only what would run an encoder is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from PIL import Image

from hv15_batch.clip import Clip, ClipSettings
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.engine._measure import StepClock
from hv15_batch.engine.denoise.attention import apply_attention, is_mask_free
from hv15_batch.engine.denoise.compilation import compile_blocks
from hv15_batch.engine.denoise.step_cache import CachedBlocks
from hv15_batch.engine.device import execution_device
from hv15_batch.engine.encode.cache import Conditioning, ImageEmbedding, TextEmbedding
from hv15_batch.engine.load.components import check_checkpoint, load_component
from hv15_batch.model.step_cache import parse_step_cache
from hv15_batch.model.variant import Task
from hv15_batch.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Denoised:
    """What denoising a clip gives."""

    latents: torch.Tensor
    """[1, 32, (num_frames - 1) / 4 + 1, height / 16, width / 16], on the device and in the type of
    the transformer; may hold non-finite values, which the caller has to check."""
    num_computed_steps: int
    """Steps that ran the transformer's blocks: fewer than all with a static cache."""
    step_seconds: list[float]
    """Each step, from its first forward to the first of the next step; the last one to the end."""


class _GivenTexts:
    """Pipeline without encoders: text embeddings come with the call, and the device is given."""

    given_device: torch.device

    @property
    def _execution_device(self) -> torch.device:
        # Diffusers infers it from where the components are, which between phases is elsewhere.
        return self.given_device

    def encode_prompt(
        self,
        prompt: None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 1,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_mask: torch.Tensor | None = None,
        prompt_embeds_2: torch.Tensor | None = None,
        prompt_embeds_mask_2: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the given tensors in the type and on the device of the transformer.

        Plain diffusers reshapes them with `view(..., -1)`, which an embedding of no glyph tokens
        does not allow (diffusers 0.42.1).
        """
        given = (prompt_embeds, prompt_embeds_mask, prompt_embeds_2, prompt_embeds_mask_2)
        tensors = tuple(tensor for tensor in given if tensor is not None)
        assert len(tensors) == len(given)
        assert batch_size == num_videos_per_prompt == 1
        return tuple(tensor.to(device=device, dtype=dtype) for tensor in tensors)


class TextToVideo(_GivenTexts, HunyuanVideo15Pipeline):  # type: ignore[misc]
    """The text-to-video pipeline of plain diffusers over given embeddings."""


class ImageToVideo(_GivenTexts, HunyuanVideo15ImageToVideoPipeline):  # type: ignore[misc]
    """The image-to-video pipeline of plain diffusers over given embeddings."""

    given_image: ImageEmbedding

    def encode_image(
        self, image: Image.Image, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return the given image states."""
        assert batch_size == 1
        return self.given_image.image_embeds.to(device=device, dtype=dtype)

    def _get_image_latents(self, *, device: torch.device, **_: Any) -> torch.Tensor:
        return self.given_image.image_latents.to(device)


Denoiser = TextToVideo | ImageToVideo

Watch = Callable[[int, int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called after a scheduler's step with the steps done, all steps, the sigma before the step, the
latents before it and the velocity predicted, guidance included. It must change none of them."""


def load_vae(config: Config, checkpoint: Checkpoint, device: torch.device | None = None) -> Any:
    """Return the VAE alone, so that a clip can be decoded without the transformer.

    Args:
        config: decides the type.
        checkpoint: its files are read, or its random weights made.
        device: where to load it to; None means where the maths runs.
    """
    return load_component("vae", config, checkpoint, device or execution_device(config))


def load_denoiser(
    config: Config,
    checkpoint: Checkpoint,
    *,
    vae: Any | None = None,
    loading_device: torch.device | None = None,
) -> Denoiser:
    """Return a pipeline of transformer, VAE, scheduler and guider, with its attention applied.

    Args:
        config: decides model, type, attention backend, mask and compilation.
        checkpoint: its files are read, or its random weights made.
        vae: a VAE that is loaded already; None loads it.
        loading_device: where to load weights to; None means where the maths runs.

    Raises:
        Refused: the checkpoint does not fit the model option, or the attention backend
            cannot run here.
    """
    check_checkpoint(config, checkpoint)
    here = loading_device or execution_device(config)
    names = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    pipeline_class: type[Denoiser] = TextToVideo
    if config.model.task is Task.i2v:
        names += ["image_encoder", "feature_extractor"]
        pipeline_class = ImageToVideo
    transformer = load_component("transformer", config, checkpoint, here)
    # Diffusers' own walks all modules twice a forward, for caches that are not used here.
    transformer.cache_context = lambda *_, **__: nullcontext()
    device = execution_device(config)
    mask_free = config.runtime.mask_free
    apply_attention(transformer, config.runtime.attention_backend, mask_free, device)
    if typed_compile(config):  # `auto` was decided by the parent
        compile_blocks(transformer)
    pipe: Denoiser = pipeline_class(
        transformer=transformer,
        vae=load_vae(config, checkpoint, here) if vae is None else vae,
        scheduler=load_component("scheduler", config, checkpoint, here),
        guider=load_component("guider", config, checkpoint, here),
        **dict.fromkeys(names),
    )
    pipe.given_device = device
    if mask_free:
        # Text-to-video appends this many zero image tokens, only to mask them.
        pipe.vision_num_semantic_tokens = 0
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoise(
    pipe: Denoiser,
    clip: Clip,
    conditioning: Conditioning,
    on_step: Callable[[int, int], None],
    watch: Watch | None = None,
) -> Denoised:
    """Denoise one clip; its noise comes from a CPU generator, the same on every machine.

    Args:
        pipe: its guider and scheduler are replaced by ones of the clip's settings.
        clip: Settings of the clip.
        conditioning: as cached; `negative` and `image` where the clip needs them.
        on_step: called with the steps done and all steps, after each step.
        watch: sees what each step predicts; None for nobody.

    Raises:
        ValueError: the conditioning lacks something, or the image's bucket is not the clip's size.
    """
    settings = clip.settings
    steps = settings.num_inference_steps
    # A checkpoint's guider may be disabled. The clip's scale counts, and 1 runs no CFG.
    pipe.guider = pipe.guider.new(guidance_scale=settings.guidance_scale, enabled=True)
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, shift=settings.flow_shift
    )
    if watch is not None:
        pipe.scheduler.step = _watched(pipe.scheduler, steps, watch)
    clock = StepClock(pipe.given_device)
    cached = None
    if settings.cache is not None:
        cached = CachedBlocks(pipe.transformer, parse_step_cache(settings.cache))
    started = 0

    def begin_step() -> None:
        nonlocal started
        clock.mark()
        if started:
            on_step(started, steps)
        if cached is not None:
            cached.begin_step(started)
        started += 1

    with _each_step(pipe, begin_step), nullcontext() if cached is None else cached.applied():
        (latents,) = pipe(
            **_arguments(pipe, settings, conditioning),
            num_frames=settings.num_frames,
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(settings.seed),
            output_type="latent",
            return_dict=False,
        )
    clock.mark()
    assert started == steps, (started, steps)
    on_step(steps, steps)
    computed = steps if cached is None else cached.num_computed
    return Denoised(latents, computed, clock.seconds())


def _watched(scheduler: Any, steps: int, watch: Watch) -> Callable[..., Any]:
    """Return a scheduler's `step` that shows what it was given; what it returns is the same."""
    take_step = scheduler.step

    def step(velocity: torch.Tensor, timestep: Any, latents: torch.Tensor, **named: Any) -> Any:
        result = take_step(velocity, timestep, latents, **named)
        done = scheduler.step_index
        watch(done, steps, scheduler.sigmas[done - 1], latents, velocity)
        return result

    return step


@contextmanager
def _each_step(pipe: Denoiser, begin_step: Callable[[], None]) -> Iterator[None]:
    """Call `begin_step` before the first of each step's forwards: with guidance there are two."""
    current: Any = None

    def before_forward(_module: torch.nn.Module, _inputs: Any) -> None:
        nonlocal current
        if pipe.current_timestep is not current:
            current = pipe.current_timestep
            begin_step()

    hook = pipe.transformer.register_forward_pre_hook(before_forward)
    try:
        yield
    finally:
        hook.remove()


def _arguments(
    pipe: Denoiser, settings: ClipSettings, conditioning: Conditioning
) -> dict[str, Any]:
    """Return the part of the call that texts, size and image decide."""
    arguments = _text_arguments(pipe, conditioning.prompt, "")
    if settings.has_guidance:
        if conditioning.negative is None:
            raise ValueError(f"guidance_scale={settings.guidance_scale} needs a negative embedding")
        arguments |= _text_arguments(pipe, conditioning.negative, "negative_")
    if isinstance(pipe, TextToVideo):
        return {**arguments, "height": settings.height, "width": settings.width}
    image = conditioning.image
    if image is None:
        raise ValueError("an image-to-video clip needs an image embedding")
    bucket = pipe.video_processor.calculate_default_height_width(
        height=image.source_height, width=image.source_width, target_size=pipe.target_size
    )
    if bucket != (settings.height, settings.width):
        raise ValueError(
            f"the pipeline makes {bucket[0]}x{bucket[1]} of a {image.source_height}x"
            f"{image.source_width} image, but the clip says {settings.height}x{settings.width}; "
            "check model.target_size"
        )
    pipe.given_image = image
    # The pipeline reads its size only, which has to be the source's: buckets are not idempotent.
    blank = Image.new("L", (image.source_width, image.source_height))
    return {**arguments, "image": blank}


def _text_arguments(pipe: Denoiser, text: TextEmbedding, prefix: str) -> dict[str, torch.Tensor]:
    """Return a text's tensors and masks, padded as in plain diffusers unless without a mask."""
    glyphs = text.prompt_embeds_2
    if glyphs is None:
        width = pipe.transformer.config.text_embed_2_dim
        glyphs = text.prompt_embeds.new_zeros(1, 0, width)
    lengths: tuple[int | None, int | None] = (None, None)
    if not is_mask_free(pipe.transformer):
        lengths = (pipe.tokenizer_max_length, pipe.tokenizer_2_max_length)
    embeds, mask = _padded(text.prompt_embeds, lengths[0])
    embeds_2, mask_2 = _padded(glyphs, lengths[1])
    return {
        f"{prefix}prompt_embeds": embeds,
        f"{prefix}prompt_embeds_mask": mask,
        f"{prefix}prompt_embeds_2": embeds_2,
        f"{prefix}prompt_embeds_mask_2": mask_2,
    }


def _padded(embeds: torch.Tensor, length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states [1, L, D] with zeros up to `length`, and their mask [1, length]."""
    mask = embeds.new_ones(1, embeds.shape[1])
    padding = 0 if length is None else length - embeds.shape[1]
    return F.pad(embeds, (0, 0, 0, padding)), F.pad(mask, (0, padding))
