"""Finds, checks and hashes the LoRA files that rows and settings name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.clip import ClipLora
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import MAX_LORA_SCALE, Faults, ManifestError
from hv15_batch.manifest.read import Manifest
from hv15_batch.manifest.weights import lora_path
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import Say, format_name, format_value
from hv15_batch.weights.checkpoint import Checkpoint, cache_root
from hv15_batch.weights.configs import read_object
from hv15_batch.weights.files import file_sha256s
from hv15_batch.weights.layouts import SIZE_KEYS
from hv15_batch.weights.lora import LoraFile, open_lora, shown_unmatched
from hv15_batch.weights.transformer import transformer_arguments

_SCALED = re.compile(r"(?<=\.safetensors):([-+]?[0-9.]+)\Z")
"""A scale as cells have it, behind the path."""


@dataclass(frozen=True)
class FoundLoras:
    """What `find_loras` found."""

    by_path: Mapping[str, ClipLora]
    """Each file by its absolute path, with a scale of 1."""
    notes: tuple[str, ...]
    """For each file, how many of its tensors are used, and whether it lacks alpha."""


def find_loras(
    config: Config,
    manifest: Manifest,
    checkpoints: Mapping[str, Checkpoint],
    say: Say = lambda _: None,
) -> FoundLoras:
    """Return every LoRA file that rows and settings need. Each is opened and hashed once.

    Args:
        config: Its `model.loras` name files, for the rows of that model.
        manifest: The `loras` cells of its rows name files.
        checkpoints: By model; the files must fit the transformer of their rows' model.
        say: Called with a line before files are hashed; that takes a while the first time.

    Raises:
        Refused: a file of the settings cannot be used, no row takes it, or a model's config.json
            lacks a number.
        ManifestError: files of rows cannot be used; the messages name the rows.
    """
    default = config.model.name
    options = {default: config.model, **config.models}
    typed = [(path, text, name) for name in options for path, text in _typed(options[name])]
    taking = [row for row in manifest.rows if row.model in (None, default)]
    if list(_typed(config.model)) and not any(row.loras is None for row in taking):
        own = (
            "loras of its own, which replace model.loras"
            if taking
            else f"another model than {default}, for which model.loras is"
        )
        raise Refused(
            f"model.loras: every row of {manifest.name} has {own}; leave model.loras out."
        )
    if not typed and not any(row.loras for row in manifest.rows):
        return FoundLoras({}, ())
    opened = _Opened(options, checkpoints)
    for path, text, name in typed:
        opened.open(path, text, name)
    faults, broken = Faults(manifest.name), dict[tuple[str, str], str]()
    for row in manifest.rows:
        model = row.model or default
        for path, scale in row.loras or ():
            if not scale:
                continue
            if (model, path) not in broken:
                opened.read_config(model)
                try:
                    opened.open(path, Path(path).name, model)
                except Refused as refusal:
                    broken[model, path] = str(refusal).removesuffix(".").partition(": ")[2]
            if (model, path) in broken:
                faults.add(row.line, "loras", Path(path).name, broken[model, path])
    if faults:
        raise ManifestError(faults.messages)
    files = opened.by_path
    hashes = file_sha256s(list(map(Path, files)), cache_root() / "file_sha256.json", say)
    by_path = {
        path: ClipLora(path, hashes[Path(path)], 1.0, file.num_bytes)
        for path, file in files.items()
    }
    for option in options.values():
        _check_hashes(option, by_path)
    return FoundLoras(by_path, tuple(note for file in files.values() for note in _notes(file)))


class _Opened:
    """The files that were opened, each compared with every model that it is used with."""

    def __init__(
        self, options: Mapping[str, ModelConfig], checkpoints: Mapping[str, Checkpoint]
    ) -> None:
        self._options = options
        self._checkpoints = checkpoints
        self._arguments: dict[str, dict[str, Any]] = {}
        self._seen: set[tuple[str, str]] = set()
        self.by_path: dict[str, LoraFile] = {}

    def read_config(self, model: str) -> None:
        """Read the sizes of a model's transformer once.

        Raises:
            Refused: its config.json lacks a number.
        """
        if model not in self._arguments:
            option, checkpoint = self._options[model], self._checkpoints[model]
            self._arguments[model] = _transformer_config(option, checkpoint)

    def open(self, path: str, name: str, model: str) -> None:
        """Open a file, unless that was done for this model; `name` is for messages.

        Raises:
            Refused: it cannot be used.
        """
        if (model, path) in self._seen:
            return
        self.read_config(model)
        file = open_lora(Path(path), name, self._arguments[model])
        self._seen.add((model, path))
        self.by_path.setdefault(path, file)


def _typed(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield the path of each LoRA in the settings, and its name for messages; scale 0 is left out.

    Raises:
        Refused: a scale is out of bounds.
    """
    for lora in model.loras:
        if not abs(lora.scale) <= MAX_LORA_SCALE:
            raise Refused(
                f"model.loras: scale {lora.scale} of {lora.path}: must be -{MAX_LORA_SCALE:g} to "
                f"{MAX_LORA_SCALE:g}; 1 is usual."
            )
        if end := _SCALED.search(lora.path):
            raise Refused(
                f"model.loras: {lora.path}: the scale of a setting stands apart: "
                f"'model.loras=[{{path: {lora.path[: end.start()]}, scale: {end[1]}}}]'."
            )
        if lora.scale:
            yield lora_path(lora.path), f"model.loras: {lora.path}"


def _check_hashes(model: ModelConfig, by_path: Mapping[str, ClipLora]) -> None:
    for lora in model.loras:
        found = by_path.get(lora_path(lora.path))
        if found is not None and lora.sha256 not in (None, found.sha256):
            raise Refused(
                f"model.loras: {lora.path}: its SHA-256 is {found.sha256}, and not {lora.sha256} "
                "as typed; name the file that has it, or leave sha256 out."
            )


def _transformer_config(model: ModelConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.folder is None or checkpoint.transformer is not None:
        return transformer_arguments(model)
    path = checkpoint.folder / "transformer" / "config.json"
    found = read_object(path)
    for key in SIZE_KEYS:
        value = found.get(key)
        is_whole = isinstance(value, int) or (key == "mlp_ratio" and isinstance(value, float))
        if not is_whole or isinstance(value, bool):
            what = "is missing" if key not in found else f"is {format_value(value)}"
            raise Refused(
                f"{path}: {key} {what}; a LoRA is compared with the model by this number. Fetch "
                "the checkpoint again, or write the number into this file."
            )
    return found


def _notes(file: LoraFile) -> Iterator[str]:
    total = file.num_matched + len(file.unmatched)
    name = format_name(file.path.name)
    line = f"LoRA {name}: {file.num_matched} of {total} tensors are used"
    if file.unmatched:
        line = (
            f"WARNING: {line}; the others have names that this model lacks: "
            f"{shown_unmatched(file.unmatched)}"
        )
    yield line
    if file.lacks_alpha:
        yield (
            f"WARNING: LoRA {name}: its file has no alpha, so alpha is taken to be the rank; if "
            "it is another number, write ALPHA/RANK as the scale"
        )
