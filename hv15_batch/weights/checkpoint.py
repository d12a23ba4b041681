"""Where a model's weights are, which revision they have, and how missing ones are fetched.

Torch-free. Looking never touches the network; only `fetch` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.files import read_json, read_text
from hv15_batch.machine.machine import cache_root as cache_root
from hv15_batch.model.architectures import checkpoint_folder, definition_sha256, size_of
from hv15_batch.model.variant import HubFile, ModelConfig, Weights
from hv15_batch.official.limits import is_official, weights_of
from hv15_batch.weights._official import engine_of
from hv15_batch.weights._official import engine_state as engine_state
from hv15_batch.weights.files import (
    check_task,
    content_sha256,
    find_faults,
    has_sizes,
    is_whole,
    write_json,
)
from hv15_batch.weights.hub import (
    hub_cache_folder,
)
from hv15_batch.weights.transformer import OwnTransformer, find_transformer

Say = Callable[[str], None]

_MAX_REF_BYTES = 4096
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_FILE = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)*[A-Za-z0-9_][\w.-]*\.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class CheckpointKind(Enum):
    """Where weights come from."""

    hub = "hub"
    local = "local"
    tiny = "tiny"
    demo = "demo"
    random = "random"
    official = "official"


@dataclass(frozen=True)
class Checkpoint:
    """The weights that a model option stands for on this machine."""

    repo: str
    """Hub id, or a local folder."""
    revision: str | None
    """Commit, or content hash; None for a hub model of which no commit is known here yet."""
    folder: Path | None
    """Where the files are, when they are complete; None when they are missing, or random."""
    kind: CheckpointKind
    transformer: OwnTransformer | None = None
    """Replaces the transformer in `folder`."""
    lacking: HubFile | None = None
    """The file with that transformer, where it is not on this machine."""
    engine: str | None = None
    """What renders with them, see `ClipSettings.engine`; None for diffusers."""

    @property
    def is_missing(self) -> bool:
        """Whether something has to be fetched, or a small model written."""
        return self.folder is None or self.lacking is not None

    @property
    def transformer_sha256(self) -> str | None:
        """Content of the file with another transformer; None without one, or while unknown."""
        if self.transformer is not None:
            return self.transformer.sha256
        return None if self.lacking is None else self.lacking.sha256

    def component(self, name: str) -> Path:
        """Return the folder of a component's files.

        Raises:
            Refused: as `files`.
        """
        if name == "transformer" and self.transformer is not None:
            return self.transformer.folder
        return self.files() / name

    @property
    def is_random(self) -> bool:
        """Whether the weights are made in memory, so that there are no files."""
        return self.kind is CheckpointKind.random

    def files(self) -> Path:
        """Return the folder of the files.

        Raises:
            Refused: they are missing, or the weights are random and have none.
        """
        if self.folder is None:
            raise Refused(
                f"the weights of {self.repo} are not on this machine; run `hv15-batch prefetch` "
                "for this model."
            )
        return self.folder


def tiny_root() -> Path:
    """Return the folder under which the checkpoints of tiny and demo models are written."""
    return cache_root() / "tiny"


def resolve_checkpoint(
    model: ModelConfig, *, say: Say = lambda _: None, hub_cache: Path | None = None
) -> Checkpoint:
    """Return where a model's weights are and their revision, without network.

    A hub model is looked for in the cache of huggingface_hub at `model.revision`, or else at the
    commit that `fetch` recorded, or else at `refs/main`. The revision of a local folder is the
    hash of its content, that of tiny, demo and random weights the hash of their definition.

    Args:
        model: The model option.
        say: Called with a line before a local folder is hashed; that takes a while the first time.
        hub_cache: Cache of huggingface_hub; None for its own.

    Raises:
        Refused: a local folder is missing, incomplete or of another kind of model.
    """
    _check_hub_file(model.transformer_hub)
    found = _resolve(model, say, hub_cache)
    if model.transformer_file is None:
        if model.has_hub_transformer:
            return _with_hub_transformer(found, model, hub_cache or hub_cache_folder(), say)
        return found
    if found.is_random:
        raise Refused(
            f"model.transformer_file={model.transformer_file} with model.weights=random: leave one "
            "of them out."
        )
    path = Path(os.path.abspath(os.path.expanduser(model.transformer_file)))
    typed = f"model.transformer_file={model.transformer_file}"
    return replace(found, transformer=find_transformer(path, typed, model, cache_root(), say))


def resolve_weights(config: Config, say: Say = lambda _: None) -> Checkpoint:
    """Return what a model's clips are rendered with, by the engine that is asked for.

    Args:
        config: Settings, `model` being the one in question; checked by `official.limits`.
        say: As of `resolve_checkpoint`.

    Raises:
        Refused: as `resolve_checkpoint`; a file of the official script cannot be read.
    """
    if not is_official(config):
        return resolve_checkpoint(config.model, say=say)
    folder = weights_of(config.official)
    engine = engine_of(config, cache_root() / "file_sha256.json", say)
    return Checkpoint(str(folder), None, folder, CheckpointKind.official, engine=engine)


def _check_hub_file(source: HubFile) -> None:
    """Check that a file of a repository is named as one.

    Raises:
        Refused: naming the setting.
    """
    key = "model.transformer_hub"
    if source == HubFile(sha256=source.sha256):
        return
    if source.repo is None or not _HUB_ID.fullmatch(source.repo):
        raise Refused(f"{key}.repo={source.repo}: must be a hub id of the form owner/name.")
    if source.file is None or not _HUB_FILE.fullmatch(source.file):
        raise Refused(
            f"{key}.file={source.file}: must name a .safetensors file of {source.repo}, for "
            "example model.safetensors; a file of this machine is model.transformer_file=FILE."
        )
    if source.sha256 is not None and not _SHA256.fullmatch(source.sha256):
        raise Refused(f"{key}.sha256={source.sha256}: must be 64 digits of 0-9 a-f, or null.")


def _with_hub_transformer(
    found: Checkpoint, model: ModelConfig, hub_cache: Path, say: Say
) -> Checkpoint:
    """Return a checkpoint with the transformer of `model.transformer_hub`, or that it lacks it.

    Raises:
        Refused: the file is of another kind of model, or of another content than is asked for.
    """
    source = model.transformer_hub
    commit = hub_file_commit(source, hub_cache)
    path = hub_file_path(source, hub_cache, commit) if commit else None
    if path is None or not is_whole(path):
        return replace(found, lacking=source)
    typed = f"{source.repo}: {path}"
    own = find_transformer(path, typed, model, cache_root(), say)
    if source.sha256 not in (None, own.sha256):
        raise Refused(
            f"{typed}: the SHA-256 of its content is {own.sha256}, and "
            f"model.transformer_hub.sha256={source.sha256}; name the commit that has it with "
            "model.transformer_hub.revision=COMMIT, or use the content that is here with "
            "model.transformer_hub.sha256=null."
        )
    return replace(found, transformer=own)


def hub_file_commit(source: HubFile, hub_cache: Path) -> str | None:
    """Return the commit of a file's repository that is used here; None where none is known."""
    repo = str(source.repo)
    record = _read_record(repo)
    return _commit(store_folder(hub_cache, repo), source.revision or record.get("commit") or "main")


