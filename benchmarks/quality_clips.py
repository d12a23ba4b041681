"""Clips of a setting: rendered by the program itself, measured beside another's, read by rules."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from obedience import PROMPTS, asked_of, read_frames, score, write_manifest
from pandas import isna

from hv15_batch import Refused, read_log
from training.reading import read_clip

ATTRIBUTES = ("color", "place", "direction", "motion", "shape", "letters")
_SAME_NOISE = Path(__file__).resolve().parent / "same_noise"
NOT_YET = "not run yet"
IN_EFFECT = ("dtype", "linear", "attention_backend", "mask_free", "compiled", "offload", "cache")
MACHINE = ("gpu_name", "driver_version", "torch_version", "diffusers_version", "hv15_batch_version")
WORDS = ("video.codec=ffv1", "keep_latents=false", "sampling.seeds=0,1")
"""Of every run: lossless frames; the first seed of every prompt, then the second."""


@dataclass(frozen=True)
class Setting:
    """A row of the table."""

    name: str
    words: tuple[str, ...] = ()
    """What is typed, beside the defaults of the model."""
    beside: str = ""
    """Name of the setting whose frames it is compared with."""
    clips: int = 2 * PROMPTS
    """At most so many, where a clip is slow or fewer say enough."""
    model: str = "demo_t2v"

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")


@dataclass
class Row:
    """What was found of a setting.

    Attributes:
        setting: what it is.
        clips: of each row and seed: `right`, `error` (mean square error beside the other setting's
            frames, in steps of 8 bits; None without one) and `frames` (their SHA-256).
        reason: why there are fewer than asked for, or none.
        in_effect: what the log says of the first clip.
    """

    setting: Setting
    clips: dict[tuple[str, str], dict[str, Any]]
    reason: str
    in_effect: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return how many clips have each attribute, and of how many it was asked."""
        rights = [clip["right"] for clip in self.clips.values()]
        asked = {name: [r[name] for r in rights if name in r] for name in ATTRIBUTES}
        return {name: (sum(values), len(values)) for name, values in asked.items()}

    def psnr_db(self) -> list[float]:
        """Return the PSNR of every clip that was compared; infinite for the same frames."""
        errors = [clip["error"] for clip in self.clips.values() if clip["error"] is not None]
        return [10 * math.log10(255**2 / e) if e else math.inf for e in errors]


