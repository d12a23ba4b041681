"""Writes the generated pages of the reference: `python docs/generate.py`.

They come from the dataclasses, the YAML of the options and the constants. A test compares the pages
with the output of this script.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from _settings import settings_page
from _text import NOTICE, code, docs_of, table

from hv15_batch import errors
from hv15_batch.machine import cards
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import (
    Distillation,
    ModelConfig,
    Task,
    Weights,
)
from hv15_batch.record import KINDS, columns
from hv15_batch.rundir.schema import SCHEMA_VERSION, arrow_schema

DOCS = Path(__file__).parent


def pages() -> dict[str, str]:
    """Return the text of each generated page by its file name."""
    return {
        "log.md": log_page(),
        "settings.md": settings_page(),
        "models.md": models_page(),
        "cards.md": cards_page(),
        "exit-codes.md": exit_codes_page(),
    }


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
per attempt, in `log/*.parquet` of a run directory, and in `shards/*/log/*.parquet` if shards
rendered there. Each run writes Parquet files of its own, the
segments. Every column is in every segment of this version. A value that was not measured is null,
never 0. Nothing is rounded. The files describe each column in the same words:
`pyarrow.parquet.read_schema(FILE).field("denoise_seconds").metadata`. How to read segments of
several versions: [Read the log](analysis.md).

## Warm, cold, suspect

- A **cold** clip includes work that later clips do not repeat: it is a worker's first, it compiles
  or loads a model, or it is a benchmark's warm-up. Its `is_cold` is true.
- All other clips are **warm**. Seconds per clip are always a median of warm clips.
- A **suspect** clip is finished, but its frames are black, flat, frozen or clipped, or a part of it
  stands still (`freeze`), is black, or cuts (`cuts`). [Settings](settings.md#quality) has the
  limits. This finds bad clips, not pretty ones: how a clip looks is not judged.
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
