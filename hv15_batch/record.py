"""The log's one schema: a `ClipRecord` per attempt, its columns' units and sources.

Values are stored in bytes and seconds, unrounded. A value that was not measured is None, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cache, partial
from typing import Any, Literal, get_args

from hv15_batch.clip import Clip, loras_text

OK = "ok"
SUSPECT = "suspect"
FAILED = "failed"
INTERRUPTED = "interrupted"
DONE_STATUSES = (OK, SUSPECT)

ASKED = "manifest or configuration"
LIVE = "read back from the live pipeline"
CLOCK = "time.perf_counter, device synchronised"
THREAD_CLOCK = "time.perf_counter, on a thread beside the next clip"
STEP_CLOCK = "CUDA events on the device's stream; time.perf_counter on a CPU"
ALLOCATED = "torch.cuda.max_memory_allocated"
RESERVED = "torch.cuda.max_memory_reserved"
NVML = "NVML"
NVML_SAMPLED = "NVML, sampled every 0.25 s and weighted by time"
NVML_LARGEST = "NVML, largest of the samples every 0.25 s"
NVML_SMALLEST = "NVML, smallest of the samples every 0.25 s"
FRAMES = "decoded frames, BT.709 luma 0..255"


STAGES = ("encode", "denoise", "decode", "write")
"""The stages of a clip, in order; their seconds add up to `total_seconds`."""
ENCODE, DENOISE, DECODE, WRITE = STAGES
STAGES_ON_CARD = (ENCODE, DENOISE, DECODE)
"""Those that use the card, and so have peaks of VRAM."""
LOAD = "load"
"""Comes before a worker's first clip, and is no stage of a clip."""

Kind = Literal[
    "identity",
    "asked",
    "effect",
    "time",
    "memory",
    "telemetry",
    "derived",
    "quality",
    "output",
    "outcome",
    "machine",
]
KINDS: dict[Kind, str] = {
    **{kind: kind.capitalize() for kind in get_args(Kind)},
    "asked": "Asked for",
    "effect": "In effect, read back from the live objects",
}
"""Kinds of columns, in the log's order, and what they are called."""


def _column(
    about: str,
    unit: str = "none",
    source: str = "hv15_batch",
    *,
    kind: Kind,
    groups: bool = False,
    private: bool = False,
) -> Any:
    """Return a column; `groups` and `private` are as in `columns`."""
    texts = {"about": about, "unit": unit, "source": source}
    flags = {"kind": kind, "groups": groups, "private": private}
    return field(default=None, metadata={**texts, **flags})


_identity = partial(_column, kind="identity")
_asked = partial(_column, kind="asked", source=ASKED)
_effect = partial(_column, kind="effect", source=LIVE)
_time = partial(_column, kind="time")
_memory = partial(_column, kind="memory")
_telemetry = partial(_column, kind="telemetry")
_derived = partial(_column, kind="derived")
_quality = partial(_column, kind="quality")
_output = partial(_column, kind="output")
_outcome = partial(_column, kind="outcome")
_machine = partial(_column, kind="machine")


