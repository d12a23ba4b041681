"""One run from settings to exit code: prepare it, refuse or render it, and report how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch.clock import Clock
from hv15_batch.config.checks import parse_command
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.local import LocalExecutor, set_allocator
from hv15_batch.dispatch.protocol import Executor, ExecutorSpec, Job
from hv15_batch.errors import (
    EXIT_FAULT,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_SIGINT,
    EXIT_SOME_FAILED,
    Refused,
    Secondary,
)
from hv15_batch.figures.tables import write_timing_tables
from hv15_batch.forecast.compilation import compilation_lines
from hv15_batch.forecast.seconds import COMPILE_SECONDS
from hv15_batch.machine.machine import read_machine
from hv15_batch.machine.system import system_facts, system_sha256
from hv15_batch.official.limits import is_official
from hv15_batch.planning.tables import is_up_to_date, write_plan
from hv15_batch.planning.todo import Todo
from hv15_batch.report.live import live_page
from hv15_batch.run import _cluster
from hv15_batch.run._cluster import OpenCluster, as_one, open_ray
from hv15_batch.run._inputs import check_rewriter, copy_manifest, rewritten, write_rows
from hv15_batch.run._notify import Notices, Notifier
from hv15_batch.run._preflight import check_measuring, licence_notes, refuse_or_note
from hv15_batch.run._progress import Progress
from hv15_batch.run._results import (
    calibrate,
    clips_of_now,
    up_to_date,
    write_films,
    write_results,
    write_tables_and_page,
)
from hv15_batch.run._run import Run, make_run, planned_again
from hv15_batch.run.outcome import (
    Finished,
    Listen,
    Outcome,
    Started,
    closing_lines,
    headline,
    nothing_to_do,
)
from hv15_batch.run.outlook import make_plan
from hv15_batch.run.prepare import (
    Asked,
    check_device,
    lacks_weights,
    plan_against_log,
    prepare,
    stored_config,
    with_weights,
)
from hv15_batch.run.rendering.arrivals import SeatsTaken
from hv15_batch.run.rendering.fitting import Fitting
from hv15_batch.run.rendering.journal import FailedCompilation
from hv15_batch.run.rendering.loop import Loop
from hv15_batch.run.rendering.stalls import PATIENCE, Patience
from hv15_batch.run.rendering.supervisor import Start, make_supervisors
from hv15_batch.run.rendering.team import Team
from hv15_batch.run.schedule import FirstClip, Rules, check_window, read_rules
from hv15_batch.rundir.chosen.previews import clear_previews
from hv15_batch.rundir.decided import write_compile
from hv15_batch.rundir.log import (
    bring_to_current_schema,
    foreign_note,
)
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_json
from hv15_batch.rundir.status import settle
from hv15_batch.rundir.store import hold
from hv15_batch.rundir.stored import check_owner, to_type_again, withdraw_settings, write_settings
from hv15_batch.rundir.text_log import text_log
from hv15_batch.units import Say
from hv15_batch.weights.transformer import make_transformers

logger = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""A shard that was told to stop waits at most this long to write tables and page."""


