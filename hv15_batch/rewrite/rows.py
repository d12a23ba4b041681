"""Rows with their rewritten prompts, and those whose prompt is not rewritten yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hv15_batch.clip import Clip, Rewrite
from hv15_batch.manifest.read import Manifest
from hv15_batch.manifest.rows import Row
from hv15_batch.rewrite.asked import Key, Rewriting
from hv15_batch.units import counted


def with_rewrites(
    manifest: Manifest,
    rewriting: Rewriting,
    known: Mapping[Key, str],
    faults: Mapping[Key, str] | None = None,
) -> Manifest:
    """Return the manifest with rewritten prompts; a row without one waits for it.

    Args:
        manifest: Its rows, rewritten or not.
        rewriting: What the server is asked.
        known: Rewritten prompts.
        faults: Why others could not be rewritten.
    """

    def changed(row: Row) -> Row:
        key = rewriting.key_of(row)
        text = known.get(key)
        rewrite = Rewrite(
            key.prompt_original,
            key.rewrite_model,
            key.rewrite_template_sha256,
            is_pending=text is None,
            fault=(faults or {}).get(key),
        )
        return replace(row, prompt=key.prompt_original if text is None else text, rewrite=rewrite)

    return replace(manifest, rows=tuple(map(changed, manifest.rows)))


def as_before(manifest: Manifest, records: Iterable[Mapping[str, Any]]) -> Iterator[Manifest]:
    """Yield the manifest, then with the texts that prompts had under other settings of `rewrite`.

    A text that was edited is no other setting. Each manifest has one text for a row, or lacks the
    row.

    Args:
        manifest: As it is now.
        records: The log's attempts: `prompt`, `prompt_original`, `rewrite_model` and
            `rewrite_template_sha256`.
    """
    by_original: dict[str, dict[_Asked, dict[str, None]]] = {}
    for record in records:
        text, original = record["prompt"], record["prompt_original"]
        if text is not None:
            asked = record["rewrite_model"], record["rewrite_template_sha256"]
            texts = by_original.setdefault(text if original is None else original, {})
            texts.setdefault(asked, {})[text] = None
    yield manifest
    others = [(row, _others(row, by_original)) for row in manifest.rows]
    for number in range(max((len(texts) for _, texts in others), default=0)):
        rows = (
            replace(row, prompt=texts[number], rewrite=None)
            for row, texts in others
            if number < len(texts)
        )
        yield replace(manifest, rows=tuple(rows))


_Asked = tuple[str | None, str | None]
"""Model and SHA-256 of the instructions; both None for a prompt as it was written."""


def _others(row: Row, by_original: Mapping[str, Mapping[_Asked, Iterable[str]]]) -> list[str]:
    """Return the texts of a row's prompt that another model, other instructions or nobody made."""
    rewrite = row.rewrite
    original = row.prompt if rewrite is None else rewrite.original
    now = (None, None) if rewrite is None else (rewrite.model, rewrite.template_sha256)
    return [
        text
        for asked, texts in by_original.get(original, {}).items()
        if asked != now
        for text in texts
    ]


def rewriting_lines(clips: Iterable[Clip]) -> Iterator[str]:
    """Yield at most one line of a dry run: how many prompts are rewritten, and how many not yet."""
    keys: dict[tuple[str, bool, str | None], bool] = {}
    model = ""
    for clip in clips:
        if clip.rewrite is not None:
            model = clip.rewrite.model
            has_frame, image = clip.settings.has_image, clip.settings.image_sha256
            keys[clip.rewrite.original, has_frame, image] = clip.is_pending
    if keys:
        pending = sum(keys.values())
        words = f"{pending} not yet: the server is asked when a run starts" if pending else "all"
        yield f"Rewriting by {model}: {counted(len(keys), 'prompt')}, {words}"
