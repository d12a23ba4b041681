"""Settings of earlier runs: stored, read back, and the manifest that a run directory belongs to."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hv15_batch.config.settings import OF_ONE_COMMAND, Config, VideoCodec
from hv15_batch.errors import Refused
from hv15_batch.files import read_json
from hv15_batch.machine.system import commit_text
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig
from hv15_batch.rundir._plain import NotPlain, escaped, literal, read_mapping, unescaped
from hv15_batch.rundir._typed_only import (
    HASH,
    lacking_fault,
    safe_options,
    section_of,
    typed_only_in_use,
    value_of,
)
from hv15_batch.rundir.log import read_records
from hv15_batch.rundir.paths import RunDir, resume_command
from hv15_batch.rundir.publish import publish_text

FILE = "config.yaml"
_DELETED = ("verify", "from_clip", "image", "report.public")
"""Settings that earlier versions stored and this one lacks; none of them changed a clip."""
_SECTIONS = frozenset(f.name for f in fields(Config) if is_dataclass(f.default_factory))
"""Names of the sections of the settings."""
_MAX_REASON_CHARACTERS = 200
_MODELS = "models"
_MAKES_CLIPS = ("model", _MODELS, "preset_sampling", "sampling", "override", "runtime", "video")


def write_settings(folder: Path, config: Config) -> None:
    """Store a run's settings. A run counts as started once its folder has them."""
    publish_text(folder / FILE, OmegaConf.to_yaml(as_omegaconf(config)))


def withdraw_settings(folder: Path) -> None:
    """Delete the settings of a refused run, so that `resume=` ignores it."""
    (folder / FILE).unlink(missing_ok=True)


def as_omegaconf(config: Config) -> DictConfig:
    """Return settings for OmegaConf; a `${...}` in a text stays text."""
    node: DictConfig = OmegaConf.structured(Config)
    _fill(node, config)
    return node


def read_settings(path: Path) -> Config:
    """Return the settings of an earlier run; nothing in their texts is resolved.

    Raises:
        Refused: The file is not readable as this version's settings.
    """
    return _to_config(path, _read_yaml(path))


def stored_values(folder: Path) -> dict[str, Any]:
    """Return the settings in a run's folder as plain values, unchecked, texts as they were typed.

    Raises:
        Refused: The file is missing or no mapping.
    """
    try:
        stored = _read_yaml(folder / FILE)
    except OSError as error:
        raise Refused(_unreadable(folder / FILE, str(error.strerror))) from error
    plain = _plain(stored)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return unescaped(value) if isinstance(value, str) else value


def _to_config(path: Path, stored: dict[str, Any], is_part: bool = False) -> Config:
    """Return stored values as settings; in a part, missing ones have their defaults."""
    node = OmegaConf.structured(Config)
    if is_part:
        node.model.name = ""
    try:
        # Escaped, so that an interpolation in a foreign file stays text and reads no environment.
        merged = OmegaConf.merge(node, OmegaConf.create(literal(stored)))
        config = OmegaConf.to_object(merged)
        # OmegaConf takes a text with `${` for a section too.
        msgspec.convert(msgspec.to_builtins(config), Config)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise Refused(_unreadable(path, (str(error).splitlines() or [""])[0])) from error
    assert isinstance(config, Config)
    model = stored.get("model")
    option = model_options().get(config.model.name)
    if option is not None and isinstance(model, dict) and "recipe" not in model:
        config.model.recipe = option.recipe  # stored by a version that had it in its code
    return config


def latest_settings(run_dir: RunDir, typed: Collection[str] = ()) -> Config:
    """Return the settings of the last run in a directory, for `resume=`.

    Args:
        run_dir: Its directory.
        typed: Names of settings, or of their sections, that are typed now.

    Raises:
        Refused: No run was started there, or it used a setting of `TYPED_ONLY` that is not
            typed now.
    """
    run_ids = run_dir.run_ids()
    if not run_ids:
        raise Refused(
            f"resume={run_dir.shown()}: no run was started there; name a run directory, for "
            "example outputs/prompts, or start one: hv15-batch prompts.csv"
        )
    file = run_dir.run_folder(run_ids[-1]) / FILE
    config = read_settings(file)
    command = resume_command(run_dir.path, run_dir.shard)
    if fault := lacking_fault(config, typed, file, command):
        raise Refused(f"resume={run_dir.shown()}: {fault}")
    defaults = Config()
    for name in (*OF_ONE_COMMAND, "dry_run", "resume"):
        section, key = section_of(config, name)
        setattr(section, key, value_of(defaults, name))
    config.run_dir = str(run_dir.path)
    config.models = safe_options(config)
    if not {"model", "model.revision"} & set(typed):
        _check_revision(run_dir, file, config)
    return config


