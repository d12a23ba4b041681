"""Which planned clips a command is about: `only`, the share of a shard, `limit`."""

from __future__ import annotations

from collections.abc import Sequence

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.config.shard import Shard, parse_shard
from hv15_batch.errors import Refused
from hv15_batch.planning.chains import with_sources
from hv15_batch.planning.plan import PlannedClip


def select(planned: Sequence[PlannedClip], config: Config) -> list[PlannedClip]:
    """Return the clips of `shard` that `only` names, with at most `limit` unfinished ones.

    Finished ones stay. The clips that these follow come too, if they are not finished.

    Raises:
        Refused: `only` names a row that is not there.
    """
    return with_sources(select_alone(planned, config), planned)


def select_alone(planned: Sequence[PlannedClip], config: Config) -> list[PlannedClip]:
    """Return the same without the clips that they follow; raise like `select`."""
    selected = share_of(named(planned, config), parse_shard(config.shard))
    if config.limit is not None:
        todo = [p for p in selected if p.is_left][: config.limit]
        kept = {p.clip.settings_sha256 for p in todo}
        selected = [p for p in selected if not p.is_left or p.clip.settings_sha256 in kept]
    return selected


def named(planned: Sequence[PlannedClip], config: Config) -> list[PlannedClip]:
    """Return the clips that `only` names; without it all of them.

    Raises:
        Refused: `only` names a row that is not there.
    """
    selected = list(planned)
    if config.only:
        wanted = [name.strip() for name in config.only.split(",") if name.strip()]
        known = {name: None for p in planned for name in _names(p.clip)}
        for name in wanted:
            if name not in known:
                some = ", ".join(list(known)[:5]) + (" ..." if len(known) > 5 else "")
                raise Refused(f"only={name}: no row has that id; ids are {some}.")
        selected = [p for p in planned if not set(wanted).isdisjoint(_names(p.clip))]
    return selected


def _names(clip: Clip) -> tuple[str, ...]:
    """Return the ids of its rows, and of the templates that they come from."""
    return clip.ids + clip.template_ids


def share_of(planned: Sequence[PlannedClip], shard: Shard | None) -> list[PlannedClip]:
    """Return the clips that belong to a shard; all of them without one."""
    return [p for p in planned if shard is None or shard.has(p.clip)]