def hub_file_path(source: HubFile, hub_cache: Path, commit: str) -> Path:
    """Return where a file of a repository lies once it is fetched."""
    return store_folder(hub_cache, str(source.repo)) / "snapshots" / commit / str(source.file)


def _resolve(model: ModelConfig, say: Say, hub_cache: Path | None) -> Checkpoint:
    """Return the checkpoint of an option, with its own transformer."""
    if model.weights.is_small:
        folder = checkpoint_folder(model, tiny_root())
        revision, kind = definition_sha256(size_of(model.weights), model), model.weights.value
        # A tiny checkpoint gets its name by a rename, so one that is there is whole.
        with suppress(OSError):  # a folder that cannot be read has none: whether a run may make it
            if folder.is_dir():  # there is found out before it starts
                return Checkpoint(str(folder), revision, folder, CheckpointKind(kind))
        return Checkpoint(str(folder), revision, None, CheckpointKind(kind))
    repo = model.repo or ""
    if model.weights is Weights.random:
        return Checkpoint(repo, definition_sha256("full", model), None, CheckpointKind.random)
    local = Path(repo).expanduser()
    if local.is_dir():
        return _resolve_local(local.absolute(), model, say)
    if not _HUB_ID.fullmatch(repo):
        raise Refused(
            f"model.repo={repo!r}: no such folder, and not a hub id of the form owner/name."
        )
    try:
        return _resolve_hub(model, hub_cache or hub_cache_folder())
    except PermissionError as error:
        raise Refused(
            f"{error.filename}: cannot be read ({error.strerror}); correct its permissions, or set "
            "HF_HOME and XDG_CACHE_HOME to folders of this user."
        ) from error