@dataclass(frozen=True)
class ClipRecord:
    """One attempt at one clip: what was asked, what was in effect, what it cost, what came out."""

    # identity
    run_id: str | None = _identity("run that made the attempt")
    clip_id: str | None = _identity("name of the clip", private=True)
    row_id: str | None = _identity("name of the manifest row", private=True)
    row_index: int | None = _identity("place of the row in the manifest, from 0")
    attempt: int | None = _identity(
        "number of the attempt at these settings, from 1; a benchmark's other renderings do not "
        "count"
    )
    repeat: int | None = _identity(
        "benchmark repetition, from 1; 0 is a warm-up; null outside a benchmark"
    )
    settings_sha256: str | None = _identity("hash of everything asked; identifies the clip")
    denoise_sha256: str | None = _identity("the same hash without fps and video settings")
    manifest_sha256: str | None = _identity("hash of the manifest's bytes")
    shard: str | None = _identity("share of the manifest that the run had, as k/n; null for all")
    started_at: datetime | None = _identity("start of the attempt, UTC")  # noqa: RUF009
    finished_at: datetime | None = _identity("end of the attempt, UTC")  # noqa: RUF009
    # asked for
    prompt: str | None = _asked("text", private=True)
    negative_prompt: str | None = _asked("text; null without guidance", private=True)
    image: str | None = _asked("first frame as typed in the manifest", private=True)
    seed: int | None = _asked("seed of the CPU noise generator")
    height: int | None = _asked("frame height", "pixel", groups=True)
    width: int | None = _asked("frame width", "pixel", groups=True)
    num_frames: int | None = _asked("frames of the clip", groups=True)
    num_inference_steps: int | None = _asked("denoising steps", groups=True)
    guidance_scale: float | None = _asked("classifier-free guidance; 1 is none", groups=True)
    flow_shift: float | None = _asked("shift of the flow-match scheduler", groups=True)
    fps: float | None = _asked("frame rate of the file", "1/second", groups=True)
    tags: str | None = _asked("the row's tag_* cells as a JSON object", private=True)
    attention_backend_requested: str | None = _asked("backend as typed")
    off_recipe: bool | None = _asked("distilled model used off its recipe", groups=True)
    linear: str | None = _asked("linear modules in 8 bits, fp8 or int8; null for none", groups=True)
    cache: str | None = _asked(
        "static step cache as every:start:end; null computes every step", groups=True
    )
    transformer_sha256: str | None = _asked(
        "content of the file of another transformer than the repository's; null without one",
        groups=True,
    )
    loras: str | None = _asked(
        "LoRA files as JSON, SHA-256 and scale of each; null without any", groups=True
    )
    engine: str | None = _asked(
        "official script with its version, model folder and flags; null for diffusers", groups=True
    )
    prompt_original: str | None = _asked("prompt before it was rewritten; else null", private=True)
    rewrite_model: str | None = _asked("model that rewrote the prompt; else null")
    rewrite_template_sha256: str | None = _asked("hash of the instructions to that model")
    template_draw: int | None = _asked(
        "number of the draw, or combination, of the row's template, from 0; null without choices"
    )
    image_source: str | None = _asked("another clip's denoise_sha256 and frame number; else null")
    # in effect
    model: str | None = _effect("model option", groups=True)
    repo: str | None = _effect("hub id or local folder that was loaded", private=True)
    revision: str | None = _effect("commit, or content hash of a local checkpoint", groups=True)
    weights: str | None = _effect("pretrained, random, tiny or demo", groups=True)
    task: str | None = _effect("t2v or i2v", groups=True)
    dtype: str | None = _effect("type of the transformer's parameters", groups=True)
    attention_backend: str | None = _effect("backend of the transformer blocks", groups=True)
    mask_free: bool | None = _effect("padding dropped, no attention mask", groups=True)
    compiled: bool | None = _effect("transformer blocks compiled", groups=True)
    offload: str | None = _effect("offload profile", groups=True)
    vae_tile_size: int | None = _effect(
        "edge of a decode tile; null when untiled", "pixel", groups=True
    )
    decode_device: str | None = _effect("device of the VAE while decoding", groups=True)
    num_text_tokens: int | None = _effect(
        "valid tokens of the prompt and of the chat template behind it"
    )
    num_glyph_tokens: int | None = _effect("valid ByT5 tokens of quoted text")
    num_video_tokens: int | None = _effect("latent frames x height/16 x width/16")
    engine_version: str | None = _effect("commit or content of that script; null for diffusers")
    image_sha256: str | None = _effect("hash of the first frame's file, or of its pixels")
    num_computed_steps: int | None = _effect("steps that ran the transformer's blocks")
    lora_keys_matched: int | None = _effect(
        "tensors of the LoRA files that are in effect; null without a LoRA"
    )
    lora_keys_unmatched: int | None = _effect(
        "tensors of the LoRA files that belong to nothing here and are left out"
    )
    # time
    load_seconds: float | None = _time(
        "loading transformer and VAE; on the first clip of a worker", "second", CLOCK
    )
    encode_seconds: float | None = _time(
        "text and image encoding; on the clip that caused it", "second", CLOCK
    )
    encode_cached: bool | None = _time("all embeddings were on disk already")
    denoise_seconds: float | None = _time("the pipeline call up to latents", "second", CLOCK)
    step_seconds: list[float] | None = _time(  # noqa: RUF009
        "each denoising step", "second", STEP_CLOCK
    )
    decode_seconds: float | None = _time("VAE decode to uint8 frames", "second", CLOCK)
    write_seconds: float | None = _time(
        "encoding, read-back and publishing", "second", THREAD_CLOCK
    )
    total_seconds: float | None = _time(
        "sum of encode, denoise, decode and write of this clip", "second"
    )
    is_cold: bool | None = _time("first clip of a worker, a compiling one or a warm-up")
    denoise_attempt: int | None = _time(
        "attempt that denoised the latents; less than `attempt` when they were reused; 0 when "
        "another clip or an unrecorded attempt denoised them"
    )
    # memory
    peak_vram_allocated_bytes: int | None = _memory("of all stages", "byte", ALLOCATED)
    peak_vram_reserved_bytes: int | None = _memory("of all stages", "byte", RESERVED)
    encode_peak_vram_allocated_bytes: int | None = _memory("of encoding", "byte", ALLOCATED)
    encode_peak_vram_reserved_bytes: int | None = _memory("of encoding", "byte", RESERVED)
    denoise_peak_vram_allocated_bytes: int | None = _memory("of denoising", "byte", ALLOCATED)
    denoise_peak_vram_reserved_bytes: int | None = _memory("of denoising", "byte", RESERVED)
    decode_peak_vram_allocated_bytes: int | None = _memory("of decoding", "byte", ALLOCATED)
    decode_peak_vram_reserved_bytes: int | None = _memory("of decoding", "byte", RESERVED)
    peak_vram_device_bytes: int | None = _memory(
        "whole card, all processes; a shorter peak than 0.25 s may be missed", "byte", NVML_LARGEST
    )
    peak_ram_bytes: int | None = _memory("executor's peak resident set", "byte", "VmHWM")
    num_alloc_retries: int | None = _memory(
        "times torch emptied its cache since memory was short; over 0 the clip may be slower",
        source="torch.cuda.memory_stats",
    )
    # telemetry: while the card encoded (where this clip caused it), denoised and decoded
    energy_joules: float | None = _telemetry(
        "energy of the card in this attempt, without writing",
        "joule",
        "NVML's energy counter; where it is missing or stands still, NVML's power over time",
    )
    power_watts_mean: float | None = _telemetry("mean power draw", "watt", NVML_SAMPLED)
    sm_clock_mhz_mean: float | None = _telemetry(
        "mean SM clock while the card was not idle; null where it always was",
        "megahertz",
        NVML_SAMPLED,
    )
    sm_clock_mhz_min: float | None = _telemetry(
        "lowest SM clock while the card was not idle", "megahertz", NVML_SMALLEST
    )
    temperature_celsius_max: float | None = _telemetry(
        "highest temperature", "degree Celsius", NVML_LARGEST
    )
    throttle_seconds: float | None = _telemetry(
        "time with any throttle reason but idle and a requested clock",
        "second",
        NVML_SAMPLED,
    )
    throttle_power_seconds: float | None = _telemetry(
        "of these, with a power cap or power brake; reasons overlap, so the four columns may add "
        "up to more than `throttle_seconds`",
        "second",
        NVML_SAMPLED,
    )
    throttle_thermal_seconds: float | None = _telemetry(
        "of these, with a thermal slowdown, by software or hardware", "second", NVML_SAMPLED
    )
    throttle_hardware_seconds: float | None = _telemetry(
        "of these, with NVML's general hardware slowdown: thermal, power brake or a fast rise of "
        "power",
        "second",
        NVML_SAMPLED,
    )
    throttle_other_seconds: float | None = _telemetry(
        "of these, with sync boost, display clock, board limit or reliability as a reason",
        "second",
        NVML_SAMPLED,
    )
    # derived
    model_pflop: float | None = _derived(
        "work of denoising",
        "petaFLOP",
        "engine._measure.work_columns, by model.shapes.forward_flop",
    )
    tflops: float | None = _derived("rate of denoising", "teraFLOP/second")
    mfu: float | None = _derived("tflops over the card's dense rate", "1")
    # quality
    luma_mean: float | None = _quality("mean luma", "1", FRAMES)
    luma_std: float | None = _quality("standard deviation of luma", "1", FRAMES)
    frame_difference_mean: float | None = _quality(
        "mean absolute luma difference of neighbouring frames", "1", FRAMES
    )
    clipped_pixel_share: float | None = _quality("share of values 0 or 255", "1", FRAMES)
    quality_flag: str | None = _quality(
        "black, flat, frozen, clipped, those found of freeze, black, cuts, or null"
    )
    # output
    file: str | None = _output("path of the clip, relative to the run directory", private=True)
    file_bytes: int | None = _output("size of the clip", "byte")
    file_sha256: str | None = _output("hash of the clip's bytes")
    latents_file: str | None = _output(
        "path of the latents, relative to the run directory", private=True
    )
    latents_sha256: str | None = _output("hash of the latents tensor's raw bytes")
    # outcome
    status: str | None = _outcome("ok, suspect, failed or interrupted")
    error_type: str | None = _outcome("class of the error")
    error_message: str | None = _outcome("message of the error", private=True)
    # machine
    gpu_name: str | None = _machine("card", source=NVML, groups=True)
    gpu_uuid: str | None = _machine("card's UUID", source=NVML)
    gpu_index: int | None = _machine("card's index", source=NVML)
    gpu_total_bytes: int | None = _machine("card's memory", "byte", NVML, groups=True)
    driver_version: str | None = _machine("driver", source=NVML, groups=True)
    torch_version: str | None = _machine("PyTorch", source="torch.__version__", groups=True)
    diffusers_version: str | None = _machine("diffusers", source="package metadata", groups=True)
    hv15_batch_version: str | None = _machine(
        "this package", source="package metadata", groups=True
    )
    worker_id: str | None = _machine("executor within the run")
    hostname: str | None = _machine("machine", private=True)
    system_sha256: str | None = _machine(
        "hash of hardware and software, as in system.json", groups=True
    )


