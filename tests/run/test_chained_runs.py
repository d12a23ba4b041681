"""Runs of chains: order, states, resume, several workers, kills, films; with a fake renderer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.engine import InProcessExecutor
from fakes.pages import read_data
from fakes.runs import FakeExecutor, FakeRenderer, Project, fake_local_executor, read_csv
from fakes.seats import FakeCluster, seat
from PIL import Image

from hv15_batch.clock import utc_now
from hv15_batch.config.settings import BenchmarkConfig, DispatchConfig, DispatchKind, RetryConfig
from hv15_batch.dispatch.protocol import ExecutorSpec, Job
from hv15_batch.engine import _write
from hv15_batch.engine.encode.encoders import Encoders
from hv15_batch.errors import EXIT_OK, EXIT_SOME_FAILED, Refused
from hv15_batch.media.conversion import open_upright
from hv15_batch.media.film import film_members
from hv15_batch.media.frame import frame_sha256
from hv15_batch.media.video import read_frames
from hv15_batch.record import OK, asked_record
from hv15_batch.run import session
from hv15_batch.run.rendering import fitting, rounds
from hv15_batch.run.rendering.journal import Journal
from hv15_batch.rundir.frames import frame_files
from hv15_batch.rundir.publish import publishing, sha256_of_file

HEAD = "id,prompt,model,image,join"
ROWS = {
    "a": "a,a cat,,,",
    "b": "b,a dog,tiny_i2v,@a:last,",
    "c": "c,a fox,tiny_i2v,@b:first,",
    "d": "d,an owl,tiny_i2v,@a:last,",
    "e": "e,a hen,,,",
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    write(project)
    return project


def write(project: Project, **rows: str) -> None:
    # Backwards: a row may stand before the one that it follows.
    project.write(HEAD, *list((ROWS | rows).values())[::-1])


def done(project: Project) -> list[str]:
    """Return what was rendered since, a row each: upper case where it was decoded only."""
    lines = [line.split() for line in project.did()]
    return [c[0].upper() if what == "decode" else c[0] for what, c in lines]


def states(project: Project) -> dict[str, str]:
    return {row["row_id"]: row["state"] for row in project.plan()}


# -- order ------------------------------------------------------------------------------------


def test_a_clip_is_rendered_after_the_one_that_it_follows(project: Project) -> None:
    assert project.run() == EXIT_OK
    assert done(project) == ["e", "a", "d", "b", "c"]
    assert (
        "Chains: 3 clips begin with a frame of another clip, at most 3 clips in a row; first "
        "frames are encoded 2 times more, each time after the clips before"
    ) in project.said
    records = {r["row_id"]: r for r in project.records()}
    for follower, source, frame in (("b", "a", "0"), ("c", "b", "0"), ("d", "a", "0")):
        own, before = records[follower], records[source]
        assert own["image_source"] == f"{before['denoise_sha256']}:{frame}"
        path = project.run_dir.path / "frames" / f"{before['denoise_sha256']}_{frame}.png"
        assert own["image_sha256"] == frame_sha256(path)
    assert project.run() == EXIT_OK
    assert done(project) == []


def test_texts_are_encoded_in_the_first_round_and_first_frames_in_their_own(
    project: Project,
) -> None:
    encoded: list[list[str]] = []

    class Noting(FakeExecutor):
        def encode(self, clips: Any) -> None:
            encoded.append(sorted(clip.row_id for clip in clips))
            super().encode(clips)

    assert project.run(Noting) == EXIT_OK
    assert encoded == [["a", "b", "c", "d", "e"], ["b", "d"], ["c"]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"only": "c"}, ["a", "b", "c"]),
        ({"only": "d"}, ["a", "d"]),
        ({"limit": 1}, ["e"]),
        ({"limit": 3}, ["e", "a", "d"]),
    ],
)
def test_only_and_limit_take_in_what_a_clip_follows(
    project: Project, changes: dict[str, Any], expected: list[str]
) -> None:
    assert project.run(**changes) == EXIT_OK
    assert done(project) == expected


def test_a_follower_takes_what_is_done_and_not_more(project: Project) -> None:
    assert project.run(only="a") == EXIT_OK
    assert project.run(only="b") == EXIT_OK
    assert project.run(limit=1, only="c,d") == EXIT_OK
    assert done(project) == ["a", "b", "d"]


def test_force_renders_what_was_named_and_not_what_it_follows(project: Project) -> None:
    assert project.run(only="b") == EXIT_OK
    done(project)
    assert project.run(only="b", force=True) == EXIT_OK
    assert done(project) == ["b"]
    for path in (project.run_dir.path / "frames").iterdir():
        path.unlink()
    assert project.run(only="b", force=True) == EXIT_OK
    assert done(project) == ["a", "b"], "the frame is made again"


# -- edits ------------------------------------------------------------------------------------


def test_an_edit_makes_what_follows_new_and_not_what_comes_before(project: Project) -> None:
    assert project.run() == EXIT_OK
    done(project)
    write(project, b=ROWS["b"].replace("dog", "red dog"))
    assert project.run() == EXIT_OK
    assert done(project) == ["b", "c"]
    write(project, a=ROWS["a"].replace("cat", "red cat"))
    assert project.run() == EXIT_OK
    assert done(project) == ["a", "d", "b", "c"]
    reasons = {row["row_id"]: row["reason"] for row in project.plan()}
    assert set(reasons.values()) == {""}


def test_the_plan_says_why_a_follower_changes(project: Project) -> None:
    project.run()
    write(project, a=ROWS["a"].replace("cat", "red cat"))
    project.run(only="e")
    found = {row["row_id"]: (row["state"], row["reason"]) for row in project.plan()}
    assert found["b"] == ("changed", "the clip that it follows")


def test_another_frame_of_a_finished_clip_is_decoded_again_from_its_latents(
    project: Project,
) -> None:
    assert project.run(only="a") == EXIT_OK
    done(project)
    assert project.run() == EXIT_OK
    assert done(project) == ["e", "d", "b", "c"], "the frame was kept for rows that were there"
    for path in (project.run_dir.path / "frames").iterdir():
        path.unlink()
    assert project.run() == EXIT_OK
    assert done(project) == [], "a lost frame matters only to clips that are to be rendered"
    write(project, d=ROWS["d"].replace("owl", "big owl"))
    assert project.run() == EXIT_OK
    assert done(project) == ["A", "d"]


def test_a_follower_is_rendered_again_when_the_frame_has_changed(project: Project) -> None:
    project.run(only="b")
    done(project)
    (frame,) = [
        p for p in (project.run_dir.path / "frames").iterdir() if _maker(project, "a") in p.name
    ]
    before = frame.read_bytes()
    image = Image.open(frame)
    image.save(frame, "PNG", compress_level=0)  # other bytes, the same pixels
    assert frame.read_bytes() != before
    assert project.run(only="b") == EXIT_OK
    assert done(project) == []
    Image.new("RGB", (16, 16), "lime").save(frame)
    assert project.run(only="b") == EXIT_OK
    assert done(project) == ["b"], "not from the latents of the other frame"
    assert states(project)["b"] == "done"


def test_a_damaged_frame_is_made_again(project: Project) -> None:
    assert project.run(only="a") == EXIT_OK
    done(project)
    (frame,) = (project.run_dir.path / "frames").iterdir()
    frame.write_bytes(frame.read_bytes()[:60])
    benchmark = BenchmarkConfig(repeat=2)
    with pytest.raises(Refused, match="which is not kept"):
        project.run(only="b", benchmark=benchmark)
    assert project.run(only="b") == EXIT_OK
    assert done(project) == ["A", "b"]


def test_a_lost_frame_is_made_again_for_a_clip_whose_latents_are_damaged(
    project: Project,
) -> None:
    project.write(HEAD, ROWS["a"], ROWS["b"])
    assert project.run() == EXIT_OK
    done(project)
    (record,) = (r for r in project.records() if r["row_id"] == "b")
    (project.run_dir.path / record["file"]).unlink()
    for path in (project.run_dir.path / "frames").iterdir():
        path.unlink()

    class Damaged(FakeRenderer):
        """Finds the latents of b damaged, and then no frame."""

        def render(self, job: Job, emit: Any) -> Any:
            if job.clip.row_id != "b" or list(self._run_dir.path.glob("frames/*")):
                return super().render(job, emit)
            what = {"status": "failed", "error_type": "FileNotFoundError", "attempt": job.attempt}
            record = asked_record(job.clip, run_id=self._spec.run_id, **what, finished_at=utc_now())
            return lambda: record

    def make(spec: Any) -> FakeExecutor:
        return FakeExecutor(spec, Damaged)

    assert project.run(make) == EXIT_SOME_FAILED
    assert project.run(make) == EXIT_OK
    assert done(project) == ["A", "B"]


def _other_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all clips have other frames from now on, as on another card."""

    def keep(self: FakeRenderer, job: Job) -> None:
        for path in frame_files(self._run_dir, job.clip):
            with publishing(path, job.repeat is None) as temporary:
                Image.new("RGB", (16, 16), "teal").save(temporary, "PNG")

    def write(self: FakeRenderer, job: Job, path: Path) -> dict[str, Any]:
        with publishing(path, job.repeat is None) as temporary:
            temporary.write_text(f"teal {job.clip.clip_id}", encoding="utf-8")
            size, sha256 = temporary.stat().st_size, sha256_of_file(temporary)
            return {"file_bytes": size, "file_sha256": sha256}

    monkeypatch.setattr(FakeRenderer, "_write", write)
    monkeypatch.setattr(FakeRenderer, "_keep_frames", keep)


