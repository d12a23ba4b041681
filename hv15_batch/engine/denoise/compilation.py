"""Compilation of the transformer blocks: done, counted, and read back.

How often dynamo compiles for a list of clips (torch 2.13, all blocks sharing one code): once for
the first size, with its numbers fixed; at the second size twice, the number of tokens becoming a
variable, once for the first block, whose video is a view, and once for the others; from then on
never, since that code takes every size. A size that comes back is not compiled again, so the order
of the clips does not matter. Prompts differ in length, which is a variable from the start.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import counters

from hv15_batch.engine.denoise.attention import is_mask_free

MAX_CODES = 1024
"""Three for sizes, times the sets of modules that LoRAs change; each block may have its own set."""


def compile_blocks(transformer: Any) -> None:
    """Compile each block's forward, all blocks sharing the code of the first.

    Not `compile_repeated_blocks`: that compiles a block's call, hooks and a replaced `forward`
    included, so that streamed blocks could not be compiled.
    """
    _allow_many_codes()
    mask_free = is_mask_free(transformer)
    for block in transformer.transformer_blocks:
        compiled = torch.compile(block.forward, fullgraph=True)
        block.forward = _with_dynamic_text(compiled, mask_free)


def _allow_many_codes() -> None:
    """Let dynamo keep a code for each set of modules that a LoRA changes, at each size.

    The usual limit is 8, which makes a clip fail here, since blocks are compiled as full graphs.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_CODES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * MAX_CODES)


def num_compilations() -> int:
    """Return how many graphs have been compiled in this process so far.

    A clip during which the number grows has paid for compilation.
    """
    return int(counters["stats"]["unique_graphs"])


def is_compiled(transformer: Any) -> bool:
    """Whether every block runs compiled, read back from what is called for its forward.

    False too where TORCHDYNAMO_DISABLE=1 switches torch's compiler off.
    """
    return all(_is_compiled(block.forward) for block in transformer.transformer_blocks)


def _is_compiled(forward: Callable[..., Any]) -> bool:
    return _is_of_dynamo(inspect.unwrap(forward, stop=_is_of_dynamo))


def _is_of_dynamo(function: Callable[..., Any]) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable")


def _with_dynamic_text(forward: Callable[..., Any], mask_free: bool) -> Callable[..., Any]:
    # Not the attributes: dynamo keeps its own there.
    @functools.wraps(forward, updated=())
    def forward_(
        video: torch.Tensor,
        text: torch.Tensor,
        temb: torch.Tensor,
        mask: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
    ) -> Any:
        torch._dynamo.maybe_mark_dynamic(text, 1)
        # Without padding the mask is not read, but its length would be guarded on.
        return forward(video, text, temb, None if mask_free else mask, rope)

    return forward_
