"""Refuses settings and rows that hold the value of a secret: they would be stored and shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ManifestError, format_fault
from hv15_batch.manifest.read import Manifest
from hv15_batch.redaction import BLACKED_OUT, secret_values


def check_no_secrets(config: Config, manifest: Manifest, clips: Iterable[Clip]) -> None:
    """Check that neither settings nor rows hold the value of a secret variable.

    Raises:
        Refused: A setting holds one.
        ManifestError: Rows hold one; the messages name rows and variable, never the value.
    """
    secrets = secret_values()
    if not secrets:
        return
    for key, text in _settings(asdict(config)):
        if holder := _holder(text, secrets):
            raise Refused(
                f"{key}: holds the value of {holder}, which would be stored in "
                "runs/*/config.yaml; leave it out, and let what needs it read the environment."
            )
    faults = []
    for clip in {clip.row_index: clip for clip in clips}.values():
        for column, text in _texts(clip):
            if holder := _holder(text, secrets):
                reason = f"holds the value of {holder}, which would be in log, video and page"
                action = "take it out"
                faults.append(
                    format_fault(manifest.name, clip.line, column, BLACKED_OUT, reason, action)
                )
    if faults:
        raise ManifestError(faults)


def _holder(text: str, secrets: Mapping[str, str]) -> str | None:
    """Return which variable's value a text holds, or None."""
    return next((name for value, name in secrets.items() if value in text), None)


def _texts(clip: Clip) -> Iterator[tuple[str, str]]:
    yield "prompt", clip.settings.prompt
    yield "prompt", clip.rewrite.original if clip.rewrite else ""
    yield from (("id", row_id) for row_id in clip.ids)
    yield "negative_prompt", clip.settings.negative_prompt or ""
    yield "image", clip.image or ""
    yield from (("loras", lora.path) for lora in clip.loras)
    yield from clip.tags.items()


def _settings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in settings with its dotted name."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _settings(item, f"{key}.{name}" if key else name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _settings(item, key)
    elif isinstance(value, str):
        yield key, value