def test_followers_of_a_clip_with_other_pixels_are_rendered_in_the_same_run(
    project: Project, joined: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, f="f,a cow,tiny_i2v,@a:first,", c=ROWS["c"] + "story")
    assert project.run(only="b,c,d") == EXIT_OK
    done(project)
    _other_pixels(monkeypatch)
    (project.run_dir.path / project.records()[0]["file"]).unlink()
    for latents in project.run_dir.path.glob("latents/*"):
        latents.unlink()
    joined.clear()
    assert project.run(only="a,b,c,f") == EXIT_OK
    assert done(project) == ["a", "f", "b", "c"], "d was not named"
    assert joined == [["a", "b", "c"]]
    assert states(project)["d"] == "retry"


def _lose(project: Project, row_id: str) -> None:
    """Let a clip be rendered again as a whole, with other pixels than before."""
    (record,) = (r for r in project.records() if r["row_id"] == row_id)
    (project.run_dir.path / record["file"]).unlink()
    project.run_dir.latents_file(record["denoise_sha256"]).unlink()


class _Specs:
    """Makes executors, and keeps what each was made for."""

    def __init__(self) -> None:
        self.models: list[list[str]] = []

    def __call__(self, spec: ExecutorSpec) -> FakeExecutor:
        self.models.append(list(spec.models))
        return FakeExecutor(spec)