def run(
    config: Config,
    typed: tuple[str, ...],
    sweep: str | None,
    say: Say,
    make_executor: Callable[[ExecutorSpec], Executor] = LocalExecutor,
    patience: Patience = PATIENCE,
    clock: Clock | None = None,
    typed_line: str = "",
    content: bytes | None = None,
    listener: Listener | None = None,
    swept: tuple[str, ...] = (),
    open_cluster: OpenCluster = open_ray,
) -> int:
    """Carry out one run and return its exit code.

    Args:
        config: All settings; `manifest` as typed.
        typed: The keys that were typed on the command line: those of `sampling` without their
            section, and `model.*`.
        sweep: Name of this run's folder in a sweep, else None.
        say: Prints a line for the user.
        make_executor: Makes the executor that renders.
        patience: The shortest silence after which a worker counts as dead.
        clock: Counts from the start of the command; None starts one.
        typed_line: The command line without secrets; run.log begins with it.
        content: The bytes of the manifest, if its rows came from a DataFrame.
        listener: Receives the events, and nothing is printed; None prints.
        swept: Settings that the sweep varies.
        open_cluster: Reaches the cluster that renders with `dispatch=ray`.

    Raises:
        Refused: The run is refused, and nothing was touched.
        LogSchemaError: The log of the run directory cannot be read.
    """
    rules = read_rules(config, clock or Clock())
    asked = replace(prepare(config, typed, sweep, content, swept), typed_line=typed_line)
    set_allocator()  # before the machine is read, so that the log has it
    if config.dry_run:
        return show(asked, rules, say)
    todo = plan_against_log(asked)
    with _cluster.cluster_for(asked, todo, open_cluster) as cluster:
        start = Start(make_executor, patience, cluster)
        return _run(asked, todo, rules, start, say, listener)


def _run(
    asked: Asked, todo: Todo, rules: Rules, start: Start, say: Say, listener: Listener | None
) -> int:
    """Carry out a run with these workers."""
    run_dir, cluster = asked.run_dir, start.cluster
    seats = cluster.first_seats() if cluster is not None else ()
    machine = as_one(read_machine(), seats)
    check_measuring(asked, todo, machine)
    check_device(asked, todo, machine)
    check_rewriter(asked, todo)
    run = make_run(asked, todo, machine, rules, seats)
    notes = [*asked.manifest.notes, *(cluster.take_notes() if cluster else ())]
    notes += run.notes if run else ()
    is_elsewhere = bool(seats) and asked.config.dispatch.address is not None
    kinds = run.offload_kinds if run and not is_elsewhere else ()  # what they write on this disk
    notes += refuse_or_note(asked, todo, kinds, len(run.cards)) if run else ()
    is_announced = lacks_weights(asked, todo)
    if is_announced:
        _say_all([headline(run_dir, todo), *notes], say)
        asked = with_weights(asked, todo, say)
        _say_all(licence_notes(c for _, c in asked.models(todo)), say)
    make_transformers(((own.model, c.transformer) for own, c in asked.models(todo)), say)
    run_dir.create()
    run_id = run_dir.new_run_id()
    with hold(run_dir, run_id, say) as held:
        check_owner(run_dir, asked.manifest.path)
        if bring_to_current_schema(run_dir.own_log) and held.store is not None:
            held.store.put_upgraded()
        todo = plan_against_log(asked, todo)
        if asked.config.rewrite.is_on:
            _say_all([] if is_announced else [headline(run_dir, todo), *notes], say)
            is_announced, asked = True, rewritten(asked, todo, say)
            if held.store is not None:
                held.store.put_rewrites()
            todo = plan_against_log(asked)
        if lacks_weights(asked, todo):
            raise Refused(
                f"run_dir={run_dir.shown()}: clips were finished here meanwhile, and those that "
                "are left need weights that are not on disk; run the same command again."
            )
        # With `limit` a further model may be reached now, which needs all that the others did.
        check_measuring(asked, todo, machine)
        check_device(asked, todo, machine)
        make_transformers(((own.model, c.transformer) for own, c in asked.models(todo)), say)
        run = (
            planned_again(run, asked, todo) if run else make_run(asked, todo, machine, rules, seats)
        )
        if not is_announced:
            _say_all([headline(run_dir, todo), *notes], say)
        if foreign := foreign_note(run_dir.log):
            say(foreign)
        run_dir.sweep_temporary()
        clear_previews(run_dir)
        write_rows(asked.manifest)
        if listener is not None:
            listener.listen(_started(run_dir, run_id, todo))
        if run is None:
            return _nothing_to_do(asked, todo, say)
        start = replace(start, lock_descriptor=held.lock_descriptor)
        if cluster is not None:
            _cluster.store_first_frames(run_dir, todo)
        return _render(_begin(replace(run, store=held.store), run_id, say), start, say, listener)


