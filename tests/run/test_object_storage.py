"""Runs on object storage, with the real renderer of the tiny model, against a real S3 server."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes.engine import InProcessExecutor
from fakes.object_store import BUCKET, Fault
from fakes.pages import read_data
from fakes.runs import FakeRenderer
from fakes.stored import Stored
from fakes.uploading import uploading_local_executor
from PIL import Image

from hv15_batch import cli
from hv15_batch.clock import utc_now
from hv15_batch.config.settings import DispatchConfig, RewriteConfig, VideoCodec, VideoConfig
from hv15_batch.dispatch.protocol import Job
from hv15_batch.engine.render import ClipRenderer
from hv15_batch.errors import Refused, StoreError
from hv15_batch.media.film import film_members
from hv15_batch.media.frame import frame_sha256
from hv15_batch.rundir.chosen.previews import remove_preview, write_preview
from hv15_batch.rundir.frames import frame_files
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.remote import held, lease, uploads
from hv15_batch.rundir.remote.client import Client, Item
from hv15_batch.rundir.remote.leftovers import UPLOADED, orphans
from hv15_batch.rundir.remote.objects import add_objects
from hv15_batch.rundir.schema import SCHEMA_VERSION
from hv15_batch.rundir.store import hold, open_uploads, place

exhaustive = pytest.mark.exhaustive
CLIP = r"clips/.+\.[0-9a-f]{16}\.mp4"


def ok_rows(rows: list[dict[str, Any]]) -> list[str]:
    return [row["row_id"] for row in rows if row["status"] == "ok"]


# -- a run ------------------------------------------------------------------------------------


def test_a_clip_for_editing_is_confirmed_and_kept_too(stored: Stored) -> None:
    assert stored.render(video=VideoConfig(codec=VideoCodec.prores)) == 0
    assert ok_rows(stored.rows()) == ["cat", "dog"]
    assert all(row["file"] in stored.names() for row in stored.rows())
    assert not list(stored.mirror.clips.iterdir())


@pytest.mark.parametrize("codec", VideoCodec)
def test_an_upload_of_any_codec_is_one(codec: VideoCodec) -> None:
    assert UPLOADED.fullmatch(f"clips/cat_s0_1c629cb4.{16 * 'a'}{codec.suffix}")


def test_a_run_makes_the_same_clips_there_as_on_a_disk(
    stored: Stored, capfd: pytest.CaptureFixture[str]
) -> None:
    assert stored.render() == 0
    assert stored.said[0] == f"{stored.url}: new"
    assert f"Clips: {stored.url}/clips" in stored.said
    there = {row["row_id"]: row for row in stored.rows()}
    assert stored.run(InProcessExecutor) == 0
    here = {row["row_id"]: row for row in stored.records()}
    for name in ("cat", "dog"):
        assert there[name]["latents_sha256"] == here[name]["latents_sha256"]
        assert there[name]["clip_id"] == here[name]["clip_id"]
        assert re.fullmatch(CLIP, there[name]["file"])
        item = Client(stored.url).head(there[name]["file"])
        assert item is not None
        assert (item.size, item.sha256) == (there[name]["file_bytes"], there[name]["file_sha256"])
        assert there[name]["latents_file"] in stored.names()
    assert not list(stored.mirror.clips.iterdir()), "clips stay in the store alone"
    assert not list(stored.mirror.latents.iterdir())
    run = stored.names("runs/")
    assert [Path(name).name for name in run] == [
        "config.yaml",
        "manifest.csv",
        "run.log",
        "system.json",
    ]
    assert {"status.json", "plan.csv", "clips.csv", "index.html"} <= set(stored.names())
    assert len(stored.names("thumbs/")) == 2
    data = bytes(stored.server.bucket()[f"{stored.name_there}/assets/data.js"].value).decode()
    assert there["cat"]["file"] in data, "the page plays it"
    assert Path(there["cat"]["file"]).stem + ".jpg" in data
    # Nothing of the credentials is stored or printed.
    texts = [bytes(obj.value) for obj in stored.server.bucket().values()]
    texts += [path.read_bytes() for path in stored.mirror.path.rglob("*") if path.is_file()]
    texts.append("".join([*stored.said, *capfd.readouterr()]).encode())
    assert not [text for text in texts if b"key-of-nobody" in text or b"secret-of-nobody" in text]


def test_a_resume_with_nothing_to_do_asks_for_no_clip(stored: Stored) -> None:
    counts = []
    for rows in (1, 6):
        stored.write("prompt", *(f"a cat {number}" for number in range(rows)))
        assert stored.go() == 0
        stored.on_another_machine()
        stored.server.requests.clear()
        assert stored.go() == 0
        assert f"{stored.url}: {rows} of {rows} done" in stored.said
        assert not stored.server.count("HEAD", "clips/|latents/|thumbs/")
        assert not stored.server.count("GET", "clips/|latents/|thumbs/")
        # Before the lease the top, and clips, latents, log, runs, assets; clips only there.
        assert stored.server.count("GET", f"/{BUCKET}$") == 10
        counts.append(len(stored.server.requests))
    fetched_more = stored.server.count("GET", "log/|runs/")
    assert counts[1] - counts[0] <= fetched_more, "one more segment and run folder, not clips"


def test_a_resume_asks_only_for_more_pages_of_the_listing_where_there_are_more_clips(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    asked = []
    for rows in (2, 9):
        stored.write("prompt", *(f"a cat {number}" for number in range(rows)))
        assert stored.go() == 0
        stored.server.requests.clear()
        assert stored.go() == 0
        assert f"{stored.url}: {rows} of {rows} done" in stored.said
        pages = stored.server.count("GET", f"/{BUCKET}$")
        asked.append((pages, len(stored.server.requests) - pages))
    few, many = asked
    # Clips and latents have two pages more each, and runs one, which is listed twice.
    assert many[0] - few[0] == 2 + 2 + 2 * 1
    assert many[1] == few[1], "nothing else"


@exhaustive
def test_rows_that_were_changed_are_rendered_and_the_others_are_kept(stored: Stored) -> None:
    assert stored.go() == 0
    stored.on_another_machine()
    stored.write("prompt,id", "a cat,cat", "a red dog,dog", "a fox,fox")
    stored.denoised()
    assert stored.go() == 0
    assert stored.denoised() == ["dog", "fox"]


@exhaustive
def test_latents_of_the_store_are_decoded(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored.render() == 0
    before = {row["row_id"]: row for row in stored.rows()}
    stored.on_another_machine()
    monkeypatch.setattr(ClipRenderer, "_denoise", None)
    lost = before["cat"]["file"]
    Client(stored.url).delete([lost])
    assert stored.render() == 0
    assert stored.server.count("GET", "latents/") == 1
    again = [row for row in stored.rows() if row["row_id"] == "cat"][-1]
    assert again["attempt"] == 2
    assert again["file"] != lost
    assert again["latents_file"] == before["cat"]["latents_file"]
    assert again["latents_sha256"] == before["cat"]["latents_sha256"]


def test_a_frame_that_another_clip_begins_with_is_read_from_the_store(stored: Stored) -> None:
    stored.write(
        "id,prompt,model,image,height,width,num_frames,join",
        "a,a cat,,,128,128,5,story",
        "b,a dog,tiny_i2v,@a:last,,,5,story",
    )
    assert stored.render(only="a") == 0
    (frame,) = stored.names("frames/")
    assert not list((stored.mirror.path / "frames").iterdir()), "it is in the store alone"
    stored.on_another_machine()
    assert stored.render() == 0
    assert stored.server.count("GET", "frames/") == 1
    records = {row["row_id"]: row for row in stored.rows()}
    assert records["a"]["attempt"] == 1
    assert frame == f"frames/{records['b']['image_source'].replace(':', '_')}." + (
        records["a"]["file"].rsplit(".", 2)[1] + ".png"
    )
    assert records["b"]["image_sha256"] == frame_sha256(stored.mirror.path / frame)
    shown = {clip["rowId"]: clip for clip in read_data(stored.mirror.path)["clips"]}
    assert shown["b"]["pick"]["image"] == str(stored.mirror.path / frame)
    assert stored.names("films/") == ["films/story.mp4"]
    data = bytes(stored.server.bucket()[f"{stored.name_there}/films/story.mp4"].value)
    film = stored.folder / "story.mp4"
    film.write_bytes(data)
    assert film_members(film) == [records[name]["file_sha256"] for name in "ab"]
    assert not list(stored.mirror.clips.iterdir()), "what was fetched for the film is gone"
    stored.on_another_machine()
    stored.server.requests.clear()
    assert stored.render() == 0
    assert not stored.server.count("GET", "clips/"), "the film is compared by its comment"


@pytest.mark.parametrize("only", [None, "a"])
def test_followers_of_a_clip_with_other_pixels_are_rendered_again_there(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, only: str | None
) -> None:
    stored.write("id,prompt,model,image", "a,a cat,,", "b,a dog,tiny_i2v,@a:last")
    assert stored.go() == 0
    before = {row["row_id"]: row for row in stored.rows()}
    stored.on_another_machine()
    stored.denoised()

    def keep_others(self: FakeRenderer, job: Job) -> None:
        for path in frame_files(self._run_dir, job.clip):
            with publishing(path, makes_folder=True) as temporary:
                Image.new("RGB", (16, 16), "teal").save(temporary, "PNG")

    monkeypatch.setattr(FakeRenderer, "_keep_frames", keep_others)
    Client(stored.url).delete([before["a"]["file"], before["a"]["latents_file"]])
    assert stored.go(only=only) == 0
    if only:
        assert stored.denoised() == ["a"], "b was not named"
        stored.on_another_machine()
        assert stored.go() == 0
        assert stored.denoised() == ["b"]
    else:
        assert stored.denoised() == ["a", "b"]
    after = {row["row_id"]: row for row in stored.rows()}
    assert after["b"]["image_sha256"] != before["b"]["image_sha256"]
    assert len(stored.names("frames/")) == 2
    stored.server.requests.clear()
    assert stored.go() == 0
    assert any(line.startswith("Nothing to do") for line in stored.said)
    assert not stored.server.count("GET", "frames/"), "it is here"


def test_a_film_that_the_store_does_not_take_keeps_nothing_else_back(stored: Stored) -> None:
    films = place(stored.url) / "films"
    films.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (films / name).write_text(name, encoding="utf-8")
    stored.mirror.page.write_text("page", encoding="utf-8")
    stored.server.fail("PUT", r"films/a\.mp4", 403)
    said: list[str] = []
    with hold(stored.mirror, "20260101-000000-0123456789abcdef", said.append):
        pass
    assert stored.names("films/") == ["films/b.mp4"]
    assert stored.names("index") == ["index.html"]
    (line,) = said
    assert line.startswith("films/a.mp4 in the store is not up to date")


def test_frames_are_kept_as_long_as_their_clips(stored: Stored) -> None:
    attempts = ["a" * 16, "b" * 16]
    frames = [f"frames/{'0' * 64}_4.{attempt}.png" for attempt in attempts]
    now = utc_now()
    items = [Item(name, 1, "", now - timedelta(hours=30)) for name in frames]
    assert orphans(items, now, {f"clips/a_s0_1.{attempts[0]}.mp4"}) == [frames[1]]


@exhaustive
def test_a_clip_can_be_checked_by_its_bytes(stored: Stored) -> None:
    from hv15_batch.config.settings import FileCheck

    assert stored.go() == 0
    cat = next(row for row in stored.rows() if row["row_id"] == "cat")
    spoilt = b"x" * cat["file_bytes"]
    Client(stored.url).put(cat["file"], spoilt)
    assert stored.go() == 0
    assert f"{stored.url}: 2 of 2 done" in stored.said
    assert stored.go(check_files=FileCheck.sha256) == 0
    assert f"{stored.url}: 1 of 2 done" in stored.said


def test_two_workers_upload_and_find_what_the_other_one_uploaded(stored: Stored) -> None:
    stored.write("prompt,id", *(f"a cat {number},cat{number}" for number in range(4)))
    two = DispatchConfig(workers=2)
    assert stored.run(uploading_local_executor, run_dir=stored.url, dispatch=two) == 0
    rows = stored.rows()
    assert sorted(ok_rows(rows)) == ["cat0", "cat1", "cat2", "cat3"]
    assert {row["file"] for row in rows} == set(stored.names("clips/"))

    one, other = open_uploads(stored.mirror), open_uploads(stored.mirror)
    assert one is not None
    assert other is not None
    latents = stored.mirror.latents_file("ab" * 32)
    assert not other.fetch_latents(latents)
    latents.write_bytes(b"latents")
    one.begin_latents(latents, "0123456789abcdef", is_new=True)
    name = one.end_latents("0123456789abcdef", print)
    assert name is not None
    add_objects(stored.mirror.path, [(name, 7)])  # the parent, with the row
    latents.unlink()
    assert other.fetch_latents(latents)
    assert latents.read_bytes() == b"latents"


# -- uploads ----------------------------------------------------------------------------------


def test_a_clip_whose_upload_fails_is_failed_and_later_only_decoded(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.server.fail("PUT", "clips/cat", 403)
    assert stored.render() == 3
    failed = next(row for row in stored.rows() if row["row_id"] == "cat")
    assert failed["status"] == "failed"
    assert failed["error_type"] == "StoreError"
    assert "does not allow to write" in failed["error_message"]
    assert failed["file"] is None
    assert list(stored.mirror.clips.glob("cat*.mp4")), "the file is kept here"
    stored.server.faults.clear()
    monkeypatch.setattr(ClipRenderer, "_denoise", None)
    assert stored.render() == 0
    assert sorted(ok_rows(stored.rows())) == ["cat", "dog"]
    assert not list(stored.mirror.clips.iterdir())


def test_what_was_kept_here_goes_once_another_machine_has_uploaded_the_clip(
    stored: Stored,
) -> None:
    stored.server.fail("PUT", "clips/cat|latents/", 403)
    assert stored.go() == 3
    stored.server.faults.clear()
    kept = [*stored.mirror.clips.iterdir(), *stored.mirror.latents.iterdir()]
    assert len(kept) == 4
    here, aside = stored.mirror.path, stored.mirror.path.with_name("this-machine")
    here.rename(aside)
    for obj in stored.server.bucket().values():
        obj.last_modified -= timedelta(seconds=100)
    assert stored.go() == 0, "on another machine"
    shutil.rmtree(here)
    aside.rename(here)
    assert stored.go() == 0
    assert "2 of 2 done" in stored.said[0]
    assert not [path for path in kept if path.exists()]


@exhaustive
def test_latents_whose_upload_fails_are_kept_here(stored: Stored) -> None:
    stored.server.fail("PUT", "latents/", 403)
    assert stored.go() == 3
    assert [row["status"] for row in stored.rows()] == ["failed", "failed"]
    stored.server.faults.clear()
    stored.denoised()
    assert stored.go() == 0
    assert not stored.denoised()
    assert len(stored.names("latents/")) == 2


@exhaustive
def test_an_upload_that_fails_for_a_moment_is_tried_again(stored: Stored) -> None:
    stored.server.fail("PUT", "clips/", 503, times=1)
    assert stored.go() == 0


@exhaustive
def test_an_upload_whose_answer_is_lost_counts_once(stored: Stored) -> None:
    stored.server.lose_answer("PUT", "clips/cat")
    assert stored.go() == 0
    assert len(stored.names("clips/cat")) == 1


def test_a_slow_upload_says_so(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uploads, "NOTE_SECONDS", 0.2)
    stored.write("prompt,id", "a cat,cat", "a dog,dog", "a fox,fox")
    stored.server.delay("PUT", "clips/cat", 0.7, times=1)
    assert stored.go() == 0
    assert "its upload has taken" in capsys.readouterr().out


def test_a_store_that_keeps_half_of_an_upload_fails_the_clip(stored: Stored) -> None:
    stored.server.cut("PUT", "clips/cat")
    assert stored.go() == 3
    failed = next(row for row in stored.rows() if row["row_id"] == "cat")
    assert "the store has other bytes than were uploaded" in failed["error_message"]
    assert ok_rows(stored.rows()) == ["dog"]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda keys, name: spoil(keys[name], b"x" * keys[name].size), "by its checksum"),
        pytest.param(
            lambda keys, name: keys.pop(name),
            "was uploaded and is not in the store",
            marks=exhaustive,
        ),
        pytest.param(
            lambda keys, name: spoil(keys[name], b"x"), "has 1 bytes instead of", marks=exhaustive
        ),
    ],
)
def test_a_row_is_written_only_after_the_store_confirmed_the_file(
    stored: Stored, lie: Callable[[Any, str], None], reason: str
) -> None:
    keys = stored.server.bucket()

    def act(environ: dict[str, Any]) -> None:
        lie(keys, environ["PATH_INFO"].removeprefix(f"/{BUCKET}/"))

    stored.server.faults.append(Fault("HEAD", "clips/cat", act, 1))
    assert stored.go() == 3
    failed = next(row for row in stored.rows() if row["row_id"] == "cat")
    assert failed["error_type"] == "UploadLost"
    assert reason in failed["error_message"]
    assert stored.go() == 0
    assert sorted(ok_rows(stored.rows())) == ["cat", "dog"]


def spoil(obj: Any, content: bytes) -> None:
    obj.value = content
    obj._etag = None


# -- shards -----------------------------------------------------------------------------------

SEVERAL = [f"a clip of {n},r{n}" for n in range(6)]


def count_there(stored: Stored) -> int:
    """Return in how many shards the run was rendered last, as the store has it."""
    content = stored.server.bucket()[f"{stored.name_there}/run.json"].value
    return int(json.loads(content)["shards"])


def test_shards_share_a_store_and_render_every_clip_once(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.write("prompt,id", *SEVERAL)
    assert stored.go(shard="1/2") == 0
    stored.on_another_machine()
    assert stored.go(shard="2/2") == 0
    stored.on_another_machine()

    assert sorted(ok_rows(stored.rows())) == [f"r{n}" for n in range(6)]
    assert {row["shard"] for row in stored.rows()} == {"1/2", "2/2"}
    assert stored.names("log|runs|status|lock") == []
    for own in ("shards/1-of-2/", "shards/2-of-2/"):
        kinds = {name.removeprefix(own).split("/")[0] for name in stored.names(own)}
        assert kinds == {"log", "runs", "status.json", "lock.json"}
    assert count_there(stored) == 2
    table = stored.server.bucket()[f"{stored.name_there}/clips.csv"].value.decode()
    assert all(f"r{n}," in table for n in range(6)), "the last one knows what both did"
    capsys.readouterr()
    assert cli.main(["status", stored.url]) == 0
    told = capsys.readouterr().out
    assert "2 shards, all of them started" in told
    assert "6 of 6 done" in told
    stored.denoised()
    assert stored.go() == 0
    assert not (stored.mirror.path.parent / "journal.txt").exists(), "all is done"


def test_another_division_is_refused_while_a_shard_renders_there(stored: Stored) -> None:
    stored.write("prompt,id", *SEVERAL)
    assert stored.go(shard="1/2") == 0
    stored.on_another_machine()
    lease_there = stored.server.bucket()[f"{stored.name_there}/shards/1-of-2/lock.json"]
    holder = json.loads(lease_there.value) | {"released": False, "hostname": "elsewhere"}
    spoil(lease_there, json.dumps(holder).encode())
    lease_there.last_modified += timedelta(seconds=100)

    for shard in (None, "1/3", "0/3"):
        with pytest.raises(Refused, match=r"shard 1/2 is in use by process \d+ on elsewhere"):
            stored.go(shard=shard)
    assert stored.go(shard="2/2") == 0
    assert count_there(stored) == 2

    lease_there.last_modified -= timedelta(seconds=100)  # it has expired
    assert stored.go(shard="1/3") == 0
    assert stored.go() == 0
    assert Counter(ok_rows(stored.rows())) == {f"r{n}": 1 for n in range(6)}


def test_a_run_of_all_clips_excludes_shards(stored: Stored) -> None:
    assert stored.go(limit=1) == 0
    stored.on_another_machine()
    lease_there = stored.server.bucket()[f"{stored.name_there}/lock.json"]
    spoil(lease_there, json.dumps(json.loads(lease_there.value) | {"released": False}).encode())
    lease_there.last_modified += timedelta(seconds=100)

    with pytest.raises(Refused, match=r"/[^ ]+: in use by process"):
        stored.go(shard="1/2")
    assert not [n for n in stored.names("shards/") if not n.endswith("lock.json")]


# -- the log ----------------------------------------------------------------------------------


def test_a_row_that_could_not_be_put_stops_the_run_and_is_put_by_the_next(stored: Stored) -> None:
    stored.write("prompt,id", "a cat,cat", "a dog,dog", "an owl,owl")
    stored.server.fail("PUT", "log/", 503)
    assert stored.go() == 4
    assert any("the log could not be written" in line for line in stored.said)
    assert not stored.names("log/")
    assert stored.denoised() == ["cat", "dog"], "what was in work is finished"
    stored.server.faults.clear()
    assert stored.go() == 0
    assert stored.denoised() == ["owl"]
    assert sorted(ok_rows(stored.rows())) == ["cat", "dog", "owl"]


def test_a_signal_ends_the_tries_at_a_row_soon_and_the_row_is_kept(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "ROW_SECONDS", 600.0)
    stored.write("prompt,id", "a cat,cat", "a dog,dog", "an owl,owl")

    def terminate(_environ: dict[str, Any]) -> int:
        if stored.server.count("PUT", "log/") == 3:  # of the second try
            os.kill(os.getpid(), signal.SIGTERM)
        return 503

    stored.server.faults.append(Fault("PUT", "log/", terminate))
    begin = time.monotonic()
    assert stored.go() == 143
    assert time.monotonic() - begin < 60
    stored.server.faults.clear()
    assert stored.go() == 0
    assert sorted(ok_rows(stored.rows())) == ["cat", "dog", "owl"]


def test_segments_of_an_older_schema_are_brought_up_in_the_store_too(stored: Stored) -> None:
    assert stored.go() == 0
    (name,) = stored.names("log/")
    segment = stored.server.bucket()[f"{stored.name_there}/{name}"]
    table = pq.read_table(io.BytesIO(segment.value)).drop_columns(["num_alloc_retries"])
    older = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"schema_version": b"3"}), older)
    spoil(segment, older.getvalue())

    assert stored.go(force=True, only="cat") == 0

    names = [f"{stored.name_there}/{name}" for name in stored.names("log/")]
    objects = [stored.server.bucket()[name].value for name in names]
    metadata = [pq.read_schema(io.BytesIO(value)).metadata for value in objects]
    assert {m[b"schema_version"] for m in metadata} == {str(SCHEMA_VERSION).encode()}
    assert len(stored.rows()) == 3


def test_a_store_that_fails_for_a_moment_has_all_rows_at_the_end(stored: Stored) -> None:
    stored.server.fail("PUT", "log/", 503, times=2)
    assert stored.go() == 0
    assert sorted(ok_rows(stored.rows())) == ["cat", "dog"]


def test_a_run_begins_only_when_its_settings_are_there(stored: Stored) -> None:
    stored.server.fail("PUT", "runs/", 503)
    with pytest.raises(StoreError, match="failed to write runs/"):
        stored.go()
    assert not stored.names("clips|log")
    stored.server.faults.clear()
    assert stored.go() == 0


class Killed(BaseException):
    """Ends a run where it stands."""


def kill_before_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(RunLog, "append", killed)
    monkeypatch.setattr(held.StoredRun, "close", lambda *_: None)


@pytest.mark.parametrize("is_elsewhere", [pytest.param(False, marks=exhaustive), True])
def test_a_kill_between_upload_and_row_leaves_each_clip_once_in_the_log(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, is_elsewhere: bool
) -> None:
    with monkeypatch.context() as patch:
        kill_before_the_row(patch)
        with pytest.raises(Killed):
            stored.go()
    first = stored.names("clips/cat")
    assert len(first) == 1
    if is_elsewhere:
        stored.on_another_machine()
    stored.denoised()
    assert stored.go() == 0
    assert not stored.denoised(), "latents are there"
    rows = stored.rows()
    assert sorted(ok_rows(rows)) == ["cat", "dog"]
    assert first[0] not in {row["file"] for row in rows}
    # What no row names goes when it is a day old.
    assert set(first) < set(stored.names("clips/cat"))
    stored.server.bucket()[f"{stored.name_there}/{first[0]}"].last_modified -= timedelta(hours=25)
    assert stored.go() == 0
    assert not set(first) & set(stored.names("clips/cat"))
    assert len(stored.names("clips/")) == 2


@exhaustive
def test_a_process_that_is_killed_between_upload_and_row(stored: Stored) -> None:
    process: subprocess.Popen[bytes]

    def kill(_: object) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    stored.server.faults.append(Fault("PUT", "log/", kill, 1))
    words = ["model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=1"]
    words = [sys.executable, "-m", "hv15_batch", str(stored.manifest), *words]
    process = subprocess.Popen([*words, f"run_dir={stored.url}"], start_new_session=True)
    assert process.wait(120) == -signal.SIGKILL
    stored.server.faults.clear()
    assert len(stored.names("clips/")) in (1, 2)
    num_latents = len(stored.names("latents/"))
    stored.on_another_machine()
    done = subprocess.run([*words, f"run_dir={stored.url}"], check=False, timeout=120)
    assert done.returncode == 0
    assert sorted(ok_rows(stored.rows())) == ["cat", "dog"]
    assert len(stored.names("latents/")) == max(num_latents, 2), "nothing is denoised twice"


def test_old_objects_that_rows_name_or_that_are_not_ours_stay(stored: Stored) -> None:
    assert stored.go() == 0
    client = Client(stored.url)
    client.put("clips/holiday.mp4", b"not ours")
    client.put("thumbs/orphan.0123456789abcdef.jpg", b"ours")
    for obj in stored.server.bucket().values():
        obj.last_modified -= timedelta(hours=30)
    before = set(stored.names("clips|latents|thumbs"))
    assert stored.go() == 0
    gone = before - set(stored.names("clips|latents|thumbs"))
    assert gone == {"thumbs/orphan.0123456789abcdef.jpg"}


# -- two drivers ------------------------------------------------------------------------------


def write_lease(stored: Stored, run_id: str = "theirs") -> None:
    Client(stored.url).put(
        lease.NAME,
        b'{"pid": 9, "hostname": "far", "run_id": "%s", "started_at": "today", "folder": "x"}'
        % run_id.encode(),
    )


def test_previews_are_put_with_the_status_and_go_with_their_clip(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "STATUS_SECONDS", 0.05)
    assert stored.go() == 0
    run_dir, name = stored.mirror, "previews/worker-0.jpg"

    def wait_for(is_there: bool) -> None:
        end = time.monotonic() + 20
        while (name in stored.names()) != is_there:
            assert time.monotonic() < end
            time.sleep(0.02)

    with hold(run_dir, "20261130T000000-0000-cccc", print):
        write_preview(run_dir, 0, lambda path: path.write_bytes(b"picture") and None)
        wait_for(True)
        remove_preview(run_dir, 0)
        wait_for(False)
        write_preview(run_dir, 0, lambda path: path.write_bytes(b"another") and None)
        wait_for(True)
    assert name not in stored.names()


def test_a_second_driver_is_refused_and_told_who_is_there(stored: Stored) -> None:
    write_lease(stored)
    with pytest.raises(Refused) as refused:
        stored.go()
    assert "in use by process 9 on far (run theirs, since today)" in str(refused.value)
    assert stored.names() == [lease.NAME]


def test_a_driver_that_loses_its_lease_finishes_its_clip_and_stops(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)

    def take_over(_: object) -> None:
        write_lease(stored)
        time.sleep(0.5)

    stored.write("prompt,id", *(f"a cat {number},cat{number}" for number in range(4)))
    stored.server.faults.append(Fault("PUT", "clips/cat", take_over, 1))
    assert stored.go() == 4
    assert any("lost to process 9 on far" in line for line in stored.said)
    rows = stored.rows()
    assert rows
    assert len(rows) < 4
    assert {row["status"] for row in rows} == {"ok"}
    holder = bytes(stored.server.bucket()[f"{stored.name_there}/{lease.NAME}"].value)
    assert b"theirs" in holder


@exhaustive
def test_the_run_of_this_machine_that_was_killed_holds_nobody_up(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_before_the_row(patch)
        with pytest.raises(Killed):
            stored.go()
    assert stored.go() == 0


# -- refusals ---------------------------------------------------------------------------------


def test_a_store_that_overwrites_is_refused_before_anything_is_written(stored: Stored) -> None:
    stored.server.ignore("If-None-Match")
    with pytest.raises(Refused, match="this store overwrites an object"):
        stored.go()
    assert not stored.names()


def test_a_folder_with_other_objects_is_refused(stored: Stored) -> None:
    Client(stored.url).put("holiday.jpg", b"mine")
    with pytest.raises(Refused, match=r"holds other objects \(holiday.jpg\)"):
        stored.go()


def test_a_shard_that_rewrites_is_refused_there(stored: Stored) -> None:
    rewrite = RewriteConfig(base_url="http://127.0.0.1:1", model="m")
    with pytest.raises(Refused, match=f"shard=1/2 with run_dir={stored.url} and rewrite"):
        stored.go(shard="1/2", rewrite=rewrite)
    assert not stored.names()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "does not know these credentials"), (403, "does not allow to list it")],
)
def test_credentials_that_are_wrong_are_one_message(
    stored: Stored, capsys: pytest.CaptureFixture[str], status: int, reason: str
) -> None:
    stored.server.fail("GET", "", status)
    words = [f"manifest={stored.manifest}", "model=tiny_t2v", f"run_dir={stored.url}"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert f"run_dir={stored.url}" in error


def test_a_missing_bucket_is_one_message(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"manifest={stored.manifest}", "model=tiny_t2v", "run_dir=s3://no-such-bucket/a"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "there is no bucket no-such-bucket; create it, or correct the name." in error
    assert error.count("\n") == 1
