"""What Tencent's generate.py says while it renders: its box, its bar, its last lines.

Source of all wordings: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 generate.py,
hyvideo/pipelines/hunyuan_video_pipeline.py and hyvideo/commons/__init__.py.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from pathlib import Path

_HEADING = "HunyuanVideo Generation Task"
_RULE = re.compile(r"[\W_]{3,}")
_FRAME = " \t|\u2502\u2503\u2551"
"""What may stand around a line of the box."""
_LAST_FIELD, _LATE_FIELD = "Use Meanflow", "Attn mode"
_FIELD = re.compile(
    r"(User Prompt|Rewritten Prompt|Aspect Ratio|Video Length|Reference Image|Guidance Scale"
    r"|Guidance Embedded Scale|Shift|Seed|Video Resolution|Attn mode|Transformer dtype"
    r"|Sampling Steps|Use Meanflow):(.*)"
)
_BAR = re.compile(r"\d{1,3}%\|[^|]*\|\s*(\d+)/(\d+)\s")
_SAVED = re.compile(r"Saved (video|SR video|original video \(before SR\)) to: (.*)")
_FELL_BACK = re.compile(r"Falling back from `([^`]+)` to `([^`]+)`")
_NOT_REWRITTEN = re.compile(r"Failed to rewrite prompt:?\s*(.*)")
_CHILD_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
_ERROR = re.compile(r"(?:\[[^\]]*\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)")
_USAGE = re.compile(r"\S+: (error: .*)")
_MAX_FIELD_CHARACTERS = 200
_MAX_TEXT_CHARACTERS = 500
_MAX_END_CHARACTERS = 16_384
"""A path has at most 4,096. Source: Linux, PATH_MAX."""


class Heard(Enum):
    """What a line tells of the progress."""

    box = auto()
    """The model is loaded, and the clip begins."""
    first = auto()
    """Denoising begins: its bar stands at 0."""
    step = auto()
    """A denoising step has ended."""
    nothing = auto()


class Output:
    """What was said about one clip, line by line, from both streams."""

    def __init__(self, num_steps: int, file: Path | None = None) -> None:
        """Begin with nothing said.

        Args:
            num_steps: Denoising steps of the clip: other bars do not count.
            file: The file that was asked for; its own `Saved video to:` counts wherever it stands.
        """
        self._asked = None if file is None else str(file)
        self.box: dict[str, str] = {}
        """Fields of the box; the last of a name counts, because a prompt may have lines like it."""
        self.saved: str | None = None
        """File that it says it wrote."""
        self.saved_otherwise: list[str] = []
        """What it says of files that were not asked for, with their names."""
        self.fell_back: list[tuple[str, str]] = []
        """Attention kernels that were asked for, and what was taken instead."""
        self.not_rewritten: str | None = None
        self.child_code: int | None = None
        """Exit code of the script that torchrun reports; negative for a signal."""
        self.error: str | None = None
        """Its last line that reads like an error."""
        self.step = 0
        self._num_steps = num_steps
        self._is_in_box = self._has_box = False
        self._tail: deque[str] = deque(maxlen=5)

    def heard(self, line: str, is_error: bool = False) -> Heard:
        """Take in a line, or a state of a bar, without its end.

        Args:
            line: The text.
            is_error: It came from standard error, which has no box.
        """
        text = _cut(line.strip())
        if not text:
            return Heard.nothing
        if not is_error and (self._is_in_box or self._goes_on(text)):
            self._in_box(text)  # it holds the prompt, which may have any lines
            return Heard.nothing
        if not is_error and _HEADING in text:
            self._is_in_box, self._has_box = True, True
            return Heard.box
        bar = _BAR.search(text)
        if bar is None and not _RULE.fullmatch(text):
            self._tail.append(text[:_MAX_TEXT_CHARACTERS])
        if not is_error and self._asked is not None:
            text = _from(text, f"Saved video to: {self._asked}")
        self._notice(text)  # also behind a bar, which has no line of its own
        return Heard.nothing if bar is None else self._bar(int(bar[1]), int(bar[2]))

    def _in_box(self, text: str) -> None:
        text = text.strip(_FRAME)
        self._is_in_box = True
        if (field := _FIELD.match(text)) is not None:
            self.box[field[1]] = field[2].strip()[:_MAX_FIELD_CHARACTERS]
            self._is_in_box = not (field[1] == _LAST_FIELD and _LATE_FIELD in self.box)
        elif (saved := _SAVED.match(text)) is not None and saved[2] == self._asked:
            self._is_in_box = False
            self._notice(text)

    def _goes_on(self, text: str) -> bool:
        """Whether the box goes on behind its end, which was then a line of the prompt."""
        is_early = self._has_box and not self.step and self.saved is None
        return is_early and _FIELD.match(text.strip(_FRAME)) is not None

    def _bar(self, step: int, of: int) -> Heard:
        if not self._has_box or of != self._num_steps:
            return Heard.nothing
        if not step and not self.step:
            return Heard.first
        if not self.step < step <= of:
            return Heard.nothing
        self.step = step
        return Heard.step

    def _notice(self, text: str) -> None:
        if (saved := _SAVED.match(text)) is not None:
            if saved[1] == "video":
                self.saved = saved[2]
            else:
                self.saved_otherwise.append(f"{saved[1]} {saved[2]}"[:_MAX_TEXT_CHARACTERS])
        if (fell := _FELL_BACK.search(text)) is not None:
            self.fell_back.append((fell[1], fell[2]))
        if (failed := _NOT_REWRITTEN.search(text)) is not None:
            self.not_rewritten = failed[1][:_MAX_TEXT_CHARACTERS] or "no reason is told"
        if (code := _CHILD_CODE.search(text)) is not None:
            self.child_code = int(code[1])
        if (error := _ERROR.fullmatch(text) or _USAGE.fullmatch(text)) is not None:
            if "ChildFailedError" not in text:
                self.error = error[1][:_MAX_TEXT_CHARACTERS]

    @property
    def attention(self) -> str | None:
        """The attention kernel in effect; None where it is not told."""
        return self.fell_back[-1][1] if self.fell_back else self.box.get("Attn mode") or None

    @property
    def dtype(self) -> str | None:
        """Type of the transformer, such as `bfloat16`; None where it is not told."""
        return self.box.get("Transformer dtype", "").removeprefix("torch.") or None

    @property
    def last_words(self) -> str:
        """The best reason for a failure that it gave, on one line."""
        if self.error or not self._tail:
            return self.error or "it said nothing"
        no_warnings = [text for text in self._tail if "Warning: " not in text]
        return (no_warnings or self._tail)[-1]


def _cut(text: str) -> str:
    """Return a line without the middle of one that is very long."""
    if len(text) <= 2 * _MAX_END_CHARACTERS:
        return text
    return f"{text[:_MAX_END_CHARACTERS]}…{text[-_MAX_END_CHARACTERS:]}"


def _from(text: str, words: str) -> str:
    """Return what stands at the end of a line, behind something that had no line of its own."""
    return words if text.endswith(words) else text
