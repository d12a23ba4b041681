"""Noise that is the same in every type, for processes with this folder on their `PYTHONPATH`.

Plain diffusers draws a clip's noise in the type of its model. For one seed, torch 2.11's CPU
generator gives other values in bfloat16 than in float32 (a correlation of 0.00 over 24,576 values
on the host of an H200; 1.00 with torch 2.13 elsewhere). Two types would be two clips then, and
their difference would say nothing of precision. Here float32 and float16 get bfloat16's values.
"""

import torch

_draw = torch.randn


def _randn(*size, generator=None, dtype=None, **keywords):  # type: ignore[no-untyped-def]
    if generator is not None and dtype in (torch.float32, torch.float16):
        drawn = _draw(*size, generator=generator, dtype=torch.bfloat16, **keywords)
        return drawn.to(dtype)
    return _draw(*size, generator=generator, dtype=dtype, **keywords)


torch.randn = _randn
