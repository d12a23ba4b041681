"""Packages that are not installed, and pretend to be."""

from __future__ import annotations

from importlib import metadata

import pytest


def install(patch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let these distributions be installed too."""
    real = metadata.version
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    patch.setattr(metadata, "version", lambda n: named.get(n.replace("_", "-")) or real(n))
