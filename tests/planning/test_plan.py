"""What is to be done about each clip: its state, and which ones are selected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.runs import Project
from fakes.tiny_clips import clips_of, config_of

from hv15_batch.clip import Clip
from hv15_batch.config.settings import (
    RetryConfig,
    SamplingConfig,
    VideoConfig,
)
from hv15_batch.errors import Refused
from hv15_batch.planning import plan
from hv15_batch.planning._difference import describe_difference, settings_difference
from hv15_batch.planning.plan import (
    HISTORY_COLUMNS,
    History,
    PlannedClip,
    State,
    plan_clips,
)
from hv15_batch.planning.selection import select
from hv15_batch.record import asked_record
from hv15_batch.rundir.log import read_last_attempts
from hv15_batch.rundir.paths import RunDir


def planned(
    tmp_path: Path, clips: tuple[Clip, ...], *records: dict[str, Any], **changes: Any
) -> list[PlannedClip]:
    config = config_of(tmp_path, **changes)
    return plan_clips(clips, config, History(records), RunDir(tmp_path / "out"))


def logged(clip: Clip, tmp_path: Path, **columns: Any) -> dict[str, Any]:
    """The record of a finished clip, and its file."""
    path = tmp_path / "out" / "clips" / f"{clip.clip_id}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"12345")
    known = {"attempt": 1, "status": "ok", "file": f"clips/{path.name}", "file_bytes": 5}
    record = asked_record(clip, **{**known, **columns})
    return {name: getattr(record, name) for name in HISTORY_COLUMNS}


# -- states -----------------------------------------------------------------------------------


def test_a_clip_is_new_done_or_to_be_tried_again_with_the_reason(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, "id,prompt", "a,u", "b,v", "c,w", "d,x", "e,y", "f,z")
    records = [
        logged(clips[1], tmp_path),
        logged(clips[2], tmp_path, attempt=2, status="failed", error_type="OutOfMemoryError"),
        logged(clips[3], tmp_path, status="interrupted", error_type="SIGTERM"),
        logged(clips[4], tmp_path, status="suspect"),
        logged(clips[5], tmp_path, file_bytes=6),
    ]

    found = [(p.state, p.reason, p.attempts) for p in planned(tmp_path, clips, *records)]

    assert found == [
        (State.new, "", 0),
        (State.done, "", 1),
        (State.retry, "failed before: OutOfMemoryError", 2),
        (State.retry, "interrupted before: SIGTERM", 1),
        (State.done, "", 1),
        (State.retry, "its file has 5 bytes instead of 6", 1),
    ]


def test_a_clip_of_a_row_that_was_rendered_otherwise_is_changed(tmp_path: Path) -> None:
    (old,) = clips_of(tmp_path, "id,prompt,fps", "cat,a cat,24")
    record = logged(old, tmp_path)
    clips = clips_of(tmp_path, "id,prompt,fps,num_frames", "cat,a black cat,12,5")

    (found,) = planned(tmp_path, clips, record)

    assert found.state is State.changed
    assert found.reason == "prompt 'a cat' -> 'a black cat', num_frames 1 -> 5, fps 24 -> 12"


def test_a_clip_beside_a_finished_one_of_the_same_row_is_new_not_changed(
    tmp_path: Path,
) -> None:
    (old,) = clips_of(tmp_path, "prompt,fps", "a cat,24")
    record = logged(old, tmp_path)
    clips = clips_of(tmp_path, "prompt,fps", "a cat,24", "a cat,12")

    assert [p.state for p in planned(tmp_path, clips, record)] == [State.done, State.new]


def test_a_changed_clip_is_compared_with_the_earlier_one_that_differs_least(
    tmp_path: Path,
) -> None:
    (own,) = clips_of(tmp_path, "id,prompt", "cat,a cat")
    (other,) = clips_of(tmp_path, "id,prompt,fps,num_frames", "cat,a cat,12,5")
    (newest,) = clips_of(tmp_path, "id,prompt,fps", "cat,a black cat,30")
    records = [logged(clip, tmp_path) for clip in (own, other, newest)]

    def reason(**changes: Any) -> str:
        clips = clips_of(tmp_path, "id,prompt", "cat,a cat", **changes)
        (found,) = planned(tmp_path, clips, *records)
        assert found.state is State.changed
        return found.reason

    assert reason(video=VideoConfig(crf=30)) == "video.* changed"
    assert reason(override=SamplingConfig(fps=30.0)) == "prompt 'a black cat' -> 'a cat'"


def test_a_difference_that_the_log_does_not_show_is_still_named(tmp_path: Path) -> None:
    (clip,) = clips_of(tmp_path, "id,prompt", "cat,a cat")
    record = logged(clip, tmp_path)

    assert describe_difference(record, clip) == "video.* changed"
    with_image = replace(clip, image="a.png")
    assert describe_difference({**record, "image": "a.png"}, with_image) == (
        "the image's content or video.* changed"
    )


def test_saved_latents_are_used_unless_they_made_a_suspect_or_force_is_given(
    tmp_path: Path,
) -> None:
    clips = clips_of(tmp_path, "id,prompt", "a,u", "b,v")
    records = [logged(clips[0], tmp_path), logged(clips[1], tmp_path, status="suspect")]
    run_dir = RunDir(tmp_path / "out")
    run_dir.create()
    run_dir.latents_file(clips[0].denoise_sha256).touch()

    def uses(**changes: Any) -> list[tuple[bool, bool]]:
        found = planned(tmp_path, clips, *records, **changes)
        return [(p.has_latents, p.use_latents) for p in found]

    assert uses() == [(True, True), (False, True)]
    assert uses(retry=RetryConfig(suspect=True)) == [(True, True), (False, False)]
    assert uses(force=True) == [(True, False), (False, False)]


# -- order and choice -------------------------------------------------------------------------


def test_limit_counts_clips_that_are_not_done(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, "id,prompt", "a,u", "b,v", "c,w", "d,x")
    found = planned(tmp_path, clips, logged(clips[0], tmp_path))

    chosen = select(found, config_of(tmp_path, limit=2))

    assert [(p.clip.row_id, p.is_done) for p in chosen] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]


def test_only_takes_ids_and_refuses_unknown_ones(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, "id,prompt,seed", "b,v,1 2", "a,u,", "c,w,")
    found = planned(tmp_path, clips)

    chosen = select(found, config_of(tmp_path, only="a, b"))
    assert [(p.clip.row_id, p.clip.settings.seed) for p in chosen] == [
        ("b", 1),
        ("a", 0),
        ("b", 2),
    ]

    with pytest.raises(Refused) as caught:
        select(found, config_of(tmp_path, only="a,x"))
    assert str(caught.value) == "only=x: no row has that id; ids are b, a, c."


def test_a_change_of_loras_says_which_files_and_scales(tmp_path: Path) -> None:
    (clip,) = clips_of(tmp_path, "id,prompt", "a,u")
    cat, dog = "a1b2c3d4" + 56 * "0", "0f" * 32

    def with_loras(*pairs: tuple[str, float]) -> Clip:
        return replace(clip, settings=replace(clip.settings, loras=pairs or None))

    before, now = with_loras((cat, 0.5)), with_loras((cat, 0.6), (dog, 1.0))
    wanted = "loras a1b2c3d4:0.5 -> a1b2c3d4:0.6 0f0f0f0f:1"
    assert describe_difference(logged(before, tmp_path), now) == wanted
    assert settings_difference(before.settings, now.settings) == wanted
    removed = describe_difference(logged(before, tmp_path), with_loras())
    assert removed == "loras a1b2c3d4:0.5 -> none"


def test_the_log_is_read_again_only_if_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run plans twice: before and after it holds the lock."""
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    assert project.run(limit=1) == 0
    reads: list[int] = []

    def counted(*arguments: Any) -> list[dict[str, Any]]:
        rows = read_last_attempts(*arguments)
        reads.append(len(rows))
        return rows

    monkeypatch.setattr(plan, "read_last_attempts", counted)
    before = plan.read_history(project.run_dir)

    assert plan.read_history(project.run_dir, before) is before
    assert reads == [1]
    assert project.run() == 0
    assert plan.read_history(project.run_dir, before).by_settings.keys() > before.by_settings.keys()
