"""What `hv15-batch doctor` finds on machines of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Answer

from hv15_batch import doctor
from hv15_batch.config.messages import WORDS
from hv15_batch.doctor import Finding, Verdict, findings, present_models
from hv15_batch.machine.machine import Machine, read_machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.units import GIB

CARD = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", 24 * GIB, 23 * GIB, "580.95", 450.0)
MACHINE = replace(
    read_machine(),
    gpus=(CARD,),
    ram_total_bytes=64 * GIB,
    ram_available_bytes=60 * GIB,
    torch_version="2.13.0",
)
SOFTWARE = {"torch_cuda_version": "13.0", "driver_cuda_version": "13.1"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of weights, on a disk with room for them."""
    monkeypatch.setattr(doctor, "hub_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "free_disk_bytes", lambda _: 500 * GIB)
    return tmp_path


def found(machine: Machine = MACHINE, **software: Any) -> list[Finding]:
    return list(findings(machine, SOFTWARE | software))


def stops(found: list[Finding]) -> list[str]:
    return [finding.text for finding in found if finding.verdict is Verdict.stops]


def test_a_machine_that_can_render_has_nothing_that_stops_it() -> None:
    assert stops(found()) == []
    assert (
        found()[0].text == "Card 0: NVIDIA GeForce RTX 4090, 23.0 of 24.0 GiB free, driver 580.95"
    )
    assert any("auto takes _native_flash" in finding.text for finding in found())


def test_without_a_card_it_says_what_to_look_at() -> None:
    (first, *_) = found(replace(MACHINE, gpus=()))

    assert first.verdict is Verdict.stops
    assert "CUDA_VISIBLE_DEVICES" in first.advice


def test_torch_for_the_cpu_stops_a_machine_with_a_card() -> None:
    assert stops(found(torch_cuda_version=None)) == ["PyTorch 2.13.0: built for the CPU only"]


def test_a_driver_that_is_too_old_for_torch_is_named() -> None:
    (finding,) = [f for f in found(driver_cuda_version="12.8") if f.verdict is Verdict.stops]

    assert finding.text == "PyTorch 2.13.0: built for CUDA 13.0"
    assert "the driver runs CUDA 12.8" in finding.advice


def test_a_driver_of_the_same_generation_will_do() -> None:
    assert stops(found(torch_cuda_version="13.2", driver_cuda_version="13.0")) == []


def test_a_disk_without_room_for_weights_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "free_disk_bytes", lambda _: 20 * GIB)

    (finding,) = [f for f in found() if f.verdict is Verdict.stops]

    assert "HF_HOME" in finding.advice


@pytest.mark.parametrize(
    ("machine", "advice"),
    [
        (replace(MACHINE, gpus=(replace(CARD, total_bytes=6 * GIB),)), "needs 8 GiB"),
        (replace(MACHINE, gpus=(replace(CARD, name="NVIDIA RTX 9999"),)), "after a first run"),
        (replace(MACHINE, ram_available_bytes=16 * GIB), "offload=stream_disk"),
    ],
)
def test_what_could_be_better_is_a_note(machine: Machine, advice: str) -> None:
    assert stops(found(machine)) == []
    assert any(advice in finding.advice for finding in found(machine))


def test_without_weights_the_command_that_fetches_them_is_named() -> None:
    assert present_models() == ([], [])
    assert any("hv15-batch prefetch" in finding.advice for finding in found())


def test_the_exit_code_says_whether_a_full_size_model_can_render(
    command: Callable[..., Answer],
) -> None:
    answer = command("doctor")

    assert (answer.code, answer.err) == (2, "")
    assert answer.out.startswith("stops Card: none visible")
    assert "      -> " in answer.out


@pytest.mark.parametrize("word", WORDS)
def test_each_word_has_a_help_with_an_example(command: Callable[..., Answer], word: str) -> None:
    answer = command(word, "--help")

    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"usage: hv15-batch {word}")
    assert f"example: hv15-batch {word}" in answer.out
