"""Streaming blocks through two slots, on the CPU: the same code less CUDA's streams."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from hv15_batch.engine.placement.blocks import BlockStream


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return x + scale * self.down(torch.relu(self.up(x)))


def run(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = block(x, 0.5)
    return x


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
@torch.no_grad()
def test_streamed_blocks_give_the_same_result(tmp_path: Path, count: int, on_disk: bool) -> None:
    torch.manual_seed(count)
    blocks = nn.ModuleList(Block(24) for _ in range(count))
    expected = copy.deepcopy(blocks)
    stream = BlockStream(blocks, torch.device("cpu"), tmp_path / "d" if on_disk else None)
    x = torch.randn(3, 24)

    for _ in range(2):  # opened twice: a decode in between gives the slots' memory back
        stream.open()
        for _ in range(3):
            assert torch.equal(run(blocks, x), run(expected, x))
        stream.close()
    stream.free()

    assert not any((tmp_path / "d").iterdir()) if on_disk else True


def test_closed_stream_holds_no_weights_in_the_blocks() -> None:
    blocks = nn.ModuleList(Block(8) for _ in range(4))
    stream = BlockStream(blocks, torch.device("cpu"))

    assert all(parameter.numel() == 0 for parameter in blocks.parameters())

    stream.open()
    assert blocks[0].up.weight.shape == (16, 8)
    assert blocks[0].up.weight.data_ptr() == blocks[2].up.weight.data_ptr()
    assert blocks[0].up.weight.data_ptr() != blocks[1].up.weight.data_ptr()


def test_blocks_of_different_structure_are_refused() -> None:
    blocks = nn.ModuleList([Block(8), nn.Linear(8, 8)])

    with pytest.raises(ValueError, match="differ in structure"):
        BlockStream(blocks, torch.device("cpu"))
