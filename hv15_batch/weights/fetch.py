"""Fetch what is missing of a checkpoint from the hub, and verify it.

Torch-free. The only place that downloads weights.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.machine.machine import existing_parent, free_disk_bytes
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import GIB, format_gib
from hv15_batch.weights.checkpoint import (
    Checkpoint,
    CheckpointKind,
    Say,
    cache_root,
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

    An interrupted download resumes where it was. Nothing happens for weights that are complete,
    and none are downloaded for tiny, demo and random ones.

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
    if found.kind is not CheckpointKind.hub:
        return found
    if found.folder is not None and found.revision is not None and not check_sha256:
        record_fetched(model, found.revision, file_sizes(found.folder))
        return found
    check_online(model.name, environ)
    api = hub or open_hub()
    wanted = found.revision or model.revision
    info = ask_hub(
        lambda: api.model_info(found.repo, revision=wanted, files_metadata=True),
        found.repo,
        wanted,
        say,
        sleep=sleep,
    )
    commit = str(info.sha)
    own = model.transformer_file is not None
    files = {
        f.rfilename: f
        for f in info.siblings
        if is_loaded(f.rfilename) and not (own and _TRANSFORMER_WEIGHTS.match(f.rfilename))
    }
    folder = store_folder(hub_cache, found.repo) / "snapshots" / commit
    _announce(found.repo, commit, files, folder, hub_cache, say)
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
    record_fetched(model, commit, {name: file.size for name, file in files.items()})
    say(f"complete and verified: {folder}")
    return replace(found, revision=commit, folder=folder)


def _announce(
    repo: str, commit: str, files: dict[str, Any], folder: Path, hub_cache: Path, say: Say
) -> None:
    """Say what comes from where to where, and refuse a disk that is too small."""
    total = sum(file.size for file in files.values())
    missing = sum(f.size for name, f in files.items() if not has_sizes(folder, {name: f.size}))
    free = free_disk_bytes(hub_cache)
    sizes = f"{format_gib(total)} GiB, {format_gib(missing)} GiB to download"
    say(f"{repo} at {commit[:12]}: {len(files)} files, {sizes}")
    say(f"into {hub_cache} ({format_gib(free)} GiB free)")
    say(LICENCE)
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
    faults = find_faults(folder, without=replaced(has_own))
    if faults:
        damaged = {folder / fault.split(" ")[0] for fault in faults}
        stored = sorted(str(path.resolve()) for path in damaged if path.is_file())
        advice = f"; delete {some(stored)} and run again" if stored else ""
        raise Refused(f"{repo} is not a complete checkpoint: {some(faults)}{advice}.")
