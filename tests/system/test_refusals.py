"""Refusals: the whole message, exit code 2, nothing touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import CARD, Answer

from hv15_batch.machine import machine
from hv15_batch.model.options import conf_dir

Command = Callable[..., Answer]
MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
OFFLOADS = sorted(path.stem for path in (conf_dir() / "offload").glob("*.yaml"))
STEP_DISTILLED_T2V = (
    "Tencent has published no step-distilled text-to-video checkpoint: theirs is 480p "
    "image-to-video (MeanFlow), and the text-to-video pipeline never passes it timestep_r, so its "
    "frames would be wrong without an error; use model=480p_t2v_4step (LightX2V's weights), "
    "model=480p_t2v_distilled, or model=480p_i2v_step_distilled with an image in every row."
)
FLAGS = (
    "The flags are --dry-run, -m (a sweep), --cfg job (the settings), --help and --version; all "
    "else is key=value."
)


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
        "name the manifest: each run of a sweep has its own folder."
    ),
    ("-m", "prompts.csv", "run_dir=one,two"): (
        "run_dir=one,two: the runs of a sweep have their own folders below one run_dir; name "
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
        f"model.task=t2v with 480p_i2v_step_distilled: {STEP_DISTILLED_T2V}"
    ),
    ("prompts.csv", "model=480p_t2v,tiny_t2v"): (
        "model=480p_t2v,tiny_t2v: several values are a sweep; add -m to run one after the other."
    ),
    ("prompts.csv", "~limit"): (
        "~limit: a setting cannot be removed; leave it out, or set it to null."
    ),
    ("prompts.csv", "video@here=1"): "video@here=1: settings are set with key=value.",
    ("prompts.csv", "video.preset=(fast"): (
        "video.preset=(fast: not understood; put a value with special characters in quotes of its "
        "own: 'video.preset=\"...\"'."
    ),
    **{
        ("prompts.csv", "model=tiny_t2v", word): (
            f"{shown}: must be a list of files, each with its path and, if it is not 1, a scale: "
            "'model.loras=[{path: a.safetensors, scale: 0.8}]'."
        )
        for word, shown in {
            "model.loras=a.safetensors:0.8": "model.loras=a.safetensors:0.8",
            "model.loras=...": "model.loras=...",
            "model.loras=[a.safetensors]": "model.loras=[a.safetensors]",
            "model.loras=[[a, 0.8]]": "model.loras=[[a, 0.8]]",
            "model.loras={path: a}": "model.loras={path: a}",
            "model.loras=[{path: a, scale: x}]": "model.loras=[{path: a, scale: x}]",
            "model.loras=[{path: a}": "model.loras=[{path: a}",
            "model.loras=null": "model.loras=null",
            "model.loras=[{file: a}]": "model.loras",
            "model.loras=[{scale: 1}]": "model.loras",
        }.items()
    },
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
    ("prompts.csv", "--resolve"): "--resolve: works with --cfg job only; leave it out.",
    ("prompts.csv", "--cfg"): "--cfg=: takes one of job, hydra, all; write it after the --cfg.",
    ("prompts.csv", "--cfg", "job", "-p"): (
        "--package=: takes a name; write it after the --package."
    ),
    ("prompts.csv", "--dry-run=1"): "--dry-run: takes no value; leave it out.",
    ("prompts.csv", "--config-dir", "no"): "--config-dir=no: there is no such folder.",
    ("prompts.csv", "runtime.dtype=float32", "runtime.linear=fp8", "--dry-run"): (
        "runtime.linear=fp8 with runtime.dtype=float32: on a card fp8 products come in bfloat16 "
        "only; use runtime.dtype=bfloat16, or runtime.linear=int8."
    ),
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
        "sweep_value=total_seconds: works in a sweep only; add -m, or leave it out."
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
        "'rendr': neither a manifest (.csv, .tsv, .json, .jsonl, .ndjson, .parquet, .txt) nor "
        "key=value nor one of the words report, status, view, references, compare, recipe, "
        "convert, prefetch, doctor. See hv15-batch --help."
    ),
    ("satus",): (
        "'satus': neither a manifest (.csv, .tsv, .json, .jsonl, .ndjson, .parquet, .txt) nor "
        "key=value nor one of the words report, status, view, references, compare, recipe, "
        "convert, prefetch, doctor. Did you mean status? See hv15-batch --help."
    ),
    ("prompts.csv", "only="): (
        "only=: names no row; give ids, for example only=a,b, or leave it out for all rows."
    ),
    ("prompts.csv", "only= ,"): (
        "only= ,: names no row; give ids, for example only=a,b, or leave it out for all rows."
    ),
    ("=",): (
        "'=': neither a manifest (.csv, .tsv, .json, .jsonl, .ndjson, .parquet, .txt) nor "
        "key=value nor one of the words report, status, view, references, compare, recipe, "
        "convert, prefetch, doctor. See hv15-batch --help."
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
        "pipeline on the CPU use model=demo_t2v, to check the manifest and plan use dry_run=true."
    ),
    ("prompts.csv", "model=tiny_t2v", "sampling.seeds=1,x"): (
        "sampling.seeds=1,x: seeds are integers from 0 to 2^63-1, and x is not one; write them "
        "like 7, like 1 2 5, like 1,2,5 or like 0..3"
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
        "experiment/mine.yaml: video.codec=mpeg: must be one of h264, ffv1, prores, png."
    ),
    ("experiment", "sampling: {heigth: 32}"): (
        "experiment/mine.yaml: there is no setting sampling.heigth. Did you mean sampling.height? "
        "All of them: hv15-batch --cfg job."
    ),
    ("experiment", "sampling: 3"): (
        "experiment/mine.yaml: a section=3: a section has members; write them below it, indented."
    ),
    ("model", "defaults: [base]"): (
        "model/mine.yaml: its defaults list names model/base, and there is no such file; "
        "correct it or add the file."
    ),
    ("experiment", "defaults: [/sampling]"): (
        "experiment/mine.yaml: its defaults list names sampling, and there is no such file; "
        "correct it or add the file."
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
        "sampling.num_frames=13: every row of p.csv has its own value, which takes precedence; to "
        "replace them all use override.num_frames=13.\n",
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


def test_a_dry_run_tells_that_a_named_card_lacks_what_8_bit_linear_modules_need(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    asked = ("p.csv", "--dry-run", "runtime.linear=fp8")

    old, new = (command(*asked, f"runtime.card={card}") for card in ("3090", "4090"))

    refusal = (
        "A run would be refused: runtime.linear=fp8: needs compute capability 8.9 or more (Ada, "
        "Hopper and Blackwell), and rtx_3090 has 8.6; use runtime.linear=int8 or "
        "runtime.linear=bf16."
    )
    assert (old.code, new.code) == (0, 0)
    assert refusal in old.out.splitlines()
    assert "would be refused" not in new.out
    assert "image stream 2.5 computed in fp8, text stream 2.5 and modulation 2.5 kept" in new.out


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


@pytest.mark.parametrize(
    ("card", "backend", "capabilities"),
    [
        ("4090", "_flash_3", "9.x, and this card has 8.9"),
        ("h200", "sage_blackwell_hub", "12.x, and this card has 9.0"),
        ("rtx_3090", "_sage_qk_int8_pv_fp8_cuda", "8.9 or later, and this card has 8.6"),
    ],
)
def test_a_kernel_without_code_for_the_card_is_refused_whether_it_is_installed_or_not(
    command: Command, tmp_path: Path, card: str, backend: str, capabilities: str
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    words = ("model.weights=random", f"runtime.card={card}", f"runtime.attention_backend={backend}")

    answer = command("p.csv", "--dry-run", *words)

    faults = [
        line
        for line in answer.out.splitlines()
        if f"be refused: runtime.attention_backend={backend}: " in line
    ]
    assert len(faults) == 1
    assert f"{backend}: needs compute capability {capabilities}; use auto, native, " in faults[0]
