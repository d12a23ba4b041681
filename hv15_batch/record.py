"""The log's one schema: a `ClipRecord` per attempt, its columns' units and sources.

Stored values are bytes and seconds, unrounded. Not measured is None, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from hv15_batch.clip import Clip

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


def _column(about: str, unit: str = "none", source: str = "hv15_batch") -> Any:
    return field(default=None, metadata={"about": about, "unit": unit, "source": source})


@dataclass(frozen=True)
class ClipRecord:
    """One attempt at one clip: what was asked, what was in effect, what it cost, what came out."""

    # identity
    run_id: str | None = _column("invocation that made the attempt")
    clip_id: str | None = _column("name of the clip")
    row_id: str | None = _column("name of the manifest row")
    row_index: int | None = _column("place of the row in the manifest, from 0")
    attempt: int | None = _column(
        "attempts at these settings so far, this one included; other renderings of a benchmark do "
        "not count"
    )
    repeat: int | None = _column("benchmark repetition, from 1; 0 is a warm-up; null outside")
    settings_sha256: str | None = _column("hash of everything asked")
    denoise_sha256: str | None = _column("the same less fps and video settings")
    manifest_sha256: str | None = _column("hash of the manifest's bytes")
    started_at: datetime | None = _column("start of the attempt, UTC")  # noqa: RUF009
    finished_at: datetime | None = _column("end of the attempt, UTC")  # noqa: RUF009
    # asked for
    prompt: str | None = _column("text", source=ASKED)
    negative_prompt: str | None = _column("text; null without guidance", source=ASKED)
    image: str | None = _column("first frame as typed in the manifest", source=ASKED)
    seed: int | None = _column("seed of the CPU noise generator", source=ASKED)
    height: int | None = _column("frame height", "pixel", ASKED)
    width: int | None = _column("frame width", "pixel", ASKED)
    num_frames: int | None = _column("frames of the clip", source=ASKED)
    num_inference_steps: int | None = _column("denoising steps", source=ASKED)
    guidance_scale: float | None = _column("classifier-free guidance; 1 is none", source=ASKED)
    flow_shift: float | None = _column("shift of the flow-match scheduler", source=ASKED)
    fps: float | None = _column("frame rate of the file", "1/second", ASKED)
    tags: str | None = _column("the row's tag_* cells as a JSON object", source=ASKED)
    attention_backend_requested: str | None = _column("backend as typed", source=ASKED)
    off_recipe: bool | None = _column("distilled model used off its recipe", source=ASKED)
    # in effect
    model: str | None = _column("model option", source=LIVE)
    repo: str | None = _column("hub id or local folder that was loaded", source=LIVE)
    revision: str | None = _column("commit, or content hash of a local checkpoint", source=LIVE)
    weights: str | None = _column("pretrained, random or tiny", source=LIVE)
    task: str | None = _column("t2v or i2v", source=LIVE)
    dtype: str | None = _column("type of the transformer's parameters", source=LIVE)
    attention_backend: str | None = _column("backend of the transformer blocks", source=LIVE)
    mask_free: bool | None = _column("padding dropped, no attention mask", source=LIVE)
    compiled: bool | None = _column("transformer blocks compiled", source=LIVE)
    offload: str | None = _column("offload profile", source=LIVE)
    vae_tile_size: int | None = _column("edge of a decode tile; null when untiled", "pixel", LIVE)
    decode_device: str | None = _column("device of the VAE while decoding", source=LIVE)
    num_text_tokens: int | None = _column(
        "valid tokens of the prompt and of the chat template behind it", source=LIVE
    )
    num_glyph_tokens: int | None = _column("valid ByT5 tokens of quoted text", source=LIVE)
    num_video_tokens: int | None = _column("latent frames x height/16 x width/16", source=LIVE)
    # time
    load_seconds: float | None = _column(
        "loading transformer and VAE; on the first clip of a worker", "second", CLOCK
    )
    encode_seconds: float | None = _column(
        "text and image encoding; on the clip that caused it", "second", CLOCK
    )
    encode_cached: bool | None = _column("all embeddings were on disk already")
    denoise_seconds: float | None = _column("the pipeline call up to latents", "second", CLOCK)
    step_seconds: list[float] | None = _column(  # noqa: RUF009
        "each denoising step", "second", STEP_CLOCK
    )
    decode_seconds: float | None = _column("VAE decode to uint8 frames", "second", CLOCK)
    write_seconds: float | None = _column(
        "encoding, read-back and publishing", "second", THREAD_CLOCK
    )
    total_seconds: float | None = _column(
        "sum of encode, denoise, decode and write of this clip", "second"
    )
    is_cold: bool | None = _column("first clip of a worker, a compiling one or a warm-up")
    denoise_attempt: int | None = _column(
        "attempt in which the latents were denoised, less than `attempt` when they were reused; "
        "0 when another clip, or an attempt without a record, denoised them"
    )
    # memory
    peak_vram_allocated_bytes: int | None = _column("of all stages", "byte", ALLOCATED)
    peak_vram_reserved_bytes: int | None = _column("of all stages", "byte", RESERVED)
    encode_peak_vram_allocated_bytes: int | None = _column("of encoding", "byte", ALLOCATED)
    encode_peak_vram_reserved_bytes: int | None = _column("of encoding", "byte", RESERVED)
    denoise_peak_vram_allocated_bytes: int | None = _column("of denoising", "byte", ALLOCATED)
    denoise_peak_vram_reserved_bytes: int | None = _column("of denoising", "byte", RESERVED)
    decode_peak_vram_allocated_bytes: int | None = _column("of decoding", "byte", ALLOCATED)
    decode_peak_vram_reserved_bytes: int | None = _column("of decoding", "byte", RESERVED)
    peak_vram_device_bytes: int | None = _column(
        "whole card, all processes; a shorter peak than 0.25 s may be missed", "byte", NVML_LARGEST
    )
    peak_ram_bytes: int | None = _column("executor's peak resident set", "byte", "VmHWM")
    num_alloc_retries: int | None = _column("allocator retries", source="torch.cuda.memory_stats")
    # telemetry: while the card encoded (where this clip caused it), denoised and decoded
    energy_joules: float | None = _column(
        "energy of the card in this attempt, writing left out",
        "joule",
        "NVML's counter; its power integrated where there is none or it did not tick",
    )
    power_watts_mean: float | None = _column("mean power draw", "watt", NVML_SAMPLED)
    sm_clock_mhz_mean: float | None = _column(
        "mean SM clock while the card was not idle; null where it always was",
        "megahertz",
        NVML_SAMPLED,
    )
    sm_clock_mhz_min: float | None = _column(
        "lowest SM clock while the card was not idle", "megahertz", NVML_SMALLEST
    )
    temperature_celsius_max: float | None = _column(
        "highest temperature", "degree Celsius", NVML_LARGEST
    )
    throttle_seconds: float | None = _column(
        "time with a throttle reason other than idle and a clock that was asked for",
        "second",
        NVML_SAMPLED,
    )
    throttle_power_seconds: float | None = _column(
        "of these, with a power cap or power brake as a reason; reasons overlap, so the four "
        "columns may come to more than `throttle_seconds`",
        "second",
        NVML_SAMPLED,
    )
    throttle_thermal_seconds: float | None = _column(
        "of these, with a thermal slowdown, by software or hardware", "second", NVML_SAMPLED
    )
    throttle_hardware_seconds: float | None = _column(
        "of these, with the hardware slowdown that comes with thermal and power brake ones and, "
        "alone, is either or too fast a draw of power",
        "second",
        NVML_SAMPLED,
    )
    throttle_other_seconds: float | None = _column(
        "of these, with sync boost, display clock, board limit or reliability as a reason",
        "second",
        NVML_SAMPLED,
    )
    # derived
    model_pflop: float | None = _column(
        "work of denoising", "petaFLOP", "engine.measure.work_columns, by model.shapes.forward_flop"
    )
    tflops: float | None = _column("rate of denoising", "teraFLOP/second")
    mfu: float | None = _column("tflops over the card's dense rate", "1")
    # quality
    luma_mean: float | None = _column("mean luma", "1", FRAMES)
    luma_std: float | None = _column("deviation of luma", "1", FRAMES)
    frame_difference_mean: float | None = _column(
        "mean absolute luma difference of neighbouring frames", "1", FRAMES
    )
    clipped_pixel_share: float | None = _column("share of values 0 or 255", "1", FRAMES)
    quality_flag: str | None = _column("black, flat, frozen, clipped or null")
    # output
    file: str | None = _column("the clip, relative to the run directory")
    file_bytes: int | None = _column("size of the clip", "byte")
    file_sha256: str | None = _column("hash of the clip's bytes")
    latents_file: str | None = _column("the latents, relative to the run directory")
    latents_sha256: str | None = _column("hash of the latents tensor's raw bytes")
    # outcome
    status: str | None = _column("ok, suspect, failed or interrupted")
    error_type: str | None = _column("class of the error")
    error_message: str | None = _column("message of the error")
    # machine
    gpu_name: str | None = _column("card", source=NVML)
    gpu_uuid: str | None = _column("card's UUID", source=NVML)
    gpu_index: int | None = _column("card's index", source=NVML)
    gpu_total_bytes: int | None = _column("card's memory", "byte", NVML)
    driver_version: str | None = _column("driver", source=NVML)
    torch_version: str | None = _column("PyTorch", source="torch.__version__")
    diffusers_version: str | None = _column("diffusers", source="package metadata")
    hv15_batch_version: str | None = _column("this package", source="package metadata")
    worker_id: str | None = _column("executor within the run")
    hostname: str | None = _column("machine")
    system_sha256: str | None = _column("hash of hardware and software, as in system.json")


def asked_record(clip: Clip, **known: Any) -> ClipRecord:
    """Return a record with all that is known of a clip before it is rendered."""
    settings = clip.settings
    return replace(
        ClipRecord(
            clip_id=clip.clip_id,
            row_id=clip.row_id,
            row_index=clip.row_index,
            settings_sha256=clip.settings_sha256,
            denoise_sha256=clip.denoise_sha256,
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt,
            image=clip.image,
            seed=settings.seed,
            height=settings.height,
            width=settings.width,
            num_frames=settings.num_frames,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            flow_shift=settings.flow_shift,
            fps=settings.fps,
            tags=json.dumps(clip.tags, ensure_ascii=False, sort_keys=True),
            attention_backend_requested=settings.attention_backend,
            off_recipe=clip.off_recipe,
            model=settings.model,
            revision=settings.revision,
            weights=settings.weights,
        ),
        **known,
    )


WARM_UP = 0
"""`Job.repeat` of a rendering that takes the first use of kernels, compilation and memory."""


def clip_seconds(row: Mapping[str, Any]) -> float | None:
    """Return what a clip took without encoding; None where it was not measured."""
    if row["total_seconds"] is None:
        return None
    return float(row["total_seconds"] - (row["encode_seconds"] or 0.0))


def is_denoised_here(row: Mapping[str, Any]) -> bool:
    """Whether an attempt denoised itself; False where it decoded saved latents."""
    return row["denoise_attempt"] in (None, row["attempt"])


def attempt_seconds(row: Mapping[str, Any]) -> float | None:
    """Return what an attempt took: its clip's seconds, but no denoising of an earlier attempt."""
    if row["total_seconds"] is None or is_denoised_here(row):
        return None if row["total_seconds"] is None else float(row["total_seconds"])
    return float(row["total_seconds"] - (row["denoise_seconds"] or 0.0))
