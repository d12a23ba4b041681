"""plan.csv: every clip of the current manifest, its state and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

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
    "glyph_text",
    "image",
    "off_recipe",
    "settings_sha256",
    "denoise_sha256",
    "file",
    "prompt",
)


def write_plan(
    planned: Sequence[PlannedClip], path: Path, prompt_tokens: dict[str, int] | None
) -> bool:
    """Write every clip with its state to a CSV file; return whether that changed it.

    `prompt_tokens` maps a prompt to its number of tokens, where a tokenizer was at hand.
    """
    data = _format_plan(planned, prompt_tokens or {}).encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    with publishing(path) as temporary:
        temporary.write_bytes(data)
    return True


def _format_plan(planned: Sequence[PlannedClip], prompt_tokens: dict[str, int]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for p in planned:
        clip, settings = p.clip, p.clip.settings
        writer.writerow(
            [
                clip.clip_id,
                clip.row_id,
                clip.row_index,
                clip.line,
                p.state.name,
                p.reason,
                p.has_latents and p.use_latents and not p.is_done,
                *(getattr(settings, name) for name in _SETTINGS),
                prompt_tokens.get(settings.prompt),
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