def test_followers_of_another_model_are_rendered_in_the_same_run(
    project: Project, joined: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.run() == EXIT_OK
    done(project)
    joined.clear()
    _other_pixels(monkeypatch)
    _lose(project, "a")
    make = _Specs()
    assert project.run(make) == EXIT_OK
    assert done(project) == ["a", "d", "b", "c"]
    assert make.models == [["tiny_t2v"], ["tiny_t2v", "tiny_i2v"]]
    assert joined == [["a", "b", "c"]]
    assert set(states(project).values()) == {"done"}
    status = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    assert (status["done"], status["total"]) == (5, 5)
    assert project.run() == EXIT_OK
    assert done(project) == []


def test_followers_of_another_model_are_rendered_on_a_cluster_too(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.run() == EXIT_OK
    done(project)
    _other_pixels(monkeypatch)
    _lose(project, "a")
    make = _Specs()
    place = replace(seat("one"), make_executor=lambda order: make(order.spec))
    config = project.config(dispatch=DispatchConfig(kind=DispatchKind.ray))
    said = project.said.append
    assert session.run(config, (), None, said, open_cluster=FakeCluster(place).open) == EXIT_OK
    assert sorted(done(project)) == ["a", "b", "c", "d"]
    assert make.models == [["tiny_t2v"], ["tiny_t2v", "tiny_i2v"]]
    assert set(states(project).values()) == {"done"}


def test_followers_that_are_longer_than_all_planned_clips_get_workers_of_their_own(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "id,prompt,model,image,num_frames"
    rows = ["a,a cat,,,", "b,a dog,tiny_i2v,@a:last,5", "c,a fox,tiny_i2v,@b:first,9"]
    project.write(head, *rows)
    assert project.run() == EXIT_OK
    done(project)
    _other_pixels(monkeypatch)
    _lose(project, "b")
    make = _Specs()
    assert project.run(make) == EXIT_OK
    assert done(project) == ["b", "c"]
    assert make.models == [["tiny_i2v"]] * 2


def test_a_follower_whose_model_cannot_be_loaded_now_is_skipped_and_that_is_said(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project, f="f,a cow,tiny_t2v,,")
    assert project.run() == EXIT_OK
    done(project)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        _other_pixels(patch)
        _lose(project, "a")
        patch.setattr(fitting, "lacks_weights", lambda *_: True)
        assert project.run() == EXIT_SOME_FAILED
        assert done(project) == ["a"]
    b = next(row["clip_id"] for row in project.plan() if row["row_id"] == "b")
    assert (
        f"{b} is skipped: the frame that it begins with has changed, and it cannot be rendered "
        "now: its weights are not on disk, and are fetched at the start of a run. The same "
        "command tries it again."
    ) in capsys.readouterr().out
    assert states(project)["b"] == "retry"
    assert project.run() == EXIT_OK
    assert done(project)[:2] == ["d", "b"]


def _maker(project: Project, row_id: str) -> str:
    records = {r["row_id"]: r["denoise_sha256"] for r in project.records()}
    return str(records[row_id])


# -- a clip that cannot be followed -----------------------------------------------------------


@pytest.mark.parametrize(("what", "verb"), [("fail", "failed"), ("suspect", "is suspect")])
def test_what_follows_a_bad_clip_is_skipped_and_said(
    project: Project, capsys: pytest.CaptureFixture[str], what: str, verb: str
) -> None:
    write(project, a=ROWS["a"].replace("cat", f"{what}"))
    assert project.run() == EXIT_SOME_FAILED
    assert done(project) == ["e", "a"]
    said = capsys.readouterr().out
    plan = {row["row_id"]: row for row in project.plan()}
    a = plan["a"]["clip_id"]
    for row, before in (("b", a), ("d", a)):
        clip = plan[row]["clip_id"]
        assert f"{clip} is skipped: it begins with a frame of {before}, which {verb}" in said
        assert (plan[row]["state"], plan[row]["reason"]) == (
            "skipped",
            f"it follows {before}, which {verb}",
        )
    assert plan["c"]["state"] == "skipped"
    assert plan["c"]["reason"] == f"it follows {plan['b']['clip_id']}, which is skipped"
    table = {row["row_id"]: row["status"] for row in read_csv(project.run_dir.clips_table)}
    assert {name for name, status in table.items() if status == "skipped"} == {"b", "c", "d"}
    assert {r["row_id"] for r in project.records()} == {"a", "e"}, "no rows in the log"
    shown = {clip["rowId"]: clip for clip in read_data(project.run_dir.path)["clips"]}
    assert (shown["b"]["status"], shown["b"]["problem"]) == ("skipped", plan["b"]["reason"])
    assert shown["b"]["image"] == "@a:last"


def test_a_suspect_clip_stops_its_followers_until_it_is_rendered_again(project: Project) -> None:
    write(project, a=ROWS["a"].replace("cat", "suspect once"))
    assert project.run() == EXIT_SOME_FAILED
    assert project.run() == EXIT_SOME_FAILED
    assert "Nothing to render: 3 clips of" in "\n".join(project.said)
    assert "retry.suspect=true renders those again" in "\n".join(project.said)
    done(project)
    assert project.run(retry=RetryConfig(suspect=True)) == EXIT_OK
    assert done(project) == ["a", "d", "b", "c"]


def test_followers_are_rendered_by_the_run_that_repairs_the_clip_before(project: Project) -> None:
    write(project, a=ROWS["a"].replace("cat", "fail once"))
    assert project.run() == EXIT_SOME_FAILED
    done(project)
    assert project.run() == EXIT_OK
    assert done(project)[-3:] == ["d", "b", "c"]
    assert set(states(project).values()) == {"done"}


def test_what_follows_a_group_that_is_given_up_is_skipped(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [f"x{n},fail {n},demo_t2v," for n in range(3)]
    rest = ["a,a cat,demo_t2v,", "b,dog,tiny_i2v,@a:last", "c,an owl,,"]
    project.write("id,prompt,model,image", *bad, *rest)
    assert project.run(retry=RetryConfig(max_consecutive_bad=2)) == EXIT_SOME_FAILED
    assert done(project) == ["x", "x", "x", "c"]
    assert "is skipped: it begins with a frame of a_s0_" in capsys.readouterr().out
    assert "1 given up, 1 skipped" in "\n".join(project.said)


# -- interruptions and workers ----------------------------------------------------------------


def test_a_run_that_ends_between_two_rounds_loses_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real = Journal.status_of

    def kill(self: Journal, settings_sha256: str) -> str | None:
        raise Killed

    monkeypatch.setattr(Journal, "status_of", kill)
    with pytest.raises(Killed):
        project.run()
    assert done(project) == ["e", "a"]
    monkeypatch.setattr(Journal, "status_of", real)
    assert project.run() == EXIT_OK
    assert done(project) == ["d", "b", "c"]
    assert not project.strays()


@pytest.mark.parametrize("row", ["b", "c"])
def test_a_run_that_is_killed_resumes_the_chain_where_it_was(project: Project, row: str) -> None:
    rows = [ROWS["a"], ROWS["b"], ROWS["c"]]
    at = "abc".index(row)
    rows[at] = re.sub(r"a dog|a fox", "sleep 2", rows[at])
    project.write(HEAD, *rows)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(tests.parent), str(tests)]))
    words = [sys.executable, "-m", "fakes.run_parent", str(project.folder)]
    journal = project.folder / "journal.txt"
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path}) as parent:
        begin = time.monotonic()
        while f"denoise {row}_" not in (journal.read_text("utf-8") if journal.exists() else ""):
            assert time.monotonic() - begin < 60
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
    before = done(project)
    assert project.run() == EXIT_OK
    assert set(states(project).values()) == {"done"}
    again = done(project)
    assert not set(again) & set(before[:-1]), "what was finished stays"
    assert "".join(again).lower() in ("bc", "c")
    assert not project.strays()


