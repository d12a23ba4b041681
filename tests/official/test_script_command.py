"""The command of a clip: what the dry run prints is what is run, whatever the prompt is."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from fakes.official import OfficialProject, official_project
from PIL import Image

from hv15_batch.model.official import aspect_ratio, script_size
from hv15_batch.model.shapes import bucket_size

PROMPTS = (
    "a cat",
    'it\'s "quoted" $HOME `id` \\n !x',
    "--help",
    "two\nlines\tand a tab",
    "\u202eturned \u0085 and ñ 猫",
)


def project_of(folder: Path, prompt: str, **cells: object) -> OfficialProject:
    project = official_project(folder, "")
    project.name = "prompts.jsonl"
    project.write(json.dumps({"prompt": prompt, **cells}))
    return project


def command_of(project: OfficialProject, **changes: object) -> str:
    """Return the line of the dry run with the command."""
    assert project.run(dry_run=True, manifest_literal=True, **changes) == 0
    (place,) = [n for n, line in enumerate(project.said) if line.startswith("Command of ")]
    return project.said[place + 1]


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS[1:4:2],
        *(pytest.param(prompt, marks=pytest.mark.exhaustive) for prompt in PROMPTS[::2]),
    ],
    ids=ascii,
)
def test_what_the_dry_run_prints_can_be_pasted_and_is_what_is_run(
    tmp_path: Path, prompt: str
) -> None:
    project = project_of(tmp_path, prompt)

    line = command_of(project)

    assert "\n" not in line
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    (pasted,) = project.rows()
    assert project.render(manifest_literal=True) == 0
    assert project.rows()[1] == pasted
    assert prompt in pasted or f"--prompt={prompt}" in pasted


def test_all_that_the_script_decides_by_itself_is_said(tmp_path: Path) -> None:
    project = project_of(tmp_path, "a cat", seed=7, negative_prompt="dull")

    words = shlex.split(command_of(project, official={"arguments": "--use_fp8_gemm true"}))

    torchrun = "-m torch.distributed.run --standalone --nproc_per_node=1"
    assert words[:6] == [
        *(str(project.python), *torchrun.split()),
        str(project.repo / "generate.py"),
    ]
    pairs = dict(zip(words[6::2], words[7::2], strict=True))
    file = Path(pairs.pop("--output_path"))
    assert file.parent.parent == project.run_dir.clips
    assert file.parent.name == f".script.{file.stem}"
    assert pairs == {
        "--prompt": "a cat",
        "--negative_prompt": "dull",
        "--resolution": "480p",
        "--model_path": str(project.repo / "ckpts"),
        "--aspect_ratio": "16:9",
        "--num_inference_steps": "2",
        "--video_length": "5",
        "--seed": "7",
        "--dtype": "bf16",
        "--sr": "false",
        "--rewrite": "false",
        "--cfg_distilled": "false",
        "--enable_step_distill": "false",
        "--use_fp8_gemm": "true",
    }


def test_an_image_chooses_the_task_and_a_model_its_flags(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (1, 2, 3)).save(tmp_path / "a.png")
    project = project_of(tmp_path, "a cat", image="a.png", num_inference_steps=8)
    config = project.config(model="480p_i2v_step_distilled")
    config.override.num_inference_steps = None

    line = command_of(project, model="480p_i2v_step_distilled", override=config.override)
    words = shlex.split(line)

    pairs = dict(zip(words[6::2], words[7::2], strict=True))
    assert pairs["--image_path"] == str(tmp_path / "a.png")
    assert pairs["--enable_step_distill"] == "true"
    assert pairs["--cfg_distilled"] == "false"
    assert pairs["--num_inference_steps"] == "8"
    assert "--negative_prompt" not in pairs


def test_the_one_process_gets_the_same_flags(tmp_path: Path) -> None:
    project = project_of(tmp_path, "it's a cat")

    project.run(dry_run=True, official={"load_once": True})

    (place,) = [n for n, line in enumerate(project.said) if line.startswith("Command of the one")]
    server, row = project.said[place + 1], project.said[place + 3]
    answer = subprocess.run(
        ["bash", "-c", server], input=row + "\n", capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == '{"code": 0}'
    assert project.rows() == [json.loads(row)["arguments"]]


def test_sizes_are_those_that_the_script_makes() -> None:
    assert script_size(9, 16, 640) == script_size(480, 848, 640) == (480, 848)
    assert script_size(9, 16, 960) == (720, 1280)
    assert aspect_ratio(480, 848, 640) == "16:9"
    assert aspect_ratio(848, 480, 640) == "9:16"
    assert aspect_ratio(640, 640, 640) == "1:1"
    assert aspect_ratio(512, 800, 640) == "800:512"
    # Nearest in aspect there, not more elongated than the image with diffusers.
    assert script_size(100, 118, 640) == (576, 688)
    assert bucket_size(100, 118, 640) == (592, 688)
