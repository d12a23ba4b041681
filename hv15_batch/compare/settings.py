"""What two runs were asked and what was in effect: folded where it is the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.compare.pairs import Timed
from hv15_batch.compare.quality import Quality

COLUMNS = (
    "model",
    "repo",
    "revision",
    "weights",
    "dtype",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
    "negative_prompt",
    "attention_backend_requested",
    "attention_backend",
    "mask_free",
    "compiled",
    "offload",
    "vae_tile_size",
    "decode_device",
    "vram_limit_gib",
    "gpu_name",
    "driver_version",
    "torch_version",
    "diffusers_version",
    "hv15_batch_version",
)
MACHINE_COLUMNS = ("gpu_name", "driver_version", "torch_version", "diffusers_version")
MAX_SHOWN_VALUES = 4
NOTHING = "none"


@dataclass(frozen=True)
class SettingsRow:
    """One setting of both runs, as text."""

    name: str
    a: str
    b: str
    is_same: bool
    """Whether the two clips of every pair have it alike, and the two of all that was timed."""


def compare_settings(qualities: Iterable[Quality], timed: Iterable[Timed]) -> list[SettingsRow]:
    """Return each setting over all pairs, and over what was timed, which may be other attempts.

    A size that differs is what makes some pairs incomparable. How the files were encoded is left
    out where none was measured or timed.
    """
    found, timings = list(qualities), list(timed)
    clips = [*((quality.pair.a, quality.pair.b) for quality in found), *timings]
    codecs = [quality.codecs for quality in found if quality.codecs is not None]
    codecs += [(_text(a["video"]), _text(b["video"])) for a, b in timings]
    rows = [_row("video", codecs)] if codecs else []
    for name in COLUMNS:
        rows.append(_row(name, [(_text(a[name]), _text(b[name])) for a, b in clips]))
    return rows


def _row(name: str, values: Sequence[tuple[str, str]]) -> SettingsRow:
    is_same = all(a == b for a, b in values)
    return SettingsRow(name, _joined(a for a, _ in values), _joined(b for _, b in values), is_same)


def _joined(texts: Iterable[str]) -> str:
    """Return the values of a column as one text."""
    found = set(texts)
    shown = ", ".join(sorted(found)[:MAX_SHOWN_VALUES])
    more = len(found) - MAX_SHOWN_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def _text(value: Any) -> str:
    """Return a value as text; of a local folder its name, because the tables are for showing."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value)
    return str(value) if str(value).strip() else repr(value)
