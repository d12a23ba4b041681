"""Files that the script leaves in the run directory, outside the folder that it was given."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hv15_batch.rundir.paths import RunDir


class Strays:
    """Those of one attempt. They have the clip's name in front, and were not there before it.

    Nothing else writes such a name while the script runs. Others are left alone: another worker, or
    a person, may have made them.
    """

    def __init__(self, run_dir: RunDir, clip_id: str) -> None:
        """Note what is there before the script starts."""
        self._run_dir, self._clip_id = run_dir, clip_id
        self._before = set(self._named())

    def remove(self) -> list[str]:
        """Remove them; return their paths, relative to the run directory. Folders stay."""
        removed = []
        for path in sorted(set(self._named()) - self._before):
            with suppress(OSError):
                path.unlink()  # of a link only the link
                removed.append(self._run_dir.relative(path))
        return removed

    def _named(self) -> list[Path]:
        found = []
        for folder in (self._run_dir.path, self._run_dir.clips):
            with suppress(OSError), os.scandir(folder) as entries:
                found += [
                    Path(entry.path)
                    for entry in entries
                    if entry.name.startswith(self._clip_id)
                    and not entry.is_dir(follow_symlinks=False)
                ]
        return found
