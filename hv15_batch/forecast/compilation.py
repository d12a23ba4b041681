"""Whether `runtime.compile=auto` compiles: seconds to compile against seconds saved. No torch.

It is decided from the whole manifest, whatever this command renders of it, and kept by all runs of
the run directory, so that all its clips of a model are rendered in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.forecast._quality import of_setting
from hv15_batch.forecast.calibrate import read_log_rows
from hv15_batch.forecast.forecast import Forecast, by_model, make_forecast
from hv15_batch.machine.cards import EXAMPLE, find_card
from hv15_batch.machine.machine import Machine, compiler_fault
from hv15_batch.official.limits import is_official
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.rundir.decided import logged_compile, read_compile
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import counted, format_duration


@dataclass(frozen=True)
class Compilation:
    """Whether the transformer's blocks are compiled, and why."""

    is_on: bool
    words: str = ""
    """One line for the user; empty where it was typed."""
    is_new: bool = False
    """It was decided now, and has to be stored."""

    def in_config(self, config: Config) -> Config:
        """Return settings with the decision in the place of `auto`."""
        return replace(config, runtime=replace(config.runtime, compile=self.is_on))


def decide_compilations(
    config: Config,
    clips: Sequence[PlannedClip],
    machine: Machine,
    run_dir: RunDir,
    rows: list[dict[str, Any]] | None = None,
) -> dict[str, Compilation]:
    """Return `decide_compilation` of each model, for its own clips.

    Args:
        config: Settings, with the card to predict for.
        clips: All clips of the manifest, in any state.
        machine: This one.
        run_dir: Of the run.
        rows: The result of `read_log_rows`; None reads them where they are needed.

    Raises:
        LogSchemaError: The log cannot be read.
    """
    return {
        own.model.name: decide_compilation(own, of_model, machine, run_dir, rows)
        for own, of_model in by_model(config, clips)
    }


def compilation_lines(found: Mapping[str, Compilation]) -> list[str]:
    """Return the lines for the user, with the model where several differ."""
    told = {name: each.words for name, each in found.items() if each.words}
    if len(set(told.values())) == 1 and len(told) == len(found):
        return [next(iter(told.values()))]
    return [f"{name}: {words}" for name, words in told.items()]


def decide_compilation(
    config: Config,
    clips: Sequence[PlannedClip],
    machine: Machine,
    run_dir: RunDir,
    rows: list[dict[str, Any]] | None = None,
) -> Compilation:
    """Return whether a run compiles.

    A typed value holds for its run. `auto` is what was decided before in the run directory, else
    what its finished clips had, else what takes less time for all clips.

    Args:
        config: Settings, with the card to predict for.
        clips: All clips of the manifest with this model, in any state.
        machine: This one.
        run_dir: Of the run.
        rows: The result of `read_log_rows`; None reads them here.

    Raises:
        LogSchemaError: The log cannot be read.
    """
    typed = typed_compile(config)
    if typed is not None:
        return Compilation(typed)
    if is_official(config):
        return Compilation(False)
    if config.model.weights.is_small:
        return Compilation(False, "Compilation: no, on the CPU")
    if fault := _fault(config, machine):
        return Compilation(False, f"Compilation: no; {fault}")
    if (kept := read_compile(run_dir, config)) is not None:
        return _kept(kept, "decided for this run directory")
    if (kept := logged_compile(run_dir, config)) is not None:
        return _kept(kept, "in the clips that are done here")
    return _compared(config, clips, machine, run_dir, rows)


def _fault(config: Config, machine: Machine) -> str | None:
    """Return why nothing can be compiled, or None."""
    is_here = config.runtime.card is None and bool(machine.gpus)
    return compiler_fault() if is_here else None


def _kept(is_on: bool, where: str) -> Compilation:
    other = str(not is_on).lower()
    return Compilation(
        is_on,
        f"Compilation: {_yes(is_on)}, as {where}; runtime.compile={other} changes it"
        f"{_quality(is_on)}",
    )


def _compared(
    config: Config,
    clips: Sequence[PlannedClip],
    machine: Machine,
    run_dir: RunDir,
    rows: list[dict[str, Any]] | None,
) -> Compilation:
    """Return what takes less time for all clips, each denoised."""
    # Latents and finished clips do not count: they differ between the first run and a later one.
    whole = [replace(p, has_latents=False) for p in clips] * (config.benchmark.repeat or 1)
    asked, basis = config, ""
    card = config.runtime.card or (machine.gpu.name if machine.gpu else None)
    if card is not None and find_card(card) is None:
        asked = replace(config, runtime=replace(config.runtime, card=EXAMPLE))
        basis = f", predicted for the {EXAMPLE}, because no figures of this card are known"
    if rows is None:
        rows = [] if card is None else read_log_rows(run_dir.log)
    found: dict[bool, Forecast] = {}
    for is_on in (False, True):
        with suppress(Refused):  # no profile fits, which the run's own forecast will report
            way = Compilation(is_on).in_config(asked)
            if (forecast := make_forecast(way, whole, machine, run_dir.log, rows)) is not None:
                found[is_on] = forecast
    if len(found) < 2:
        is_on = True in found
        words = "Compilation: yes; without it no offload profile fits" + _quality(True)
        words *= is_on
        return Compilation(is_on, words, is_new=is_on)
    return _shorter({way: f.total_seconds(whole) for way, f in found.items()}, found, whole, basis)


def _shorter(
    seconds: Mapping[bool, float],
    forecasts: Mapping[bool, Forecast],
    clips: Sequence[Any],
    basis: str,
) -> Compilation:
    costs = forecasts[True].start.compile_seconds
    saves = seconds[False] - seconds[True] + costs
    is_on = saves > costs
    verbs = ("takes", "saves") if is_on else ("would take", "save")
    return Compilation(
        is_on,
        f"Compilation: {_yes(is_on)}; it {verbs[0]} about {format_duration(costs)} and {verbs[1]} "
        f"about {format_duration(saves)} in the manifest's {counted(len(clips), 'clip')}{basis}"
        f"{_quality(is_on)}",
        is_new=True,
    )


def _quality(is_on: bool) -> str:
    """Return what compiling costs in quality, for the end of a line; empty without it."""
    return f"; quality: {of_setting('compile')}" if is_on else ""


def _yes(is_on: bool) -> str:
    return "yes" if is_on else "no"
