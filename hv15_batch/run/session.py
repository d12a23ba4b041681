"""One invocation from settings to exit code: prepare, refuse or run, and say how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hv15_batch import __version__
from hv15_batch.clock import Clock
from hv15_batch.config.checks import parse_command
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.local import LocalExecutor, set_allocator
from hv15_batch.dispatch.protocol import Executor, ExecutorSpec, Job
from hv15_batch.errors import EXIT_FAULT, EXIT_OK, EXIT_REFUSED, ConfigError, LogSchemaError
from hv15_batch.figures.tables import write_timing_tables
from hv15_batch.forecast.disk import disk_need
from hv15_batch.forecast.forecast import Forecast, make_forecast
from hv15_batch.forecast.offload import OffloadChoice, choose_offload
from hv15_batch.forecast.pace import Pace, make_pace
from hv15_batch.machine.machine import Machine, read_machine
from hv15_batch.machine.system import system_facts, system_sha256
from hv15_batch.manifest.read import Manifest
from hv15_batch.planning.plan import HISTORY_COLUMNS, History, plan_clips
from hv15_batch.planning.tables import is_up_to_date, write_clips_table, write_plan
from hv15_batch.report.live import live_page
from hv15_batch.report.render import write_page
from hv15_batch.run.dry_run import count_prompt_tokens, predict_run, print_dry_run
from hv15_batch.run.loop import Runner
from hv15_batch.run.notify import Notices, Notifier
from hv15_batch.run.outcome import Outcome, closing_lines, headline, nothing_to_do
from hv15_batch.run.preflight import disk_fault, find_hindrances, licence_notes, refuse_or_note
from hv15_batch.run.prepare import (
    Planned,
    Prepared,
    Say,
    attention_fault,
    check_device,
    lacks_weights,
    offline_fault,
    plan_against_log,
    prepare,
    todo_with,
    with_weights,
)
from hv15_batch.run.progress import Progress
from hv15_batch.run.schedule import Gate, Rules, Schedule, Stop, Verdict, check_window, read_rules
from hv15_batch.run.stalls import PATIENCE, Patience
from hv15_batch.run.supervisor import Start, lost_gpu, make_supervisor
from hv15_batch.rundir.log import RunLog, bring_to_current_schema, read_last_attempts
from hv15_batch.rundir.publish import publish_copy, publish_json
from hv15_batch.rundir.status import settle
from hv15_batch.rundir.stored import check_owner, to_type_again, withdraw_settings, write_settings
from hv15_batch.rundir.text_log import text_log

logger = logging.getLogger(__name__)


def run(
    config: Config,
    typed_sampling: tuple[str, ...],
    sweep: str | None,
    say: Say,
    make_executor: Callable[[ExecutorSpec], Executor] = LocalExecutor,
    patience: Patience = PATIENCE,
    clock: Clock | None = None,
    typed_line: str = "",
) -> int:
    """Carry out one job and return its exit code.

    Args:
        config: All settings; `manifest` as typed.
        typed_sampling: The `sampling.*` keys that were typed on the command line.
        sweep: Name of this job's folder in a sweep, else None.
        say: Prints a line for the user.
        make_executor: What renders.
        patience: How long a silent worker is given at least.
        clock: Counts from the start of the command; None starts one.
        typed_line: The command line without secrets; run.log begins with it.

    Raises:
        ConfigError: refused; nothing was touched.
        LogSchemaError: the log of the run directory cannot be read.
    """
    rules = read_rules(config, clock or Clock())
    prepared = replace(prepare(config, typed_sampling, sweep), typed_line=typed_line)
    run_dir = prepared.run_dir
    set_allocator()  # before the machine is read, so that the log tells it
    if config.dry_run:
        return _dry_run(prepared, rules, say)
    machine = read_machine()
    check_device(config, machine)
    planned = plan_against_log(prepared)
    notes = refuse_or_note(prepared, planned, machine)
    is_announced = bool(planned.todo) and lacks_weights(prepared)
    if is_announced:
        _say_all([headline(run_dir, planned), *notes], say)
        prepared = with_weights(prepared, say)
        _say_all(licence_notes(prepared.checkpoint), say)
    run_dir.create()
    run_id = run_dir.new_run_id()
    with run_dir.locked(run_id) as lock:
        check_owner(run_dir, prepared.manifest.path)
        bring_to_current_schema(run_dir.log)
        planned = plan_against_log(prepared)
        if not is_announced:
            _say_all([headline(run_dir, planned), *notes], say)
        run_dir.sweep_temporary()
        start = Start(make_executor, patience, lock)
        if planned.todo:
            return _render(prepared, planned, run_id, rules, machine, say, start)
        return _nothing_to_do(prepared, planned, say)


def _say_all(lines: Iterable[str], say: Say) -> None:
    for line in lines:
        say(line)


# -- a run that renders -----------------------------------------------------------------------


def _render(
    prepared: Prepared,
    planned: Planned,
    run_id: str,
    rules: Rules,
    machine: Machine,
    say: Say,
    start: Start,
) -> int:
    run_dir, todo = prepared.run_dir, planned.todo
    facts = system_facts(machine)
    choice = choose_offload(prepared.config, [p.clip.settings for p in todo], machine)
    forecast = run_forecast(prepared, planned, machine)
    pace = make_pace(forecast, run_dir, rules.clock, todo)
    jobs = (Job(p.clip, p.attempts + 1, p.use_latents, p.repeat) for p in todo)
    check_window(rules.window, ((j.clip.clip_id, pace.clip_seconds(j)) for j in jobs))
    if choice.budget_bytes is not None:
        say(choice.reason)
    spec = _executor_spec(prepared, run_id, machine, system_sha256(facts), choice)
    _write_run_folder(prepared, run_id, facts)
    with text_log(run_dir.run_log(run_id)):
        if prepared.typed_line:
            logger.info("typed: %s", prepared.typed_line)
        predict = forecast.stage_seconds if forecast else None
        write_plan(planned.clips, run_dir.plan, None, predict)
        progress, notices = start_watching(prepared, planned, run_id, machine, pace)
        progress.ends_after = rules.ends_after
        runner = Runner(
            make_supervisor(spec, start, pace),
            RunLog(run_dir.log, run_id),
            progress,
            _known_columns(spec),
            prepared.config.retry,
            _gate(prepared, planned, Schedule(rules, run_dir.pause, pace.clip_seconds)),
            pace,
            rules.clock,
            lambda: lost_gpu(spec, machine),
        )
        outcome = Outcome(EXIT_FAULT, "failed", "ended by an error, see run.log")
        try:
            with live_page(run_dir.path):
                outcome = runner.run(todo)
        except ConfigError as error:
            outcome.exit_code, outcome.message = EXIT_REFUSED, str(error)
            if not runner.has_logged:
                withdraw_settings(run_dir.run_folder(run_id))
            raise
        except Exception:
            logger.exception("ended by an error")
            raise
        finally:
            progress.end(outcome.state, outcome.message)
            try:
                if outcome.exit_code not in (EXIT_FAULT, EXIT_REFUSED):
                    _end(prepared, outcome, pace, say)
            finally:
                notices.end(outcome.state, outcome.message, outcome.exit_code)
    return outcome.exit_code


def _gate(prepared: Prepared, planned: Planned, schedule: Schedule) -> Gate:
    """Return what is asked before each clip: the disk, then the clock."""
    folder, need = prepared.run_dir.path, disk_need(planned.todo, prepared.config)

    def gate(job: Job) -> Verdict:
        fault = disk_fault(folder, need)
        return Stop(fault) if fault else schedule(job)

    return gate


def _end(prepared: Prepared, outcome: Outcome, pace: Pace, say: Say) -> None:
    """Write tables and page, and say how it ended; a disk that is full cannot hide that."""
    lines = list(closing_lines(prepared, outcome, pace.seconds_per_clip))
    try:
        lines += _write_results(prepared)
    except (OSError, ConfigError, LogSchemaError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        lines.append(f"plan.csv, clips.csv and the page are not up to date ({why})")
    for line in lines:
        logger.info("%s", line)
        say(line)


def _executor_spec(
    prepared: Prepared, run_id: str, machine: Machine, system: str, choice: OffloadChoice
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
        offload=choice.kind,
        budget_bytes=choice.budget_bytes,
        streams_text_encoder=choice.streams_text_encoder,
    )


def _known_columns(spec: ExecutorSpec) -> dict[str, Any]:
    """Return what the parent knows of an attempt that left no record of its own."""
    return {
        "run_id": spec.run_id,
        "manifest_sha256": spec.manifest_sha256,
        "repo": spec.repo,
        "task": spec.config.model.task.name,
        "hostname": spec.hostname,
        "system_sha256": spec.system_sha256,
        "hv15_batch_version": __version__,
    }


def _write_run_folder(prepared: Prepared, run_id: str, facts: dict[str, Any]) -> None:
    folder = prepared.run_dir.run_folder(run_id)
    folder.mkdir()
    manifest = prepared.manifest
    publish_json(folder / "system.json", facts)
    _copy_manifest(manifest, folder)
    stored = replace(
        prepared.config,
        manifest=str(manifest.path),
        run_dir=str(prepared.run_dir.path),
        model=replace(prepared.config.model, revision=prepared.checkpoint.revision),
    )
    write_settings(folder, stored)


def _copy_manifest(manifest: Manifest, folder: Path) -> None:
    try:
        publish_copy(folder / f"manifest{manifest.path.suffix}", manifest.path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{manifest.path}: has gone since it was read; put it back and run again."
        ) from error


def _write_results(prepared: Prepared) -> list[str]:
    """Write plan.csv, clips.csv, the page and a benchmark's tables; return what those say."""
    run_dir = prepared.run_dir
    config = replace(prepared.config, force=False)
    history = History(read_last_attempts(run_dir.log, HISTORY_COLUMNS))
    write_plan(plan_clips(prepared.clips, config, history, run_dir), run_dir.plan, None)
    write_clips_table(run_dir)
    # Before the page, which links them.
    said = [] if config.benchmark.repeat is None else write_timing_tables(run_dir)
    write_page(run_dir.path)
    return said


