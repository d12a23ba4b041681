"""plan.csv: every clip of the current manifest, its state and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from hv15_batch.clip import ClipSettings
from hv15_batch.plan import PlannedClip
from hv15_batch.resolve import glyph_texts
from hv15_batch.rundir import publishing

_SETTINGS = (
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
    "model",
)
COLUMNS = (
    "clip_id",
    "row_id",
    "row_index",
    "line",
    "state",
    "reason",
    "from_latents",
    *_SETTINGS,
    "num_prompt_tokens",
    "predicted_denoise_seconds",
    "predicted_decode_seconds",
    "glyph_text",
    "image",
    "off_recipe",
    "settings_sha256",
    "denoise_sha256",
    "file",
    "prompt",
)


def write_plan(
    planned: Sequence[PlannedClip],
    path: Path,
    prompt_tokens: dict[str, int] | None,
    predict: Callable[[ClipSettings], tuple[float, float]] | None = None,
) -> bool:
    """Write every clip with its state to a CSV file; return whether that changed it.

    Args:
        planned: The clips, in the plan's order.
        path: The file.
        prompt_tokens: Number of tokens by prompt, where a tokenizer was at hand.
        predict: Returns the predicted seconds of denoising and of decoding a warm clip, where the
            card is known; asked of clips that are to be rendered.
    """
    data = _format_plan(planned, prompt_tokens or {}, predict).encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    with publishing(path) as temporary:
        temporary.write_bytes(data)
    return True


def _format_plan(
    planned: Sequence[PlannedClip],
    prompt_tokens: dict[str, int],
    predict: Callable[[ClipSettings], tuple[float, float]] | None,
) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for p in planned:
        clip, settings = p.clip, p.clip.settings
        is_from_latents = p.is_from_latents and not p.is_done
        cost = None if predict is None or p.is_done else predict(settings)
        writer.writerow(
            [
                clip.clip_id,
                clip.row_id,
                clip.row_index,
                clip.line,
                p.state.name,
                p.reason,
                is_from_latents,
                *(getattr(settings, name) for name in _SETTINGS),
                prompt_tokens.get(settings.prompt),
                None if cost is None or is_from_latents else round(cost[0], 1),
                None if cost is None else round(cost[1], 1),
                " | ".join(glyph_texts(settings.prompt)),
                clip.image,
                clip.off_recipe,
                clip.settings_sha256,
                clip.denoise_sha256,
                p.last["file"] if p.has_result and p.last else None,
                settings.prompt,
            ]
        )
    return text.getvalue()