@dataclass(frozen=True)
class Listener:
    """The Python code that started a run."""

    listen: Listen
    received: list[int]
    """Signals that it sends to end the run, see `Signals`."""


def _started(run_dir: RunDir, run_id: str, todo: Todo) -> Started:
    return Started(run_dir.path, run_id, todo.num_total, todo.num_done, len(todo.to_render))


def _say_all(lines: Iterable[str], say: Say) -> None:
    for line in lines:
        say(line)


# -- a run that renders -----------------------------------------------------------------------


def _begin(run: Run, run_id: str, say: Say) -> Run:
    """Make the run's folder and return the run with its id.

    Raises:
        Refused: A clip is longer than `window`, or the manifest is gone.
    """
    jobs = (Job(p.clip, p.attempts + 1, p.use_latents, p.repeat) for p in run.todo.to_render)
    check_window(run.rules.window, ((j.clip.clip_id, run.pace.clip_seconds(j)) for j in jobs))
    facts = system_facts(None if run.seats else run.machine)
    with run.run_dir.moment():
        if run.run_dir.shard is not None:  # another shard may just have decided
            run = planned_again(run, run.asked, run.todo) or run
        for name, found in run.compilations.items():
            if found.is_new:
                write_compile(run.run_dir, run.asked.config_of(name), found.is_on)
    if run.gpu is not None:
        _say_all([*run.offload_lines(), *compilation_lines(run.compilations)], say)
    _write_run_folder(run.asked, run_id, facts)
    return replace(run, run_id=run_id, system_sha256=system_sha256(facts))


def _render(run: Run, start: Start, say: Say, listener: Listener | None) -> int:
    listen = listener.listen if listener else None
    with text_log(run.run_dir.run_log(run.run_id), is_alone=listener is None, tell=say):
        if run.asked.typed_line:
            logger.info("typed: %s", run.asked.typed_line)
        _write_first_plan(run, say)
        if run.store is not None:
            run.store.put_start()
        progress = _progress_of(run, listen)
        notify = run.config.notify
        notifier = Notifier(parse_command(notify.command), notify.timeout_seconds)
        notices = Notices(notifier, run.run_dir, progress.snapshot, progress.say)
        received = listener.received if listener else []
        if run.store is not None:
            run.store.signals = received
        first = FirstClip(run.rules, run.pace, progress.say, COMPILE_SECONDS[0])
        watchers = (notices, first, FailedCompilation(run))
        fitting = Fitting(run)
        loop = Loop(fitting, _team(fitting, start, progress), progress, watchers, received)
        outcome = Outcome(EXIT_FAULT, "failed", "ended by an error, see run.log")
        try:
            with live_page(run.run_dir.path):
                outcome = loop.render()
        except Refused as error:
            outcome.exit_code, outcome.message = EXIT_REFUSED, str(error)
            if not loop.journal.has_rows:
                withdraw_settings(run.run_dir.run_folder(run.run_id))
            raise
        except Exception:
            logger.exception("ended by an error")
            raise
        finally:
            progress.end(outcome.state, outcome.message)
            clear_previews(run.run_dir)
            if outcome.exit_code not in (EXIT_FAULT, EXIT_REFUSED):
                _finish(run, outcome, say)
            with Secondary("the last notice is lost", say):
                notices.end(outcome.state, outcome.message, outcome.exit_code)
        if listen is not None:
            listen(Finished(outcome))
    return outcome.exit_code


def _team(fitting: Fitting, start: Start, progress: Progress) -> Team:
    if start.cluster is None:
        return Team(make_supervisors(fitting, start))
    seats = SeatsTaken(fitting, start.cluster, start.patience, progress)
    return Team(seats.first(), seats)


