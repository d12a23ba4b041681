"""The dry run's table: what would be rendered, how, and why. At most 20 lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from hv15_batch.checkpoint import Checkpoint, CheckpointKind
from hv15_batch.clip import ClipSettings
from hv15_batch.manifest import Manifest
from hv15_batch.plan import PlannedClip, State, glyph_texts

MAX_SETTINGS = 4
MAX_REASONS = 2
MAX_EXAMPLES = 3
MAX_REASON_CHARACTERS = 160
MAX_PROMPT_TOKENS = 1000
"""The pipeline cuts longer prompts without a word (`tokenizer_max_length`)."""
TEMPLATE_TAIL_TOKENS = 5
"""`<|im_end|>`, newline and the assistant's header, which follow the prompt and count too."""

_Settings = tuple[int, int, int, int, float, float, float]


def print_dry_run(
    manifest: Manifest,
    planned: Sequence[PlannedClip],
    checkpoint: Checkpoint,
    beaten: Mapping[str, int],
    plan_bytes: int,
    say: Callable[[str], None],
) -> None:
    """Print what a run would do, grouped by equal settings.

    Args:
        manifest: What was read.
        planned: The clips that the run would be about.
        checkpoint: Weights as they are on this machine.
        beaten: Typed `sampling.*` values and how many rows have their own.
        plan_bytes: What the run would leave on the disk.
        say: Prints a line.
    """
    say(
        f"{manifest.name}: {_count(len(manifest.rows), 'row')}, {_count(len(planned), 'clip')}: "
        f"{_format_states([p.state for p in planned]) or 'none'}"
    )
    if not planned:
        return
    model = planned[0].clip.settings.model
    say(f"Model: {model}, {_format_weights(checkpoint)}")
    for line in (
        *_settings_lines(planned),
        *_reason_lines(planned),
        *_beaten_lines(beaten),
        *_glyph_lines(planned),
        *_off_recipe_lines(planned),
        _tokens_line(planned, checkpoint),
        f"Disk: about {_format_bytes(plan_bytes)} for what is to be rendered",
    ):
        say(line)


def count_prompt_tokens(
    planned: Sequence[PlannedClip], checkpoint: Checkpoint
) -> dict[str, int] | None:
    """Return tokens per prompt, or None when no tokenizer is on disk.

    The template's tail, which the log's `num_text_tokens` counts too, is left out.
    """
    if checkpoint.folder is None:
        return None
    file = checkpoint.folder / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        return None
    return _count_tokens(file, frozenset(p.clip.settings.prompt for p in planned))


@lru_cache(maxsize=1)
def _count_tokens(file: Path, prompts: frozenset[str]) -> dict[str, int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
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
    if checkpoint.kind is CheckpointKind.tiny:
        return "built on this machine in seconds: the clips are noise on purpose"
    revision = checkpoint.revision[:12] if checkpoint.revision else "its newest revision"
    what = checkpoint.repo if checkpoint.kind is CheckpointKind.hub else str(checkpoint.folder)
    there = (
        "on disk"
        if checkpoint.folder
        else "not on disk: fetched at the start of a run, which no time below has in it"
    )
    return f"{what} at {revision}, {there}"


def _settings_lines(planned: Sequence[PlannedClip]) -> list[str]:
    groups: dict[_Settings, list[State]] = {}
    for p in planned:
        groups.setdefault(_settings(p.clip.settings), []).append(p.state)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{len(states):>6} x {_format_settings(settings)} ({_format_states(states)})"
        for settings, states in largest[:MAX_SETTINGS]
    ]
    rest = largest[MAX_SETTINGS:]
    if rest:
        clips = sum(len(states) for _, states in rest)
        lines.append(f"{clips:>6} x {len(rest)} more settings")
    return lines


def _settings(s: ClipSettings) -> _Settings:
    return (
        s.height,
        s.width,
        s.num_frames,
        s.num_inference_steps,
        s.guidance_scale,
        s.flow_shift,
        s.fps,
    )


def _format_settings(settings: _Settings) -> str:
    height, width, frames, steps, guidance, shift, fps = settings
    return (
        f"{height}x{width} {_count(frames, 'frame')} at {fps:g} fps, {_count(steps, 'step')}, "
        f"guidance {guidance:g}, shift {shift:g}"
    )


def _reason_lines(planned: Sequence[PlannedClip]) -> list[str]:
    reasons = Counter((p.state, p.reason) for p in planned if p.reason and not p.is_done)
    common = reasons.most_common()
    lines = [
        f"{count:>6} {state.name}: {_shortened(reason)}"
        for (state, reason), count in common[:MAX_REASONS]
    ]
    if len(common) > MAX_REASONS:
        clips = sum(count for _, count in common[MAX_REASONS:])
        lines.append(f"{clips:>6} for {len(common) - MAX_REASONS} more reasons")
    return lines


def _beaten_lines(beaten: Mapping[str, int]) -> list[str]:
    if not beaten:
        return []
    each = ", ".join(f"sampling.{name} in {_count(rows, 'row')}" for name, rows in beaten.items())
    names = ", ".join(f"override.{name}" for name in beaten)
    return [f"Rows with a value of their own, which wins: {each}; {names} would replace it"]


def _glyph_lines(planned: Sequence[PlannedClip]) -> list[str]:
    texts = [glyph_texts(p.clip.settings.prompt) for p in planned]
    clips = sum(map(bool, texts))
    if not clips:
        return []
    each = list(dict.fromkeys(text for found in texts for text in found))
    some = ", ".join(f'"{_shortened(text, 40)}"' for text in each[:MAX_EXAMPLES])
    more = f" and {len(each) - MAX_EXAMPLES} more" if len(each) > MAX_EXAMPLES else ""
    return [
        f"Glyphs: quoted text, written into the picture, in {_count(clips, 'clip')}: {some}{more}"
    ]


def _off_recipe_lines(planned: Sequence[PlannedClip]) -> list[str]:
    clips = sum(p.clip.off_recipe for p in planned)
    if not clips:
        return []
    return [f"Off the checkpoint's recipe: {_count(clips, 'clip')} (runtime.allow_off_recipe)"]


def _tokens_line(planned: Sequence[PlannedClip], checkpoint: Checkpoint) -> str:
    tokens = count_prompt_tokens(planned, checkpoint)
    if tokens is None:
        return "Tokens: counted once the tokenizer is on disk"
    line = f"Tokens: at most {max(tokens.values())} in a prompt, the chat template's left out"
    limit = MAX_PROMPT_TOKENS - TEMPLATE_TAIL_TOKENS
    long = [p.clip for p in planned if tokens[p.clip.settings.prompt] > limit]
    if not long:
        return line
    return (
        f"{line}; WARNING: {_count(len(long), 'clip')} with over {limit}, whose rest the model "
        f"never sees, first {long[0].row_id} in line {long[0].line}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shortened(text: str, characters: int = MAX_REASON_CHARACTERS) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _format_bytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
