"""A comparison of two runs: its numbers, and the lines that sum them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.compare._pairs import Matched, Pair, Record, match_runs
from hv15_batch.compare._quality import Quality, measure_pair, pair_line
from hv15_batch.compare._quality import quality_lines as lines_of_quality
from hv15_batch.compare._ratios import Costs, Ratio, compare_costs
from hv15_batch.figures.facts import noise_notes
from hv15_batch.figures.groups import GROUP_COLUMNS, Distribution, group_rows
from hv15_batch.units import counted, format_gib

Say = Callable[[str], None]

COLUMNS = ("repo", "negative_prompt", "attention_backend_requested", *GROUP_COLUMNS)
"""Settings and machine of a clip that "what differs" is about."""
MACHINE_COLUMNS = ("gpu_name", "driver_version", "torch_version", "diffusers_version")
MAX_SHOWN_VALUES = 4
NOTHING = "none"
LOCAL_FILE_SUFFIXES = (".safetensors", ".gguf")

WITHHELD = (
    "Speed and memory: withheld, because no pair's quality could be measured; "
    "a speed-up means nothing without it"
)


@dataclass(frozen=True)
class SettingsRow:
    """One setting of both runs, as text."""

    name: str
    a: str
    b: str
    is_same: bool
    """Whether it is equal in the two clips of every pair."""


@dataclass(frozen=True)
class Comparison:
    """Everything that was found of two runs."""

    matched: Matched
    qualities: list[Quality]
    costs: list[Costs]
    """Time and memory; of the groups that have a pair of known quality."""
    settings: list[SettingsRow]

    @property
    def known(self) -> list[Quality]:
        """The pairs with a measured quality; the speed of others is not shown."""
        return [quality for quality in self.qualities if quality.is_known]


def compare_runs(path_a: Path, path_b: Path, say: Say) -> Comparison:
    """Compare two runs; measuring frames takes a few seconds a pair, so each is announced.

    Raises:
        Refused: nothing to compare.
        LogSchemaError: a log cannot be read.
    """
    matched = match_runs(path_a, path_b)
    qualities = []
    for number, pair in enumerate(matched.pairs, 1):
        qualities.append(measure_pair(matched.a, matched.b, pair))
        line = pair_line(qualities[-1])
        say(f"[{number}/{len(matched.pairs)}] {pair.row_id} seed {pair.seed}: {line}")
    known = [quality.pair for quality in qualities if quality.is_known]
    return Comparison(
        matched=matched,
        qualities=qualities,
        costs=compare_costs(known, group_rows(matched.rows_a), group_rows(matched.rows_b)),
        settings=[_settings_row(name, matched.pairs) for name in COLUMNS],
    )


# -- settings ---------------------------------------------------------------------------------


def _settings_row(name: str, pairs: Sequence[Pair]) -> SettingsRow:
    values = [(_setting(name, pair.a), _setting(name, pair.b)) for pair in pairs]
    is_same = all(a == b for a, b in values)
    return SettingsRow(name, _joined(a for a, _ in values), _joined(b for _, b in values), is_same)


def _joined(texts: Iterable[str]) -> str:
    """Return the values of a column as one text."""
    found = set(texts)
    shown = ", ".join(sorted(found)[:MAX_SHOWN_VALUES])
    more = len(found) - MAX_SHOWN_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def _setting(name: str, record: Record) -> str:
    value: Any = record[name]
    if value is None:
        return NOTHING
    if name == "repo":
        return _weights_name(str(value), record["revision"])
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if str(value).strip() else repr(value)


def _weights_name(repo: str, revision: str | None) -> str:
    """Return a hub id as it is, and local weights without their folder.

    Those go by the name of a single file, and by 8 hex digits of their hash.
    """
    if repo.count("/") == 1 and repo[0] not in "/.~":
        return repo
    path = Path(repo)
    name = path.name if path.suffix in LOCAL_FILE_SUFFIXES else "local folder"
    return f"{name} {revision[:8]}" if revision else name


# -- lines ------------------------------------------------------------------------------------


def summary_lines(comparison: Comparison) -> list[str]:
    """Return the lines on quality, then those on speed and memory; no speed without quality.

    They hold nothing private: `compare.md` has them too.
    """
    return [
        *quality_lines(comparison),
        *(ratio_line(ratio, costs) for costs in comparison.costs for ratio in costs.ratios),
        *cost_notes(comparison),
        *warning_lines(comparison),
    ]


def quality_lines(comparison: Comparison) -> list[str]:
    """Return how many pairs were compared, and what was found of latents, files and frames."""
    lines = [_count_line(comparison), *lines_of_quality(comparison.qualities)]
    if not comparison.known:
        reasons = sorted({q.shared_fault for q in comparison.qualities if q.shared_fault})
        lines.append(f"Quality: not measured ({'; '.join(reasons[:3]) or 'nothing was kept'})")
    return lines


def cost_notes(comparison: Comparison) -> list[str]:
    """Return why there are no ratios."""
    if not comparison.known:
        return [WITHHELD]
    return [
        f"Speed and memory{_of(costs)}: no ratio, because {costs.missing} "
        f"{'have' if ' ' in costs.missing else 'has'} no warm clip and no repetition"
        for costs in comparison.costs
        if costs.missing
    ]


def warning_lines(comparison: Comparison) -> list[str]:
    """Return what weakens the comparison, with what to do; empty without any."""
    if not comparison.known:
        return []
    lines = []
    rows = {row.name: row for row in comparison.settings}
    if not rows["gpu_name"].is_same:
        lines.append(
            f"Warning: two different cards ({rows['gpu_name'].a}; {rows['gpu_name'].b}): the "
            "ratios include the difference of the cards; render both runs on one card"
        )
    elif any(not rows[name].is_same for name in MACHINE_COLUMNS):
        lines.append("Warning: driver or libraries differ: render both runs with the same ones")
    for costs in comparison.costs:
        name = f"{costs.name}, " if costs.name else ""
        lines += [f"Warning: {name}{warning}" for warning in costs.warnings]
    weights = (side["weights"] for pair in comparison.matched.pairs for side in (pair.a, pair.b))
    return [*lines, *(f"Note: {note}" for note in noise_notes(weights))]


def ratio_line(ratio: Ratio, costs: Costs) -> str:
    """Return a ratio with both values, their ranges, and how many clips they are of."""
    if ratio.is_time:
        found = f"B is {ratio.ratio:.3g} times as fast as A"
    else:
        found = f"B takes {ratio.ratio:.3g} times what A takes"
    a, b = (
        f"{side} {value_text(ratio, distribution)}, {range_text(ratio, distribution)}, {n}"
        for side, distribution, n in zip(
            "AB", (ratio.a, ratio.b), n_texts(ratio, costs), strict=True
        )
    )
    return f"{ratio.name[0].upper()}{ratio.name[1:]}{_of(costs)}: {found} ({a}; {b})"


def value_text(ratio: Ratio, found: Distribution) -> str:
    """Return what is compared of a side: median seconds, or the highest peak."""
    value = ratio.value(found)
    return f"{value:.4g} s" if ratio.is_time else f"{format_gib(value, 2)} GiB"


def range_text(ratio: Ratio, found: Distribution) -> str:
    """Return the least and the greatest value of a side."""
    if ratio.is_time:
        return f"{found.minimum:.4g} to {found.maximum:.4g}"
    return f"{format_gib(found.minimum, 2)} to {format_gib(found.maximum, 2)}"


def n_texts(ratio: Ratio, costs: Costs) -> tuple[str, str]:
    """Return what n counts of each side; peaks are of cold clips too."""
    a, b = costs.counted if ratio.is_time else ("clips", "clips")
    return f"n = {ratio.a.n} {a}", f"n = {ratio.b.n} {b}"


def _of(costs: Costs) -> str:
    return f" ({costs.name})" if costs.name else ""


def _count_line(comparison: Comparison) -> str:
    matched = comparison.matched
    parts = [f"{len(comparison.known)} of {len(matched.pairs)} pairs compared"]
    for count, name in ((matched.only_in_a, "A"), (matched.only_in_b, "B")):
        if count:
            parts.append(f"{counted(count, 'clip')} only in {name}")
    return ", ".join(parts)
