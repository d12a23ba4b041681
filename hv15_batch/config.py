"""Typed settings of a run: every option, its default and the pure checks on it.

Holds dataclasses and enums only. `cli` turns Hydra's result into a `Config` once; nothing below
it sees a `DictConfig`. Checks raise and never assign.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any


class ConfigError(ValueError):
    """A setting or a command line that is refused before anything is touched (exit code 2)."""


class Task(Enum):
    """What a model turns into a video."""

    t2v = "t2v"
    i2v = "i2v"


class Weights(Enum):
    """Where the parameters come from."""

    pretrained = "pretrained"
    random = "random"
    tiny = "tiny"


class Distillation(Enum):
    """How a checkpoint was distilled, which decides the settings it was made for."""

    none = "none"
    cfg = "cfg"
    step = "step"


class Dtype(Enum):
    """Parameter and activation type of every component."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class OffloadKind(Enum):
    """Where each component lives in each phase (see `placement`)."""

    auto = "auto"
    resident = "resident"
    model = "model"


class DispatchKind(Enum):
    """Which executor renders."""

    local = "local"


class VideoCodec(Enum):
    """How frames are stored; `ffv1` is lossless and goes into Matroska."""

    h264 = "h264"
    ffv1 = "ffv1"


class Order(Enum):
    """`takes`: every row's first seed, then every second one. `rows`: row by row."""

    takes = "takes"
    rows = "rows"


class FileCheck(Enum):
    """What a finished clip's file must show to count as done."""

    size = "size"
    sha256 = "sha256"


@dataclass
class SamplingConfig:
    """Sampling settings for every row; null means the model option's `default_sampling`."""

    seeds: Any = None
    """Integers 0..2^63-1: `7`, `1 2 5`, `1,2,5`, `0..3` (inclusive) or a list."""
    negative_prompt: str | None = None
    height: int | None = None
    """Pixels, a multiple of 16."""
    width: int | None = None
    """Pixels, a multiple of 16."""
    num_frames: int | None = None
    """4n+1."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    """1.0 means one forward per step, no classifier-free guidance."""
    flow_shift: float | None = None
    """`shift` of the flow-match scheduler."""
    fps: float | None = None
    """Frames per second of the written file."""


@dataclass
class SamplingDefaults:
    """What a model option was made for; used where neither row nor command says otherwise."""

    height: int = 480
    width: int = 848
    num_frames: int = 121
    num_inference_steps: int = 50
    guidance_scale: float = 6.0
    flow_shift: float = 5.0
    fps: float = 24.0
    negative_prompt: str = ""


@dataclass
class ModelConfig:
    """One model variant: one YAML under `conf/model/`."""

    name: str = "???"
    """Name of the option."""
    repo: str | None = None
    """Hub id, or a local folder in diffusers layout. Null for the tiny models."""
    revision: str | None = None
    """Commit of the hub repository; null means the one that `prefetch` recorded."""
    weights: Weights = Weights.pretrained
    task: Task = Task.t2v
    distillation: Distillation = Distillation.none
    dtype: Dtype = Dtype.bfloat16
    """Type used unless `runtime.dtype` is set."""
    target_size: int = 640
    """Bucket base of the image-to-video pipeline in pixels: 640 for 480p, 960 for 720p."""
    default_sampling: SamplingDefaults = field(default_factory=SamplingDefaults)


@dataclass
class OffloadConfig:
    """One offload profile: one YAML under `conf/offload/`."""

    kind: OffloadKind = OffloadKind.auto


@dataclass
class DispatchConfig:
    """Which executor renders: one YAML under `conf/dispatch/`."""

    kind: DispatchKind = DispatchKind.local


@dataclass
class RuntimeConfig:
    """How the maths is carried out on this machine."""

    dtype: Dtype | None = None
    """Null means the model option's `dtype`."""
    attention_backend: str = "auto"
    """`auto` or a backend name of diffusers' attention dispatcher."""
    mask_free: bool = True
    """Drop the padded text tokens instead of masking them: same maths, far less work."""
    allow_off_recipe: bool = False
    """Allow settings that a distilled checkpoint was not made for."""


@dataclass
class VideoConfig:
    """How frames become a file. All of it is part of a clip's settings."""

    codec: VideoCodec = VideoCodec.h264
    crf: int = 17
    """Constant rate factor of x264, 0 (lossless) to 51; no meaning for ffv1."""
    preset: str = "medium"
    """x264 preset."""
    embed_metadata: bool = True
    """Write the clip's settings as JSON into the container's `comment` tag."""


@dataclass
class QualityConfig:
    """Bounds beyond which a finished clip is `suspect`. Luma is 0..255 (BT.709)."""

    black_luma: float = 4.0
    """Mean luma below this: black."""
    flat_std: float = 2.0
    """Luma deviation below this: flat."""
    frozen_difference: float = 0.02
    """Mean absolute luma difference of neighbouring frames below this: frozen."""


@dataclass
class RetryConfig:
    """What is tried again."""

    suspect: bool = False
    """Render suspect clips again."""


