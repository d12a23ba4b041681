"""What a page may change: ratings.csv under its lock, loaded ratings, copies of picks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import make_run, moving_clip, record
from fakes.served import Client, serving

from hv15_batch.errors import Refused
from hv15_batch.rundir._lock import RunLock
from hv15_batch.rundir.chosen.picks import pick_name, picks_folder
from hv15_batch.rundir.chosen.ratings import (
    COLUMNS,
    Rating,
    change_ratings,
    format_ratings,
    parse_ratings,
    ratings_file,
    read_ratings,
)
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir

LATE = "2999-01-01T00:00:00+00:00"
EARLY = "2001-01-01T00:00:00+00:00"


def sha(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def clip(name: str, row: int = 0, **changes: Any) -> Any:
    known = {"settings_sha256": sha(name), "file_sha256": sha(f"file {name}"), "row_id": name}
    return record(f"{name}_c", row, **{**known, **changes})


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    shot = '{"tag_shot": "010", "tag_odd": "../../x"}'
    clips = [clip("fox", tags=shot, seed=3), clip("sea", 1), clip("sky", 2, tags=shot, seed=3)]
    planned = [*clips, clip("later", 3)]
    return RunDir(make_run(tmp_path / "run", clips, planned, is_playable=True))


@pytest.fixture
def client(run_dir: RunDir) -> Iterator[Client]:
    with serving(run_dir.path) as let_in:
        yield let_in


def rate(client: Client, name: str, value: str, run: int = 0, file: str | None = None) -> int:
    asked = {"run": run, "settings_sha256": sha(name), "rating": value}
    return client.post("/rate", {**asked, "file_sha256": sha(f"file {file or name}")}).status


def test_a_rating_is_written_with_what_it_is_about(client: Client, run_dir: RunDir) -> None:
    assert rate(client, "fox", "4") == 200
    assert rate(client, "sea", "x") == 200

    lines = ratings_file(run_dir).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "settings_sha256,file_sha256,row_id,seed,rating,rated_at"
    assert lines[1].startswith(f"{sha('fox')},{sha('file fox')},fox,3,4,20")
    ratings = read_ratings(run_dir)
    assert [rating.rating for rating in ratings.values()] == ["4", "x"]

    assert rate(client, "fox", "") == 200
    assert list(read_ratings(run_dir)) == [sha("sea")]
    assert [p.name for p in run_dir.path.glob(".*.csv")] == []


def test_open_pages_hear_of_a_rating_and_of_one_from_elsewhere(
    client: Client, run_dir: RunDir
) -> None:
    with client.events() as events:
        version = next(events)["version"]
        rate(client, "fox", "4")
        news = next(n for n in events if n["clips"])
        assert [c["id"] for c in news["clips"]] == ["fox_c"]
        assert news["clips"][0]["rating"]["value"] == "4"
        assert news["version"] > version
        other = Rating(sha("sea"), "", "sea", "7", "1", LATE)
        ratings_file(run_dir).write_text(format_ratings({"": other}), encoding="utf-8")
        news = next(n for n in events if n["clips"])
        assert {c["id"]: c["rating"] for c in news["clips"]} == {
            "fox_c": None, "sea_c": {"value": "1", "sha": "", "at": LATE},
        }  # fmt: skip


@pytest.mark.parametrize(
    "asked",
    [
        {"rating": "6"}, {"rating": "=1+1"}, {"rating": "-1"}, {"rating": None},
        {"settings_sha256": sha("no")}, {"settings_sha256": "../../x"}, {"run": 1}, {"run": -1},
        {"settings_sha256": sha("later")}, {"file_sha256": "a,b\n"}, {"row_id": "other"},
    ],
)  # fmt: skip
def test_a_rating_that_cannot_be_is_refused(
    client: Client, run_dir: RunDir, asked: dict[str, Any]
) -> None:
    usual = {"run": 0, "settings_sha256": sha("fox"), "file_sha256": "", "rating": "3"}
    assert client.post("/rate", {**usual, **asked}).status == 400
    assert not ratings_file(run_dir).exists()


def test_ratings_of_many_pages_at_once_are_all_kept(run_dir: RunDir) -> None:
    def add(number: int) -> None:
        rating = Rating(sha(str(number)), "", "row", "1", "5", LATE)
        change_ratings(run_dir, lambda ratings: ratings.update({sha(str(number)): rating}))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(read_ratings(run_dir)) == 20


def test_a_lock_that_is_held_is_waited_for_and_then_said(
    client: Client, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hv15_batch.rundir.chosen.ratings._LOCK_SECONDS", 0.1)
    with RunLock(run_dir.path / ".ratings.lock"):
        answer = client.post(
            "/rate", {"run": 0, "settings_sha256": sha("fox"), "file_sha256": "", "rating": "3"}
        )
    assert answer.status == 400
    assert "in use by another hv15-batch view" in answer.json()["fault"]
    assert rate(client, "fox", "3") == 200


@pytest.mark.parametrize("name", ["ratings.csv", ".ratings.lock"])
def test_links_are_not_followed(client: Client, run_dir: RunDir, tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("mine", encoding="utf-8")
    (run_dir.path / name).symlink_to(target)

    assert rate(client, "fox", "3") == 400

    assert target.read_text(encoding="utf-8") == "mine"


def test_a_file_of_ratings_that_is_none_is_never_overwritten(
    client: Client, run_dir: RunDir
) -> None:
    ratings_file(run_dir).write_text("my own notes\n", encoding="utf-8")
    answer = client.post(
        "/rate", {"run": 0, "settings_sha256": sha("fox"), "file_sha256": "", "rating": "3"}
    )
    assert "is it a ratings.csv?" in answer.json()["fault"]
    assert ratings_file(run_dir).read_text(encoding="utf-8") == "my own notes\n"


def load(client: Client, *ratings: Rating) -> Any:
    text = format_ratings({str(n): rating for n, rating in enumerate(ratings)})
    return client.post("/load", {"text": text})


def test_loaded_ratings_are_merged_by_their_time(client: Client, run_dir: RunDir) -> None:
    rate(client, "fox", "4")
    answer = load(
        client,
        Rating(sha("fox"), sha("file fox"), "fox", "3", "1", EARLY),
        Rating(sha("sea"), sha("an earlier file"), "sea", "7", "5", EARLY),
        Rating(sha("no"), "", "no", "7", "5", LATE),
    )

    assert answer.json()["said"] == (
        "loaded 1 rating, 1 older than what is here, 1 of clips that are not here"
    )
    ratings = read_ratings(run_dir)
    assert {r.row_id: r.rating for r in ratings.values()} == {"fox": "4", "sea": "5"}
    assert ratings[sha("sea")].file_sha256 == sha("an earlier file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its header lacks settings_sha256"),
        ("a,b\n1,2\n", "is it a ratings.csv?"),
        (f"{','.join(COLUMNS)}\n{sha('a')},,r,1,9,{LATE}\n", "ratings.csv:2: rating=9: must be"),
        (f"{','.join(COLUMNS)}\n{sha('a')},,r,1,5,soon\n", "rated_at=soon: must be a time"),
        (f"{','.join(COLUMNS)}\n../x,,r,1,5,{LATE}\n", "settings_sha256=../x: must be"),
        (f"{','.join(COLUMNS)}\n{sha('a')}\n", "rating=: must be"),
    ],
)
def test_a_file_that_is_no_ratings_is_refused_as_a_whole(
    client: Client, run_dir: RunDir, text: str, said: str
) -> None:
    answer = client.post("/load", {"text": text})
    assert answer.status == 400
    assert said in answer.json()["fault"]
    assert not ratings_file(run_dir).exists()


def test_of_two_lines_of_one_clip_the_later_counts() -> None:
    lines = [f"{sha('a')},,r,1,{value},{at}" for value, at in (("5", LATE), ("2", EARLY))]
    found = parse_ratings("\n".join([",".join(COLUMNS), *lines]), "ratings.csv")
    assert found[sha("a")].rating == "5"


def copy(client: Client, *names: str, pattern: str = "{tag_shot}_v{seed}") -> Any:
    picks = [{"run": 0, "settings_sha256": sha(name)} for name in names]
    return client.post("/picks", {"pattern": pattern, "picks": picks})


def test_picks_are_copied_once_under_their_names(client: Client, run_dir: RunDir) -> None:
    answer = copy(client, "fox", "sea")

    assert answer.json()["names"] == ["010_v3.mp4", "sea_v7.mp4"]
    assert (picks_folder(run_dir) / "010_v3.mp4").read_bytes() == moving_clip()[0]
    assert copy(client, "fox", "sea").json()["names"] == ["010_v3.mp4", "sea_v7.mp4"]
    assert sorted(os.listdir(picks_folder(run_dir))) == ["010_v3.mp4", "sea_v7.mp4"]


def test_a_name_that_another_clip_has_is_never_taken(client: Client, run_dir: RunDir) -> None:
    picks_folder(run_dir).mkdir()
    (picks_folder(run_dir) / "010_v3.mp4").write_bytes(b"mine")
    (picks_folder(run_dir) / "010_v3.2.mp4").symlink_to(picks_folder(run_dir) / "new")

    assert copy(client, "fox").json()["names"] == ["010_v3.3.mp4"]

    assert (picks_folder(run_dir) / "010_v3.mp4").read_bytes() == b"mine"
    assert not (picks_folder(run_dir) / "new").exists()


@pytest.mark.parametrize(
    "pattern", ["../../x", "/etc/{tag_odd}", "..", "{tag_odd}", ".\0hidden", ""]
)
def test_a_pattern_never_leads_out_of_picks(
    client: Client, run_dir: RunDir, pattern: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    (name,) = copy(client, "fox", pattern=pattern).json()["names"]

    made = set(tmp_path.rglob("*")) - set(before)
    assert made == {picks_folder(run_dir), picks_folder(run_dir) / name}
    assert not name.startswith(".")


def test_a_pattern_with_an_unknown_field_is_refused(client: Client, run_dir: RunDir) -> None:
    answer = copy(client, "fox", pattern="{prompt}")
    assert answer.status == 400
    assert "{prompt}: no such field; name {row_id}, {clip_id}, {seed}" in answer.json()["fault"]
    assert not picks_folder(run_dir).exists()
    with pytest.raises(Refused, match="at most 200"):
        pick_name("x" * 201, {}, "row")


@pytest.mark.parametrize("pattern", ["{seed", "seed}", "{{seed}}", "}{", "v{seed}_{"])
def test_a_pattern_with_a_single_brace_is_refused(pattern: str) -> None:
    with pytest.raises(Refused, match=r"has a single [{}]; a field is such as \{seed\}"):
        pick_name(pattern, {"seed": "3"}, "row")


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("夜の街", "夜の街_v3"), ("Öl/Wasser", "Öl_Wasser_v3"), ("กลางคืน", "กลางคืน_v3"),
        ("a\u202egpj", "a_gpj_v3"), ("e\u0301", "é_v3"), ("..", "v3"), ("夜" * 120, "夜" * 66),
    ],
)  # fmt: skip
def test_a_tag_of_any_script_stays_in_the_name_of_a_copy(tag: str, name: str) -> None:
    assert pick_name("{tag_shot}_v{seed}", {"tag_shot": tag, "seed": "3"}, "row") == name


def test_a_copy_with_the_longest_name_is_written(client: Client, run_dir: RunDir) -> None:
    assert copy(client, "fox", pattern="夜" * 200).json()["names"] == ["夜" * 66 + ".mp4"]


def test_picks_that_are_a_link_or_clips_that_are_one_are_refused(
    client: Client, run_dir: RunDir, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    picks_folder(run_dir).symlink_to(tmp_path / "elsewhere")
    assert copy(client, "fox").status == 400
    assert os.listdir(tmp_path / "elsewhere") == []
    picks_folder(run_dir).unlink()
    clip = run_dir.clips / "fox_c.mp4"
    clip.unlink()
    clip.symlink_to("/etc/passwd")
    assert copy(client, "fox").status == 500
    assert not picks_folder(run_dir).exists()


def test_several_runs_have_their_own_ratings(tmp_path: Path) -> None:
    for name in ("a", "b"):
        same = clip("fox", file_sha256=sha(f"file {name}"))
        make_run(tmp_path / "s" / name, [same], [same], is_playable=True)
    with serving(tmp_path / "s" / "a", tmp_path / "s" / "b") as client:
        clips = client.view.watch.seen.served.data["clips"]
        assert [(c["runName"], c["row"], c["file"]) for c in clips] == [
            ("a", 0, "media/0/clips/fox_c.mp4"), ("b", 0, "media/1/clips/fox_c.mp4"),
        ]  # fmt: skip
        assert client.get("/media/1/clips/fox_c.mp4").body == moving_clip()[0]
        assert rate(client, "fox", "2", run=1, file="b") == 200
        assert not ratings_file(RunDir(tmp_path / "s" / "a")).exists()
        # Of two clips of the same settings, the one with the file that was rated is meant.
        load(client, Rating(sha("fox"), sha("file a"), "fox", "7", "5", LATE))
        assert read_ratings(RunDir(tmp_path / "s" / "a"))[sha("fox")].rating == "5"
        assert read_ratings(RunDir(tmp_path / "s" / "b"))[sha("fox")].rating == "2"


def test_times_at_the_edge_of_the_calendar_are_compared(run_dir: RunDir) -> None:
    edges = ["0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00"]
    for first, second in (edges, reversed(edges)):
        lines = [f"{sha('fox')},,fox,3,{1 + edges.index(t)},{t}" for t in (first, second)]
        found = parse_ratings("\n".join([",".join(COLUMNS), *lines]), "ratings.csv")
        assert found[sha("fox")].rating == "2"


def test_a_spoilt_file_is_said_and_the_last_known_ratings_stay(
    client: Client, run_dir: RunDir
) -> None:
    rate(client, "fox", "4")
    good = ratings_file(run_dir).read_text(encoding="utf-8")
    with client.events() as events:
        next(events)
        ratings_file(run_dir).write_text(good.replace(",", ";"), encoding="utf-8")
        news = next(n for n in events if "its header lacks" in str(n.get("statuses")))
        assert any("as they were last read" in line for line in news["statuses"][0]["lines"])
        RunLog(run_dir.log, "20261124T230000-0001-bbbb").append(clip("later", 3))
        news = next(n for n in events if n["clips"])
        assert [c["id"] for c in news["clips"]] == ["later_c"]  # and the rating of fox is kept
        assert client.view.watch.seen.served.data["clips"][0]["rating"]["value"] == "4"

        ratings_file(run_dir).write_text(good.replace(",4,", ",2,"), encoding="utf-8")
        news = next(n for n in events if n["clips"])
        assert news["clips"][0]["rating"]["value"] == "2"
        assert "header" not in str(client.view.watch.seen.statuses)


def test_a_loaded_row_without_a_rating_clears_an_older_one(client: Client, run_dir: RunDir) -> None:
    for name in ("fox", "sea"):
        assert rate(client, name, "4") == 200
    cleared = {
        name: Rating(sha(name), sha(f"file {name}"), name, "7", "", at)
        for name, at in (("fox", LATE), ("sea", EARLY), ("sky", LATE))
    }

    said = client.post("/load", {"text": format_ratings(cleared)}).json()["said"]

    assert said == "loaded 2 ratings, 1 older than what is here"
    assert list(read_ratings(run_dir)) == [sha("sea")]
    ratings_file(run_dir).write_text(format_ratings(cleared), encoding="utf-8")
    assert read_ratings(run_dir) == {}