# -- a run that renders nothing ---------------------------------------------------------------


def _nothing_to_do(prepared: Prepared, planned: Planned, say: Say) -> int:
    run_dir = prepared.run_dir
    if planned.num_done == planned.num_total and planned.repetitions is None:
        settle(run_dir.status, planned.num_total)
    if write_plan(planned.clips, run_dir.plan, None) or not is_up_to_date(run_dir):
        write_clips_table(run_dir)
        write_page(run_dir.path)
    if planned.repetitions is not None:
        say("Nothing to do: every repetition is measured. force=true measures again.")
        for line in write_timing_tables(run_dir):
            say(line)
        return EXIT_OK
    for line in nothing_to_do(prepared.config, run_dir, prepared.manifest, planned.selected):
        say(line)
    return EXIT_OK


def _dry_run(prepared: Prepared, rules: Rules, say: Say) -> int:
    run_dir, checkpoint = prepared.run_dir, prepared.checkpoint
    planned = plan_against_log(prepared)
    plan_bytes = disk_need(planned.todo, prepared.config).plan_bytes
    print_dry_run(prepared.manifest, planned.selected, checkpoint, prepared.beaten, plan_bytes, say)
    if planned.repetitions is not None:
        say(planned.repetitions.describe())
    replan = partial(todo_with, prepared)
    machine = read_machine()
    forecast, lines = predict_run(
        prepared.config, planned.todo, machine, run_dir.log, rules, replan
    )
    _say_all(lines, say)
    if planned.todo:
        offload = forecast.offload.kind if forecast else None
        findings = find_hindrances(prepared, planned, offload)
        _say_all(findings.notes, say)
        faults = (
            attention_fault(prepared.config),
            offline_fault(prepared),
            *findings.refusals,
        )
        _say_all((f"A run would be refused: {fault}" for fault in faults if fault), say)
    tokens = count_prompt_tokens(planned.clips, checkpoint)
    run_dir.create_folder()
    predict = forecast.stage_seconds if forecast else None
    write_plan(planned.clips, run_dir.plan, tokens, predict)
    say(f"Every clip: {run_dir.plan}")
    return EXIT_OK


def start_watching(
    prepared: Prepared,
    planned: Planned,
    run_id: str,
    machine: Machine,
    pace: Pace,
) -> tuple[Progress, Notices]:
    """Return what shows a run and what tells of it; status.json is there from now on."""
    run_dir, notify = prepared.run_dir, prepared.config.notify
    progress = Progress(
        run_dir.status,
        run_id,
        planned.num_total,
        planned.num_done,
        again=planned.again,
        type_again=to_type_again(prepared.config),
        pace=pace,
        gpu_uuid=machine.gpus[0].uuid if machine.gpus else None,
    )
    notifier = Notifier(parse_command(notify.command), notify.timeout_seconds)
    notices = Notices(notifier, run_dir, progress.snapshot, progress.say)
    progress.on_finished = notices.finished
    return progress, notices


def run_forecast(prepared: Prepared, planned: Planned, machine: Machine) -> Forecast | None:
    """Return the forecast for this machine's card; None where nothing is known of it."""
    config = prepared.config
    here = replace(config, runtime=replace(config.runtime, card=None))
    return make_forecast(here, planned.todo, machine, prepared.run_dir.log)
