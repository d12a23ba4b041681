"""Fetch what is missing of a checkpoint from the hub, and verify it.

Torch-free. The only place that downloads weights.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.machine.machine import existing_parent, free_disk_bytes
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import GIB, counted, format_gib
from hv15_batch.weights.checkpoint import (
    Checkpoint,
    CheckpointKind,
    Say,
    cache_root,
    hub_file_commit,
    hub_file_path,
    record_fetched,
    replaced,
    resolve_checkpoint,
    some,
    store_folder,
)
from hv15_batch.weights.configs import LOADED_SUFFIXES
from hv15_batch.weights.files import (
    LICENCE_NAMES,
    check_task,
    file_sha256s,
    file_sizes,
    find_faults,
    has_sizes,
    is_loaded,
)
from hv15_batch.weights.hub import (
    DOWNLOAD_WAITS_SECONDS,
    Hub,
    ask_hub,
    check_online,
    hub_cache_folder,
    open_hub,
)

PATTERNS = [f"*{suffix}" for suffix in LOADED_SUFFIXES] + list(LICENCE_NAMES)
"""What is downloaded: the licence too; never pickled weights (.bin, .pt), which can run code."""
LICENCE = (
    "the weights have their own licence (Tencent Hunyuan Community License, whose territory leaves "
    "out the European Union, the United Kingdom and South Korea); read it at "
    "https://huggingface.co/tencent/HunyuanVideo-1.5"
)
_LICENCE_OF_FILE = (
    "its licence is on https://huggingface.co/{repo}, and that of HunyuanVideo-1.5 applies too"
)
SPARE_BYTES = GIB
"""Disk that must stay free after a download."""
_TRANSFORMER_WEIGHTS = re.compile(r"transformer/[^/]*\.safetensors")


def fetch(
    model: ModelConfig,
    *,
    say: Say,
    hub: Hub | None = None,
    hub_cache: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
    check_sha256: bool = False,
) -> Checkpoint:
    """Return a model's checkpoint, downloading what is missing of it, and record its commit.

    An interrupted download resumes where it was. Nothing happens for weights that are complete.
    Tiny, demo and random ones are made here: of those only `model.transformer_hub` is downloaded.

    Args:
        model: The model option.
        say: Prints a line for the user.
        hub: Stands for the hub; None for `huggingface_hub.HfApi()`.
        hub_cache: Cache of huggingface_hub; None for its own.
        environ: Environment; HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE are read.
        sleep: Waits between attempts.
        check_sha256: Also read every weight file and compare its hash with the hub's.

    Raises:
        Refused: offline, disk short, refused by the hub, no network, or damaged files.
    """
    hub_cache = hub_cache or hub_cache_folder()
    found = resolve_checkpoint(model, say=say, hub_cache=hub_cache)
    online = _Online(model, hub, hub_cache, say, environ, sleep, check_sha256)
    if found.kind is CheckpointKind.hub:
        found = _fetch_checkpoint(found, online)
    if model.has_hub_transformer:
        found = _fetch_transformer(found, online)
    return found


@dataclass(frozen=True)
class _Online:
    """What is needed to ask the hub for a model."""

    model: ModelConfig
    hub: Hub | None
    hub_cache: Path
    say: Say
    environ: Mapping[str, str]
    sleep: Callable[[float], None]
    check_sha256: bool


def _fetch_checkpoint(found: Checkpoint, online: _Online) -> Checkpoint:
    """Return a checkpoint of the hub with all its files."""
    model, say, hub_cache, sleep = online.model, online.say, online.hub_cache, online.sleep
    check_sha256 = online.check_sha256
    if found.folder is not None and found.revision is not None and not check_sha256:
        record_fetched(found.repo, model.revision, found.revision, file_sizes(found.folder))
        return found
    check_online(model.name, online.environ)
    api = online.hub or open_hub()
    wanted = found.revision or model.revision
    info = ask_hub(
        lambda: api.model_info(found.repo, revision=wanted, files_metadata=True),
        found.repo,
        wanted,
        say,
        sleep=sleep,
    )
    commit = str(info.sha)
    own = model.replaces_transformer
    files = {
        f.rfilename: f
        for f in info.siblings
        if is_loaded(f.rfilename) and not (own and _TRANSFORMER_WEIGHTS.match(f.rfilename))
    }
    folder = store_folder(hub_cache, found.repo) / "snapshots" / commit
    _announce(found.repo, commit, files, folder, hub_cache, say, LICENCE)
    ask_hub(
        lambda: api.snapshot_download(
            found.repo,
            revision=commit,
            cache_dir=str(hub_cache),
            allow_patterns=[*files, *LICENCE_NAMES] if own else PATTERNS,
        ),
        found.repo,
        commit,
        say,
        DOWNLOAD_WAITS_SECONDS,
        sleep,
    )
    _verify(found.repo, folder, files, check_sha256, say, own)
    check_task(folder, model, found.repo)
    sizes = {name: file.size for name, file in files.items()}
    record_fetched(found.repo, model.revision, commit, sizes)
    say(f"complete and verified: {folder}")
    return replace(found, revision=commit, folder=folder)


def _fetch_transformer(found: Checkpoint, online: _Online) -> Checkpoint:
    """Return a checkpoint with the transformer of `model.transformer_hub`."""
    model, say, hub_cache = online.model, online.say, online.hub_cache
    source = model.transformer_hub
    repo, name = str(source.repo), str(source.file)
    known = hub_file_commit(source, hub_cache)
    if found.transformer is not None and known is not None and not online.check_sha256:
        record_fetched(repo, source.revision, known, {})
        return found
    check_online(model.name, online.environ)
    api = online.hub or open_hub()
    wanted = known or source.revision
    setting = "model.transformer_hub"
    info = ask_hub(
        lambda: api.model_info(repo, revision=wanted, files_metadata=True),
        repo,
        wanted,
        say,
        sleep=online.sleep,
        setting=setting,
    )
    commit = str(info.sha)
    files = {f.rfilename: f for f in info.siblings if f.rfilename == name}
    if not files:
        raise Refused(
            f"{setting}.file={name}: {repo} has no such file at {commit[:12]}; its files are on "
            f"https://huggingface.co/{repo}/tree/{commit}."
        )
    there = None if files[name].lfs is None else files[name].lfs.sha256
    if source.sha256 is not None and there not in (None, source.sha256):
        raise Refused(
            f"{setting}.sha256={source.sha256}: {name} of {repo} at {commit[:12]} has the SHA-256 "
            f"{there}; name the commit that has it with {setting}.revision=COMMIT, or take that "
            f"content with {setting}.sha256=null."
        )
    path = hub_file_path(source, hub_cache, commit)
    licence = _LICENCE_OF_FILE.format(repo=repo)
    _announce(repo, commit, files, path.parents[name.count("/")], hub_cache, say, licence)
    ask_hub(
        lambda: api.snapshot_download(
            repo,
            revision=commit,
            cache_dir=str(hub_cache),
            allow_patterns=[name, *LICENCE_NAMES],
        ),
        repo,
        commit,
        say,
        DOWNLOAD_WAITS_SECONDS,
        online.sleep,
        setting,
    )
    # Its hash is part of every clip's identity, so it is read in any case.
    _check_files(repo, {path: files[name]}, True, say)
    record_fetched(repo, source.revision, commit, {})
    say(f"complete and verified: {path}")
    complete = resolve_checkpoint(model, say=say, hub_cache=hub_cache)
    return replace(complete, revision=found.revision, folder=found.folder)


def _announce(
    repo: str,
    commit: str,
    files: dict[str, Any],
    folder: Path,
    hub_cache: Path,
    say: Say,
    licence: str,
) -> None:
    """Say what comes from where to where, and refuse a disk that is too small."""
    total = sum(file.size for file in files.values())
    missing = sum(f.size for name, f in files.items() if not has_sizes(folder, {name: f.size}))
    free = free_disk_bytes(hub_cache)
    sizes = f"{format_gib(total)} GiB, {format_gib(missing)} GiB to download"
    say(f"{repo} at {commit[:12]}: {counted(len(files), 'file')}, {sizes}")
    say(f"into {hub_cache} ({format_gib(free)} GiB free)")
    say(licence)
    if missing and missing + SPARE_BYTES > free:
        raise Refused(
            f"the disk of {existing_parent(hub_cache)} has {format_gib(free)} GiB free and {repo} "
            f"needs {format_gib(missing)} GiB and {format_gib(SPARE_BYTES)} GiB to spare; free "
            "some, or set HF_HUB_CACHE to a folder on a larger disk."
        )


def _verify(
    repo: str, folder: Path, files: dict[str, Any], check_sha256: bool, say: Say, has_own: bool
) -> None:
    """Check sizes, hashes when asked, and that the files make a checkpoint."""
    paths = {folder / name: file for name, file in files.items()}
    _check_files(repo, paths, check_sha256, say)
    faults = find_faults(folder, without=replaced(has_own))
    if faults:
        damaged = {folder / fault.split(" ")[0] for fault in faults}
        stored = sorted(str(path.resolve()) for path in damaged if path.is_file())
        advice = f"; delete {some(stored)} and run again" if stored else ""
        raise Refused(f"{repo} is not a complete checkpoint: {some(faults)}{advice}.")


def _check_files(repo: str, paths: Mapping[Path, Any], check_sha256: bool, say: Say) -> None:
    """Check that files are what the hub has, by size and when asked by hash.

    Raises:
        Refused: naming those that are not.
    """
    bad = [p for p, file in paths.items() if not has_sizes(p.parent, {p.name: file.size})]
    if check_sha256 and not bad:
        wanted = {path: file.lfs.sha256 for path, file in paths.items() if file.lfs is not None}
        found = file_sha256s(list(wanted), cache_root() / "file_sha256.json", say)
        bad = [path for path, sha256 in wanted.items() if found[path] != sha256]
    if bad:
        # The hub's cache holds links: only without the file behind it is one downloaded again.
        raise Refused(
            f"{len(bad)} of the files of {repo} are not what the hub has: "
            f"{some([str(path.resolve()) for path in bad])}; delete them and run again."
        )
