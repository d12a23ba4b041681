"""From rows to clips: settings after precedence, sizes, seeds, hashes. Torch-free."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hv15_batch.clip import Clip, ClipLora, ClipSettings, hashed_values, make_clip
from hv15_batch.config.checks import SAMPLING_FIELDS, effective_dtype
from hv15_batch.config.settings import CacheKind, Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import Faults, ManifestError, parse_seeds
from hv15_batch.manifest.columns import reading_of
from hv15_batch.manifest.read import Manifest, scan_manifest
from hv15_batch.manifest.rows import Row, id_rule
from hv15_batch.model.shapes import bucket_size
from hv15_batch.model.step_cache import StepCache, make_step_cache
from hv15_batch.model.variant import Distillation, ModelConfig, Task, check_recipe, off_advice
from hv15_batch.units import counted

MAX_EXAMPLES = 3
NO_LORAS: Mapping[str, ClipLora] = MappingProxyType({})


@dataclass(frozen=True)
class KnownWeights:
    """The content of the weights that clips are made with."""

    revision: str | None
    transformer_sha256: str | None
    loras: Mapping[str, ClipLora]
    """By absolute path; one that is not here is known by its path alone."""

    def loras_of(self, row: Row, config: Config) -> tuple[ClipLora, ...]:
        """Return the LoRAs of a row, those of its cell or else of the settings, by content."""
        asked = row.loras
        if asked is None:
            asked = tuple((lora_path(lora.path), lora.scale) for lora in config.model.loras)
        found = [
            replace(self.loras.get(path, ClipLora(path, path, 1.0)), scale=float(scale))
            for path, scale in asked
            if scale
        ]
        return tuple(sorted(found, key=lambda lora: (lora.sha256, lora.scale)))


def lora_path(typed: str) -> str:
    """Return the absolute path of a LoRA that is typed as a setting."""
    return os.path.abspath(os.path.expanduser(typed))


def read_rows(path: Path, config: Config, content: bytes | None = None) -> Manifest:
    """Read a manifest; where a row has a fault, those of the clips are told with it.

    Args:
        path: The file, which need not exist where there is `content`.
        config: Settings.
        content: What the file will hold, as `manifest.frame.frame_content` returns it.

    Raises:
        Refused: There is no such file, or it is no manifest at all.
        ManifestError: all faults of all rows, and of the clips that the good rows make.
    """
    manifest, faults = scan_manifest(path, config.model.task, reading_of(config), content)
    if faults:
        asked = _asked_clips(manifest, config, KnownWeights(None, None, NO_LORAS))
        _note_clip_faults(manifest, asked, config, faults)
        raise ManifestError(faults.messages)
    return manifest


def make_clips(
    manifest: Manifest,
    config: Config,
    revision: str | None,
    transformer_sha256: str | None = None,
    loras: Mapping[str, ClipLora] = NO_LORAS,
) -> tuple[Clip, ...]:
    """Return every clip of the manifest once, rows in file order, seeds in the row's order.

    Args:
        manifest: Its rows.
        config: Settings.
        revision: Of the checkpoint.
        transformer_sha256: Of another transformer's file.
        loras: The LoRA files of rows and settings by absolute path.

    Raises:
        ManifestError: all faults that need the settings as well as the row.
    """
    asked = _asked_clips(manifest, config, KnownWeights(revision, transformer_sha256, loras))
    faults = Faults(manifest.name)
    _note_same_loras(manifest, asked, faults)
    _note_clip_faults(manifest, asked, config, faults)
    if faults:
        raise ManifestError(faults.messages)
    return tuple(_merged(asked, manifest))


def resolve_clips(
    manifest: Manifest,
    config: Config,
    revision: str | None,
    transformer_sha256: str | None = None,
    loras: Mapping[str, ClipLora] = NO_LORAS,
) -> list[Clip]:
    """Return every clip that the rows ask for once, refused or not.

    Precedence: `override.*`, the row's cell, `sampling.*`, the model option's defaults.
    """
    weights = KnownWeights(revision, transformer_sha256, loras)
    return _merged(_asked_clips(manifest, config, weights), manifest)


def repeats_note(manifest: Manifest, clips: Iterable[Clip]) -> str | None:
    """Return which clips are asked for more than once, in a line; None where none is.

    Args:
        manifest: Its rows.
        clips: What `make_clips` made of them.
    """
    repeated = [clip for clip in clips if clip.other_lines]
    if not repeated:
        return None
    unit = Faults(manifest.name).unit
    pairs = [(clip, line) for clip in repeated for line in clip.other_lines]
    some = ", ".join(_repeat_text(clip, line, unit) for clip, line in pairs[:MAX_EXAMPLES])
    more = f" and {len(pairs) - MAX_EXAMPLES:,} more" if len(pairs) > MAX_EXAMPLES else ""
    clips_text = "1 clip" if len(repeated) == 1 else f"{len(repeated):,} clips"
    times = "once more" if len(pairs) == 1 else f"{len(pairs):,} times more"
    return f"Rendered once, though asked for again: {clips_text}, {times}: {some}{more}"


def advice_notes(clips: Iterable[Clip], model: ModelConfig) -> list[str]:
    """Return a line for each way in which clips go beyond what the weights were made for."""
    counts = Counter(text for clip in clips for text in _off_advice(clip.settings, model))
    return [
        f"WARNING: off the recipe of {model.name} in {counted(count, 'clip')}: {text}"
        for text, count in counts.items()
    ]


def _off_advice(settings: ClipSettings, model: ModelConfig) -> list[str]:
    return off_advice(model, settings.num_inference_steps, settings.num_frames, settings.flow_shift)


def _repeat_text(clip: Clip, line: int, unit: str) -> str:
    if line == clip.line:
        return f"seed {clip.settings.seed} twice in {unit} {line}"
    return f"{unit} {line} as {unit} {clip.line}"


def _merged(asked: Iterable[Clip], manifest: Manifest) -> list[Clip]:
    """Return each clip once, where it is asked for first, with the ids of all rows that do so.

    It is named by the first id that a row gives it, and else by the first row's derived one. Labels
    of later rows fill those that the first has not.
    """
    rows = manifest.rows
    groups: dict[str, list[Clip]] = {}
    for clip in asked:
        groups.setdefault(clip.settings_sha256, []).append(clip)
    merged = []
    for first, *others in groups.values():
        if others:
            each = [first, *others]
            own = [clip.row_id for clip in each if rows[clip.row_index].id_given]
            ids = list(dict.fromkeys([*own, *(clip.row_id for clip in each)]))
            tags = {name: tag for clip in reversed(each) for name, tag in clip.tags.items()}
            lines = tuple(clip.line for clip in others)
            first = replace(
                first.named(ids[0]), other_ids=tuple(ids[1:]), other_lines=lines, tags=tags
            )
        merged.append(first)
    return merged


def _asked_clips(manifest: Manifest, config: Config, weights: KnownWeights) -> list[Clip]:
    """Return what each row asks for, also what another has asked for already."""
    override_seeds, default_seeds = _configured_seeds(config)
    video = hashed_values(config.video)
    clips: list[Clip] = []
    for row in manifest.rows:
        values = _row_values(row, config)
        if config.model.task is Task.i2v:
            assert row.image_size is not None
            values["height"], values["width"] = bucket_size(
                *row.image_size, config.model.target_size
            )
        for seed in override_seeds or row.seeds or default_seeds:
            clips.append(_clip(row, seed, values, video, config, weights))
    return clips


def check_typed_sampling(
    manifest: Manifest, config: Config, typed: Iterable[str]
) -> dict[str, int]:
    """Return how many rows beat each typed `sampling.*` value.

    Raises:
        Refused: every row beats it, so that typing it had no effect.
    """
    beaten: dict[str, int] = {}
    for name in typed:
        if getattr(config.override, name) is not None:
            continue  # replaces typed and cell alike
        count = sum(1 for row in manifest.rows if getattr(row, name) is not None)
        if count and count == len(manifest.rows):
            value = getattr(config.sampling, name)
            raise Refused(
                f"sampling.{name}={value}: every row of {manifest.name} has its own value, which "
                f"wins; to replace them all use override.{name}={value}."
            )
        if count:
            beaten[name] = count
    return beaten


def _configured_seeds(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the seeds of `override` (empty where there are none) and of `sampling`."""
    parsed: list[tuple[int, ...]] = []
    for section, value in (("override", config.override), ("sampling", config.sampling)):
        try:
            parsed.append(() if value.seeds is None else parse_seeds(value.seeds))
        except ValueError as error:
            raise Refused(f"{section}.seeds={value.seeds}: {error}.") from None
    return parsed[0], parsed[1] or (0,)


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
    video: dict[str, Any],
    config: Config,
    weights: KnownWeights,
) -> Clip:
    loras = weights.loras_of(row, config)
    guidance_scale = float(values["guidance_scale"])
    steps = values["num_inference_steps"]
    cache = step_cache_of(config, steps)
    settings = ClipSettings(
        prompt=row.prompt,
        negative_prompt=values["negative_prompt"] if guidance_scale != 1.0 else None,
        image_sha256=row.image_sha256,
        image_conversion=row.image_conversion,
        seed=seed,
        height=values["height"],
        width=values["width"],
        num_frames=values["num_frames"],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        flow_shift=float(values["flow_shift"]),
        fps=float(values["fps"]),
        video=video,
        model=config.model.name,
        revision=weights.revision,
        transformer_sha256=weights.transformer_sha256,
        loras=tuple((lora.sha256, lora.scale) for lora in loras) or None,
        weights=config.model.weights.name,
        dtype=effective_dtype(config).name,
        attention_backend=config.runtime.attention_backend,
        cache=None if cache is None else str(cache),
    )
    is_refused = check_recipe(config.model, steps, guidance_scale) is not None
    is_off_recipe = is_refused or bool(_off_advice(settings, config.model))
    return make_clip(
        row_id=row.id,
        row_index=row.index,
        line=row.line,
        settings=settings,
        image=row.image,
        image_path=row.image_path,
        tags=row.tags,
        off_recipe=is_off_recipe,
        loras=loras,
    )


