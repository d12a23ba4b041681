"""A folder like Tencent's repository with the stand-in for its script, and runs with it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fakes.runs import FakeExecutor, Project
from hv15_batch.config.settings import (
    Config,
    RetryConfig,
    RuntimeConfig,
    SamplingConfig,
    VideoConfig,
)
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.external.renderer import ScriptRenderer
from hv15_batch.media.video import write_video
from hv15_batch.model.official import OfficialConfig
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Engine

SCRIPT = Path(__file__).with_name("generate.py")
WITHOUT_TORCHRUN = '#!/bin/sh\nif [ "$1" = -m ]; then shift 4; fi\nexec {python} "$@"\n'
"""An interpreter that leaves out `-m torch.distributed.run` and its two options, which takes
seconds for each row."""


@dataclass
class OfficialProject(Project):
    """A project whose rows are rendered by the stand-in."""

    @property
    def repo(self) -> Path:
        return self.folder / "repo"

    @property
    def python(self) -> Path:
        return self.folder / "python"

    def config(self, **changes: Any) -> Config:
        official = OfficialConfig(repo=str(self.repo), python=str(self.python))
        model = changes.pop("model", "480p_t2v")
        config = Config(
            manifest=str(self.manifest),
            run_dir=str(self.run_dir.path),
            model=model_options()[model],
            override=SamplingConfig(num_frames=5, num_inference_steps=2),
            runtime=RuntimeConfig(engine=Engine.official),
            official=replace(official, **changes.pop("official", {})),
            retry=RetryConfig(max_consecutive_bad=100),
        )
        return replace(config, **changes)

    def render(self, **changes: Any) -> int:
        """Run with the real renderer, in this process."""
        return self.run(make_executor=lambda spec: in_process(spec), **changes)

    def noted(self, name: str) -> list[str]:
        """Lines of a file that the stand-in wrote beside itself."""
        path = self.repo / name
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def rows(self) -> list[list[str]]:
        """Flags that the stand-in got, row by row."""
        return [json.loads(line) for line in self.noted("rows.jsonl")]

    def statuses(self) -> dict[str, tuple[str, str | None]]:
        return {r["row_id"]: (r["status"], r["error_type"]) for r in self.records()}


@cache
def video(num_frames: int, is_plain: bool = False, fps: float = 24.0) -> bytes:
    """Return a video of 64x48 pixels: noise, or one grey."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_frames, 48, 64, 3), dtype=np.uint8)
    if is_plain:
        frames[:] = 100
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(frames, path, fps=fps, video=VideoConfig(), comment=None)
        return path.read_bytes()


def in_process(spec: ExecutorSpec) -> FakeExecutor:
    return FakeExecutor(spec, ScriptRenderer)


def official_project(folder: Path, *lines: str) -> OfficialProject:
    """Return a project with a manifest of these lines; the header comes first."""
    project = OfficialProject(folder)
    (project.repo / "ckpts").mkdir(parents=True, exist_ok=True)
    shutil.copy(SCRIPT, project.repo / "generate.py")
    (project.repo / "videos").mkdir()
    videos = {"5": video(5), "4": video(4), "plain": video(5, True), "at_12": video(5, fps=12.0)}
    for name, content in videos.items():
        (project.repo / "videos" / f"{name}.mp4").write_bytes(content)
    python = WITHOUT_TORCHRUN.format(python=shlex.quote(sys.executable))
    project.python.write_text(python, encoding="utf-8")
    project.python.chmod(0o755)
    project.write(*lines)
    return project
