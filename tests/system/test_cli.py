"""The command line: words, names of manifests, resume, and faults of the program."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fakes.command import CARD, TINY, Answer, FakeRuns, settings_of
from fakes.runs import FakeExecutor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hv15_batch import __version__, cli
from hv15_batch.config.messages import WORDS
from hv15_batch.config.settings import Config, Order
from hv15_batch.machine import machine
from hv15_batch.run import session
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import read_settings

Command = Callable[..., Answer]


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("help",), ("p.csv", "--help")])
def test_help_is_one_screen_with_the_commands_and_exit_codes(
    command: Command, words: tuple[str, ...]
) -> None:
    answer = command(*words)

    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) <= 24
    for word in ("--dry-run", "resume=", "-m ", "report", "status", "prefetch", "Exit codes",
                 "--figures", "--grid"):  # fmt: skip
        assert word in answer.out


@pytest.mark.parametrize("word", sorted(WORDS))
def test_every_subcommand_stands_in_the_help_and_every_option_in_the_docs(
    command: Command, word: str
) -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", command(word, "--help").out)) - {"--help"}
    pages = Path(__file__).parents[2] / "docs"
    said = "".join(page.read_text(encoding="utf-8") for page in pages.glob("*.md"))

    assert f"hv15-batch {word}" in command("help").out
    assert {option for option in options if option not in said} == set()


def test_the_version_is_that_of_the_package(command: Command) -> None:
    assert command("--version") == Answer(0, f"{__version__}\n", "")


def test_all_settings_can_be_printed(command: Command, tmp_path: Path) -> None:
    answer = command("limit=3", "--cfg", "job", "model=tiny_t2v")

    assert (answer.code, answer.err) == (0, "")
    assert "limit: 3\n" in answer.out
    assert "  name: tiny_t2v\n" in answer.out
    assert list(tmp_path.iterdir()) == []


def test_settings_that_hydra_cannot_print_are_refused(command: Command) -> None:
    assert command("--cfg", "job", "--package", "none") == Answer(
        2, "", "package 'none' not found in config\n"
    )


def test_without_an_argument_machine_weights_and_commands_are_shown(
    command: Command, tmp_path: Path
) -> None:
    answer = command()

    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == (
        "Card: none visible; the demo models run on the CPU, full-size ones can be planned"
    )
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "RAM",
        "Disk",
        "Weights on disk",
        "Next",
    ]
    assert lines[3] == "Weights on disk: none"
    assert answer.out.count("hv15-batch ") == 4
    assert list(tmp_path.iterdir()) == []


def test_without_an_argument_a_card_is_shown_with_its_free_memory(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_gpus", lambda: [CARD])

    assert command().out.splitlines()[0] == (
        "Card 0: NVIDIA GeForce RTX 4090, 23.0 of 24.0 GiB free, driver 580.1"
    )


def test_status_and_report_are_words_with_arguments_of_their_own(
    command: Command, tmp_path: Path
) -> None:
    assert command("status", "nowhere") == Answer(
        2,
        "",
        "nowhere: no run has written its status here; name a run directory, or leave it out for "
        "the latest run below outputs/.\n",
    )
    assert command("report", "--help").code == 0
    assert command("report").code == 2


def test_prefetch_needs_no_manifest(command: Command) -> None:
    assert command("prefetch", "model=tiny_t2v") == Answer(
        0, "model=tiny_t2v is built on this machine in seconds: nothing to download.\n", ""
    )


# -- names of manifests -----------------------------------------------------------------------

NAMES = [
    "my prompts (1).csv",
    "a,b.csv",
    "[x] {y}.csv",
    'say "hi".csv',
    "it's.csv",
    "${x}.csv",
    "${oc.env:HOME}.csv",
    "\\${x}.csv",
    "back\\slash.csv",
    "a=b.csv",
    "model=tiny_t2v.csv",
    "雨 🐈.CSV",
    "100%.csv",
    "line\nbreak.csv",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_may_have_any_name(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt\na cat\n", encoding="utf-8")

    first_word = command(name, "model=tiny_t2v", "--dry-run")
    by_key = command(f"manifest={name}", "model=tiny_t2v", "--dry-run")

    assert (first_word.code, first_word.err) == (0, "")
    assert first_word.out.startswith(f"{name}: 1 row, 1 clip: 1 new\n")
    assert by_key == first_word
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == [Path(name).stem]


@given(
    name=st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_arrives_as_it_was_typed(name: str) -> None:
    words = ("manifest", "run_dir", "override.negative_prompt")

    [job] = settings_of(*(f"{key}=x{name}" for key in words))

    config = job.config
    assert (config.manifest, config.run_dir) == (f"x{name}", f"x{name}")
    assert config.override.negative_prompt == f"x{name}"
    assert {job.typed[key] for key in words} == {f"x{name}"}


def test_a_path_means_what_was_typed_from_another_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    relative = command("../in/p.csv", "model=tiny_t2v", "--dry-run")
    absolute = command(tmp_path / "in" / "p.csv", "model=tiny_t2v", "--dry-run", "run_dir=../there")

    assert (relative.code, absolute.code) == (0, 0)
    assert (tmp_path / "elsewhere" / "outputs" / "p" / "plan.csv").is_file()
    assert (tmp_path / "there" / "plan.csv").is_file()


def test_a_manifest_need_not_be_the_first_word(fake_runs: FakeRuns, command: Command) -> None:
    command("-m", "my file.csv", "model=tiny_t2v")
    command("model=tiny_t2v", "--dry-run", "my file.csv")

    assert [c.manifest for c in fake_runs.configs] == ["my file.csv", "my file.csv"]
    assert [c.dry_run for c in fake_runs.configs] == [False, True]
    assert fake_runs.lines[0] == "hv15-batch -m 'my file.csv' model=tiny_t2v"


def test_text_settings_take_commas_quotes_and_brackets(
    fake_runs: FakeRuns, command: Command
) -> None:
    command(
        "p.csv",
        'override.negative_prompt=blurry, "text" (low) ${x}',
        "only=a,b",
        "sampling.seeds=1,2,5",
        "model.revision=12345678",
        "run_dir=my runs, [1]",
    )

    [config] = fake_runs.configs
    assert config.override.negative_prompt == 'blurry, "text" (low) ${x}'
    assert config.only == "a,b"
    assert config.sampling.seeds == "1,2,5"
    assert config.model.revision == "12345678"
    assert config.run_dir == "my runs, [1]"
    assert fake_runs.typed == [("seeds", "model.revision")]


# -- resume -----------------------------------------------------------------------------------


@pytest.fixture
def rendered(command: Command, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command of which one of two rows is rendered, with settings of its own, by a fake."""
    monkeypatch.setattr(session, "run", partial(session.run, make_executor=FakeExecutor))
    answer = command("prompts.csv", *TINY, "order=rows", "video.crf=20", "limit=1")
    assert (answer.code, answer.err) == (0, ""), answer.err
    return command


