"""The files of the page, and the command that builds it."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.pages import (
    RUN_ID,
    build,
    make_run,
    read_data,
    record,
    settings,
)

from hv15_batch.errors import Secondary
from hv15_batch.report import render
from hv15_batch.report.command import main
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import read_settings


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    html, _ = build(run_dir)

    own = [p for p in (run_dir / "assets").iterdir() if p.name != "plotly.min.js"]
    texts = [html, *(path.read_text(encoding="utf-8") for path in own)]
    assert [m for t in texts for m in re.findall(r"https?://|@import|url\(", t)] == []
    assert "default-src 'none'" in html


def test_the_plotting_library_is_copied_once(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    build(run_dir)
    before = {p.name: p.stat().st_mtime_ns for p in (run_dir / "assets").iterdir()}

    build(run_dir)

    after = {p.name: p.stat().st_mtime_ns for p in (run_dir / "assets").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"data.js"}
    assert "plotly.min.js" in after


def test_the_page_says_that_it_is_private_and_what_to_share(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a")], [record("a")]))

    head = html[: html.index("</header>")]
    assert "This page is private: it shows prompts, clips, tags and folders." in head
    assert "benchmark.md, or comparison.md of several runs" in head


def test_a_run_of_a_version_before_that_was_set_public_has_its_page(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")], config=settings())
    stored = RunDir(run_dir).run_folder(RUN_ID) / "config.yaml"
    text = stored.read_text(encoding="utf-8")
    stored.write_text(text.replace("report:\n", "report:\n  public: true\n"), encoding="utf-8")

    assert main([str(run_dir)]) == 0

    assert read_data(run_dir)["clips"][0]["prompt"] == "prompt of a"
    assert read_settings(stored) == settings()


def test_a_folder_that_is_no_run_directory_is_refused_and_the_others_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", [record("a")], [record("a")])

    assert main([str(tmp_path / "photos"), str(run)]) == 2

    captured = capsys.readouterr()
    assert captured.err == (
        f"{tmp_path / 'photos'}: no run directory (it has no log); "
        "name the folder that a run prints in its first line.\n"
    )
    assert captured.out == f"{run / 'index.html'}\n"


@pytest.mark.parametrize("word", ["--price={}", "report.price_per_kwh={}"])
@pytest.mark.parametrize(
    ("price", "rule"),
    [("-2", "0 or more"), ("nan", "a finite number, 0 or more"),
     ("inf", "a finite number, 0 or more")],
)  # fmt: skip
def test_a_price_that_is_none_is_refused(
    tmp_path: Path, word: str, price: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, [record("a")], [record("a")])

    assert main([str(run), word.format(price)]) == 2

    said = capsys.readouterr()
    expected = f"{word.format(price)}: must be {rule}; leave it out for the default.\n"
    assert (said.out, said.err) == ("", expected)


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


def test_building_a_page_imports_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [record("a")], [record("a")])
    code = (
        "import sys; from hv15_batch.report.command import main; main(['run']);"
        "print(sorted({'torch', 'av'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_clips_csv_is_written_again_too(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])

    main([str(run_dir)])

    with RunDir(run_dir).clips_table.open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["clip_id"], row["status"], row["prompt"]) == ("a", "ok", "prompt of a")


def test_without_the_plotting_library_the_line_says_what_is_missing_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(render, "_HERE", tmp_path / "report" / "assets")

    with Secondary("the page is not up to date", told.append):
        render.write_library(tmp_path)

    file = tmp_path / "report" / "vendor" / "plotly.min.js"
    assert told == [
        f"the page is not up to date (plots need {file}, which is missing; "
        "install hv15_batch again.)"
    ]


def test_the_plotting_library_is_the_published_one_with_its_licence() -> None:
    """CONTRIBUTING.md says how it is renewed."""
    file = render.plotly_file()
    published = "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"

    assert hashlib.sha256(file.read_bytes()).hexdigest() == published
    assert b"plotly.js (basic - minified) v4.1.1" in file.read_bytes()[:200]
    assert "MIT License" in file.with_name("LICENSE").read_text(encoding="utf-8")


def test_a_run_whose_page_has_an_older_library_gets_the_present_one(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    (run_dir / "assets").mkdir()
    (run_dir / "assets" / "plotly.min.js").write_bytes(b"older")

    build(run_dir)

    present = render.plotly_file().read_bytes()
    assert (run_dir / "assets" / "plotly.min.js").read_bytes() == present
