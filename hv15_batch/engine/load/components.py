"""Load one component: from a checkpoint folder as plain diffusers does, or with random weights.

Reads local safetensors only; fetching is `prefetch`'s job.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hv15_batch.config.settings import Config
from hv15_batch.engine.device import torch_dtype
from hv15_batch.engine.load import random_weights
from hv15_batch.engine.load.linears import EightBits
from hv15_batch.engine.load.transformer import read_transformer
from hv15_batch.errors import Refused
from hv15_batch.model.variant import STEP_DISTILLED_T2V, Task
from hv15_batch.weights.checkpoint import Checkpoint
from hv15_batch.weights.configs import read_object
from hv15_batch.weights.files import component_faults

PIPELINE_CLASSES = {
    Task.t2v: "HunyuanVideo15Pipeline",
    Task.i2v: "HunyuanVideo15ImageToVideoPipeline",
}
_PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_MACHINE_WORDS = ("CUDA", "cuda", "can't allocate memory", "not enough memory")
"""Messages about the card or the memory; all others are about files."""
_FETCH_AGAIN = (
    "compare the files with their source, and fetch or copy them again: hv15-batch prefetch "
    "downloads what was deleted"
)
_ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_TRY_TOKENS = 256
_MAX_REASON_CHARACTERS = 300
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
    entry = read_json(folder / "model_index.json", str(folder)).get(name)
    if not isinstance(entry, list):
        raise Refused(f"{folder}: model_index.json names no {name}; fetch the checkpoint again.")
    place = checkpoint.component(name)
    faults = component_faults(
        folder, name, entry, reads_vocabularies=False, needs_weights=place == folder / name
    )
    if faults:
        raise Refused(f"{folder}: {'; '.join(faults[:3])}; {_FETCH_AGAIN}.")
    library, class_name = entry
    with _damage(folder, "model_index.json"):
        cls = getattr(importlib.import_module(library), class_name)
    safely: dict[str, Any] = {"local_files_only": True}
    if library == "transformers" and name != "feature_extractor":
        safely["trust_remote_code"] = False  # else it may ask on the terminal
    if name not in _NETWORKS:
        with _damage(folder, name):
            component = cls.from_pretrained(folder / name, **safely)
            _try(name, component, folder)
            return component
    eight_bits = EightBits.of(config) if name == "transformer" else None
    if eight_bits is not None:
        with _damage(folder, name):
            return read_transformer(place, cls, torch_dtype(config), device, eight_bits)
    with _damage(folder, name):
        network, found = cls.from_pretrained(
            place,
            **safely,
            use_safetensors=True,
            device_map={"": device},
            dtype=torch_dtype(config),
            output_loading_info=True,
        )
        _check_loaded(network, found)
        return network.eval().requires_grad_(False)


@contextmanager
def _damage(folder: Path, name: str) -> Iterator[None]:
    """Tell what a library raises on damaged files as one message.

    Raises:
        Refused: naming the component, the reason and what to do.
    """
    try:
        yield
    except (Refused, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = str(error)
        is_of_machine = isinstance(error, OSError) and error.errno in _PASSING_ERRORS
        if is_of_machine or any(words in text for words in _MACHINE_WORDS):
            raise
        reason = " ".join(text.split())[:_MAX_REASON_CHARACTERS] or type(error).__name__
        raise Refused(
            f"{folder / name}: its files are damaged or of another version "
            f"({type(error).__name__}: {reason}); {_FETCH_AGAIN}."
        ) from error


def _try(name: str, component: Any, folder: Path) -> None:
    """Use a tokenizer once as the pipeline does: a damaged one loads like any other.

    Raises:
        Exception: of any kind; of its own a ValueError where its encoder lacks a token.
    """
    if name not in _ENCODERS:
        return
    padded = {
        **{"padding": "max_length", "truncation": True, "max_length": _TRY_TOKENS},
        "return_tensors": "pt",
    }
    if name == "tokenizer":
        talk = [[{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]]
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        tokens = component.apply_chat_template(talk, **how, **padded)
        component.apply_chat_template(talk, **how)  # to count them
    else:
        tokens = component("a", add_special_tokens=True, **padded)
        component("a")
    size = read_object(folder / _ENCODERS[name] / "config.json").get("vocab_size")
    largest = int(tokens["input_ids"].max())
    if isinstance(size, int) and largest >= size:
        raise ValueError(f"token {largest} is not among the {size} that its encoder knows")


def _check_loaded(network: Any, found: dict[str, Any]) -> None:
    """Check that every parameter came from the files: a library makes up what is missing.

    Raises:
        ValueError: naming some that did not.
    """
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    missing = sorted(str(key) for key in found["missing_keys"] if key not in tied)
    mismatched = sorted(str(key) for key in found["mismatched_keys"])
    if missing or mismatched or found.get("error_msgs"):
        which = ", ".join((missing or mismatched)[:3]) or str(found["error_msgs"][0])
        raise ValueError(f"the safetensors lack parameters of this network: {which}")


def _build_random(name: str, config: Config, device: torch.device) -> Any:
    model = config.model
    if name in _NETWORKS:
        bits = EightBits.of(config) if name == "transformer" else None
        dtype = torch_dtype(config)
        return random_weights.build_component(name, model, dtype, device, eight_bits=bits)
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
        return read_object(path)
    except (OSError, ValueError) as error:
        raise Refused(
            f"{where} is no checkpoint in diffusers layout: {path.name} cannot be read ({error}); "
            "run `hv15-batch prefetch` for this model."
        ) from error