def stored_settings(folder: Path) -> list[Config]:
    run_dir = RunDir(folder)
    files = [run_dir.run_folder(run_id) / "config.yaml" for run_id in run_dir.run_ids()]
    return [read_settings(path) for path in files]


def test_resume_goes_on_with_the_stored_manifest_and_settings(
    rendered: Command, tmp_path: Path
) -> None:
    answer = rendered("resume=outputs/prompts")

    first, second = stored_settings(tmp_path / "outputs" / "prompts")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == f"{tmp_path}/outputs/prompts: 1 of 2 done"
    assert (second.video.crf, second.order, second.limit) == (20, Order.rows, None)
    assert replace(second, limit=1) == first


def test_resume_takes_what_is_typed_on_top(
    rendered: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "outputs")

    dry = rendered("resume=prompts", "--dry-run", "order=takes")
    refused = rendered("resume=prompts", "video.crf=21")
    added = rendered("resume=prompts", "video.crf=21", "offload=resident", "add=true")

    assert dry.out.splitlines()[0].endswith(": 2 rows, 2 clips: 1 done, 1 new")
    assert refused.code == 2
    assert "add=true" in refused.err
    assert added.code == 0, added.err
    last = stored_settings(tmp_path / "outputs" / "prompts")[-1]
    assert (last.video.crf, last.order, last.offload.kind.name) == (21, Order.rows, "resident")
    assert last.model.name == "tiny_t2v"


def test_resume_without_its_manifest_says_where_a_copy_is(
    rendered: Command, prompts: Path, tmp_path: Path
) -> None:
    prompts.unlink()
    folder = tmp_path / "outputs" / "prompts"

    assert rendered("resume=outputs/prompts") == Answer(
        2,
        "",
        f"resume={folder}: its manifest {prompts} is gone; put it back (copies are in "
        f"{folder}/runs/*/manifest.*).\n",
    )


def test_resume_keeps_text_that_looks_like_an_interpolation(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "run", partial(session.run, make_executor=FakeExecutor))
    (tmp_path / "${x}.csv").write_text("prompt\na cat\n", encoding="utf-8")

    first = command("${x}.csv", *TINY, "override.negative_prompt=a ${y}, b")
    again = command("resume=outputs/${x}")

    assert (first.code, first.err) == (0, "")
    assert again.out.splitlines()[0] == f"{tmp_path}/outputs/${{x}}: 1 of 1 done"
    assert again.code == 0


# -- errors that are not the user's -----------------------------------------------------------


def test_a_fault_of_the_program_is_shown_whole(fake_runs: FakeRuns, command: Command) -> None:
    fake_runs.ends = [KeyError("a bug")]

    with pytest.raises(KeyError, match="a bug"):
        command("p.csv")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied; correct the "),
        (OSError(30, "Read-only file system", "x"), 2, "x: Read-only file system; this file "),
        (OSError(28, "No space left on device", "x"), 4, "x: No space left on device; free some "),
    ],
)
def test_what_the_disk_refuses_is_one_message(
    fake_runs: FakeRuns, command: Command, error: OSError, code: int, message: str
) -> None:
    fake_runs.ends = [error]

    answer = command("p.csv")

    assert answer.code == code
    assert answer.err.startswith(message)
    assert answer.err.count("\n") == 1


def test_an_interrupt_before_anything_runs_has_its_code(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **_named: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", interrupt)

    assert command("p.csv") == Answer(130, "", "interrupted\n")


def test_main_reads_the_words_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hv15-batch", "--version"])

    assert cli.main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"
