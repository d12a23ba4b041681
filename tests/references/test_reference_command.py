"""`hv15-batch references`: what figures imply, verdicts on logs, and its document."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Answer
from fakes.published import OMNI, START

from hv15_batch.model.options import conf_dir
from hv15_batch.record import ClipRecord
from hv15_batch.references.data import read_references
from hv15_batch.rundir.log import RunLog

Command = Callable[..., Answer]

REFERENCES = read_references(conf_dir() / "reference")
DOCUMENT = Path(__file__).parents[2] / "docs" / "references.md"


def make_run(folder: Path, **changes: Any) -> Path:
    """Write a run directory with a warm clip and return it."""
    (folder / "log").mkdir(parents=True)
    log = RunLog(folder / "log", "20261122T000000-0000-abcd")
    log.append(ClipRecord(**{"run_id": "run", "started_at": START, **OMNI, **changes}))
    return folder


def test_without_a_run_every_reference_and_what_it_implies_is_shown(command: Command) -> None:
    answer = command("references")

    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert {r.name for r in REFERENCES} <= set(lines)
    assert any("8-bit only" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_verdicts_and_what_differs_are_shown_in_80_columns(
    command: Command, tmp_path: Path
) -> None:
    own = make_run(tmp_path / "own")
    card = make_run(tmp_path / "card", gpu_name="NVIDIA H100 80GB HBM3")
    frames = make_run(tmp_path / "frames", num_frames=61)

    met, of_card, of_frames = (command("references", run) for run in (own, card, frames))

    assert [answer.code for answer in (met, of_card, of_frames)] == [0, 0, 0]
    assert "vllm_omni_121: reproduced with offload=resident, attention _native_cudnn" in met.out
    assert "comfyui_rtx5090: not comparable\n" in met.out
    assert {r.name for r in REFERENCES} <= {line.partition(":")[0] for line in met.out.splitlines()}
    assert "Card: 1x H200 stated, NVIDIA H100 80GB HBM3 here." in of_card.out
    assert "Frames: 121 stated, 61 here." in of_frames.out
    for answer in (met, of_card, of_frames):
        assert max(map(len, answer.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "suspect", "quality_flag": "black"}, "1 of 1 clip is suspect (black)."),
        ({"attempt": 2}, "No clip of a full-size model, denoised and decoded at once"),
        ({"height": 320, "width": 576}, "Size: not stated; 480p or 720p counts, 320x576 here."),
    ],
    ids=["suspect", "from saved latents", "small"],
)
def test_a_peak_of_no_whole_clip_meets_no_minimum_of_memory(
    changes: dict[str, Any], message: str, command: Command, tmp_path: Path
) -> None:
    peak = {"offload": "stream", "peak_vram_device_bytes": 9 * 2**30}
    met = make_run(tmp_path / "met", **peak)
    run = make_run(tmp_path / "run", **peak, **changes)

    assert "tencent_minimum_vram: reproduced" in command("references", met).out
    answer = command("references", run)

    assert "tencent_minimum_vram: not comparable" in answer.out
    assert message in answer.out


def test_small_clips_meet_no_minimum_of_memory(command: Command, tmp_path: Path) -> None:
    small = {"height": 320, "width": 576, "num_frames": 33, "num_inference_steps": 4}
    peak = {"offload": "stream", "peak_vram_device_bytes": 7.42 * 2**30}
    run = make_run(tmp_path / "run", **small, **peak)

    answer = command("references", run)

    assert "tencent_minimum_vram: not comparable" in answer.out
    assert "Size: not stated; 480p or 720p counts, 320x576 here." in answer.out
    assert "override.num_frames=61,81,121" in answer.out


def test_the_folder_of_a_sweep_is_all_its_runs(command: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "a.sweep" / "61", num_frames=61)
    make_run(tmp_path / "a.sweep" / "121")

    answer = command("references", tmp_path / "a.sweep")

    assert (answer.code, answer.err) == (0, "")
    assert "vllm_omni_121: reproduced" in answer.out
    assert "1 other group of clips is not comparable." in answer.out


def test_what_is_no_run_directory_is_refused(command: Command) -> None:
    answer = command("references", "nowhere")

    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("nowhere: no run directory")


def test_the_example_in_the_document_is_what_the_command_prints(command: Command) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    example = text.partition("<!-- begin example -->")[2].partition("<!-- end example -->")[0]

    printed = command("references").out

    assert len(example.strip().splitlines()) > 10
    assert textwrap.dedent(example).strip() in printed
