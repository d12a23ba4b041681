"""Sweeps: each combination in a folder of its own, and what of Hydra is honoured."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import Answer, FakeRuns

from hv15_batch.errors import Refused

Command = Callable[..., Answer]


def test_a_sweep_runs_each_combination_in_its_own_folder(
    command: Command, prompts: Path, tmp_path: Path
) -> None:
    answer = command(
        "-m",
        "manifest=prompts.csv",
        "model=tiny_t2v,480p_t2v",
        "override.num_inference_steps=2,3",
        "dry_run=true",
    )

    assert (answer.code, answer.err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs", "prompts.csv"]
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == ["prompts.sweep"]
    assert sorted(p.name for p in (tmp_path / "outputs" / "prompts.sweep").iterdir()) == [
        "480p_t2v-2",
        "480p_t2v-3",
        "tiny_t2v-2",
        "tiny_t2v-3",
    ]


def test_no_preset_is_null_in_a_sweep_too(fake_runs: FakeRuns, command: Command) -> None:
    assert command("p.csv", "experiment=Null").code == 0
    assert command("p.csv", "-m", "experiment=null,rtx4090_24gb").code == 0
    assert command("p.csv", "-m", "experiment=rtx4090_24gb, null").code == 0

    limits = [config.runtime.vram_limit_gib for config in fake_runs.configs]
    assert limits == [None, None, 24, 24, None]
    assert fake_runs.sweeps == [None, "null", "rtx4090_24gb", "rtx4090_24gb", "null"]


def test_swept_booleans_are_named_as_they_are_typed(fake_runs: FakeRuns, command: Command) -> None:
    command("-m", "p.csv", "runtime.mask_free=true,false")

    assert fake_runs.sweeps == ["true", "false"]


def test_the_jobs_of_a_sweep_count_time_from_the_same_moment(
    fake_runs: FakeRuns, command: Command, prompts: Path
) -> None:
    command("-m", str(prompts), "model=tiny_t2v", "sampling.flow_shift=5,7", "time_limit=1h30m")

    assert [config.time_limit for config in fake_runs.configs] == ["1h30m", "1h30m"]
    assert fake_runs.clocks[0] is fake_runs.clocks[1] is not None


@pytest.mark.parametrize(
    "word", ["until=07:00", "until=7:05", "time_limit=8h", "time_limit=90min", "window=22:00-07:00"]
)
def test_times_arrive_as_they_were_typed(
    fake_runs: FakeRuns, command: Command, prompts: Path, word: str
) -> None:
    assert command(str(prompts), word).code == 0

    key, _, value = word.partition("=")
    assert getattr(fake_runs.configs[0], key) == value


def test_one_job_that_fails_does_not_end_a_sweep_and_the_worst_code_counts(
    fake_runs: FakeRuns, command: Command
) -> None:
    fake_runs.ends = [3, Refused("refused: why."), 4, 0]

    answer = command("-m", "p.csv", "override.num_frames=1,5,9,13")

    assert answer == Answer(4, "", "In the run override.num_frames=5:\nrefused: why.\n")
    assert fake_runs.sweeps == ["1", "5", "9", "13"]


def test_a_refusal_in_a_sweep_names_all_swept_values_and_elsewhere_none(
    fake_runs: FakeRuns, command: Command
) -> None:
    fake_runs.ends = [Refused("no."), 0, Refused("no.")]

    swept = command("-m", "p.csv", "model=tiny_t2v,tiny_i2v", "experiment=null", "limit=range(1,2)")
    single = command("-m", "p.csv", "model=tiny_t2v")

    assert swept == Answer(2, "", "In the run model=tiny_t2v limit=1:\nno.\n")
    assert single == Answer(2, "", "no.\n")


def test_a_fault_of_the_program_in_one_job_leaves_the_others_their_turn(
    fake_runs: FakeRuns, command: Command
) -> None:
    fake_runs.ends = [RuntimeError("a bug"), 0]

    with pytest.raises(RuntimeError, match="a bug"):
        command("-m", "p.csv", "override.num_frames=1,5")

    assert fake_runs.sweeps == ["1", "5"]


def test_an_interrupted_job_ends_a_sweep(fake_runs: FakeRuns, command: Command) -> None:
    fake_runs.ends = [3, 130, 0]

    assert command("-m", "p.csv", "override.num_frames=1,5,9").code == 130
    assert fake_runs.sweeps == ["1", "5"]


def test_a_sweep_with_an_unknown_option_is_refused_as_a_whole(
    fake_runs: FakeRuns, command: Command
) -> None:
    answer = command("-m", "p.csv", "model=tiny_t2v,nope")

    assert (answer.code, fake_runs.configs) == (2, [])


def test_swept_values_are_joined_in_the_order_they_were_typed(
    fake_runs: FakeRuns, command: Command
) -> None:
    command("-m", "p.csv", 'override.negative_prompt="a b",c', "model=tiny_t2v", "limit=range(1,3)")

    # A replaced character is told apart by a hash: "a_b" would be another value.
    assert [re.sub(r"-[0-9a-f]{8}$", "-#", name or "") for name in fake_runs.sweeps] == [
        "a_b-1-#", "a_b-2-#", "c-1", "c-2",
    ]  # fmt: skip
    assert [c.override.negative_prompt for c in fake_runs.configs] == ["a b", "a b", "c", "c"]


def test_a_folder_given_to_a_sweep_holds_the_folders_of_its_jobs(
    fake_runs: FakeRuns, command: Command
) -> None:
    command("-m", "p.csv", "override.num_frames=1,5", "run_dir=my runs")
    command("-m", "p.csv", 'run_dir="one,two"')
    Path("three,four").mkdir()
    command("-m", "p.csv", "run_dir=three,four")

    folders = [config.run_dir for config in fake_runs.configs]
    assert folders == ["my runs/1", "my runs/5", "one,two", "three,four"]


def test_a_sweep_over_manifests_keeps_a_comma_in_a_name(
    fake_runs: FakeRuns, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "x,y.csv").touch()

    command("-m", "manifest=a.csv,b.csv")
    command("-m", "manifest=x,y.csv")

    assert [c.manifest for c in fake_runs.configs] == ["a.csv", "b.csv", "x,y.csv"]
    assert fake_runs.sweeps == ["a.csv", "b.csv", None]


@pytest.mark.parametrize("words", [(), ("-m",)])
def test_hydra_leaves_nothing_behind(
    fake_runs: FakeRuns, command: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    environment = dict(os.environ)

    words = (*words, "hydra.run.dir=here", "hydra.job.name=x")
    assert command("p.csv", *words, "hydra/job_logging=default", "hydra.verbose=true").code == 0

    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment


@pytest.mark.parametrize("flag", [(), ("-m",)])
@pytest.mark.parametrize(
    "word",
    [
        *("hydra.job.chdir=true", "hydra.mode=MULTIRUN", "hydra.foo=1"),
        "hydra.callbacks.x=1",
    ],
)
def test_settings_of_hydra_that_cannot_be_honoured_are_refused(
    fake_runs: FakeRuns, command: Command, tmp_path: Path, word: str, flag: tuple[str, ...]
) -> None:
    answer = command("p.csv", *flag, word)

    assert answer == Answer(
        2,
        "",
        f"{word}: of Hydra's own settings only hydra/launcher, hydra/sweeper, "
        "hydra/sweeper/sampler, hydra/job_logging, hydra/hydra_logging, hydra.verbose, "
        "hydra.searchpath, hydra.launcher.*, hydra.sweeper.*, hydra.job_logging.*, "
        "hydra.hydra_logging.* may be typed; name a folder with run_dir=DIR, and type -m for a "
        "sweep.\n",
    )
    assert (fake_runs.configs, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("flag", [(), ("-m",)])
@pytest.mark.parametrize(
    "word",
    ["hydra.sweep.subdir=../../x", "hydra.output_subdir=../../x", "hydra.job.name=../../x"],
)
def test_hydra_makes_no_folder_that_is_asked_for_in_its_own_settings(
    fake_runs: FakeRuns,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    flag: tuple[str, ...],
) -> None:
    temporary = tmp_path / "a" / "b"
    temporary.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    assert command("p.csv", *flag, word, "hydra/job_logging=default").code == 0

    assert list(tmp_path.rglob("*")) == [tmp_path / "a", temporary]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hydra.launcher.foo=1", "hydra.launcher.foo: there is no such setting."),
        ("hydra/launcher=null", "hydra/launcher=null: must name an option; leave it out for the "),
        ("hydra.verbose=true,false", "hydra.verbose=true,false: must be one value."),
        (
            "hydra.sweeper.params.limit=1",
            "hydra.sweeper.params.limit=1: type swept settings directly, for example "
            "override.flow_shift=5,7.",
        ),
    ],
)
def test_settings_of_hydra_with_a_fault_are_refused_in_the_words_used_here(
    command: Command, word: str, message: str
) -> None:
    answer = command("-m", "p.csv", word)

    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(message)


@pytest.mark.parametrize("flag", [(), ("-m",)])
def test_a_log_file_of_hydra_is_made_in_no_folder_of_the_user(
    fake_runs: FakeRuns,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: tuple[str, ...],
) -> None:
    temporary = tmp_path / "a" / "b"
    temporary.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    assert command("p.csv", *flag, "hydra/job_logging=default").code == 0

    assert list(tmp_path.rglob("*")) == [tmp_path / "a", temporary]
