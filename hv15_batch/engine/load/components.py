"""Load one component: from a checkpoint folder as plain diffusers does, or with random weights.

Reads local safetensors only; fetching is `prefetch`'s job.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from hv15_batch.config.settings import Config
from hv15_batch.engine.device import torch_dtype
from hv15_batch.engine.load import random_weights
from hv15_batch.errors import Refused
from hv15_batch.model.variant import STEP_DISTILLED_T2V, Task
from hv15_batch.weights.checkpoint import Checkpoint
from hv15_batch.weights.files import class_fault, kernel_fault

PIPELINE_CLASSES = {
    Task.t2v: "HunyuanVideo15Pipeline",
    Task.i2v: "HunyuanVideo15ImageToVideoPipeline",
}
_NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "image_encoder")


def check_checkpoint(config: Config, checkpoint: Checkpoint) -> None:
    """Check, before any weight is read, that a checkpoint fits the model option.

    Raises:
        Refused: no checkpoint there, one of the other task, or a MeanFlow one for
            text-to-video, whose frames would be wrong without an error.
    """
    if checkpoint.is_random:
        return
    folder = checkpoint.files()
    where = f"model={config.model.name}: {folder}"
    index = read_json(folder / "model_index.json", where)
    transformer = read_json(folder / "transformer" / "config.json", where)
    if transformer.get("use_meanflow") and config.model.task is Task.t2v:
        raise Refused(f"{where} holds a MeanFlow transformer: {STEP_DISTILLED_T2V}.")
    wanted, found = PIPELINE_CLASSES[config.model.task], index.get("_class_name")
    if found != wanted:
        raise Refused(
            f"{where} is a checkpoint for {found}, but model.task={config.model.task.value} needs "
            f"{wanted}; use the model option of that checkpoint."
        )


def load_component(name: str, config: Config, checkpoint: Checkpoint, device: torch.device) -> Any:
    """Return one component on `device`, in evaluation mode, without gradients.

    Args:
        name: as in the checkpoint's model_index.json.
        config: decides type and, for random weights, the architecture.
        checkpoint: its files are read, or its random weights made.
        device: weights are read straight to it, so that no second copy is held.
    """
    if checkpoint.is_random:
        return _build_random(name, config, device)
    folder = checkpoint.files()
    entry = read_json(folder / "model_index.json", str(folder))[name]
    if fault := class_fault(name, entry) or kernel_fault(folder, name):
        raise Refused(f"{folder}: {fault}.")
    library, class_name = entry
    cls = getattr(importlib.import_module(library), class_name)
    safely: dict[str, Any] = {"local_files_only": True}
    if library == "transformers" and name != "feature_extractor":
        safely["trust_remote_code"] = False  # else it may ask on the terminal
    if name not in _NETWORKS:
        return cls.from_pretrained(folder / name, **safely)
    network = cls.from_pretrained(
        folder / name,
        **safely,
        use_safetensors=True,
        device_map={"": device},
        dtype=torch_dtype(config),
    )
    return network.eval().requires_grad_(False)


def _build_random(name: str, config: Config, device: torch.device) -> Any:
    model = config.model
    if name in _NETWORKS:
        return random_weights.build_component(name, model, torch_dtype(config), device)
    tokenizer, tokenizer_2 = random_weights.tokenizers()
    return {
        "tokenizer": lambda: tokenizer,
        "tokenizer_2": lambda: tokenizer_2,
        "scheduler": lambda: random_weights.build_scheduler(model),
        "guider": lambda: random_weights.build_guider(model),
        "feature_extractor": lambda: random_weights.build_feature_extractor(model),
    }[name]()


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Return a JSON file of a checkpoint.

    Raises:
        Refused: `where` is no checkpoint: the file is missing or broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(
            f"{where} is no checkpoint in diffusers layout: {path.name} cannot be read ({error}); "
            "run `hv15-batch prefetch` for this model."
        ) from error
    assert isinstance(content, dict)
    return content
