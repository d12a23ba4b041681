"""From rows to clips: settings after precedence, sizes, seeds, hashes. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip, ClipLora, ClipSettings, Source, hashed_values, make_clip
from hv15_batch.config.checks import SAMPLING_FIELDS, check_config, effective_dtype
from hv15_batch.config.options import config_of, row_option, with_models
from hv15_batch.config.settings import CacheKind, Config
from hv15_batch.errors import Refused
from hv15_batch.manifest._clip_faults import note_clip_faults, note_same_loras
from hv15_batch.manifest.cells import Faults, ManifestError, parse_seeds
from hv15_batch.manifest.chains.films import films_of, with_films
from hv15_batch.manifest.chains.links import sources_first
from hv15_batch.manifest.chains.pairs import linked, sources_of
from hv15_batch.manifest.columns import reading_of
from hv15_batch.manifest.read import Manifest, scan_manifest
from hv15_batch.manifest.rows import Row
from hv15_batch.manifest.weights import NO_LORAS, NO_WEIGHTS, UNKNOWN, KnownWeights, loras_of
from hv15_batch.model.linears import linear_name
from hv15_batch.model.official import script_size
from hv15_batch.model.shapes import bucket_size
from hv15_batch.model.step_cache import StepCache, make_step_cache
from hv15_batch.model.variant import (
    Distillation,
    ModelConfig,
    Task,
    check_recipe,
    off_advice,
    unknown_words,
)
from hv15_batch.official.limits import is_official
from hv15_batch.units import counted, shortened

MAX_EXAMPLES = 3
MAX_WORDS = 8
MAX_WORD_CHARACTERS = 20


def read_rows(path: Path, config: Config, content: bytes | None = None) -> Manifest:
    """Read a manifest; faults of rows and faults of their clips are reported together.

    Args:
        path: The file; with `content` it need not exist.
        config: Settings.
        content: The future content of the file, as `manifest.frame.frame_content` returns it.

    Raises:
        Refused: There is no such file, it is no manifest at all, or the settings contradict the
            command's model, which rows use.
        ManifestError: All faults of all rows, and of the clips of good rows.
    """
    task_of = cache(lambda name: row_option(config, name).task)
    reading = reading_of(config)
    manifest, faults = scan_manifest(path, config.model.task, reading, content, task_of)
    if manifest.models & {None, config.model.name}:
        check_config(config)
    if faults:
        config = with_models(config, (row.model for row in manifest.rows))
        asked = _asked_clips(manifest, config, {}, NO_LORAS, faults)
        note_clip_faults(manifest, asked, config, faults)
        films_of(manifest.rows, asked, faults)
        raise ManifestError(faults.messages)
    return manifest


def make_clips(
    manifest: Manifest,
    config: Config,
    revision: str | None,
    transformer_sha256: str | None = None,
    loras: Mapping[str, ClipLora] = NO_LORAS,
    others: Mapping[str, KnownWeights] = NO_WEIGHTS,
) -> tuple[Clip, ...]:
    """Return every clip of the manifest once, rows in file order, seeds in the row's order.

    Args:
        manifest: Its rows.
        config: Settings; `models` has the options that rows name.
        revision: Of the checkpoint.
        transformer_sha256: Of another transformer's file.
        loras: The LoRA files of rows and settings by absolute path.
        others: The weights of further models that rows name; one of the command's own model
            counts before `revision`.

    Raises:
        ManifestError: All faults that depend on settings and rows together.
    """
    weights = {config.model.name: KnownWeights(revision, transformer_sha256), **others}
    faults = Faults(manifest.name)
    asked = _asked_clips(manifest, config, weights, loras, faults)
    note_same_loras(manifest, asked, faults)
    note_clip_faults(manifest, asked, config, faults)
    films = films_of(manifest.rows, asked, faults)
    if faults:
        raise ManifestError(faults.messages)
    return tuple(with_films(linked(_merged(asked, manifest)), films))


def resolve_clips(
    manifest: Manifest,
    config: Config,
    revision: str | None,
    transformer_sha256: str | None = None,
    loras: Mapping[str, ClipLora] = NO_LORAS,
    others: Mapping[str, KnownWeights] = NO_WEIGHTS,
) -> list[Clip]:
    """Return every clip of the rows once, also those that would be refused.

    Precedence: `override.*`, the row's cell, `sampling.*`, the model option's defaults.
    """
    weights = {config.model.name: KnownWeights(revision, transformer_sha256), **others}
    return _merged(_asked_clips(manifest, config, weights, loras), manifest)


def repeats_note(manifest: Manifest, clips: Iterable[Clip]) -> str | None:
    """Return a line about clips that the manifest has more than once, or None.

    Args:
        manifest: The rows.
        clips: Clips of `make_clips`.
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
    return f"Repeated in the manifest, rendered once: {clips_text}, {times}: {some}{more}"