@cache
def columns(
    kind: Kind | None = None, *, groups: bool | None = None, private: bool | None = None
) -> tuple[str, ...]:
    """Return names of the log's columns, in its order.

    Args:
        kind: One of `KINDS`; None means all.
        groups: True for the columns that must be equal for clips to be counted together, False for
            the others. Prompt and seed are among the others: the length of the text changes a
            clip's time by some thousandths only.
        private: True for the columns that must not be shared (the user's texts and names, folders
            and hosts), False for the others.
    """
    wanted = {"kind": kind, "groups": groups, "private": private}
    flags = [(name, value) for name, value in wanted.items() if value is not None]
    return tuple(
        f.name
        for f in fields(ClipRecord)
        if all(f.metadata[name] == value for name, value in flags)
    )


def seconds_column(stage: str) -> str:
    """Return the name of the column with a stage's seconds; `LOAD` has one too."""
    return f"{stage}_seconds"


def peak_column(stage: str) -> str:
    """Return the name of the column with the VRAM, in bytes, that torch had in use in a stage."""
    return f"{stage}_peak_vram_allocated_bytes"


_OF_CLIP = (
    *("clip_id", "row_id", "row_index", "settings_sha256", "denoise_sha256", "image", "off_recipe"),
    "template_draw",
)
_OF_SETTINGS = (
    *("prompt", "negative_prompt", "seed", "height", "width", "num_frames", "num_inference_steps"),
    *("guidance_scale", "flow_shift", "fps", "transformer_sha256", "linear", "cache"),
    *("image_sha256", "image_source", "model", "revision", "weights", "engine"),
)
"""Columns that a clip and its settings have under the same names."""


