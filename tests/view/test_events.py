"""What an open page hears of a run that goes on: clips, their order, progress, pauses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import RUN_ID, failed, make_run, make_status, moving_clip, record
from fakes.runs import Project
from fakes.served import serving

from hv15_batch.rundir.log import RunLog

News = dict[str, Any]


def first(events: Iterator[News], wanted: Callable[[News], bool]) -> News:
    return next(news for news in events if wanted(news))


def test_a_clip_is_told_within_two_seconds_of_its_row(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [], [record("a"), record("b", 1)])
    with serving(run_dir) as client, client.events() as events:
        before = next(events)
        assert [clip["status"] for clip in before["clips"]] == ["not rendered"] * 2
        assert client.get("/media/0/clips/a.mp4").status == 404
        (run_dir / "clips" / "a.mp4").write_bytes(moving_clip()[0])
        RunLog(run_dir / "log", RUN_ID).append(record("a"))
        written = time.monotonic()

        news = first(events, lambda news: news["clips"] != [])

        assert time.monotonic() - written < 2
        assert [(clip["id"], clip["status"]) for clip in news["clips"]] == [("a", "ok")]
        assert client.get("/" + news["clips"][0]["file"]).body == moving_clip()[0]
        assert "order" not in news


def test_a_page_that_comes_back_gets_what_it_missed_and_no_more(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [], [record("a"), record("b", 1)])
    with serving(run_dir) as client:
        log = RunLog(run_dir / "log", RUN_ID)
        with client.events() as events:
            next(events)
            log.append(failed("a"))
            version = first(events, lambda news: news["clips"] != [])["version"]
        log.append(failed("b", row_index=1))
        with client.events(version) as events:
            missed = first(events, lambda news: news["clips"] != [])
        assert [clip["id"] for clip in missed["clips"]] == ["b"]
        assert "prompt of b" in client.get("/assets/data.js").text


def test_a_clip_of_other_settings_changes_the_order(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a"), record("b", 1)])
    with serving(run_dir) as client, client.events() as events:
        next(events)
        (run_dir / "clips" / "a2.mp4").write_bytes(b"clip")
        RunLog(run_dir / "log", "20261124T230000-0001-bbbb").append(
            record("a2", row_id="a", prompt="prompt of a", flow_shift=9.0)
        )
        news = first(events, lambda news: "order" in news)
        assert news["order"] == ["0/a", "0/a2", "0/b"]


def test_progress_and_pauses_are_told(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a"), record("b", 1)])
    with serving(run_dir) as client, client.events() as events:
        assert "no run has written its status" in next(events)["statuses"][0]["lines"][0]
        running = make_status(
            state="rendering", pid=4321, hostname="another", total=2, done=1, clip_id="b",
            stage="denoise", step=3, steps=50, temperature_celsius=71.0, power_watts=300.0,
            vram_used_bytes=2**33, vram_total_bytes=2**34, eta_p50="2026-11-25T07:00:00+00:00",
        )  # fmt: skip
        (run_dir / "status.json").write_text(json.dumps(running), encoding="utf-8")
        status = first(events, lambda n: n.get("statuses", [{}])[0].get("isActive", False))
        said = "\n".join(status["statuses"][0]["lines"])
        for part in ("1 of 2 done", "rendering b, denoise, step 3 of 50", "71 °C", "of 16.0 GiB",
                     "until 2026-11-25", "process 4321 on another"):  # fmt: skip
            assert part in said

        client.post("/pause", {"run": 0, "pause": True})
        first(events, lambda n: n.get("statuses", [{}])[0].get("isPaused", False))


def test_a_log_that_cannot_be_read_is_told_and_the_page_stays(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a")])
    with serving(run_dir) as client, client.events() as events:
        next(events)
        damaged = run_dir / "log" / "20261124T230000-0009-cccc-0000.parquet"
        damaged.write_bytes(b"no parquet")
        news = first(events, lambda n: "cannot be read" in str(n.get("statuses")))
        assert "not a readable log segment" in news["statuses"][0]["lines"][0]
        assert client.get("/media/0/clips/a.mp4").status == 200
        damaged.unlink()
        first(events, lambda n: "statuses" in n and "cannot be read" not in str(n["statuses"]))


def test_a_run_of_this_program_is_followed_to_its_end(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("prompt", "a cat", "a dog sleep 1", "a cow sleep 1")
    assert project.run(limit=1) == 0
    with serving(project.run_dir.path) as client, client.events() as events:
        next(events)
        codes: list[int] = []
        runner = threading.Thread(target=lambda: codes.append(project.run()))
        runner.start()
        done = 1
        for news in events:
            done += sum(clip["status"] == "ok" for clip in news["clips"])
            if done == 3:
                break
        runner.join()
        assert codes == [0]
        first(events, lambda n: n.get("statuses", [{}])[0].get("state") == "done")


def test_a_number_that_json_lacks_is_left_out(tmp_path: Path) -> None:
    clips = [record("a", fps=float("nan"), denoise_seconds=float("inf")), record("b", 1)]
    one = make_run(tmp_path / "one", clips, clips)
    two = make_run(tmp_path / "two", clips, clips)
    for runs in ([one], [one, two]):
        with serving(*runs) as client, client.events() as events:
            assert next(events)["clips"][0]["fps"] is None
            assert client.get(f"/assets/{client.view.watch.seen.served.data_name}").status == 200


def test_the_watcher_outlives_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = make_run(tmp_path / "run", [], [record("a")])

    def fail(*_: object) -> None:
        raise OverflowError("date value out of range")

    with serving(run_dir) as client, client.events() as events:
        next(events)
        with monkeypatch.context() as broken:
            broken.setattr("hv15_batch.view._watch.serve_page", fail)
            broken.setattr("hv15_batch.view._watch.format_status", fail)
            RunLog(run_dir / "log", RUN_ID).append(failed("a"))
            (run_dir / "status.json").write_text(json.dumps(make_status()), encoding="utf-8")
            first(events, lambda n: str(n.get("statuses")).count("OverflowError: date value") == 2)
        assert first(events, lambda n: n["clips"] != [])["clips"][0]["status"] == "failed"


def test_a_film_that_is_built_is_told_within_two_seconds(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [record("a")], [record("a")], films={"a": "story"})
    with serving(folder) as client, client.events() as events:
        assert "not built yet" in client.get("/").text
        version = next(events)["version"]
        (folder / "films").mkdir()
        (folder / "films" / "story.mp4").write_bytes(moving_clip()[0])
        built = time.monotonic()

        news = first(events, lambda n: n["version"] > version and n["isPageOld"])

        assert time.monotonic() - built < 2
        assert news["clips"] == []
        assert 'src="media/0/films/story.mp4"' in client.get("/").text


def test_the_first_line_follows_the_state_of_the_run(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", [], [record("a")])
    with serving(run_dir) as client, client.events() as events:
        next(events)
        for state, said in (("encoding", "0 of 1, encoding"), ("rendering", "0 of 1, rendering")):
            status = make_status(state=state, pid=4321, hostname="another", total=1, done=0)
            (run_dir / "status.json").write_text(json.dumps(status), encoding="utf-8")
            first(events, lambda n, now=state: n.get("statuses", [{}])[0].get("state") == now)
            first(events, lambda n: n["isPageOld"])
            assert said in client.get("/").text
