"""The command line of a clip for Tencent's generate.py."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.files import SCRATCH
from hv15_batch.model.official import VERSIONS, aspect_ratio, typed_flags
from hv15_batch.model.variant import Dtype, Task
from hv15_batch.official.limits import SAGE, is_official, python_of, script_of, weights_of

_DTYPES = {Dtype.bfloat16.name: "bf16", Dtype.float32.name: "fp32"}
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "default"}
"""Set for the script: its lines arrive when they are written, and no warning is left out."""


class PlannedLike(Protocol):
    """What planning says of a clip."""

    @property
    def clip(self) -> Clip:
        """The clip."""


def output_file(clips: Path, clip_id: str, repeat: int | None = None) -> Path:
    """Return where the script writes a clip, before it is checked and published.

    Args:
        clips: Folder of the published clips.
        clip_id: Of the clip.
        repeat: Which repetition of a benchmark it is: the one before may still be checked.
    """
    number = "" if repeat is None else f".{repeat}"
    return clips / f"{SCRATCH}{clip_id}{number}" / f"{clip_id}.mp4"


def row_arguments(config: Config, clip: Clip, output: Path) -> list[str]:
    """Return the flags of generate.py for a clip, all that it decides by itself included.

    Args:
        config: Settings, `model` being the clip's.
        clip: The clip.
        output: File that it writes.
    """
    settings, model = clip.settings, config.model
    choosing = VERSIONS[model.name]
    values = {
        "prompt": settings.prompt,
        "resolution": model.name.partition("_")[0],
        "model_path": str(weights_of(config.official)),
        "aspect_ratio": aspect_ratio(settings.height, settings.width, model.target_size),
        "num_inference_steps": str(settings.num_inference_steps),
        "video_length": str(settings.num_frames),
        "seed": str(settings.seed),
        "dtype": _DTYPES[settings.dtype],
        "sr": "false",
        "rewrite": "false",
        **{
            name: str(name in choosing).lower() for name in ("cfg_distilled", "enable_step_distill")
        },
    }
    if settings.negative_prompt:
        values["negative_prompt"] = settings.negative_prompt
    if model.task is Task.i2v:
        assert clip.image_path is not None
        values["image_path"] = clip.image_path
    if settings.attention_backend == SAGE:
        values["use_sageattn"] = "true"
    values["output_path"] = str(output)
    words = [word for name, value in values.items() for word in _flag(name, value)]
    return words + [word for flag in typed_flags(config.official) for word in flag.words]


def _flag(name: str, value: str) -> tuple[str, ...]:
    """Return a flag as words; argparse takes a text that begins with a hyphen only behind `=`."""
    return (f"--{name}={value}",) if value.startswith("-") else (f"--{name}", value)


def row_command(config: Config, clip: Clip, output: Path) -> list[str]:
    """Return what renders one clip: torchrun with one process, as the recipe does it."""
    return [
        *(python_of(config.official), "-m", "torch.distributed.run"),
        *("--standalone", "--nproc_per_node=1"),
        str(script_of(config.official)),
        *row_arguments(config, clip, output),
    ]


SERVER = Path(__file__).parents[1] / "external" / "_serve.py"
"""Takes rows in the script's own environment."""


def serve_command(config: Config, results: str) -> list[str]:
    """Return what starts the process that loads once; `results` is its descriptor for answers."""
    script = script_of(config.official)
    return [python_of(config.official), str(SERVER), results, str(script)]


def shell_line(words: list[str]) -> str:
    """Return a command as one line to paste into bash."""
    return " ".join(map(_quoted, words))


_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ufeff"
    "\U000e0000-\U000e007f]"
)
"""What a terminal obeys or hides, see `redaction`."""


def _quoted(word: str) -> str:
    r"""Return a word for bash on one line; control characters are written out, as `$'a\nb'`."""
    if not _CONTROL.search(word):
        return shlex.quote(word)
    text = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(_escaped(text)) + "'"


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        if not _CONTROL.fullmatch(character):
            yield character
        elif ord(character) < 0x80:
            yield f"\\x{ord(character):02x}" if character != "\n" else "\\n"
        else:
            code = ord(character)
            yield f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def command_lines(
    config_of: Callable[[str], Config], todo: Sequence[PlannedLike], clips: Path
) -> list[str]:
    """Return the dry run's lines with the command of the first clip; none for another engine.

    Args:
        config_of: Returns the settings of a model by its name.
        todo: What is to be rendered.
        clips: Folder of the published clips.
    """
    first = next((each.clip for each in todo if not each.clip.is_pending), None)
    if first is None or not is_official(config := config_of(first.settings.model)):
        return []
    file = output_file(clips, first.clip_id)
    if not config.official.load_once:
        return [
            f"Command of {first.clip_id}, with torchrun as a module:",
            shell_line(row_command(config, first, file)),
        ]
    return [
        "Command of the one process, which takes rows as JSON lines and answers on descriptor 3:",
        f"{shell_line(serve_command(config, '3'))} 3>&1",
        f"Line of {first.clip_id}:",
        json.dumps({"arguments": row_arguments(config, first, file)}),
    ]


def engine_notes(engine: str | None) -> list[str]:
    """Return what a person must type to render a clip of this engine again; nothing of diffusers.

    Args:
        engine: `ClipSettings.engine`, of a file's tag.
    """
    if engine is None:
        return []
    name, *parts = engine.split(" ")
    flags = " ".join(f"--{flag.replace('=', ' ', 1)}" for flag in parts[2:])
    typed = f" official.arguments={shlex.quote(flags)}" if flags else ""
    return [
        f"Engine: it was rendered by Tencent's script ({name}); a tag never decides what is run. "
        "To use it, add runtime.engine=official official.repo=DIR official.python=PYTHON"
        f"{typed}."
    ]
