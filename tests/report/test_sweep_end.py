"""What a sweep says at its end: the table of its runs, and the page that compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Answer
from fakes.pages import MEASURED, make_run, record

from hv15_batch import api
from hv15_batch.config.settings import Config
from hv15_batch.run.prepare import find_run_dir

Command = Callable[..., Answer]
SECONDS = {"resident": 100.0, "stream": 153.0}
GIBS = {"resident": 40.0, "stream": 11.6}


@dataclass
class Renders:
    """Stands for `session.run`: writes run directories of three clips."""

    codes: list[int] = field(default_factory=list)

    def __call__(
        self, config: Config, typed: object, sweep: str | None, *_: object, **__: object
    ) -> int:
        profile = config.offload.kind.name
        values: dict[str, Any] = {**MEASURED, "encode_seconds": None, "offload": profile}
        values["total_seconds"] = SECONDS[profile]
        values["peak_vram_reserved_bytes"] = int(GIBS[profile] * 2**30)
        clips = [record(f"c{n}", n, file_sha256=f"{n}", **values) for n in range(3)]
        make_run(find_run_dir(config, sweep).path, clips, clips)
        return self.codes.pop(0) if self.codes else 0


@pytest.fixture
def renders(monkeypatch: pytest.MonkeyPatch, prompts: Path) -> Renders:
    fake = Renders()
    monkeypatch.setattr(api.session, "run", fake)
    return fake


def test_the_table_is_printed_and_the_page_is_written(
    command: Command, renders: Renders, tmp_path: Path
) -> None:
    answer = command("-m", "prompts.csv", "model=480p_t2v", "offload=resident,stream")

    page = tmp_path / "outputs" / "prompts.sweep" / "comparison.html"
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "stream is 1.53 times slower than resident and needs 71 % less memory, same bits.",
        "Variant   Offload   Attention  n  median, s  p90, s  spread  peak VRAM, GiB  "
        "card's peak, GiB  Wh a clip",
        "480p_t2v  resident  \N{EN DASH}          3      100.0   100.0    0.0%  "
        "          40.0              "
        "15.0       69.4",
        "480p_t2v  stream    \N{EN DASH}          3      153.0   153.0    0.0%  "
        "          11.6              "
        "15.0       69.4",
        f"Comparison: {page}",
    ]
    assert "1.53 times slower" in page.read_text(encoding="utf-8")
    assert (page.parent / "comparison.csv").is_file()


def test_a_run_that_failed_is_compared_as_far_as_it_came(
    command: Command, renders: Renders
) -> None:
    renders.codes = [3, 0]

    answer = command("-m", "prompts.csv", "model=480p_t2v", "offload=resident,stream")

    assert answer.code == 3
    assert answer.out.startswith("stream is 1.53 times slower")


def test_an_interrupted_sweep_is_not_compared(
    command: Command, renders: Renders, tmp_path: Path
) -> None:
    renders.codes = [0, 130]

    answer = command("-m", "prompts.csv", "model=480p_t2v", "offload=resident,stream")

    assert (answer.code, answer.out) == (130, "")
    assert not (tmp_path / "outputs" / "prompts.sweep" / "comparison.html").exists()


def test_a_single_run_and_a_dry_run_are_not_compared(
    command: Command, renders: Renders, tmp_path: Path
) -> None:
    words = ("prompts.csv", "model=480p_t2v")

    assert command("-m", *words, "offload=stream").out == ""
    assert command(*words, "offload=stream").out == ""
    assert command("-m", *words, "offload=resident,stream", "--dry-run").out == ""
    assert list(tmp_path.rglob("comparison.html")) == []


def test_a_page_that_cannot_be_written_costs_a_line_and_not_the_exit_code(
    command: Command, renders: Renders, tmp_path: Path
) -> None:
    (tmp_path / "outputs" / "prompts.sweep" / "comparison.csv").mkdir(parents=True)

    answer = command("-m", "prompts.csv", "model=480p_t2v", "offload=resident,stream")

    assert answer.code == 0
    assert answer.out.startswith("the runs of this sweep are not compared (")