def _write_first_plan(run: Run, say: Say) -> None:
    """Write plan.csv. If the disk has no room for it, the run ends before the first clip.

    Raises:
        OSError: It cannot be written.
    """
    predict = run.forecast.stage_seconds if run.forecast else None
    with up_to_date("plan.csv", say) as written:
        write_plan(run.todo.clips, run.run_dir.plan, None, predict)
    if isinstance(written.error, OSError):
        raise written.error


def _progress_of(run: Run, listen: Listen | None) -> Progress:
    """Return what shows the run, and write the first status.json."""
    return Progress(
        run.run_dir.status,
        run.run_id,
        run.todo.num_total,
        run.todo.num_done,
        again=run.todo.again,
        type_again=to_type_again(run.config),
        pace=run.pace,
        ends_after=run.rules.ends_after,
        cards=[card.uuid if card and not run.seats else None for card in run.cards],
        listen=listen,
        workers=run.places,
        may_grow=bool(run.seats),
    )


def _finish(run: Run, outcome: Outcome, say: Say) -> None:
    """Write tables and page, and report how the run ended, even if tables or page fail."""
    lines: list[str] = []
    with Secondary("the summary is cut off", lines.append):
        lines.extend(
            closing_lines(run.asked, outcome, run.pace.seconds_per_clip, run.todo.num_left_out)
        )
    if run.config.benchmark.calibrate:
        with Secondary("nothing is kept for later predictions", lines.append):
            lines += calibrate(run)
    if run.store is not None:
        with Secondary("the page lacks what other shards did meanwhile", lines.append):
            run.store.pull_others()
    if is_official(run.config):  # a script that was ended has left what it wrote so far
        with Secondary("unfinished files are left until the next run", lines.append):
            run.run_dir.sweep_temporary()
    is_stopped = outcome.exit_code >= EXIT_SIGINT
    lines += write_results(run.asked, STOP_SECONDS if is_stopped else None)
    for line in lines:
        logger.info("%s", line)
        say(line)


def _write_run_folder(asked: Asked, run_id: str, facts: dict[str, Any]) -> None:
    folder = asked.run_dir.run_folder(run_id)
    folder.mkdir()
    manifest = asked.manifest
    publish_json(folder / "system.json", facts)
    copy_manifest(manifest, folder)
    stored = replace(
        stored_config(asked), manifest=str(manifest.path), run_dir=asked.run_dir.shown()
    )
    write_settings(folder, stored)


# -- a run that renders nothing ---------------------------------------------------------------


def _nothing_to_do(asked: Asked, todo: Todo, say: Say) -> int:
    run_dir = asked.run_dir
    if todo.num_done == todo.num_total and todo.repetitions is None:
        settle(run_dir.status, todo.num_total)
    lines: list[str] = []
    with up_to_date("the page", lines.append), run_dir.moment():
        is_stale = True
        with up_to_date("plan.csv", lines.append):
            is_as_planned = run_dir.shard is None and not todo.skipped
            clips = todo.clips if is_as_planned else clips_of_now(asked)
            if todo.repetitions is None:
                write_films(clips, run_dir, lines)
            is_stale = write_plan(clips, run_dir.plan, None) or not is_up_to_date(run_dir)
        if is_stale:
            write_tables_and_page(run_dir, False, lines)
    if todo.repetitions is not None:
        say("Nothing to do: every repetition is measured. force=true measures again.")
        with up_to_date("benchmark.csv", lines.append):
            lines += write_timing_tables(run_dir)
    else:
        lines += nothing_to_do(asked.config, run_dir, asked.manifest, todo.selected)
    _say_all(lines, say)
    return EXIT_SOME_FAILED if todo.skipped else EXIT_OK


def show(asked: Asked, rules: Rules, say: Say) -> int:
    """Carry out a dry run: print what a run would do, and write its plan."""
    plan = make_plan(asked, rules, say)
    _say_all(_cluster.dry_run_notes(asked.config), say)
    say(f"Every clip: {plan.write()}")
    return EXIT_OK
