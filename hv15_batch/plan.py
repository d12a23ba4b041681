"""From rows to clips: settings after precedence, sizes, hashes, done or not and why, order.

Knows nothing of how a clip is rendered.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip, ClipSettings, make_clip
from hv15_batch.config import (
    SAMPLING_FIELDS,
    Config,
    ConfigError,
    FileCheck,
    Order,
    Task,
    check_recipe,
    effective_dtype,
)
from hv15_batch.manifest import Manifest, ManifestError, Row, format_fault, parse_seeds
from hv15_batch.records import DONE_STATUSES, FAILED, INTERRUPTED, SUSPECT
from hv15_batch.rundir import RunDir, publishing, sha256_of_file

HISTORY_COLUMNS = (
    "settings_sha256",
    "denoise_sha256",
    "clip_id",
    "row_id",
    "attempt",
    "status",
    "file",
    "file_bytes",
    "file_sha256",
    "error_type",
    "error_message",
    "prompt",
    "negative_prompt",
    "image",
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
    "model",
    "revision",
    "weights",
    "dtype",
    "attention_backend_requested",
    "total_seconds",
    "is_cold",
)
"""Columns of the log that planning needs."""

_COMPARED = (
    "prompt",
    "negative_prompt",
    "image",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
    "model",
    "revision",
    "weights",
)


class State(Enum):
    """What a planned clip is."""

    done = "done"
    new = "new"
    changed = "changed"
    """The row was rendered before with other settings."""
    retry = "retry"
    """The last attempt failed, was interrupted, or its file is gone."""


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
    """Saved latents are good enough: it is decoded from them, not denoised."""
    last: dict[str, Any] | None
    """The last attempt at these settings."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state is State.done


# -- from rows to clips -----------------------------------------------------------------------


def make_clips(
    manifest: Manifest, config: Config, revision: str | None
) -> tuple[Clip, ...]:
    """Return every clip of the manifest, rows in file order, seeds in the row's order.

    Precedence: `override.*`, the row's cell, `sampling.*`, the model option's defaults.

    Raises:
        ManifestError: all faults that need the settings as well as the row.
    """
    faults: list[str] = []
    clips: list[Clip] = []
    default_seeds = _configured_seeds(config)
    for row in manifest.rows:
        values = _row_values(row, config)
        if config.model.task is Task.i2v:
            assert row.image_size is not None
            values["height"], values["width"] = bucket_size(
                *row.image_size, config.model.target_size
            )
        off_recipe = check_recipe(
            config.model, values["num_inference_steps"], values["guidance_scale"]
        )
        if off_recipe and not config.runtime.allow_off_recipe:
            name, reason = off_recipe
            faults.append(
                format_fault(
                    manifest.name,
                    row.line,
                    name,
                    values[name],
                    reason,
                    "leave it out, or set runtime.allow_off_recipe=true",
                )
            )
            continue
        seeds = default_seeds or row.seeds or parse_seeds(config.sampling.seeds or 0)
        clips += [
            _clip(row, seed, values, config, revision, bool(off_recipe)) for seed in seeds
        ]
    faults += _duplicate_faults(manifest.name, clips)
    if faults:
        raise ManifestError(faults)
    return tuple(clips)


def check_typed_sampling(
    manifest: Manifest, config: Config, typed: Iterable[str]
) -> dict[str, int]:
    """Return how many rows beat each typed `sampling.*` value.

    Raises:
        ConfigError: every row beats it, so that typing it had no effect.
    """
    beaten: dict[str, int] = {}
    for name in typed:
        count = sum(1 for row in manifest.rows if getattr(row, name) is not None)
        if count and count == len(manifest.rows):
            value = getattr(config.sampling, name)
            raise ConfigError(
                f"sampling.{name}={value}: every row of {manifest.name} has its own value, which "
                f"wins; to replace them all use override.{name}={value}."
            )
        if count:
            beaten[name] = count
    return beaten


def bucket_size(height: int, width: int, target_size: int) -> tuple[int, int]:
    """Return the (height, width) that the image-to-video pipeline gives an image of this size.

    Buckets are the 16-pixel sizes of about `target_size`² area with an aspect of up to 4:1; the
    chosen one is the nearest in aspect that is not more elongated than the image.

    Source: diffusers 0.42.1 HunyuanVideo15ImageProcessor.calculate_default_height_width.
    """
    patches = round((target_size / 16) ** 2)
    aspect = height / width
    best: tuple[float, int, int] | None = None
    rows, columns = patches, 1
    while rows > 0:
        if max(rows, columns) / min(rows, columns) <= 4.0:
            distance = round(rows / columns, 5) - aspect
            reachable = distance <= 0 if aspect >= 1 else distance >= 0
            if reachable and (best is None or abs(distance) < best[0]):
                best = (abs(distance), rows * 16, columns * 16)
        if (columns + 1) * rows <= patches:
            columns += 1
        else:
            rows -= 1
    if best is None:
        raise ValueError(f"no bucket for an image of {height}x{width}: the aspect is over 4:1")
    return best[1], best[2]


