"""Shards: the share of a manifest that one of several commands renders, typed as `shard=k/n`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from hv15_batch.clip import Clip
from hv15_batch.errors import Refused

MAX_SHARDS = 1_000_000
_TYPED = re.compile(r"([0-9]{1,7})/([0-9]{1,7})")
_FOLDER = re.compile(r"(0|[1-9][0-9]{0,6})-of-([1-9][0-9]{0,6})")


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of a manifest. Together they are all its clips, each once."""

    number: int
    """0 to `count`. As shares 0 and `count` are the same, arrays may count from 0 or from 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder_name(self) -> str:
        """Name of its folder in the run directory."""
        return f"{self.number}-of-{self.count}"

    @property
    def remainder(self) -> int:
        """Decides which clips it has: two shards with the same one have the same clips."""
        return self.number % self.count

    @property
    def other_name(self) -> Shard | None:
        """The same share counted from the other end, 0/n for n/n and n/n for 0/n; else None."""
        return None if self.remainder else Shard(self.count - self.number, self.count)

    def has(self, clip: Clip) -> bool:
        """Whether a clip belongs to this share, wherever its row is in the manifest."""
        digest = hashlib.sha256(first_of_chain(clip).encode()).hexdigest()
        return int(digest, 16) % self.count == self.remainder


def first_of_chain(clip: Clip) -> str:
    """Return the `settings_sha256` of the clip that begins a clip's chain.

    A clip whose first frame is no frame of another clip begins its own. One with a rewritten prompt
    counts with its original one: its share is known before a server is asked, and stays the same.
    """
    if clip.source is not None:
        clip = clip.source.first
    if clip.rewrite is None:
        return clip.settings_sha256
    return replace(clip.settings, prompt=clip.rewrite.original).hashes()[0]


def parse_shard(typed: str | None) -> Shard | None:
    """Return the shard of `shard=k/n`; None for all clips.

    Raises:
        Refused: It is no such text, or there is no such share.
    """
    if typed is None:
        return None
    found = _TYPED.fullmatch(typed.strip())
    if found is None:
        several = "one command for each shard, all with one run_dir; " if "," in typed else ""
        raise Refused(
            f"shard={typed}: must be k/n, share k of n, for example shard=2/4; {several}leave it "
            "out for all clips."
        )
    shard = Shard(int(found[1]), int(found[2]))
    if not 1 <= shard.count <= MAX_SHARDS:
        raise Refused(f"shard={typed}: n must be 1 to {MAX_SHARDS:,}; correct it.")
    if shard.number > shard.count:
        raise Refused(
            f"shard={typed}: there are {shard.count} shares, and k must be 1 to {shard.count}, or "
            f"0 to {shard.count - 1}; correct it."
        )
    return shard


def shard_of_folder(name: str) -> Shard | None:
    """Return the shard that a folder of this name belongs to, or None."""
    found = _FOLDER.fullmatch(name)
    shard = Shard(int(found[1]), int(found[2])) if found else None
    return shard if shard is not None and shard.number <= shard.count else None
