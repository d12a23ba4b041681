"""The command as a program: its output, its readers that leave, its signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.command import TINY
from fakes.samples import sampled

from hv15_batch.rundir.paths import RunDir


def program(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "hv15_batch", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def shell(cwd: Path, redirection: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a shell does that sends its output somewhere else."""
    command = f"{shlex.join([sys.executable, '-m', 'hv15_batch', *words])} {redirection}"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["sh", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_run_renders_and_leaves_nothing_beside_its_folder(prompts: Path, tmp_path: Path) -> None:
    steps = "override.num_inference_steps=1"

    done = program(tmp_path, "manifest=prompts.csv", *TINY, steps, "limit=1")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{tmp_path}/outputs/prompts: new"
    assert len(list((tmp_path / "outputs" / "prompts" / "clips").glob("*.mp4"))) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs", "prompts.csv"]


def test_a_refusal_of_the_program_is_one_message_and_code_2(tmp_path: Path) -> None:
    done = program(tmp_path, "none.csv")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "manifest=none.csv: there is no such file; correct the path.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_unicode_is_printable(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hv15_batch", b"\xff.csv"], cwd=tmp_path, capture_output=True
    )

    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"manifest=\\udcff.csv: there is no such file; correct the path.\n"


def test_a_reader_that_leaves_does_not_stop_the_command(prompts: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hv15_batch", "prompts.csv", "model=tiny_t2v", "--dry-run"]
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run(words, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)

    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "outputs" / "prompts" / "plan.csv").is_file()


@pytest.mark.parametrize("where", sampled([">/dev/full", ">&-", "<&- >&- 2>&-"], 1))
def test_output_that_nobody_takes_is_lost_and_the_run_goes_on(
    prompts: Path, tmp_path: Path, where: str
) -> None:
    steps = "override.num_inference_steps=1"

    done = shell(tmp_path, where, "prompts.csv", *TINY, steps, "limit=1")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list((tmp_path / "outputs" / "prompts" / "clips").glob("*.mp4"))) == 1


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize(("words", "code"), [(("none.csv",), 2), (("report", "none"), 2)])
def test_a_refusal_that_nobody_takes_has_its_code(
    tmp_path: Path, where: str, words: tuple[str, ...], code: int
) -> None:
    done = shell(tmp_path, where, *words)

    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_help_that_nobody_takes_is_no_error(tmp_path: Path, where: str) -> None:
    done = shell(tmp_path, where, "--help")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_watch_ends_with_its_reader(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    status = {"state": "rendering", "total": 2, "done": 1, "failed": 0, "suspect": 0}
    updated = {"updated_at": "2999-01-01T00:00:00+00:00", "pid": os.getpid()}
    folder.status.write_text(json.dumps({**status, **updated}), encoding="utf-8")
    words = [sys.executable, "-m", "hv15_batch", "status", "run", "--watch"]
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run(words, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)

    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    "word", ["report", "status", "view", "compare", "references", "prefetch", "recipe", "doctor"]
)
def test_each_word_is_a_module_too(tmp_path: Path, word: str) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    told = [
        subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        for words in ([f"hv15_batch.{word}", "no-such"], ["hv15_batch", word, "no-such"])
    ]

    assert told[0].returncode == told[1].returncode == 2
    assert told[0].stderr == told[1].stderr != ""
