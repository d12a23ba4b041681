"""Checks before anything is touched: free disk, permissions, licence.

A run is refused if no clip could be rendered, and warned if only the last ones could not.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.errors import ADVICE, EXIT_STOPPED, Refused
from hv15_batch.forecast.disk import DiskNeed, disk_need
from hv15_batch.machine.cards import EXAMPLE
from hv15_batch.machine.machine import (
    Machine,
    compiler_fault,
    existing_parent,
    free_disk_bytes,
)
from hv15_batch.media.conversion import note_lines
from hv15_batch.model.linears import transformer_bytes
from hv15_batch.model.shapes import (
    IMAGE_ENCODER_BYTES,
    SMALL_ENCODERS_BYTES,
    TEXT_ENCODER_BYTES,
    TRANSFORMER_BYTES,
    TRANSFORMER_REST_BYTES,
    VAE_BYTES,
)
from hv15_batch.model.variant import OffloadKind, Task, Weights
from hv15_batch.official.limits import is_official
from hv15_batch.planning.todo import Todo
from hv15_batch.run.prepare import Asked, lacks_weights
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import MIB, format_gib
from hv15_batch.weights.checkpoint import (
    Checkpoint,
    CheckpointKind,
    cache_root,
    store_folder,
    tiny_root,
)
from hv15_batch.weights.fetch import LICENCE
from hv15_batch.weights.files import find_licences
from hv15_batch.weights.hub import hub_cache_folder

_PROBE_BYTES = MIB
"""Written and deleted, because the free space of a disk does not show a quota."""


@dataclass(frozen=True)
class Findings:
    """What a look at disk, permissions and weights found."""

    refusals: tuple[str, ...]
    """Why nothing could be rendered, each with what to do."""
    notes: tuple[str, ...]
    """What the user should know before the night."""
    shortages: tuple[str, ...] = ()
    """Those of the refusals that more room on a disk would lift."""


def check_measuring(asked: Asked, todo: Todo, machine: Machine) -> None:
    """Check what a measurement and a typed compilation need of models and machine.

    Raises:
        Refused: Something is missing.
    """
    if (fault := measuring_fault(asked, todo, machine)) is not None:
        raise Refused(fault)


def measuring_fault(asked: Asked, todo: Todo, machine: Machine) -> str | None:
    """Return why a measurement or a typed compilation is not possible here, or None."""
    config, rendering = asked.config, [own.model.weights for own, _ in asked.models(todo)]
    if not rendering:
        return None
    has_full = not all(weights.is_small for weights in rendering)
    if config.benchmark.calibrate and not (has_full and machine.gpus):
        lacking = "none is visible here" if has_full else "this model is small"
        return (
            f"benchmark.calibrate=true: measures a full-size model on a CUDA card, and {lacking}; "
            f"to predict for a card by its name use --dry-run runtime.card={EXAMPLE}."
        )
    if machine.gpus and typed_compile(config) and has_full and (fault := compiler_fault()):
        return f"runtime.compile=true: {fault}, or type runtime.compile=false."
    return None


@dataclass(frozen=True)
class _Claim:
    """Something large that a run writes into a folder."""

    folder: Path
    what: str
    bytes: int
    remedy: str
    """The variable that names another folder."""

    @property
    def written_by(self) -> str:
        """The variable to name if the folder cannot be written: the wider one if neither is set."""
        is_hub = self.remedy == "HF_HUB_CACHE" and self.remedy not in os.environ
        return "HF_HOME" if is_hub else self.remedy


def refuse_or_note(
    asked: Asked, todo: Todo, offloads: Collection[OffloadKind], num_workers: int = 1
) -> tuple[str, ...]:
    """Return the notes to print before a run starts.

    Args:
        asked: Settings, weights and run directory.
        todo: The clips to render.
        offloads: The chosen profiles.
        num_workers: How many render at a time on this machine.

    Raises:
        Refused: Not even the first clips could be rendered.
    """
    findings = find_hindrances(asked, todo, offloads, num_workers)
    if findings.refusals:
        raise Refused("\n".join(findings.refusals))
    return findings.notes


def find_hindrances(
    asked: Asked, todo: Todo, offloads: Collection[OffloadKind] = (), num_workers: int = 1
) -> Findings:
    """Look at disk, permissions and licence before weights are fetched or a file is written.

    Nothing is left behind, because the test files have no name.

    Args:
        asked: Settings, weights and run directory.
        todo: The clips to render.
        offloads: The chosen profiles, where they are known.
        num_workers: How many render at a time on this machine.
    """
    config, run_dir = asked.config, asked.run_dir
    need = disk_need(todo.to_render, config, num_workers)
    others = _weights_claims(asked, todo) if lacks_weights(asked, todo) else []
    for own, checkpoint in asked.models(todo):
        others += _conversion_claims(own, checkpoint)
    if OffloadKind.stream_disk in offloads:
        others.append(_blocks_claim(config, num_workers))
    refusals = [_run_dir_fault(run_dir), run_dir.lock_fault()]
    refusals += [_write_fault(claim.folder, claim.written_by, _PROBE_BYTES) for claim in others]
    refusals += _cache_faults(asked, todo)
    shortages, notes = _disk_findings(config, run_dir, need, others)
    notes += licence_notes(c for _, c in asked.models(todo)) + _place_notes(run_dir)
    rows = [asked.manifest.rows[n] for n in sorted({p.clip.row_index for p in todo.to_render})]
    told = ((row.image or "", note) for row in rows for note in row.image_notes)
    notes += note_lines(told)
    faults = tuple(fault for fault in (*refusals, *shortages) if fault)
    return Findings(faults, tuple(notes), tuple(shortages))


def disk_fault(path: Path, need: DiskNeed) -> str | None:
    """Return why no further clip may start: the disk has no room for it and those being written."""
    free = free_disk_bytes(path)
    if free >= need.next_bytes:
        return None
    return (
        f"disk full: {format_gib(free, 2)} GiB free at {path}, and the next clip needs "
        f"{format_gib(need.next_bytes, 2)} to be written safely"
    )


_OURS = (CheckpointKind.tiny, CheckpointKind.demo)
"""Under this package's own licence."""


