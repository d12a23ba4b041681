"""A run directory from somebody else: no reader executes, fetches or resolves what it stores."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from fakes.command import TINY, Answer
from fakes.samples import sampled

from hv15_batch import api
from hv15_batch.config.settings import Config
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import (
    earlier_settings,
    latest_settings,
    read_settings,
    run_settings,
    stored_values,
    write_settings,
)

Command = Callable[..., Answer]
SECRET = "planted-value-of-the-environment"
RESOLVED = "resolved-by-omegaconf"
READERS = (
    ("resume={run}", "--dry-run"),
    ("report", "{run}"),
    ("report", "{parent}"),
    ("report", "{run}", "{other}"),
    ("compare", "{run}", "{other}"),
    ("compare", "{other}", "{run}"),
    ("status", "{run}"),
    ("status", "{run}", "--json"),
    ("references", "{run}"),
    ("references", "{parent}"),
    ("recipe", "{clip}", "--out", "r.csv"),
    ("p.csv", "run_dir={run}", *TINY, "override.num_inference_steps=1", "--dry-run"),
)

ONCE_EACH = [w for w in READERS if w[1:] not in (("{parent}",), ("{other}", "{run}"))]
"""Without those that read the same in another order."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of one manifest, in the folder of a sweep."""
    from hv15_batch import cli

    folder = tmp_path_factory.mktemp("finished")
    (folder / "p.csv").write_text("id,prompt\ncat,a cat\n", encoding="utf-8")
    for name, steps in (("one", 1), ("two", 2)):
        words = [str(folder / "p.csv"), f"run_dir={folder}/all/{name}", *TINY]
        assert cli.main([*words, f"override.num_inference_steps={steps}"]) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of them, from where the commands are typed."""
    for name in ("p.csv", "all"):
        source = finished / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(
            source, tmp_path / name
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANTED", SECRET)
    yield tmp_path
    assert not (tmp_path / "ran").exists(), "a planted command ran"


def config_file(folder: Path) -> Path:
    (file,) = (folder / "all" / "one").glob("runs/*/config.yaml")
    return file


def plant(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the stored settings of the first run by hand."""
    file = config_file(folder)
    stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    stored["manifest"] = str(folder / "p.csv")
    change(stored)
    file.write_text(yaml.safe_dump(stored), encoding="utf-8")


def read_all(
    folder: Path, command: Command, readers: Sequence[tuple[str, ...]] = READERS
) -> dict[tuple[str, ...], Answer]:
    """Run readers; return what each gave."""
    run, other = folder / "all/one", folder / "all/two"
    (clip,) = (run / "clips").iterdir()
    places = {"run": run, "other": other, "parent": folder / "all", "clip": clip}
    answers = {}
    for words in readers:
        (folder / "r.csv").unlink(missing_ok=True)
        answers[words] = command(*(word.format(**places) for word in words))
    return answers


def everything(folder: Path, answers: dict[tuple[str, ...], Answer]) -> str:
    """Return all that was printed or written as text, the planted file left out."""
    texts = [a.out + a.err for a in answers.values()]
    for path in folder.rglob("*"):
        if path.is_file() and path != config_file(folder):
            texts.append(path.read_bytes().decode("utf-8", "replace"))
    frame = api.read_log(folder / "all", all_attempts=True)
    return "\n".join([*texts, frame.to_csv()])


def set_everywhere(stored: dict[str, object], text: str) -> None:
    """Put a text into every setting that may hold one."""
    stored["window"] = None
    for section in ("sampling", "override"):
        values = stored[section]
        assert isinstance(values, dict)
        values["negative_prompt"] = text


INTERPOLATIONS = (
    "${oc.env:PLANTED}",
    "${oc.env:PLANTED,default}",
    "x ${oc.env:PLANTED} y",
    "${oc.decode:${oc.env:PLANTED}}",
    "${hydra:runtime.cwd}",
    "${oc.dict.values:model}",
    "${oc.create:'{a: 1}'}",
    "${manifest}",
    "${.negative_prompt}",
    "${planted:}",
    "\\\\${oc.env:PLANTED}",
    "${oc.env:${oc.env:NAME,PLANTED}}",
    "${",
    "${}",
    "}${oc.env:PLANTED",
)


