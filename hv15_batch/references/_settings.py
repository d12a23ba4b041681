"""What differs between the settings that a source states and those of logged clips.

What a source does not state is swept, not assumed: a clip counts only with one of the sizes,
lengths, step counts and guidances that `implied` sweeps, and `combination_of` says with
which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hv15_batch.machine.cards import find_card
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Distillation, HubFile, Task
from hv15_batch.references._implied import (
    SIZES,
    SWEPT_FRAMES,
    is_i2v,
    options_of,
    swept_frames,
    swept_guidance,
    swept_steps,
)
from hv15_batch.references.data import Quantity, Reference
from hv15_batch.units import GIB

VRAM_SLACK = 0.1
"""Cards of one name report slightly different totals."""
CLASS_AREAS = {"480p": 640**2, "720p": 960**2}
"""Pixels of a class of sizes: image buckets have about that area."""
AREA_SLACK = 0.06


class DifferenceKind(Enum):
    """What keeps clips from being compared with a number, and what to do. A closed list."""

    card = (
        "other GPU than the reference",
        "render on {}, or predict for it with --dry-run runtime.card={}; until then quote what was "
        "measured for its own card only",
    )
    settings = ("settings differ from the reference", "render again with {}")
    suspect = (
        "every clip is suspect",
        "look at the clips, remove the cause, then render again with retry.suspect=true",
    )
    impossible = (
        "the source contradicts itself",
        "no settings can meet it; compare with a number whose model and task agree",
    )

    def sentence(self, *details: str) -> str:
        """Return what is wrong and its remedy; `details` are the card or the words to type."""
        about, remedy = self.value
        return f"{about[0].upper()}{about[1:]}: {remedy.format(*details)}."


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the source states."""

    kind: DifferenceKind
    sentence: str
    """What is stated and what is here."""
    details: tuple[str, ...] = ()
    """What `DifferenceKind.sentence` takes: the card and its name, or settings to type."""


