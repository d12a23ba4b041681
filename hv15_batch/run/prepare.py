"""Works out what a command means before anything is touched: checks, clips, states, refusals."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hv15_batch.clip import Clip, ClipLora
from hv15_batch.config.checks import check_config, effective_dtype, linears_fault, parse_command
from hv15_batch.config.options import config_of, with_models
from hv15_batch.config.run_names import default_run_dir
from hv15_batch.config.settings import Config
from hv15_batch.config.shard import parse_shard
from hv15_batch.errors import Refused
from hv15_batch.machine.cards import Card, find_card
from hv15_batch.machine.machine import Machine
from hv15_batch.manifest.clips import advice_notes, make_clips, read_rows, repeats_note
from hv15_batch.manifest.read import Manifest
from hv15_batch.manifest.secrets import check_no_secrets
from hv15_batch.manifest.templates.expand import templates_line
from hv15_batch.manifest.typed import check_typed, swept_model_notes
from hv15_batch.manifest.weights import KnownWeights, lora_path, models_of_rows
from hv15_batch.model.attention import backend_fault
from hv15_batch.model.variant import ModelConfig, Weights
from hv15_batch.official.limits import check_official, is_official
from hv15_batch.planning.benchmark import plan_repetitions
from hv15_batch.planning.chains import chains_line, with_chains
from hv15_batch.planning.loras import find_loras
from hv15_batch.planning.plan import History, plan_clips, read_history, settings_conflict
from hv15_batch.planning.selection import select
from hv15_batch.planning.todo import Todo
from hv15_batch.record import DONE_STATUSES
from hv15_batch.redaction import show
from hv15_batch.rewrite.phase import with_known_rewrites
from hv15_batch.rewrite.rows import as_before
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import is_url, place
from hv15_batch.rundir.stored import (
    check_owner,
    earlier_settings,
    remembered_weights,
    to_type_again,
)
from hv15_batch.status.show import resume_words
from hv15_batch.units import Say
from hv15_batch.weights.checkpoint import Checkpoint, resolve_checkpoint, resolve_weights
from hv15_batch.weights.fetch import fetch
from hv15_batch.weights.hub import check_online
from hv15_batch.weights.kernels.fetched import hub_fault


@dataclass(frozen=True)
class Asked:
    """What a command means; nothing is touched yet."""

    config: Config
    manifest: Manifest
    checkpoints: Mapping[str, Checkpoint]
    """Of each model that rows use, by its name, in the order of the rows."""
    run_dir: RunDir
    clips: tuple[Clip, ...]
    loras: Mapping[str, ClipLora]
    """LoRA files by absolute path."""
    beaten: dict[str, int]
    """Typed `sampling.*` values, and how many rows have a value of their own for each."""
    is_in_sweep: bool = False
    typed_line: str = ""
    """The command line without secrets, for run.log. It is never printed as advice."""

    def config_of(self, model: str) -> Config:
        """Return the settings of a model that rows use."""
        return config_of(self.config, model)

    def models(self, todo: Todo | None = None) -> Iterator[tuple[Config, Checkpoint]]:
        """Yield settings and weights of each model that rows use, or that `todo` renders with."""
        rendering = None if todo is None else {p.clip.settings.model for p in todo.to_render}
        for name, checkpoint in self.checkpoints.items():
            if rendering is None or name in rendering:
                yield self.config_of(name), checkpoint


def prepare(
    config: Config,
    typed: tuple[str, ...],
    sweep: str | None,
    content: bytes | None = None,
    swept: tuple[str, ...] = (),
) -> Asked:
    """Read and check everything that needs no weights and no device.

    Args:
        config: All settings.
        typed: Keys of the command line: those of `sampling` without it, and `model.*`.
        sweep: Name of this run's folder in a sweep, else None.
        content: The bytes of the manifest, if its rows came from a DataFrame.
        swept: Settings that the sweep varies.

    Raises:
        Refused: The message names place, value, what is allowed and what to do.
    """
    check_config(config, is_rendering=False)
    parse_command(config.notify.command)
    if config.manifest is None:
        raise Refused("no manifest; name one: hv15-batch prompts.csv")
    path = find_manifest(os.path.expanduser(config.manifest))
    run_dir = find_run_dir(config, sweep)
    run_dir.check_usable()
    manifest = with_known_rewrites(read_rows(path, config, content), config, run_dir)
    check_owner(run_dir, manifest.path)
    beaten = check_typed(manifest, config, typed)
    config = with_models(config, (row.model for row in manifest.rows))
    names = models_of_rows(manifest.rows, config)
    _check_models(config, names)
    config = _with_remembered_weights(config, names, run_dir)
    config = replace(config, shard=str(run_dir.shard) if run_dir.shard else None)
    checkpoints = {n: resolve_weights(config_of(config, n), _say_aloud) for n in names}
    found = find_loras(config, manifest, checkpoints)
    clips = clips_of(manifest, config, checkpoints, found.by_path)
    check_no_secrets(config, manifest, clips)
    notes = [templates_line(manifest.rows, config.templates), chains_line(clips)]
    notes += [*swept_model_notes(manifest, config, swept), repeats_note(manifest, clips)]
    for name in names:
        of_model = [clip for clip in clips if clip.settings.model == name]
        notes += advice_notes(of_model, config_of(config, name).model)
    told = (*config.preset_notes, *manifest.notes, *filter(None, notes), *found.notes)
    manifest = replace(manifest, notes=told)
    loras, in_sweep = found.by_path, sweep is not None
    return Asked(config, manifest, checkpoints, run_dir, clips, loras, beaten, in_sweep)


def _say_aloud(text: str) -> None:
    show(text, sys.stderr)


def _check_models(config: Config, names: Sequence[str]) -> None:
    """Check the settings of each model that rows use.

    Raises:
        Refused: They contradict each other; the message names the model.
    """
    for name in names:
        try:
            check_config(config_of(config, name))
            check_official(config_of(config, name))
        except Refused as error:
            if name == config.model.name:
                raise
            raise Refused(f"rows with model {name}: {error}") from error


def clips_of(
    manifest: Manifest,
    config: Config,
    checkpoints: Mapping[str, Checkpoint],
    loras: Mapping[str, ClipLora],
) -> tuple[Clip, ...]:
    """Return the clips of the rows, with these weights."""
    known = {
        n: KnownWeights(c.revision, c.transformer_sha256, c.engine) for n, c in checkpoints.items()
    }
    return make_clips(manifest, config, None, None, loras, known)


def plan_against_log(asked: Asked, before: Todo | None = None) -> Todo:
    """Return every clip with its state; refuse settings that repeat finished work.

    Args:
        asked: What is to be planned.
        before: An earlier plan; its log is not read again unless it has changed.

    Raises:
        Refused: The command's settings would render finished clips again. A changed manifest is
            not refused.
    """
    config, run_dir = asked.config, asked.run_dir
    history = read_history(run_dir, before.history if before is not None else None)
    clips = with_chains(plan_clips(asked.clips, config, history, run_dir), run_dir)
    todo = Todo(clips, select(clips, config), shard=run_dir.shard, history=history)
    if history.by_settings and not config.add and not _is_known_here(asked, history):
        earlier = earlier_settings(run_dir)
        found = (
            settings_conflict(rows, todo.selected, config, earlier, history, asked.loras)
            for rows in as_before(asked.manifest, history.by_settings.values())
        )
        if difference := next(filter(None, found), None):
            again = to_type_again(earlier[0]) if earlier else ()
            resume = resume_words(run_dir.path, again, run_dir.shard)
            raise Refused(
                f"run_dir={run_dir.shown()}: clips are done here with other settings "
                f"({difference}). To resume with those: {resume}. To keep "
                "both apart: run_dir=DIR. To add clips with the new settings here: add=true."
            )
    if config.benchmark.repeat is not None:
        return replace(todo, repetitions=plan_repetitions(clips, config, run_dir))
    return todo


def find_run_dir(config: Config, sweep: str | None) -> RunDir:
    """Return the run directory, as its shard sees it: as typed, else named after the manifest.

    That of a URL is a working folder, which is brought up to date.

    Args:
        config: Settings that name a manifest.
        sweep: Name of the run's folder in a sweep, else None.

    Raises:
        Refused: The URL, or a shard of one that rewrites prompts.
    """
    assert config.manifest is not None
    path = find_manifest(os.path.expanduser(config.manifest))
    if config.run_dir is not None and is_url(config.run_dir):
        folder = place(config.run_dir, is_start=True)
    else:
        typed = os.path.expanduser(config.run_dir or default_run_dir(path, sweep))
        folder = Path(os.path.abspath(typed))
    run_dir = RunDir(folder, parse_shard(config.shard))
    if run_dir.shard is not None and run_dir.url is not None and config.rewrite.is_on:
        raise Refused(
            f"shard={run_dir.shard} with run_dir={run_dir.url} and rewrite.*: on object storage "
            "shards cannot wait for each other while they rewrite; rewrite all prompts once, in a "
            "run without shard=."
        )
    return run_dir


def find_manifest(typed: str) -> Path:
    """Return the path of a typed manifest; `manifests/...` finds those of the package too."""
    path = Path(typed)
    if path.exists() or path.is_absolute() or path.parts[:1] != ("manifests",):
        return path
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (folder / path).is_file():
            return folder / path
    return path


def _is_known_here(asked: Asked, history: History) -> bool:
    """Whether an earlier run with exactly these settings finished a clip in this directory."""
    now = stored_config(asked)
    known = any(
        (before.model, before.models, before.sampling, before.override, before.video)
        == (now.model, now.models, now.sampling, now.override, now.video)
        and before.preset_sampling == now.preset_sampling
        and before.runtime.dtype == now.runtime.dtype
        and before.runtime.linear == now.runtime.linear
        and before.runtime.attention_backend == now.runtime.attention_backend
        and (before.runtime.engine, before.official) == (now.runtime.engine, now.official)
        for before in earlier_settings(asked.run_dir)
    )
    return known and any(
        (record := history.by_settings.get(clip.settings_sha256)) is not None
        and record["status"] in DONE_STATUSES
        for clip in asked.clips
    )


def plan_with(asked: Asked, config: Config) -> tuple[Asked, Todo]:
    """Return what the same command would mean and do with other settings.

    Raises:
        Refused: A run with these settings would be refused.
    """
    check_config(config, is_rendering=False)
    # A cell may name the model that the command had: then it comes from its own YAML.
    config = with_models(config, (row.model for row in asked.manifest.rows))
    names = models_of_rows(asked.manifest.rows, config)
    _check_models(config, names)
    config = _with_remembered_weights(config, names, asked.run_dir)
    models = {name: config_of(config, name).model for name in names}
    known = {own.model.name: found for own, found in asked.models() if own.model in models.values()}
    checkpoints = {n: known.get(n) or resolve_weights(config_of(config, n)) for n in models}
    clips = clips_of(asked.manifest, config, checkpoints, asked.loras)
    changed = replace(asked, config=config, checkpoints=checkpoints, clips=clips)
    return changed, plan_against_log(changed)


def attention_fault(config: Config, card: Card | None) -> str | None:
    """Return why the requested attention backend cannot run here, or None.

    What the card really runs is checked later, by the worker before it encodes. A full-size model
    is assumed to run on a card, because the dry run on a machine without one plans for another
    machine.

    Args:
        config: Settings.
        card: That it will run on; None where it is not known.
    """
    backend = config.runtime.attention_backend
    return backend_fault(
        backend,
        runs_on_cpu=config.model.weights is Weights.tiny,
        dtype=effective_dtype(config),
        mask_free=config.runtime.mask_free,
        capability=card.capability if card else None,
    ) or hub_fault(backend)


def check_device(asked: Asked, todo: Todo, machine: Machine) -> None:
    """Check what the models to render with need: a card, kernels, types.

    Raises:
        Refused: Something is missing; the message names what works here.
    """
    gpu_name = machine.gpu.name if machine.gpu else None
    card = find_card(gpu_name) if gpu_name else None
    for config, _ in asked.models(todo):
        if is_official(config):  # a card is its own business
            continue
        if fault := attention_fault(config, card) or linears_fault(config, gpu_name):
            raise Refused(fault)
        if not config.model.weights.is_small and not machine.gpus:
            raise Refused(
                f"model={config.model.name}: needs a CUDA card, and none is visible here; to try "
                "the pipeline on the CPU use model=demo_t2v, to check the manifest and "
                "plan use dry_run=true."
            )


def lacks_weights(asked: Asked, todo: Todo) -> bool:
    """Return whether weights have to be fetched before everything can be rendered."""
    return any(_is_lacking(config, checkpoint) for config, checkpoint in asked.models(todo))


def _is_lacking(config: Config, checkpoint: Checkpoint) -> bool:
    lacks_checkpoint = config.model.weights is Weights.pretrained and checkpoint.folder is None
    return lacks_checkpoint or checkpoint.lacking is not None


def offline_fault(asked: Asked, todo: Todo) -> str | None:
    """Return why a run could not fetch the missing weights here, or None."""
    for config, checkpoint in asked.models(todo):
        if _is_lacking(config, checkpoint):
            try:
                check_online(config.model.name, os.environ)
            except Refused as error:
                return str(error)
    return None


def with_weights(asked: Asked, todo: Todo, say: Say) -> Asked:
    """Fetch missing weights. If the hub names the revision, put it into the clips' settings."""
    fetched = {own.model.name: fetch(own.model, say=say) for own, _ in asked.models(todo)}
    checkpoints = {**asked.checkpoints, **fetched}
    clips = clips_of(asked.manifest, asked.config, checkpoints, asked.loras)
    return replace(asked, checkpoints=checkpoints, clips=clips)