def advice_notes(clips: Sequence[Clip], model: ModelConfig) -> list[str]:
    """Return a line for each way in which clips go beyond what the weights were made for."""
    counts = Counter(text for clip in clips for text in _off_advice(clip.settings, model))
    return [
        f"WARNING: off the recipe of {model.name} in {counted(count, 'clip')}: {text}"
        for text, count in counts.items()
    ] + _unknown_words_note(clips, model)


def _unknown_words_note(clips: Sequence[Clip], model: ModelConfig) -> list[str]:
    """Return at most one line, about words that a small vocabulary lacks."""
    if not model.advice.words:
        return []
    found = {clip.clip_id: unknown_words(model, clip.settings.prompt) for clip in clips}
    words = list(dict.fromkeys(word for each in found.values() for word in each))
    if not words:
        return []
    some = ", ".join(f'"{shortened(word, MAX_WORD_CHARACTERS)}"' for word in words[:MAX_WORDS])
    more = f" and {len(words) - MAX_WORDS:,} more" if len(words) > MAX_WORDS else ""
    clips_text = counted(sum(map(bool, found.values())), "clip")
    return [f"WARNING: words that {model.name} was not trained on in {clips_text}: {some}{more}"]


def _off_advice(settings: ClipSettings, model: ModelConfig) -> list[str]:
    size = (settings.height, settings.width)
    steps, frames = settings.num_inference_steps, settings.num_frames
    return off_advice(model, steps, frames, settings.flow_shift, size)


def _repeat_text(clip: Clip, line: int, unit: str) -> str:
    if line == clip.line:
        return f"seed {clip.settings.seed} twice in {unit} {line}"
    return f"{unit} {line} as {unit} {clip.line}"


def _merged(asked: Iterable[Clip], manifest: Manifest) -> list[Clip]:
    """Return each clip once, at its first place, with the ids of all its rows.

    Its name is the first id that a row gives, or the derived id of the first row. Labels that the
    first row lacks come from later rows.
    """
    rows = {row.index: row for row in manifest.rows}
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
                first.named(ids[0]),
                other_ids=tuple(ids[1:]),
                other_lines=lines,
                tags=tags,
                template_ids=tuple(dict.fromkeys(t for clip in each for t in clip.template_ids)),
            )
        merged.append(first)
    return merged


def _asked_clips(
    manifest: Manifest,
    config: Config,
    weights: Mapping[str, KnownWeights],
    loras: Mapping[str, ClipLora],
    faults: Faults | None = None,
) -> list[Clip]:
    """Return the clips of each row in file order, repeated ones included.

    A row that cannot follow another one makes none; `faults` gets the reason.
    """
    models: dict[str | None, _OfModel] = {}
    made: dict[int, list[Clip]] = {}
    for row, before in sources_first(manifest.rows):
        if row.model not in models:
            own = config_of(config, row.model)
            models[row.model] = _OfModel(own, weights.get(own.model.name, UNKNOWN))
        model = models[row.model]
        seeds = model.override_seeds or row.seeds or model.default_seeds
        sources: Sequence[Source | None] = [None] * len(seeds)
        size = row.image_size
        if before is not None:
            sources = sources_of(row, len(seeds), made.get(before.index, ()), faults)
            if not sources:
                continue
            size = made[before.index][0].settings.height, made[before.index][0].settings.width
        values = model.values_of(row, size)
        found = loras_of(row, model.config, loras)
        made[row.index] = [
            _clip(row, seed, source, values, model.shared, model.config.model, found)
            for seed, source in zip(seeds, sources, strict=True)
        ]
    return [clip for row in manifest.rows for clip in made.get(row.index, ())]