def step_cache_of(config: Config, steps: int) -> StepCache | None:
    """Return the static cache of a clip with so many steps; None computes every step.

    Raises:
        Refused: the model is step-distilled, or the cache does not fit the steps.
    """

    def chosen(name: str) -> Any:
        value = getattr(config.override, name)
        return getattr(config.sampling, name) if value is None else value

    if chosen("cache") is not CacheKind.static:
        given = [name for name in _CACHE_BOUNDS if chosen(name) is not None]
        if given:
            raise Refused(
                f"sampling.{given[0]}={chosen(given[0])}: has no effect without "
                "sampling.cache=static; add that, or leave it out."
            )
        return None
    if config.model.distillation is Distillation.step:
        raise Refused(
            f"sampling.cache=static with model={config.model.name}: a step-distilled model has few "
            "steps, and none of them can stand for another; leave the cache out."
        )
    return make_step_cache(steps, *(chosen(name) for name in _CACHE_BOUNDS))


_CACHE_BOUNDS = ("cache_every", "cache_start", "cache_end")


def _note_clip_faults(
    manifest: Manifest, clips: Sequence[Clip], config: Config, faults: Faults
) -> None:
    if not config.runtime.allow_off_recipe:
        _note_off_recipe(manifest, clips, config, faults)
    _note_shared_ids(manifest, clips, faults)


