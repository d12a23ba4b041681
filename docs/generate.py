"""Writes the generated pages of the reference: `python docs/generate.py`.

They come from the dataclasses, the YAML of the options and the constants. A test compares the pages
with the output of this script.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from hv15_batch import errors
from hv15_batch.config.settings import (
    OF_ONE_COMMAND,
    TYPED_ONLY,
    Config,
    ManifestColumns,
    SamplingConfig,
)
from hv15_batch.machine import cards
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import (
    Distillation,
    ModelConfig,
    SamplingDefaults,
    Task,
    Weights,
)
from hv15_batch.record import KINDS, columns
from hv15_batch.rundir.schema import SCHEMA_VERSION, arrow_schema

DOCS = Path(__file__).parent
NOTICE = "<!-- Written by docs/generate.py from the code, not by hand. -->\n"


def pages() -> dict[str, str]:
    """Return the text of each generated page by its file name."""
    return {
        "log.md": log_page(),
        "settings.md": settings_page(),
        "models.md": models_page(),
        "cards.md": cards_page(),
        "exit-codes.md": exit_codes_page(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _escaped(cell: str) -> str:
    """Return a cell in which only what stands as code keeps its angle brackets."""
    parts = cell.replace("|", "\\|").replace("\n", " ").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def code(value: object) -> str:
    """Return a value as code, or nothing for nothing."""
    return f"`{value}`" if value not in (None, "") else ""


# -- what stands below an assignment ------------------------------------------------------------


def docs_of(owner: type | ModuleType) -> dict[str, str]:
    """Return the texts that stand below the assignments of a class or module, by name."""
    statements = ast.parse(inspect.getsource(owner)).body
    if isinstance(owner, type):
        (definition,) = statements
        assert isinstance(definition, ast.ClassDef)
        statements = definition.body
    found = {}
    for statement, after in itertools.pairwise(statements):
        name = _assigned(statement)
        if name and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[name] = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
    return found


def _assigned(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return None


# -- settings -----------------------------------------------------------------------------------


def settings_page() -> str:
    """Return the page of every setting: its type, default, bounds and meaning."""
    parts = [NOTICE, _SETTINGS_HEAD]
    for title, owner, prefix in _sections():
        if title == "`override.*`":
            parts += [f"\n## {title}\n\n{_OVERRIDE}"]
            continue
        about = inspect.cleandoc(owner.__doc__ or "").split("\n")[0]
        parts += [f"\n## {title}\n\n{about}\n\n"]
        rows = list(_settings(owner, prefix))
        parts += [table(("setting", "type", "default", "allowed", "meaning"), rows)]
    return "".join(parts)


_OVERRIDE = """\
The fields of `sampling`. A value here replaces that of every row; null replaces nothing.
"""


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(code, names))


_SETTINGS_HEAD = f"""\
# Settings

This page lists every setting. Type any of them after `hv15-batch`, for example
`hv15-batch prompts.csv runtime.compile=true`, or write them into an experiment under
`conf/experiment/`. `hv15-batch prompts.csv --cfg job` prints every setting with its value. `null`
means that nothing was set.

