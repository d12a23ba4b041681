"""The cells of chains: `image=@fox:last` names a frame of another clip, `join=story` a film."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from hv15_batch.manifest.cells import parse_text

_FRAME = re.compile(r"@([A-Za-z0-9._-]{1,64}):(first|last|[0-9]{1,5})")
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class FrameOf:
    """A frame of the clip that another row makes."""

    row_id: str
    frame: str
    """`first`, `last` or a number from 0."""

    def number(self, num_frames: int) -> int:
        """Return its number in a clip of so many frames, from 0; it may be too large."""
        if self.frame == "first":
            return 0
        return num_frames - 1 if self.frame == "last" else int(self.frame)


def is_frame(image: str | None, folder: str) -> bool:
    """Whether a cell names a frame of another clip, and no file.

    Args:
        image: The cell.
        folder: Where relative paths start. Another cell than `@ID:first`, `@ID:last` and `@ID:N`
            is an image where a file has exactly that name.
    """
    if image is None or not image.strip().startswith("@"):
        return False
    if _FRAME.fullmatch(image.strip()):
        return True  # a file of that name would turn the chain off unseen; `./` leads to it
    return not os.path.lexists(os.path.join(folder, image))


def parse_frame(value: Any) -> FrameOf:
    """Return the frame that a cell such as `@fox:last` names.

    Raises:
        ValueError: It has another form.
    """
    found = _FRAME.fullmatch(parse_text(value).strip())
    if found is None:
        raise ValueError(
            "@ begins a frame of another row's clip: @ID:last, @ID:first, or @ID:N with N from 0; "
            "write it like @fox:last"
        )
    return FrameOf(found[1], found[2])


def parse_join(value: Any) -> str:
    """Return the name of a film.

    Raises:
        ValueError: No file may have that name everywhere.
    """
    name = parse_text(value).strip()
    if not _NAME.fullmatch(name):
        raise ValueError(
            "the name of a film is 1 to 64 of A-Z a-z 0-9 . _ - and begins with no full stop; "
            "use only these"
        )
    return name
