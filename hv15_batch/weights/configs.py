"""Checks size, depth and numbers of the JSON files of a checkpoint.

Otherwise a file could make a library build a network of a billion layers, which never ends.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hv15_batch.files import read_json
from hv15_batch.units import MIB

MAX_CONFIG_BYTES = MIB
MAX_INDEX_BYTES = 16 * MIB
MAX_VOCABULARY_BYTES = 64 * MIB
"""Qwen2.5's `tokenizer.json` has 7 MiB, `vocab.json` 3 MiB."""
MAX_NUMBER = 2**24
"""Limit of a number in a configuration; the largest in the model is its vocabulary, 152,064."""
MAX_LAYERS = 1024
"""Limit of a number whose key has `layer` or `block`; the model has 54 blocks, and each number of
`block_out_channels` is below it too."""
MAX_ITEMS = 4096

LOADED_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Kinds of file that a pipeline loads; `.jinja` is the chat template of a tokenizer."""
_CONFIGS = ("config.json", "scheduler_config.json", "guider_config.json")
_LAYERS = re.compile(r"layer|block")


def read_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        OSError: it is missing, no regular file or too large.
        ValueError: it is no JSON object, or nested too deeply.
    """
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def file_faults(folder: Path, component: str, reads_vocabularies: bool) -> Iterator[str]:
    """Yield what is wrong with the kinds of file and the JSON of a component, a text for each.

    Args:
        folder: The checkpoint.
        component: Name of one of its folders.
        reads_vocabularies: Whether JSON of some MiB is read too.
    """
    try:
        names = sorted(os.listdir(folder / component))
    except (FileNotFoundError, NotADirectoryError):
        return  # each of its files is reported as missing
    except OSError as error:
        yield f"{component} cannot be read ({error.strerror})"
        return
    for name in names:
        if name.startswith(".") or not name.endswith(LOADED_SUFFIXES):
            continue
        path = folder / component / name
        try:
            status = path.stat()
        except OSError as error:
            yield f"{component}/{name} cannot be read ({error.strerror})"
            continue
        if not stat.S_ISREG(status.st_mode):
            yield f"{component}/{name} is no regular file"
        elif name.endswith(".json") and (reads_vocabularies or status.st_size <= MAX_CONFIG_BYTES):
            if fault := _json_fault(path, _max_bytes(name)):
                yield f"{component}/{name} {fault}"
        elif status.st_size > MAX_VOCABULARY_BYTES and not name.endswith(".safetensors"):
            yield f"{component}/{name} has {status.st_size:,} bytes; no such file is so large"


def _max_bytes(name: str) -> int:
    if name in _CONFIGS:
        return MAX_CONFIG_BYTES
    return MAX_INDEX_BYTES if name.endswith(".index.json") else MAX_VOCABULARY_BYTES


def _json_fault(path: Path, max_bytes: int) -> str | None:
    try:
        content = read_object(path, max_bytes)
        if path.name in _CONFIGS:
            _check_numbers(content, "")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:
        return f"is damaged ({str(error)[:200]})"
    return None


def _check_numbers(value: Any, key: str) -> None:
    """Check each number of a configuration, whose depth is limited.

    Raises:
        ValueError: one that no network of this kind has.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, name)
    elif isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise ValueError(f"{key[:40]} has {len(value):,} items")
        for item in value:
            _check_numbers(item, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        limit = MAX_LAYERS if _LAYERS.search(key) else MAX_NUMBER
        if not math.isfinite(value) or abs(value) > limit:
            raise ValueError(f"{key[:40]}={str(value)[:40]} is too large for this kind of model")
