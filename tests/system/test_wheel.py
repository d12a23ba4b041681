"""The wheel as a user installs it: in a folder of its own, used from another one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, in a folder whose name has a space and a percent sign."""
    folder = tmp_path_factory.mktemp("site") / "site packages 100%"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def program(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_wheel_holds_all_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [entry_points] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        commands = archive.read(entry_points).decode()
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hv15_batch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    data = [path for kind in ("yaml", "txt") for path in (ROOT / "conf").rglob(f"*.{kind}")]
    data += (ROOT / "manifests").iterdir()
    conf = {f"hv15_batch/{path.relative_to(ROOT).as_posix()}" for path in data}

    assert names == package | conf
    assert "hv15_batch/conf/config.yaml" in names
    assert "hv15_batch/conf/reference/tencent_readme.yaml" in names
    assert "hv15_batch/model/architectures/full/transformer.json" in names
    assert any(n.startswith("hv15_batch/report/templates/") for n in names)
    assert "hv15-batch = hv15_batch.cli:entry" in commands


def test_a_dry_run_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "my prompts.csv").write_text("prompt\na cat\n", encoding="utf-8")

    done = program(
        installed, tmp_path, "hv15_batch", "manifest=my prompts.csv", "model=tiny_t2v", "--dry-run"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("my prompts.csv: 1 row, 1 clip: 1 new\n")
    assert [p.name for p in (tmp_path / "outputs" / "my prompts").iterdir()] == ["plan.csv"]


def test_the_code_and_the_settings_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from hv15_batch.model.options import conf_dir\n"
        "from hv15_batch.references.data import read_references\n"
        "print(conf_dir()); print(len(read_references(conf_dir() / 'reference')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert done.stdout.splitlines()[0] == str(installed / "hv15_batch" / "conf")
    assert int(done.stdout.splitlines()[1]) > 5


@pytest.mark.parametrize("word", ["report", "status", "prefetch"])
def test_every_word_is_a_module_too(installed: Path, tmp_path: Path, word: str) -> None:
    argument = {"report": "none", "status": "none", "prefetch": "model=none"}[word]

    as_word = program(installed, tmp_path, "hv15_batch", word, argument)
    as_module = program(installed, tmp_path, f"hv15_batch.{word}", argument)

    assert (as_word.returncode, as_word.stdout) == (2, "")
    assert as_module.stderr == as_word.stderr != ""
    assert as_module.returncode == 2
