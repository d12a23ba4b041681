"""What is said of a clip: the work that denoising it was, and the comment in its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hv15_batch import __version__
from hv15_batch.cards import find_card
from hv15_batch.clip import SCHEMA, Clip, ClipSettings
from hv15_batch.costs import forward_flop, num_video_tokens

if TYPE_CHECKING:
    from hv15_batch.embeddings import Conditioning


def work_columns(
    settings: ClipSettings, conditioning: Conditioning, seconds: float, gpu_name: str | None
) -> dict[str, Any]:
    """Return the log's columns on tokens, FLOP and rate.

    Args:
        settings: Size, frames, steps and guidance.
        conditioning: Gives the lengths of the texts.
        seconds: Of denoising.
        gpu_name: Product name of the card; None for a tiny model, for which the FLOP formula of the
            full-size transformer does not hold.
    """
    video_tokens = num_video_tokens(settings.height, settings.width, settings.num_frames)
    columns: dict[str, Any] = {
        "num_text_tokens": conditioning.prompt.num_text_tokens,
        "num_glyph_tokens": conditioning.prompt.num_glyph_tokens,
        "num_video_tokens": video_tokens,
    }
    if gpu_name is None:
        return columns
    image_tokens = 0 if conditioning.image is None else conditioning.image.image_embeds.shape[1]
    texts = [conditioning.prompt] + ([conditioning.negative] if conditioning.negative else [])
    flop = settings.num_inference_steps * sum(
        forward_flop(video_tokens, text.num_text_tokens + text.num_glyph_tokens + image_tokens)
        for text in texts
    )
    tflops = flop / 1e12 / seconds
    card = find_card(gpu_name)
    is_16_bit = settings.dtype != "float32"
    mfu = tflops / card.dense_bf16_tflops if card is not None and is_16_bit else None
    return columns | {"model_pflop": flop / 1e15, "tflops": tflops, "mfu": mfu}


def settings_comment(clip: Clip, repo: str, task: str) -> str:
    """Return a clip's settings as JSON, file names without their folders."""
    settings = clip.settings.as_dict()
    facts = {
        "schema": SCHEMA,
        "hv15_batch_version": __version__,
        "clip_id": clip.clip_id,
        "settings_sha256": clip.settings_sha256,
        "repo": Path(repo).name if Path(repo).is_absolute() else repo,
        "task": task,
        "off_recipe": clip.off_recipe,
        "image": Path(clip.image).name if clip.image else None,
    }
    return json.dumps(facts | settings, ensure_ascii=False)
