"""The dry run's table: what would be rendered, how, and why.

It has at most 24 lines, and one for each note about the manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip, glyph_texts
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.files import check_regular
from hv15_batch.forecast.cheaper import Trial, ways_in_time
from hv15_batch.forecast.forecast import Forecast, by_model, make_forecast
from hv15_batch.forecast.seconds import write_seconds
from hv15_batch.forecast.wording import (
    beside_total,
    by_size,
    memory_lines,
    quality_lines,
    size_lines,
    stages_line,
)
from hv15_batch.machine.cards import EXAMPLE
from hv15_batch.machine.machine import Machine
from hv15_batch.manifest.read import Manifest
from hv15_batch.model.options import model_options
from hv15_batch.model.step_cache import parse_step_cache
from hv15_batch.model.variant import check_recipe, off_advice
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.run.schedule import Rules, check_window
from hv15_batch.units import (
    GIB,
    MIB,
    Say,
    counted,
    format_duration,
    format_gib,
    shortened,
)
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind
from hv15_batch.weights.configs import MAX_VOCABULARY_BYTES

MAX_SETTINGS = 4
MAX_REASONS = 2
MAX_EXAMPLES = 3
MAX_REASON_CHARACTERS = 160
MAX_PROMPT_TOKENS = 1000
"""The pipeline cuts longer prompts and does not warn (`tokenizer_max_length`)."""
TEMPLATE_TAIL_TOKENS = 5
"""`<|im_end|>`, newline and the assistant's header, which follow the prompt and count too."""


def print_dry_run(
    manifest: Manifest,
    planned: Sequence[PlannedClip],
    checkpoints: Mapping[str, Checkpoint],
    beaten: Mapping[str, int],
    plan_bytes: int,
    say: Say,
) -> None:
    """Print what a run would do, grouped by equal settings.

    Args:
        manifest: What was read.
        planned: The clips that the command selects.
        checkpoints: Weights as they are on this machine, by model.
        beaten: Typed `sampling.*` values and how many rows have their own.
        plan_bytes: Size of the files that the run would leave on the disk.
        say: Prints a line.
    """
    say(
        f"{manifest.name}: {counted(len(manifest.rows), 'row')}, {counted(len(planned), 'clip')}: "
        f"{_format_states([p.state for p in planned]) or 'none'}"
    )
    for note in manifest.notes:
        say(note)
    if not planned:
        return
    for model, num_clips in Counter(p.clip.settings.model for p in planned).items():
        clips = f" ({counted(num_clips, 'clip')})" if num_clips < len(planned) else ""
        say(f"Model: {model}{clips}, {_format_weights(checkpoints[model])}")
    for line in (
        *_settings_lines(planned),
        *_reason_lines(planned),
        *_beaten_lines(beaten),
        *_glyph_lines(planned),
        *_off_recipe_lines(planned),
        _tokens_line(planned, checkpoints.values()),
        f"Disk: about {_format_bytes(plan_bytes)} for the clips to render",
    ):
        say(line)


def count_prompt_tokens(
    planned: Sequence[PlannedClip], checkpoints: Iterable[Checkpoint]
) -> dict[str, int] | None:
    """Return tokens per prompt, or None when no tokenizer is on disk; all models have the same.

    The end of the chat template is not counted; the log's `num_text_tokens` counts it too.
    """
    for checkpoint in checkpoints:
        if checkpoint.folder is None:
            continue
        file = checkpoint.folder / "tokenizer" / "tokenizer.json"
        if file.is_file():
            return _count_tokens(file, frozenset(p.clip.settings.prompt for p in planned))
    return None


@lru_cache(maxsize=1)
def _count_tokens(file: Path, prompts: frozenset[str]) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        check_regular(file, MAX_VOCABULARY_BYTES)
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own for them
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Refused(
            f"{file}: the tokenizer is damaged ({str(reason)[:200]}); delete it and fetch or copy "
            "it again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = list(prompts)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return {text: len(e.ids) for text, e in zip(texts, encoded, strict=True)}


# -- lines ------------------------------------------------------------------------------------


def _format_states(states: Sequence[State]) -> str:
    counts = Counter(states)
    return ", ".join(f"{counts[s]} {s.name}" for s in State if counts[s])


def _format_weights(checkpoint: Checkpoint) -> str:
    if checkpoint.kind is CheckpointKind.random:
        return "random weights: nothing is downloaded, and the clips are noise"
    own = _format_own(checkpoint)
    if checkpoint.kind is CheckpointKind.tiny:
        return f"built on this machine in seconds: the clips are noise on purpose{own}"
    if checkpoint.kind is CheckpointKind.demo:
        return f"part of this package, written as a checkpoint on this machine in seconds{own}"
    revision = checkpoint.engine or (checkpoint.revision or "")[:12] or "its newest revision"
    what = checkpoint.repo if checkpoint.kind is CheckpointKind.hub else str(checkpoint.folder)
    there = (
        "on disk"
        if checkpoint.folder
        else "not on disk: fetched at the start of a run; the times below do not include that"
    )
    return f"{what} at {revision}, {there}{_format_own(checkpoint)}"


def _format_own(checkpoint: Checkpoint) -> str:
    own, lacking = checkpoint.transformer, checkpoint.lacking
    if lacking is not None:
        return f"; transformer {lacking.repo}/{lacking.file}, not on disk: fetched at the start"
    if own is None:
        return ""
    size = format_gib(own.num_bytes)
    there = "converted" if own.is_made else f"to be converted once ({size} GiB)"
    return f"; transformer {own.path.name} ({own.kind}), {there}"


_shown = attrgetter(
    *("height", "width", "num_frames", "fps"),
    *("num_inference_steps", "guidance_scale", "flow_shift", "cache"),
)
"""The settings of a clip that a line of the table shows."""


def _settings_lines(planned: Sequence[PlannedClip]) -> list[str]:
    groups: dict[tuple[Any, ...], list[State]] = {}
    for p in planned:
        groups.setdefault(_shown(p.clip.settings), []).append(p.state)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{len(states):>6} x {_format_settings(*settings)} ({_format_states(states)})"
        for settings, states in largest[:MAX_SETTINGS]
    ]
    rest = largest[MAX_SETTINGS:]
    if rest:
        clips = sum(len(states) for _, states in rest)
        lines.append(f"{clips:>6} x {len(rest)} more settings")
    return lines


