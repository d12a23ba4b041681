"""`hv15-batch recipe clip.mp4`: a manifest and the command that render a clip again, from its tag.

A person runs the command. Settings of the tag that would cause a download are not part of it. They
are printed beside it, so that the person decides.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hv15_batch.config.checks import check_config
from hv15_batch.config.messages import Parser
from hv15_batch.config.settings import Config, RuntimeConfig, VideoConfig
from hv15_batch.errors import EXIT_OK, Refused
from hv15_batch.manifest.cells import Faults, ManifestError, is_empty
from hv15_batch.manifest.rows import Record, RowReader, task_of_ours
from hv15_batch.manifest.unmeant import is_unmeant
from hv15_batch.media.image import read_first_frame
from hv15_batch.media.tag import ClipTag, read_clip_tag
from hv15_batch.model.architectures import definition_sha256, size_of
from hv15_batch.model.attention import is_fetched
from hv15_batch.model.options import model_options
from hv15_batch.model.step_cache import make_step_cache, parse_step_cache
from hv15_batch.model.variant import Dtype, HubFile, ModelConfig, Task, Weights
from hv15_batch.official.command import engine_notes
from hv15_batch.rundir.first_frame import find_first_frame
from hv15_batch.rundir.store import clip_file
from hv15_batch.units import format_setting

SUFFIXES = (".csv", ".jsonl")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Recipe:
    """A row and settings that render a clip again."""

    cells: dict[str, Any]
    """Cells of the manifest's one row, by column."""
    settings: tuple[str, ...]
    """Settings to type with the manifest."""
    notes: tuple[str, ...]
    """What a person must decide or find, one line each."""


def main(argv: Sequence[str], say: Callable[[str], None]) -> int:
    """Write the manifest and print the command; return the exit code.

    Raises:
        Refused: The tag cannot be used, or the manifest cannot be written.
    """
    arguments = _parser().parse_args(argv)
    tag = read_clip_tag(str(clip_file(arguments.clip)))
    path = Path(os.path.expanduser(arguments.out) if arguments.out else f"{tag.path.stem}.csv")
    if path.suffix.lower() not in SUFFIXES:
        raise Refused(f"--out {path}: the manifest's name ends in {' or '.join(SUFFIXES)}.")
    recipe = make_recipe(tag, path.absolute().parent)
    _write_new(path, _as_text(recipe.cells, path.suffix.lower()))
    say(f"{path}: written, 1 row, 1 clip")
    for note in recipe.notes:
        say(note)
    say(" ".join(["hv15-batch", *map(shlex.quote, [_as_word(path), *recipe.settings])]))
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hv15-batch recipe",
        description="Write a one-row manifest and print the command that render a clip again, "
        "from the settings in its own tag. Nothing is rendered or fetched.",
        epilog="example: hv15-batch recipe clip.mp4 --out again.csv",
        allow_abbrev=False,
    )
    parser.add_argument("clip", help="file that hv15-batch rendered, .mp4, .mkv or .mov")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="manifest to write, .csv or .jsonl; default: <name of the clip>.csv in this folder",
    )
    return parser


# -- the settings in the tag ------------------------------------------------------------------


def make_recipe(tag: ClipTag, folder: Path) -> Recipe:
    """Return the row, the settings and the notes of a clip.

    Args:
        tag: Tag of the clip.
        folder: Absolute folder of the manifest; the path of a first frame starts there.

    Raises:
        Refused: The tag has a setting that no command may have.
        ManifestError: The tag has a value that no manifest may have.
    """
    option = model_options().get(tag.settings.model)
    assert option is not None  # the tag's model is one of the options
    if tag.task is not option.task:
        raise Refused(
            f"{tag.name}: task={tag.task.name} in its tag is not that of model={option.name}; "
            "write a manifest instead."
        )
    cells = _cells(tag, option.task)
    _check_cells(cells, tag)
    notes = [*_backend_note(tag), *_weights_notes(tag, option), *_transformer_note(tag)]
    notes += [*_lora_note(tag), *engine_notes(tag.settings.engine)]
    if tag.prompt_original is not None:
        notes.append(f"Prompt: it was rewritten; the original is {tag.prompt_original!r}.")
    if option.task is Task.i2v:
        assert tag.image is not None
        image = find_first_frame(tag)
        if tag.settings.image_source is not None:
            notes.append(_frame_note(tag, image))
        elif image is None:
            notes.append(
                f"First frame: {tag.image} (SHA-256 {tag.settings.image_sha256}) is not beside the "
                "clip, nor where its run had it; put it beside the manifest, or its path into the "
                "column image."
            )
        if image is None:
            cells["image"] = tag.image
        else:
            cells["image"] = image.name if image.parent == folder else str(image)
            if tag.settings.image_source is None:
                notes += _conversion_note(tag, image)
    return Recipe(cells, (*_settings(tag, option), *_negative_prompt(tag, option)), tuple(notes))


