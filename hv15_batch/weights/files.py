"""Checks that the files of a checkpoint in diffusers layout are complete and fit the task.

It reads JSON and the headers of safetensors files. It loads neither weights nor torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hv15_batch.errors import Refused, Secondary
from hv15_batch.files import check_is_file, make_beside, open_regular, read_json
from hv15_batch.model.variant import STEP_DISTILLED_T2V, ModelConfig, Task
from hv15_batch.units import MIB, format_gib, shortened
from hv15_batch.weights.configs import (
    LOADED_SUFFIXES,
    MAX_INDEX_BYTES,
    file_faults,
    read_object,
)

WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
}
"""Components with parameters, and what their safetensors files are called."""

SETTINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "scheduler": (("scheduler_config.json",),),
    "guider": (("guider_config.json",),),
    "tokenizer": (("tokenizer_config.json",), ("tokenizer.json", "vocab.json")),
    "tokenizer_2": (("tokenizer_config.json",),),
    "feature_extractor": (("preprocessor_config.json", "processor_config.json"),),
}
"""Components without parameters: of each group of names one must be there."""

IMAGE_COMPONENTS = ("image_encoder", "feature_extractor")
LICENCE_NAMES = ("LICENSE*", "LICENCE*", "NOTICE*")
"""Files that say under which terms weights may be used."""
MAX_WEIGHTS_BYTES = 2**40
HASH_ALOUD_BYTES = 256 * MIB
"""From this size on hashing takes long enough to be announced."""


def find_faults(
    folder: Path, reads_vocabularies: bool = True, without: Collection[str] = ()
) -> list[str]:
    """Return what is missing, damaged or dangerous in a checkpoint, empty when it is complete.

    Every component of `model_index.json` is checked. Of a safetensors file, these are its header
    and its length.

    Args:
        folder: The checkpoint.
        reads_vocabularies: Whether JSON of some MiB is read too, for a tenth of a second.
        without: Components whose weights are not needed.
    """
    try:
        index = read_object(folder / "model_index.json")
    except (FileNotFoundError, NotADirectoryError):
        return ["model_index.json is missing"]
    except OSError as error:
        return [f"model_index.json cannot be read ({error.strerror})"]
    except ValueError:
        return ["model_index.json is not valid JSON"]
    return [
        fault
        for component in _components(index)
        for fault in component_faults(
            folder, component, index[component], reads_vocabularies, component not in without
        )
    ]


def component_faults(
    folder: Path,
    component: str,
    entry: Any,
    reads_vocabularies: bool = True,
    needs_weights: bool = True,
) -> list[str]:
    """Return the faults of one component; `find_faults` does this for all.

    Args:
        folder: The checkpoint.
        component: Its name in `model_index.json`.
        entry: [library, class] there.
        reads_vocabularies: Whether JSON of some MiB is read too.
        needs_weights: Whether its weights are read; False where others take their place.
    """
    dangers = class_fault(component, entry), kernel_fault(folder, component)
    faults = [danger for danger in dangers if danger is not None]
    if not component.isidentifier():
        return faults  # its files may be anywhere
    faults += file_faults(folder, component, reads_vocabularies)
    if component in WEIGHTS and needs_weights:
        faults += _weight_faults(folder, component)
    for names in SETTINGS.get(component, ()):
        if not any((folder / component / name).is_file() for name in names):
            faults.append(f"{component}/{' or '.join(names)} is missing")
    return faults


def check_task(folder: Path, model: ModelConfig, typed: str) -> None:
    """Check that a complete checkpoint is one for this model option.

    Args:
        folder: The checkpoint.
        model: The option that it is to be used with.
        typed: The checkpoint as the user knows it, for messages.

    Raises:
        Refused: another kind of model, the other task, or a step-distilled (MeanFlow)
            checkpoint under an option that is not step-distilled.
    """
    index = read_object(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if not name.startswith("HunyuanVideo15"):
        raise Refused(
            f"model.repo={typed} holds a {name}, not HunyuanVideo-1.5; name a checkpoint whose "
            "model_index.json says HunyuanVideo15Pipeline or HunyuanVideo15ImageToVideoPipeline."
        )
    has_image = all(component in _components(index) for component in IMAGE_COMPONENTS)
    is_meanflow = bool(read_object(folder / "transformer" / "config.json").get("use_meanflow"))
    if is_meanflow and model.task is Task.t2v:
        raise Refused(f"model.repo={typed} is step-distilled: {STEP_DISTILLED_T2V}.")
    if has_image != (model.task is Task.i2v):
        kind = "an image-to-video" if has_image else "a text-to-video"
        raise Refused(
            f"model.repo={typed} is {kind} checkpoint and model={model.name} is "
            f"{model.task.name}; choose a model option of the other task."
        )
    if is_meanflow != model.recipe.meanflow:
        kind = "step-distilled" if is_meanflow else "not step-distilled"
        raise Refused(
            f"model.repo={typed} is {kind} (use_meanflow={is_meanflow}) and model={model.name} "
            f"has distillation {model.distillation.name}; choose the model option made for it."
        )


def content_sha256(
    folder: Path, cache_file: Path, say: Callable[[str], None] = lambda _: None
) -> str:
    """Return a SHA-256 over the relative names and contents of the files that are loaded.

    Hashed are `model_index.json` and, in the folders of its components, the files with
    `LOADED_SUFFIXES`. Hashes of single files are kept in `cache_file` by path, size and time of
    change, so that 33 GB are read once.
    """
    hashes = file_sha256s(loaded_files(folder), cache_file, say)
    total = hashlib.sha256()
    for path in sorted(hashes, key=lambda p: p.relative_to(folder).as_posix()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{hashes[path]}\n".encode())
    return total.hexdigest()


def loaded_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that are loaded, `model_index.json` first."""
    files = [folder / "model_index.json"]
    for component in sorted(_components(read_object(files[0]))):
        files += sorted(
            path
            for path in (folder / component).iterdir()
            if is_loaded(path.name) and path.is_file()
        )
    return files


