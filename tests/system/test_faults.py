"""Faults planted in a run, each with its outcome; docs/reliability.md has them in one table.

What another test file holds already is not repeated here: the table says where it is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fakes import runs as run_fakes
from fakes.command import Answer
from fakes.engine import InProcessExecutor
from fakes.runs import FakeExecutor, FakeRenderer, Project, fake_local_executor
from fakes.samples import sampled
from safetensors import safe_open

from hv15_batch.clip import Clip
from hv15_batch.config import run_names
from hv15_batch.config.settings import FileCheck
from hv15_batch.dispatch import attempt
from hv15_batch.dispatch._child import make_renderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.engine import _ladder as ladder
from hv15_batch.engine import _write as clip_writer
from hv15_batch.engine import render
from hv15_batch.engine._quality import QualityMeter
from hv15_batch.engine.encode import phase as encode_phase
from hv15_batch.engine.render import ClipRenderer
from hv15_batch.forecast.disk import DiskNeed
from hv15_batch.media.video import check_video, read_comment
from hv15_batch.record import ClipRecord
from hv15_batch.run import _preflight as preflight
from hv15_batch.run import _run as one_run
from hv15_batch.run import session
from hv15_batch.run.rendering import recovery
from hv15_batch.run.rendering.stalls import Patience
from hv15_batch.rundir import paths as rundir

Command = Callable[..., Answer]
TESTS = Path(__file__).parents[1]
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ROWS = ("cat", "dog", "owl")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("id,prompt", *(f"{name},a {name}" for name in ROWS))
    return made


def by_row(project: Project) -> dict[str, dict[str, Any]]:
    """The last record of each row."""
    return {record["row_id"]: record for record in project.records()}


def statuses(project: Project) -> dict[str, str]:
    return {row: record["status"] for row, record in by_row(project).items()}


def check_files(project: Project) -> None:
    """Hold that every clip is there, once, and is a video; and that nothing else is."""
    records = by_row(project)
    assert {p.name for p in project.run_dir.clips.iterdir()} == {
        Path(record["file"]).name for record in records.values()
    }
    for record in records.values():
        size = {name: record[name] for name in ("num_frames", "height", "width", "fps")}
        check_video(project.run_dir.path / record["file"], **size)
    assert project.strays() == []


# -- an exception in each stage ---------------------------------------------------------------


def is_about_dog(arguments: tuple[Any, ...], number: int) -> bool:
    """Whether a call is for the second clip; by its place where the arguments don't say."""
    told = [a.row_id if isinstance(a, Clip) else a.name for a in arguments if _tells(a)]
    return any("dog" in name for name in told) if told else number == 2


def _tells(argument: Any) -> bool:
    return isinstance(argument, (Clip, Path))


