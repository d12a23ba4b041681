"""Ratios of time and memory of two runs, from the groups that the report shows too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hv15_batch.compare._pairs import Pair
from hv15_batch.figures.facts import group_facts
from hv15_batch.figures.groups import QUANTITIES, Distribution, Group, group_key
from hv15_batch.figures.summary import differing, labels
from hv15_batch.record import DECODE, DENOISE, seconds_column

SIDES = ("A", "B")

_NAMES = {
    "clip_seconds": "seconds per clip",
    seconds_column(DENOISE): "seconds of denoising",
    seconds_column(DECODE): "seconds of decoding",
    "peak_vram_reserved_bytes": "peak VRAM reserved",
    "peak_vram_device_bytes": "peak VRAM of the card",
    "peak_ram_bytes": "peak RAM",
}
"""What is compared, and what it is called."""


@dataclass(frozen=True)
class Ratio:
    """How one quantity of two groups compares."""

    name: str
    is_time: bool
    """Seconds, of which medians are compared; else bytes, of which the highest are."""
    a: Distribution
    b: Distribution

    @property
    def ratio(self) -> float:
        """How many times as fast B is, or how many times as much memory it takes."""
        a, b = self.value(self.a), self.value(self.b)
        return a / b if self.is_time else b / a

    def value(self, found: Distribution) -> float:
        """Return what is compared of a side."""
        return found.median if self.is_time else found.maximum


@dataclass(frozen=True)
class Costs:
    """Time and memory of clips that one group of A and one group of B have in common."""

    name: str
    """The settings that distinguish these groups from others; empty for a single pair of groups."""
    ratios: list[Ratio]
    """Empty where a group has neither a warm clip nor a repetition."""
    missing: str
    """Sides without either, e.g. `A and B`; empty where there are ratios."""
    counted: tuple[str, str]
    """What n counts of the seconds of A, and of B: warm clips, or a benchmark's repetitions."""
    warnings: list[str]
    """Why the numbers of a side are not fit to quote."""


def compare_costs(
    pairs: Iterable[Pair], groups_a: Sequence[Group], groups_b: Sequence[Group]
) -> list[Costs]:
    """Return the costs of each two groups that have one of these pairs in common."""
    of_a, of_b = ({group.key: group for group in groups} for groups in (groups_a, groups_b))
    keys = dict.fromkeys((group_key(pair.a), group_key(pair.b)) for pair in pairs)
    found = [(of_a.get(a), of_b.get(b)) for a, b in keys]
    return [_costs(a, b, name) for (a, b), name in zip(found, _names(found), strict=True)]


def _names(found: Sequence[tuple[Group | None, Group | None]]) -> list[str]:
    """Return what tells pairs of groups apart: the settings of A, and of B where need be."""
    if len(found) < 2:
        return [""] * len(found)
    a, b = (
        [{} if group is None else group_facts(group.columns) for group in groups]
        for groups in zip(*found, strict=True)
    )
    names = labels(a, differing(a))
    if len(set(names)) < len(names):
        names = [f"{x} and {y}" for x, y in zip(names, labels(b, differing(b)), strict=True)]
    return names


def _costs(a: Group | None, b: Group | None, name: str) -> Costs:
    sides = list(zip(SIDES, (a, b), strict=True))
    missing = [side for side, group in sides if group is None or group.clip_seconds is None]
    warnings = [
        f"{side}: {warning}"
        for side, group in sides
        if group is not None and not missing
        for warning in group.warnings
    ]
    ratios = [] if a is None or b is None or missing else _ratios(a, b)
    counted = ["warm clips" if g is None or not g.is_benchmark else "repetitions" for g in (a, b)]
    return Costs(name, ratios, " and ".join(missing), (counted[0], counted[1]), warnings)


def _ratios(a: Group, b: Group) -> list[Ratio]:
    found = []
    for column, name in _NAMES.items():
        one, other = ((group.seconds | group.memory).get(column) for group in (a, b))
        if one is None or other is None:
            continue
        ratio = Ratio(name, column in QUANTITIES, one, other)
        if ratio.value(one) and ratio.value(other):
            found.append(ratio)
    return found
