"""The parent of the kill suite: `python -m fakes.kill_parent FOLDER fake|tiny WORKERS`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fakes.kill_points import Trap, note, plant
from fakes.runs import FakeRenderer, Project
from hv15_batch.clip import Clip
from hv15_batch.config.settings import DispatchConfig
from hv15_batch.dispatch._child import make_renderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Finished, Job
from hv15_batch.record import ClipRecord
from hv15_batch.rundir.publish import publishing, sha256_of_file

Emit = Callable[[Event], None]
STAGE_SECONDS = 0.03


def content_of(clip: Clip) -> bytes:
    """Return what the torch-free renderer writes as a clip."""
    return clip.settings_sha256.encode() * 1000


class SlowRenderer(FakeRenderer):
    """The torch-free renderer, which sleeps in each stage and writes in two halves."""

    def __init__(self, spec: ExecutorSpec, trap: Trap) -> None:
        super().__init__(spec)
        self._trap = trap

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        for clip in clips:
            path = self._run_dir.embeddings / f"{clip.row_id}.safetensors"
            if not path.exists():
                with publishing(path) as temporary:
                    temporary.write_bytes(content_of(clip))
                self._trap.reach("encoding")

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        if self._run_dir.latents_file(job.clip.denoise_sha256).exists() and not job.use_latents:
            self._note("redundant", job.clip.clip_id)
        finish = super().render(job, emit)

        def finish_and_tell() -> ClipRecord:
            record = finish()
            self._trap.reach("file written")
            return record

        return finish_and_tell

    def _act(self, words: list[str]) -> None:
        time.sleep(STAGE_SECONDS)
        self._trap.reach("denoising")

    def _write(self, job: Job, path: Path) -> dict[str, Any]:
        content = content_of(job.clip)
        thumbnail = self._run_dir.thumbs / f"{job.clip.clip_id}.jpg"
        for name in (thumbnail, path):
            with publishing(name) as temporary, temporary.open("wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                if name is path:
                    self._trap.reach("writing")
                time.sleep(STAGE_SECONDS / 2)
                file.write(content[len(content) // 2 :])
        return {"file_bytes": len(content), "file_sha256": sha256_of_file(path)}

    def _note(self, what: str, about: object) -> None:
        note(self._run_dir.path.parent, f"{what} {about}")


def fake_renderer(spec: ExecutorSpec) -> SlowRenderer:
    """Return the torch-free renderer; called in the child."""
    trap = begin(spec)
    return SlowRenderer(spec, trap)


def tiny_renderer(spec: ExecutorSpec) -> Any:
    """Return the real renderer, which notes what it does; called in the child."""
    trap = begin(spec)
    renderer = make_renderer(spec)
    from hv15_batch.engine import _ladder as ladder
    from hv15_batch.engine import _write as clip_writer
    from hv15_batch.engine.encode import phase as encode_phase

    folder = spec.run_dir.parent
    denoise, decode, write = ladder.denoise, ladder.decode_frames, clip_writer.write_video
    encode_texts = encode_phase.Encoders.encode_texts

    def noting_denoise(pipe: Any, clip: Clip, conditioning: Any, on_step: Any, *rest: Any) -> Any:
        note(folder, f"denoise {clip.clip_id}")

        def step(number: int, total: int) -> None:
            on_step(number, total)
            trap.reach("denoising")

        return denoise(pipe, clip, conditioning, step, *rest)

    def noting_decode(*arguments: Any, **rest: Any) -> Any:
        note(folder, "decode")
        frames = decode(*arguments, **rest)
        trap.reach("decoded")
        return frames

    def half_written(frames: Any, path: Path, **rest: Any) -> None:
        write(frames, path, **rest)
        trap.reach("writing", lambda: path.write_bytes(path.read_bytes()[:500]))

    def encoding(self: Any, texts: list[str]) -> Any:
        for embedding in encode_texts(self, texts):
            yield embedding
            trap.reach("encoding")

    ladder.denoise, ladder.decode_frames = noting_denoise, noting_decode
    clip_writer.write_video = half_written
    encode_phase.Encoders.encode_texts = encoding
    return renderer


def begin(spec: ExecutorSpec) -> Trap:
    """Plant the child's points, that of its sending a record included."""
    trap = plant(spec.run_dir.parent, "child")
    trap.reach("child begins")
    from multiprocessing.connection import Connection

    send = Connection.send

    def sending(self: Connection, event: object) -> None:
        send(self, event)
        if isinstance(event, Finished):
            trap.reach("told")

    Connection.send = sending
    return trap


if __name__ == "__main__":
    from hv15_batch.run import session

    project = Project(Path(sys.argv[1]))
    plant(project.folder, "parent")
    renderer = {"fake": fake_renderer, "tiny": tiny_renderer}[sys.argv[2]]
    say = partial(print, flush=True)
    make = partial(LocalExecutor, renderer=renderer)
    line = "hv15-batch prompts.csv"
    config = project.config(dispatch=DispatchConfig(workers=int(sys.argv[3])))
    sys.exit(session.run(config, (), None, say, make, typed_line=line))
