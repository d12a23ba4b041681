"""Which settings that a source leaves open the clips had that are held against its figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hv15_batch.reference_costs import swept_guidance, swept_steps
from hv15_batch.reference_settings import text_of
from hv15_batch.references import Quantity, Reference


def combination_of(reference: Reference, settings: Mapping[str, Any]) -> list[str]:
    """Return those settings of comparable clips that the source does not state, in words.

    Args:
        reference: a published figure.
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
        found.append(f"guidance {text_of(settings['guidance_scale'])}")
    if reference.flow_shift is None:
        shift = settings["flow_shift"]
        found.append(f"shift {'not logged' if shift is None else text_of(shift)}")
    return found


def _tiles(settings: Mapping[str, Any]) -> str:
    if settings["decode_device"] is None:
        return "VAE tiling not logged"
    size = settings["vae_tile_size"]
    return f"VAE tiles of {size} px" if size else "no VAE tiling"


def _is_open(stated: int | None, options: tuple[int, ...] | None) -> bool:
    return stated is None and (options is None or len(options) > 1)