def render(setting: Setting, out: Path, clips: int, free: Queue[set[int]], end: float) -> None:
    """Render a setting's first clips through the program, as far as they are not there yet.

    What it prints goes to a file beside the run directory.

    Args:
        setting: what to type.
        out: folder with the manifests and one run directory for each setting.
        clips: how many.
        free: cores for one job each. Without cores of their own, runs side by side wait for each
            other at every step of the maths, and take ten times as long.
        end: of `time.monotonic()`; then the run is stopped, and can be resumed.
    """
    missing = clips - len(finished(out / setting.folder))
    if missing <= 0 or time.monotonic() >= end:
        return
    asked = [f"manifest={out / setting.model}.csv", f"model={setting.model}", f"limit={missing}"]
    words = [*asked, f"run_dir={out / setting.folder}", *WORDS, *setting.words]
    cores = free.get()
    with (out / f"{setting.folder}.txt").open("w", encoding="utf-8") as said:
        path = os.pathsep.join([str(_SAME_NOISE), *filter(None, [os.environ.get("PYTHONPATH")])])
        run = subprocess.Popen(
            [sys.executable, "-m", "hv15_batch", *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
        )
        os.sched_setaffinity(run.pid, cores)  # its worker and threads come later, and inherit it
        try:
            run.wait(None if math.isinf(end) else max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            run.terminate()  # the clip in hand is logged as interrupted
            try:
                run.wait(60)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
        finally:
            free.put(cores)


def finished(folder: Path) -> list[dict[str, str]]:
    """Return the rows of `clips.csv` that have frames, in the order in which they are asked for."""
    try:
        with (folder / "clips.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["status"] in ("ok", "suspect")]
    except FileNotFoundError:
        return []
    return sorted(rows, key=lambda row: (int(row["seed"]), int(row["row_index"])))


def reason_of(out: Path, setting: Setting) -> str:
    """Return why a setting has no clips: the last error of its log, or the last line printed."""
    try:
        errors = read_log(out / setting.folder)["error_message"].dropna()
        if len(errors):
            return str(errors.iloc[-1]).splitlines()[0]
    except Refused:  # no run was begun
        pass
    try:
        said = (out / f"{setting.folder}.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return NOT_YET
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "stopped before it said anything"


def write_spread_manifest(out: Path, model: str) -> None:
    """Write the prompts so that the first eight show all places; with first frames for I2V."""
    file = out / f"{model}.csv"
    if file.exists():
        return
    write_manifest(file, model == "demo_i2v")
    with file.open(encoding="utf-8", newline="") as table:
        head, *rows = csv.reader(table)
    stride = len(rows) // 8
    with file.open("w", encoding="utf-8", newline="") as table:
        spread = [row for first in range(stride) for row in rows[first::stride]]
        csv.writer(table).writerows([head, *spread])


# -- looking ----------------------------------------------------------------------------------

_device = torch.device("cpu")


def begin_reader(device: str) -> None:
    """Prepare a process that looks at clips."""
    global _device
    torch.set_num_threads(1)
    _device = torch.device(device)


def measure(file: Path, other: Path | None) -> tuple[str, float | None]:
    """Return the SHA-256 of a clip's frames, and their mean square error beside another's."""
    frames = read_frames(file)
    error = None
    if other is not None:
        error = float((frames - read_frames(other)).mul(127.5).double().square().mean())
        error = 0.0 if error < 1e-9 else error  # of the way from 8 bits to -1..1 and back
    return hashlib.sha256(frames.numpy().tobytes()).hexdigest(), error


def read(file: Path, asked: dict[str, str]) -> dict[str, bool]:
    """Return which attributes a clip has."""
    frames = read_frames(file).to(_device)
    reading = read_clip(frames, len(asked["word"]))
    reading.track = reading.track.cpu()
    return score(asked, reading)


class Looks:
    """What was measured and read of clips before, kept in a file; nothing is looked at twice."""

    def __init__(self, out: Path, readers: Executor) -> None:
        self._out, self._readers = out, readers
        self._file = out / "looks.json"
        self._known: dict[str, Any] = {}
        if self._file.exists():
            self._known = json.loads(self._file.read_text(encoding="utf-8"))

    def look(self, setting: Setting, clips: int, other: str) -> Row:
        """Return the row of a setting.

        Args:
            setting: what it is.
            clips: how many were asked for.
            other: run directory that it is compared with; empty for none.
        """
        folder = self._out / setting.folder
        rows = {(row["row_id"], row["seed"]): row for row in finished(folder)[:clips]}
        reason = "" if len(rows) == clips else f"{len(rows)} of {clips} clips"
        reason = reason if rows else reason_of(self._out, setting)
        beside = {(row["row_id"], row["seed"]): row["file"] for row in finished(self._out / other)}
        files = {key: folder / row["file"] for key, row in rows.items()}
        others = {
            key: self._out / other / beside[key] if other and key in beside else None
            for key in rows
        }
        measured = self._all(measure, [(files[key], others[key]) for key in rows])
        # Equal frames of one prompt are read once, whatever made them.
        reads = {
            f"{key[0]} {frames}": (files[key], asked_of(rows[key]))
            for key, (frames, _) in zip(rows, measured, strict=True)
        }
        rights = dict(zip(reads, self._all(read, list(reads.values()), list(reads)), strict=True))
        clips_of = {
            key: {"right": rights[f"{key[0]} {frames}"], "error": error, "frames": frames}
            for key, (frames, error) in zip(rows, measured, strict=True)
        }
        self._file.write_text(json.dumps(self._known), encoding="utf-8")
        return Row(setting, clips_of, reason, in_effect(folder) if rows else {})

    def _all(
        self, function: Any, calls: Sequence[tuple[Any, ...]], names: Sequence[str] = ()
    ) -> list[Any]:
        """Return a function's results, those that are known from before."""
        keys = list(names) or [" ".join(map(self._stamp, call)) for call in calls]
        new = {key: call for key, call in zip(keys, calls, strict=True) if key not in self._known}
        for key, future in [(k, self._readers.submit(function, *c)) for k, c in new.items()]:
            self._known[key] = future.result()
        return [self._known[key] for key in keys]

    def _stamp(self, file: Path | None) -> str:
        """Return what changes when a file does."""
        if file is None:
            return "-"
        return f"{file.relative_to(self._out)}@{file.stat().st_mtime_ns}"


def in_effect(folder: Path) -> dict[str, Any]:
    """Return what the log says of a run's machine and settings."""
    first = read_log(folder).iloc[0]
    found = {name: first[name] for name in (*IN_EFFECT, *MACHINE)}
    return {name: None if isna(value) else str(value) for name, value in found.items()}
