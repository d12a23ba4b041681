"""README and docs: their commands run, their links lead somewhere, generated pages are current."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hv15_batch import cli
from hv15_batch.config.messages import WORDS
from hv15_batch.config.settings import Config, each_setting
from hv15_batch.model.options import model_options
from hv15_batch.rundir.schema import arrow_schema

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TINY = ("model=tiny_t2v", "override.num_frames=5", "override.num_inference_steps=2")
HERE = {"prefetch", "doctor"}
"""Refused on a machine without a card that cannot reach the hub."""


def shell_lines(page: Path) -> Iterator[str]:
    """Yield the lines of a page's shell blocks."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        yield from block.splitlines()


COMMANDS = sorted(
    {
        shlex.join(shlex.split(line, comments=True))
        for page in PAGES
        for line in shell_lines(page)
        if line.startswith(("hv15-batch", "python -m hv15_batch"))
    }
)


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """The script that writes the pages of the reference."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with README's first manifest, rendered by the tiny model, and all that is named."""
    folder = tmp_path_factory.mktemp("docs")
    write_manifest(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert cli.main(["prompts.csv", *TINY]) == 0
        assert cli.main(["prompts.csv", *TINY, "run_dir=outputs/b", "sampling.flow_shift=7"]) == 0
    outputs = folder / "outputs"
    for name in ("a", "plain", "prompts.sweep/resident"):
        shutil.copytree(outputs / "prompts", outputs / name)
    for name in ("compiled", "prompts.sweep/stream"):
        shutil.copytree(outputs / "b", outputs / name)
    shutil.copy(next((outputs / "prompts" / "clips").glob("*.mp4")), folder / "clip.mp4")
    transformers = Path(os.environ["XDG_CACHE_HOME"]).glob("hv15_batch/tiny/tiny_t2v-*/transformer")
    shutil.copy(next(next(transformers).glob("*.safetensors")), folder / "model.safetensors")
    return folder


def write_manifest(folder: Path) -> None:
    """Write README's first manifest, and the script that its commands call."""
    (manifest,) = re.findall(
        r"^```csv\n(.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.M | re.S
    )
    (folder / "prompts.csv").write_text(manifest, encoding="utf-8")
    (folder / "ball.txt").write_text("A red ball bounces in a green meadow.\n", encoding="utf-8")
    script = folder / "tell.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_pages_runs(
    line: str, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers read a run of the tiny model; what would render on a card is planned for one."""
    words = shlex.split(line)
    words = words[1:] if words[0] == "hv15-batch" else words[3:]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if not words or words[0] in set(WORDS) - HERE or words[0].startswith("resume="):
        folder = tmp_path / "copy"
        shutil.copytree(rendered, folder)
        expected = 0
    else:
        folder = tmp_path
        write_manifest(folder)
        expected = 2 if words[0] in HERE else 0
        if words[0] not in HERE and not {"--dry-run", "--cfg"} & set(words):
            words.append("--dry-run")
        words = ["hydra.sweeper.n_trials=2" if "n_trials" in word else word for word in words]
    monkeypatch.chdir(folder)

    assert cli.main(words) == expected


def test_generated_pages_are_current(generate: ModuleType) -> None:
    for name, text in generate.pages().items():
        written = (DOCS / name).read_text(encoding="utf-8")
        assert written == text, f"docs/{name}: python docs/generate.py"


def test_the_reference_has_every_setting_column_model_and_word() -> None:
    settings = (DOCS / "settings.md").read_text(encoding="utf-8")
    for name, _, _ in each_setting(Config()):
        assert f"| `{name}` |" in settings or name.startswith("override."), name
    log = (DOCS / "log.md").read_text(encoding="utf-8")
    for name in arrow_schema().names:
        assert f"| `{name}` |" in log, name
    models = (DOCS / "models.md").read_text(encoding="utf-8")
    for name in model_options():
        assert f"| `{name}` |" in models, name
    commands = (DOCS / "commands.md").read_text(encoding="utf-8")
    for word in WORDS:
        assert f"\nhv15-batch {word}" in commands, word


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    built = subprocess.run(
        [*command, str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "settings" / "index.html").is_file()
