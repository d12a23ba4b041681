"""The page of a run directory says what the log and the plan say, and nothing else."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hv15_batch.records import ClipRecord
from hv15_batch.report import main, write_page
from hv15_batch.rundir import RunDir
from hv15_batch.runlog import RunLog

PLAN_COLUMNS = (
    "clip_id", "row_id", "row_index", "line", "state", "reason", "seed", "height", "width",
    "num_frames", "num_inference_steps", "image", "settings_sha256", "denoise_sha256", "prompt",
)  # fmt: skip
LONG_PROMPT = "A panda dances. " * 625


def record(name: str, row_index: int = 0, **changes: Any) -> ClipRecord:
    """Return a finished attempt at a clip called `name`."""
    values: dict[str, Any] = {
        "run_id": "r1",
        "clip_id": name,
        "row_id": name,
        "row_index": row_index,
        "attempt": 1,
        "settings_sha256": f"sha-{name}",
        "denoise_sha256": f"sha-{name}",
        "prompt": f"prompt of {name}",
        "seed": 7,
        "height": 480,
        "width": 848,
        "num_frames": 121,
        "num_inference_steps": 50,
        "total_seconds": 412.34,
        "is_cold": False,
        "peak_vram_reserved_bytes": 14_388_553_318,
        "status": "ok",
        "file": f"clips/{name}.mp4",
        "model": "480p_t2v",
        "weights": "pretrained",
    }
    return ClipRecord(**{**values, **changes})


def failed(name: str, message: str = "out of memory", **changes: Any) -> ClipRecord:
    """Return an attempt that ended in an error."""
    return replace(
        record(name, **changes),
        status="failed",
        file=None,
        total_seconds=None,
        peak_vram_reserved_bytes=None,
        error_type="RuntimeError",
        error_message=message,
    )


def make_run(
    folder: Path, records: Sequence[ClipRecord], planned: Sequence[ClipRecord] | None = None
) -> Path:
    """Write a run directory: log, clips, thumbnails, and a plan of `planned` (else no plan)."""
    directory = RunDir(folder)
    directory.create()
    run_log = RunLog(directory.log, "r1")
    for r in records:
        run_log.append(r)
        if r.file:
            (folder / r.file).write_bytes(b"clip")
            (directory.thumbs / f"{Path(r.file).stem}.jpg").write_bytes(b"jpeg")
    if planned is not None:
        with directory.plan.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, PLAN_COLUMNS, extrasaction="ignore")
            writer.writeheader()
            for r in planned:
                writer.writerow({"line": 2, "state": "new", "reason": "", **vars(r)})
    return folder


@dataclass
class ReadPage(HTMLParser):
    """What a browser makes of a page: its rows, text, elements and links."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    row_words: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._row: str | None = None
        self._skipped = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))
        self._skipped = tag in ("style", "title")
        if tag == "tr":
            self._row = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        """Leave a row or a hidden element."""
        self._skipped = False
        if tag == "tr":
            self._row = None

    def handle_data(self, data: str) -> None:
        """Note visible text."""
        if self._skipped or not data.strip():
            return
        self.words.append(data.strip())
        if self._row:
            self.row_words.setdefault(self._row, []).append(data.strip())

    def elements(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of that name."""
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(run_dir: Path) -> ReadPage:
    """Build the page of a run directory and read it."""
    parser = ReadPage()
    parser.feed(write_page(run_dir).read_text(encoding="utf-8"))
    parser.close()
    return parser


def test_the_first_thing_on_the_page_is_the_state(tmp_path: Path) -> None:
    clips = [
        record("a"),
        record("b", 1, status="suspect", quality_flag="black"),
        failed("c", row_index=2),
    ]

    page = read_page(make_run(tmp_path, clips, [*clips, record("d", 3)]))

    assert page.words[0] == "2 of 4 done, 1 failed, 1 suspect"


def test_a_row_says_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path, [record("a")], [record("a")]))

    assert page.row_words["a"] == [
        "prompt of a", "a", "7", "480×848", "121", "50", "412.3", "13.4", "ok"
    ]  # fmt: skip
    assert page.elements("video") == [
        {
            "controls": None,
            "loop": None,
            "muted": None,
            "playsinline": None,
            "preload": "none",
            "src": "clips/a.mp4",
            "poster": "thumbs/a.jpg",
            "aria-label": "Clip a: prompt of a",
        }
    ]


def test_rows_follow_the_manifest_and_not_the_order_of_rendering(tmp_path: Path) -> None:
    takes = [record("a0"), record("b0", 1), record("a1", seed=8), record("b1", 1, seed=8)]

    page = read_page(make_run(tmp_path, takes[::-1], takes))

    assert list(page.row_words) == ["a0", "a1", "b0", "b1"]


def test_clips_of_rows_that_left_the_manifest_are_not_shown(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path, [record("old"), record("a")], [record("a")]))

    assert list(page.row_words) == ["a"]
    assert page.words[0] == "1 of 1 done"


def test_a_renamed_row_shows_the_clip_under_its_old_file_name(tmp_path: Path) -> None:
    renamed = replace(record("old"), clip_id="new")

    page = read_page(make_run(tmp_path, [record("old")], [renamed]))

    (video,) = page.elements("video")
    assert (video["src"], video["poster"]) == ("clips/old.mp4", "thumbs/old.jpg")
    assert "new" in page.row_words


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    attempts = [failed("a"), record("a", attempt=2)]

    page = read_page(make_run(tmp_path, attempts, [record("a")]))

    assert page.words[0] == "1 of 1 done"
    assert not any("out of memory" in words for words in page.words)


def test_a_clip_whose_file_is_gone_is_not_done(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    (run_dir / "clips" / "a.mp4").unlink()

    page = read_page(run_dir)

    assert page.words[0] == "0 of 1 done"
    assert page.row_words["a"][-1] == "file missing"
    assert page.elements("video") == []


def test_failures_come_before_suspects_and_both_before_the_table(tmp_path: Path) -> None:
    clips = [record("s", status="suspect", quality_flag="frozen"), failed("f", row_index=1)]

    page = read_page(make_run(tmp_path, clips, clips))

    places = [page.words.index(w) for w in ("RuntimeError: out of memory", "frozen", "Clip")]
    assert places == sorted(places)
    assert [link["href"] for link in page.elements("a")] == ["#f", "#s"]


def test_a_thousand_failures_do_not_bury_the_table(tmp_path: Path) -> None:
    clips = [failed(f"f{number:03d}", row_index=number) for number in range(60)]

    page = read_page(make_run(tmp_path, clips, clips))

    assert len(page.elements("a")) == 50
    assert "and 10 more, in the table below" in page.words
    assert len(page.row_words) == 60


HOSTILE = "<script>alert(1)</script> \"q\" & 'a' {{ 7 * 7 }} </td></table>"


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    clip = failed("a", message=HOSTILE, prompt=HOSTILE, image=HOSTILE)

    page = read_page(make_run(tmp_path / HOSTILE[:8], [clip], [clip]))

    assert page.elements("script") == []
    assert HOSTILE in page.row_words["a"]
    assert f"RuntimeError: {HOSTILE}" in page.row_words["a"]
    assert f"first frame: {HOSTILE}" in page.row_words["a"]
    assert page.tags.count(("table", {"role": "table"})) == 1


def test_quotes_in_a_prompt_stay_inside_the_label(tmp_path: Path) -> None:
    clip = record("a", prompt='"><img src=x onerror=alert(1)>')

    page = read_page(make_run(tmp_path, [clip], [clip]))

    (video,) = page.elements("video")
    assert video["aria-label"] == 'Clip a: "><img src=x onerror=alert(1)>'
    assert page.elements("img") == []


def test_a_long_prompt_is_folded_and_complete(tmp_path: Path) -> None:
    clip = record("a", prompt=LONG_PROMPT)

    page = read_page(make_run(tmp_path, [clip], [clip]))

    assert len(page.elements("details")) == 1
    assert page.row_words["a"][:3] == [
        f"{LONG_PROMPT[:240]}…", "10,000 characters", LONG_PROMPT.strip()
    ]  # fmt: skip


def test_a_prompt_longer_than_the_csv_module_allows_is_read(tmp_path: Path) -> None:
    clip = record("a", prompt="x" * 200_000)

    page = read_page(make_run(tmp_path, [clip], [clip]))

    assert "200,000 characters" in page.row_words["a"]


def test_text_in_any_script_and_with_line_breaks_arrives_unchanged(tmp_path: Path) -> None:
    prompt = "“开业大吉”\n🐼 مرحبا, second line"
    clip = record("a", prompt=prompt)

    page = read_page(make_run(tmp_path, [clip], [clip]))

    assert page.row_words["a"][0] == prompt


@pytest.mark.parametrize(
    ("weights", "words"),
    [("tiny", "the tiny models are small"), ("random", "builds the full-size model")],
)
def test_noise_on_purpose_is_said(tmp_path: Path, weights: str, words: str) -> None:
    clip = record("a", weights=weights)

    page = read_page(make_run(tmp_path, [clip], [clip]))

    (note,) = [w for w in page.words if w.startswith("These clips are noise on purpose")]
    assert words in note


def test_clips_of_published_weights_carry_no_such_note(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path, [record("a")], [record("a")]))

    assert not any("noise" in words for words in page.words)


def test_a_lossless_clip_is_a_link_because_browsers_do_not_play_it(tmp_path: Path) -> None:
    clip = record("a", file="clips/a.mkv")

    page = read_page(make_run(tmp_path, [clip], [clip]))

    assert page.elements("video") == []
    assert [link["href"] for link in page.elements("a")] == ["clips/a.mkv"]
    assert page.elements("img") == [
        {"src": "thumbs/a.jpg", "loading": "lazy", "alt": "Middle frame of clip a"}
    ]


def test_what_was_not_measured_is_a_dash_and_never_zero(tmp_path: Path) -> None:
    clip = record("a", peak_vram_reserved_bytes=None, total_seconds=None)

    page = read_page(make_run(tmp_path, [clip], [clip]))

    assert page.row_words["a"][-3:] == ["–", "–", "ok"]


def test_seconds_a_clip_leaves_cold_clips_out_and_says_how_many_count(tmp_path: Path) -> None:
    clips = [
        record("cold", total_seconds=900.0, is_cold=True),
        record("a", 1, total_seconds=10.0),
        record("b", 2, total_seconds=30.0),
    ]

    page = read_page(make_run(tmp_path, clips, clips))

    assert "20.0 (median of 2 warm clips)" in page.words


def test_without_a_plan_the_log_is_shown(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path, [record("b", 1), record("a", 0)]))

    assert list(page.row_words) == ["a", "b"]
    assert page.words[0] == "2 of 2 done"


def test_a_run_without_a_finished_clip_has_a_page(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path, [], [record("a")]))

    assert page.words[0] == "0 of 1 done"
    assert page.row_words["a"][-1] == "not rendered"


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    html = write_page(make_run(tmp_path, [record("a")], [record("a")])).read_text()

    assert re.findall(r"(?:https?:)?//[a-z]|@import|url\(", html) == []


def test_rebuilding_prints_the_path_of_each_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / name, [record("a")], [record("a")]) for name in ("one", "two")]

    assert main([str(run) for run in runs]) == 0

    assert capsys.readouterr().out.splitlines() == [str(run / "index.html") for run in runs]


def test_a_folder_that_is_no_run_directory_is_refused_and_the_others_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", [record("a")], [record("a")])

    assert main([str(tmp_path / "photos"), str(run)]) == 2

    captured = capsys.readouterr()
    assert captured.err == (
        f"{tmp_path / 'photos'}: no run directory (it has no log); "
        "name the folder that a run has printed as its first line.\n"
    )
    assert captured.out == f"{run / 'index.html'}\n"


def test_a_damaged_log_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, [record("a")], [record("a")])
    (segment,) = (run / "log").glob("*.parquet")
    os.truncate(segment, 100)

    assert main([str(run)]) == 2

    error = capsys.readouterr().err
    assert error.startswith(f"{segment}: not a readable log segment")
    assert "Traceback" not in error


def test_the_module_runs_from_any_directory_with_a_relative_path(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [record("a")], [record("a")])

    done = subprocess.run(
        [sys.executable, "-m", "hv15_batch.report", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout == f"{tmp_path / 'run' / 'index.html'}\n"
