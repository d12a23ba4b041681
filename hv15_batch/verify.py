"""`verify=true`: a finished clip rendered again from nothing, and held against itself bit by bit.

The second rendering is a small run of its own in `verify/` of the run directory: clip, log and
status of the first stay as they are.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hv15_batch.checkpoint import fetch
from hv15_batch.clip import Clip
from hv15_batch.config import Config
from hv15_batch.exit_codes import EXIT_OK, EXIT_SIGINT, EXIT_SOME_FAILED
from hv15_batch.plan import PlannedClip, State
from hv15_batch.prepare import Planned, Prepared, Say, lacks_weights
from hv15_batch.records import DONE_STATUSES
from hv15_batch.rundir import RunDir, publish_json
from hv15_batch.runlog import read_last_attempts
from hv15_batch.settings import BenchmarkConfig, NotifyConfig
from hv15_batch.text_log import text_log

logger = logging.getLogger(__name__)

FOLDER = "verify"
_IN_EFFECT = (
    "gpu_name",
    "driver_version",
    "torch_version",
    "diffusers_version",
    "hv15_batch_version",
    "attention_backend",
    "mask_free",
    "compiled",
    "offload",
    "vae_tile_size",
    "decode_device",
)
"""What may change bits without being part of a clip's settings."""


Render = Callable[[Prepared, Planned, str], int]


def verify_run(prepared: Prepared, code: int, run_id: str, render: Render, say: Say) -> int:
    """Render the sampled clip of a run again and say whether the bits are the same.

    Args:
        prepared: of the run; its lock is held.
        code: the run's exit code: one that was stopped or interrupted is not verified.
        run_id: of the run, which takes the result into its run.log.
        render: renders a plan as the run of a given id, and returns its exit code.
        say: prints a line for the user.

    Returns:
        The run's exit code, or that of an interruption.
    """
    if code not in (EXIT_OK, EXIT_SOME_FAILED):
        return code
    run_dir = prepared.run_dir
    clip = sample_clip(prepared)
    if clip is None:
        _report(run_dir, run_id, "not verified: no clip is finished", say)
        return code
    if lacks_weights(prepared):  # a run that finds everything done has not fetched them
        prepared = replace(prepared, checkpoint=fetch(prepared.config.model, say=say))
    say(f"Verifying: {clip.clip_id} is rendered again in {run_dir.path / FOLDER}")
    again = RunDir(run_dir.path / FOLDER)
    if again.is_run_dir():  # of an earlier verification; without it nothing can be reused
        shutil.rmtree(again.path)
    again.create()
    todo = PlannedClip(
        clip=clip,
        state=State.retry,
        reason="verify=true",
        attempts=0,
        has_latents=False,
        use_latents=False,
        has_result=False,
        last=None,
    )
    second = replace(
        prepared, config=_config_of_second(prepared.config), run_dir=again, clips=(clip,)
    )
    ended = render(second, Planned([todo], [todo]), again.new_run_id())
    _report(run_dir, run_id, _result(run_dir, again, clip), say)
    return ended if ended >= EXIT_SIGINT else code


def sample_clip(prepared: Prepared) -> Clip | None:
    """Return the finished clip with the smallest `settings_sha256`, or None where there is none.

    The hash is blind to what a clip shows and where its row stands: a fair draw, and the same one
    every time.
    """
    columns = ("settings_sha256", "status", "latents_sha256")
    finished = {
        record["settings_sha256"]
        for record in read_last_attempts(prepared.run_dir.log, columns)
        if record["status"] in DONE_STATUSES and record["latents_sha256"]
    }
    candidates = [clip for clip in prepared.clips if clip.settings_sha256 in finished]
    return min(candidates, key=lambda clip: clip.settings_sha256, default=None)


def _config_of_second(config: Config) -> Config:
    """Return the settings without what only the whole run is about."""
    return replace(
        config,
        verify=False,
        keep_latents=True,
        time_limit=None,
        window=None,
        benchmark=BenchmarkConfig(),
        notify=NotifyConfig(),
    )


def _result(run_dir: RunDir, again: RunDir, clip: Clip) -> str:
    """Return the line that says how it came out."""
    first, second = (_record(run, clip) for run in (run_dir, again))
    assert first is not None, "the sampled clip is in the log"
    if second is None or second["status"] not in DONE_STATUSES:
        why = f"see {again.runs}/*/run.log"
        if second is not None:
            why = f"{second['error_type']}: {second['error_message']}"
        return f"not verified: {clip.clip_id} could not be rendered again ({why})"
    latents = first["latents_sha256"] == second["latents_sha256"]
    file = first["file_sha256"] == second["file_sha256"]
    if latents and file:
        return f"verified: {clip.clip_id}: latents and file are the same bit for bit"
    if latents:
        frames = _frames_text(run_dir, again, first, second)
        return f"verified: {clip.clip_id}: latents are the same bit for bit; {frames}"
    return (
        f"NOT the same bits: {clip.clip_id}: {_latents_text(run_dir, again, first, second)}; "
        f"{_changes_text(first, second)}; see both with: hv15-batch compare {run_dir.path} "
        f"{again.path}"
    )


def _record(run_dir: RunDir, clip: Clip) -> dict[str, Any] | None:
    for record in read_last_attempts(run_dir.log):
        if record["settings_sha256"] == clip.settings_sha256:
            return record
    return None


def _frames_text(
    run_dir: RunDir, again: RunDir, first: dict[str, Any], second: dict[str, Any]
) -> str:
    """Return how far the frames of two files with other bytes are apart."""
    from hv15_batch.compare.measures import measure_frames
    from hv15_batch.video import read_frames

    try:
        measured = measure_frames(
            read_frames(run_dir.path / str(first["file"])),
            read_frames(again.path / str(second["file"])),
        )
    except (OSError, ValueError) as error:
        return f"the frames could not be compared ({error})"
    if math.isinf(measured.rgb_psnr_db):
        return "frames are the same, only the files' bytes differ (their tags)"
    return (
        f"frames differ (PSNR {measured.psnr_db:.1f} dB), in the decoder or in x264: "
        f"{_changes_text(first, second)}"
    )


def _latents_text(
    run_dir: RunDir, again: RunDir, first: dict[str, Any], second: dict[str, Any]
) -> str:
    from hv15_batch.compare.measures import measure_latents
    from hv15_batch.compare.pairs import Pair

    pair = Pair(str(first["row_id"]), int(first["seed"]), first, second, None)
    measured = measure_latents(run_dir, again, pair)
    if measured is None or measured.psnr_db is None:
        return "latents differ"
    return f"latents differ (PSNR {measured.psnr_db:.1f} dB of their range)"


def _changes_text(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return what was in effect otherwise, or that nothing was."""
    changes = [
        f"{name} {first[name]} -> {second[name]}"
        for name in _IN_EFFECT
        if first[name] != second[name]
    ]
    return ", ".join(changes) or "card, versions and everything else in effect are the same"


def _report(run_dir: RunDir, run_id: str, line: str, say: Say) -> None:
    """Say it, and keep it in run.log and status.json."""
    say(line)
    if run_dir.run_folder(run_id).is_dir():  # a run with nothing to render has none
        with text_log(run_dir.run_log(run_id)):
            logger.info("%s", line)
    with suppress(OSError, ValueError):  # missing or unreadable: it only repeats what was said
        status = json.loads(run_dir.status.read_text(encoding="utf-8"))
        publish_json(run_dir.status, {**status, "verification": line})
