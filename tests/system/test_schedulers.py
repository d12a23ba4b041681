"""docs/schedulers.md: the script for Slurm with stand-ins for its commands; docs/Dockerfile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import Answer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = re.compile(r"^```bash\n(?P<text>#!/bin/bash\n.*?)^```", re.M | re.S)


def script() -> str:
    found = SCRIPT.search((ROOT / "docs" / "schedulers.md").read_text(encoding="utf-8"))
    assert found is not None
    return found["text"]


class Array:
    """One job of the array, whose `hv15-batch` and `scontrol` are stand-ins."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        (folder / "array.sh").write_text(script(), encoding="utf-8")
        (folder / "bin").mkdir()
        self._stand_in("hv15-batch", f'echo "$@" > words\n{run}')
        self._stand_in("scontrol", 'echo "$@" >> requeued')

    def _stand_in(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            **{"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "77"},
            **{"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16"},
            **variables,
        }
        return subprocess.Popen(["bash", "array.sh"], cwd=self.folder, env=env)

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not self.read(name):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("code", "restarts", "is_again"),
    [(0, "0", False), (4, "0", True), (4, "20", False), (3, "0", False), (2, "0", False)],
)
def test_a_job_that_has_clips_left_goes_back_into_the_queue(
    tmp_path: Path, code: int, restarts: str, is_again: bool
) -> None:
    array = Array(tmp_path, f"exit {code}")

    assert array.start(SLURM_RESTART_COUNT=restarts).wait(timeout=30) == code

    assert array.read("words").startswith("prompts.csv shard=3/16 time_limit=")
    assert array.read("requeued") == "requeue 77_3\n" * is_again


@pytest.mark.parametrize(("number", "is_again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_run_gets_a_termination_and_its_end_is_waited_for(
    tmp_path: Path, number: signal.Signals, is_again: bool
) -> None:
    run = "trap 'sleep 0.3; echo ended > ended; exit 143' TERM\necho x > ready\nsleep 60 & wait"
    array = Array(tmp_path, run)
    job = array.start()
    array.wait_for("ready")
    job.send_signal(number)

    assert job.wait(timeout=30) == 143
    assert array.read("ended") == "ended\n"
    assert array.read("requeued") == "requeue 77_3\n" * is_again


def test_the_words_of_the_script_are_understood(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na fox\na dog\n", encoding="utf-8")
    (line,) = [line for line in script().splitlines() if line.startswith("hv15-batch ")]
    words = line.removesuffix(" &").replace('"$shard"', "3/16").split()[1:]

    answer = command(*words, "model=tiny_t2v", "--dry-run")

    assert answer.code == 0
    assert answer.out.startswith("Shard 3/16: ")


def test_the_image_gets_all_files_that_the_package_is_built_from() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    text = (ROOT / "docs" / "Dockerfile").read_text(encoding="utf-8")
    sources = re.findall(r"^COPY (.+) \S+$", text, re.M)
    copied = {name for words in sources for name in words.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    readme = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]
    needed = {
        *wheel["packages"], *wheel["force-include"], *project["project"]["license-files"],
        *(part["path"] for part in readme), "pyproject.toml", "constraints.txt",
    }  # fmt: skip

    within = {name for name in needed if any(name.startswith(f"{folder}/") for folder in copied)}
    assert copied == needed - within
    assert all((ROOT / name).exists() for name in copied)