def _format_settings(
    height: int,
    width: int,
    frames: int,
    fps: float,
    steps: int,
    guidance: float,
    shift: float,
    cache: str | None,
) -> str:
    computed = ""
    if cache is not None:
        computed = f" ({parse_step_cache(cache).num_computed(steps)} computed, the others reused)"
    return (
        f"{height}x{width} {counted(frames, 'frame')} at {fps:g} fps, "
        f"{counted(steps, 'step')}{computed}, guidance {guidance:g}, shift {shift:g}"
    )


def _reason_lines(planned: Sequence[PlannedClip]) -> list[str]:
    reasons = Counter((p.state, p.reason) for p in planned if p.reason and not p.is_done)
    common = reasons.most_common()
    lines = [
        f"{count:>6} {state.name}: {shortened(reason, MAX_REASON_CHARACTERS)}"
        for (state, reason), count in common[:MAX_REASONS]
    ]
    if len(common) > MAX_REASONS:
        clips = sum(count for _, count in common[MAX_REASONS:])
        lines.append(f"{clips:>6} for {counted(len(common) - MAX_REASONS, 'more reason')}")
    return lines


def _beaten_lines(beaten: Mapping[str, int]) -> list[str]:
    if not beaten:
        return []
    each = ", ".join(f"sampling.{name} in {counted(rows, 'row')}" for name, rows in beaten.items())
    names = ", ".join(f"override.{name}" for name in beaten)
    return [f"Rows use their own value: {each}; {names} would replace it"]


def _glyph_lines(planned: Sequence[PlannedClip]) -> list[str]:
    texts = [glyph_texts(p.clip.settings.prompt) for p in planned]
    clips = sum(map(bool, texts))
    if not clips:
        return []
    each = list(dict.fromkeys(text for found in texts for text in found))
    some = ", ".join(f'"{shortened(text, 40)}"' for text in each[:MAX_EXAMPLES])
    more = f" and {len(each) - MAX_EXAMPLES} more" if len(each) > MAX_EXAMPLES else ""
    return [f"Glyphs: quoted text, drawn as lettering, in {counted(clips, 'clip')}: {some}{more}"]


def _off_recipe_lines(planned: Sequence[PlannedClip]) -> list[str]:
    clips = sum(_is_allowed_off_recipe(p.clip) for p in planned)
    if not clips:
        return []
    return [f"Off the checkpoint's recipe: {counted(clips, 'clip')} (runtime.allow_off_recipe)"]


def _is_allowed_off_recipe(clip: Clip) -> bool:
    """Whether it needed `runtime.allow_off_recipe`; what is only told is among the notes."""
    option, asked = model_options().get(clip.settings.model), clip.settings
    if not clip.off_recipe or option is None:
        return clip.off_recipe
    steps = asked.num_inference_steps
    size = (asked.height, asked.width)
    is_told = bool(off_advice(option, steps, asked.num_frames, asked.flow_shift, size))
    return not is_told or check_recipe(option, steps, asked.guidance_scale) is not None


def _tokens_line(planned: Sequence[PlannedClip], checkpoints: Iterable[Checkpoint]) -> str:
    tokens = count_prompt_tokens(planned, checkpoints)
    if tokens is None:
        return "Tokens: not counted, because the tokenizer is not on disk yet"
    line = f"Tokens: at most {max(tokens.values())} in a prompt, without the chat template"
    limit = MAX_PROMPT_TOKENS - TEMPLATE_TAIL_TOKENS
    long = [p.clip for p in planned if tokens[p.clip.settings.prompt] > limit]
    if not long:
        return line
    return (
        f"{line}; WARNING: {counted(len(long), 'clip')} with over {limit}; the model never "
        f"sees the rest; the first is {long[0].row_id} in line {long[0].line}"
    )


