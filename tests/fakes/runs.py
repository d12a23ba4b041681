"""A renderer without torch, an executor without a process, and settings for both."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from hv15_batch.clip import Clip
from hv15_batch.clock import Clock, utc_now
from hv15_batch.config.settings import Config, SamplingConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import (
    Died,
    EncodingEnded,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Ready,
    Stepped,
)
from hv15_batch.errors import Refused
from hv15_batch.media.frame import frame_sha256
from hv15_batch.model.variant import Dtype, ModelConfig, SamplingDefaults, Task, Weights
from hv15_batch.record import FAILED, OK, SUSPECT, WARM_UP, ClipRecord, asked_record
from hv15_batch.rundir.frames import frame_files
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing, sha256_of_file
from hv15_batch.rundir.store import frame_of

SMALL = SamplingDefaults(
    height=32, width=32, num_frames=1, num_inference_steps=2, guidance_scale=6.0
)


def tiny_config(manifest: Path, run_dir: Path) -> Config:
    """Settings of the tiny text-to-video model at its smallest."""
    model = ModelConfig(
        name="tiny_t2v",
        weights=Weights.tiny,
        task=Task.t2v,
        dtype=Dtype.float32,
        target_size=128,
        default_sampling=SMALL,
    )
    return Config(
        manifest=str(manifest), run_dir=str(run_dir), model=model, sampling=SamplingConfig(seeds=0)
    )


class FakeRenderer:
    """Writes a few bytes as latents and clip; what a prompt says, it does.

    `fail`, `suspect`, `die`, `stop`, `unsignal` (by the kernel, when the parent dies), `refuse`,
    `sleep 0.5`; with `once` only in the first attempt.
    """

    def __init__(self, spec: ExecutorSpec) -> None:
        self._spec = spec
        self._run_dir = RunDir(spec.run_dir)

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        self._note("encode", len(clips))

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        clip, words = job.clip, job.clip.settings.prompt.split()
        frame = frame_pixels(self._run_dir, clip)
        if "once" in words and job.attempt > 1:
            words = []
        latents = self._run_dir.latents_file(clip.denoise_sha256)
        columns: dict[str, Any] = {} if frame is None else {"image_sha256": frame}
        is_repetition = job.repeat is not None
        if job.use_latents and latents.is_file() and not is_repetition:
            columns |= json.loads(latents.read_text(encoding="utf-8"))
            self._note("decode", clip.clip_id)
        else:
            columns |= {"denoise_attempt": job.attempt, "step_seconds": [0.1] * steps_of(clip)}
            self._note("denoise", clip.clip_id)
            self._act(words)
            with publishing(latents, not is_repetition) as temporary:
                temporary.write_text(json.dumps(columns), encoding="utf-8")
        emit(Stepped(clip.clip_id, "decode", steps_of(clip), steps_of(clip)))
        started_at = utc_now()
        return lambda: self._finish(job, words, columns | {"started_at": started_at})

    def _act(self, words: list[str]) -> None:
        if "sleep" in words:
            time.sleep(float(words[words.index("sleep") + 1]))
        if "die" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "unsignal" in words:
            ctypes.CDLL(None).prctl(1, 0)
        if "stop" in words:
            os.kill(os.getpid(), signal.SIGSTOP)
        if "refuse" in words:
            raise Refused("runtime.attention_backend=flash: not here; use auto.")

    def _finish(self, job: Job, words: list[str], columns: dict[str, Any]) -> ClipRecord:
        clip = job.clip
        path = self._run_dir.clips / f"{clip.clip_id}.mp4"
        columns |= {"status": SUSPECT if "suspect" in words else OK, "attempt": job.attempt}
        if "fail" in words:
            columns |= {
                "status": FAILED,
                "error_type": "RuntimeError",
                "error_message": "as the prompt says",
            }
        else:
            columns |= self._write(job, path)
            self._keep_frames(job)
            columns |= {
                "file": self._run_dir.relative(path) if job.repeat is None else None,
                "total_seconds": 0.25,
                "is_cold": job.repeat == WARM_UP,
            }
        known = {
            "run_id": self._spec.run_id,
            "shard": self._spec.config.shard,
            "repeat": job.repeat,
            "system_sha256": self._spec.system_sha256,
            "worker_id": self._spec.worker_id,
            "dtype": clip.settings.dtype,
        }
        return asked_record(clip, **known, **columns, finished_at=utc_now())

    def _write(self, job: Job, path: Path) -> dict[str, Any]:
        with publishing(path, job.repeat is None) as temporary:
            temporary.write_bytes(job.clip.settings_sha256.encode())
            return {
                "file_bytes": temporary.stat().st_size,
                "file_sha256": sha256_of_file(temporary),
            }

    def _keep_frames(self, job: Job) -> None:
        """Write the frames with which other clips begin; each clip has its own colour."""
        colour = "#" + job.clip.denoise_sha256[:6]
        for path in frame_files(self._run_dir, job.clip):
            with publishing(path, job.repeat is None, makes_folder=True) as temporary:
                Image.new("RGB", (16, 16), colour).save(temporary, "PNG")

    def _note(self, what: str, about: object) -> None:
        with (self._run_dir.path.parent / "journal.txt").open("a", encoding="utf-8") as file:
            file.write(f"{what} {about}\n")


def frame_pixels(run_dir: RunDir, clip: Clip) -> str | None:
    """Return the hash of the pixels that a clip takes over; it fails where they are lost."""
    if clip.source is None:
        return None
    path = frame_of(run_dir, clip.source.denoise_sha256, clip.source.number)
    assert path is not None, f"{clip.clip_id} was rendered before {clip.source.clip_id}"
    return frame_sha256(path)


def steps_of(clip: Clip) -> int:
    return clip.settings.num_inference_steps


class FakeExecutor:
    """Runs a renderer in this process, one event at a time."""

    waitable = None

    def __init__(
        self, spec: ExecutorSpec, renderer: Callable[[ExecutorSpec], Any] = FakeRenderer
    ) -> None:
        self.spec = spec
        self._renderer = renderer(spec)
        self._events: deque[Event | Callable[[], Event]] = deque()

    def start(self) -> None:
        pass

    def encode(self, clips: Sequence[Clip]) -> None:
        self._renderer.encode(clips, self._events.append)
        self._events.append(EncodingEnded())

    def submit(self, job: Job) -> None:
        words = job.clip.settings.prompt.split()
        if "die" in words and not ("once" in words and job.attempt > 1):
            self._events.append(Died("the worker was ended by SIGKILL"))
            return
        finish = self._renderer.render(job, self._events.append)
        self._events.append(Ready())
        self._events.append(lambda: Finished(job, finish()))

    def poll(self, timeout_seconds: float) -> Event | None:
        if not self._events:
            return None
        event = self._events.popleft()
        return event() if callable(event) else event

    def close(self) -> None:
        if hasattr(self._renderer, "close"):
            self._renderer.close()

    def kill(self) -> None:
        self._events.clear()
        self.close()

    def resident_bytes(self) -> int | None:
        return None


@dataclass
class Project:
    """A folder with a manifest and its run directory, and what runs said in it."""

    folder: Path
    name: str = "prompts.csv"
    said: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> Path:
        return self.folder / self.name

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.folder / "out")

    def write(self, *lines: str) -> None:
        """Write the manifest; the header comes first."""
        self.manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def config(self, **changes: Any) -> Config:
        return replace(tiny_config(self.manifest, self.run_dir.path), **changes)

    def run(
        self,
        make_executor: Callable[[ExecutorSpec], Any] = FakeExecutor,
        typed: tuple[str, ...] = (),
        clock: Clock | None = None,
        sweep: str | None = None,
        **changes: Any,
    ) -> int:
        """Run in this process, with the fake renderer unless told otherwise."""
        from hv15_batch.run import session

        self.said.clear()
        config = self.config(**changes)
        return session.run(config, typed, sweep, self.said.append, make_executor, clock=clock)

    def did(self) -> list[str]:
        """Return and forget what the fake renderer was made to do, encoding left out."""
        path = self.folder / "journal.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("encode")]

    def records(self) -> list[dict[str, Any]]:
        from hv15_batch.rundir.log import read_records

        return list(read_records(self.run_dir.log).to_pylist())

    def plan(self) -> list[dict[str, str]]:
        return read_csv(self.run_dir.plan)

    def strays(self) -> list[str]:
        """Return the temporary files in the run directory; the lock is none."""
        found = (p.name for p in self.run_dir.path.rglob(".*"))
        return [name for name in found if name != ".lock"]


def read_csv(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fake_local_executor(spec: ExecutorSpec) -> LocalExecutor:
    """A real child process behind which the fake renderer works."""
    return LocalExecutor(spec, FakeRenderer)


class FakeClock(Clock):
    """A clock that only moves when it is told to, or when somebody sleeps, then in long steps."""

    SLEEP_SECONDS = 20.0

    def __init__(self, start: datetime) -> None:
        self._start = start.astimezone()
        self._seconds = 0.0
        self.at_sleep: Callable[[], None] = lambda: None
        super().__init__()

    def now(self) -> datetime:
        return (self._start + timedelta(seconds=self._seconds)).astimezone()

    def elapsed_seconds(self) -> float:
        return self._seconds

    def sleep(self, seconds: float) -> None:
        self.at_sleep()
        self.pass_time(max(seconds, self.SLEEP_SECONDS))

    def pass_time(self, seconds: float) -> None:
        self._seconds += seconds