def _cells(tag: ClipTag, task: Task) -> dict[str, Any]:
    """Return the cells of the row without its first frame."""
    asked = tag.settings
    cells = {
        "id": re.sub(r"_s[0-9]+_[0-9a-f]{8}\Z", "", tag.clip_id),
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": asked.seed,
        "height": asked.height,
        "width": asked.width,
        "num_frames": asked.num_frames,
        "num_inference_steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "flow_shift": asked.flow_shift,
        "fps": asked.fps,
    }
    if task is Task.i2v:  # the size follows from the first frame
        del cells["height"], cells["width"]
    if is_empty(asked.negative_prompt):  # no cell holds an empty text
        del cells["negative_prompt"]
    return cells


def _check_cells(cells: dict[str, Any], tag: ClipTag) -> None:
    """Check the cells like those of a manifest, and that reading them gives the same settings.

    Raises:
        ManifestError: A cell is not allowed in a manifest.
        Refused: A value would be read as another one.
    """
    faults = Faults(tag.name)
    reader = RowReader(Task.t2v, tag.path.parent, faults, task_of_ours)
    row = reader.read(0, Record(line=1, cells=cells))
    if faults:
        raise ManifestError(faults.messages)
    assert row.seeds is not None
    names = cells.keys() - {"id", "seed"}
    read = {name: getattr(row, name) for name in names}
    again = replace(tag.settings, seed=row.seeds[0], **read)
    if again.settings_sha256() != tag.settings_sha256:
        raise Refused(
            f"{tag.name}: numbers in its tag are not written as hv15-batch writes them; write a "
            "manifest instead."
        )


def _settings(tag: ClipTag, option: ModelConfig) -> Iterator[str]:
    """Yield the settings that differ from their defaults, and always the model.

    Raises:
        Refused: One of them would be refused.
    """
    asked = tag.settings
    config = Config(
        model=replace(option, weights=Weights[asked.weights]),
        runtime=RuntimeConfig(dtype=Dtype[asked.dtype], attention_backend=asked.attention_backend),
        video=tag.video,
    )
    check_config(config)
    yield f"model={asked.model}"
    values = {
        "model.weights": (asked.weights, option.weights.name),
        "model.revision": (_revision(tag, option), option.revision),
        "runtime.dtype": (asked.dtype, option.dtype.name),
        "runtime.linear": (asked.linear, None),
    }
    if option.transformer_hub.file is not None and asked.transformer_sha256 is not None:
        content = asked.transformer_sha256, option.transformer_hub.sha256
        values["model.transformer_hub.sha256"] = content
    if not is_fetched(asked.attention_backend):
        backend = RuntimeConfig().attention_backend
        values["runtime.attention_backend"] = (asked.attention_backend, backend)
    defaults = vars(VideoConfig())
    for name, value in vars(tag.video).items():
        values[f"video.{name}"] = (_typed(value), _typed(defaults[name]))
    for key, (value, default) in values.items():
        if value != default:
            yield f"{key}={value}"
    if asked.cache is not None:
        cache = parse_step_cache(asked.cache)
        make_step_cache(asked.num_inference_steps, cache.every, cache.start, cache.end)
        yield "sampling.cache=static"
        yield f"sampling.cache_every={cache.every}"
        yield f"sampling.cache_start={cache.start}"
        yield f"sampling.cache_end={cache.end}"
    if tag.off_recipe:
        yield "runtime.allow_off_recipe=true"
    if is_unmeant(asked.prompt):
        yield "manifest_literal=true"


def _negative_prompt(tag: ClipTag, option: ModelConfig) -> Iterator[str]:
    """Yield the setting for an empty negative prompt if the default is not empty."""
    asked = tag.settings.negative_prompt
    if asked is None or not is_empty(asked) or asked == option.default_sampling.negative_prompt:
        return
    yield f"override.negative_prompt={asked}"


def _typed(value: Any) -> str:
    text = str(getattr(value, "name", value))
    return text.lower() if isinstance(value, bool) else text


# -- notes: what a person decides -------------------------------------------------------------


def _backend_note(tag: ClipTag) -> Iterator[str]:
    backend = tag.settings.attention_backend
    if is_fetched(backend):
        yield (
            f"Attention: it was rendered with {backend}, which fetches code from the Hugging Face "
            "hub and runs it; a tag never decides that. To use it, add "
            f"runtime.attention_backend={backend}."
        )


