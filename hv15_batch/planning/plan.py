"""Decides what to do with each clip: its state and the reason, and the order."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip, ClipLora, Group
from hv15_batch.config.options import config_of
from hv15_batch.config.settings import Config, FileCheck, Order
from hv15_batch.manifest.clips import resolve_clips
from hv15_batch.manifest.read import Manifest
from hv15_batch.manifest.rows import Row
from hv15_batch.manifest.weights import NO_LORAS, KnownWeights, lora_path
from hv15_batch.model.variant import ModelConfig
from hv15_batch.official.limits import is_official
from hv15_batch.planning._difference import (
    COMPARED,
    changes,
    describe_difference,
    settings_difference,
)
from hv15_batch.record import DONE_STATUSES, FAILED, INTERRUPTED, SUSPECT, columns
from hv15_batch.rundir.log import LogState, log_state, read_last_attempts
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import sha256_in
from hv15_batch.units import counted

FORCED = "force=true"
"""Why a clip is rendered again that is done."""
HISTORY_COLUMNS = tuple(
    dict.fromkeys(
        (
            *("settings_sha256", "row_id", "seed", "attempt", *COMPARED.values()),
            "image_sha256",
            *("prompt_original", "rewrite_model", "rewrite_template_sha256"),
            *(*columns("output"), *columns("outcome")),
        )
    )
)
"""Columns of the log that planning needs."""


class State(Enum):
    """What a planned clip is."""

    done = "done"
    new = "new"
    changed = "changed"
    """The row was rendered before with other settings."""
    retry = "retry"
    """The last attempt failed, was interrupted, its file is gone, or it is asked for again."""
    skipped = "skipped"
    """It begins with a frame of a clip that failed, is suspect, or is skipped itself."""


@dataclass(frozen=True)
class PlannedClip:
    """A clip of the current manifest and what is to be done about it."""

    clip: Clip
    state: State
    reason: str
    attempts: int
    """Attempts so far."""
    has_latents: bool
    """Its latents are saved."""
    use_latents: bool
    """Saved latents may be used: the clip is decoded from them without denoising."""
    has_result: bool
    """It has been rendered and its file is there, even if it is to be rendered again."""
    last: dict[str, Any] | None
    """The last attempt at these settings."""
    repeat: int | None = None
    """Number of a benchmark's repetition (`benchmark.py`); None for an ordinary clip."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state is State.done

    @property
    def is_skipped(self) -> bool:
        """Whether it cannot be rendered, because the clip that it follows could not."""
        return self.state is State.skipped

    @property
    def is_left(self) -> bool:
        """Whether a run is to render it."""
        return not (self.is_done or self.is_skipped)

    @property
    def is_from_latents(self) -> bool:
        """Whether rendering it is decoding its saved latents."""
        return self.has_latents and self.use_latents

    @property
    def is_suspect(self) -> bool:
        """Whether it has been rendered and looks black, flat, frozen or clipped."""
        return self.has_result and self.last is not None and self.last["status"] == SUSPECT


class History:
    """The last attempts of a run directory, by settings and by row."""

    def __init__(self, records: Sequence[dict[str, Any]], state: LogState = ()) -> None:
        """Index `rundir.log.read_last_attempts` with `HISTORY_COLUMNS`.

        Args:
            records: These.
            state: That of the log before they were read.
        """
        self.state = state
        self.by_settings = {r["settings_sha256"]: r for r in records}
        self._by_row: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for record in records:
            if record["status"] in DONE_STATUSES:
                self._by_row.setdefault((record["row_id"], record["seed"]), []).append(record)

    def earlier_clip_of_row(self, clip: Clip, current: set[str]) -> dict[str, Any] | None:
        """Return the finished clip that this one replaces, if any.

        Of several, it is the one that differs least; among equals, the newest.

        Args:
            clip: a clip that was never tried.
            current: `settings_sha256` of all clips of the manifest: those are not replaced.
        """
        records = reversed(self._by_row.get((clip.row_id, clip.settings.seed), ()))
        replaced = (r for r in records if r["settings_sha256"] not in current)
        return min(replaced, key=lambda r: len(changes(r, clip)), default=None)