def differences(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    """Return each thing that is neither as the source states nor among what is swept for it.

    What the log does not tell counts as different.

    Args:
        reference: a published number.
        settings: columns of the log, equal for all clips in question.
    """
    found = _card(reference, settings)
    if reference.quantity is Quantity.load_seconds:
        return found  # neither size nor steps decide how long loading takes
    found += _model(reference, settings)
    found += _size(reference, settings)
    found += _frames(reference, settings)
    found += _never_stated(settings)
    if reference.quantity is Quantity.clip_seconds:
        found += _steps(reference, settings) + _guidance(reference, settings)
    for name, label, key in (
        ("flow_shift", "Shift", "override.flow_shift"),
        ("dtype", "Type", "runtime.dtype"),
    ):
        stated = getattr(reference, name)
        if stated is not None and settings[name] != stated:
            found.append(_setting(label, stated, settings[name], f"{key}={_text_of(stated)}"))
    kinds = reference.offload_kinds
    if kinds is not None and settings["offload"] not in kinds:
        stated = f"{reference.offload} (offload={' or '.join(kinds)})"
        word = f"offload={','.join(kinds)}"
        found.append(_setting("Offload", stated, settings["offload"], word))
    free = reference.mask_free
    if free is not None and settings["mask_free"] is not free:
        word = f"runtime.mask_free={str(free).lower()}"
        here = _mask(settings["mask_free"])
        found.append(_setting("Attention mask", _mask(free), here, word))
    return found


def remedies(found: Sequence[Difference]) -> list[str]:
    """Return one sentence for each kind of difference: what is wrong and what to do about it."""
    kinds = {d.kind for d in found}
    if DifferenceKind.impossible in kinds:
        return [DifferenceKind.impossible.sentence()]
    sentences = [d.kind.sentence(*d.details) for d in found if d.kind is DifferenceKind.card]
    if DifferenceKind.settings in kinds:
        settings = [d for d in found if d.kind is DifferenceKind.settings]
        words = dict.fromkeys(word for d in settings for word in d.details)
        typed = _words_that_go_together([word for word in words if "=" in word])
        if any("," in word for word in typed):
            typed.insert(0, "-m")
        other = [word for word in words if "=" not in word]
        detail = " and ".join(filter(None, [" ".join(typed), *other]))
        sentences.append(DifferenceKind.settings.sentence(detail))
    if DifferenceKind.suspect in kinds:
        sentences.append(DifferenceKind.suspect.sentence())
    return sentences


def _words_that_go_together(remedies: Sequence[str]) -> list[str]:
    """Return the settings to type: beside a size only models that can be given one."""
    words = " ".join(remedies).split()
    if any(word.startswith("override.height=") for word in words):
        words = [_text_to_video(word) if word.startswith("model=") else word for word in words]
    return list(dict.fromkeys(words))


def _text_to_video(word: str) -> str:
    options = word.removeprefix("model=").split(",")
    names = [name for name in options if model_options()[name].task is Task.t2v]
    return f"model={','.join(names)}"


# -- what the source leaves open ---------------------------------------------------------------


def combination_of(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    """Return those settings of comparable clips that the source does not state, in words.

    Args:
        reference: a published number.
        settings: columns of the log, without `differences`.
    """
    if reference.quantity is Quantity.load_seconds:
        return []
    is_time = reference.quantity is Quantity.clip_seconds
    found = [] if len(reference.model_options) == 1 else [str(settings["model"])]
    if reference.height is None:
        found.append(f"{settings['height']}x{settings['width']}")
    if _is_open(reference.num_frames, reference.num_frames_swept):
        found.append(f"{settings['num_frames']} frames")
    if is_time:
        found += _of_time(reference, settings)
    if reference.dtype is None:
        found.append(settings["dtype"] or "dtype not logged")
    if len(reference.offload_kinds or ()) != 1:
        found.append(f"offload={settings['offload'] or 'not logged'}")
    # No source states its kernel, and an 8-bit one computes something else.
    found.append(f"attention {settings['attention_backend'] or 'not logged'}" if is_time
                 else _tiles(settings))  # fmt: skip
    found.append(_COMPILED[settings["compiled"]])
    if settings["off_recipe"]:
        found.append("off the model's recipe")
    return found


_COMPILED = {True: "compiled", False: "not compiled", None: "compiling not logged"}


def _of_time(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    """Return what decides time and pictures, but no memory."""
    found = []
    if len(swept_steps(reference)) > 1:
        found.append(f"{settings['num_inference_steps']} steps")
    if len(swept_guidance(reference)) > 1:
        found.append(f"guidance {_text_of(settings['guidance_scale'])}")
    if reference.flow_shift is None:
        shift = settings["flow_shift"]
        found.append(f"shift {'not logged' if shift is None else _text_of(shift)}")
    return found


def _tiles(settings: Mapping[str, Any]) -> str:
    if settings["decode_device"] is None:
        return "VAE tiling not logged"
    size = settings["vae_tile_size"]
    return f"VAE tiles of {size} px" if size else "no VAE tiling"


def _is_open(stated: int | None, options: tuple[int, ...] | None) -> bool:
    return stated is None and (options is None or len(options) > 1)


# -- one kind of setting each -----------------------------------------------------------------


def _card(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    if reference.card is None:
        return []
    name, total = settings["gpu_name"], settings["gpu_total_bytes"]
    stated = find_card(reference.card)
    here = None
    if name is None or stated is None or find_card(name) != stated:
        here = _sentence("Card", reference.hardware, name)
    elif total is None:  # boards of one chip differ in memory
        here = f"Card: {reference.hardware} stated; how much memory this {name} has is not logged."
    else:
        vram_gib = reference.card_vram_gib or stated.memory_gib
        if abs(total / GIB - vram_gib) > VRAM_SLACK * vram_gib:
            with_memory = f"{name} with {total / GIB:.0f} GiB"
            here = _sentence("Card", reference.hardware, with_memory)
    return (
        []
        if here is None
        else [Difference(DifferenceKind.card, here, (reference.hardware, reference.card))]
    )


def _model(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    found = []
    options = reference.model_options
    if options and settings["model"] not in options:
        stated = reference.model_stated or reference.model
        word = f"model={','.join(options)}"
        found.append(_setting("Model", stated, settings["model"], word))
    task = reference.task
    if task is None:
        return found
    differs = settings["task"] != task.value
    sentence = _sentence("Task", task.value, settings["task"])
    if options and task not in {option.task for option in options_of(reference)}:
        if not differs:
            sentence = f"Task: {task.value} stated."
        sentence += " No run can be both: the stated checkpoint is of the other task."
        found.append(Difference(DifferenceKind.impossible, sentence))
    elif differs:
        word = f"model={','.join(options) or _usual_option(task)}"
        found.append(Difference(DifferenceKind.settings, sentence, (word,)))
    return found


def _usual_option(task: Task) -> str:
    """Return the first model option of a task that is not distilled."""
    options = [
        o
        for o in model_options().values()
        if o.task is task and o.distillation is Distillation.none
    ]
    return options[0].name


def _size(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    height, width = settings["height"], settings["width"]
    here = None if height is None or width is None else f"{height}x{width}"
    if reference.height is not None or reference.width is not None:
        if (height, width) == (reference.height, reference.width):
            return []
        word = _size_word(reference, settings, reference.height, reference.width)
        return [_setting("Size", f"{reference.height}x{reference.width}", here, word)]
    classes = list(SIZES) if reference.resolution is None else [reference.resolution]
    if here is not None and any(_is_of_class(height * width, name) for name in classes):
        return []
    word = _size_word(reference, settings, *SIZES[classes[0]])
    if reference.resolution is None:
        return [_swept("Size", classes, here, word)]
    return [_setting("Size", reference.resolution, here, word)]


def _size_word(
    reference: Reference, settings: Mapping[str, Any], height: int | None, width: int | None
) -> str:
    """Return what gives clips of this size; in image to video the first frame decides."""
    if is_i2v(reference):
        return f"first frames of {width}x{height} (width x height)"
    model = ""
    if settings["task"] == Task.i2v.value:
        model = f"{_text_to_video(','.join(reference.model_options) or _usual_option(Task.t2v))} "
    return f"{model}override.height={height} override.width={width}"


def _is_of_class(area: int, name: str) -> bool:
    return abs(area - CLASS_AREAS[name]) <= AREA_SLACK * CLASS_AREAS[name]


def _frames(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    options, here = swept_frames(reference), settings["num_frames"]
    if here in options:
        return []
    word = f"override.num_frames={','.join(map(str, options))}"
    if reference.num_frames is not None:
        return [_setting("Frames", reference.num_frames, here, word)]
    if reference.num_frames_swept is not None:
        stated = f"{reference.num_frames_stated} ({_either(options)} frames)"
        return [_setting("Length", stated, here, word)]
    if reference.quantity is Quantity.vram:  # longer clips need more, so that they count
        least = min(SWEPT_FRAMES)
        if here is not None and here >= least:
            return []
        logged = "not logged" if here is None else f"{here} here"
        sentence = f"Frames: not stated; {least} or more count, {logged}."
        return [Difference(DifferenceKind.settings, sentence, (word,))]
    return [_swept("Frames", options, here, word)]


def _steps(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    options, here = swept_steps(reference), settings["num_inference_steps"]
    if here in options:
        return []
    word = f"override.num_inference_steps={','.join(map(str, options))}"
    if reference.num_inference_steps is not None:
        return [_setting("Steps", _either(options), here, word)]
    return [_swept("Steps", options, here, word)]


def _guidance(reference: Reference, settings: Mapping[str, Any]) -> list[Difference]:
    stated, here = reference.guidance_scale, settings["guidance_scale"]
    if stated is not None:
        word = f"override.guidance_scale={_text_of(stated)}"
        return [] if here == stated else [_setting("Guidance", stated, here, word)]
    options = swept_guidance(reference)
    if here is not None and (here != 1.0) in options:
        return []
    # Without guidance by the model; or else anything would do, but nothing was logged.
    is_free = len(options) > 1
    word = f"override.guidance_scale={'1,6' if is_free else '1'}"
    return [_swept("Guidance", ["any" if is_free else "1"], here, word)]


def _never_stated(settings: Mapping[str, Any]) -> list[Difference]:
    """Return what no source has and a clip may: step cache, 8 bits, LoRAs, another transformer."""
    found = []
    if (cache := settings["cache"]) is not None:
        found.append(_setting("Step cache", "none", cache, "sampling.cache=none"))
    if (linear := settings["linear"]) is not None:
        found.append(_setting("8-bit linear modules", "none", linear, "runtime.linear=bf16"))
    if settings["loras"] is not None:
        number = len(json.loads(settings["loras"]))
        found.append(_setting("LoRAs", "none", number, "no LoRA"))
    if flags := (settings["engine"] or "").split(" ")[3:]:
        shown, word = " ".join(flags), "official.arguments=null"
        found.append(_setting("Flags of generate.py", "none", shown, word))
    option = model_options().get(settings["model"])
    hub = HubFile() if option is None else option.transformer_hub
    sha256 = settings["transformer_sha256"]
    if sha256 is not None and (hub.file is None or hub.sha256 not in (None, sha256)):
        logged = f"a file with SHA-256 {sha256[:8]}"
        found.append(_setting("Transformer", "the model's own", logged, "the model's transformer"))
    return found


def _mask(mask_free: bool | None) -> str | None:
    return None if mask_free is None else "none" if mask_free else "present"


# -- sentences --------------------------------------------------------------------------------


def _setting(label: str, stated: Any, logged: Any, word: str) -> Difference:
    return Difference(DifferenceKind.settings, _sentence(label, stated, logged), (word,))


def _swept(label: str, options: Sequence[Any], logged: Any, word: str) -> Difference:
    sentence = f"{label}: not stated; {_either(options)} counts, {_here(logged)}."
    return Difference(DifferenceKind.settings, sentence, (word,))


def _sentence(label: str, stated: Any, logged: Any) -> str:
    return f"{label}: {_text_of(stated)} stated, {_here(logged)}."


def _here(logged: Any) -> str:
    return "not logged" if logged is None else f"{_text_of(logged)} here"


def _either(options: Sequence[Any]) -> str:
    """Return `61, 81 or 121`."""
    *others, last = map(str, options)
    return f"{', '.join(others)} or {last}" if others else last


def _text_of(value: Any) -> str:
    """Return a setting as it is typed and shown."""
    return f"{value:g}" if isinstance(value, float) else str(value)
