"""What a run writes when it ends: plan.csv, clips.csv, the page, and a benchmark's tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hv15_batch.errors import Secondary
from hv15_batch.figures.tables import write_timing_tables
from hv15_batch.forecast.calibrate import COLUMNS, is_warm_measurement, remember
from hv15_batch.forecast.wording import against_prediction
from hv15_batch.planning.chains import with_chains
from hv15_batch.planning.films import build_films
from hv15_batch.planning.plan import PlannedClip, plan_clips, read_history
from hv15_batch.planning.tables import write_clips_table, write_plan
from hv15_batch.report.render import write_page
from hv15_batch.run._run import Run
from hv15_batch.run.prepare import Asked
from hv15_batch.rundir.log import read_records
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import Say


def write_results(asked: Asked, seconds: float | None) -> list[str]:
    """Write plan.csv, clips.csv, the page and a benchmark's tables; return lines about them.

    If one of them fails, a line reports it, and the others are still written. Shards write them one
    after the other, each from the logs of all: so those of the last one are complete.

    Args:
        asked: The request.
        seconds: A shard waits at most this long for the others; None means some minutes.
    """
    run_dir = asked.run_dir
    lines: list[str] = []
    with up_to_date("the page", lines.append), run_dir.moment(seconds):
        with up_to_date("plan.csv", lines.append):
            clips = clips_of_now(asked)
            write_plan(clips, run_dir.plan, None)
            if seconds is None and not asked.config.benchmark.repeat:
                write_films(clips, run_dir, lines)
        write_tables_and_page(run_dir, asked.config.benchmark.repeat is not None, lines)
    return lines


def clips_of_now(asked: Asked) -> list[PlannedClip]:
    """Return every clip with its state by the logs of this moment."""
    history = read_history(asked.run_dir)
    config = replace(asked.config, force=False)
    planned = plan_clips(asked.clips, config, history, asked.run_dir)
    return with_chains(planned, asked.run_dir, is_over=True)


def write_films(clips: Sequence[PlannedClip], run_dir: RunDir, lines: list[str]) -> None:
    """Build the films that are missing; add lines about them."""
    with up_to_date("films/", lines.append):
        lines.extend(build_films(clips, run_dir))


def write_tables_and_page(run_dir: RunDir, is_benchmark: bool, lines: list[str]) -> None:
    """Write clips.csv, a benchmark's tables and the page; add lines about them."""
    with up_to_date("clips.csv", lines.append):
        write_clips_table(run_dir)
    if is_benchmark:  # before the page, which links them
        with up_to_date("benchmark.csv", lines.append):
            lines += write_timing_tables(run_dir)
    with up_to_date("the page", lines.append):
        write_page(run_dir.path)


def up_to_date(what: str, tell: Say) -> Secondary:
    """Return what keeps a failure to write from ending the run, and reports it."""
    return Secondary(f"{what} is not up to date", tell)


def calibrate(run: Run) -> Iterator[str]:
    """Compare this run's warm clips with the prediction, and keep them for later ones."""
    columns = (*COLUMNS, "run_id", "peak_vram_device_bytes")
    rows = [
        row
        for row in read_records(run.run_dir.log, columns).to_pylist()
        if row["run_id"] == run.run_id and is_warm_measurement(row)
    ]
    if run.forecast is not None:
        yield from against_prediction(run.forecast, rows)
    if rows:
        yield f"Later predictions for this card are calibrated by it: {remember(rows)}"
