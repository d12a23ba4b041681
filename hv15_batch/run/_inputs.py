"""What a run takes in before its first clip: the manifest's copies, and rewritten prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hv15_batch.errors import Refused
from hv15_batch.manifest.read import Manifest
from hv15_batch.planning.todo import Todo
from hv15_batch.rewrite.client import missing_fault
from hv15_batch.rewrite.phase import rewrite_prompts
from hv15_batch.run.prepare import Asked, clips_of
from hv15_batch.rundir.publish import publish_copy, publishing
from hv15_batch.units import Say


def check_rewriter(asked: Asked, todo: Todo) -> None:
    """Check that prompts can be rewritten here, if some wait for it.

    Raises:
        Refused: The client or the server's address is missing.
    """
    if fault := missing_fault(asked.config.rewrite, (p.clip for p in todo.to_render)):
        raise Refused(fault)


def rewritten(asked: Asked, todo: Todo, say: Say) -> Asked:
    """Return the request with the rewritten prompts of what is to be rendered.

    One shard does so at a time, since all write one file; the others wait without limit.
    """
    rows = [p.clip.row_index for p in todo.to_render if p.clip.is_pending]
    with asked.run_dir.rewriting(say):
        manifest = rewrite_prompts(asked.manifest, rows, asked.config, asked.run_dir, say)
    clips = clips_of(manifest, asked.config, asked.checkpoints, asked.loras)
    return replace(asked, manifest=manifest, clips=clips)


def write_rows(manifest: Manifest) -> None:
    """Write the manifest if its rows came from a DataFrame, so that `resume=` finds it."""
    if manifest.content is not None:
        with publishing(manifest.path) as temporary:
            temporary.write_bytes(manifest.content)


def copy_manifest(manifest: Manifest, folder: Path) -> None:
    """Copy the manifest and its files of words into the folder of a run.

    Raises:
        Refused: The manifest is gone.
    """
    try:
        publish_copy(folder / f"manifest{manifest.path.suffix}", manifest.path)
    except FileNotFoundError as error:
        raise Refused(
            f"{manifest.path}: is gone since it was read; put it back and run again."
        ) from error
    for name, content in manifest.words:  # under the same names, so that the copy is a manifest too
        words = folder / name
        words.parent.mkdir(parents=True, exist_ok=True)
        with publishing(words) as temporary:
            temporary.write_bytes(content)
