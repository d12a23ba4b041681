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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from fakes.official import official_project

from hv15_batch import cli
from hv15_batch.config.messages import WORDS
from hv15_batch.config.settings import Config, each_setting
from hv15_batch.errors import EXIT_SIGINT
from hv15_batch.model.options import model_options
from hv15_batch.rundir.schema import arrow_schema

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TINY = ("model=tiny_t2v", "override.num_frames=5", "override.num_inference_steps=2")
HERE = {"prefetch", "doctor"}
"""Refused on a machine without a card that cannot reach the hub."""


BLOCK = re.compile(
    r"^```sh\n(?P<lines>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.M | re.S
)
"""Shell commands, and what they print where a block of text stands directly below."""
MANIFEST = re.compile(r'^```csv(?: title="(?P<name>[\w.]+)")?\n(?P<text>.*?)^```', re.M | re.S)
"""A manifest that a page shows, `prompts.csv` unless it has a title."""


@dataclass(frozen=True)
class Shown:
    """A block of commands, and the output that a page shows below it."""

    page: Path
    lines: tuple[str, ...]
    output: str

    @property
    def name(self) -> str:
        """The page and the first command."""
        return f"{self.page.name}: {self.lines[0]}"


def shell_blocks(page: Path) -> Iterator[re.Match[str]]:
    """Yield a page's blocks of shell commands."""
    return BLOCK.finditer(page.read_text(encoding="utf-8"))


COMMANDS = sorted(
    {
        shlex.join(shlex.split(line, comments=True))
        for page in PAGES
        for block in shell_blocks(page)
        if block["output"] is None
        for line in block["lines"].splitlines()
        if line.startswith(("hv15-batch", "python -m hv15_batch"))
    }
)
SHOWN = [
    Shown(page, tuple(block["lines"].splitlines()), block["output"])
    for page in PAGES
    for block in shell_blocks(page)
    if block["output"] is not None
]


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """The script that writes the pages of the reference."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)  # as `python docs/generate.py` does
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
    for name in ("a", "plain", "prompts.sweep/resident", "recipe_option_a"):
        shutil.copytree(outputs / "prompts", outputs / name)
    for name in ("compiled", "prompts.sweep/stream", "recipe_option_b"):
        shutil.copytree(outputs / "b", outputs / name)
    shutil.copy(next((outputs / "prompts" / "clips").glob("*.mp4")), folder / "clip.mp4")
    transformers = Path(os.environ["XDG_CACHE_HOME"]).glob("hv15_batch/tiny/tiny_t2v-*/transformer")
    shutil.copy(next(next(transformers).glob("*.safetensors")), folder / "model.safetensors")
    return folder


def write_manifest(folder: Path) -> None:
    """Write README's first manifest, and the script that its commands call."""
    write_manifests_of(PAGES[0], folder)
    (folder / "ball.txt").write_text("A red ball bounces in a green meadow.\n", encoding="utf-8")
    script = folder / "tell.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)


def write_manifests_of(page: Path, folder: Path) -> None:
    """Write the manifests that a page shows."""
    for block in MANIFEST.finditer(page.read_text(encoding="utf-8")):
        (folder / (block["name"] or "prompts.csv")).write_text(block["text"], encoding="utf-8")


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) > 40
    assert len(SHOWN) > 5


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
        if any(word.startswith("official.") for word in words):
            project = official_project(folder / "project", "")
            project.repo.rename(folder / "tencent")
            (folder / "venv" / "bin").mkdir(parents=True)
            project.python.rename(folder / "venv" / "bin" / "python")
        expected = 2 if words[0] in HERE else 0
        if words[0] not in HERE and not {"--dry-run", "--cfg"} & set(words):
            words.append("--dry-run")
        words = ["hydra.sweeper.n_trials=2" if "n_trials" in word else word for word in words]
    if words and words[0] == "view":  # it serves until Ctrl-C
        monkeypatch.setattr("uvicorn.Server.run", interrupted)
        expected = EXIT_SIGINT
    monkeypatch.chdir(folder)

    assert cli.main(words) == expected


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.name)
def test_a_command_prints_what_the_page_shows(shown: Shown, rendered: Path, tmp_path: Path) -> None:
    """The tiny model renders, and readers read its run; a dry run is as typed."""
    if any("--dry-run" in line for line in shown.lines):
        write_manifests_of(PAGES[0], tmp_path)
    else:
        shutil.copytree(rendered, tmp_path, dirs_exist_ok=True)
        for config in tmp_path.glob("outputs/*/runs/*/config.yaml"):
            text = config.read_text(encoding="utf-8").replace(str(rendered), str(tmp_path))
            config.write_text(text, encoding="utf-8")
    write_manifests_of(shown.page, tmp_path)

    done = subprocess.run(
        ["sh", "-e", "-c", script(shown.lines)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert_shown(shown.output, done.stdout)


def script(lines: tuple[str, ...]) -> str:
    """Return commands for a shell; `# exit code 2` behind one is what it must end with."""
    commands = []
    for line in lines:
        if not line.startswith("hv15-batch "):
            commands.append(line)
            continue
        typed = shlex.split(line, comments=True)[1:]
        words = [sys.executable, "-m", "fakes.roomy", "hv15_batch", *typed]
        if typed[0] not in WORDS and "--dry-run" not in words:
            words = [word for word in words if not word.startswith("model=")] + [*TINY]
        expected = re.search(r"# exit code (\d+)", line)
        command = shlex.join(words)
        commands.append(command + (f" || test $? -eq {expected[1]}" if expected else ""))
    return "\n".join(commands)


LOADING = re.compile(r"^(loading|loaded) .*\n", re.M)


def assert_shown(shown: str, printed: str) -> None:
    """Compare output as doctest does: `…` is any text of a line, alone on a line any lines.

    What loads for over two seconds prints lines. The machine decides that, so they are left out.
    """
    shown, printed = (LOADING.sub("", text) for text in (shown, printed))
    parts = re.split(r"(^…\n|…)", shown, flags=re.M)
    wild = {"…\n": r"(?:.*\n)*", "…": r".*"}
    pattern = "".join(wild.get(part, re.escape(part)) for part in parts)
    assert re.fullmatch(pattern, printed.rstrip("\n") + "\n"), f"{shown}\n---\n{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "is_equal"),
    [
        ("done: 1 clip\n", "done: 1 clip\n", True),
        ("done: 1 clip\n", "done: 2 clips\n", False),
        ("[1/1] fox … s\n", "[1/1] fox 20.6 s\n", True),
        ("[1/1] fox … s\n", "[1/1] cat 20.6 s\n", False),
        ("first …\n", "first line\nsecond line\n", False),
        ("first\n…\n", "first\nsecond\nthird\n", True),
        ("first\n…\nlast\n", "first\nlast\n", True),
        ("first\n…\nlast\n", "first\nmiddle\n", False),
    ],
)
def test_shown_output_is_compared(shown: str, printed: str, is_equal: bool) -> None:
    if is_equal:
        assert_shown(shown, printed)
    else:
        with pytest.raises(AssertionError):
            assert_shown(shown, printed)


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
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
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
