"""Whatever is typed and whatever a manifest holds: a code and a message, and no stray file.

10,000 cases in one process: 1,000 command lines, which Hydra takes a tenth of a second to compose,
and 9,000 manifests in all formats, through the session that a command line ends in. They are the
same every time; hypothesis prints the smallest that fails. `make test` takes a tenth of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import pytest
from fakes.command import tiny_model
from fakes.fuzz import Manifest, command_lines, manifests
from fakes.runs import Project, tiny_config
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from hv15_batch import cli
from hv15_batch.config.messages import report_error
from hv15_batch.config.settings import Config, ManifestColumns, OtherColumns
from hv15_batch.errors import EXIT_OK, EXIT_REFUSED, EXIT_SOME_FAILED, EXIT_STOPPED
from hv15_batch.run import session

COMMAND_LINES, MANIFESTS = 1_000, 9_000
TENTH, ALL = 10, 1
CASE_SECONDS = 30.0
CODES = (EXIT_OK, EXIT_REFUSED, EXIT_SOME_FAILED, EXIT_STOPPED)


class TookTooLong(BaseException):
    """Not an `Exception`: nothing may turn it into a message."""


@dataclass
class Sandbox:
    """A home, a folder for temporary files and one to work in; nothing else may be touched."""

    root: Path
    template: Path
    """What is in the folder to work in before each case."""
    codes: Counter[int] = field(default_factory=Counter)
    """How the cases ended."""
    before: dict[str, int] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.root / "deep" / "work"

    def restore(self) -> None:
        """Put everything back as it was, where the last case changed anything."""
        if self.before and self.files() == self.before:
            return
        os.chdir(self.root)
        for name in ("deep", "home", "tmp"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir()
        shutil.copytree(self.template, self.work)
        os.chdir(self.work)
        self.before = self.files()

    def files(self) -> dict[str, int]:
        """Return every path in the sandbox; of files with the time of the last change."""
        found: dict[str, int] = {}
        folders = [str(self.root)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    found[entry.path] = -1 if is_folder else entry.stat().st_mtime_ns
                    if is_folder:
                        folders.append(entry.path)
        return found

    def check(self, run: Callable[[], int], given: Path | None = None) -> str:
        """Hold that a case ends in time, with a code and a message, and writes what it says.

        Returns:
            The message; empty where all went well.
        """
        out, err = io.StringIO(), io.StringIO()
        with deadline(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run()
        self.codes[code] += 1
        assert code in CODES, (code, err.getvalue())
        assert err.getvalue().strip() or code == EXIT_OK, out.getvalue()
        assert "Traceback" not in out.getvalue() + err.getvalue()
        assert Path.cwd() == self.work
        self.check_files(out.getvalue(), given)
        return "" if code == EXIT_OK else err.getvalue()

    def check_files(self, out: str, given: Path | None) -> None:
        """Hold that only what was announced is new, and nothing is changed or gone."""
        plans = [line[len(ANNOUNCED) :] for line in out.splitlines() if line.startswith(ANNOUNCED)]
        allowed = {str(path) for plan in plans for path in (Path(plan), *Path(plan).parents)}
        after = self.files()
        changed = {path for path, time in after.items() if self.before.get(path) != time}
        changed |= self.before.keys() - after.keys()
        run_dir = f"{self.work}/done/"  # which `report` may write to
        changed = {path for path in changed if not path.startswith(run_dir)}
        assert changed - allowed <= {str(given)}, f"written unasked: {changed - allowed}"


FAULT = re.compile(r"new\.[a-z]+:[0-9]+: \S+=.*; .*\.$|and [0-9,]+ more$")
"""What a manifest is refused with: file, line, column, value, what is allowed and what to do."""
RAM = "/dev/shm"
ANNOUNCED = "Every clip: "


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """Within: a case that takes too long fails."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TookTooLong(f"no end after {CASE_SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    # In memory where that can be: thousands of small files are made and removed.
    memory = RAM if os.access(RAM, os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="hv15_batch-fuzz-", dir=memory))
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut here, and much faster
    made = Sandbox(root, make_template(tmp_path / "template"))
    monkeypatch.setattr(session, "_render", lambda *_: pytest.fail("rendered in a dry run"))
    yield made
    shutil.rmtree(root)


def make_template(folder: Path) -> Path:
    """Fill a folder with what command lines and manifests may name."""
    folder.mkdir()
    project = Project(folder)
    project.write("id,prompt", "row0,a cat", "row1,a dog")
    assert project.run(run_dir=str(folder / "done")) == EXIT_OK
    project.did()
    for name in ("prompts.csv", "my file (1).csv", "a=b.csv", "${x}.csv", "prompts.CSV"):
        (folder / name).write_text("id,prompt,seed\nrow0,a cat,\nrow1,a dog,7\n", encoding="utf-8")
    (folder / "broken.csv").write_bytes(b"id,prompt\n\xff,\n")
    (folder / "Füße.jsonl").write_text('{"prompt": "feet"}\n', encoding="utf-8")
    (folder / "folder.csv").mkdir()
    (folder / "folder").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "pic.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def check_command_line(sandbox: Sandbox, line: list[str]) -> None:
    sandbox.restore()
    GlobalHydra.instance().clear()
    sandbox.check(lambda: cli.main(line))


def check_manifest(sandbox: Sandbox, manifest: Manifest, config: Config) -> None:
    sandbox.restore()
    name, content = manifest
    given = sandbox.work / name
    given.write_bytes(content)
    told = sandbox.check(lambda: carry_out(replace(config, manifest=name)), given)
    assert all(FAULT.match(line) for line in told.splitlines()), told
    assert given.read_bytes() == content
    given.unlink()


def carry_out(config: Config) -> int:
    """Carry out settings as the command line does after Hydra has composed them."""
    try:
        return session.run(config, (), None, print)
    except Exception as error:
        code = report_error(error)
        if code is None:
            raise
        return code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:hydra")
@pytest.mark.parametrize("part", [TENTH, pytest.param(ALL, marks=pytest.mark.exhaustive)])
def test_every_case_ends_with_a_message_in_time_and_leaves_no_file(
    sandbox: Sandbox, part: int
) -> None:
    num_lines, num_manifests = COMMAND_LINES // part, MANIFESTS // part
    same_every_time = settings(
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    t2v = replace(tiny_config(Path(), Path()), run_dir="out", dry_run=True)
    i2v = replace(t2v, model=tiny_model("tiny_i2v"))
    columns = ManifestColumns(prompt="caption", seed="steps")
    readings = (
        replace(t2v, manifest_literal=True),
        replace(t2v, manifest_other=OtherColumns.tag),
        replace(t2v, manifest_other=OtherColumns.ignore, manifest_columns=columns),
    )

    @settings(same_every_time, max_examples=num_manifests)
    @given(manifests, st.sampled_from((t2v, t2v, i2v, *readings)))
    def any_manifest(manifest: Manifest, config: Config) -> None:
        check_manifest(sandbox, manifest, config)

    @settings(same_every_time, max_examples=num_lines)
    @given(command_lines())
    def any_command_line(line: list[str]) -> None:
        check_command_line(sandbox, line)

    any_manifest()
    any_command_line()

    assert sandbox.codes.total() >= num_lines + num_manifests
    assert sandbox.codes[EXIT_OK] > num_manifests / 10, f"hardly any case got far: {sandbox.codes}"
    print(sandbox.codes)