def test_a_signal_between_two_rounds_ends_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.Rounds._is_skipped

    def interrupt(self: rounds.Rounds, job: Job) -> bool:
        if job.clip.row_id == "c":
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, job)

    monkeypatch.setattr(rounds.Rounds, "_is_skipped", interrupt)
    assert project.run() == 130
    assert done(project) == ["e", "a", "d", "b"]
    monkeypatch.undo()
    assert project.run() == EXIT_OK
    assert done(project) == ["c"]


def test_two_workers_render_a_chain_in_order(project: Project) -> None:
    more = {f"f{n}": f"f{n},sleep 0.{n + 1},tiny_i2v,@a:last," for n in range(3)}
    write(project, a="a,sleep 0.4,,,", **more)
    assert project.run(fake_local_executor, dispatch=DispatchConfig(workers=2)) == EXIT_OK
    records = {r["row_id"]: r for r in project.records()}
    for row, before in (("b", "a"), ("c", "b"), ("d", "a"), ("f0", "a"), ("f1", "a")):
        assert records[row]["status"] == OK
        assert records[row]["started_at"] >= records[before]["finished_at"]
    assert len({records[row]["worker_id"] for row in records}) == 2


def test_a_worker_that_dies_in_a_later_round_is_replaced(project: Project) -> None:
    write(project, b=ROWS["b"].replace("a dog", "die once"))
    assert project.run() == EXIT_OK
    assert set(states(project).values()) == {"done"}


