"""One invocation from settings to exit code: prepare, refuse or run, and say how it ended."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hv15_batch import costs
from hv15_batch.checkpoint import Checkpoint, fetch, resolve_checkpoint
from hv15_batch.clip import Clip
from hv15_batch.config import Config, ConfigError, VideoCodec, Weights, check_config
from hv15_batch.dry_run import print_dry_run
from hv15_batch.executor import Executor, ExecutorSpec
from hv15_batch.machine import Machine, free_disk_bytes, read_machine, system_facts, system_sha256
from hv15_batch.manifest import Manifest, read_manifest
from hv15_batch.plan import (
    HISTORY_COLUMNS,
    History,
    PlannedClip,
    check_typed_sampling,
    make_clips,
    plan_clips,
    select,
    settings_conflict,
    write_plan,
)
from hv15_batch.progress import Progress
from hv15_batch.records import FAILED, SUSPECT
from hv15_batch.clips_table import write_clips_table
from hv15_batch.report import write_page
from hv15_batch.rundir import (
    RunDir,
    default_run_dir,
    log_to_file,
    new_run_id,
    publish_json,
    publish_text,
    sha256_of_file,
)
from hv15_batch.runlog import RunLog, bring_to_current_schema, read_last_attempts
from hv15_batch.runner import EXIT_OK, Outcome, Runner, median_warm_seconds
from hv15_batch.worker import LocalExecutor

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
MIN_FREE_BYTES = 512 * 2**20
"""Below this a run stops before the next clip."""


@dataclass(frozen=True)
class Prepared:
    """What a command means, before anything is touched."""

    config: Config
    manifest: Manifest
    checkpoint: Checkpoint
    run_dir: RunDir
    clips: tuple[Clip, ...]
    beaten: dict[str, int]
    """Typed `sampling.*` values and how many rows beat each."""


def run(
    config: Config,
    typed_sampling: tuple[str, ...],
    sweep: str | None,
    say: Say,
    make_executor: Callable[[ExecutorSpec], Executor] = LocalExecutor,
) -> int:
    """Carry out one job and return its exit code.

    Args:
        config: All settings; `manifest` as typed.
        typed_sampling: The `sampling.*` keys that were typed on the command line.
        sweep: Name of this job's folder in a sweep, else None.
        say: Prints a line for the user.
        make_executor: What renders.

    Raises:
        ConfigError: refused; nothing was touched.
    """
    prepared = prepare(config, typed_sampling, sweep)
    if config.dry_run:
        planned = plan_against_log(prepared)
        print_dry_run(prepared.manifest, planned, prepared.checkpoint, prepared.beaten, say)
        _write_dry_run_plan(prepared, planned, say)
        return EXIT_OK
    machine = read_machine()
    check_device(config, machine)
    prepared = _with_weights(prepared, say)
    run_dir = prepared.run_dir
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_id = new_run_id(run_dir.run_ids())
    with run_dir.locked(run_id):
        return _run_locked(prepared, run_id, machine, say, make_executor)


def prepare(config: Config, typed_sampling: tuple[str, ...], sweep: str | None) -> Prepared:
    """Read and check everything that needs no weights and no device.

    Raises:
        ConfigError: naming place, value, what is allowed and what to do.
    """
    check_config(config)
    if config.manifest is None:
        raise ConfigError("no manifest; name one: hv15-batch prompts.csv")
    path = Path(config.manifest).expanduser()
    run_dir = RunDir(Path(config.run_dir or default_run_dir(path, sweep)).expanduser().absolute())
    run_dir.check_usable()
    manifest = read_manifest(path, config.model.task)
    _check_owner(run_dir, manifest.path)
    beaten = check_typed_sampling(manifest, config, typed_sampling)
    checkpoint = resolve_checkpoint(config.model)
    clips = make_clips(manifest, config, checkpoint.revision)
    return Prepared(config, manifest, checkpoint, run_dir, clips, beaten)


def plan_against_log(prepared: Prepared) -> list[PlannedClip]:
    """Return the selected clips with their states; refuse settings that repeat finished work.

    Raises:
        ConfigError: the command's settings, not the manifest, would render again what is done.
    """
    config, run_dir = prepared.config, prepared.run_dir
    history = History(read_last_attempts(run_dir.log, HISTORY_COLUMNS))
    planned = select(plan_clips(prepared.clips, config, history, run_dir), config)
    if history.by_settings and not config.add:
        difference = settings_conflict(
            prepared.manifest, planned, _earlier_configs(run_dir), history
        )
        if difference:
            raise ConfigError(
                f"run_dir={run_dir.path}: its clips were rendered with other settings "
                f"({difference}). To go on with those: hv15-batch resume={run_dir.path}. To keep "
                "both apart: run_dir=DIR. To add clips with the new settings here: add=true."
            )
    return planned


def check_device(config: Config, machine: Machine) -> None:
    """Refuse a real model on a machine without CUDA.

    Raises:
        ConfigError: naming what works here.
    """
    if config.model.weights is not Weights.tiny and not machine.gpus:
        raise ConfigError(
            f"model={config.model.name}: needs a CUDA card, and none is visible here; to try the "
            "pipeline on the CPU use model=tiny_t2v (noise on purpose), to check the manifest and "
            "plan use dry_run=true."
        )


def load_config(text: str, where: Path) -> Config:
    """Return the settings of an earlier run.

    Raises:
        ConfigError: the file is not readable as this version's settings.
    """
    try:
        stored = OmegaConf.create(yaml.load(text, Loader=_loader()))
        merged = OmegaConf.merge(OmegaConf.structured(Config), stored)
        config = OmegaConf.to_object(merged)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}: not readable as settings: {error}") from error
    assert isinstance(config, Config)
    return config


def latest_config(run_dir: RunDir) -> Config:
    """Return the settings of the last run in a directory, for `resume=`.

    Raises:
        ConfigError: nothing was ever run there.
    """
    run_ids = run_dir.run_ids()
    if not run_ids:
        raise ConfigError(
            f"resume={run_dir.path}: no run was started there; name a run directory, for example "
            "outputs/prompts, or start one: hv15-batch prompts.csv"
        )
    path = run_dir.run_folder(run_ids[-1]) / "config.yaml"
    config = load_config(path.read_text(encoding="utf-8"), path)
    defaults = Config()
    for name in ("limit", "only", "force", "add", "dry_run", "resume"):
        setattr(config, name, getattr(defaults, name))
    config.run_dir = str(run_dir.path)
    return config


# -- one locked run ---------------------------------------------------------------------------


def _run_locked(
    prepared: Prepared,
    run_id: str,
    machine: Machine,
    say: Say,
    make_executor: Callable[[ExecutorSpec], Executor],
) -> int:
    config, run_dir = prepared.config, prepared.run_dir
    _check_owner(run_dir, prepared.manifest.path)
    bring_to_current_schema(run_dir.log)
    planned = plan_against_log(prepared)
    run_dir.create()
    run_dir.sweep_temporary()
    done = sum(p.is_done for p in planned)
    say(f"{run_dir.path}: {f'{done} of {len(planned)} done' if run_dir.run_ids() else 'new'}")
    if done == len(planned):
        return _nothing_to_do(prepared, planned, say)
    facts = system_facts(machine)
    spec = _executor_spec(prepared, run_id, machine, system_sha256(facts))
    _write_run_folder(prepared, run_id, facts)
    log_to_file(run_dir.run_log(run_id))
    say = _also_logged(say)
    write_plan(planned, run_dir.plan, None)
    progress = Progress(run_dir.status, run_id, len(planned), done)
    runner = Runner(
        lambda: make_executor(spec),
        RunLog(run_dir.log, run_id),
        progress,
        run_id,
        prepared.manifest.sha256,
        lambda: _disk_fault(run_dir, planned),
    )
    outcome = Outcome(EXIT_OK, "failed", "ended by an error")
    try:
        outcome = runner.run(planned)
    finally:
        progress.end(outcome.state, outcome.message)
        _write_results(prepared)
    _say_summary(prepared, outcome, say)
    return outcome.exit_code


def _also_logged(say: Say) -> Say:
    def say_and_log(text: str) -> None:
        logger.info("%s", text)
        say(text)

    return say_and_log


def _executor_spec(
    prepared: Prepared, run_id: str, machine: Machine, system: str
) -> ExecutorSpec:
    return ExecutorSpec(
        config=prepared.config,
        run_dir=prepared.run_dir.path,
        run_id=run_id,
        manifest_sha256=prepared.manifest.sha256,
        repo=prepared.checkpoint.repo,
        revision=prepared.checkpoint.revision,
        checkpoint=prepared.checkpoint.folder,
        hostname=machine.hostname,
        system_sha256=system,
    )


def _nothing_to_do(prepared: Prepared, planned: list[PlannedClip], say: Say) -> int:
    suspects = sum(p.last is not None and p.last["status"] == SUSPECT for p in planned)
    say(
        f"Nothing to do: every clip of {prepared.manifest.name} is done"
        + (f", {suspects} of them suspect (retry.suspect=true renders those again)" * bool(suspects))
        + ". force=true renders all again."
    )
    _write_results(prepared)
    say(f"Page: {prepared.run_dir.page}")
    return EXIT_OK


def _write_run_folder(prepared: Prepared, run_id: str, facts: dict[str, Any]) -> None:
    folder = prepared.run_dir.run_folder(run_id)
    folder.mkdir()
    manifest = prepared.manifest
    stored = replace(
        prepared.config,
        manifest=str(manifest.path),
        run_dir=str(prepared.run_dir.path),
        model=replace(prepared.config.model, revision=prepared.checkpoint.revision),
    )
    publish_json(folder / "system.json", facts)
    shutil.copyfile(manifest.path, folder / f"manifest{manifest.path.suffix}")
    # last: a folder with this file is a run that was started
    publish_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(stored)))


def _write_results(prepared: Prepared) -> None:
    """Write plan.csv, clips.csv and the page as things are now."""
    run_dir = prepared.run_dir
    history = History(read_last_attempts(run_dir.log, HISTORY_COLUMNS))
    keep = replace(prepared.config, force=False, limit=None, only=None)
    write_plan(plan_clips(prepared.clips, keep, history, run_dir), run_dir.plan, None)
    write_clips_table(run_dir)
    write_page(run_dir.path)


def _say_summary(prepared: Prepared, outcome: Outcome, say: Say) -> None:
    records = outcome.records
    failed = sum(r.status == FAILED for r in records)
    suspect = sum(r.status == SUSPECT for r in records)
    parts = [f"{len(records) - failed} clips rendered", f"{failed} failed", f"{suspect} suspect"]
    seconds = median_warm_seconds(records)
    if seconds is not None:
        parts.append(f"{seconds:.1f} s per warm clip (median)")
    peaks = [r.peak_vram_reserved_bytes for r in records if r.peak_vram_reserved_bytes is not None]
    if peaks:
        parts.append(f"peak {max(peaks) / 2**30:.1f} GiB")
    say(f"{outcome.state}: {', '.join(parts)}")
    for record in [r for r in records if r.status == FAILED][:5]:
        say(f"  {record.clip_id}: {record.error_type}: {record.error_message}")
    if outcome.message and outcome.state in ("stopped", "interrupted"):
        say(f"{outcome.message}; go on with: hv15-batch resume={prepared.run_dir.path}")
    path = prepared.manifest.path
    if not path.is_file() or sha256_of_file(path) != prepared.manifest.sha256:
        say(f"{path.name} has changed since the start; run again to render what is new in it.")
    say(f"Page: {prepared.run_dir.page}")
    say(f"Clips: {prepared.run_dir.clips}")


# -- checks -----------------------------------------------------------------------------------


def _with_weights(prepared: Prepared, say: Say) -> Prepared:
    """Fetch missing weights; a revision first learnt there goes into the clips' settings."""
    model = prepared.config.model
    if model.weights is not Weights.pretrained or prepared.checkpoint.folder is not None:
        return prepared
    checkpoint = fetch(model, say=say)
    clips = make_clips(prepared.manifest, prepared.config, checkpoint.revision)
    return replace(prepared, checkpoint=checkpoint, clips=clips)


