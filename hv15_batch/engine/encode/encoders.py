"""Run the text and image encoders: each is loaded when first needed, and released at once.

The maths is diffusers' own (static methods of its pipeline); only padding is cut off.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline as StockPipeline
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import (
    extract_glyph_texts,
    format_text_input,
)
from PIL import Image

from hv15_batch.config.settings import Config
from hv15_batch.engine.device import execution_device
from hv15_batch.engine.encode.cache import (
    CROP_START,
    MAX_GLYPH_TOKENS,
    MAX_TEXT_TOKENS,
    SYSTEM_MESSAGE,
    ImageEmbedding,
    TextEmbedding,
)
from hv15_batch.engine.encode.stream import InputRecorder, StreamedTextEncoder
from hv15_batch.engine.load.components import check_checkpoint, load_component
from hv15_batch.media.conversion import open_upright
from hv15_batch.weights.checkpoint import Checkpoint

GROUP_SIZE = 64
"""Prompts per pass over a streamed encoder's weights: their states take 0.5 GiB of the card."""


_IN_WORDS = {
    "text_encoder": "the text encoder",
    "text_encoder_2": "the glyph encoder",
    "image_encoder": "the image encoder",
    "vae": "the VAE",
}


class Encoders:
    """Tokenizers, Qwen2.5-VL, ByT5 and, for first frames, SigLIP and the VAE."""

    def __init__(
        self,
        load: Callable[[str], Any],
        device: torch.device,
        vae: Any | None = None,
        streams_text_encoder: bool = False,
    ) -> None:
        """Load nothing yet.

        Args:
            load: returns the component of a name, on `device`; a streamed text encoder on the CPU.
            device: where the encoders run.
            vae: the VAE to encode first frames with, on its own device; None loads one.
            streams_text_encoder: whether Qwen runs layer by layer (`stream`).
        """
        self._streams_text_encoder = streams_text_encoder
        self._load = load
        self._device = device
        self._given = {} if vae is None else {"vae": vae}
        self._loaded: dict[str, Any] = {**self._given}

    def encode_texts(self, texts: Sequence[str]) -> Iterator[TextEmbedding]:
        """Yield each text's embedding; a streamed encoder reads its weights once per group."""
        if not self._streams_text_encoder:
            for text in texts:
                yield self.encode_text(text)
            return
        streamed = StreamedTextEncoder(self._component("text_encoder"), self._device)
        for start in range(0, len(texts), GROUP_SIZE):
            group = texts[start : start + GROUP_SIZE]
            recorder = InputRecorder()
            for text in group:
                self._encode_with(recorder, text)
            streamed.run(recorder.inputs)
            for text in group:
                yield self._finish(text, *self._encode_with(streamed, text))

    @torch.no_grad()
    def encode_text(self, text: str) -> TextEmbedding:
        """Return a text's embedding on the CPU; ByT5 runs only where the text has a quotation."""
        return self._finish(text, *self._encode_with(self._component("text_encoder"), text))

    @torch.no_grad()
    def _encode_with(self, encoder: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Qwen's states and their mask as plain diffusers makes them."""
        embeds, mask = StockPipeline._get_mllm_prompt_embeds(
            text_encoder=encoder,
            tokenizer=self._component("tokenizer"),
            prompt=text,
            device=self._device,
            tokenizer_max_length=MAX_TEXT_TOKENS,
            system_message=SYSTEM_MESSAGE,
            crop_start=CROP_START,
        )
        return embeds, mask

    @torch.no_grad()
    def _finish(self, text: str, embeds: torch.Tensor, mask: torch.Tensor) -> TextEmbedding:
        """Return Qwen's states trimmed, with ByT5's."""
        glyph_embeds, num_lost_glyph_tokens = self._encode_glyphs(text)
        prompt_embeds = _valid(embeds, mask)
        return TextEmbedding(
            prompt_embeds=prompt_embeds,
            prompt_embeds_2=glyph_embeds,
            num_lost_tokens=self._count_tokens(text) - prompt_embeds.shape[1],
            num_lost_glyph_tokens=num_lost_glyph_tokens,
        )

    @torch.no_grad()
    def encode_image(self, image: bytes, height: int, width: int) -> ImageEmbedding:
        """Return a first frame's embedding on the CPU.

        Args:
            image: bytes of an image file, in any format and orientation that a manifest may name.
            height: pixels of the bucket; the image is resized and cropped to it.
            width: likewise.
        """
        source = open_upright(image)
        vae = self._component("vae")
        # As the image-to-video pipeline builds its own (diffusers 0.42.1).
        processor = HunyuanVideo15ImageProcessor(
            vae_scale_factor=vae.spatial_compression_ratio, do_resize=False, do_convert_rgb=True
        )
        frame = processor.resize(source, height=height, width=width, resize_mode="crop")
        image_embeds = StockPipeline._get_image_embeds(
            image_encoder=self._component("image_encoder"),
            feature_extractor=self._component("feature_extractor"),
            image=frame,
            device=self._device,
        )
        return ImageEmbedding(
            image_embeds=image_embeds.cpu(),
            image_latents=_encode_untiled(vae, processor, frame, height, width).cpu(),
            source_height=source.height,
            source_width=source.width,
        )

    def release(self) -> None:
        """Forget what was loaded here and give its memory back; the next use loads again."""
        self._loaded = {**self._given}
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _component(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _encode_glyphs(self, text: str) -> tuple[torch.Tensor | None, int]:
        """Return the ByT5 states of the quoted text and how many of its tokens were cut off."""
        glyph_text = extract_glyph_texts(text)
        if glyph_text is None:
            return None, 0
        tokenizer = self._component("tokenizer_2")
        embeds, mask = StockPipeline._get_byt5_prompt_embeds(
            tokenizer=tokenizer,
            text_encoder=self._component("text_encoder_2"),
            prompt=text,
            device=self._device,
            tokenizer_max_length=MAX_GLYPH_TOKENS,
        )
        valid = _valid(embeds, mask)
        return valid, len(tokenizer(glyph_text).input_ids) - valid.shape[1]

    def _count_tokens(self, text: str) -> int:
        """Return how many Qwen tokens a text has behind the cropped prefix, none cut off."""
        (conversation,) = format_text_input([text], SYSTEM_MESSAGE)
        tokens = self._component("tokenizer").apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return len(tokens["input_ids"]) - CROP_START


def load_encoders(
    config: Config,
    checkpoint: Checkpoint,
    *,
    vae: Any | None = None,
    streams_text_encoder: bool = False,
    on_load: Callable[[str], None] = lambda _: None,
) -> Encoders:
    """Return the encoders of a model; their weights are read when first needed.

    Args:
        config: decides type and device.
        checkpoint: its files are read, or its random weights made.
        vae: a VAE that is loaded already, on the device where it is to encode.
        streams_text_encoder: whether Qwen stays in host memory and runs layer by layer.
        on_load: gets a text about what is being loaded, unless that takes no time.

    Raises:
        Refused: the checkpoint does not fit the model option.
    """
    check_checkpoint(config, checkpoint)
    device = execution_device(config)
    host = torch.device("cpu")

    def load(name: str) -> Any:
        if name in _IN_WORDS:
            on_load(_IN_WORDS[name])
        is_streamed = streams_text_encoder and name == "text_encoder"
        return load_component(name, config, checkpoint, host if is_streamed else device)

    return Encoders(load, device, vae, streams_text_encoder)


def _valid(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return states [1, L, D] without those whose mask is 0, on the CPU."""
    return embeds[:, mask[0].bool()].cpu()


def _encode_untiled(
    vae: Any, processor: HunyuanVideo15ImageProcessor, frame: Image.Image, height: int, width: int
) -> torch.Tensor:
    """Return the latents of a frame; tiles would change them much, and one frame needs none."""
    use_tiling, vae.use_tiling = vae.use_tiling, False
    try:
        latents: torch.Tensor = StockPipeline._get_image_latents(
            vae=vae,
            image_processor=processor,
            image=frame,
            height=height,
            width=width,
            device=vae.device,
        )
    finally:
        vae.use_tiling = use_tiling
    return latents
