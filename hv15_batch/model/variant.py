"""A variant of the model: what `conf/model/` holds, and what it was distilled for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

STEP_DISTILLED_T2V = (
    "Tencent has published no step-distilled text-to-video checkpoint: theirs is 480p "
    "image-to-video (MeanFlow), and the text-to-video pipeline never passes it timestep_r, so its "
    "frames would be wrong without an error; use model=480p_t2v_4step (LightX2V's weights), "
    "model=480p_t2v_distilled, or model=480p_i2v_step_distilled with an image in every row"
)


def check_recipe(
    model: ModelConfig, num_inference_steps: int, guidance_scale: float
) -> tuple[str, str] | None:
    """Return (field, reason) where a distilled model is used off its recipe, or None."""
    recipe = model.recipe
    if recipe.guidance is not None and guidance_scale != recipe.guidance:
        reason = f"{model.name} is distilled for guidance_scale {recipe.guidance:g}"
        return "guidance_scale", reason
    if recipe.steps and num_inference_steps not in (*recipe.steps, *recipe.draft_steps):
        kind = "CFG" if model.distillation is Distillation.cfg else "step"
        return "num_inference_steps", f"{model.name} is {kind}-distilled for {_steps(recipe)}"
    return None


def off_advice(
    model: ModelConfig,
    num_inference_steps: int,
    num_frames: int,
    flow_shift: float,
    size: tuple[int, int],
) -> list[str]:
    """Return a text for each setting of a clip that the weights were not made for.

    Args:
        model: The model option.
        num_inference_steps: Steps of the clip.
        num_frames: Frames of the clip.
        flow_shift: Shift of the scheduler.
        size: (height, width) of the clip in pixels.
    """
    advice, found = model.advice, []
    if advice.steps is not None and num_inference_steps != advice.steps:
        found.append(f"{num_inference_steps} steps: made for {advice.steps}")
    if advice.max_frames is not None and num_frames > advice.max_frames:
        times = num_frames / advice.max_frames
        found.append(
            f"{num_frames} frames: trained on up to {advice.max_frames}, and this is {times:.1f} "
            "times as long"
        )
    if advice.flow_shift is not None and flow_shift != advice.flow_shift:
        found.append(f"flow_shift {flow_shift:g}: made for {advice.flow_shift:g}")
    if advice.size and list(size) != advice.size:
        height, width = advice.size
        found.append(f"{size[0]}x{size[1]} pixels: trained at {height}x{width}")
    return found


QUOTED = re.compile(r'"[^"]*"|“[^“”]*”')
"""Text that the model writes into the picture; linear in time."""
_WORD = re.compile(r"[^\W\d_]+")


def unknown_words(model: ModelConfig, prompt: str) -> list[str]:
    """Return the words of a prompt outside of quotation marks that were not in the training."""
    known = set(model.advice.words.split())
    if not known:
        return []
    words = _WORD.findall(QUOTED.sub(" ", prompt).lower())
    return [word for word in dict.fromkeys(words) if word not in known]


def _steps(recipe: Recipe) -> str:
    """Return `exactly 50 steps`, or `8 or 12 steps (or 4)`."""
    exactly = "exactly " if len([*recipe.steps, *recipe.draft_steps]) == 1 else ""
    draft = f" (or {' or '.join(map(str, recipe.draft_steps))})" if recipe.draft_steps else ""
    return f"{exactly}{' or '.join(map(str, recipe.steps))} steps{draft}"


class Task(Enum):
    """What a model turns into a video."""

    t2v = "t2v"
    i2v = "i2v"


class Weights(Enum):
    """Where the parameters come from."""

    pretrained = "pretrained"
    random = "random"
    tiny = "tiny"
    demo = "demo"
    """Trained, small, part of this package."""

    @property
    def is_small(self) -> bool:
        """Whether the model is a small one, whose checkpoint is written on this machine."""
        return self in (Weights.tiny, Weights.demo)


SMALL = tuple(w.name for w in Weights if w.is_small)
"""Names of such weights, as a log has them."""


class Distillation(Enum):
    """How a checkpoint was distilled; `Recipe` has the settings that it was made for."""

    none = "none"
    cfg = "cfg"
    step = "step"


class Dtype(Enum):
    """Parameter and activation type of every component."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Engine(Enum):
    """What renders."""

    diffusers = "diffusers"
    """The pipeline of diffusers, in a worker of this package."""
    official = "official"
    """Tencent's generate.py, as a program of its own."""


class Linear(Enum):
    """In what the large matrix products of the transformer's blocks are computed (`linears`)."""

    bf16 = "bf16"
    """In `dtype`."""
    fp8 = "fp8"
    int8 = "int8"