def _transformer_note(tag: ClipTag) -> Iterator[str]:
    sha256 = tag.settings.transformer_sha256
    option = model_options().get(tag.settings.model)
    hub = option.transformer_hub if option else HubFile()
    if sha256 is not None and hub.file is not None:
        yield (
            f"Transformer: its file has the SHA-256 {sha256}. If {hub.file} of {hub.repo} is "
            "refused as another one, add model.transformer_file=FILE with the file that has it."
        )
    elif sha256 is not None:
        yield (
            f"Transformer: it was rendered with a file of its own (SHA-256 {sha256}); a tag never "
            "decides which file is read. To use it, add model.transformer_file=FILE."
        )


def _lora_note(tag: ClipTag) -> Iterator[str]:
    loras = tag.settings.loras or ()
    if loras:
        each = ", ".join(
            f"SHA-256 {sha256} at scale {format_setting(scale)}" for sha256, scale in loras
        )
        words = ",".join(f"{{path:FILE,scale:{format_setting(scale)}}}" for _, scale in loras)
        yield (
            f"LoRA: it was rendered with {each}; a tag never decides which file is read. To have "
            f"the same, add 'model.loras=[{words}]'."
        )


def _revision(tag: ClipTag, option: ModelConfig) -> str | None:
    """Return the revision to be typed: that of the option's own repository, or the option's."""
    is_of_hub = tag.settings.weights == Weights.pretrained.name and tag.repo == option.repo
    return tag.settings.revision if is_of_hub and tag.settings.revision else option.revision


def _weights_notes(tag: ClipTag, option: ModelConfig) -> Iterator[str]:
    """Yield which weights a person must name, or cannot get here."""
    asked = tag.settings
    if asked.weights != Weights.pretrained.name:
        here = definition_sha256(size_of(Weights[asked.weights]), option)
        if asked.revision != here:
            yield (
                f"Weights: version {tag.version!r} made them with revision {asked.revision}, and "
                f"this version makes {here}; the clip will be another."
            )
    elif tag.repo != option.repo and asked.engine is None:
        is_hub_id = _HUB_ID.fullmatch(tag.repo) is not None
        words = [f"model.repo={tag.repo}" if is_hub_id else "model.repo=FOLDER"]
        if is_hub_id and asked.revision:
            words.append(f"model.revision={asked.revision}")
        yield (
            f"Weights: they came from {tag.repo!r}, which is not the repository of "
            f"model={option.name}; a tag never decides what is loaded. To use them, add "
            f"{' '.join(words)}."
        )


# -- first frame ------------------------------------------------------------------------------


def _frame_note(tag: ClipTag, image: Path | None) -> str:
    number = (tag.settings.image_source or "").rpartition(":")[2]
    what = f"First frame: it is frame {number} of another clip (image={tag.image})"
    if image is None:
        return f"{what}, which is not kept; put an image file into the column image."
    return f"{what}, taken from {image}; the clip looks the same and has another name."


def _conversion_note(tag: ClipTag, image: Path) -> Iterator[str]:
    """Yield a line if this version converts the first frame in another way than the clip's run."""
    try:
        here = read_first_frame(str(image)).conversion
    except ValueError as error:
        yield f"First frame: {image} can no longer be used: {error}."
        return
    if here != tag.settings.image_conversion:
        yield (
            f"First frame: version {tag.version!r} made it RGB by "
            f"{tag.settings.image_conversion or 'the plain conversion'}, and this version by "
            f"{here or 'the plain conversion'}; the clip will be another."
        )


# -- the manifest -----------------------------------------------------------------------------


def _as_text(cells: Mapping[str, Any], suffix: str) -> str:
    """Return a manifest of one row; reading it gives these cells."""
    if suffix == ".jsonl":
        return json.dumps(cells, ensure_ascii=False) + "\n"
    text = io.StringIO()
    # All text in quotes, because the writer would leave a lone CR without them.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(cells)
    writer.writerow(cells.values())
    return text.getvalue()


def _write_new(path: Path, text: str) -> None:
    """Write a new file.

    Raises:
        Refused: It exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise Refused(f"{path}: exists already; name another file with --out FILE.") from None
    except OSError as error:
        raise Refused(
            f"{path}: cannot be written ({error.strerror}); name another file with --out FILE."
        ) from error


def _as_word(path: Path) -> str:
    """Return the manifest as a word to type; as a path if its name is a flag or a setting."""
    name = str(path)
    return f"manifest={name}" if name.startswith("-") or "=" in name else name


if __name__ == "__main__":  # `python -m hv15_batch.recipe` is `hv15-batch recipe`
    sys.argv[1:1] = ["recipe"]
    runpy.run_module("hv15_batch", run_name="__main__")