# -- benchmarks -------------------------------------------------------------------------------


def test_a_benchmark_takes_frames_that_are_kept_and_refuses_others(project: Project) -> None:
    config = {"benchmark": BenchmarkConfig(repeat=2), "only": "b"}
    with pytest.raises(Refused, match=r"begins with a frame of a_s0_.*, which is not kept"):
        project.run(**config)
    project.run(only="b")
    done(project)
    assert project.run(**config) == EXIT_OK
    assert done(project) == ["b"] * 3


# -- films ------------------------------------------------------------------------------------


@pytest.fixture
def joined(project: Project, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A film of a, b and c, whose clips are no real videos; what each film was made of."""
    made: list[list[str]] = []

    def join(clips: list[Path], film: Path, *, sha256s: list[str], **_: Any) -> None:
        made.append([path.name[0] for path in clips])
        film.write_text("\n".join(sha256s), encoding="utf-8")

    def members(film: Path) -> list[str] | None:
        return film.read_text(encoding="utf-8").split() if film.exists() else None

    monkeypatch.setattr("hv15_batch.media.film.join_videos", join)
    monkeypatch.setattr("hv15_batch.media.film.film_members", members)
    # The fake renders all sizes alike.
    write(project, c=ROWS["c"] + "story")
    monkeypatch.setattr("hv15_batch.manifest.chains.films._form", lambda _: (32, 32, 24.0))
    return made


def test_a_film_is_built_once_all_its_clips_are_done(
    project: Project, joined: list[list[str]]
) -> None:
    film = project.run_dir.path / "films" / "story.mp4"
    assert project.run(only="b") == EXIT_OK
    assert not film.exists()
    (line,) = (line for line in project.said if line.startswith("Film"))
    assert line.startswith("Film story: not built, 1 of its 3 clips is not done (c_s0_")
    assert project.run() == EXIT_OK
    assert joined == [["a", "b", "c"]]
    assert f"Film: {film} (3 clips)" in project.said
    assert project.run() == EXIT_OK
    assert joined == [["a", "b", "c"]], "it is the same"
    film.unlink()
    assert project.run() == EXIT_OK
    assert joined == [["a", "b", "c"]] * 2, "nothing but the film was missing"
    write(project, c=ROWS["c"].replace("fox", "red fox") + "story")
    assert project.run(only="a") == EXIT_OK
    assert "; story.mp4 has earlier clips" in "\n".join(project.said)
    assert project.run() == EXIT_OK
    assert joined == [["a", "b", "c"]] * 3
    assert {row["row_id"]: row["film"] for row in project.plan()}["a"] == "story"


def test_a_film_that_cannot_be_built_ends_nothing(
    project: Project, joined: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("b.mp4 was encoded with other settings than the clips before it")

    monkeypatch.setattr("hv15_batch.media.film.join_videos", fail)
    assert project.run() == EXIT_OK
    assert (
        "Film story: not built: b.mp4 was encoded with other settings than the clips before it"
    ) in project.said
    assert not project.strays()


# -- the real renderer ------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Project:
    """Two rows for the real renderer of the tiny models."""
    project = Project(tmp_path)
    project.write(
        "id,prompt,model,image,height,width,num_frames,num_inference_steps,join",
        "a,a cat,,,128,128,5,2,story",
        "b,a dog,tiny_i2v,@a:last,,,5,2,story",
    )
    return project


def test_the_first_frame_is_exactly_the_frame_before_the_video_encoder(
    real: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = real
    given: list[np.ndarray[Any, Any]] = []
    real = Encoders.encode_image

    def encode(self: Encoders, image: bytes, height: int, width: int) -> Any:
        given.append(np.asarray(open_upright(image)))
        return real(self, image, height, width)

    monkeypatch.setattr(Encoders, "encode_image", encode)
    decoded: list[np.ndarray[Any, Any]] = []
    write_video = _write.write_video

    def note(frames: Any, *args: Any, **named: Any) -> None:
        decoded.append(np.array(frames))
        write_video(frames, *args, **named)

    monkeypatch.setattr(_write, "write_video", note)
    assert project.run(InProcessExecutor) == EXIT_OK
    (frame,) = given
    np.testing.assert_array_equal(frame, decoded[0][-1])
    records = {r["row_id"]: r for r in project.records()}
    kept = project.run_dir.path / "frames" / f"{records['a']['denoise_sha256']}_4.png"
    np.testing.assert_array_equal(np.asarray(Image.open(kept)), decoded[0][-1])
    assert records["b"]["image_sha256"] == frame_sha256(kept)
    assert records["b"]["height"] == records["b"]["width"] == 128

    film = project.run_dir.path / "films" / "story.mp4"
    clips = [project.run_dir.path / records[name]["file"] for name in "ab"]
    whole = np.array(list(read_frames(film)))
    np.testing.assert_array_equal(whole, np.array([f for c in clips for f in read_frames(c)]))
    assert film_members(film) == [records[name]["file_sha256"] for name in "ab"]


@pytest.mark.exhaustive
def test_latents_belong_to_the_frame_that_a_clip_began_with(real: Project) -> None:
    project = real
    assert project.run(InProcessExecutor) == EXIT_OK
    records = {r["row_id"]: r for r in project.records()}
    kept = project.run_dir.path / "frames" / f"{records['a']['denoise_sha256']}_4.png"
    (project.run_dir.path / records["b"]["file"]).unlink()
    assert project.run(InProcessExecutor) == EXIT_OK
    again = project.records()[-1]
    assert (again["row_id"], again["attempt"], again["denoise_attempt"]) == ("b", 2, 1)
    assert again["image_sha256"] == records["b"]["image_sha256"]
    Image.new("RGB", (128, 128), "lime").save(kept)
    assert project.run(InProcessExecutor) == EXIT_OK
    third = project.records()[-1]
    assert (third["row_id"], third["attempt"], third["denoise_attempt"]) == ("b", 3, 3)
    assert third["image_sha256"] == frame_sha256(kept)
    assert third["latents_sha256"] != again["latents_sha256"]


def test_a_frame_stays_until_its_clip_is_written_again(
    real: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert real.run(InProcessExecutor, only="a") == EXIT_OK
    (frame,) = (real.run_dir.path / "frames").iterdir()
    before = frame.stat().st_mtime_ns

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("a.mp4 is not what was written")

    with monkeypatch.context() as patch:
        patch.setattr(_write, "check_video", refuse)
        assert real.run(InProcessExecutor, only="a", force=True) == EXIT_SOME_FAILED
    assert frame.stat().st_mtime_ns == before
    assert real.run(InProcessExecutor, only="a") == EXIT_OK
    assert frame.stat().st_mtime_ns > before