class _OfModel:
    """What the rows of a model have in common."""

    def __init__(self, config: Config, weights: KnownWeights) -> None:
        self.config = config
        self.override_seeds, self.default_seeds = _configured_seeds(config)
        self.shared = _shared_settings(config, weights)
        self._caches: dict[int, str | None] = {}
        self._values_of = _values_of_rows(config)

    def values_of(self, row: Row, image_size: tuple[int, int] | None) -> dict[str, Any]:
        """Return the sampling values of a row with a first frame of this size, and its step cache.

        Args:
            row: The row.
            image_size: Height and width in pixels; None for text to video.
        """
        values, model = self._values_of(row), self.config.model
        steps = values["num_inference_steps"]
        if steps not in self._caches:
            cache = step_cache_of(self.config, steps)
            self._caches[steps] = None if cache is None else str(cache)
        values["cache"] = self._caches[steps]
        if model.task is Task.i2v:
            assert image_size is not None
            size_of = script_size if is_official(self.config) else bucket_size
            values["height"], values["width"] = size_of(*image_size, model.target_size)
        return values


def _configured_seeds(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the seeds of `override`, which may be empty, and of `sampling`."""
    parsed: list[tuple[int, ...]] = []
    for section, value in (("override", config.override), ("sampling", config.sampling)):
        try:
            parsed.append(() if value.seeds is None else parse_seeds(value.seeds))
        except ValueError as error:
            raise Refused(f"{section}.seeds={value.seeds}: {error}.") from None
    return parsed[0], parsed[1] or (0,)


_VALUE_FIELDS = tuple(name for name in SAMPLING_FIELDS if name != "seeds")


def _values_of_rows(config: Config) -> Callable[[Row], dict[str, Any]]:
    """Return what gives the sampling values of a row, in the order of precedence."""
    configured: dict[str, Any] = {}
    for source in (config.model.default_sampling, config.sampling, config.override):
        found = ((name, getattr(source, name)) for name in _VALUE_FIELDS)
        configured |= {name: value for name, value in found if value is not None}
    free = tuple(name for name in _VALUE_FIELDS if getattr(config.override, name) is None)

    def values_of(row: Row) -> dict[str, Any]:
        values = dict(configured)
        for name in free:
            if (value := getattr(row, name)) is not None:
                values[name] = value
        return values

    return values_of


def _shared_settings(config: Config, weights: KnownWeights) -> dict[str, Any]:
    """Return the `ClipSettings` that all clips of a run have in common."""
    # What has no effect under an engine is null, and not part of a clip's identity.
    by_script = is_official(config)
    return {
        "video": {} if by_script else hashed_values(config.video),
        "engine": weights.engine if by_script else None,
        "model": config.model.name,
        "revision": None if by_script else weights.revision,
        "transformer_sha256": weights.transformer_sha256,
        "weights": config.model.weights.name,
        "dtype": effective_dtype(config).name,
        "linear": linear_name(config.runtime.linear),
        "attention_backend": config.runtime.attention_backend,
    }


def _clip(
    row: Row,
    seed: int,
    source: Source | None,
    values: dict[str, Any],
    shared: dict[str, Any],
    model: ModelConfig,
    loras: tuple[ClipLora, ...],
) -> Clip:
    guidance_scale = float(values["guidance_scale"])
    steps = values["num_inference_steps"]
    settings = ClipSettings(
        prompt=row.prompt,
        negative_prompt=values["negative_prompt"] if guidance_scale != 1.0 else None,
        image_sha256=row.image_sha256,
        image_conversion=row.image_conversion,
        image_source=None if source is None else source.key,
        seed=seed,
        height=values["height"],
        width=values["width"],
        num_frames=values["num_frames"],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        flow_shift=float(values["flow_shift"]),
        fps=float(values["fps"]),
        cache=values["cache"],
        loras=tuple((lora.sha256, lora.scale) for lora in loras) or None,
        **shared,
    )
    is_refused = check_recipe(model, steps, guidance_scale) is not None
    is_off_recipe = is_refused or bool(_off_advice(settings, model))
    clip = make_clip(
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
    if row.rewrite is not None:
        clip = clip.with_rewrite(row.rewrite)
    if source is not None:
        clip = replace(clip, source=source)
    if row.template_id is None:
        return clip
    return replace(clip, template_ids=(row.template_id,), template_draw=row.template_draw)


def step_cache_of(config: Config, steps: int) -> StepCache | None:
    """Return the static cache of a clip with so many steps; None computes every step.

    Raises:
        Refused: The model is step-distilled, or the cache does not fit the steps.
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
            "steps, and each of them must be computed; leave the cache out."
        )
    return make_step_cache(steps, *(chosen(name) for name in _CACHE_BOUNDS))


_CACHE_BOUNDS = ("cache_every", "cache_start", "cache_end")
