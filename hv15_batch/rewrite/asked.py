"""What is asked of the server: its model, the instructions, and the key of each rewritten text."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hv15_batch.config.rewriting import RewriteConfig
from hv15_batch.errors import Refused, system_message
from hv15_batch.files import read_text
from hv15_batch.manifest.rows import Row

MAX_TEMPLATE_BYTES = 2**16
DEFAULT_MODEL = "default"


class Key(NamedTuple):
    """What a rewritten text depends on; the seed is not part of it."""

    prompt_original: str
    image_sha256: str | None
    """Of the first frame. It is not sent: the same words may mean something else with it.

    None also where another clip makes the frame, whose content is not known yet.
    """
    rewrite_model: str
    rewrite_template_sha256: str


@dataclass(frozen=True)
class Rewriting:
    """A server's model and its instructions."""

    model: str
    text_template: str
    """Instructions for text to video."""
    image_template: str
    """Instructions for image to video."""

    def template_of(self, key: Key) -> str:
        """Return the instructions for a prompt."""
        is_image = key.rewrite_template_sha256 == _sha256(self.image_template)
        if key.image_sha256 is not None or is_image:
            return self.image_template
        return self.text_template

    def key_of(self, row: Row) -> Key:
        """Return the key of a row's rewritten prompt."""
        original = row.prompt if row.rewrite is None else row.rewrite.original
        is_text = row.image_sha256 is None and row.image_frame is None
        template = self.text_template if is_text else self.image_template
        return Key(original, row.image_sha256, self.model, _sha256(template))


def rewriting_of(config: RewriteConfig) -> Rewriting | None:
    """Return what to ask; None where prompts are not rewritten.

    Raises:
        Refused: `rewrite.template` cannot be read, or is empty.
    """
    if not config.is_on:
        return None
    model = config.model or DEFAULT_MODEL
    if config.template is None:
        return Rewriting(model, _ours("t2v"), _ours("i2v"))
    path = os.path.expanduser(config.template)
    try:
        text = read_text(path, MAX_TEMPLATE_BYTES).strip()
    except OSError as error:
        raise Refused(f"rewrite.template={path}: {system_message(error)}.") from error
    except UnicodeDecodeError:
        raise Refused(f"rewrite.template={path}: is no UTF-8; save it as UTF-8.") from None
    if not text:
        raise Refused(f"rewrite.template={path}: is empty; write instructions into it.")
    return Rewriting(model, text, text)


@cache
def _ours(name: str) -> str:
    return Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8").strip()


@cache
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