class OffloadKind(Enum):
    """Where each component is kept in each phase (see `placement`)."""

    auto = "auto"
    resident = "resident"
    """Transformer and VAE stay on the card."""
    stream = "stream"
    """The transformer's blocks come to the card one by one from pinned host memory."""
    stream_disk = "stream_disk"
    """The same from disk, for hosts with little memory."""
    model = "model"
    """Transformer and VAE are on the card in turn."""


@dataclass
class SamplingDefaults:
    """A model option's usual settings; a row or the command line may replace them."""

    height: int = 480
    width: int = 848
    num_frames: int = 121
    num_inference_steps: int = 50
    guidance_scale: float = 6.0
    flow_shift: float = 5.0
    fps: float = 24.0
    negative_prompt: str = ""


@dataclass
class Recipe:
    """What a distilled checkpoint was made for; empty or null where there is no limit."""

    steps: list[int] = field(default_factory=list)
    """Numbers of inference steps."""
    draft_steps: list[int] = field(default_factory=list)
    """Further numbers of steps that it accepts, at lower quality."""
    guidance: float | None = None
    """Guidance scale; 1.0 is one forward per step."""
    meanflow: bool = False
    """Whether each forward also takes the time at the end of its step (`timestep_r`)."""


@dataclass
class Advice:
    """What a checkpoint was made for; other values are reported and not refused. Null is any."""

    steps: int | None = None
    """Number of inference steps."""
    max_frames: int | None = None
    """Most frames of a clip in its training."""
    flow_shift: float | None = None
    """Shift of the scheduler."""
    size: list[int] = field(default_factory=list)
    """Height and width of a clip in its training, in pixels; empty is any."""
    words: str = ""
    """The words of its training, in lower case; empty is any."""


@dataclass
class HubFile:
    """A transformer in one file of another repository than the encoders and the VAE."""

    repo: str | None = field(default=None, metadata={"typed_only": True})
    """Hub id; null where the transformer is that of `model.repo`."""
    file: str | None = field(default=None, metadata={"typed_only": True})
    """Name of the file there, as `model.transformer_file` takes it."""
    revision: str | None = field(default=None, metadata={"typed_only": True})
    """Commit; null means the one that `prefetch` recorded."""
    sha256: str | None = None
    """Of the file's content; another content is refused. Null means any; a run stores it."""


@dataclass
class Lora:
    """A LoRA that is typed for all rows."""

    path: str = "???"
    """A .safetensors file; a relative path starts in the current folder."""
    scale: float = 1.0
    """How strongly it counts; 0 leaves it out."""
    sha256: str | None = None
    """Of the file's content, which a run stores; another content is refused."""


@dataclass
class ModelConfig:
    """One model variant: one YAML under `conf/model/`."""

    name: str = "???"
    """Name of the option."""
    repo: str | None = field(default=None, metadata={"typed_only": True})
    """Hub id, or a local folder in diffusers layout. Null for the tiny and the demo models."""
    transformer_file: str | None = field(default=None, metadata={"typed_only": True})
    """A transformer of your own in one file: Tencent's, Comfy-Org's or diffusers' layout, in bf16,
    fp16 or scaled fp8. Encoders and VAE stay those of the option."""
    transformer_hub: HubFile = field(default_factory=HubFile)
    loras: list[Lora] = field(default_factory=list, metadata={"typed_only": True})
    """LoRA files for all rows without a `loras` cell: `[{path: a.safetensors, scale: 0.8}]`."""
    revision: str | None = None
    """Commit of the hub repository; null means the one that `prefetch` recorded."""
    weights: Weights = Weights.pretrained
    """`random` builds the full-size model with seeded random weights: no download, to measure."""
    task: Task = Task.t2v
    """Text to video, or image to video."""
    distillation: Distillation = Distillation.none
    """`cfg`: guidance is built in. `step`: made for few steps."""
    dtype: Dtype = Dtype.bfloat16
    """Type used unless `runtime.dtype` is set."""
    target_size: int = 640
    """Bucket base of the image-to-video pipeline in pixels: 640 for 480p, 960 for 720p."""
    default_sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    recipe: Recipe = field(default_factory=Recipe, compare=False)
    """A limit on what may be asked; not part of what makes two models equal."""
    advice: Advice = field(default_factory=Advice, compare=False)

    @property
    def has_hub_transformer(self) -> bool:
        """Whether the transformer is a file of `transformer_hub`."""
        is_random = self.weights is Weights.random
        return self.transformer_hub.file is not None and not (self.transformer_file or is_random)

    @property
    def replaces_transformer(self) -> bool:
        """Whether the transformer in `repo` is not the one that renders."""
        return self.transformer_file is not None or self.has_hub_transformer
