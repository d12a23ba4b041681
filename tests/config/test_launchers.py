"""Launchers of Hydra: the right exit code from each, and the reason where one cannot work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import launched
from fakes.command import TINY

from hv15_batch.config.compose import run_jobs
from hv15_batch.errors import Refused
from hv15_batch.rundir.log import read_rows
from hv15_batch.rundir.paths import RunDir

TESTS = Path(__file__).parents[1]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Words of a sweep of two manifests, of which the second fails; all processes see our fakes."""
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}:{TESTS}")
    monkeypatch.chdir(tmp_path)
    Path("cat.csv").write_text("id,prompt\ncat,a cat\n")
    Path("dog.csv").write_text("id,prompt\ndog,fail\n")
    words = ("-m", "manifest=cat.csv,dog.csv", f"run_dir={tmp_path / 'out'}", *TINY)
    return (*words, "override.num_inference_steps=2")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_clips_are_rendered_and_the_worst_code_comes_back(
    sweep: tuple[str, ...], tmp_path: Path, launcher: str
) -> None:
    assert run_jobs((*sweep, f"hydra/launcher={launcher}"), launched.render) == 3

    for row, status in (("cat", "ok"), ("dog", "failed")):
        run_dir = RunDir(tmp_path / "out" / row)
        (found,) = read_rows(run_dir.log, ["row_id", "status", "error_type"])
        assert (found["row_id"], found["status"]) == (row, status)
        assert found["error_type"] in (None, "RuntimeError")  # no worker died


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["processes", "joblib"])
def test_a_job_whose_process_is_killed_is_a_sweep_that_stopped(
    sweep: tuple[str, ...], launcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_jobs((*sweep, "limit=1,2", f"hydra/launcher={launcher}"), launched.die) == 4

    told = capsys.readouterr().err
    assert f"hydra/launcher={launcher}: " in told
    assert "a run of the sweep ended and did not report how" in told


@pytest.mark.parametrize(
    ("launcher", "why"),
    [("daemons", "daemonic processes, which may not start"), ("threads", "threads of one process")],
)
def test_a_launcher_that_cannot_work_is_refused_with_the_reason(
    sweep: tuple[str, ...],
    tmp_path: Path,
    launcher: str,
    why: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_jobs((*sweep, f"hydra/launcher={launcher}"), launched.render) == 2

    assert why in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is Slurm here")
def test_a_launcher_that_cannot_begin_is_refused_with_its_own_reason(
    sweep: tuple[str, ...],
) -> None:
    with pytest.raises(Refused, match=r"hydra/launcher=submitit_slurm: .*srun.*no run has started"):
        run_jobs((*sweep, "hydra/launcher=submitit_slurm"), launched.render)


@pytest.mark.slow
def test_what_a_job_says_where_nobody_sees_it_is_said_here(
    sweep: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_jobs((*sweep, "limit=7", "hydra/launcher=submitit_local"), launched.refuse) == 2

    lines = capsys.readouterr().err.splitlines()
    assert "In the run manifest=cat.csv: exit code 2: limit=7: no." in lines
    assert "In the run manifest=dog.csv: exit code 2: limit=7: no." in lines
