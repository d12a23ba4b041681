"""What differs between the settings that a source states and those of logged clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hv15_batch.cards import find_card
from hv15_batch.config import Task
from hv15_batch.references import Quantity, Reference

GIB = 2**30
VRAM_SLACK = 0.1
"""Cards of one name report slightly different totals."""
CLASS_AREAS = {"480p": 640**2, "720p": 960**2}
"""Pixels of a class of sizes: image buckets have about that area."""
AREA_SLACK = 0.15

_PLAIN = {
    "num_frames": "Frames",
    "guidance_scale": "Guidance",
    "flow_shift": "Shift",
    "dtype": "Type",
}
"""Settings that are stated as the log has them, and their names in a sentence."""


def differences(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each thing that is not as the source states.

    What the source does not state cannot differ. What the log does not tell counts as different.

    Args:
        reference: a published figure.
        settings: columns of the log, equal for all clips in question.
    """
    found = _card(reference, settings)
    if reference.quantity is Quantity.load_seconds:
        return found  # neither size nor steps decide how long loading takes
    found += _model(reference, settings)
    found += _size(reference, settings)
    for name, label in _PLAIN.items():
        stated = getattr(reference, name)
        if stated is not None and settings[name] != stated:
            found.append(_sentence(label, stated, settings[name]))
    steps = reference.num_inference_steps
    if steps is not None and settings["num_inference_steps"] not in steps:
        stated = " or ".join(map(str, steps))
        found.append(_sentence("Steps", stated, settings["num_inference_steps"]))
    kinds = reference.offload_kinds
    if kinds is not None and settings["offload"] not in kinds:
        stated = f"{reference.offload} (offload={' or '.join(kinds)})"
        found.append(_sentence("Offload", stated, settings["offload"]))
    mask_free = reference.mask_free
    if mask_free is not None and settings["mask_free"] is not mask_free:
        found.append(_sentence("Attention mask", _mask(mask_free), _mask(settings["mask_free"])))
    return found


def _card(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    if reference.card is None:
        return []
    name, total = settings["gpu_name"], settings["gpu_total_bytes"]
    stated = find_card(reference.card)
    if name is None or stated is None or find_card(name) != stated:
        return [_sentence("Card", reference.hardware, name)]
    vram_gib = reference.card_vram_gib or stated.memory_gib
    if total is None:
        if reference.card_vram_gib is None:
            return []
        return [
            f"Card: {reference.hardware} stated; how much memory this {name} has is not logged."
        ]
    if abs(total / GIB - vram_gib) > VRAM_SLACK * vram_gib:
        return [_sentence("Card", reference.hardware, f"{name} with {total / GIB:.0f} GiB")]
    return []


def _model(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    found = []
    options = reference.model_options
    if options and settings["model"] not in options:
        found.append(
            _sentence("Model", reference.model_stated or reference.model, settings["model"])
        )
    if reference.task is not None and settings["task"] != reference.task.value:
        found.append(_task(reference, settings["task"]))
    return found


def _task(reference: Reference, task: str | None) -> str:
    """Return the sentence on the task; a source may call a checkpoint what it is not."""
    assert reference.task is not None
    sentence = _sentence("Task", reference.task.value, task)
    of_model = {Task.i2v if "_i2v" in option else Task.t2v for option in reference.model_options}
    if of_model and reference.task not in of_model:
        return f"{sentence} No run can be both: the stated checkpoint is of the other task."
    return sentence


def _size(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    height, width = settings["height"], settings["width"]
    if reference.height is not None or reference.width is not None:
        if (height, width) == (reference.height, reference.width):
            return []
        return [_sentence("Size", f"{reference.height}x{reference.width}", f"{height}x{width}")]
    if reference.resolution is None:
        return []
    area = CLASS_AREAS[reference.resolution]
    if height and width and abs(height * width - area) <= AREA_SLACK * area:
        return []
    return [_sentence("Size", reference.resolution, f"{height}x{width}")]


def _mask(mask_free: bool | None) -> str | None:
    return None if mask_free is None else "none" if mask_free else "present"


def _sentence(label: str, stated: Any, logged: Any) -> str:
    def text(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    here = "not logged" if logged is None else f"{text(logged)} here"
    return f"{label}: {text(stated)} stated, {here}."
