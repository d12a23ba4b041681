"""A seeded sample of a long enumeration for `make test`; the rest for `make test-all`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

SEED = 20261130


def sampled(cases: Iterable[Any], count: int) -> list[Any]:
    """Return all cases in their order; all but `count` of them bear the mark `exhaustive`.

    Which ones are in the sample depends on the number of cases alone.
    """
    every = list(cases)
    chosen = set(random.Random(SEED).sample(range(len(every)), count))
    return [case if n in chosen else _exhaustive(case) for n, case in enumerate(every)]


def _exhaustive(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.exhaustive)
