"""Whether Tencent's generate.py made the clip that was asked for: exit, words and file agree."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hv15_batch.official.output import Output

FELL_BACK = "AttentionFellBack"
NOT_REWRITTEN = "RewriteFailed"
NOT_AS_ASKED = "NotAsAsked"
NO_FILE = "OutputMissing"
NO_WORD = "OutputUnconfirmed"
EXITED = "ScriptFailed"
DAMAGED = "OutputDamaged"
CHANGED = "ScriptChanged"
SAGE_MODE = "sage"
"""How the script's names of SageAttention begin."""


class ScriptFault(Exception):
    """The script did not make the clip that was asked for."""

    def __init__(self, kind: str, text: str) -> None:
        """Take the log's `error_type` and its message."""
        super().__init__(text)
        self.kind = kind


def check_words(
    output: Output, exit_code: int | None, file: Path, *, seed: int, asks_for_sage: bool
) -> None:
    """Check all that the script says, and that its file is there.

    Args:
        output: What it said.
        exit_code: Of the process, negative for a signal; None where it was lost.
        file: The file that was asked for.
        seed: That was asked for.
        asks_for_sage: Whether SageAttention was asked for.

    Raises:
        ScriptFault: It failed, or says something else than was asked for.
    """
    if exit_code != 0:
        raise ScriptFault(EXITED, f"generate.py {_ending(output, exit_code)}: {output.last_words}")
    if output.not_rewritten is not None:
        raise ScriptFault(
            NOT_REWRITTEN, f"generate.py could not rewrite the prompt: {output.not_rewritten}"
        )
    _check_attention(output, asks_for_sage)
    if output.saved_otherwise:
        raise ScriptFault(
            NOT_AS_ASKED, f"generate.py saved what was not asked for: {output.saved_otherwise[0]}"
        )
    if output.saved is None:
        raise ScriptFault(NO_WORD, "generate.py ended with 0 and did not say that it saved a video")
    if not _is_same(output.saved, file):
        raise ScriptFault(
            NOT_AS_ASKED, f"generate.py saved {output.saved}, and {file} was asked for"
        )
    told = output.box.get("Seed")
    if told is not None and told != str(seed):
        raise ScriptFault(NOT_AS_ASKED, f"generate.py used the seed {told}, and not {seed}")
    if not file.is_file() or file.is_symlink() or not file.stat().st_size:
        raise ScriptFault(NO_FILE, "generate.py ended with 0 and left no video in its file")


def _check_attention(output: Output, asks_for_sage: bool) -> None:
    for asked, taken in output.fell_back:
        if asks_for_sage or asked.startswith(SAGE_MODE):
            raise ScriptFault(
                FELL_BACK,
                f"generate.py fell back from {asked} to {taken}; install SageAttention in its "
                "environment, or do not ask for it",
            )
    mode = output.box.get("Attn mode")
    if not mode:
        raise ScriptFault(NO_WORD, "generate.py did not say which attention it used")
    if asks_for_sage and not mode.startswith(SAGE_MODE):
        raise ScriptFault(FELL_BACK, f"generate.py used {mode}, and not SageAttention")
    if mode.startswith(SAGE_MODE) and not asks_for_sage:
        raise ScriptFault(NOT_AS_ASKED, f"generate.py used {mode}, which was not asked for")


def _ending(output: Output, exit_code: int | None) -> str:
    code = exit_code if output.child_code is None else output.child_code
    if code is None:
        return "was lost"
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"


def _is_same(told: str, file: Path) -> bool:
    return os.path.realpath(told) == os.path.realpath(file)
