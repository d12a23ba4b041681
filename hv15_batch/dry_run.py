"""The dry run's table: what would be rendered, how, and why. At most 20 lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hv15_batch import costs
from hv15_batch.checkpoint import Checkpoint
from hv15_batch.manifest import Manifest
from hv15_batch.plan import PlannedClip, State, glyph_texts

MAX_GROUPS = 8
MAX_REASONS = 3
MAX_PROMPT_TOKENS = 1000
"""The pipeline cuts longer prompts without a word (`tokenizer_max_length`)."""
TEMPLATE_TAIL_TOKENS = 5
"""`<|im_end|>`, newline and the assistant's header, which follow the prompt and count too."""

_BYTES_PER_VALUE = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class _Group:
    model: str
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    fps: float

    def describe(self) -> str:
        return (
            f"{self.height}x{self.width} {self.num_frames} frames at {self.fps:g} fps, "
            f"{self.num_inference_steps} steps, guidance {self.guidance_scale:g}, "
            f"shift {self.flow_shift:g}"
        )


def print_dry_run(
    manifest: Manifest,
    planned: Sequence[PlannedClip],
    checkpoint: Checkpoint,
    beaten: dict[str, int],
    say: Callable[[str], None],
) -> None:
    """Print what a run would do, grouped by equal settings."""
    states = Counter(p.state for p in planned)
    counts = ", ".join(f"{states[s]} {s.name}" for s in State if states[s])
    say(f"{manifest.name}: {len(manifest.rows)} rows, {len(planned)} clips: {counts or 'none'}")
    where = checkpoint.folder or "not on disk yet"
    say(f"Model: {checkpoint.repo} at {checkpoint.revision or 'its newest revision'} ({where})")
    groups: dict[_Group, Counter[State]] = {}
    for p in planned:
        groups.setdefault(_group(p), Counter())[p.state] += 1
    for group, count in sorted(groups.items(), key=lambda item: -item[1].total())[:MAX_GROUPS]:
        parts = ", ".join(f"{count[s]} {s.name}" for s in State if count[s])
        say(f"  {count.total():>6} x {group.describe()} ({parts})")
    if len(groups) > MAX_GROUPS:
        say(f"  and {len(groups) - MAX_GROUPS} more settings")
    reasons = Counter(p.reason for p in planned if p.reason and not p.is_done)
    for reason, count_ in reasons.most_common(MAX_REASONS):
        say(f"  {count_:>6} again: {reason}")
    for name, rows in beaten.items():
        say(f"  sampling.{name} is beaten by the cells of {rows} rows; override.{name} beats them")
    glyphs = sum(bool(glyph_texts(p.clip.settings.prompt)) for p in planned)
    if glyphs:
        say(f"  {glyphs} clips have quoted text, which drives the glyph encoder")
    off_recipe = sum(p.clip.off_recipe for p in planned)
    if off_recipe:
        say(f"  {off_recipe} clips are off the checkpoint's recipe (runtime.allow_off_recipe)")
    tokens = count_prompt_tokens(planned, checkpoint)
    if tokens is None:
        say("Tokens: counted once the tokenizer is on disk")
    else:
        limit = MAX_PROMPT_TOKENS - TEMPLATE_TAIL_TOKENS
        long = sum(tokens[p.clip.settings.prompt] > limit for p in planned)
        say(
            f"Tokens: at most {max(tokens.values(), default=0)} in a prompt"
            + (f"; WARNING: {long} clips have over {limit} and would be cut" if long else "")
        )
    say(f"Disk: about {_disk_bytes(planned) / 2**30:.2f} GiB for what is to be rendered")


def count_prompt_tokens(
    planned: Sequence[PlannedClip], checkpoint: Checkpoint
) -> dict[str, int] | None:
    """Return tokens per prompt, or None when no tokenizer is on disk."""
    if checkpoint.folder is None:
        return None
    file = checkpoint.folder / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prompts = list({p.clip.settings.prompt for p in planned})
    encoded = tokenizer.encode_batch(prompts, add_special_tokens=False)
    return {prompt: len(e.ids) for prompt, e in zip(prompts, encoded, strict=True)}


def _group(planned: PlannedClip) -> _Group:
    s = planned.clip.settings
    return _Group(
        s.model,
        s.height,
        s.width,
        s.num_frames,
        s.num_inference_steps,
        s.guidance_scale,
        s.flow_shift,
        s.fps,
    )


def _disk_bytes(planned: Sequence[PlannedClip]) -> int:
    total = 0
    for p in planned:
        if p.is_done:
            continue
        s = p.clip.settings
        size = (s.height, s.width, s.num_frames)
        total += costs.video_bytes_estimate(*size, s.video["codec"] == "ffv1")
        total += costs.latents_bytes(*size, _BYTES_PER_VALUE[s.dtype])
    return total