def _format_bytes(number: int) -> str:
    return f"{format_gib(number, 2)} GiB" if number >= GIB else f"{number / MIB:.1f} MiB"


_WEEK = timedelta(days=6)
"""Up to this far ahead a weekday is clear without a date."""
TryOut = Callable[[Config], Trial]
"""Returns what the same command would do with other settings; Refused if it is refused."""


def predict_run(
    config: Config,
    todo: Sequence[PlannedClip],
    machine: Machine,
    log_folder: Path,
    rules: Rules,
    try_out: TryOut,
    compiled: Mapping[str, bool] | None = None,
) -> tuple[Forecast | None, list[str]]:
    """Return the forecast, and the dry run's lines about time and memory.

    There are three lines, one for each size if there are several, one for each rule, and one if a
    deadline will be missed.

    Args:
        config: Settings, as they were typed.
        todo: The clips to render.
        machine: This one.
        log_folder: Where logs of the same card are looked for.
        rules: Deadlines and window.
        try_out: Returns what the command would do with cheaper settings.
        compiled: Whether each model is compiled, where that was decided.

    Raises:
        Refused: `runtime.card` is unknown, or a clip is longer than `window`.
    """
    forecast = make_forecast(config, todo, machine, log_folder, compiled=compiled)
    if forecast is None:
        if all(own.model.weights.is_small for own, _ in by_model(config, todo)):
            return None, []
        return None, [f"Time: no known card here; runtime.card={EXAMPLE} predicts for that one"]
    longest = max(forecast.clip_seconds(p) + write_seconds(p.clip.settings) for p in todo)
    check_window(rules.window, [(f"the longest of {len(todo)} clips", longest)])
    finishes = list(rules.finishes(forecast.lengths(todo)))
    seconds = forecast.total_seconds(todo)
    sizes = by_size(forecast, todo)
    lines = [
        f"Time: {format_duration(seconds)} in all{beside_total(forecast, todo, sizes)}, "
        f"done {format_moment(finishes[-1], rules)} ({forecast.basis})",
        *size_lines(forecast, sizes, todo),
        stages_line(forecast, todo, len(sizes) == 1),
        *memory_lines({name: own.offload for name, own in forecast.by_model.items()}),
        *quality_lines(config),
        *_rule_lines(rules, finishes),
    ]
    ends = rules.ends()
    if ends and finishes[-1] > min(ends):
        fitting = sum(finish <= min(ends) for finish in finishes)
        lines += _cheaper_lines(config, todo, rules, try_out, forecast.basis) or [
            "Cheaper: no setting tried here is fast enough"
            + (f"; limit={fitting} fits" if fitting else ", and not one clip fits")
        ]
    return forecast, lines


def format_moment(moment: datetime, rules: Rules) -> str:
    """Return a moment as weekday and time, with its date if it is over six days ahead."""
    is_near = moment - rules.clock.now() < _WEEK
    return f"{moment:%a %H:%M}" if is_near else f"{moment:%a %d %b %Y %H:%M}"


def _rule_lines(rules: Rules, finishes: Sequence[datetime]) -> list[str]:
    """Return for each rule how many clips will be finished in time."""
    now, total, lines = rules.clock.now(), len(finishes), []
    for deadline, end in zip(rules.deadlines, rules.ends(), strict=True):
        count = sum(finish <= end for finish in finishes)
        setting = "" if deadline.moment else f" ({deadline.setting})"
        lines.append(f"Until {format_moment(end, rules)}{setting}: {count} of {total} clips")
    if rules.window is not None:
        closing = rules.window.current(now)[1]
        nights = len({rules.window.current(finish - timedelta(seconds=1)) for finish in finishes})
        first = sum(finish <= closing for finish in finishes)
        lines.append(
            f"Window {rules.window.setting.partition('=')[2]}: {first} of {total} clips by "
            f"{closing:%a %H:%M}, all {total} on {finishes[-1]:%a %d %b %H:%M} "
            f"({nights} {'window' if nights == 1 else 'windows'})"
        )
    return lines


def _cheaper_lines(
    config: Config,
    todo: Sequence[PlannedClip],
    rules: Rules,
    try_out: TryOut,
    basis: str,
) -> list[str]:
    """Return a line for each change of settings with which all clips end in time.

    A line says what the change costs in quality, what the disk lacks for it, and the basis of its
    prediction if it differs from `basis`.
    """
    end, lines = min(rules.ends()), []

    def is_in_time(forecast: Forecast, clips: Sequence[PlannedClip]) -> bool:
        *_, last = rules.finishes(forecast.lengths(clips))
        return last <= end

    for found in ways_in_time(config, todo, try_out, is_in_time):
        forecast, clips = found.forecast, found.todo
        *_, last = rules.finishes(forecast.lengths(clips))
        other = "" if forecast.basis == basis else f" ({forecast.basis})"
        lack = f"; refused here until there is room: {found.lack}" if found.lack else ""
        lines.append(
            f"Cheaper: {found.way.words} would take "
            f"{format_duration(forecast.total_seconds(clips))}, "
            f"done {format_moment(last, rules)}{other}{lack}; quality: {found.way.quality}"
        )
    return lines
