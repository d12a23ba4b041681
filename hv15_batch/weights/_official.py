"""What Tencent's generate.py renders with: its version, its model folder, its flags, as a name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.files import read_bytes, read_text
from hv15_batch.model.official import frame_flags
from hv15_batch.official.limits import script_of, weights_of
from hv15_batch.weights.files import file_sha256s

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_REF_BYTES = 4 * 1024 * 1024
_MAX_CODE_BYTES = 16 * 1024 * 1024
_MAX_DEPTH = 8
_MAX_FILES = 10_000
_NO_WEIGHTS = (".md", ".lock", ".metadata", ".png", ".jpg", ".pdf", ".gitattributes", ".py")
_IN_ROOT = (".json", ".safetensors")
"""What the loader reads of the model folder itself; notes beside them change no frame."""
_PARTS = ("vae", "scheduler", "text_encoder", "vision_encoder")


def engine_of(config: Config, cache_file: Path, say: Callable[[str], None]) -> str:
    """Return what identifies the script: `official@<commit> code=… ckpts=… flag=value …`.

    `code` is the hash of its Python files, because a checkout may be edited, and `ckpts` that of
    the model's files. Without a commit, `code` in full takes its place. Flags that change no frame
    are left out, and so are those at their default.

    Args:
        config: Settings, `model` being one that rows use.
        cache_file: Keeps hashes of files that did not change.
        say: Called with a line before large files are hashed.

    Raises:
        Refused: A file cannot be read.
    """
    official = config.official
    script, weights = script_of(official), weights_of(official)
    try:
        code = _hash_of(
            (path.relative_to(script.parent), _sha256(path)) for path in _code_files(script)
        )
        files = sorted(_weight_files(weights, config.model.name))
        hashes = file_sha256s(files, cache_file, say) if files else {}
        content = _hash_of((path.relative_to(weights), hashes[path]) for path in files)
    except OSError as error:
        raise Refused(
            f"official.repo={official.repo}: {error.filename} cannot be read ({error.strerror}); "
            "correct its permissions, or download it again."
        ) from error
    version = _commit_of(script.parent) or code[:40]
    words = [f"official@{version}", f"code={code[:16]}", f"ckpts={content[:16]}"]
    return " ".join([*words, *(flag.replace(" ", ",") for flag in frame_flags(official))])


def engine_state(config: Config) -> dict[Path, tuple[int, int]]:
    """Return size in bytes and time of change (ns) of each file that `engine_of` hashes.

    Raises:
        OSError: A file cannot be looked at.
    """
    script, weights = script_of(config.official), weights_of(config.official)
    files = (*_code_files(script), *_weight_files(weights, config.model.name))
    found = {path: path.stat() for path in files}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def _hash_of(named: Iterator[tuple[Path, str]]) -> str:
    total = hashlib.sha256()
    for path, sha256 in named:
        total.update(f"{path.as_posix()}\0{sha256}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, _MAX_CODE_BYTES)).hexdigest()


def _code_files(script: Path) -> list[Path]:
    """Return generate.py and the modules beside it, sorted."""
    found = [path for path in _files(script.with_name("hyvideo")) if path.suffix == ".py"]
    return [script, *sorted(found)]


def _weight_files(folder: Path, model: str) -> Iterator[Path]:
    """Yield the files that the script may load for a model."""
    for part in (*_PARTS, f"transformer/{model}"):
        yield from (p for p in _files(folder / part) if not p.name.endswith(_NO_WEIGHTS))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and entry.name.endswith(_IN_ROOT) and entry.name[0] != ".":
                yield Path(entry.path)


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the files below a folder, hidden ones left out; a linked folder counts as one."""
    if depth > _MAX_DEPTH or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > _MAX_FILES:
                return
            if entry.name[0] == "." or entry.name == "__pycache__":
                continue
            if entry.is_dir():
                yield from _files(Path(entry.path), depth + 1)
            elif entry.is_file():
                yield Path(entry.path)


def _commit_of(repo: Path) -> str | None:
    """Return the commit that is checked out; None where the folder is no checkout.

    Read by hand: no program is started to plan.
    """
    git = repo / ".git"
    with suppress(OSError, ValueError):
        if git.is_file():  # of a worktree
            git = repo / read_text(git, 4096).strip().removeprefix("gitdir: ")
        head = read_text(git / "HEAD", 4096).strip()
        if not head.startswith("ref: "):
            return head if _COMMIT.fullmatch(head) else None
        return _ref(git, head.removeprefix("ref: "))
    return None


def _ref(git: Path, name: str) -> str | None:
    """Return the commit of a branch, also where it is packed or of a worktree's repository."""
    folders = [git]
    with suppress(OSError, ValueError):
        folders.append(git / read_text(git / "commondir", 4096).strip())
    for folder in folders:
        with suppress(OSError, ValueError):
            commit = read_text(folder / name, 4096).strip()
            if _COMMIT.fullmatch(commit):
                return commit
        with suppress(OSError, ValueError):
            for line in read_text(folder / "packed-refs", _MAX_REF_BYTES).splitlines():
                commit, _, packed = line.partition(" ")
                if packed == name and _COMMIT.fullmatch(commit):
                    return commit
    return None
