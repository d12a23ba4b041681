"""Run directories for pages: records by hand, a plan, and clips that a browser plays."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hv15_batch.config.settings import Config, VideoConfig
from hv15_batch.media.video import write_thumbnail, write_video
from hv15_batch.model.variant import ModelConfig
from hv15_batch.planning.tables import PLAN_COLUMNS, publish_plan
from hv15_batch.record import ClipRecord
from hv15_batch.report.render import write_page
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import write_settings

RUN_ID = "20261124T230000-0000-aaaa"
START = datetime(2026, 11, 24, 23, 0, tzinfo=timezone.utc)
MEASURED: dict[str, Any] = {
    "encode_seconds": 2.1,
    "denoise_seconds": 395.0,
    "decode_seconds": 12.0,
    "write_seconds": 3.0,
    "step_seconds": [7.9] * 50,
    "encode_peak_vram_allocated_bytes": 9 * 2**30,
    "denoise_peak_vram_allocated_bytes": 13 * 2**30,
    "decode_peak_vram_allocated_bytes": 12 * 2**30,
    "peak_vram_device_bytes": 15 * 2**30,
    "peak_ram_bytes": 20 * 2**30,
    "energy_joules": 250_000.0,
    "sm_clock_mhz_mean": 1850.0,
    "sm_clock_mhz_min": 1700.0,
    "temperature_celsius_max": 71.0,
    "throttle_seconds": 0.0,
    "gpu_name": "NVIDIA GeForce RTX 4090",
    "gpu_total_bytes": 24 * 2**30,
}
LONG_PROMPT = "A panda dances. " * 625
HOSTILE = "<script>alert(1)</script> \"q\" & 'a' {{ 7 * 7 }} </td></table>"


def record(name: str, row_index: int = 0, **changes: Any) -> ClipRecord:
    """Return a finished attempt at a clip called `name`."""
    values: dict[str, Any] = {
        "run_id": RUN_ID,
        "clip_id": name,
        "row_id": name,
        "row_index": row_index,
        "attempt": 1,
        "denoise_attempt": 1,
        "settings_sha256": f"sha-{name}",
        "denoise_sha256": f"sha-{name}",
        "finished_at": START + timedelta(minutes=7 * (row_index + 1)),
        "prompt": f"prompt of {name}",
        "seed": 7,
        "height": 480,
        "width": 848,
        "num_frames": 121,
        "num_inference_steps": 50,
        "total_seconds": 412.34,
        "is_cold": False,
        "peak_vram_reserved_bytes": 14_388_553_318,
        "status": "ok",
        "file": f"clips/{name}.mp4",
        "model": "480p_t2v",
        "weights": "pretrained",
    }
    return ClipRecord(**{**values, **changes})


def failed(name: str, message: str = "out of memory", **changes: Any) -> ClipRecord:
    """Return an attempt that ended in an error."""
    return replace(
        record(name, **changes),
        status="failed",
        file=None,
        total_seconds=None,
        peak_vram_reserved_bytes=None,
        error_type="RuntimeError",
        error_message=message,
    )


def make_run(
    folder: Path,
    records: Sequence[ClipRecord],
    planned: Sequence[ClipRecord] | None = None,
    *,
    config: Config | None = None,
    status: dict[str, Any] | None = None,
    is_playable: bool = False,
    films: Mapping[str, str] | None = None,
) -> Path:
    """Write a run directory: log, clips, thumbnails, and a plan of `planned` (else no plan).

    `films` has the films that a clip is part of, by its name; none is built.
    """
    directory = RunDir(folder)
    directory.create()
    video, thumb = moving_clip() if is_playable else (b"clip", b"jpeg")
    run_log = RunLog(directory.log, RUN_ID)
    for r in records:
        run_log.append(r)
        if r.file and r.repeat is None:
            (folder / r.file).write_bytes(video)
            (directory.thumbs / f"{Path(r.file).stem}.jpg").write_bytes(thumb)
    if planned is not None:
        rows = [{"line": 2, "state": "new", "reason": "", **vars(r)} for r in planned]
        rows = [{**row, "film": (films or {}).get(row["clip_id"])} for row in rows]
        named = [{name: row.get(name) for name in PLAN_COLUMNS} for row in rows]
        publish_plan(named, directory.plan)
    if config is not None:
        directory.run_folder(RUN_ID).mkdir()
        write_settings(directory.run_folder(RUN_ID), config)
    if status is not None:
        directory.status.write_text(json.dumps(make_status(**status)), encoding="utf-8")
    return folder


def make_status(**changes: Any) -> dict[str, Any]:
    """Return a status as the runner writes it, of a run that has ended."""
    ended: dict[str, Any] = {"state": "done", "run_id": RUN_ID, "pid": 1, "total": 1, "done": 1}
    ended |= {"failed": 0, "suspect": 0, "message": ""}
    return {**ended, "updated_at": "2026-11-25T04:12:00+00:00", **changes}


@cache
def moving_clip() -> tuple[bytes, bytes]:
    """Return a two-second mp4 of a square that crosses the picture, and its thumbnail."""
    import tempfile

    frames = np.full((48, 90, 160, 3), (24, 40, 72), dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[30:60, 3 * number : 3 * number + 24] = (250, 190, 60)
    with tempfile.TemporaryDirectory() as name:
        clip, thumb = Path(name) / "clip.mp4", Path(name) / "thumb.jpg"
        write_video(frames, clip, fps=24.0, video=VideoConfig(), comment=None)
        write_thumbnail(frames, thumb)
        return clip.read_bytes(), thumb.read_bytes()


def read_data(run_dir: Path) -> dict[str, Any]:
    """Return what the page's scripts read."""
    text = (run_dir / "assets" / "data.js").read_text(encoding="ascii")
    values: dict[str, Any] = json.loads(text[text.index("hv15.data = ") + 12 :].rstrip(";\n"))
    return values


def build(run_dir: Path, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """Build the page of a run directory; return its HTML and its clips."""
    html = write_page(run_dir, **options).read_text(encoding="utf-8")
    return html, read_data(run_dir)["clips"]


def first_line(html: str) -> str:
    match = re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)
    assert match is not None
    return " ".join(re.sub(r"<button.*?</button>|<[^>]+>", "", match[1], flags=re.DOTALL).split())


def settings(**changes: Any) -> Config:
    model = ModelConfig(name="480p_t2v", repo="a/b", revision="abc")
    return replace(Config(manifest="/home/me/my prompts.csv", model=model), **changes)