def _check_revision(run_dir: RunDir, file: Path, config: Config) -> None:
    """Refuse a stored revision that is no commit or hash, because a branch decides what is fetched.

    Raises:
        Refused: The message has what to type.
    """
    revision, option = config.model.revision, model_options().get(config.model.name)
    if revision is None or HASH.fullmatch(revision) or (option and revision == option.revision):
        return
    raise Refused(
        f"resume={run_dir.shown()}: model.revision in {file} is no commit, and decides what is "
        f"fetched; type it: {resume_command(run_dir.path, run_dir.shard)} model.revision=..."
    )


def to_type_again(config: Config) -> list[str]:
    """Return the names of settings that `resume=` does not take over.

    Those of one command come first, then those that are never taken from a stored configuration.
    """
    defaults = Config()
    once = [name for name in OF_ONE_COMMAND if value_of(config, name) != value_of(defaults, name)]
    return once + typed_only_in_use(config)


def earlier_settings(run_dir: RunDir) -> list[Config]:
    """Return the settings of earlier runs with the rendered revision, newest first, each once.

    Raises:
        Refused: A file is not readable as this version's settings.
    """
    seen: set[str] = set()
    configs = []
    for path in (folder / FILE for folder in reversed(run_dir.run_folders().values())):
        stored = _read_yaml(path)
        key = repr([stored.get(name) for name in _MAKES_CLIPS])
        if key not in seen:
            seen.add(key)
            # Clips of a setting that this version lacks differ from all that it makes.
            config = _to_config(path, _known_part(stored, OmegaConf.structured(Config)))
            for model in (config.model, *config.models.values()):
                if model.revision and not HASH.fullmatch(model.revision):
                    model.revision = None  # not written by a run, which stores commits and hashes
            configs.append(config)
    return configs


def remembered_weights(
    run_dir: RunDir, model: ModelConfig, lacks_revision: bool, lacks_file: bool
) -> ModelConfig:
    """Return a model with the weights that the last runs with its repository used.

    Args:
        run_dir: Of the runs.
        model: An option.
        lacks_revision: Its commit is to be filled in.
        lacks_file: The hash of its other transformer is to be filled in.
    """
    for settings in earlier_settings(run_dir):
        for earlier in (settings.model, *settings.models.values()):
            if earlier.repo != model.repo:
                continue
            if lacks_revision and earlier.revision is not None:
                model, lacks_revision = replace(model, revision=earlier.revision), False
            hub, before = model.transformer_hub, earlier.transformer_hub
            if lacks_file and (hub.repo, hub.file) == (before.repo, before.file):
                hub = replace(hub, sha256=hub.sha256 or before.sha256)
                model = replace(model, transformer_hub=hub)
    return model


def check_owner(run_dir: RunDir, manifest: Path) -> None:
    """Refuse the run directory of another manifest.

    Raises:
        Refused: The message names both.
    """
    run_ids = run_dir.run_ids()
    if not run_ids:
        return
    owner = _read_yaml(run_dir.run_folder(run_ids[-1]) / FILE).get("manifest")
    if not isinstance(owner, str | None):
        path = run_dir.run_folder(run_ids[-1]) / FILE
        raise Refused(_unreadable(path, "manifest must be a text"))
    if owner and not _is_same_file(Path(unescaped(owner)), manifest):
        raise Refused(
            f"run_dir={run_dir.shown()}: belongs to the manifest {unescaped(owner)}, not to "
            f"{manifest}; name another folder with run_dir=DIR."
        )


def _known_part(stored: dict[str, Any], node: DictConfig) -> dict[str, Any]:
    """Return stored settings without those that this version no longer has, or not yet."""
    known: dict[str, Any] = {}
    for name in stored.keys() & set(node.keys()):
        value = stored[name]
        section = None if OmegaConf.is_missing(node, name) else node[name]
        if isinstance(value, dict) and isinstance(section, DictConfig):
            if name == _MODELS:  # keys are names of options
                option = OmegaConf.structured(ModelConfig)
                parts = {n: m for n, m in value.items() if isinstance(m, dict)}
                known[name] = {n: _known_part(m, option) for n, m in parts.items()}
            else:
                known[name] = _known_part(value, section)
        else:
            known[name] = value
    return known


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except (OSError, ValueError):  # ValueError: not a path
        return False