[The life of a clip](life-of-a-clip.md#what-a-clip-is) names the settings that identify a clip: a
change of one of them makes a new clip.

These settings can start a process, open a socket or cause a download. They count only where you
type them; `resume=` never takes them from a stored configuration:
{_names(TYPED_ONLY)}.
A `runtime.attention_backend` that fetches nothing is taken over.

These settings apply to one command only; `resume=` does not take them over:
{_names(OF_ONE_COMMAND)}.
"""


def _sections() -> Iterator[tuple[str, type, str]]:
    yield "Top level", Config, ""
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield f"`{field.name}.*`", hints[field.name], f"{field.name}."


def _settings(owner: type, prefix: str) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(owner)
    docs = docs_of(SamplingConfig if owner is SamplingDefaults else owner)
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            if owner is not Config:
                yield from _settings(hint, f"{prefix}{field.name}.")
            continue
        if owner is ManifestColumns:
            docs[field.name] = f"The file's column that stands for `{field.name}`."
        if field.name not in docs:
            raise LookupError(f"{owner.__name__}.{field.name} has no text below it")
        name = f"{prefix}{field.name}"
        default = "from the YAML" if name.startswith("model.") else _default(field)
        allowed = _allowed(hint, field.metadata)
        yield code(name), _type_name(hint), default, allowed, docs[field.name]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory() if callable(field.default_factory) else None
    if isinstance(value, Enum):
        value = value.name
    if isinstance(value, bool):
        value = str(value).lower()
    return "null" if value is None else code(value) or "empty"


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for part in typing.get_args(hint) if part is not type(None))
    return (hint,)


_TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def _type_name(hint: Any) -> str:
    names = []
    for part in _members(hint):
        if isinstance(part, type) and issubclass(part, Enum):
            names.append("choice")
        elif typing.get_origin(part) is list:
            names.append("list")
        else:
            names.append(_TYPE_NAMES.get(part, "text, number or list"))
    return " or ".join(names)


def _allowed(hint: Any, metadata: Mapping[str, Any]) -> str:
    for part in _members(hint):
        if isinstance(part, type) and issubclass(part, Enum):
            return ", ".join(code(member.name) for member in part)
    if "min" not in metadata:
        return ""
    least, most = metadata["min"], metadata["max"]
    lower = f"over {least:g}" if metadata["is_over"] else f"{least:g}"
    if math.isinf(most):
        return lower if metadata["is_over"] else f"{lower} or more"
    return f"{lower} to {most:g}"


# -- models, cards, exit codes ------------------------------------------------------------------


def models_page() -> str:
    """Return the page of the model options."""
    options = model_options()
    head = ("`model=`", "task", "steps", "guidance", "shift", "size", "frames", "made for")
    full = [
        _model_row(option) for option in options.values() if option.weights is Weights.pretrained
    ]
    other = [_model_row(o) for o in options.values() if o.weights is not Weights.pretrained]
    hubs = [
        (
            code(option.name),
            code(option.repo),
            code((option.revision or "")[:12]),
            code(
                "/".join(filter(None, (option.transformer_hub.repo, option.transformer_hub.file)))
            ),
        )
        for option in options.values()
        if option.repo
    ]
    return "".join(
        (
            NOTICE,
            _MODELS_HEAD,
            "\n## HunyuanVideo-1.5\n\n",
            table(head, full),
            _MODELS_FOOT,
            "\n## Small models of the same classes\n\n",
            table(head, other),
            _HUBS_HEAD,
            table(("`model=`", "Hugging Face repository", "commit", "transformer from"), hubs),
        )
    )


_MODELS_HEAD = """\
# Models

This page lists the models that `model=NAME` chooses. Each is a YAML file under `conf/model/`. Sizes
are height x width. An image-to-video model takes its size from the first frame.
"""
_MODELS_FOOT = """
These values are the defaults of a row. A distilled model of Tencent accepts only the steps and
guidance that it was made for. `runtime.allow_off_recipe=true` permits others, and the log records
it.

Tencent has published no few-step text-to-video model. `480p_t2v_4step` has the transformer of
LightX2V, made for 4 steps, a shift of 5 and up to 81 frames. Dry run and run warn of other steps,
shifts and lengths, also of the default of 121 frames. `sampling.num_frames=81` avoids the warning.
Guidance is refused, as with the other distilled models.

Each model of this table takes [LoRA files](manifest.md#lora) that fit its tensors.
"""

_HUBS_HEAD = """
## Where the weights come from

`prefetch`, or the first run, fetches them. Without a commit here, the newest one at that time is
taken and recorded.

"""


def _model_row(option: ModelConfig) -> tuple[str, ...]:
    sampling, recipe = option.default_sampling, option.recipe
    size = "from the image" if option.task is Task.i2v else f"{sampling.height}x{sampling.width}"
    made_for = {
        Distillation.none: "any number of steps",
        Distillation.cfg: "CFG-distilled: one forward a step",
        Distillation.step: "step-distilled: one forward a step",
    }[option.distillation]
    if recipe.steps:
        made_for += ", " + " or ".join(map(str, recipe.steps)) + " steps"
    elif option.advice.steps is not None:
        made_for += f", {option.advice.steps} steps"
    if option.advice.max_frames is not None:
        made_for += f", up to {option.advice.max_frames} frames"
    if recipe.draft_steps:
        made_for += ", " + " or ".join(map(str, recipe.draft_steps)) + " for drafts"
    return (
        code(option.name),
        {Task.t2v: "text to video", Task.i2v: "image to video"}[option.task],
        str(sampling.num_inference_steps),
        f"{sampling.guidance_scale:g}",
        f"{sampling.flow_shift:g}",
        size,
        str(sampling.num_frames),
        made_for,
    )


def cards_page() -> str:
    """Return the page of the cards that predictions know."""
    rows = [
        (
            code(card.name),
            f"{card.memory_gib:g}",
            f"{card.dense_bf16_tflops:g}",
            f"{card.fp8_tflops:g}" if card.fp8_tflops else "none",
            f"{card.int8_tops:g}",
            f"{card.bandwidth_gb_per_second:g}",
            f"{card.host_gb_per_second:g}",
            ".".join(map(str, card.capability)),
            _linked(card.source),
        )
        for card in cards.CARDS
    ]
    head = ("`runtime.card=`", "memory, GiB", "bf16, TFLOP/s", "fp8", "int8", "memory, GB/s")
    return f"{NOTICE}{_CARDS_HEAD}\n{table((*head, 'host, GB/s', 'capability', 'source'), rows)}"


_CARDS_HEAD = """\
# Cards

Predictions use these vendor figures; none of them was measured by this project.
`runtime.card=NAME` predicts for a card that you do not have. bf16 and fp8 are dense rates with
fp32 accumulation, int8 is a dense rate; host is the rate between RAM and card. Other cards can
render as well, but the dry run predicts no times for them.
"""


def _linked(source: str) -> str:
    address, _, rest = source.partition(" ")
    return f"[{address.split('/')[2]}]({address}) {rest}".strip()


def exit_codes_page() -> str:
    """Return the page of the exit codes."""
    docs = docs_of(errors)
    codes = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    missing = sorted(set(codes) - set(docs))
    if missing:
        raise LookupError(f"errors.py: no text below {', '.join(missing)}")
    rows = [(str(value), docs[name]) for name, value in codes.items()]
    return f"{NOTICE}{_CODES_HEAD}\n{table(('code', 'meaning'), rows)}{_CODES_FOOT}"


_CODES_HEAD = """\
# Exit codes

A command ends with one of these codes, for scripts to read.
"""
_CODES_FOOT = """
After 3, 4, 130 and 143 the same command resumes: finished clips are not rendered again. In a sweep,
a run that fails does not end the others, and the sweep exits with the worst code.
[What can go wrong](reliability.md) has the faults behind each code.
"""


# -- the log ------------------------------------------------------------------------------------


def log_page() -> str:
    """Return the page of the log's columns."""
    schema = arrow_schema()
    parts = [NOTICE, _LOG_HEAD]
    for kind, title in KINDS.items():
        rows = [_column(schema.field(name)) for name in columns(kind)]
        parts += [f"\n## {title}\n\n", table(("column", "type", "unit", "source", "meaning"), rows)]
    return "".join(parts)


_LOG_HEAD = f"""\
# Columns of the log

This page explains each column of the log, in schema version {SCHEMA_VERSION}. The log has one row
per attempt, in `log/*.parquet` of a run directory. Each run writes Parquet files of its own, the
segments. Every column is in every segment of this version. A value that was not measured is null,
never 0. Nothing is rounded. The files describe each column in the same words:
`pyarrow.parquet.read_schema(FILE).field("denoise_seconds").metadata`. How to read segments of
several versions: [Read the log](analysis.md).

## Warm, cold, suspect

- A **cold** clip includes work that later clips do not repeat: it is a worker's first, it compiles
  or loads a model, or it is a benchmark's warm-up. Its `is_cold` is true.
- All other clips are **warm**. Seconds per clip are always a median of warm clips.
- A **suspect** clip is finished, but its frames are black, flat, frozen or clipped.
  [Settings](settings.md#quality) has the limits. How a clip looks is not judged.
"""


def _column(field: pa.Field) -> tuple[str, ...]:
    metadata = {key.decode(): value.decode() for key, value in field.metadata.items()}
    unit = "" if metadata["unit"] == "none" else metadata["unit"]
    kind = field.type
    kind = f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)
    return code(field.name), code(kind), unit, metadata["source"], metadata["about"]


if __name__ == "__main__":
    for page_name, text in pages().items():
        (DOCS / page_name).write_text(text, encoding="utf-8")