def asked_record(clip: Clip, **known: Any) -> ClipRecord:
    """Return a record with all that is known of a clip before it is rendered."""
    settings, rewrite = clip.settings, clip.rewrite
    values = {name: getattr(clip, name) for name in _OF_CLIP}
    values |= {name: getattr(settings, name) for name in _OF_SETTINGS}
    values["tags"] = json.dumps(clip.tags, ensure_ascii=False, sort_keys=True)
    values["attention_backend_requested"] = settings.attention_backend
    values["loras"] = loras_text(settings.loras)
    if rewrite is not None:
        values["prompt_original"], values["rewrite_model"] = rewrite.original, rewrite.model
        values["rewrite_template_sha256"] = rewrite.template_sha256
        if rewrite.is_pending:
            values["prompt"] = None
    return ClipRecord(**{**values, **known})


WARM_UP = 0
"""`Job.repeat` of a rendering that pays for compilation and the first use of kernels and memory."""


def clip_seconds(row: Mapping[str, Any]) -> float | None:
    """Return what a clip took without encoding; None where it was not measured."""
    if row["total_seconds"] is None:
        return None
    return float(row["total_seconds"] - (row["encode_seconds"] or 0.0))


def is_denoised_here(row: Mapping[str, Any]) -> bool:
    """Whether an attempt did its own denoising; False where it decoded saved latents.

    Null counts as its own: the attempt failed before it had latents. A finished clip always has the
    number of the attempt that denoised it.
    """
    return row["denoise_attempt"] in (None, row["attempt"])


def attempt_seconds(row: Mapping[str, Any]) -> float | None:
    """Return the seconds of an attempt, without the denoising of an earlier one."""
    if row["total_seconds"] is None or is_denoised_here(row):
        return None if row["total_seconds"] is None else float(row["total_seconds"])
    return float(row["total_seconds"] - (row["denoise_seconds"] or 0.0))