def _fill(node: DictConfig, value: Any) -> None:
    for field in fields(value):
        item = getattr(value, field.name)
        if field.metadata.get("omegaconf_ignore"):
            continue
        if hasattr(item, "__dataclass_fields__"):
            _fill(node[field.name], item)
        elif field.name == _MODELS and isinstance(value, Config):
            for name, model in item.items():
                node[_MODELS][name] = OmegaConf.structured(ModelConfig)
                _fill(node[_MODELS][name], model)
        else:
            node[field.name] = escaped(item)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        stored = read_mapping(path)
    except NotPlain as error:
        raise Refused(_unreadable(path, str(error))) from error
    for name in _DELETED:
        section, _, key = name.rpartition(".")
        holder = stored.get(section) if section else stored
        if isinstance(holder, dict):
            holder.pop(key, None)
    return stored


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path}: not readable as settings of this version ({reason}); delete the folder "
        f"{path.parent}: clips and log do not depend on it."
    )


RUN_COLUMNS = ("vram_limit_gib", "video", "commit")
"""`runtime.vram_limit_gib`; codec, CRF and preset in words; the checkout's commit, `and changes` if
it was dirty. None if unknown."""


def read_rows_of_runs(run_dir: RunDir, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows of the log with `run_id` and these columns, `RUN_COLUMNS` among them.

    Raises:
        LogSchemaError: The log cannot be read.
    """
    logged = dict.fromkeys(["run_id", *(c for c in columns if c not in RUN_COLUMNS)])
    rows: list[dict[str, Any]] = read_records(run_dir.log, list(logged)).to_pylist()
    used, folders = run_ids_of(rows), run_dir.run_folders().items()
    found = {n: run_columns(run_settings(f), run_system(f)) for n, f in folders if n in used}
    add_run_columns(rows, found)
    return rows


def run_ids_of(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the `run_id`s of rows."""
    return {row["run_id"] for row in rows if row["run_id"]}


def add_run_columns(
    rows: Iterable[dict[str, Any]], columns: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add the `RUN_COLUMNS` in `columns`, which is by run, to rows with `run_id`."""
    unknown = dict.fromkeys(RUN_COLUMNS)
    for row in rows:
        row |= columns.get(row["run_id"], unknown)


def run_columns(settings: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, Any]:
    """Return `RUN_COLUMNS` of a run, from the results of `run_settings` and `run_system`."""
    video = settings.get("video") or {}
    codec, project = video.get("codec"), system.get("project")
    return {
        "vram_limit_gib": (settings.get("runtime") or {}).get("vram_limit_gib"),
        "video": codec and codec_text(codec, video.get("crf"), video.get("preset")),
        "commit": commit_text(project if isinstance(project, dict) else {}),
    }


def run_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run as plain values, with the setting's type and enums by name.

    Unknown settings are left out, missing ones have their defaults. Empty if it cannot be read.
    """
    try:
        stored = _read_yaml(folder / FILE)
        shard = stored.pop("shard", None)  # in which the runs of shards differ
        named = _named_settings(json.dumps(stored, sort_keys=True, default=str))
    except (Refused, OSError, ValueError):
        return {}
    return {**named, "shard": shard if isinstance(shard, str) else None}


@lru_cache(maxsize=32)
def _named_settings(text: str) -> dict[str, Any]:
    """Return settings by name, of stored ones as JSON, which are the same for many shards."""
    known = _known_part(json.loads(text), OmegaConf.structured(Config))
    named: dict[str, Any] = _by_name(asdict(_to_config(Path(FILE), known, is_part=True)))
    return named


def _by_name(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _by_name(item) for name, item in value.items()}
    return value.name if isinstance(value, Enum) else value


def run_system(folder: Path) -> dict[str, Any]:
    """Return `system.json` of a run; empty if it cannot be read."""
    try:
        facts = read_json(folder / "system.json")
    except (OSError, ValueError):
        return {}
    if not isinstance(facts, dict):
        return {}
    # A run writes objects only, so anything else is foreign.
    return {name: part for name, part in facts.items() if isinstance(part, dict)}


def codec_text(codec: str, crf: Any, preset: Any) -> str:
    """Return how files are encoded; h264 alone has CRF and preset."""
    return f"{codec} crf {crf} {preset}" if codec == VideoCodec.h264.name else codec
