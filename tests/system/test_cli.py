from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fakes.command import Answer
from fakes.runs import FakeExecutor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hv15_batch import __version__, cli
from hv15_batch.config.compose import Job, run_jobs
from hv15_batch.config.settings import Config, Order
from hv15_batch.errors import ConfigError
from hv15_batch.machine import machine
from hv15_batch.model.options import conf_dir
from hv15_batch.run import session
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import read_settings

Command = Callable[..., Answer]

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
OFFLOADS = sorted(path.stem for path in (conf_dir() / "offload").glob("*.yaml"))
STEP_DISTILLED_T2V = (
    "There is no step-distilled text-to-video checkpoint: the published one is 480p image-to-video "
    "(MeanFlow), and the text-to-video pipeline never passes it timestep_r, so its frames would be "
    "wrong without an error; use model=480p_i2v_step_distilled with an image in every row, or "
    "model=480p_t2v_distilled."
)
FLAGS = (
    "The flags are --dry-run, -m (a sweep), --cfg job (the settings), --help and --version; all "
    "else is key=value."
)
TINY = ("model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=1")


def settings_of(*words: str) -> list[Job]:
    """The jobs that a command line stands for."""
    jobs: list[Job] = []

    def keep(job: Job) -> int:
        jobs.append(job)
        return 0

    assert run_jobs(words, keep) == 0
    return jobs


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A manifest of two rows in the folder of the command."""
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,num_inference_steps\na cat,\na dog,50\n", encoding="utf-8")
    return path


class FakeRuns:
    """Stands for `session.run`: remembers what it is given and ends as it is told."""

    def __init__(self, *ends: int | Exception) -> None:
        self.ends = list(ends)
        self.configs: list[Config] = []
        self.typed: list[tuple[str, ...]] = []
        self.sweeps: list[str | None] = []
        self.clocks: list[object] = []
        self.lines: list[str] = []

    def __call__(
        self,
        config: Config,
        typed: tuple[str, ...],
        sweep: str | None,
        _say: object,
        clock: object,
        typed_line: str,
    ) -> int:
        self.lines.append(typed_line)
        self.configs.append(config)
        self.typed.append(typed)
        self.sweeps.append(sweep)
        self.clocks.append(clock)
        end = self.ends.pop(0) if self.ends else 0
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    runs = FakeRuns()
    monkeypatch.setattr(session, "run", runs)
    return runs


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("help",), ("p.csv", "--help")])
def test_help_is_one_screen_with_the_commands_and_exit_codes(
    command: Command, words: tuple[str, ...]
) -> None:
    answer = command(*words)

    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) <= 24
    for word in ("--dry-run", "resume=", "-m ", "report", "status", "prefetch", "Exit codes"):
        assert word in answer.out


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


def test_without_an_argument_machine_weights_and_three_commands_are_shown(
    command: Command, tmp_path: Path
) -> None:
    answer = command()

    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == (
        "Card: none visible; the tiny models run on the CPU, real ones can be planned"
    )
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "RAM",
        "Disk",
        "Weights on disk",
        "Go on with",
    ]
    assert lines[3] == "Weights on disk: none"
    assert answer.out.count("hv15-batch ") == 3
    assert list(tmp_path.iterdir()) == []


def test_without_an_argument_a_card_is_shown_with_its_free_memory(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_gpus", lambda: [CARD])

    assert command().out.splitlines()[0] == (
        "Card 0: NVIDIA GeForce RTX 4090, 23.0 of 24.0 GiB free, driver 580.1"
    )


CARD = machine.Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", 24 * 2**30, 23 * 2**30, "580.1", 450.0)


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
        0, "model=tiny_t2v is built on this machine in seconds: nothing needs downloading.\n", ""
    )


# -- refusals: the whole message, exit code 2, nothing touched --------------------------------

REFUSED: dict[tuple[str, ...], str] = {
    ("prompts.csv", "modle=tiny_t2v"): (
        "modle=tiny_t2v: there is no setting modle. Did you mean model? All of them: "
        "hv15-batch --cfg job."
    ),
    ("prompts.csv", "steps=30"): (
        "steps=30: there is no setting steps. Did you mean sampling.num_inference_steps or "
        "override.num_inference_steps? All of them: hv15-batch --cfg job."
    ),
    ("prompts.csv", "override.num_frame=61", "++video.size=3"): (
        "override.num_frame=61: there is no setting override.num_frame. Did you mean "
        "override.num_frames? All of them: hv15-batch --cfg job.\n"
        "video.size=3: there is no setting video.size. All of them: hv15-batch --cfg job."
    ),
    ("prompts.csv", "limit=many"): "limit=many: must be a whole number.",
    ("prompts.csv", "override.num_frames=61.5"): (
        "override.num_frames=61.5: must be a whole number."
    ),
    ("prompts.csv", "override.fps=fast"): "override.fps=fast: must be a number.",
    ("prompts.csv", "force=perhaps"): "force=perhaps: must be true or false.",
    ("prompts.csv", "order=random"): "order=random: must be one of takes, rows.",
    ("prompts.csv", "video.crf=null"): "video.crf=null: must not be null; leave it out.",
    ("prompts.csv", "sampling=3"): (
        "sampling=3: sampling is a section; set its members, for example sampling.seeds=VALUE."
    ),
    ("prompts.csv", "offload=streem"): (
        "offload=streem: there is no such option."
        f"{' Did you mean stream?' * ('stream' in OFFLOADS)} Options: {', '.join(OFFLOADS)}."
    ),
    ("prompts.csv", "offload=null"): (
        "offload=null: must name an option; leave it out for the default."
    ),
    ("prompts.csv", "-m", "offload=null,stream"): (
        "offload=null,stream: must name an option; leave it out for the default."
    ),
    ("prompts.csv", "-m", "experiment=1,2"): "experiment=1,2: must name one option.",
    ("prompts.csv", "-m", "model=range(3)"): "model=range(3): must name one option.",
    ("prompts.csv", "-m", "model=[a],b"): "model=[a],b: must name one option.",
    ("-m", "resume=full", "override.fps=12,24"): (
        "resume=full: resumes one run, and override.fps makes a sweep; leave resume= out and "
        "name the manifest: the jobs have folders of their own."
    ),
    ("-m", "prompts.csv", "run_dir=one,two"): (
        "run_dir=one,two: the jobs of a sweep have folders of their own below one run_dir; name "
        "one folder (with a comma in its name: run_dir='\"one,two\"')."
    ),
    ("prompts.csv", "experiment=null,rtx4090_24gb"): (
        "experiment=null,rtx4090_24gb: several values are a sweep; add -m to run one after the "
        "other."
    ),
    ("prompts.csv", "model=480p"): (
        f"model=480p: there is no such option. Did you mean 480p_t2v? Options: {', '.join(MODELS)}."
    ),
    ("prompts.csv", "model=480p_t2v_step_distilled"): (
        "model=480p_t2v_step_distilled: there is no such option. Did you mean "
        f"480p_i2v_step_distilled? Options: {', '.join(MODELS)}.\n{STEP_DISTILLED_T2V}"
    ),
    ("prompts.csv", "experiment=rtx4090"): (
        "experiment=rtx4090: there is no such option. Did you mean rtx4090_24gb? Options: "
        f"{', '.join(PRESETS)}."
    ),
    ("prompts.csv", "model=480p_i2v_step_distilled", "model.task=t2v"): (
        "model.task=t2v with 480p_i2v_step_distilled: "
        f"{STEP_DISTILLED_T2V[0].lower()}{STEP_DISTILLED_T2V[1:]}"
    ),
    ("prompts.csv", "model=480p_t2v,tiny_t2v"): (
        "model=480p_t2v,tiny_t2v: several values are a sweep; add -m to run one after the other."
    ),
    ("prompts.csv", "~limit"): (
        "~limit: a setting cannot be taken away; leave it out, or set it to null."
    ),
    ("prompts.csv", "video@here=1"): "video@here=1: settings are set with key=value.",
    ("prompts.csv", "video.preset=(fast"): (
        "video.preset=(fast: not understood; put a value with special characters in quotes of its "
        "own: 'video.preset=\"...\"'."
    ),
    (
        "prompts.csv",
        "--dryrun",
    ): f"--dryrun: there is no such flag. Did you mean --dry-run? {FLAGS}",
    ("prompts.csv", "-x"): f"-x: there is no such flag. {FLAGS}",
    ("prompts.csv", "--cfg", "jobs"): (
        "--cfg=jobs: takes one of job, hydra, all; write it after the --cfg."
    ),
    ("prompts.csv", "-m", "--cfg", "job"): (
        "-m --cfg=job: only one of -m, --cfg and --info at a time."
    ),
    ("prompts.csv", "--resolve"): "--resolve: goes with --cfg job; leave it out.",
    ("prompts.csv", "--cfg"): "--cfg=: takes one of job, hydra, all; write it after the --cfg.",
    ("prompts.csv", "--cfg", "job", "-p"): (
        "--package=: takes a name; write it after the --package."
    ),
    ("prompts.csv", "--dry-run=1"): "--dry-run: takes no value; leave it out.",
    ("prompts.csv", "--config-dir", "no"): "--config-dir=no: there is no such folder.",
    ("prompts.csv", "--experimental-rerun", "x.pickle"): (
        f"--experimental-rerun: there is no such flag. {FLAGS}"
    ),
    ("prompts.csv", "-cn=other"): f"--config-name: there is no such flag. {FLAGS}",
    ("prompts.csv", "--config-path", "full"): f"--config-path: there is no such flag. {FLAGS}",
    ("prompts.csv", "-r"): f"--run: there is no such flag. {FLAGS}",
    ("prompts.csv", "--mult"): f"--mult: there is no such flag. Did you mean --multirun? {FLAGS}",
    ("-sc",): (
        "--shell-completion: Expecting one subcommand from ['install', 'uninstall', 'query'] to be "
        "set; for a shell type -sc install=bash, install=zsh or install=fish."
    ),
    ("prompts.csv", "sweep_value=total_seconds"): (
        "sweep_value=total_seconds: goes with a sweep; add -m, or leave it out."
    ),
    ("-m", "prompts.csv", "sweep_value=luma_mean,mfu"): (
        "sweep_value=luma_mean,mfu: must be one column of the log."
    ),
    ("-m", "prompts.csv", "override.fps=12,24", "sweep_value=luma_men"): (
        "sweep_value=luma_men: the log has no such column. Did you mean luma_mean? docs/log.md "
        "lists them."
    ),
    ("-m", "prompts.csv", "override.fps=12,24", "sweep_value=status"): (
        "sweep_value=status: this column of the log is no number; name one that is, for example "
        "total_seconds."
    ),
    ("-m", "prompts.csv", "override.fps=12,24", "sweep_value=step_seconds"): (
        "sweep_value=step_seconds: this column of the log is no number; name one that is, for "
        "example total_seconds."
    ),
    ("prompts.csv", "rendr"): (
        "'rendr': neither a manifest (.csv, .jsonl, .ndjson, .parquet, .txt) nor key=value nor one "
        "of the words report, status, references, compare, recipe, prefetch. See hv15-batch --help."
    ),
    ("satus",): (
        "'satus': neither a manifest (.csv, .jsonl, .ndjson, .parquet, .txt) nor key=value nor one "
        "of the words report, status, references, compare, recipe, prefetch. Did you mean status? "
        "See hv15-batch --help."
    ),
    ("prompts.csv", "only="): (
        "only=: names no row; give ids, for example only=a,b, or leave it out for all rows."
    ),
    ("prompts.csv", "only= ,"): (
        "only= ,: names no row; give ids, for example only=a,b, or leave it out for all rows."
    ),
    ("=",): (
        "'=': neither a manifest (.csv, .jsonl, .ndjson, .parquet, .txt) nor key=value nor one of "
        "the words report, status, references, compare, recipe, prefetch. See hv15-batch --help."
    ),
    ("prompts.csv", "--limit=1"): (
        f"--limit=1: there is no such flag. Did you mean limit=1? {FLAGS}"
    ),
    ("prompts.csv", "FORCE=true"): (
        "FORCE=true: there is no setting FORCE. Did you mean force? All of them: hv15-batch --cfg "
        "job."
    ),
    ("prompts.csv", "model=TINY_T2V"): (
        "model=TINY_T2V: there is no such option. Did you mean tiny_t2v? Options: "
        f"{', '.join(MODELS)}."
    ),
    ("model=tiny_t2v",): "no manifest; name one: hv15-batch prompts.csv",
    ("prompt.csv", "model=tiny_t2v"): (
        "manifest=prompt.csv: there is no such file; did you mean prompts.csv?"
    ),
    ("prompts.csv", "video.crf=99"): (
        "video.crf=99: x264 takes 0 (lossless) to 51 (worst); try 17."
    ),
    ("prompts.csv", "video.preset=quick"): (
        "video.preset=quick: x264 knows ultrafast, superfast, veryfast, faster, fast, medium, "
        "slow, slower, veryslow."
    ),
    ("prompts.csv", "model=480p_i2v", "override.height=480"): (
        "override.height=480: an image-to-video model takes its size from the image; leave it out "
        "(the dry run shows the size)."
    ),
    ("prompts.csv", "model.repo=./weights"): (
        "model.repo='./weights': no such folder, and not a hub id of the form owner/name."
    ),
    ("prompts.csv", "run_dir=full", "model=tiny_t2v"): (
        "run_dir={cwd}/full: holds other files (notes.txt) and is no run directory; name an empty "
        "or new folder with run_dir=DIR."
    ),
    ("prompts.csv", "run_dir=prompts.csv", "model=tiny_t2v"): (
        "run_dir={cwd}/prompts.csv: a file has that name; name a folder with run_dir=DIR."
    ),
    ("prompts.csv", "run_dir=prompts.csv/sub", "model=tiny_t2v"): (
        "run_dir={cwd}/prompts.csv/sub: cannot be made (Not a directory); name a folder that can "
        "be written with run_dir=DIR."
    ),
    ("resume=full",): (
        "resume={cwd}/full: no run was started there; name a run directory, for example "
        "outputs/prompts, or start one: hv15-batch prompts.csv"
    ),
    ("prompts.csv", "resume=full"): (
        "manifest= with resume={cwd}/full: a run directory has its own; leave one out."
    ),
    ("resume=full", "experiment=rtx4090_14gb"): (
        "experiment= with resume={cwd}/full: a run directory has its own; leave one out."
    ),
    ("prompts.csv",): (
        "model=480p_t2v_distilled: needs a CUDA card, and none is visible here; to try the "
        "pipeline on the CPU use model=tiny_t2v (noise on purpose), to check the manifest and plan "
        "use dry_run=true."
    ),
    ("prompts.csv", "model=tiny_t2v", "sampling.seeds=1,x"): (
        "sampling.seeds=1,x: seeds are integers from 0 to 2^63-1, and x is none; write them like "
        "7, like 1 2 5, like 1,2,5 or like 0..3"
    ),
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_bad_command_line_is_refused_with_its_whole_message(
    command: Command, prompts: Path, words: tuple[str, ...]
) -> None:
    (prompts.parent / "full").mkdir()
    (prompts.parent / "full" / "notes.txt").touch()
    before = sorted(prompts.parent.rglob("*"))

    answer = command(*words)

    message = REFUSED[words].replace("{cwd}", str(prompts.parent))
    assert answer.err.removesuffix("\n").removesuffix(".") == message.removesuffix(".")
    assert (answer.code, answer.out) == (2, "")
    assert sorted(prompts.parent.rglob("*")) == before


MEANT = {
    ("p.csv", "--force"): "force=true",
    ("p.csv", "--limit", "1"): "limit=1",
    ("p.csv", "--override.fps=12"): "override.fps=12",
    ("p.csv", "--model", "--dry-run"): "model=VALUE",
    ("p.csv", "dry_run"): "dry_run=true",
    ("p.csv", "dry-run"): "dry_run=true",
    ("p.csv", "limit"): "limit=VALUE",
    ("resume", "outputs/a"): "resume=outputs/a",
    ("outputs",): "resume=outputs",
    ("my runs",): "'resume=my runs'",
    ("other.mp4",): "hv15-batch recipe other.mp4",
    ("my clip.MKV",): "hv15-batch recipe 'my clip.MKV'",
}


@pytest.mark.parametrize("words", MEANT, ids=" ".join)
def test_a_setting_that_is_not_typed_as_one_is_shown_as_one(
    command: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for folder in ("outputs", "my runs"):
        (tmp_path / folder).mkdir()

    answer = command(*words)

    assert (answer.code, answer.out) == (2, "")
    assert f" Did you mean {MEANT[words]}? " in answer.err


def test_a_word_that_comes_too_late_is_told_where_it_belongs(command: Command) -> None:
    assert " report comes first: hv15-batch report. " in command("p.csv", "report").err


BAD_FILES = {
    ("experiment", "runtime:\n  compile: false\n  card: [\n"): (
        "{file}:5: expected the node content, but found '<stream end>' (while parsing a flow "
        "node); correct the YAML there."
    ),
    ("experiment", "sampling: {height: x}"): (
        "experiment/mine.yaml: sampling.height=x: must be a whole number."
    ),
    ("experiment", "video: {codec: mpeg}"): (
        "experiment/mine.yaml: video.codec=mpeg: must be one of h264, ffv1."
    ),
    ("experiment", "sampling: {heigth: 32}"): (
        "experiment/mine.yaml: there is no setting sampling.heigth. Did you mean sampling.height? "
        "All of them: hv15-batch --cfg job."
    ),
    ("experiment", "sampling: 3"): (
        "experiment/mine.yaml: a section=3: a section has members; write them below it, indented."
    ),
    ("model", "defaults: [base]"): (
        "model/mine.yaml: its defaults list names model/base, which there is not; correct it or "
        "add the file."
    ),
    ("experiment", "defaults: [/sampling]"): (
        "experiment/mine.yaml: its defaults list names sampling, which there is not; correct it or "
        "add the file."
    ),
    ("experiment", "video: \x01"): (
        'unacceptable character #x0001: special characters are not allowed in "{file}", position '
        "27; take it out."
    ),
}


@pytest.mark.parametrize("case", BAD_FILES, ids=":".join)
def test_a_fault_in_a_file_of_the_configuration_names_file_and_key(
    command: Command, prompts: Path, tmp_path: Path, case: tuple[str, str]
) -> None:
    group, text = case
    file = tmp_path / "mine" / group / "mine.yaml"
    file.parent.mkdir(parents=True)
    package = "# @package _global_\n" if group == "experiment" else ""
    file.write_text(f"{package}{text}", encoding="utf-8")

    answer = command("prompts.csv", "--config-dir", "mine", f"{group}=mine")

    assert answer == Answer(2, "", BAD_FILES[case].replace("{file}", str(file)) + "\n")


def test_a_preset_without_a_package_is_told_its_first_line(
    command: Command, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("limit: 1\n", encoding="utf-8")

    answer = command("prompts.csv", "--config-dir", tmp_path, "experiment=mine")

    assert answer == Answer(
        2,
        "",
        "experiment/mine.yaml: a preset is a piece of the whole configuration; begin the file with "
        "# @package _global_\n",
    )


OFF_RECIPE = {
    ("480p_t2v_distilled", "override.num_inference_steps=30"): (
        "num_inference_steps=30",
        "480p_t2v_distilled is CFG-distilled for exactly 50 steps",
    ),
    ("480p_t2v_distilled", "override.guidance_scale=6"): (
        "guidance_scale=6",
        "480p_t2v_distilled is distilled for guidance_scale 1",
    ),
    ("480p_i2v_step_distilled", "override.num_inference_steps=10"): (
        "num_inference_steps=10",
        "480p_i2v_step_distilled is step-distilled for 8 or 12 steps (or 4)",
    ),
}


def test_a_cell_off_the_recipe_is_refused_with_its_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,num_inference_steps\na cat,50\na dog,30\n")

    refused = command("p.csv", "model=480p_t2v_distilled", "--dry-run")

    assert refused == Answer(
        2,
        "",
        "p.csv:3: num_inference_steps=30: 480p_t2v_distilled is CFG-distilled for exactly 50 "
        "steps; leave it out, or set runtime.allow_off_recipe=true.\n",
    )


@pytest.mark.parametrize("case", OFF_RECIPE, ids=" ".join)
def test_a_distilled_model_off_its_recipe_is_refused_unless_allowed(
    command: Command, tmp_path: Path, photo: Path, case: tuple[str, str]
) -> None:
    model, setting = case
    images = [("image", str(photo))] if "i2v" in model else []
    row = {"prompt": "a cat", **dict(images)}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    refused = command("p.jsonl", f"model={model}", setting, "--dry-run")
    allowed = command(
        "p.jsonl", f"model={model}", setting, "--dry-run", "runtime.allow_off_recipe=true"
    )

    value, reason = OFF_RECIPE[case]
    number = value.split("=")[1]
    assert refused.code == 2
    assert refused.err.replace(f"={number}.0:", f"={number}:") == (
        f"override.{value}: {reason}; leave it out, or set runtime.allow_off_recipe=true.\n"
    )
    assert (allowed.code, allowed.err) == (0, "")
    assert "Off the checkpoint's recipe: 1 clip (runtime.allow_off_recipe)\n" in allowed.out


def test_manifest_faults_begin_with_file_and_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,num_frames\na,120\n,5\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v")

    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "p.csv:2: num_frames=120: must be 4n+1; nearest are 117 and 121.\n"
        "p.csv:3: prompt='': must not be empty; write what the clip shows, or delete the row.\n"
    )


def test_a_typed_default_that_every_row_beats_is_refused_and_override_named(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt,num_frames\na,5\nb,9\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v", "sampling.num_frames=13", "--dry-run")

    assert (answer.code, answer.err) == (
        2,
        "sampling.num_frames=13: every row of p.csv has its own value, which wins; to replace "
        "them all use override.num_frames=13.\n",
    )


def test_missing_weights_offline_are_refused_and_prefetch_named(
    command: Command, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_gpus", lambda: [CARD])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    answer = command("prompts.csv", "model=480p_t2v")

    assert answer.code == 2
    assert answer.err == (
        "the weights of model=480p_t2v are not complete on this machine and HF_HUB_OFFLINE=1 "
        "forbids fetching them; run once with network: HF_HUB_OFFLINE=0 hv15-batch prefetch "
        "model=480p_t2v\n"
    )


def test_a_dry_run_offline_says_that_missing_weights_would_be_refused(
    command: Command, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    answer = command("prompts.csv", "model=480p_t2v", "--dry-run")

    assert answer.code == 0
    assert "A run would be refused: the weights of model=480p_t2v are not complete" in answer.out
    assert "HF_HUB_OFFLINE=0 hv15-batch prefetch model=480p_t2v" in answer.out


def test_a_dry_run_where_nothing_can_be_written_says_so(command: Command, prompts: Path) -> None:
    answer = command("prompts.csv", "model=tiny_t2v", "run_dir=/proc/self/run", "--dry-run")

    assert answer.code == 2
    assert answer.err == (
        "run_dir=/proc/self/run: cannot be made (No such file or directory); name a folder that "
        "can be written with run_dir=DIR.\n"
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
    assert fake_runs.typed == [("seeds",)]


# -- sweeps -----------------------------------------------------------------------------------


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
    fake_runs.ends = [3, ConfigError("refused: why."), 4, 0]

    answer = command("-m", "p.csv", "override.num_frames=1,5,9,13")

    assert answer == Answer(4, "", "In the job override.num_frames=5:\nrefused: why.\n")
    assert fake_runs.sweeps == ["1", "5", "9", "13"]


def test_a_refusal_in_a_sweep_names_all_swept_values_and_elsewhere_none(
    fake_runs: FakeRuns, command: Command
) -> None:
    fake_runs.ends = [ConfigError("no."), 0, ConfigError("no.")]

    swept = command("-m", "p.csv", "model=tiny_t2v,tiny_i2v", "experiment=null", "limit=range(1,2)")
    single = command("-m", "p.csv", "model=tiny_t2v")

    assert swept == Answer(2, "", "In the job model=tiny_t2v limit=1:\nno.\n")
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
        "hydra.hydra_logging.* may be typed; a folder is named with run_dir=DIR, and a sweep is "
        "-m.\n",
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
            "hydra.sweeper.params.limit=1: what is swept is typed as a setting, for example "
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
        (OSError(30, "Read-only file system", "x"), 2, "x: Read-only file system; correct the "),
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


# -- as a program -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("where", [">/dev/full", ">&-", "<&- >&- 2>&-"])
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


def test_main_reads_the_words_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hv15-batch", "--version"])

    assert cli.main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_two_manifests_on_one_line_are_refused(command: Command, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("prompt\na cat\n")

    answer = command("a.csv", "b.csv", "model=tiny_t2v", "--dry-run")

    message = "one manifest at a time; name one, or join the files into one.\n"
    assert answer == Answer(2, "", message)


SAGE_MISSING = (
    "runtime.attention_backend=sage: needs sageattention 2.1.1 or later, which is not installed; "
    "install it with `git clone https://github.com/thu-ml/SageAttention.git && cd SageAttention && "
    "python setup.py install`, or leave it at auto."
)
CUDNN_ON_CPU = (
    "runtime.attention_backend=_native_cudnn: needs a CUDA card, and this runs on the CPU; use "
    "auto, native, _native_flash, _native_math or flex."
)


@pytest.mark.parametrize(
    ("backend", "message"), [("sage", SAGE_MISSING), ("_native_cudnn", CUDNN_ON_CPU)]
)
def test_a_backend_that_cannot_run_here_is_refused_before_anything_is_touched(
    command: Command, tmp_path: Path, backend: str, message: str
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")

    answer = command("p.csv", "model=tiny_t2v", f"runtime.attention_backend={backend}")

    assert answer == Answer(2, "", f"{message}\n")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("backend", "message"), [("sage", SAGE_MISSING), ("_native_cudnn", CUDNN_ON_CPU)]
)
def test_a_dry_run_tells_that_a_run_would_refuse_the_backend(
    command: Command, tmp_path: Path, backend: str, message: str
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")

    answer = command("p.csv", "model=tiny_t2v", "--dry-run", f"runtime.attention_backend={backend}")

    assert answer.code == 0
    assert f"A run would be refused: {message}" in answer.out.splitlines()
    assert answer.out.count("A run would be refused") == 1