def is_loaded(name: str) -> bool:
    """Return whether a file of this name is of a kind that a pipeline loads."""
    return name.endswith(LOADED_SUFFIXES)


def find_licences(folder: Path) -> list[Path]:
    """Return the licence files of a checkpoint."""
    return [path for name in LICENCE_NAMES for path in folder.glob(name) if path.is_file()]


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file of a loaded kind, by its name relative to `folder`."""
    paths = (path for path in folder.rglob("*") if is_loaded(path.name) and path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def has_sizes(folder: Path, sizes: dict[str, int]) -> bool:
    """Return whether all these files are in `folder`, each with its size."""
    try:
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def file_sha256s(
    paths: list[Path], cache_file: Path, say: Callable[[str], None] = lambda _: None
) -> dict[Path, str]:
    """Return the SHA-256 of each file, read from `cache_file` where the file did not change."""
    known = _known_hashes(cache_file)
    keys = {path: _change_key(path) for path in paths}
    unknown = [path for path in paths if known.get(str(path), {}).get("key") != keys[path]]
    num_bytes = sum(path.stat().st_size for path in unknown)
    if num_bytes >= HASH_ALOUD_BYTES:
        say(
            f"hashing {format_gib(num_bytes)} GiB in {len(unknown)} files under "
            f"{paths[0].parent}, once, to know which weights these are"
        )
    with ThreadPoolExecutor(4) as pool:
        for path, digest in zip(unknown, pool.map(_file_sha256, unknown), strict=True):
            known[str(path)] = {"key": keys[path], "sha256": digest}
    if unknown:
        with Secondary("the hashes of the weights are not kept for the next run", say):
            write_json(cache_file, known)
    return {path: str(known[str(path)]["sha256"]) for path in paths}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON under a temporary name in the same folder and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = make_beside(path)
    try:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
        check_is_file(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _weight_faults(folder: Path, component: str) -> list[str]:
    stem = WEIGHTS[component]
    faults = []
    if not (folder / component / "config.json").is_file():
        faults.append(f"{component}/config.json is missing")
    single = folder / component / f"{stem}.safetensors"
    index = folder / component / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(read_object(index, MAX_INDEX_BYTES)["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [*faults, f"{component}/{index.name} is not a safetensors index"]
        if foreign := shards_fault(component, index.name, names):
            return [*faults, foreign]
    elif single.is_file():
        names = [single.name]
    else:
        hint = pickle_hint(folder / component)
        return [*faults, f"{component}/{single.name} (or its index) is missing{hint}"]
    for name in names:
        path = folder / component / name
        if not path.is_file():
            faults.append(f"{component}/{name} is missing")
        elif not is_whole(path):
            faults.append(f"{component}/{name} is cut short or not safetensors")
    return faults


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file has a valid header and the length stated there."""
    try:
        with safe_open(path, framework="np"):
            return True
    except (SafetensorError, OSError, ValueError):
        return False