@pytest.fixture
def resolver() -> Iterator[None]:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("planted", lambda: RESOLVED)
    yield
    OmegaConf.clear_resolver("planted")


@pytest.mark.parametrize("text", INTERPOLATIONS)
@pytest.mark.usefixtures("resolver")
def test_an_interpolation_in_stored_settings_is_a_text(folder: Path, text: str) -> None:
    plant(folder, lambda stored: set_everywhere(stored, text))
    file = config_file(folder)
    as_typed = {"\\\\${oc.env:PLANTED}": "\\${oc.env:PLANTED}"}.get(text, text)
    run_dir = RunDir(folder / "all/one")
    for config in (read_settings(file), latest_settings(run_dir), *earlier_settings(run_dir)):
        assert config.sampling.negative_prompt in (text, as_typed)
        assert SECRET not in repr(config)
        assert RESOLVED not in repr(config)
    assert SECRET not in repr(stored_values(file.parent)) + repr(run_settings(file.parent))


def test_a_planted_variable_is_seen_nowhere(folder: Path, command: Command) -> None:
    plant(folder, lambda stored: set_everywhere(stored, "${oc.env:PLANTED}"))

    answers = read_all(folder, command)

    assert answers[READERS[0]].code == 0
    assert SECRET not in everything(folder, answers)


def hostile_command(stored: dict[str, object]) -> None:
    stored["notify"] = {"command": [sys.executable, "-c", "open('ran', 'w')"]}


def hostile_kernel(stored: dict[str, object]) -> None:
    runtime = stored["runtime"]
    assert isinstance(runtime, dict)
    runtime["attention_backend"] = "sage_hub"


def hostile_repo(stored: dict[str, object]) -> None:
    model = stored["model"]
    assert isinstance(model, dict)
    model |= {"repo": "evil/weights", "weights": "pretrained"}


def hostile_revision(stored: dict[str, object]) -> None:
    model = stored["model"]
    assert isinstance(model, dict)
    model["revision"] = "refs/pr/7"


@pytest.mark.parametrize(
    ("change", "name"),
    sampled(
        [
            (hostile_command, "notify.command"),
            (hostile_kernel, "runtime.attention_backend"),
            (hostile_repo, "model.repo"),
            (hostile_revision, "model.revision"),
        ],
        2,
    ),
)
def test_what_executes_or_fetches_is_typed_and_no_reader_takes_it_from_a_run(
    folder: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, object]], None],
    name: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process or a download")

    plant(folder, change)
    monkeypatch.setattr("hv15_batch.weights.fetch.open_hub", never)
    monkeypatch.setattr("hv15_batch.run._notify.subprocess.Popen", never)
    answers = read_all(folder, command)

    resumed = answers[READERS[0]]
    assert resumed.code == 2
    assert f"hv15-batch resume={folder}/all/one {name}=..." in resumed.err
    others = {words: answer for words, answer in answers.items() if words != READERS[0]}
    for words, answer in others.items():
        assert answer.code == 0, (words, answer)
        assert not {"evil/weights", "sage_hub", "refs/pr/7"} & set(answer.out.split())
    page = (folder / "all/one/assets/data.js").read_text(encoding="utf-8")
    assert "evil/weights" not in page
    assert "attention_backend=sage_hub" not in page


