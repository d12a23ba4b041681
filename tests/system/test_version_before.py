"""A run directory that the version before wrote: read, resumed, reported and compared."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import Answer

from hv15_batch.rundir.log import read_records

FIXTURE = Path(__file__).parents[1] / "data" / "run_of_schema_2"
"""Two clips of the tiny model, rendered at commit 8097588; without the page and its scripts."""
ITS_FOLDER = "/home/user/videos"
CLIPS = ("fox_s7_4736675c", "sign_s8_6c3209a1")
WORDS = (
    *("prompts.csv", "model=tiny_t2v", "sampling.height=64", "sampling.width=96"),
    *("sampling.num_frames=9", "sampling.num_inference_steps=2"),
)
Command = Callable[..., Answer]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The run directory in this test's folder, as if it had always been there."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    made = tmp_path / "outputs" / "prompts"
    texts = [path for path in made.rglob("*") if path.suffix in (".yaml", ".json", ".log", ".csv")]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(ITS_FOLDER, str(tmp_path)), encoding="utf-8")
    return made


def contents(run_dir: Path) -> dict[str, bytes]:
    """Return what the clips were rendered to and what the log says of them."""
    folders = ("clips", "latents", "embeddings", "thumbs", "log")
    paths = [path for folder in folders for path in (run_dir / folder).iterdir()]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths}


def test_its_log_is_read(run_dir: Path) -> None:
    rows = read_records(run_dir / "log").to_pylist()

    assert [(row["clip_id"], row["status"], row["seed"]) for row in rows] == [
        (CLIPS[0], "ok", 7),
        (CLIPS[1], "ok", 8),
    ]
    assert rows[1]["prompt"] == 'a sign reads "OPEN"'
    assert all(len(row["step_seconds"]) == 2 for row in rows)


def test_its_status_is_shown(run_dir: Path, command: Command) -> None:
    answer = command("status", run_dir)

    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[:2] == [str(run_dir), "2 of 2 done"]


@pytest.mark.parametrize("words", [WORDS, ("resume=outputs/prompts",)], ids=["typed", "resume"])
def test_it_is_resumed_and_no_clip_is_rendered_again(
    run_dir: Path, command: Command, words: tuple[str, ...]
) -> None:
    before = contents(run_dir)

    answer = command(*words)

    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"^Nothing to do: every clip of \S*prompts.csv is done", answer.out, re.M)
    after = contents(run_dir)
    assert {n: c for n, c in after.items() if not n.startswith("log/")} == {
        n: c for n, c in before.items() if not n.startswith("log/")
    }
    assert [row["row_id"] for row in read_records(run_dir / "log").to_pylist()] == ["fox", "sign"]


def test_a_row_more_renders_that_row_alone(run_dir: Path, command: Command) -> None:
    before = contents(run_dir)
    with Path("prompts.csv").open("a", encoding="utf-8") as file:
        file.write("owl,an owl,9\n")

    answer = command(*WORDS)

    assert (answer.code, answer.err) == (0, "")
    after = contents(run_dir)
    kept = {name: content for name, content in before.items() if not name.startswith("log/")}
    assert kept.items() <= after.items()
    assert len([name for name in after if name.startswith("clips/")]) == 3
    rows = read_records(run_dir / "log").to_pylist()
    assert [row["row_id"] for row in rows] == ["fox", "sign", "owl"]


def test_it_has_a_page(run_dir: Path, command: Command) -> None:
    answer = command("report", run_dir)

    assert (answer.code, answer.err) == (0, "")
    assert "<h1>2 of 2, done " in (run_dir / "index.html").read_text(encoding="utf-8")
    text = (run_dir / "assets" / "data.js").read_text(encoding="ascii")
    data = json.loads(text[text.index("hv15.data = ") + len("hv15.data = ") :].rstrip(";\n"))
    assert [(clip["id"], clip["isDone"]) for clip in data["clips"]] == [(id, True) for id in CLIPS]


def test_it_is_compared_with_a_copy(run_dir: Path, command: Command) -> None:
    shutil.copytree(run_dir, "copy")

    answer = command("compare", run_dir, "copy", "--out", "compared")

    assert (answer.code, answer.err) == (0, "")
    assert "Latents: 2 of 2 pairs bit-identical latents" in answer.out
    assert "Files: 2 of 2 pairs bit-identical files" in answer.out