def _components(index: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value and value[0] is not None
    ]


def _known_hashes(cache_file: Path) -> dict[str, dict[str, Any]]:
    """Return what was hashed before, by path; a damaged file counts as none."""
    try:
        stored = read_json(cache_file, MAX_INDEX_BYTES)
    except (OSError, ValueError):
        return {}
    entries = stored.items() if isinstance(stored, dict) else ()
    return {
        path: entry
        for path, entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    }


def _change_key(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def _file_sha256(path: Path) -> str:
    with open_regular(path, MAX_WEIGHTS_BYTES) as file:
        digest = hashlib.sha256()
        while chunk := file.read(8 * MIB):
            digest.update(chunk)
    return digest.hexdigest()


_MAX_QUOTED_CHARACTERS = 100
LIBRARIES = ("diffusers", "transformers")
"""Whose classes are loaded."""
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CLASS = re.compile(r"(?!Auto[A-Z])[A-Za-z_]\w*")
"""Auto classes would let the checkpoint name the code; AutoencoderKL is none."""
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation(_internal)?")


def class_fault(name: str, entry: Any) -> str | None:
    """Return why a component of model_index.json is not loaded, or None.

    Args:
        name: The component, which is also the name of its folder.
        entry: [library, class].
    """
    if not name.isidentifier():
        return f"model_index.json: {_quoted(name)} is no name of a component"
    library, class_name = (*entry, None, None)[:2]
    if library not in LIBRARIES:
        return f"{name} is of {_quoted(library)}; only {' and '.join(LIBRARIES)} are loaded"
    if not (isinstance(class_name, str) and _CLASS.fullmatch(class_name)):
        return f"{name} is of class {_quoted(class_name)}; a class must be named, not an Auto class"
    return None


def kernel_fault(folder: Path, name: str) -> str | None:
    """Return which kernel a component's config.json would have fetched from the hub, or None."""
    config = None
    with suppress(OSError, ValueError):  # missing or broken: said where it is loaded
        config = read_json(folder / name / "config.json", MAX_INDEX_BYTES)
    for key, value in _entries(config):
        if _IMPLEMENTATIONS.fullmatch(key) and "/" in json.dumps(value):
            return (
                f"{name}/config.json: {key}={_quoted(value)} names code to be fetched "
                "from the hub; delete that line"
            )
    return None


def shards_fault(name: str, index: str, shards: list[Any]) -> str | None:
    """Return the fault of an index that names anything but safetensors files beside it, or None."""
    foreign = [shard for shard in shards if not _SHARD.fullmatch(str(shard))]
    if not foreign:
        return None
    return f"{name}/{index} names {_quoted(foreign[0])}, which is no safetensors file beside it"


def pickle_hint(folder: Path) -> str:
    """Return what to add where safetensors are missing and pickled weights are there."""
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLED_SUFFIXES)
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle; loading one can run code, so it is not loaded: "
        "save the model again as safetensors"
    )


def _quoted(value: Any) -> str:
    """Return a value of a checkpoint for a message; a hostile one may have a million letters."""
    return shortened(repr(value), _MAX_QUOTED_CHARACTERS)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON value with what it holds, however deep."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)
