"""Settings in readable form: those that all clips share, and those in which a clip differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hv15_batch.files import parse_json
from hv15_batch.units import format_gib, format_setting

Clip = Mapping[str, Any]


def _size(clip: Clip) -> str | None:
    if clip["height"] is None:
        return None
    return f"{clip['height']}×{clip['width']}"  # noqa: RUF001 - the sign itself


def _column(name: str) -> Callable[[Clip], str | None]:
    def read(clip: Clip) -> str | None:
        value = clip[name]
        return None if value in (None, "") else format_setting(value)

    return read


def _tile(clip: Clip) -> str | None:
    if clip["decode_device"] is None:
        return None
    return f"{clip['vae_tile_size']} px" if clip["vae_tile_size"] else "untiled"


def _card_memory(clip: Clip) -> str | None:
    return f"{format_gib(clip['gpu_total_bytes'])} GiB" if clip["gpu_total_bytes"] else None


def _vram_limit(clip: Clip) -> str | None:
    return f"{clip['vram_limit_gib']:g} GiB" if clip["vram_limit_gib"] else None


def _engine(clip: Clip) -> str | None:
    """Return the engine with a short commit; None for diffusers."""
    engine = clip["engine"]
    return None if engine is None else _COMMIT.sub(lambda found: found[0][:12], engine)


_REVISION_CHARACTERS = 8
_COMMIT = re.compile(r"[0-9a-f]{40}")
FACTS: dict[str, Callable[[Clip], str | None]] = {
    "Variant": _column("model"),
    "Weights": _column("weights"),
    "Engine": _engine,
    "Size": _size,
    "Frames": _column("num_frames"),
    "Steps": _column("num_inference_steps"),
    "Guidance": _column("guidance_scale"),
    "Shift": _column("flow_shift"),
    "Frames a second": _column("fps"),
    "Off recipe": lambda clip: "yes" if clip["off_recipe"] else "no",
    "Negative prompt": _column("negative_prompt"),
    "Type": _column("dtype"),
    "Offload": _column("offload"),
    "Attention": _column("attention_backend"),
    "8-bit linear modules": _column("linear"),
    "Mask-free": _column("mask_free"),
    "Compiled": _column("compiled"),
    "Decode tiles": _tile,
    "Decoded on": _column("decode_device"),
    "Card": _column("gpu_name"),
    "Card memory": _card_memory,
    "VRAM limit": _vram_limit,
    "Video": _column("video"),
    "Driver": _column("driver_version"),
    "PyTorch": _column("torch_version"),
    "diffusers": _column("diffusers_version"),
    "hv15_batch": _column("hv15_batch_version"),
    "Commit": _column("commit"),
    "Revision": _column("revision"),
    "Machine": lambda clip: clip["system_sha256"] and clip["system_sha256"][:8],
}
"""Name on the page, and how it is read from a clip; None where it is not known."""
KEY_FACTS = tuple(name for name in FACTS if name != "Negative prompt")
"""Clips are counted together only if all of these are alike."""
_WEIGHTS_NOTES = {
    "tiny": (
        "These clips are noise on purpose: the tiny models are small instances of the real "
        "classes with random weights, made to try the whole way from manifest to page. "
        "Their times and memory say nothing about the full-size model."
    ),
    "demo": (
        "These clips come from a small model that was trained on a made-up world. Their times and "
        "memory say nothing about the full-size model."
    ),
    "random": (
        "These clips are noise on purpose: model.weights=random builds the full-size model "
        "without its published weights. Time and memory are as with the published weights; "
        "the pictures mean nothing."
    ),
}


def group_facts(columns: Clip) -> dict[str, str]:
    """Return the facts of a group from its `GROUP_COLUMNS`; what is not known is absent."""
    found = {name: FACTS[name](columns) for name in KEY_FACTS}
    return {name: value for name, value in found.items() if value is not None}


def common_facts(clips: Sequence[Clip]) -> dict[str, str]:
    """Return the facts that are equal in every clip that has them; unknown ones don't count."""
    found = {name: _distinct(read, clips) for name, read in FACTS.items()}
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def different_facts(clip: Clip, common: Mapping[str, str]) -> dict[str, str]:
    """Return the facts in which a clip differs from some others."""
    read = {name: value(clip) for name, value in FACTS.items() if name not in common}
    return {name: short_fact(name, value) for name, value in read.items() if value is not None}


def short_fact(name: str, value: str) -> str:
    """Return a fact as people read it: of a revision the first characters, as git shows it."""
    return value[:_REVISION_CHARACTERS] if name == "Revision" else value


def noise_notes(weights: Iterable[str | None]) -> list[str]:
    """Return what to know of clips without published weights, whichever of them there are."""
    found = set(weights)
    return [note for name, note in _WEIGHTS_NOTES.items() if name in found]


def tags_of(clip: Clip) -> dict[str, str]:
    """Return the user's own labels of a clip."""
    try:
        tags = parse_json(clip["tags"] or "{}")
    except ValueError:  # a log from elsewhere
        tags = None
    return {
        name.removeprefix("tag_"): value
        for name, value in (tags.items() if isinstance(tags, dict) else ())
        if value and isinstance(value, str)
    }


def _distinct(read: Callable[[Clip], str | None], clips: Iterable[Clip]) -> list[str]:
    return [v for v in dict.fromkeys(read(clip) for clip in clips) if v is not None]
