"""Files of words, such as `{@colours.txt}`: beside the manifest or below, and not through links."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hv15_batch.files import read_below
from hv15_batch.manifest.cells import parse_text
from hv15_batch.units import MIB

MAX_WORDS_BYTES = MIB
MAX_WORD_FILES = 100
WORDS_FORM = "name a .txt file beside the manifest or below it, like {@colours.txt}"


class Words:
    """The files of words of one manifest, each read once."""

    def __init__(self, folder: Path | None, copy_of_manifest: str) -> None:
        """Take where paths start, and how the manifest's copy in a run folder is called."""
        self._folder = folder
        self._copy_of_manifest = copy_of_manifest
        self._read: dict[str, tuple[list[str], str]] = {}
        self.contents: dict[str, bytes] = {}
        """Bytes by path."""

    def read(self, path: str) -> tuple[list[str], str]:
        """Return the words of a file and the SHA-256 of its bytes.

        Raises:
            ValueError: It is no such file, or has no words.
        """
        if path not in self._read:
            content = self._content(path)
            words = [parse_text(word) for word in _words(path, content)]
            if not words:
                raise ValueError(f"{path} has no words; write one on each line")
            self.contents[path] = content
            self._read[path] = words, hashlib.sha256(content).hexdigest()
        return self._read[path]

    def _content(self, path: str) -> bytes:
        if self._folder is None:
            raise ValueError("rows of a DataFrame name no files of words; write the words into it")
        parts = PurePosixPath(path).parts
        is_below = parts and not os.path.isabs(path) and ".." not in parts and "\0" not in path
        if not is_below or not path.endswith(".txt") or str(PurePosixPath(path)) != path:
            raise ValueError(f"{path or 'nothing'} is no name of a file of words; {WORDS_FORM}")
        if path == self._copy_of_manifest:
            raise ValueError(f"{path} is how a run names its copy of the manifest; rename the file")
        if len(self.contents) >= MAX_WORD_FILES:
            raise ValueError(f"at most {MAX_WORD_FILES} files of words are read; use fewer")
        try:
            return read_below(self._folder, parts, MAX_WORDS_BYTES)
        except OSError as error:
            # The usual advice is about files of a run.
            reason = error.strerror or str(error)
            if error.errno == errno.ENOTDIR:
                reason = "a folder in its path is none, or is a link"
            raise ValueError(
                f"{path} cannot be read ({reason}); {WORDS_FORM}, a regular file of at most 1 MiB "
                "that no link leads to"
            ) from None


def _words(path: str, content: bytes) -> Iterator[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8; save it as UTF-8") from None
    for line in text.split("\n"):
        word = line.strip()
        if word and not word.startswith("#"):
            yield word
