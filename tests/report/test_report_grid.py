"""`report --grid`: which clips it shows, their labels, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.pages import make_run, record

from hv15_batch.media.grid import is_grid
from hv15_batch.media.video import check_video, frame_size_and_rate
from hv15_batch.report import command
from hv15_batch.rundir.chosen.ratings import Rating, change_ratings
from hv15_batch.rundir.paths import RunDir


@pytest.fixture
def run(tmp_path: Path) -> Path:
    clips = [record(name, place, file_sha256=f"{place}" * 64) for place, name in enumerate("abcd")]
    return make_run(tmp_path / "run", clips, clips, is_playable=True)


def rate(run: Path, **stars: str) -> None:
    """Rate clips of a run by name; a name with `_old` is rated as another file."""
    places = {name: str(place) for place, name in enumerate("abcd")}
    for typed, value in stars.items():
        name, _, old = typed.partition("_")
        sha256 = ("e" if old else places[name]) * 64
        rating = Rating(f"sha-{name}", sha256, name, "7", value, "2026-11-30T07:00:00+00:00")
        change_ratings(
            RunDir(run), lambda ratings, r=rating: ratings.update({r.settings_sha256: r})
        )


def report(*words: object) -> int:
    return command.main([str(word) for word in words])


def test_all_clips_are_shown_until_some_are_picked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "out.mp4"

    assert report(run, "--grid", grid) == 0
    assert f"{grid} (4 of 4 clips, clips, 2 across, 2 down)" in capsys.readouterr().out
    assert frame_size_and_rate(grid)[0] == (2 * (90 + 24) + 4, 2 * 160 + 4)
    check_video(grid, num_frames=48, height=232, width=324, fps=24)
    rate(run, a="5", b="3", c_old="5", d="4")
    assert report(run, "--grid", grid) == 0
    assert f"{grid} (2 of 4 clips, picks, " in capsys.readouterr().out
    assert report(run, "--grid", grid, "--grid-of", "all") == 0
    assert f"{grid} (4 of 4 clips, clips, " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "run"]


def test_several_runs_share_a_grid(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path / "other", [record("z")], is_playable=True)

    assert report(run, other, "--grid", tmp_path / "out.mp4") == 0

    assert "(5 of 5 clips, clips, 3 across, 2 down)" in capsys.readouterr().out


def test_what_cannot_be_written_is_refused_before_the_page_is_built(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.mp4"
    mine.write_bytes((run / "clips" / "a.mp4").read_bytes())
    before = mine.read_bytes()
    refused = {
        ("--grid", tmp_path / "out.mov"): "must end in .mp4",
        ("--grid", tmp_path / "none" / "out.mp4"): "its folder must exist; make it: mkdir -p",
        ("--grid", mine): "exists and is no grid; choose another name",
        ("--grid-of", "picks"): "--grid-of: chooses the clips of a grid; add --grid FILE.mp4.",
    }

    for words, message in refused.items():
        assert report(run, *words) == 2
        assert message in capsys.readouterr().err
    assert not (run / "index.html").exists()
    assert mine.read_bytes() == before


def test_a_grid_without_clips_or_of_a_damaged_one_says_so_and_leaves_the_last_grid(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "out.mp4"
    assert report(run, "--grid", grid) == 0
    before = grid.read_bytes()

    assert report(run, "--grid", grid, "--grid-of", "picks") == 2
    assert "no clip has 4 stars or more" in capsys.readouterr().err
    damaged = run / "clips" / "b.mp4"
    damaged.write_bytes(damaged.read_bytes()[:-400])
    assert report(run, "--grid", grid) == 2
    assert "b.mp4" in capsys.readouterr().err
    damaged.unlink()
    assert report(run, "--grid", grid) == 0
    assert "(3 of 3 clips" in capsys.readouterr().out
    empty = make_run(tmp_path / "empty", [record("x", status="failed", file=None)])
    assert report(empty, "--grid", tmp_path / "none.mp4") == 2
    assert "no finished clip with a file" in capsys.readouterr().err

    assert is_grid(grid)
    assert grid.read_bytes() != before
    assert not (tmp_path / "none.mp4").exists()


def test_a_log_that_names_a_file_elsewhere_shows_what_lies_in_clips_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, own = record("a"), record("b", 1, file="clips/../../clips/b.mp4")
    run = make_run(tmp_path / "run", [secret], is_playable=True)
    (tmp_path / "clips").mkdir()
    other = make_run(tmp_path / "other", [own], is_playable=True)
    (run / "clips" / "a.mp4").rename(other / "clips" / "b.mp4")
    (tmp_path / "clips" / "b.mp4").write_bytes(b"no video")

    assert report(other, "--grid", tmp_path / "out.mp4") == 0

    assert "(1 of 1 clip" in capsys.readouterr().out
