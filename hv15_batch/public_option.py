"""`--public` of the commands that write pages, and the setting that may be typed in its place.

Imports nothing slow: these commands answer `--help` at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

PUBLIC_SETTINGS = {
    "report.public=true": "--public",
    "report.public=false": "--no-public",
}
"""The setting of a run, and the option that it stands for."""


def add_public_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--public` and `--no-public`; None where neither is given, which means `default`."""
    parser.add_argument(
        "--public",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"leave hostname, folders and prompts out; default: {default}",
    )


def as_option(word: str, settings: Mapping[str, str] = PUBLIC_SETTINGS) -> str:
    """Return the option that a setting of a run stands for; any other word as it is."""
    for setting, option in settings.items():
        if word.startswith(setting):
            return option + word.removeprefix(setting)
    return word
