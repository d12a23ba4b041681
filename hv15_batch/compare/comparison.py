"""A comparison of two runs: its figures, and the lines that sum them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.compare.pairs import Matched, match_runs
from hv15_batch.compare.quality import Quality, measure_pair
from hv15_batch.compare.quality_text import pair_line
from hv15_batch.compare.quality_text import quality_lines as lines_of_quality
from hv15_batch.compare.ratios import (
    FASTER,
    ClipTimings,
    Ratio,
    Ratios,
    clip_timings,
    compare_costs,
)
from hv15_batch.compare.settings import MACHINE_COLUMNS, SettingsRow, compare_settings

Say = Callable[[str], None]

GIB = 2**30
WITHHELD = (
    "Speed and memory: withheld, because no pair's quality could be measured; "
    "a speed-up says nothing without it"
)
NONE_WARM = "Speed and memory: no pair of warm clips in which both were denoised"
NONE_ALIKE = (
    "Speed and memory: no ratio, because no repetition was made as the clips whose quality is shown"
)
MAX_REASONS = 3


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of two runs."""

    matched: Matched
    qualities: list[Quality]
    timings: list[ClipTimings]
    """Of each pair, as `qualities`."""
    ratios: Ratios
    settings: list[SettingsRow]

    @property
    def known(self) -> list[Quality]:
        """The pairs of which something could be measured: of others no speed is said."""
        return [quality for quality in self.qualities if quality.is_known]


def compare_runs(path_a: Path, path_b: Path, say: Say) -> Comparison:
    """Compare two runs; measuring frames takes a few seconds a pair, so each is announced.

    Raises:
        ConfigError: nothing to compare.
        LogSchemaError: a log cannot be read.
    """
    matched = match_runs(path_a, path_b)
    qualities = []
    for number, pair in enumerate(matched.pairs, 1):
        qualities.append(measure_pair(matched.a, matched.b, pair))
        line = pair_line(qualities[-1])
        say(f"[{number}/{len(matched.pairs)}] {pair.row_id} seed {pair.seed}: {line}")
    shown = {(q.pair.row_id, q.pair.seed) for q in qualities if q.is_known}
    timed = [(a, b) for a, b in matched.timed if (a["row_id"], a["seed"]) in shown]
    return Comparison(
        matched=matched,
        qualities=qualities,
        timings=[_timings(matched, quality) for quality in qualities],
        ratios=compare_costs(timed),
        settings=compare_settings(qualities, timed),
    )


def _timings(matched: Matched, quality: Quality) -> ClipTimings:
    if not quality.is_known:  # no time without its quality
        return ClipTimings()
    key = (quality.pair.row_id, quality.pair.seed)
    return clip_timings(
        [(a, b) for a, b in matched.timed if (a["row_id"], a["seed"]) == key],
        [each for each in matched.left_out if (each.row_id, each.seed) == key],
    )


# -- lines ------------------------------------------------------------------------------------


def summary_lines(comparison: Comparison) -> list[str]:
    """Return the quality first and then what it was bought with; no speed without quality."""
    return [
        *quality_lines(comparison),
        *(ratio_line(ratio) for ratio in comparison.ratios.ratios),
        *cost_notes(comparison),
        *warning_lines(comparison),
    ]


def quality_lines(comparison: Comparison) -> list[str]:
    """Return how many pairs were compared, and what was found of latents and frames."""
    lines = [_count_line(comparison), *lines_of_quality(comparison.qualities)]
    if not comparison.known:
        reasons = sorted({q.fault for q in comparison.qualities if q.fault})
        lines.append(f"Quality: not measured ({'; '.join(reasons[:3]) or 'nothing was kept'})")
    return lines


def cost_notes(comparison: Comparison) -> list[str]:
    """Return why there are no ratios, or what was left out of them."""
    if not comparison.known:
        return [WITHHELD]
    found = comparison.ratios
    otherwise = [reason for timings in comparison.timings for reason in timings.left_out]
    lines = []
    if not found.ratios:
        has_none_alike = otherwise and not (found.cold or found.reused)
        lines.append(NONE_ALIKE if has_none_alike else NONE_WARM)
    left_out = []
    if found.cold:
        left_out.append(f"{found.cold} cold")
    if found.reused:
        left_out.append(f"{found.reused} decoded from saved latents")
    if left_out:
        lines.append(f"Left out of the ratios: {', '.join(left_out)} (pairs with such a clip)")
    if otherwise:
        lines.append(
            f"Left out of the ratios: {len(otherwise)} timings of repetitions made otherwise than "
            f"the clips whose quality is shown ({_reasons(otherwise)}); render clips and "
            "repetitions alike"
        )
    return lines


def _reasons(found: Sequence[str]) -> str:
    """Return reasons with how often each is given."""
    counts = Counter(found).most_common()
    texts = [f"{count} by {reason}" for reason, count in counts[:MAX_REASONS]]
    more = sum(count for _, count in counts[MAX_REASONS:])
    return "; ".join([*texts, *([f"{more} by others"] if more else [])])


def warning_lines(comparison: Comparison) -> list[str]:
    """Return what makes the figures mean less, with what to do; nothing where there are none."""
    if not comparison.known:
        return []
    lines = []
    rows = {row.name: row for row in comparison.settings}
    if not rows["gpu_name"].is_same:
        lines.append(
            f"Warning: two different cards ({rows['gpu_name'].a}; {rows['gpu_name'].b}): the "
            "ratios are those of the cards too; render both on one"
        )
    elif any(not rows[name].is_same for name in MACHINE_COLUMNS):
        lines.append("Warning: driver or libraries differ: render both runs with the same ones")
    if any(0 < ratio.n < 3 for ratio in comparison.ratios.ratios):
        lines.append("Warning: fewer than 3 warm pairs: render more clips, or benchmark.repeat=5")
    if rows["weights"].a != "pretrained" or rows["weights"].b != "pretrained":
        lines.append("Note: not the published weights: these clips are noise on purpose")
    return lines


def ratio_line(ratio: Ratio) -> str:
    """Return a ratio with its interval or range, both medians, and how many timings they are of."""
    if ratio.kind == FASTER:
        values = f"{ratio.median_a:.4g} -> {ratio.median_b:.4g} s"
        what = f"B is {ratio.ratio:.3g} times as fast as A"
    else:
        values = f"{ratio.median_a / GIB:.2f} -> {ratio.median_b / GIB:.2f} GiB"
        what = f"B takes {ratio.ratio:.3g} times what A takes"
    name = ratio.name[0].upper() + ratio.name[1:]
    return f"{name}: {what} ({ratio.spread_text()}; medians {values}, {ratio.n_text})"


def _count_line(comparison: Comparison) -> str:
    matched = comparison.matched
    parts = [f"{len(comparison.known)} of {len(matched.pairs)} pairs compared"]
    for count, name in ((matched.only_in_a, "A"), (matched.only_in_b, "B")):
        if count:
            parts.append(f"{count} clips only in {name}")
    return ", ".join(parts)