def read_history(run_dir: RunDir, before: History | None = None) -> History:
    """Return the attempts in the log; those read before, if the log has not changed since."""
    state = log_state(run_dir.log)
    if before is not None and before.state == state:
        return before
    return History(read_last_attempts(run_dir.log, HISTORY_COLUMNS), state)


def plan_clips(
    clips: Sequence[Clip], config: Config, history: History, run_dir: RunDir
) -> list[PlannedClip]:
    """Return each clip with its state, in the order in which they are to be rendered."""
    stored = run_dir.stored()
    files = _file_sizes(run_dir.clips) if stored is None else stored.sizes(run_dir.clips.name)
    latents = run_dir.saved_latents()
    current = {clip.settings_sha256 for clip in clips}
    planned = []
    for clip in clips:
        last = history.by_settings.get(clip.settings_sha256)
        fault = _fault(last, config.check_files, run_dir, files)
        if last is not None:
            state, reason = _state_of_tried(last, fault, config)
        elif clip.is_pending:
            state, reason = State.new, "not yet rewritten"
        else:
            earlier = history.earlier_clip_of_row(clip, current)
            state = State.new if earlier is None else State.changed
            reason = "" if earlier is None else describe_difference(earlier, clip)
        # The same latents would give the same suspect frames; interrupted may be the second try.
        is_suspect = last is not None and last["status"] in (SUSPECT, INTERRUPTED)
        planned.append(
            PlannedClip(
                clip=clip,
                state=state,
                reason=reason,
                attempts=(last["attempt"] or 0) if last else 0,
                has_latents=clip.denoise_sha256 in latents,
                use_latents=not config.force and not (is_suspect and config.retry.suspect),
                has_result=not fault,
                last=last,
            )
        )
    return _by_group(_takes_first(planned) if config.order is Order.takes else planned)


def settings_conflict(
    manifest: Manifest,
    selected: Sequence[PlannedClip],
    config: Config,
    earlier: Iterable[Config],
    history: History,
    loras: Mapping[str, ClipLora] = NO_LORAS,
) -> str | None:
    """Return which changed settings would render finished clips again; None without any.

    The current manifest is resolved with the settings of each earlier run. Where that gives a
    finished clip, and this command gives the same row and seed other settings, the command has
    changed and not the manifest.

    Args:
        manifest: as it is now.
        selected: the clips of this command.
        config: this command's settings.
        earlier: settings of earlier runs.
        history: the attempts in the log.
        loras: LoRA files as they are now, by absolute path.
    """
    todo = {(p.clip.row_index, p.clip.settings.seed): p.clip for p in selected if not p.is_done}
    for before in earlier if todo else ():
        asked = _same_tasks(manifest, config, before)
        replaced: list[tuple[Clip, Clip]] = []
        known = dict(loras)
        for model in (before.model, *before.models.values()):
            for lora in model.loras:
                path = lora_path(lora.path)
                known[path] = ClipLora(path, lora.sha256 or path, 1.0)
        today = {config.model.name: config.model, **config.models}
        before = replace(before, models={**today, **before.models})
        for sha256, engine in product(
            _transformers(before.model, history), _engines(before, history)
        ):
            others = {
                name: KnownWeights(m.revision, sha, engine)
                for name, m in before.models.items()
                for sha in _transformers(m, history)[:1]
            }
            own = KnownWeights(before.model.revision, sha256, engine)
            others[before.model.name] = own
            for clip in resolve_clips(asked, before, None, None, known, others):
                now = todo.get((clip.row_index, clip.settings.seed))
                record = history.by_settings.get(clip.settings_sha256)
                is_done = record is not None and record["status"] in DONE_STATUSES
                if now is not None and is_done and now.settings_sha256 != clip.settings_sha256:
                    replaced.append((clip, now))
        if replaced:
            difference = settings_difference(replaced[0][0].settings, replaced[0][1].settings)
            difference = difference or "prompts are rewritten"
            return f"{difference}; {counted(len(replaced), 'clip')}"
    return None


