"""Sizes of every component, full, tiny and demo, and the identity of weights made from them.

Shipped as JSON so that neither random nor tiny weights need a download. Must not import torch:
the parent process names revisions and folders through here.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from hv15_batch.model.variant import Distillation, ModelConfig, Task, Weights

Architecture = dict[str, dict[str, Any]]

SIZES = ("full", "tiny", "demo")
MODULES = ("transformer", "vae", "text_encoder", "text_encoder_2", "image_encoder")
"""Components with weights; the image encoder belongs to image-to-video models only."""
COMPONENTS = (*MODULES, "feature_extractor", "scheduler", "guider")

FORMAT = 1
"""Version of how weights, tokenizers and folders are made; bumped when any of that changes."""
DEMO_FOLDER = Path(__file__).resolve().parents[1] / "demo"
"""Trained weights of the demo models, of both tasks."""
SEED = 0
"""Seed of random and tiny weights."""
TINY_GAINS = {
    "text_encoder": {"embed_tokens.weight": 16.0},
    "transformer": {"add_v_proj.weight": 2.0, "norm_added_k.weight": 2.0, "proj_out.weight": 0.4},
}
"""Factors on tiny weights, by component and end of name.

The first three let a prompt be seen in the frames, which plain random weights hardly do. The
last one keeps latents near 1 under guidance, where differences between two forwards, rounding
included, are multiplied (measured: 3e-6 instead of 1e-5 between padded and trimmed text).
"""


def read_architecture(size: str) -> dict[str, dict[str, Any]]:
    """Return the configuration of every component of one size.

    Args:
        size: `full` (the published model), `tiny` (small instances of the same classes) or `demo`
            (larger ones, which are trained).

    Returns:
        Component name to constructor arguments of its class or of its configuration class.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"architecture size {size!r}: must be one of {', '.join(SIZES)}")
    folder = resources.files(__name__) / size
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in COMPONENTS
    }


def component_names(task: Task) -> tuple[str, ...]:
    """Return the components with a JSON file that a pipeline of this task has."""
    if task is Task.i2v:
        return COMPONENTS
    return tuple(n for n in COMPONENTS if n not in ("image_encoder", "feature_extractor"))


def component_arguments(
    name: str, model: ModelConfig, architecture: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return one component's constructor arguments, those that the model decides included.

    Raises:
        ValueError: if the architecture has no such component.
    """
    if name not in architecture:
        raise ValueError(f"component {name!r}: must be one of {', '.join(architecture)}")
    arguments = dict(architecture[name])
    if name == "transformer":
        arguments["task_type"] = model.task.name
        arguments["target_size"] = model.target_size
        arguments["use_meanflow"] = model.recipe.meanflow
    elif name == "guider" and model.recipe.guidance is not None:
        arguments["guidance_scale"] = model.recipe.guidance
    return arguments


def size_of(weights: Weights) -> str:
    """Return the size of models with such weights."""
    return weights.name if weights.is_small else "full"


@cache
def _demo_sha256() -> str:
    digest = hashlib.sha256()
    for file in sorted(DEMO_FOLDER.glob("*.safetensors")):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def definition_sha256(size: str, model: ModelConfig) -> str:
    """Return the hash of all that decides weights made in code, without making them.

    It is the `revision` of tiny, demo and random weights.

    Raises:
        ValueError: if there is no such size.
    """
    definition: dict[str, Any] = {
        "format": FORMAT,
        "seed": SEED,
        "gains": TINY_GAINS if size == "tiny" else {},
        "architecture": read_architecture(size),
        "task": model.task.name,
        "target_size": model.target_size,
        "distillation": model.distillation.name,
    }
    if size == "demo":
        definition["weights"] = _demo_sha256()
    if model.recipe.meanflow != (model.distillation is Distillation.step):
        definition["use_meanflow"] = model.recipe.meanflow  # else `distillation` says it
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checkpoint_folder(model: ModelConfig, root: Path) -> Path:
    """Return where `engine.load.tiny.ensure_checkpoint` keeps a model's checkpoint under `root`."""
    return root / f"{model.name}-{definition_sha256(size_of(model.weights), model)[:12]}"
