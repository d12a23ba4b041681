"""Stage times, peaks, machine facts, and what is seen of bad frames."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from fakes.pipelines import T2V, a_clip

from hv15_batch.config.settings import QualityConfig
from hv15_batch.engine._measure import (
    StageMeter,
    StepClock,
    machine_columns,
    peak_ram_bytes,
    work_columns,
)
from hv15_batch.engine._quality import Quality, QualityMeter
from hv15_batch.engine.device import device_fault
from hv15_batch.engine.encode.cache import Conditioning, TextEmbedding
from hv15_batch.record import ClipRecord

CPU = torch.device("cpu")
COLUMNS = {field.name for field in fields(ClipRecord)}


def test_a_stage_has_its_seconds_and_on_the_cpu_no_vram() -> None:
    meter = StageMeter(CPU)

    with meter.stage("denoise"):
        time.sleep(0.02)
    with meter.stage("write", on_device=False):
        pass

    columns = meter.columns()
    assert 0.02 <= float(columns["denoise_seconds"] or 0) < 5
    assert columns["write_seconds"] is not None
    assert columns["denoise_peak_vram_allocated_bytes"] is None
    assert columns["peak_vram_allocated_bytes"] is None
    assert "decode_seconds" not in columns
    assert "num_alloc_retries" not in columns


def test_measured_columns_exist_in_the_log() -> None:
    meter = StageMeter(CPU)
    for name in ("load", "encode", "denoise", "decode", "write"):
        with meter.stage(name):
            pass

    assert set(meter.columns()) <= COLUMNS
    assert set(machine_columns(CPU)) <= COLUMNS


@pytest.mark.parametrize("linear", [None, "fp8", "int8"])
def test_8_bit_linear_modules_have_no_share_of_the_16_bit_rate(linear: str | None) -> None:
    text = TextEmbedding(torch.zeros(1, 60, 8), None)
    settings = a_clip(T2V, dtype="bfloat16", linear=linear).settings

    conditioning = Conditioning(text, None, None)

    columns = work_columns(settings, conditioning, 2.0, "NVIDIA H200", "_native_cudnn")

    assert columns["tflops"] > 0
    assert (columns["mfu"] is None) == (linear is not None)


def test_a_stage_that_is_entered_twice_adds_up_and_one_that_fails_counts() -> None:
    meter = StageMeter(CPU)

    with meter.stage("decode"):
        time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), meter.stage("decode"):
        fail_late()

    assert meter.stages["decode"].seconds >= 0.02


def fail_late() -> None:
    time.sleep(0.01)
    raise ZeroDivisionError


def test_a_step_clock_gives_the_time_between_marks() -> None:
    clock = StepClock(CPU)

    clock.mark()
    time.sleep(0.01)
    clock.mark()
    clock.mark()

    first, second = clock.seconds()
    assert first >= 0.01 > second


def test_peak_ram_is_read_in_bytes_and_unknown_is_none(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  99 kB\nVmHWM:\t  12 kB\n")

    assert peak_ram_bytes(status) == 12 * 1024
    assert peak_ram_bytes(tmp_path / "none") is None


def test_machine_columns_without_a_card_are_null_but_versions_are_known() -> None:
    columns = machine_columns(CPU)

    assert columns["torch_version"] == torch.__version__
    assert columns["diffusers_version"]
    assert [columns[name] for name in ("gpu_name", "gpu_uuid", "gpu_index")] == [None] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_peaks_on_a_card_belong_to_their_stage() -> None:
    device = torch.device("cuda", 0)
    meter = StageMeter(device)

    with meter.stage("denoise"):
        torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    with meter.stage("decode"):
        torch.zeros(16 << 20, dtype=torch.uint8, device=device)

    denoise, decode = meter.stages["denoise"], meter.stages["decode"]
    assert denoise.peak_vram_allocated_bytes is not None
    assert decode.peak_vram_allocated_bytes is not None
    assert denoise.peak_vram_allocated_bytes - decode.peak_vram_allocated_bytes == 48 << 20
    columns = meter.columns()
    assert columns["peak_vram_allocated_bytes"] == denoise.peak_vram_allocated_bytes
    assert columns["num_alloc_retries"] == 0
    assert machine_columns(device)["gpu_uuid"].startswith("GPU-")


def noise(frames: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 255, (frames, 24, 32, 3), generator=generator, dtype=torch.uint8)


def filled(value: int) -> torch.Tensor:
    return torch.full((6, 24, 32, 3), value, dtype=torch.uint8)


def measured(*pieces: torch.Tensor) -> Quality:
    meter = QualityMeter()
    for frames in pieces:
        meter.add(frames)
    return meter.quality(QualityConfig())


@pytest.mark.parametrize(
    ("frames", "flag"),
    [
        (noise(), None),
        (filled(0), "black"),
        (filled(3), "black"),
        (filled(128), "flat"),
        (noise(1).repeat(6, 1, 1, 1), "frozen"),
        (noise(1), None),
        ((noise() > 127) * torch.tensor(255, dtype=torch.uint8), "clipped"),
    ],
    ids=["moving", "black", "nearly_black", "flat", "frozen", "single_frame", "clipped"],
)
def test_bad_frames_are_named(frames: torch.Tensor, flag: str | None) -> None:
    assert measured(frames).quality_flag == flag


def test_measures_equal_those_of_all_frames_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(7)
    frames[2, :12] = 255
    frames[3, :, :8] = 0
    luma = (frames.double() * torch.tensor([0.2126, 0.7152, 0.0722])).sum(-1)

    for pixels, first in ((1, 1), (24 * 32 * 3, 4), (10**9, 7)):
        monkeypatch.setattr("hv15_batch.engine._quality._CHUNK_PIXELS", pixels)
        quality = measured(*frames.split([first, 7 - first]))

        assert quality.luma_mean == pytest.approx(luma.mean().item(), rel=1e-6)
        assert quality.luma_std == pytest.approx(luma.std(correction=0).item(), rel=1e-6)
        assert quality.frame_difference_mean == pytest.approx(
            luma.diff(dim=0).abs().mean().item(), rel=1e-6
        )
        extreme = ((frames == 0) | (frames == 255)).double().mean().item()
        assert quality.clipped_pixel_share == pytest.approx(extreme)


def test_the_deviation_of_equal_pixels_is_zero() -> None:
    assert measured(filled(77)).luma_std < 1e-3


def test_a_single_frame_has_no_difference() -> None:
    assert measured(noise(1)).frame_difference_mean is None


# -- a device that is lost --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", False),
        ("the latents are not finite", False),
    ],
)
def test_without_a_card_the_message_says_whether_the_device_is_lost(
    message: str, fault: bool
) -> None:
    expected = f"RuntimeError: {message}" if fault else None

    assert device_fault(CPU, "RuntimeError", message) == expected


_BREAKS = """
import torch
from hv15_batch.engine.device import device_fault
from hv15_batch.engine.encode.cache import Conditioning, TextEmbedding
card = torch.device("cuda", 0)
try:
    torch.ones(3, device=card) @ torch.ones(4, device=card)
except RuntimeError as error:
    print(device_fault(card, "RuntimeError", str(error)))
try:
    torch.empty(2**50, dtype=torch.uint8, device=card)
except torch.OutOfMemoryError as error:
    print(device_fault(card, "OutOfMemoryError", str(error)))
try:
    torch.ones(3, device=card)[torch.tensor([7], device=card)].sum().item()
except RuntimeError as error:
    print(device_fault(card, type(error).__name__, str(error)))
"""


@pytest.mark.gpu
def test_a_broken_cuda_context_is_told_from_errors_after_which_the_card_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BREAKS], capture_output=True, text=True, check=False
    )

    assert done.stdout.splitlines() == [
        "None",
        "None",
        "AcceleratorError: CUDA error: device-side assert triggered",
    ]
