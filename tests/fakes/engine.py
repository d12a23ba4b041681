"""The real renderer without a process of its own, and what compiling needs."""

from __future__ import annotations

import pytest
from torch._inductor import cpp_builder

from fakes.runs import FakeExecutor
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.engine.render import ClipRenderer


class InProcessExecutor(FakeExecutor):
    """The real renderer without a process of its own, so that a fault can be planted."""

    def __init__(self, spec: ExecutorSpec) -> None:
        super().__init__(spec, ClipRenderer)


def why_no_compiler() -> str:
    """Return why nothing can be compiled on this machine, or an empty text."""
    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # torch raises its own kinds
        return f"torch.compile needs a C++ compiler: {error}"
    return ""


NO_COMPILER = why_no_compiler()
needs_compiler = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is one")