def stored_config(asked: Asked) -> Config:
    """Return the settings with what each model that rows use stands for, as a run stores them.

    `models` has every option that a cell names, the command's own too.
    """
    config, found, loras = asked.config, asked.checkpoints, asked.loras
    model = config.model
    if model.name in found:
        model = with_content(model, found[model.name], loras)
    models = {n: with_content(m, found[n], loras) for n, m in config.models.items()}
    if any(row.model == model.name for row in asked.manifest.rows):
        models[model.name] = model
    return replace(config, model=model, models=models)


def with_content(
    model: ModelConfig, checkpoint: Checkpoint, loras: Mapping[str, ClipLora]
) -> ModelConfig:
    """Return a model with the revision and the hashes of further files that it stands for."""
    hub = model.transformer_hub
    known = [(lora, loras.get(lora_path(lora.path))) for lora in model.loras]
    hashed = [replace(lora, sha256=found.sha256) if found else lora for lora, found in known]
    if model.has_hub_transformer:
        hub = replace(hub, sha256=checkpoint.transformer_sha256)
    return replace(model, revision=checkpoint.revision, transformer_hub=hub, loras=hashed)


def _with_remembered_weights(config: Config, names: Sequence[str], run_dir: RunDir) -> Config:
    """Return the settings with the weights that this run directory was last rendered with.

    For a hub model without a revision, or a transformer without a hash, of which nothing is on disk
    any more: the newest one would render everything again.
    """
    remembered: dict[str, ModelConfig] = {}
    for name in () if is_official(config) else names:
        model = config_of(config, name).model
        found = resolve_checkpoint(model)
        if found.revision is None or found.lacking is not None:
            lacks = found.revision is None, found.lacking is not None
            remembered[name] = remembered_weights(run_dir, model, *lacks)
    own = remembered.pop(config.model.name, config.model)
    return replace(config, model=own, models={**config.models, **remembered})
