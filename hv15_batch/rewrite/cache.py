"""`rewrites.jsonl`: every rewritten prompt of a run directory, one a line, for the user to edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused, system_message
from hv15_batch.files import parse_json, read_text
from hv15_batch.manifest.cells import ManifestError, is_empty, parse_text
from hv15_batch.rewrite.asked import Key
from hv15_batch.rundir.log import read_records
from hv15_batch.rundir.paths import REWRITES, RunDir
from hv15_batch.rundir.publish import publish_text
from hv15_batch.units import MIB

MAX_BYTES = 256 * MIB
_PROMPT = "prompt"
_NEEDED = (_PROMPT, *(name for name in Key._fields if name != "image_sha256"))
_ACTION = "correct it, or delete the line and the prompt is rewritten again"


def read_rewrites(run_dir: RunDir) -> dict[Key, str]:
    """Return the rewritten prompts: those of the file, or of the log where the file is lost.

    Raises:
        Refused: The file cannot be read; `ManifestError` has each line that is no rewrite.
        LogSchemaError: The log cannot be read.
    """
    path = run_dir.path / REWRITES
    if not path.exists():
        return _of_log(run_dir)
    try:
        text = read_text(path, MAX_BYTES)
    except OSError as error:
        raise Refused(f"{path}: {system_message(error)}.") from error
    except UnicodeDecodeError:
        raise Refused(f"{path}: is no UTF-8; save it as UTF-8.") from None
    return _parsed(path, text.removeprefix("\N{BYTE ORDER MARK}"))


def publish_rewrites(run_dir: RunDir, rewrites: Mapping[Key, str]) -> None:
    """Write the file as a whole, a line for each text, so that it can be read and edited."""
    publish_text(
        run_dir.path / REWRITES, "".join(_line(key, text) for key, text in rewrites.items())
    )


def _line(key: Key, text: str) -> str:
    values = {"prompt_original": key.prompt_original, _PROMPT: text, **key._asdict()}
    return json.dumps(values, ensure_ascii=False) + "\n"


def _parsed(path: Path, text: str) -> dict[Key, str]:
    found: dict[Key, str] = {}
    faults = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                key, rewritten = _entry(line)
            except ValueError as error:
                faults.append(f"{path}:{number}: {error}; {_ACTION}.")
            else:
                found[key] = rewritten
    if faults:
        raise ManifestError(faults)
    return found


def _entry(line: str) -> tuple[Key, str]:
    """Return key and text of a line.

    Raises:
        ValueError: It holds something else.
    """
    try:
        values: Any = parse_json(line)
    except ValueError as error:
        raise ValueError(f"is no line of JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError("each line is an object")
    found: list[Any] = [values.get(name) for name in Key._fields]
    for name in _NEEDED:
        if not isinstance(values.get(name), str) or is_empty(values[name]):
            raise ValueError(f"{name} must be a text that is not empty")
        parse_text(values[name])
    if not isinstance(values.get("image_sha256"), str | None):
        raise ValueError("image_sha256 must be a text or null")
    return Key(*found), values[_PROMPT]


def _of_log(run_dir: RunDir) -> dict[Key, str]:
    """Return the rewritten prompts of logged clips; of a text that was edited, the newest."""
    if not run_dir.log.is_dir():
        return {}
    names = (_PROMPT, "image_source", *Key._fields)
    rows: list[dict[str, Any]] = read_records(run_dir.log, names).to_pylist()
    for row in rows:
        if row["image_source"] is not None:  # the frame was not known when the prompt was asked for
            row["image_sha256"] = None
    return {
        Key(*(row[name] for name in Key._fields)): row[_PROMPT]
        for row in rows
        if all(row[name] is not None for name in _NEEDED)
    }
