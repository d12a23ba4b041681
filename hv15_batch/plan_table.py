"""plan.csv: every clip of the current manifest, its state and why."""

from __future__ import annotations

import csv
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
) -> None:
    """Write every clip with its state to a CSV file.

    `prompt_tokens` maps a prompt to its number of tokens, where a tokenizer was at hand.
    """
    with publishing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
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
                    (prompt_tokens or {}).get(settings.prompt),
                    " | ".join(glyph_texts(settings.prompt)),
                    clip.image,
                    clip.off_recipe,
                    clip.settings_sha256,
                    clip.denoise_sha256,
                    p.last["file"] if p.has_result and p.last else None,
                    settings.prompt,
                ]
            )