YAMLS = {
    "object": "!!python/object/apply:os.system ['touch ran']",
    "name": "model: !!python/name:os.system",
    "module": "model: !!python/module:os",
    "tuple": "video: !!python/tuple [1]",
    "own tag": "model: !evil {name: x}",
    "alias": "model: &m {name: a}\nvideo: *m",
    "bomb": "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    ),
    "circle": "model: &m {name: *m}",
    "merge": "base: &b {name: a}\nmodel: {<<: *b}",
    "depth": "model: " + "[" * 5000 + "]" * 5000,
    "number": "limit: " + "9" * 10_000,
    "date": "window: 2026-99-99",
    "list": "- 1",
    "text": "hello",
    "empty": "",
    "number as a name": "1: 2",
    "control": "window: \x1b[31m",
    "two": "a: 1\n---\nb: 2",
    "size": "window: " + "x" * (2 << 20),
}  # fmt: skip
WRONG_TYPES = {
    "sections are texts": {name: "x" for name in ("model", "video", "report", "runtime", "notify")},
    "sections are lists": {name: [1] for name in ("model", "video", "report", "runtime")},
    "sections are null": {name: None for name in ("model", "video", "report", "runtime")},
    "leaves are maps": {"manifest": {"a": 1}, "window": {"a": 1}, "only": ["x"]},
    "numbers are texts": {"report": {"price_per_kwh": "x"}, "runtime": {"vram_limit_gib": "x"}},
    "numbers are huge": {"report": {"price_per_kwh": 1e308}, "video": {"crf": 10**400}},
    "no path": {"manifest": "a\0b"},
    "foreign path": {"manifest": "/etc/passwd"},
    "unknown": {"evil": {"_target_": "os.system"}, "_target_": "os.system", "hydra": {"run": 1}},
}


def check_readers(folder: Path, command: Command) -> None:
    """Hold that every reader ends with a message or without one, and never with a traceback."""
    for words, answer in read_all(folder, command, ONCE_EACH).items():
        assert answer.code in (0, 2), (words, answer)
        assert (answer.code == 0) == (answer.err == "") or "report" in words, (words, answer)
        assert "Traceback" not in answer.err
        assert "\x1b" not in answer.out + answer.err
    api.read_log(folder / "all", all_attempts=True)


@pytest.mark.parametrize("name", sampled(YAMLS, 2))
def test_a_stored_yaml_that_is_no_plain_mapping_ends_no_reader_with_a_traceback(
    folder: Path, command: Command, name: str
) -> None:
    config_file(folder).write_text(YAMLS[name], encoding="utf-8")

    check_readers(folder, command)


@pytest.mark.parametrize("name", sampled(WRONG_TYPES, 2))
def test_stored_values_of_other_types_end_no_reader_with_a_traceback(
    folder: Path, command: Command, name: str
) -> None:
    plant(folder, lambda stored: stored.update(WRONG_TYPES[name]))

    check_readers(folder, command)


def test_a_pipe_in_the_place_of_stored_settings_makes_nobody_wait(
    folder: Path, command: Command
) -> None:
    file = config_file(folder)
    file.unlink()
    os.mkfifo(file)

    check_readers(folder, command)


@pytest.mark.parametrize(
    "facts",
    sampled(
        [{"hardware": "x", "project": 7}, {"project": {"git_commit": 7}}, [1], "x",
         {"hardware": {"ram_total_bytes": "x"}}],
        1,
    ),
)  # fmt: skip
def test_foreign_facts_of_a_machine_end_no_reader_with_a_traceback(
    folder: Path, command: Command, facts: object
) -> None:
    plant(folder, lambda _: None)
    config_file(folder).with_name("system.json").write_text(json.dumps(facts), encoding="utf-8")

    check_readers(folder, command)


def test_the_settings_that_are_stored_are_read_as_they_were(folder: Path) -> None:
    texts = ("a ${b} \\${c} \\\\${d}", "$", "{}", "", "'\"", "  ", "null", "1", "true", "~")
    for text in texts:
        plant(folder, lambda _: None)
        config = read_settings(config_file(folder))
        config.sampling.negative_prompt = text
        write_settings(config_file(folder).parent, config)
        assert read_settings(config_file(folder)).sampling.negative_prompt == text
        assert isinstance(read_settings(config_file(folder)), Config)
