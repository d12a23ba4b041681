"""A clip: one row of the manifest with one seed, what is asked of it and its identity.

Plain picklable values: a `Clip` travels from the torch-free parent to the executor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
"""Version of what is hashed; a change makes every clip a new one."""


@dataclass(frozen=True)
class ClipSettings:
    """What is asked of a clip: everything that may change its file, and nothing else.

    Not here, on purpose: the effective attention backend, mask-free, compilation, offload, tile
    plan, machine, row id and place in the manifest. Those are logged.
    """

    prompt: str
    negative_prompt: str | None
    """None without classifier-free guidance, where it has no effect."""
    image_sha256: str | None
    seed: int
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    fps: float
    video: dict[str, Any]
    """The `video` section of the configuration."""
    model: str
    revision: str | None
    """Commit of the hub repository, or the content hash of a local or tiny checkpoint."""
    weights: str
    dtype: str
    attention_backend: str
    """As typed: `auto` stays `auto`."""
    quantisation: str | None = None
    cache: str | None = None

    def settings_sha256(self) -> str:
        """Return the SHA-256 over the canonical JSON of all settings."""
        return _canonical_sha256(self.as_dict())

    def denoise_sha256(self) -> str:
        """Return the same less fps and `video`: clips that share it share their latents."""
        settings = self.as_dict()
        del settings["fps"], settings["video"]
        return _canonical_sha256(settings)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return dict(vars(self))  # asdict copies deeply, at ten times the price

    @property
    def has_guidance(self) -> bool:
        """Whether each step runs two forwards (classifier-free guidance)."""
        return self.guidance_scale != 1.0

    @property
    def has_image(self) -> bool:
        """Whether it begins with a given frame."""
        return self.image_sha256 is not None


@dataclass(frozen=True)
class Clip:
    """One clip to be rendered."""

    clip_id: str
    """`<row id>_s<seed>_<first 8 of settings_sha256>`: names the file."""
    row_id: str
    row_index: int
    """Place of the row in the manifest, from 0."""
    line: int
    """Line of the manifest file where the row starts, from 1."""
    settings: ClipSettings
    settings_sha256: str
    denoise_sha256: str
    image: str | None
    """The manifest's cell, as typed."""
    image_path: str | None
    """Absolute path of the first frame."""
    tags: dict[str, str]
    off_recipe: bool


def make_clip(
    *,
    row_id: str,
    row_index: int,
    line: int,
    settings: ClipSettings,
    image: str | None,
    image_path: str | None,
    tags: dict[str, str],
    off_recipe: bool,
) -> Clip:
    """Return the clip of these settings, with its hashes and its name."""
    settings_sha256 = settings.settings_sha256()
    return Clip(
        clip_id=f"{row_id}_s{settings.seed}_{settings_sha256[:8]}",
        row_id=row_id,
        row_index=row_index,
        line=line,
        settings=settings,
        settings_sha256=settings_sha256,
        denoise_sha256=settings.denoise_sha256(),
        image=image,
        image_path=image_path,
        tags=tags,
        off_recipe=off_recipe,
    )


def _canonical_sha256(value: dict[str, Any]) -> str:
    text = json.dumps(
        {"schema": SCHEMA, **value}, sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
