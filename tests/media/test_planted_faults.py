"""Faults in a part of a clip are found, short ones are not, and a failed look costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hv15_batch.media.faults import FaultMeter

Clip = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def moving(num_frames: int = 40, seed: int = 0, size: tuple[int, int] = (64, 96)) -> Clip:
    """Return soft stripes that move slowly: uint8 [F, H, W, 3]."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    f, y, x = np.mgrid[0:num_frames, 0 : size[0], 0 : size[1]]
    waves = [np.sin(x / 9 + y / 15 + f / 8 + p) for p in phase]
    return (np.stack(waves, axis=-1) * 90 + 128).astype(np.uint8)


def found(clip: Clip) -> list[str]:
    meter = FaultMeter(len(clip))
    for frame in clip:
        meter.add(frame)
    return meter.faults()


def frozen(clip: Clip, begin: int, length: int) -> Clip:
    clip[begin : begin + length] = clip[begin]
    return clip


def black(clip: Clip, begin: int, length: int) -> Clip:
    noise = np.random.default_rng(0).integers(0, 6, clip[:length].shape, dtype=np.uint8)
    clip[begin : begin + length] = noise[: len(clip) - begin]
    return clip


def test_a_clip_that_moves_has_no_fault() -> None:
    assert found(moving()) == []
    assert found(moving(size=(720, 1280), num_frames=9)) == []


@pytest.mark.parametrize("begin", [0, 12, 32])
def test_a_part_that_stands_still_or_is_black_is_found_wherever_it_is(begin: int) -> None:
    assert found(frozen(moving(), begin, 8)) == ["freeze"]
    assert "black" in found(black(moving(), begin, 8))


@pytest.mark.parametrize("begin", [0, 12, 33])
def test_a_short_part_is_no_fault(begin: int) -> None:
    assert found(frozen(moving(), begin, 7)) == []
    assert "black" not in found(black(moving(), begin, 7))


def test_a_part_that_is_dark_but_not_black_is_no_fault() -> None:
    assert found((moving() // 4).astype(np.uint8)) == []


def test_a_cut_to_another_scene_is_found() -> None:
    other = 255 - moving(seed=1) // 2
    clip = np.concatenate([moving()[:20], other[20:]])

    assert found(clip) == ["cuts"]


def test_few_frames_have_no_faults() -> None:
    assert found(frozen(moving(5), 0, 5)) == []
    assert FaultMeter(40).faults() == []


def test_a_look_that_fails_is_no_fault_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr("hv15_batch.media.faults._graph", fail)

    assert found(frozen(moving(), 0, 20)) == []
