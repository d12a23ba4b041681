"""Unattended, measured, reproducible batch rendering with HunyuanVideo-1.5.

The names of the Python API are imported when they are asked for: see `hv15_batch.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hv15_batch.api import (
        ClipFinished,
        Config,
        Event,
        Finished,
        LogSchemaError,
        ManifestError,
        Message,
        Outcome,
        Plan,
        Refused,
        Started,
        Stepped,
        load_config,
        plan,
        read_log,
        render,
    )

__version__ = "0.1.0"
__all__ = (
    "ClipFinished",
    "Config",
    "Event",
    "Finished",
    "LogSchemaError",
    "ManifestError",
    "Message",
    "Outcome",
    "Plan",
    "Refused",
    "Started",
    "Stepped",
    "load_config",
    "plan",
    "read_log",
    "render",
)


if not TYPE_CHECKING:  # or a type checker would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("hv15_batch.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