def glyph_texts(prompt: str) -> list[str]:
    """Return the quoted texts (straight or curly) that drive the glyph encoder, each once."""
    found = [a or b for a, b in re.findall(r'"(.*?)"|“(.*?)”', prompt)]
    return list(dict.fromkeys(found))


def _configured_seeds(config: Config) -> tuple[int, ...] | None:
    for section, value in (("sampling", config.sampling), ("override", config.override)):
        if value.seeds is not None:
            try:
                parse_seeds(value.seeds)
            except ValueError as error:
                raise ConfigError(f"{section}.seeds={value.seeds}: {error}") from None
    if config.override.seeds is None:
        return None
    return parse_seeds(config.override.seeds)


def _row_values(row: Row, config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in SAMPLING_FIELDS:
        if name == "seeds":
            continue
        for source in (config.override, row, config.sampling, config.model.default_sampling):
            value = getattr(source, name)
            if value is not None:
                values[name] = value
                break
    return values


def _clip(
    row: Row,
    seed: int,
    values: dict[str, Any],
    config: Config,
    revision: str | None,
    off_recipe: bool,
) -> Clip:
    guidance_scale = float(values["guidance_scale"])
    video = config.video
    settings = ClipSettings(
        prompt=row.prompt,
        negative_prompt=values["negative_prompt"] if guidance_scale != 1.0 else None,
        image_sha256=row.image_sha256,
        seed=seed,
        height=values["height"],
        width=values["width"],
        num_frames=values["num_frames"],
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=guidance_scale,
        flow_shift=float(values["flow_shift"]),
        fps=float(values["fps"]),
        video={
            "codec": video.codec.name,
            "crf": video.crf,
            "preset": video.preset,
            "embed_metadata": video.embed_metadata,
        },
        model=config.model.name,
        revision=revision,
        weights=config.model.weights.name,
        dtype=effective_dtype(config).name,
        attention_backend=config.runtime.attention_backend,
    )
    return make_clip(
        row_id=row.id,
        row_index=row.index,
        line=row.line,
        settings=settings,
        image=row.image,
        image_path=row.image_path,
        tags=row.tags,
        off_recipe=off_recipe,
    )


def _duplicate_faults(manifest_name: str, clips: Sequence[Clip]) -> list[str]:
    first: dict[str, Clip] = {}
    faults = []
    for clip in clips:
        other = first.setdefault(clip.settings_sha256, clip)
        if other is not clip:
            faults.append(
                format_fault(
                    manifest_name,
                    clip.line,
                    "seed",
                    clip.settings.seed,
                    f"makes the same clip as line {other.line}",
                    "remove one of them, or change its seed or settings",
                )
            )
    return faults


# -- what is done -----------------------------------------------------------------------------


class History:
    """The last attempts of a run directory, by settings and by row."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        """Index `runlog.read_last_attempts` with `HISTORY_COLUMNS`."""
        self.by_settings = {r["settings_sha256"]: r for r in records}
        self._by_row = {
            (r["row_id"], r["seed"]): r for r in records if r["status"] in DONE_STATUSES
        }

    def earlier_clip_of_row(self, clip: Clip) -> dict[str, Any] | None:
        """Return the finished clip of the same row and seed with other settings, if any."""
        return self._by_row.get((clip.row_id, clip.settings.seed))


def plan_clips(
    clips: Sequence[Clip], config: Config, history: History, run_dir: RunDir
) -> list[PlannedClip]:
    """Return each clip with its state, in the order in which they are to be rendered."""
    files = _file_sizes(run_dir.clips)
    latents = _file_sizes(run_dir.latents)
    planned = []
    for clip in clips:
        last = history.by_settings.get(clip.settings_sha256)
        state, reason = _state(clip, last, config, history, run_dir, files)
        planned.append(
            PlannedClip(
                clip=clip,
                state=state,
                reason=reason,
                attempts=(last["attempt"] or 0) if last else 0,
                has_latents=run_dir.latents_file(clip.denoise_sha256).name in latents,
                use_latents=not config.force and (last is None or last["status"] != SUSPECT
                or not config.retry.suspect),
                last=last,
            )
        )
    if config.order is Order.takes:
        take: Counter[int] = Counter()
        keyed = []
        for p in planned:
            keyed.append((take[p.clip.row_index], p.clip.row_index, p))
            take[p.clip.row_index] += 1
        planned = [p for _, _, p in sorted(keyed, key=lambda item: item[:2])]
    return planned


def select(planned: Sequence[PlannedClip], config: Config) -> list[PlannedClip]:
    """Return the clips that this run is about: `only` and then `limit` not yet done ones.

    Raises:
        ConfigError: `only` names a row that is not there.
    """
    selected = list(planned)
    if config.only:
        wanted = [name.strip() for name in config.only.split(",") if name.strip()]
        known = {p.clip.row_id for p in planned}
        for name in wanted:
            if name not in known:
                some = ", ".join(sorted(known)[:5])
                raise ConfigError(f"only={name}: no row has that id; ids are {some} ...")
        selected = [p for p in planned if p.clip.row_id in wanted]
    if config.limit is not None:
        todo = [p for p in selected if not p.is_done][: config.limit]
        keep = {id(p) for p in todo}
        selected = [p for p in selected if p.is_done or id(p) in keep]
    return selected


def settings_conflict(
    manifest: Manifest,
    selected: Sequence[PlannedClip],
    earlier: Sequence[tuple[Config, str | None]],
    history: History,
) -> str | None:
    """Return how this command's settings would render again what is done, or None.

    The current manifest is planned once more with the settings of each earlier run: where such
    a clip is done and the one planned now has the same row and seed but other settings, it is the
    command and not the manifest that changed.
    """
    todo = {(p.clip.row_index, p.clip.settings.seed): p.clip for p in selected if not p.is_done}
    if not todo:
        return None
    for config, revision in earlier:
        try:
            clips = make_clips(manifest, config, revision)
        except ConfigError:
            continue  # the manifest of today was never rendered with those settings
        for clip in clips:
            now = todo.get((clip.row_index, clip.settings.seed))
            record = history.by_settings.get(clip.settings_sha256)
            if now is None or record is None or record["status"] not in DONE_STATUSES:
                continue
            if now.settings_sha256 != clip.settings_sha256:
                return describe_difference(record, now)
    return None


def _state(
    clip: Clip,
    last: dict[str, Any] | None,
    config: Config,
    history: History,
    run_dir: RunDir,
    files: dict[str, int],
) -> tuple[State, str]:
    if last is None:
        earlier = history.earlier_clip_of_row(clip)
        if earlier is None:
            return State.new, ""
        return State.changed, describe_difference(earlier, clip)
    if last["status"] in (FAILED, INTERRUPTED):
        return State.retry, f"{last['status']} before: {last['error_type'] or 'stopped'}"
    if config.force:
        return State.retry, "force=true"
    if last["status"] == SUSPECT and config.retry.suspect:
        return State.retry, "suspect, retry.suspect=true"
    fault = _file_fault(last, config.check_files, run_dir, files)
    return (State.retry, fault) if fault else (State.done, "")


def _file_fault(
    last: dict[str, Any], check: FileCheck, run_dir: RunDir, files: dict[str, int]
) -> str | None:
    name = Path(last["file"]).name if last["file"] else ""
    size = files.get(name)
    if size is None:
        return "its file is missing"
    if size != last["file_bytes"]:
        return f"its file has {size} bytes instead of {last['file_bytes']}"
    if check is FileCheck.sha256:
        if sha256_of_file(run_dir.clips / name) != last["file_sha256"]:
            return "its file's SHA-256 is not the logged one"
    return None


def describe_difference(record: dict[str, Any], clip: Clip) -> str:
    """Return what differs between a record and a clip, e.g. `num_inference_steps 50 -> 30`."""
    settings = clip.settings
    now: dict[str, Any] = {name: getattr(settings, name, None) for name in _COMPARED}
    now["image"] = clip.image
    changes = []
    for name in _COMPARED:
        before, after = record[name], now[name]
        if before != after:
            changes.append(f"{name} {_short(before)} -> {_short(after)}")
    if record["attention_backend_requested"] != settings.attention_backend:
        changes.append(
            f"attention_backend {record['attention_backend_requested']} -> "
            f"{settings.attention_backend}"
        )
    return ", ".join(changes) or "video.* or runtime.dtype changed"


def _short(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        text = " ".join(value.split())
        return repr(text if len(text) <= 40 else text[:39] + "…")
    return "none" if value is None else str(value)


def _file_sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    return {entry.name: entry.stat().st_size for entry in folder.iterdir()}


# -- the table --------------------------------------------------------------------------------

_PLAN_SETTINGS = (
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
)


def write_plan(
    planned: Sequence[PlannedClip], path: Path, prompt_tokens: dict[str, int] | None
) -> None:
    """Write every clip with its state to a CSV file.

    `prompt_tokens` maps a prompt to its number of tokens, where a tokenizer was at hand.
    """
    with publishing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["clip_id", "row_id", "row_index", "line", "state", "reason", "from_latents"]
            + list(_PLAN_SETTINGS)
            + ["model", "num_prompt_tokens", "glyph_text", "image", "off_recipe"]
            + ["settings_sha256", "denoise_sha256", "file", "prompt"]
        )
        for p in planned:
            clip, settings = p.clip, p.clip.settings
            tokens = (prompt_tokens or {}).get(settings.prompt)
            writer.writerow(
                [clip.clip_id, clip.row_id, clip.row_index, clip.line, p.state.name, p.reason]
                + [p.has_latents and p.use_latents and not p.is_done]
                + [getattr(settings, name) for name in _PLAN_SETTINGS]
                + [settings.model, tokens, " | ".join(glyph_texts(settings.prompt))]
                + [clip.image, clip.off_recipe, clip.settings_sha256, clip.denoise_sha256]
                + [p.last["file"] if p.is_done and p.last else None, settings.prompt]
            )