def _resolve_local(folder: Path, model: ModelConfig, say: Say) -> Checkpoint:
    faults = find_faults(folder, without=replaced(model.replaces_transformer))
    if faults:
        is_damaged = not all(" is missing" in fault for fault in faults)
        raise Refused(
            f"model.repo={folder} is not a complete checkpoint in diffusers layout: "
            f"{some(faults)}; name the folder that holds model_index.json"
            + (", and copy or fetch again what is damaged." if is_damaged else ".")
        )
    check_task(folder, model, str(folder))
    try:
        revision = content_sha256(folder, cache_root() / "file_sha256.json", say)
    except OSError as error:
        raise Refused(
            f"model.repo={folder}: {error.filename} cannot be read ({error.strerror}); correct its "
            "permissions, or copy the checkpoint again."
        ) from error
    return Checkpoint(str(folder), revision, folder, CheckpointKind.local)


def _resolve_hub(model: ModelConfig, hub_cache: Path) -> Checkpoint:
    repo = str(model.repo)
    record = _read_record(repo)
    store = store_folder(hub_cache, repo)
    commit = _commit(store, model.revision or record.get("commit") or "main")
    folder = store / "snapshots" / commit if commit else None
    if folder is not None:
        sizes = record.get("snapshots", {}).get(commit)
        is_recorded = bool(sizes) and has_sizes(folder, sizes)
        # A size says nothing of what is inside; what has some MiB was read when it was fetched.
        without = replaced(model.replaces_transformer)
        if (is_recorded or not sizes) and not find_faults(folder, not is_recorded, without):
            check_task(folder, model, repo)
        else:
            folder = None
    return Checkpoint(repo, commit, folder, CheckpointKind.hub)


def store_folder(hub_cache: Path, repo: str) -> Path:
    """Return a repository's folder in a cache of huggingface_hub (guide "manage-cache")."""
    return hub_cache / f"models--{repo.replace('/', '--')}"


def _commit(store: Path, revision: str) -> str | None:
    """Return the commit that a branch or tag stood for when it was last fetched, or None.

    Read by hand: what huggingface_hub offers for it names no commit of which no file is here yet,
    and takes a second to import.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    with suppress(OSError, ValueError):
        commit = read_text(store / "refs" / revision, _MAX_REF_BYTES).strip()
        return commit if _COMMIT.fullmatch(commit) else None
    return None


def _record_file(repo: str) -> Path:
    return cache_root() / "checkpoints" / f"{repo.replace('/', '--')}.json"


def _read_record(repo: str) -> dict[str, Any]:
    """Return what `_record` noted; what is damaged counts as not noted."""
    try:
        stored = read_json(_record_file(repo))
    except (OSError, ValueError):
        return {}
    record = dict(stored) if isinstance(stored, dict) else {}
    if not _COMMIT.fullmatch(str(record.get("commit"))):
        record.pop("commit", None)
    snapshots = record.get("snapshots")
    record["snapshots"] = {
        commit: sizes
        for commit, sizes in (snapshots.items() if isinstance(snapshots, dict) else ())
        if isinstance(sizes, dict) and all(isinstance(size, int) for size in sizes.values())
    }
    return record


def record_fetched(repo: str, revision: str | None, commit: str, sizes: dict[str, int]) -> None:
    """Note what was fetched; the commit becomes the default unless one was asked for in full.

    Args:
        repo: Hub id.
        revision: As it was asked for.
        commit: What it stood for.
        sizes: Of the files that are there, by name; empty notes the commit alone.
    """
    record = _read_record(repo)
    if revision is None or not _COMMIT.fullmatch(revision):
        record["commit"] = commit
    record["repo"] = repo
    record["fetched_at"] = datetime.now(timezone.utc).isoformat()
    if sizes:
        record.setdefault("snapshots", {})[commit] = sizes
    write_json(_record_file(repo), record)


def replaced(has_own: bool) -> tuple[str, ...]:
    """Return the components whose weights are not needed."""
    return ("transformer",) if has_own else ()


def some(faults: list[str]) -> str:
    """Return the first faults, and how many more there are."""
    return "; ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