def licence_notes(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """Return a line for each folder of weights without their licence."""
    kept = (c.folder for c in checkpoints if c.kind not in _OURS)
    folders = dict.fromkeys(folder for folder in kept if folder is not None)
    return [
        f"Licence: no licence file lies beside the weights in {folder}; {LICENCE}"
        for folder in folders
        if not find_licences(folder)
    ]


# -- disk -------------------------------------------------------------------------------------


def _disk_findings(
    config: Config, run_dir: RunDir, need: DiskNeed, others: Sequence[_Claim]
) -> tuple[list[str], list[str]]:
    """Return refusals and notes about free space, disk by disk."""
    refusals, notes = [], []
    free = free_disk_bytes(run_dir.path)
    here = [claim for claim in others if _is_same_disk(claim.folder, run_dir.path)]
    room = free - sum(claim.bytes for claim in here)
    beside = "".join(f", beside {format_gib(c.bytes, 2)} GiB of {c.what}" for c in here)
    if room < need.start_bytes:
        refusals.append(
            f"run_dir={run_dir.path}: {format_gib(free, 2)} GiB free on its disk, and the first "
            f"clips need {format_gib(need.start_bytes, 2)} GiB to be written safely{beside}; free "
            "some, or name a folder on another disk with run_dir=DIR."
        )
    elif run_dir.url is None and (clips := need.count_clips(room)) < len(need.clip_bytes):
        latents = ", keep_latents=false" if config.keep_latents else ""
        notes.append(
            f"WARNING: the disk of {run_dir.path} has {format_gib(free, 2)} GiB free and the whole "
            f"plan needs about {format_gib(need.plan_bytes, 2)} GiB{beside}: the run will stop "
            f"after about {clips} of {len(need.clip_bytes)} clips, with code 4; free some before "
            "then, or type "
            f"limit={clips}{latents} or run_dir=DIR on another disk."
        )
    elsewhere = [claim for claim in others if claim not in here]
    while elsewhere:
        claim, *rest = elsewhere
        same = [claim, *(c for c in rest if _is_same_disk(c.folder, claim.folder))]
        elsewhere = [other for other in rest if other not in same]
        free = free_disk_bytes(claim.folder)
        if free < sum(other.bytes for other in same):
            each = " and ".join(f"{format_gib(c.bytes, 2)} GiB of {c.what}" for c in same)
            refusals.append(
                f"the disk of {existing_parent(claim.folder)} has {format_gib(free, 2)} GiB free, "
                f"and {each} go there; free some, or set "
                f"{' and '.join(dict.fromkeys(c.remedy for c in same))} to a folder on a larger "
                "disk."
            )
    return refusals, notes


def _weights_claims(asked: Asked, todo: Todo) -> list[_Claim]:
    """Return the downloads, by the sizes of the classes: the hub is not asked yet."""
    needed: dict[str, int] = {}
    for config, checkpoint in asked.models(todo):
        model = config.model
        if checkpoint.folder is None and model.weights is Weights.pretrained:
            size = VAE_BYTES + TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES
            size += IMAGE_ENCODER_BYTES * (model.task is Task.i2v)
            size += TRANSFORMER_BYTES * (not model.replaces_transformer)
            needed[checkpoint.repo] = max(size, needed.get(checkpoint.repo, 0))
    total = sum(max(size - _bytes_there(repo), 0) for repo, size in needed.items())
    lacking = {
        str(c.lacking.repo)
        for config, c in asked.models(todo)
        if c.lacking is not None and not config.model.weights.is_small
    }
    total += sum(max(TRANSFORMER_BYTES - _bytes_there(repo), 0) for repo in lacking)
    return [_Claim(hub_cache_folder(), "weights to be fetched", total, "HF_HUB_CACHE")]


def _bytes_there(repo: str) -> int:
    """Return what the hub's cache holds of a repository, unfinished downloads included."""
    blobs = store_folder(hub_cache_folder(), repo) / "blobs"
    with suppress(OSError):
        return sum(p.stat().st_size for p in blobs.iterdir()) if blobs.is_dir() else 0
    return 0


def _conversion_claims(config: Config, checkpoint: Checkpoint) -> list[_Claim]:
    """Return what a transformer in one file becomes, unless it was converted before."""
    own, needed = checkpoint.transformer, 0
    if own is not None and not own.is_made:
        needed = own.num_bytes
    elif checkpoint.lacking is not None and not config.model.weights.is_small:
        needed = TRANSFORMER_BYTES
    if not needed:
        return []
    folder = cache_root() / "transformers"
    return [_Claim(folder, "the converted transformer", needed, "XDG_CACHE_HOME")]


def _blocks_claim(config: Config, num_workers: int) -> _Claim:
    num_bytes = num_workers * (transformer_bytes(config.runtime.linear) - TRANSFORMER_REST_BYTES)
    what = "the transformer's blocks (offload=stream_disk)"
    return _Claim(cache_root() / "blocks", what, num_bytes, "XDG_CACHE_HOME")


def _place_notes(run_dir: RunDir) -> list[str]:
    """Return a line for each folder of the run that is a link."""
    return [
        f"{run_dir.path / name} is a link to {target}: files are written there, and what an "
        "interrupted run leaves there is not removed."
        for name, target in run_dir.linked_folders()
    ]


def _is_same_disk(one: Path, other: Path) -> bool:
    return existing_parent(one).stat().st_dev == existing_parent(other).stat().st_dev


# -- permissions ------------------------------------------------------------------------------


def _cache_faults(asked: Asked, todo: Todo) -> list[str | None]:
    """Return faults of the folders that a worker writes outside the run directory.

    Each fault would end every worker before its first clip, or fail every clip.
    """
    models = list(asked.models(todo))
    checkpoints = [checkpoint for _, checkpoint in models]
    tiny = [c for c in checkpoints if c.kind is CheckpointKind.tiny]
    is_tiny = len(tiny) == len(checkpoints)
    places: list[tuple[Path, str]] = []
    if any(c.folder is None for c in tiny):
        places.append((tiny_root(), "XDG_CACHE_HOME"))
    if lacks_weights(asked, todo):
        places.append((cache_root() / "checkpoints", "XDG_CACHE_HOME"))
    if is_official(asked.config):
        return []  # its own environment decides what it writes
    if not is_tiny:
        places.append((_triton_cache(), "TRITON_CACHE_DIR"))
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as error:
        return [
            f"no folder for temporary files can be written ({error.strerror}); set TMPDIR to a "
            "folder that can."
        ]
    if not is_tiny and (typed_compile(asked.config) or any(_may_compile(own) for own, _ in models)):
        kernels = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        places.append((Path(kernels or temporary), "TORCHINDUCTOR_CACHE_DIR"))
    return [_write_fault(folder, variable, 0) for folder, variable in places]


def _may_compile(config: Config) -> bool:
    """Whether `runtime.compile=auto` may compile; it does not on the CPU."""
    return typed_compile(config) is None and not config.model.weights.is_small


def _triton_cache() -> Path:
    """Return where Triton keeps kernels.

    Source: triton.knobs.cache_knobs: TRITON_CACHE_DIR, or below TRITON_HOME or the home folder.
    """
    folder = os.environ.get("TRITON_CACHE_DIR")
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    return Path(folder or Path(home) / ".triton" / "cache")


def _run_dir_fault(run_dir: RunDir) -> str | None:
    """Return the first reason why a run could not write where it has to."""
    whole, *parts = run_dir.written_folders()
    faults = itertools.chain(
        (_write_fault(whole, "run_dir", _PROBE_BYTES),),
        (_write_fault(folder, "run_dir", 0) for folder in parts if folder.is_dir()),
    )
    return next(filter(None, faults), None)


def _write_fault(folder: Path, name: str, num_bytes: int) -> str | None:
    """Return why no file can be made in a folder, or in its nearest parent that exists.

    A file is really written, because mode bits and free blocks do not show a quota, a squashed
    root or an immutable folder.
    """
    is_new = True
    try:
        is_new = not folder.exists()
        with tempfile.TemporaryFile(dir=existing_parent(folder)) as file:
            file.write(b"\0" * num_bytes)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return f"{name}={folder}: its disk is full; free some space, then run again."
        advice = ADVICE.get(error.errno or 0)
        is_sick = advice is not None and advice.exit_code == EXIT_STOPPED
        if advice is not None and is_sick and error.errno != errno.EDQUOT:
            return f"{name}={folder}: {error.strerror}; {advice.text}."
        verb = "made" if is_new else "written"
        setting = "with run_dir=DIR" if name == "run_dir" else f"with the variable {name}"
        return (
            f"{name}={folder}: cannot be {verb} ({error.strerror}); name a folder that can be "
            f"written {setting}."
        )
    return None
