"""A seeded sample of a long enumeration for `make test`; the rest for `make test-all`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

SEED = 20261130
_Parameters = type(pytest.param())


def sampled(cases: Iterable[Any], count: int, seed: int = SEED) -> list[Any]:
    """Return all cases in their order; all but `count` of them bear the mark `exhaustive`.

    Which ones are in the sample depends on the number of cases and the seed alone.
    """
    every = list(cases)
    chosen = set(random.Random(seed).sample(range(len(every)), count))
    return [case if n in chosen else _exhaustive(case) for n, case in enumerate(every)]


def _exhaustive(case: Any) -> Any:
    if isinstance(case, _Parameters):
        marks = (*case.marks, pytest.mark.exhaustive)
        return pytest.param(*case.values, marks=marks, id=case.id)
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.exhaustive)
