"""`hv15-batch references`: verdicts on logs, claims that are refused, and its document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_fakes import Answer
from test_reference_check import OMNI, START

from hv15_batch.config import conf_dir
from hv15_batch.records import ClipRecord
from hv15_batch.reference_text import format_combinations_markdown, format_references_markdown
from hv15_batch.references import read_references
from hv15_batch.runlog import RunLog

Command = Callable[..., Answer]

REFERENCES = read_references(conf_dir() / "reference")
DOCUMENT = Path(__file__).parents[1] / "docs" / "references.md"


def make_run(folder: Path, **changes: Any) -> Path:
    """Write a run directory with a warm clip and return it."""
    (folder / "log").mkdir(parents=True)
    log = RunLog(folder / "log", "run")
    log.append(ClipRecord(**{"run_id": "run", "started_at": START, **OMNI, **changes}))
    return folder


def test_without_a_run_every_reference_and_what_it_implies_is_shown(command: Command) -> None:
    answer = command("references")

    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert {r.name for r in REFERENCES} <= set(lines)
    assert any("8-bit only" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_verdicts_are_shown_in_80_columns_and_as_markdown(command: Command, tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs" / "a")

    text, markdown = command("references", run), command("references", run, "--markdown")

    assert (text.code, markdown.code) == (0, 0)
    assert "vllm_omni_121: reproduced with offload=resident, attention _native_cudnn" in text.out
    assert "comfyui_rtx5090: not comparable\n" in text.out
    assert max(map(len, text.out.splitlines())) <= 80
    table = [line for line in markdown.out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(REFERENCES)
    assert len({line.count("|") for line in table}) == 1


def test_a_claim_from_another_cards_log_or_with_other_settings_exits_2(
    command: Command, tmp_path: Path
) -> None:
    own = make_run(tmp_path / "own")
    card = make_run(tmp_path / "card", gpu_name="NVIDIA H100 80GB HBM3")
    frames = make_run(tmp_path / "frames", num_frames=61)

    claim = ("--claim", "vllm_omni_121")
    granted = command("references", own, *claim)
    of_card, of_frames = command("references", card, *claim), command("references", frames, *claim)

    assert granted.code == 0
    assert granted.out.startswith("vllm_omni_121: reproduced with offload=resident, attention")
    assert (of_card.code, of_card.out) == (2, "")
    assert "Card: 1x H200 stated, NVIDIA H100 80GB HBM3 here." in of_card.err
    assert (of_frames.code, of_frames.out) == (2, "")
    assert "Frames: 121 stated, 61 here." in of_frames.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "suspect", "quality_flag": "black"}, "1 of 1 clip is suspect (black)."),
        ({"attempt": 2}, "No clip of a full-size model, denoised and decoded at once"),
    ],
    ids=["suspect", "from saved latents"],
)
def test_a_peak_of_no_whole_clip_is_refused_as_a_claim(
    changes: dict[str, Any], message: str, command: Command, tmp_path: Path
) -> None:
    peak = {"offload": "stream", "peak_vram_device_bytes": 9 * 2**30}
    run = make_run(tmp_path / "run", **peak, **changes)

    answer = command("references", run, "--claim", "tencent_minimum_vram")

    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_small_clips_meet_no_minimum_of_memory(command: Command, tmp_path: Path) -> None:
    small = {"height": 320, "width": 576, "num_frames": 33, "num_inference_steps": 4}
    peak = {"offload": "stream", "peak_vram_device_bytes": 7.42 * 2**30}
    run = make_run(tmp_path / "run", **small, **peak)

    answer = command("references", run, "--claim", "tencent_minimum_vram")

    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("--claim tencent_minimum_vram: not comparable")
    assert "Size: not stated; 480p or 720p counts, 320x576 here." in answer.err
    assert "override.num_frames=61,81,121" in answer.err


def test_the_folder_of_a_sweep_is_all_its_runs(command: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "a.sweep" / "61", num_frames=61)
    make_run(tmp_path / "a.sweep" / "121")

    answer = command("references", tmp_path / "a.sweep", "--claim", "vllm_omni_121")

    assert answer.code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere: no run directory"),
        (("--claim", "vllm_omni_121"), "--claim vllm_omni_121: a claim needs a log"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: tuple[str, ...], message: str, command: Command
) -> None:
    answer = command("references", *words)

    assert answer.code == 2
    assert answer.err.startswith(message)


@pytest.mark.parametrize(
    ("name", "make"),
    [("references", format_references_markdown), ("combinations", format_combinations_markdown)],
)
def test_the_document_holds_the_tables_that_the_command_prints(
    name: str, make: Callable[..., str]
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"

    held = text[text.index(begin) + len(begin) : text.index(end)]

    assert held.strip() == make(REFERENCES).strip()
