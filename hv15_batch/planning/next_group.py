"""Which group of clips a worker without work changes to: one rule for a run and its prediction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

G = TypeVar("G", bound=Hashable)
"""What a worker loads for its clips, e.g. `clip.Group`."""


def next_group(
    own: G | None,
    left: Mapping[G, float],
    at: Mapping[G, int],
    load_seconds: Callable[[G], float],
) -> G | None:
    """Return the group that a worker changes to, whose own group has no clip for it.

    It helps where that ends the run earlier. With `k` workers on a group and `R` seconds of work
    left there, they take `R / k`. With one more that loads first they take
    `(R + load) / (k + 1)`, which is less if `k * load < R`. Of the groups that are worth it the
    worker takes the one with most work for each worker, the first one of equals.

    Args:
        own: Group that the worker has loaded; None if it has loaded nothing. Such a worker helps in
            any case, because it is there and idle.
        left: Seconds of work by group, of groups that have a clip for this worker.
        at: How many other workers render each group; 0 where it is missing.
        load_seconds: Returns how long this worker loads for a group.

    Returns:
        None if no group has a clip, or none is worth the loading.
    """

    def is_worth_it(group: G) -> bool:
        others = at.get(group, 0)
        return own is None or not others or left[group] > others * load_seconds(group)

    groups = [group for group in left if is_worth_it(group)]
    return max(groups, key=lambda group: left[group] / (at.get(group, 0) + 1), default=None)