def failing_for_dog(real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Return the function, which raises for the second clip, every time."""
    calls: list[tuple[Any, ...]] = []

    def wrapped(*arguments: Any, **rest: Any) -> Any:
        calls.append(arguments)
        if is_about_dog(arguments, len(calls)):
            raise error
        return real(*arguments, **rest)

    return wrapped


def failing_encoder(real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Return `Encoders.encode_texts`, which raises at the text of the second clip."""

    def wrapped(self: Any, texts: list[str]) -> Iterator[Any]:
        for text, embedding in zip(texts, real(self, texts), strict=True):
            if "dog" in text:
                raise error
            yield embedding

    return wrapped


def plant(patch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    if stage == "encode":
        encoders = encode_phase.Encoders
        patch.setattr(encoders, "encode_texts", failing_encoder(encoders.encode_texts, error))
    else:
        module = next(m for m in (ladder, render, clip_writer) if hasattr(m, stage))
        patch.setattr(module, stage, failing_for_dog(getattr(module, stage), error))


SHORTAGE = torch.OutOfMemoryError("CUDA out of memory (planted)")
BEFORE_LATENTS = ("encode", "denoise", "write_latents")
AFTER_LATENTS = (
    "decode_frames",
    "write_video",
    "check_video",
)


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        *sampled(((s, RuntimeError("planted")) for s in BEFORE_LATENTS), 1),
        *sampled(((s, RuntimeError("planted")) for s in AFTER_LATENTS), 1),
        # Denoising and decoding climb the ladder first: test_ladder.py.
        *sampled(((s, SHORTAGE) for s in ("encode", "write_latents", "write_video")), 1),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_exception_in_a_stage_fails_its_clip_only_and_the_next_run_makes_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        plant(patch, stage, error)
        assert project.run(InProcessExecutor) == 3

    assert statuses(project) == {"cat": "ok", "dog": "failed", "owl": "ok"}
    dog = by_row(project)["dog"]
    assert (dog["error_type"], dog["error_message"]) == (type(error).__name__, str(error))
    assert (dog["file"], dog["file_bytes"]) == (None, None)
    assert project.strays() == []
    (log,) = project.run_dir.runs.glob("*/run.log")
    assert "Traceback" in log.read_text(encoding="utf-8")
    assert "Traceback" not in "\n".join(project.said)

    assert project.run(InProcessExecutor) == 0

    dog = by_row(project)["dog"]
    denoised_in = 2 if stage in BEFORE_LATENTS else 1
    assert (dog["status"], dog["attempt"], dog["denoise_attempt"]) == ("ok", 2, denoised_in)
    check_files(project)


# -- a disk that is full ----------------------------------------------------------------------


def full_disk_at(patch: pytest.MonkeyPatch, place: str, times: int = 1_000_000) -> list[str]:
    """Let the disk be full for what is published as `place`, a folder or file of a run.

    Every file is synced before it gets its name, so that is where it is planted: disks that
    allocate late say ENOSPC there too. Return what was refused.
    """
    refused: list[str] = []
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isfile(path) and place in path and len(refused) < times:
            refused.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    patch.setattr(os, "fsync", refusing)
    return refused


@pytest.mark.parametrize("place", sampled(["/embeddings/", "/latents/", "/clips/"], 1))
def test_a_disk_that_is_full_for_a_clip_fails_it_and_leaves_no_part_of_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with monkeypatch.context() as patch:
        refused = full_disk_at(patch, place, times=1)
        assert project.run(InProcessExecutor) == 3

    assert len(refused) == 1
    failed = [r for r in project.records() if r["status"] == "failed"]
    assert {r["error_type"] for r in failed} == {"OSError"}
    assert all(r["error_message"].startswith(str(NO_SPACE)) for r in failed)
    assert project.strays() == []
    assert not Path(refused[0]).exists()

    assert project.run(InProcessExecutor) == 0
    check_files(project)


def test_a_disk_that_is_full_for_a_thumbnail_costs_the_thumbnail(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        refused = full_disk_at(patch, "/thumbs/", times=1)
        assert project.run(InProcessExecutor) == 0

    (thumbnail,) = refused
    clip_id = by_row(project)["cat"]["clip_id"]
    assert f"{clip_id} has no thumbnail ({NO_SPACE.strerror})" in capsys.readouterr().out
    assert not Path(thumbnail).exists()
    check_files(project)


# -- what is secondary in the worker ----------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    sampled([RuntimeError("planted"), SHORTAGE, MemoryError()], 1),
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize(
    ("place", "name", "lost"),
    [
        (clip_writer, "write_thumbnail", ()),
        (QualityMeter, "_add", ("luma_mean", "clipped_pixel_share", "quality_flag")),
        (QualityMeter, "_quality", ("luma_mean", "clipped_pixel_share", "quality_flag")),
        (render, "work_columns", ("num_text_tokens", "num_video_tokens")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_only_measured_or_shown_of_a_clip_costs_no_clip(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    lost: tuple[str, ...],
    error: Exception,
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(place, name, fail)

    assert project.run(InProcessExecutor) == 0

    assert set(statuses(project).values()) == {"ok"}
    assert all(record[column] is None for record in project.records() for column in lost)
    assert all(record["denoise_seconds"] is not None for record in project.records())
    check_files(project)


def test_a_disk_that_is_full_for_the_log_stops_the_run_and_the_clip_is_decoded_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full_disk_at(patch, "/log/")
        assert project.run() == 4

    assert project.records() == []
    assert project.strays() == []
    assert any(
        line.startswith(f"the log could not be written ({NO_SPACE.strerror}); resume with: ")
        for line in project.said
    )
    project.did()
    assert project.run() == 0
    assert [line.split("_")[0] for line in project.did()][:1] == ["decode cat"]
    assert set(statuses(project).values()) == {"ok"}


def test_a_disk_that_is_full_for_status_json_costs_nothing_but_the_status(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refused = full_disk_at(patch, "status.json")
        assert project.run() == 0

    assert refused
    assert not project.run_dir.status.exists()
    assert set(statuses(project).values()) == {"ok"}
    assert project.strays() == []


@pytest.mark.parametrize(
    ("place", "what"), [("clips.csv", "clips.csv"), ("index.html", "the page")]
)
def test_a_disk_that_is_full_for_tables_and_page_is_said_and_does_not_change_the_outcome(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str, what: str
) -> None:
    with monkeypatch.context() as patch:
        full_disk_at(patch, place)
        assert project.run() == 0

    assert project.said[-1] == f"{what} is not up to date ({NO_SPACE.strerror})"
    assert project.strays() == []
    assert project.run() == 0
    assert project.run_dir.page.exists()
    assert project.run_dir.clips_table.exists()


@pytest.mark.parametrize("place", ["plan.csv", "system.json", "config.yaml", ".lock.json"])
def test_a_disk_that_is_full_before_the_first_clip_is_one_message_and_code_4(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    words = (project.manifest, "model=tiny_t2v", f"run_dir={project.run_dir.path}")
    with monkeypatch.context() as patch:
        full_disk_at(patch, place)
        answer = command(*words)

    assert answer.code == 4
    assert re.fullmatch(
        rf"{re.escape(str(project.run_dir.path))}/.*{re.escape(place)}: "
        rf"{NO_SPACE.strerror}; free some disk and run again\.\n",
        answer.err,
    )
    assert project.strays() == []
    assert project.run() == 0


def test_a_disk_that_is_full_for_run_log_costs_nothing_but_its_lines(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,fail", "owl,an owl")
    with monkeypatch.context() as patch:
        patch.setattr(rundir.RunDir, "run_log", lambda *_: Path("/dev/full"))
        assert project.run() == 3

    assert statuses(project) == {"cat": "ok", "dog": "failed", "owl": "ok"}
    assert project.run_dir.page.exists()


def test_a_disk_that_is_full_for_the_copy_of_the_manifest_is_one_message_and_code_4(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (project.manifest, "model=tiny_t2v", f"run_dir={project.run_dir.path}")
    with monkeypatch.context() as patch:
        full_disk_at(patch, "manifest.csv")
        answer = command(*words)

    assert answer.code == 4
    assert re.fullmatch(
        rf"{re.escape(str(project.run_dir.runs))}/[^/]+/manifest\.csv: "
        rf"{NO_SPACE.strerror}; free some disk and run again\.\n",
        answer.err,
    )
    assert list(project.run_dir.runs.rglob("*manifest*")) == []
    assert project.run() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte; made by root only."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class LargeClips(FakeRenderer):
    """Clips of 200 KiB, and errors as records, like the real renderer's."""

    def _finish(self, job: Job, words: list[str], columns: dict[str, Any]) -> ClipRecord:
        path = self._run_dir.latents / f".{job.clip.clip_id}.ballast"
        try:
            path.write_bytes(b"x" * 200 * 1024)
            path.rename(path.with_name(f"{job.clip.clip_id}.ballast"))
            return super()._finish(job, words, columns)
        except OSError as error:
            path.unlink(missing_ok=True)
            return (
                super()
                ._finish(job, ["fail"], columns | {"denoise_seconds": None})
                .__class__(
                    **{
                        **vars(super()._finish(job, ["fail"], columns)),
                        "error_type": type(error).__name__,
                        "error_message": str(error),
                    }
                )
            )


def test_a_disk_that_really_fills_up_leaves_whole_files_only_and_more_space_is_enough(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(small_disk)
    project.write("id,prompt", *(f"row{n},clip {n}" for n in range(12)))
    monkeypatch.setattr(preflight, "_PROBE_BYTES", 0)
    for module in (preflight, one_run):
        monkeypatch.setattr(module, "disk_need", lambda *_: DiskNeed(0, 0, ()))

    code = project.run(lambda spec: FakeExecutor(spec, LargeClips))

    assert code in (3, 4)
    done = [r for r in project.records() if r["status"] == "ok"]
    assert 0 < len(done) < 12
    for record in done:
        assert (project.run_dir.path / record["file"]).stat().st_size == record["file_bytes"]
    assert project.strays() == []
    project.did()

    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)

    assert project.run(lambda spec: FakeExecutor(spec, LargeClips)) == 0
    assert len([r for r in project.records() if r["status"] == "ok"]) == 12
    assert not {line.split()[1] for line in project.did()} & {r["clip_id"] for r in done}


# -- folders that cannot be written -----------------------------------------------------------


@pytest.fixture
def freeze(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Make a folder and all in it unchangeable, also for root."""
    frozen: list[Path] = []

    def make(folder: Path) -> None:
        words = ["chattr", "-R", "+i", str(folder)]
        if os.geteuid() == 0:
            if subprocess.run(words, check=False, capture_output=True).returncode:
                pytest.skip("this file system has no immutable files, and root may write all else")
        else:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
        frozen.append(folder)

    yield make
    for folder in frozen:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-R", "-i", str(folder)], check=True)
        else:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)


def test_a_read_only_place_for_a_new_run_is_refused_with_one_message(
    project: Project, command: Command, freeze: Callable[[Path], None]
) -> None:
    place = project.folder / "archive"
    place.mkdir()
    freeze(place)

    answer = command(project.manifest, "model=tiny_t2v", f"run_dir={place}/run")

    assert answer.code == 2
    assert answer.err.startswith(f"run_dir={place}/run: cannot be made (")
    assert answer.err.count("\n") == 1
    assert list(place.iterdir()) == []


def test_a_run_directory_that_became_read_only_is_refused_with_one_message(
    project: Project, command: Command, freeze: Callable[[Path], None]
) -> None:
    assert project.run(limit=1) == 0
    before = sorted(project.run_dir.path.rglob("*"))
    freeze(project.run_dir.path)

    answer = command(f"resume={project.run_dir.path}")

    assert answer.code == 2
    assert answer.err.startswith(f"run_dir={project.run_dir.path}: cannot be written (")
    assert answer.err.count("\n") == 1
    assert sorted(project.run_dir.path.rglob("*")) == before


def test_a_folder_that_becomes_read_only_during_a_run_fails_the_clips_and_keeps_the_rest(
    project: Project, freeze: Callable[[Path], None]
) -> None:
    class Freezes(ClipRenderer):
        def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
            if job.clip.row_id == "owl":
                freeze(project.run_dir.clips)
            return super().render(job, emit)

    assert project.run(lambda spec: FakeExecutor(spec, Freezes)) == 3

    records = by_row(project)
    assert records["cat"]["status"] == "ok"
    assert records["owl"]["error_type"] == "PermissionError"
    assert (project.run_dir.path / records["owl"]["latents_file"]).is_file()


# -- damaged files ----------------------------------------------------------------------------


def test_a_truncated_log_segment_is_refused_untouched_and_without_it_clips_are_only_decoded(
    project: Project, command: Command
) -> None:
    assert project.run() == 0
    (segment,) = project.run_dir.log.iterdir()
    os.truncate(segment, segment.stat().st_size // 2)
    before = {p: p.stat().st_mtime_ns for p in project.run_dir.path.rglob("*") if p.is_file()}
    project.did()

    answer = command(f"resume={project.run_dir.path}")

    assert answer.code == 2
    assert answer.err.startswith(f"{segment}: not a readable log segment (")
    assert "move it out of the folder" in answer.err
    after = {p: p.stat().st_mtime_ns for p in project.run_dir.path.rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }

    segment.rename(project.folder / segment.name)
    assert project.run() == 0
    assert {line.split()[0] for line in project.did()} == {"decode"}


def test_a_corrupted_embedding_is_made_again_and_gives_the_same_latents(project: Project) -> None:
    assert project.run(InProcessExecutor, limit=1) == 0
    before = by_row(project)["cat"]
    for path in project.run_dir.embeddings.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    assert project.run(InProcessExecutor, limit=1, only="cat", force=True) == 0

    after = by_row(project)["cat"]
    assert (after["attempt"], after["encode_cached"]) == (2, False)
    assert after["latents_sha256"] == before["latents_sha256"]
    check_files(project)


@pytest.mark.parametrize(("check", "is_found"), [("size", False), ("sha256", True)])
def test_a_truncated_video_of_the_logged_size_is_found_where_its_bytes_are_read(
    project: Project, check: str, is_found: bool
) -> None:
    assert project.run(InProcessExecutor) == 0
    before = by_row(project)
    video = project.run_dir.path / before["dog"]["file"]
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))

    assert project.run(InProcessExecutor, check_files=FileCheck[check]) == 0

    dog = by_row(project)["dog"]
    assert (dog["attempt"], dog["denoise_attempt"]) == ((2, 1) if is_found else (1, 1))
    assert (video.read_bytes() == whole) is is_found
    assert {row: by_row(project)[row]["attempt"] for row in ("cat", "owl")} == {"cat": 1, "owl": 1}
    if is_found:
        check_files(project)


# -- time and place ---------------------------------------------------------------------------


def test_a_clock_that_is_set_back_a_day_confuses_neither_plan_nor_log(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,fail once", "owl,an owl")
    assert project.run() == 3
    now = recovery.utc_now
    for module in (run_names, recovery, run_fakes):
        monkeypatch.setattr(module, "utc_now", lambda: now() - timedelta(days=1))

    assert project.run() == 0
    assert project.did().count("decode " + by_row(project)["dog"]["clip_id"]) == 1
    assert project.run() == 0

    assert project.did() == []
    assert [(r["row_id"], r["status"]) for r in project.records()][-1] == ("dog", "ok")
    assert project.run_dir.run_ids()[-1] == project.records()[-1]["run_id"]


def test_a_clock_that_is_set_back_during_a_run_makes_no_negative_time(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = datetime.now().astimezone()
    moments = iter(start - timedelta(hours=n) for n in range(1000))
    for module in (attempt, recovery):
        monkeypatch.setattr(module, "utc_now", lambda: next(moments))

    assert project.run(InProcessExecutor) == 0

    for record in project.records():
        for stage in ("denoise", "decode", "write", "total"):
            assert record[f"{stage}_seconds"] > 0


@pytest.mark.parametrize("content", sampled([None, b"", b"\xff\xfe\0", b"id,prompt\nrow,\n"], 1))
def test_a_manifest_that_is_spoilt_during_a_run_does_not_touch_it(
    project: Project, content: bytes | None
) -> None:
    class Spoils(FakeRenderer):
        def _act(self, words: list[str]) -> None:
            if content is None:
                project.manifest.unlink(missing_ok=True)
            else:
                project.manifest.write_bytes(content)

    original = project.manifest.read_bytes()

    assert project.run(lambda spec: FakeExecutor(spec, Spoils)) == 0

    assert set(statuses(project)) == set(ROWS)
    assert "prompts.csv has changed since the start; run again to render its new clips." in (
        project.said
    )
    (folder,) = project.run_dir.runs.iterdir()
    assert (folder / "manifest.csv").read_bytes() == original


def test_a_run_directory_that_was_moved_goes_on_where_it_is(project: Project) -> None:
    assert project.run(limit=2) == 0
    done = project.did()
    moved = project.folder / "elsewhere" / "new"
    moved.parent.mkdir()
    project.run_dir.path.rename(moved)
    journal = moved.parent / "journal.txt"

    assert project.run(run_dir=str(moved)) == 0

    words = journal.read_text(encoding="utf-8").splitlines()
    rendered = [word for word in words if not word.startswith("encode")]
    assert len(rendered) == 1
    assert not set(rendered) & set(done)
    assert not project.run_dir.path.exists()
    assert project.said[0] == f"{moved}: 2 of 3 done"


def test_a_run_directory_that_is_moved_during_a_run_stops_it_and_goes_on_there(
    project: Project,
) -> None:
    moved = project.folder / "moved"

    class Moves(ClipRenderer):
        def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
            if job.clip.row_id == "dog" and not moved.exists():
                project.run_dir.path.rename(moved)
            return super().render(job, emit)

    assert project.run(lambda spec: FakeExecutor(spec, Moves)) == 4

    assert any(line.startswith("the log could not be written (") for line in project.said)
    assert not project.run_dir.path.exists()
    assert project.run(InProcessExecutor, run_dir=str(moved)) == 0
    project.run_dir.path.mkdir()
    project.run_dir.path.rmdir()
    moved.rename(project.run_dir.path)
    assert set(statuses(project).values()) == {"ok"}
    check_files(project)


# -- a child that is sick ---------------------------------------------------------------------


def sticky_renderer(spec: ExecutorSpec) -> Any:
    """The real renderer on a card that one clip breaks: after it every call fails."""
    renderer = make_renderer(spec)
    from hv15_batch.engine import _ladder as ladder

    real, broken = ladder.denoise, []

    def denoise(pipe: Any, clip: Clip, *rest: Any) -> Any:
        if broken or (clip.row_id == "dog" and not (spec.run_dir.parent / "broke").exists()):
            (spec.run_dir.parent / "broke").touch()
            broken.append(clip)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(pipe, clip, *rest)

    ladder.denoise = denoise
    return renderer


def always_sticky_renderer(spec: ExecutorSpec) -> Any:
    renderer = make_renderer(spec)
    from hv15_batch.engine import _ladder as ladder

    error = RuntimeError("CUDA error: unspecified launch failure")
    ladder.denoise = failing_for_dog(ladder.denoise, error)
    return renderer


def sticky_encoder_renderer(spec: ExecutorSpec) -> Any:
    renderer = make_renderer(spec)
    if spec.worker_id == "local-0":
        encoders = encode_phase.Encoders
        error = RuntimeError("CUDA error: device-side assert triggered")
        encoders.encode_texts = failing_encoder(encoders.encode_texts, error)
    return renderer


@pytest.mark.slow
def test_after_a_sticky_cuda_error_the_child_is_replaced_and_the_other_clips_are_rendered(
    project: Project,
) -> None:
    code = project.run(partial(LocalExecutor, renderer=sticky_renderer))

    assert code == 0
    assert set(statuses(project).values()) == {"ok"}
    causes = [r["error_message"] for r in project.records() if r["row_id"] == "dog"]
    assert causes[0] == "CUDA error: an illegal memory access was encountered"
    assert {r["worker_id"] for r in project.records()} == {"local-0", "local-1"}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_clip_that_breaks_the_device_each_time_is_set_aside(project: Project) -> None:
    """Its attempts are the real records, with what the worker knew; not bare ones."""
    code = project.run(partial(LocalExecutor, renderer=always_sticky_renderer))

    assert code == 3
    assert statuses(project) == {"cat": "ok", "dog": "failed", "owl": "ok"}
    attempts = [r for r in project.records() if r["row_id"] == "dog"]
    assert [(r["attempt"], r["error_type"]) for r in attempts] == [
        (1, "RuntimeError"),
        (2, "RuntimeError"),
    ]
    assert all(r["torch_version"] for r in attempts)


def test_an_encoder_that_breaks_the_device_is_replaced_and_all_clips_are_rendered(
    project: Project,
) -> None:
    code = project.run(partial(LocalExecutor, renderer=sticky_encoder_renderer))

    assert code == 0
    assert {r["worker_id"] for r in project.records()} == {"local-1"}


IMPATIENT = Patience(cold_seconds=30.0, warm_seconds=2.0)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["sleeping", "stopped"])
def test_a_child_that_makes_no_step_counts_as_dead_and_the_next_clip_is_rendered(
    tmp_path: Path, is_stopped: bool
) -> None:
    project = Project(tmp_path)
    rows = [f"row{n},sleep 0.05 for clip {n}" for n in range(3)]
    stuck = "stop once" if is_stopped else "sleep 3600 once"
    project.write("id,prompt", *rows, f"stuck,{stuck}", "last,sleep 0.05 at last")

    code = session.run(
        project.config(), (), None, project.said.append, fake_local_executor, IMPATIENT
    )

    assert code == 0
    assert statuses(project)["last"] == "ok"
    first, second = (r for r in project.records() if r["row_id"] == "stuck")
    assert (first["status"], first["error_type"]) == ("failed", "WorkerStalled")
    assert re.fullmatch(
        r"the worker made no progress for \d s \(waiting for the first step of stuck_s0_.*; "
        r"2 s are allowed, see retry.stall_factor\)",
        first["error_message"],
    )
    assert second["status"] == "ok"


# -- what must not get out, and what must not get in ------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_plantedQwErTyUiOpAsDfGhJkLzXc",
    "AWS_SECRET_ACCESS_KEY": "planted/K7MDENGbPxRfiCYEXAMPLEKEY",
    "HTTPS_PROXY": "http://user:plantedPassw0rd@proxy.invalid:3128",
}
NEEDLES = (SECRETS["HF_TOKEN"], SECRETS["AWS_SECRET_ACCESS_KEY"], "plantedPassw0rd")


def texts_of(path: Path) -> str:
    """Return what can be read in a file: its bytes, and what is packed in them."""
    text = path.read_bytes().decode("utf-8", "replace")
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        text += json.dumps(table.to_pylist(), default=str) + str(table.schema)
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            text += json.dumps(file.metadata())
    elif path.suffix == ".mp4":
        text += read_comment(path) or ""
    return text


def leaks(run_dir: Path) -> list[str]:
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {".mp4", ".parquet", ".html", ".yaml", ".json", ".log", ".csv", ".safetensors"} <= {
        path.suffix for path in files
    }
    return [str(path) for path in files if any(needle in texts_of(path) for needle in NEEDLES)]


def test_secrets_of_the_environment_occur_in_no_file_of_a_run_and_on_no_screen(
    project: Project,
) -> None:
    words = [sys.executable, "-m", "hv15_batch", str(project.manifest), "model=tiny_t2v"]
    words += [f"run_dir={project.run_dir.path}", "override.height=32", "override.width=32"]
    words += ["override.num_frames=1", "override.num_inference_steps=1"]
    env = {**os.environ, **SECRETS, "CUDA_VISIBLE_DEVICES": ""}

    answer = subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert leaks(project.run_dir.path) == []
    assert not any(needle in answer.stdout + answer.stderr for needle in NEEDLES)


def test_a_secret_in_an_error_message_is_not_logged(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    message = f"no connection through {SECRETS['HTTPS_PROXY']} with {SECRETS['HF_TOKEN']}"
    plant(monkeypatch, "write_video", RuntimeError(message))

    assert project.run(InProcessExecutor) == 3

    assert by_row(project)["dog"]["error_message"].startswith("no connection through http://")
    assert leaks(project.run_dir.path) == []
    assert not any(needle in line for line in project.said for needle in NEEDLES)


def test_an_image_bomb_is_refused_before_it_is_decoded_and_nothing_is_made(
    tmp_path: Path, command: Command
) -> None:
    """30,000 x 30,000 pixels in 2.6 MB: 2.7 GB decoded."""
    raw = zlib.compressobj(9)
    data = b"".join(raw.compress(b"\0" * 30_001 * 1000) for _ in range(30)) + raw.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    (tmp_path / "bomb.png").write_bytes(png)
    (tmp_path / "p.csv").write_text("prompt,image\na cat,bomb.png\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_i2v")

    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "p.csv:2: image=bomb.png: an image has at most 64 megapixels, and this one has far more; "
        "scale it down (frames have under 1 megapixel).\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bomb.png", "p.csv"]


def test_a_row_cannot_name_a_file_outside_of_the_run_directory(
    tmp_path: Path, command: Command
) -> None:
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    (tmp_path / "p.csv").write_text("id,prompt\n../../escape,a cat\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v")

    assert answer.code == 2
    assert answer.err.startswith("p.csv:2: id=../../escape: ")
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]