def _check_owner(run_dir: RunDir, manifest: Path) -> None:
    run_ids = run_dir.run_ids()
    if not run_ids:
        return
    path = run_dir.run_folder(run_ids[-1]) / "config.yaml"
    owner = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader()).get("manifest")
    if owner and Path(owner) != manifest:
        raise ConfigError(
            f"run_dir={run_dir.path}: belongs to the manifest {owner}, not to {manifest}; "
            "name another folder with run_dir=DIR."
        )


def _earlier_configs(run_dir: RunDir) -> list[tuple[Config, str | None]]:
    """Return the settings of all earlier runs that differ in what clips are made of."""
    seen: set[str] = set()
    configs = []
    for run_id in reversed(run_dir.run_ids()):
        path = run_dir.run_folder(run_id) / "config.yaml"
        text = path.read_text(encoding="utf-8")
        stored = yaml.load(text, Loader=_loader())
        key = repr([stored.get(f.name) for f in fields(Config) if f.name in _MAKES_CLIPS])
        if key not in seen:
            seen.add(key)
            config = load_config(text, path)
            configs.append((config, config.model.revision))
    return configs


_MAKES_CLIPS = ("model", "sampling", "override", "runtime", "video")


def _disk_fault(run_dir: RunDir, planned: list[PlannedClip]) -> str | None:
    settings = planned[0].clip.settings
    size = (settings.height, settings.width, settings.num_frames)
    lossless = settings.video["codec"] == VideoCodec.ffv1.name
    needed = MIN_FREE_BYTES + 2 * costs.video_bytes_estimate(*size, lossless)
    free = free_disk_bytes(run_dir.path)
    if free >= needed:
        return None
    return f"disk nearly full: {free / 2**30:.1f} GiB free at {run_dir.path}"


def _write_dry_run_plan(prepared: Prepared, planned: list[PlannedClip], say: Say) -> None:
    from hv15_batch.dry_run import count_prompt_tokens

    tokens = count_prompt_tokens(planned, prepared.checkpoint)
    prepared.run_dir.path.mkdir(parents=True, exist_ok=True)
    write_plan(planned, prepared.run_dir.plan, tokens)
    say(f"Every clip: {prepared.run_dir.plan}")


def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