def _same_tasks(manifest: Manifest, config: Config, before: Config) -> Manifest:
    """Return the rows whose model had the same task with the settings of an earlier run.

    The manifest was read for today's tasks: for the other one a row would be refused.
    """

    def is_same(row: Row) -> bool:
        now = config_of(config, row.model).model.task
        if row.model is None or row.model == before.model.name:
            return before.model.task is now
        then = before.models.get(row.model)
        return then is None or then.task is now

    return replace(manifest, rows=tuple(row for row in manifest.rows if is_same(row)))


def _transformers(model: ModelConfig, history: History) -> list[str | None]:
    """Return the SHA-256 of each single-file transformer that a run with this model may have used.

    A run stores the path of `model.transformer_file`; the log has the contents.
    """
    if model.has_hub_transformer:
        return [model.transformer_hub.sha256]
    if model.transformer_file is None:
        return [None]
    return sorted({r["transformer_sha256"] for r in history.by_settings.values()} - {None})


def _engines(before: Config, history: History) -> list[str | None]:
    """Return each engine that a run with these settings may have used; the log has them."""
    if not is_official(before):
        return [None]
    return sorted({r["engine"] for r in history.by_settings.values()} - {None})


def _state_of_tried(last: dict[str, Any], fault: str, config: Config) -> tuple[State, str]:
    """Return the state of a clip that was tried before, and why."""
    if fault:
        return State.retry, fault
    if config.force:
        return State.retry, FORCED
    if last["status"] == SUSPECT and config.retry.suspect:
        return State.retry, "suspect, retry.suspect=true"
    return State.done, ""


def _fault(
    last: dict[str, Any] | None, check: FileCheck, run_dir: RunDir, files: dict[str, int]
) -> str:
    """Return why a clip does not count as rendered; empty when it does."""
    if last is None:
        return "never tried"
    if last["status"] in (FAILED, INTERRUPTED):
        return f"{last['status']} before: {last['error_type'] or 'stopped'}"
    name = os.path.basename(last["file"] or "")
    size = files.get(name)
    if size is None:
        return "its file is missing"
    if size != last["file_bytes"]:
        return f"its file has {size} bytes instead of {last['file_bytes']}"
    if check is FileCheck.sha256:
        try:
            sha256 = sha256_in(run_dir, run_dir.relative(run_dir.clips / name))
        except OSError as error:  # one bad sector costs one clip
            return f"its file cannot be read ({error.strerror})"
        if sha256 != last["file_sha256"]:
            return "its file's SHA-256 is not the logged one"
    return ""


def _by_group(planned: Sequence[PlannedClip]) -> list[PlannedClip]:
    """Return clips after those that they follow; then those of a model and LoRA set together."""
    models: dict[str, int] = {}
    groups: dict[Group, int] = {}
    for p in planned:
        models.setdefault(p.clip.settings.model, len(models))
        groups.setdefault(p.clip.settings.group, len(groups))

    def rank(p: PlannedClip) -> tuple[int, int, int]:
        clip = p.clip
        return clip.level, models[clip.settings.model], groups[clip.settings.group]

    return sorted(planned, key=rank)  # stable


def _takes_first(planned: Sequence[PlannedClip]) -> list[PlannedClip]:
    """Return the first seed of every row, then the second seed of every row, and so on."""
    take: Counter[int] = Counter()
    keyed = []
    for p in planned:
        keyed.append((take[p.clip.row_index], p.clip.row_index, p))
        take[p.clip.row_index] += 1
    return [p for _, _, p in sorted(keyed, key=itemgetter(0, 1))]


def _file_sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # gone since it was listed, a link to nowhere, not readable
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    sizes[entry.name] = status.st_size
    return sizes