def _note_off_recipe(
    manifest: Manifest, clips: Sequence[Clip], config: Config, faults: Faults
) -> None:
    """Note each row that uses a distilled model off its recipe.

    Raises:
        Refused: it is the command or the model option that says so, not a row.
    """
    for index, clip in {clip.row_index: clip for clip in clips if clip.off_recipe}.items():
        settings = clip.settings
        found = check_recipe(config.model, settings.num_inference_steps, settings.guidance_scale)
        if found is None:
            continue  # told, not refused
        name, reason = found
        rule = f"{reason}; leave it out, or set runtime.allow_off_recipe=true"
        value = getattr(settings, name)
        key = _setting_that_gave(name, manifest.rows[index], config)
        if key is not None:
            raise Refused(f"{key}={value:g}: {rule}.")
        faults.add(clip.line, name, value, rule)


def _setting_that_gave(name: str, row: Row, config: Config) -> str | None:
    """Return the setting that a row's value comes from; None for its own cell."""
    if getattr(config.override, name) is not None:
        return f"override.{name}"
    if getattr(row, name) is not None:
        return None
    if getattr(config.sampling, name) is not None:
        return f"sampling.{name}"
    return f"model.default_sampling.{name}"


def _note_same_loras(manifest: Manifest, clips: Iterable[Clip], faults: Faults) -> None:
    """Note each row whose LoRAs are one file under two names.

    Raises:
        Refused: it is the settings that name them.
    """
    for clip in {clip.row_index: clip for clip in clips if len(clip.loras) > 1}.values():
        for one, other in itertools.pairwise(clip.loras):
            if one.sha256 == other.sha256:
                rule = f"{one.path} and {other.path} are the same file; remove one"
                if manifest.rows[clip.row_index].loras is None:
                    raise Refused(f"model.loras: {rule}.")
                faults.add(clip.line, "loras", os.path.basename(one.path), rule)


def _note_shared_ids(manifest: Manifest, clips: Iterable[Clip], faults: Faults) -> None:
    """Note each row whose id another row has that makes other clips."""
    made: dict[int, set[str]] = {}
    for clip in clips:
        made.setdefault(clip.row_index, set()).add(clip.settings_sha256)
    first: dict[str, Row] = {}
    for row in manifest.rows:
        if not row.id_given:
            continue
        other = first.setdefault(row.id.lower(), row)
        if not made.get(row.index, set()) <= made.get(other.index, set()):
            where = f"{faults.unit} {other.line}"
            faults.add(row.line, "id", row.id, id_rule(row.id, other.id, where))
