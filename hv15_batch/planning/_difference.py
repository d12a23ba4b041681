"""What differs between a clip and one that was rendered before, in words."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from hv15_batch.clip import Clip, ClipSettings, loras_text
from hv15_batch.record import columns
from hv15_batch.units import format_setting, shortened

_MAX_SHOWN_CHARACTERS = 40

_LOGGED_AS = {"image_sha256": "image", "attention_backend": "attention_backend_requested"}
COMPARED = {
    f.name: logged
    for f in fields(ClipSettings)
    if (logged := _LOGGED_AS.get(f.name, f.name)) in columns() and f.name != "seed"
}
"""A clip's settings that the log has too, by their columns. The log has no `video.*`, and of a
first frame only the typed path. The seed distinguishes a row's clips."""


def describe_difference(record: dict[str, Any], clip: Clip) -> str:
    """Return what differs between a record and a clip, e.g. `num_inference_steps 50 -> 30`."""
    text = ", ".join(changes(record, clip))
    converted = "or its conversion " * bool(clip.settings.image_conversion)
    return text or f"the image's content {converted}or " * bool(clip.image) + "video.* changed"


def changes(record: dict[str, Any], clip: Clip) -> list[str]:
    """Return each setting in which a record and a clip differ, in words."""
    found = []
    for name, logged in COMPARED.items():
        before = record[logged]
        now = clip.image if logged == "image" else getattr(clip.settings, name)
        if name == "loras":
            now = loras_text(clip.settings.loras)
        if name == "image_source":  # two hashes say nothing, and `image` names the row
            found += ["the clip that it follows"] * (None not in (before, now) and before != now)
            continue
        if before != now and not (name == "dtype" and before is None):
            shown = "image" if logged == "image" else name
            found.append(_change(shown, before, now))
    return found


def settings_difference(before: ClipSettings, now: ClipSettings) -> str:
    """Return what differs between the settings of two clips; empty if nothing does."""
    old, new = before.as_dict(), now.as_dict()
    for values in (old, new):
        values |= {f"video.{name}": value for name, value in values.pop("video").items()}
    both = {**old, **new}
    pairs = ((name, old.get(name), new.get(name)) for name in both)
    if before.engine != now.engine:  # what an engine has no use for says nothing
        pairs = ((n, a, b) for n, a, b in pairs if n == "engine" or None not in (a, b))
    return ", ".join(_change(name, a, b) for name, a, b in pairs if a != b)


def _change(name: str, before: Any, now: Any) -> str:
    if name == "engine" and before and now:  # only its words that differ
        old, new = before.split(), now.split()
        gone, come = ([w for w in a if w not in b] for a, b in ((old, new), (new, old)))
        return f"engine {' '.join(gone) or 'no flags'} -> {' '.join(come) or 'no flags'}"
    text = _loras_shown if name == "loras" else _value_text
    return f"{name} {text(before)} -> {text(now)}"


def _loras_shown(value: Any) -> str:
    """Return e.g. `a1b2c3d4:0.5`, the start of each file's SHA-256 and its scale; or `none`."""
    pairs = json.loads(value) if isinstance(value, str) else value or ()
    return " ".join(f"{sha[:8]}:{format_setting(float(scale))}" for sha, scale in pairs) or "none"


def _value_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        text = shortened(value, _MAX_SHOWN_CHARACTERS)
        return repr(text) if " " in text or not text else text
    return "none" if value is None else str(value)
