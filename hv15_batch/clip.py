"""A clip: one row of the manifest with one seed, what is asked of it and its identity.

Plain picklable values: a `Clip` travels from the torch-free parent to the executor.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from functools import cache
from typing import Any

SCHEMA = 1
"""Version of what is hashed; a change makes every clip a new one."""
_ADDED = "added after schema 1"
_LEAVES = (str, int, float, bool, dict, type(None))


def added(default: Any) -> Any:
    """Return a field that came after schema 1, in a section of settings that is hashed.

    It is left out of the hash while it equals its default, so clips made before it keep their
    name. The default never changes; another meaning gets a new name.

    Args:
        default: a value, or a function that makes one (`list`).
    """
    if callable(default):
        return field(default_factory=default, metadata={_ADDED: True})
    return field(default=default, metadata={_ADDED: True})


def hashed_values(section: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that count for a clip's identity; enums by their name.

    Nested sections are treated alike. Fields made with `added` are left out at their default.
    """
    values = {
        name: value if type(value) in _LEAVES else _plain(value)
        for name, value in vars(section).items()
    }
    for name, default in _added_fields(section.__class__).items():
        if getattr(section, name) == default:
            del values[name]
    return values


@cache
def _added_fields(section: Hashable) -> dict[str, Any]:
    """Return the fields that came after schema 1 and their defaults."""
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(section)  # type: ignore[arg-type]  # a class, which mypy calls unhashable
        if _ADDED in f.metadata
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    return hashed_values(value) if hasattr(value, "__dataclass_fields__") else value


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
    """`hashed_values` of the configuration's `video` section."""
    model: str
    revision: str | None
    """Commit of the hub repository, or the content hash of a local or tiny checkpoint."""
    weights: str
    dtype: str
    attention_backend: str
    """As typed: `auto` stays `auto`."""
    quantisation: str | None = None
    cache: str | None = None
    """`every:start:end` of a static step cache; None computes every step."""
    transformer_sha256: str | None = added(None)
    """Content of `model.transformer_file` or `model.transformer_hub`; None without one."""
    loras: tuple[tuple[str, float], ...] | None = added(None)
    """SHA-256 of each LoRA's file and its scale, sorted; None without any."""
    image_conversion: str | None = added(None)
    """How the first frame becomes RGB where it takes more than that, see `media.conversion`."""

    def settings_sha256(self) -> str:
        """Return the SHA-256 over the canonical JSON of all settings."""
        return self.hashes()[0]

    def denoise_sha256(self) -> str:
        """Return the same less fps and `video`: clips that share it share their latents."""
        return self.hashes()[1]

    def hashes(self) -> tuple[str, str]:
        """Return `settings_sha256` and `denoise_sha256`."""
        settings = hashed_values(self)
        whole = _canonical_sha256(settings)
        del settings["fps"], settings["video"]
        return whole, _canonical_sha256(settings)

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
class ClipLora:
    """A LoRA of one clip."""

    path: str
    """Absolute."""
    sha256: str
    scale: float
    num_bytes: int = 0
    """What it takes beside the weights, in 16 bits."""


def loras_text(loras: tuple[tuple[str, float], ...] | None) -> str | None:
    """Return `ClipSettings.loras` as the log has it: JSON, or None."""
    return None if loras is None else json.dumps(loras)


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
    loras: tuple[ClipLora, ...] = ()
    """Where those of `settings.loras` are, in the same order."""
    other_ids: tuple[str, ...] = ()
    """Ids of further rows that ask for this very clip, in the manifest's order."""
    other_lines: tuple[int, ...] = ()
    """Where it is asked for again; a line comes as often as it does so."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Every row id that it goes by; the first one names the file."""
        return (self.row_id, *self.other_ids)

    def named(self, row_id: str) -> Clip:
        """Return the same clip under the id of another row."""
        return replace(
            self, row_id=row_id, clip_id=_clip_id(row_id, self.settings.seed, self.settings_sha256)
        )


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
    loras: tuple[ClipLora, ...] = (),
) -> Clip:
    """Return the clip of these settings, with its hashes and its name."""
    settings_sha256, denoise_sha256 = settings.hashes()
    return Clip(
        clip_id=_clip_id(row_id, settings.seed, settings_sha256),
        row_id=row_id,
        row_index=row_index,
        line=line,
        settings=settings,
        settings_sha256=settings_sha256,
        denoise_sha256=denoise_sha256,
        image=image,
        image_path=image_path,
        tags=tags,
        off_recipe=off_recipe,
        loras=loras,
    )


def _clip_id(row_id: str, seed: int, settings_sha256: str) -> str:
    return f"{row_id}_s{seed}_{settings_sha256[:8]}"


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _canonical_sha256(value: dict[str, Any]) -> str:
    text = _CANONICAL.encode({"schema": SCHEMA, **value})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def glyph_texts(prompt: str) -> list[str]:
    """Return the quoted texts (straight or curly) that drive the glyph encoder, each once."""
    if '"' not in prompt and "“" not in prompt:
        return []
    return list(dict.fromkeys(text for line in prompt.split("\n") for text in _quoted(line)))


_OPENING = re.compile('["“]')


def _quoted(line: str) -> Iterator[str]:
    """Yield what the pipeline's own `"(.*?)"|“(.*?)”` finds in a line, in linear time.

    A prompt may have a million characters, and an expression looks for the end of each anew.
    """
    position, unclosed = 0, set()
    while opening := _OPENING.search(line, position):
        position = opening.end()
        closing = '"' if opening[0] == '"' else "”"
        if closing in unclosed:
            continue
        end = line.find(closing, position)
        if end < 0:
            unclosed.add(closing)
            continue
        yield line[position:end]
        position = end + 1
