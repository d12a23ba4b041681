"""What watches one run: its progress with the expected end, and the notices."""

from __future__ import annotations

from dataclasses import replace

from hv15_batch.eta import EtaEstimator
from hv15_batch.forecast import Forecast, make_forecast
from hv15_batch.machine import Machine
from hv15_batch.notices import Notices
from hv15_batch.notify import Notifier, parse_command
from hv15_batch.prepare import Planned, Prepared
from hv15_batch.progress import Progress
from hv15_batch.stored_settings import to_type_again


def start_watching(
    prepared: Prepared,
    planned: Planned,
    run_id: str,
    machine: Machine,
    forecast: Forecast | None,
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
        eta=EtaEstimator(planned.todo, forecast),
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
