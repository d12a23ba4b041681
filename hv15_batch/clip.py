"""A clip: one row of the manifest with one seed, its settings and its identity.

Its values are plain and picklable: a `Clip` goes from the torch-free parent to the executor.
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
"""Version of the hashed settings; a change makes every clip a new one."""
_ADDED = "added after schema 1"
_LEAVES = (str, int, float, bool, dict, type(None))


def added(default: Any) -> Any:
    """Return a field that was added after schema 1 to hashed settings.

    The hash leaves the field out while it has its default, so earlier clips keep their name. The
    default never changes; another meaning gets a new name.

    Args:
        default: A value, or a function that makes one (`list`).
    """
    if callable(default):
        return field(default_factory=default, metadata={_ADDED: True})
    return field(default=default, metadata={_ADDED: True})


def hashed_values(section: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that identify a clip; enums by their name.

    Nested sections are treated in the same way. Fields made with `added` are left out at their
    default.
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
    """Return the fields that were added after schema 1, and their defaults."""
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(section)  # type: ignore[arg-type]  # a class, which mypy calls unhashable
        if _ADDED in f.metadata
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    return hashed_values(value) if hasattr(value, "__dataclass_fields__") else value


Group = tuple[str, str, str | None, tuple[tuple[str, float], ...], str | None]
"""Model, weights, `runtime.linear`, hash and scale of each LoRA, and `ClipSettings.engine`."""


@dataclass(frozen=True)
class ClipSettings:
    """The settings that identify a clip: everything requested that may change its file.

    The effective attention backend, mask-free, compilation, offload, tile plan, machine, row id and
    place in the manifest do not identify it. They are logged.
    """

    prompt: str
    negative_prompt: str | None
    """None without classifier-free guidance, because it has no effect then."""
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
    linear: str | None = added(None)
    """`runtime.linear`; None for bf16."""
    image_conversion: str | None = added(None)
    """Conversion of the first frame, see `media.conversion`; None for plain RGB."""
    image_source: str | None = added(None)
    """`<denoise_sha256>:<number>` of the frame of another clip with which this one begins.

    Then `image_sha256` is None: the frame's pixels are known only when that clip is rendered.
    """
    engine: str | None = added(None)
    """The official script by its version, model folder and flags; None for diffusers."""

    def settings_sha256(self) -> str:
        """Return the SHA-256 over the canonical JSON of all settings."""
        return self.hashes()[0]

    def denoise_sha256(self) -> str:
        """Return the same hash without fps and `video`. Clips that share it share their latents."""
        return self.hashes()[1]

    def hashes(self) -> tuple[str, str]:
        """Return `settings_sha256` and `denoise_sha256`."""
        whole = _CANONICAL.encode({"schema": SCHEMA, **hashed_values(self)})
        # Quotes inside a string are escaped, so these members are found nowhere else.
        denoise = whole.replace(f',"fps":{_CANONICAL.encode(self.fps)}', "", 1)
        denoise = denoise.replace(f',"video":{_CANONICAL.encode(self.video)}', "", 1)
        return _sha256(whole), _sha256(denoise)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return dict(vars(self))  # asdict copies deeply and takes ten times as long

    @property
    def group(self) -> Group:
        """What a worker loads for this clip, and keeps for all clips of the same."""
        return self.model, self.weights, self.linear, self.loras or (), self.engine

    @property
    def has_guidance(self) -> bool:
        """Whether each step runs two forwards (classifier-free guidance)."""
        return self.guidance_scale != 1.0

    @property
    def has_image(self) -> bool:
        """Whether its first frame is given."""
        return self.image_sha256 is not None or self.image_source is not None


@dataclass(frozen=True)
class Source:
    """The frame of another clip with which a clip begins."""

    settings_sha256: str
    """Of the clip that makes it."""
    denoise_sha256: str
    clip_id: str
    """How that clip is called, for messages."""
    number: int
    """Of the frame, from 0."""
    level: int
    """Clips of the chain before this one; 1 for the second."""
    first: Clip
    """The clip that begins the chain."""

    @property
    def key(self) -> str:
        """How the log and `ClipSettings.image_source` name the frame."""
        return f"{self.denoise_sha256}:{self.number}"


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
class Rewrite:
    """How a prompt was rewritten, or is to be."""

    original: str
    """The prompt as the manifest has it."""
    model: str
    template_sha256: str
    """Of the instructions that the model was given."""
    is_pending: bool = False
    """There is no rewritten text yet, so the clip cannot be rendered."""
    fault: str | None = None
    """Why there is none."""


@dataclass(frozen=True)
class Clip:
    """One clip to render."""

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
    """Ids of further rows with exactly this clip, in the manifest's order."""
    other_lines: tuple[int, ...] = ()
    """Lines that repeat this clip; a line comes once for each repetition."""
    template_ids: tuple[str, ...] = ()
    """Ids of the rows whose templates gave its prompt; `only` knows them too."""
    template_draw: int | None = None
    """Number of the draw or combination that gave its prompt, from 0."""
    rewrite: Rewrite | None = None
    """None for a prompt as it was written."""
    source: Source | None = None
    """The frame that it begins with, if another clip makes it."""
    kept_frames: tuple[int, ...] = ()
    """Numbers of the frames of its own with which other clips begin."""
    films: tuple[tuple[str, int], ...] = ()
    """Names of the films that it is part of, and its place in each, from 0."""

    @property
    def level(self) -> int:
        """Clips of its chain that come before it; 0 for a clip that follows none."""
        return 0 if self.source is None else self.source.level

    @property
    def ids(self) -> tuple[str, ...]:
        """All its row ids; the first one names the file."""
        return (self.row_id, *self.other_ids)

    @property
    def is_pending(self) -> bool:
        """Whether its prompt is not rewritten yet. Then its hashes stand for no file."""
        return self.rewrite is not None and self.rewrite.is_pending

    def with_rewrite(self, rewrite: Rewrite) -> Clip:
        """Return the same clip with what is known of its rewriting.

        A pending one gets hashes of its own: the original prompt makes another clip.
        """
        if not rewrite.is_pending:
            return replace(self, rewrite=rewrite)
        asked = [rewrite.original, rewrite.model, rewrite.template_sha256]
        settings, denoise = (
            _sha256(_CANONICAL.encode(["to rewrite", *asked, sha256]))
            for sha256 in (self.settings_sha256, self.denoise_sha256)
        )
        return replace(
            self,
            rewrite=rewrite,
            settings_sha256=settings,
            denoise_sha256=denoise,
            clip_id=_clip_id(self.row_id, self.settings.seed, settings),
        )

    def named(self, row_id: str) -> Clip:
        """Return the same clip, named by the id of another row."""
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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def glyph_texts(prompt: str) -> list[str]:
    """Return the quoted texts (straight or curly) that drive the glyph encoder, each once."""
    lines = prompt.split("\n")
    if "“" not in prompt:
        return list(dict.fromkeys(text for line in lines for text in line.split('"')[1:-1:2]))
    return list(dict.fromkeys(text for line in lines for text in _quoted(line)))


_OPENING = re.compile('["“]')


def _quoted(line: str) -> Iterator[str]:
    """Yield the matches of the pipeline's `"(.*?)"|“(.*?)”` in a line, in linear time.

    The expression itself takes quadratic time, and a prompt may have a million characters.
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
