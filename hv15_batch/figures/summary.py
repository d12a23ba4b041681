"""The figures of a run by groups, as report and page show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hv15_batch.figures.facts import KEY_FACTS, short_fact

Facts = Mapping[str, str]
"""Facts of a group of clips, by their names on the page; unknown facts are absent."""

ALWAYS_SHOWN = ("Variant", "Offload", "Attention")
_SAID_ALONE = (*ALWAYS_SHOWN, "Card", "Size")
"""Facts whose value tells what it is."""
_NULL_MEANS_NONE = ("VRAM limit", "8-bit linear modules")


def common_to_all(groups: Sequence[Facts]) -> dict[str, str]:
    """Return the facts that all groups have alike."""
    values = {name: {group.get(name) for group in groups} for name in KEY_FACTS}
    common = {name: groups[0].get(name) for name in KEY_FACTS if len(values[name]) == 1}
    return {name: value for name, value in common.items() if value is not None}


def differing(groups: Sequence[Facts]) -> list[str]:
    """Return the facts that not all groups have alike; no revision where the variant implies it."""
    names = [name for name in KEY_FACTS if len({group.get(name) for group in groups}) > 1]
    if "Revision" in names and _num_kinds(groups, ["Variant"]) == _num_kinds(
        groups, ["Variant", "Revision"]
    ):
        names.remove("Revision")
    return names


def fewest(groups: Sequence[Facts]) -> list[str]:
    """Return as few facts as tell all groups apart, the variant and its profile first."""
    names: list[str] = []
    rest = [name for name in differing(groups) if name not in ALWAYS_SHOWN]
    for name in (*ALWAYS_SHOWN, *rest):
        if _num_kinds(groups, [*names, name]) > _num_kinds(groups, names):
            names.append(name)
    return names


def labels(groups: Sequence[Facts], names: Sequence[str]) -> list[str]:
    """Return each group's name from these facts; its variant where there is none to tell."""
    return [", ".join(_fact_text(name, g) for name in names or ["Variant"]) for g in groups]


def shown_value(name: str, facts: Facts, missing: str) -> str:
    """Return a fact as tables show it, or `missing`."""
    value = facts.get(name)
    if value is None:
        return "none" if name in _NULL_MEANS_NONE else missing
    return short_fact(name, value)


def _fact_text(name: str, facts: Facts) -> str:
    value = shown_value(name, facts, "not known")
    return value if name in _SAID_ALONE and name in facts else f"{name} {value}"


def _num_kinds(groups: Sequence[Facts], names: Sequence[str]) -> int:
    return len({tuple(group.get(name) for name in names) for group in groups})