@dataclass
class Config:
    """Everything one run is asked to do."""

    manifest: str | None = None
    """CSV, JSON Lines, Parquet or .txt with one row per prompt."""
    run_dir: str | None = None
    """Where clips and log go; null means outputs/<manifest name>."""
    resume: str | None = None
    """Run directory whose manifest and settings are used again."""
    dry_run: bool = False
    limit: int | None = None
    """Render at most this many clips."""
    only: str | None = None
    """Row ids, separated by commas."""
    force: bool = False
    """Render again what is done."""
    add: bool = False
    """Allow new settings in a run directory that holds clips of other settings."""
    order: Order = Order.takes
    check_files: FileCheck = FileCheck.size
    keep_latents: bool = True
    """Keep the denoised latents (3 MB a clip), from which a clip is decoded without denoising."""
    model: ModelConfig = field(default_factory=ModelConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    dispatch: DispatchConfig = field(default_factory=DispatchConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    override: SamplingConfig = field(default_factory=SamplingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)


SAMPLING_FIELDS = tuple(f.name for f in fields(SamplingConfig))
STEP_DISTILLED_STEPS = (4, 8, 12)
CFG_DISTILLED_STEPS = 50
# Source: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 README, "Optimal Inference Configurations".

STEP_DISTILLED_T2V = (
    "there is no step-distilled text-to-video checkpoint: the published one is 480p image-to-video "
    "(MeanFlow), and the text-to-video pipeline never passes it timestep_r, so its frames would be "
    "wrong without an error; use model=480p_i2v_step_distilled with an image in every row, "
    "or model=480p_t2v_distilled"
)


def effective_dtype(config: Config) -> Dtype:
    """Return the type that is asked for: `runtime.dtype`, or else the model option's."""
    return config.runtime.dtype or config.model.dtype


def check_config(config: Config) -> None:
    """Check what can be checked without the manifest.

    Raises:
        ConfigError: naming the key, its value, what is allowed and what to do.
    """
    model = config.model
    step_distilled = model.distillation is Distillation.step or "step_distilled" in (
        model.repo or ""
    )
    if step_distilled and model.task is Task.t2v:
        raise ConfigError(f"model.task=t2v with {model.name}: {STEP_DISTILLED_T2V}.")
    if (model.weights is Weights.tiny) != (model.repo is None):
        raise ConfigError(
            f"model.weights={model.weights.name} with model={model.name}: the tiny models have "
            "their own weights and the others have none of that kind; leave model.weights out, "
            "or use model.weights=random for a full-size model without a download."
        )
    if not 0 <= config.video.crf <= 51:
        raise ConfigError(
            f"video.crf={config.video.crf}: x264 takes 0 (lossless) to 51 (worst); try 17."
        )
    if config.video.preset not in X264_PRESETS:
        raise ConfigError(
            f"video.preset={config.video.preset}: x264 knows {', '.join(X264_PRESETS)}."
        )
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit={config.limit}: must be 1 or more; leave it out for all clips.")
    for section, values in (("sampling", config.sampling), ("override", config.override)):
        for name in SAMPLING_FIELDS:
            fault = check_sampling_value(name, getattr(values, name), model.task)
            if fault:
                raise ConfigError(f"{section}.{name}={getattr(values, name)}: {fault}.")


def check_sampling_value(name: str, value: Any, task: Task) -> str | None:
    """Return what is wrong with a sampling value and what to do, or None.

    One rule for manifest cells and for `sampling.*` and `override.*`.
    """
    if value is None or name in ("seeds", "negative_prompt"):
        return None
    if name in ("height", "width"):
        if task is Task.i2v:
            return (
                "an image-to-video model takes its size from the image; "
                "leave it out (the dry run shows the size)"
            )
        if value < 16 or value % 16:
            return f"must be a multiple of 16; {_nearest(value, 16, 0)}"
        if value > MAX_SIDE:
            return f"must be at most {MAX_SIDE} pixels; 480x848 and 720x1280 are usual"
    elif name == "num_frames":
        if value < 1 or (value - 1) % 4:
            return f"must be 4n+1; {_nearest(value, 4, 1)}"
        if value > MAX_FRAMES:
            return f"must be at most {MAX_FRAMES}; split the scene into several rows"
    elif name == "num_inference_steps":
        if not 1 <= value <= MAX_STEPS:
            return f"must be 1 to {MAX_STEPS}; 50 is usual, 8 or 12 for step-distilled models"
    elif name == "guidance_scale":
        if not 1 <= value <= 100:
            return "must be 1 (no guidance) to 100; 6 is usual"
    elif name == "flow_shift":
        if not 0 < value <= 100:
            return "must be over 0 and at most 100; 5 to 9 is usual"
    elif name == "fps" and not 1 <= value <= 240:
        return "must be 1 to 240; the model was trained at 24"
    return None


X264_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
MAX_SIDE = 4096
MAX_FRAMES = 1001
MAX_STEPS = 1000


def _nearest(value: int, step: int, offset: int) -> str:
    """Name the allowed values on both sides: n*step + offset, at least `offset or step`."""
    least = offset or step
    below = (value - offset) // step * step + offset
    if below < least:
        return f"the least is {least}"
    return f"nearest are {below} and {below + step}"


def check_recipe(
    model: ModelConfig, num_inference_steps: int, guidance_scale: float
) -> tuple[str, str] | None:
    """Return (field, reason) where a distilled model is used off its recipe, or None.

    Source: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 README: CFG-distilled checkpoints are made
    for 50 steps without guidance, the step-distilled one for 8 or 12 steps (4 at lower quality).
    """
    if model.distillation is Distillation.none:
        return None
    if guidance_scale != 1.0:
        return "guidance_scale", f"{model.name} is distilled for guidance_scale 1"
    if model.distillation is Distillation.cfg and num_inference_steps != CFG_DISTILLED_STEPS:
        return "num_inference_steps", f"{model.name} is CFG-distilled for exactly 50 steps"
    if (
        model.distillation is Distillation.step
        and num_inference_steps not in STEP_DISTILLED_STEPS
    ):
        return "num_inference_steps", f"{model.name} is step-distilled for 8 or 12 steps (or 4)"
    return None
