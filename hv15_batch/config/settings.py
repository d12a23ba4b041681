"""Every setting of a run: its type, its default, its bounds and what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from hv15_batch.config.rewriting import RewriteConfig
from hv15_batch.model.codec import VideoCodec as VideoCodec
from hv15_batch.model.official import OfficialConfig
from hv15_batch.model.variant import Dtype, Engine, Linear, ModelConfig, OffloadKind


def bounded(
    default: float | None,
    least: float,
    most: float = math.inf,
    *,
    about: str,
    is_over: bool = False,
    typed_only: bool = False,
) -> Any:
    """Return a field that holds a finite number within bounds, or null.

    Args:
        default: Its default.
        least: Lower bound.
        most: Upper bound.
        about: What is allowed and what to do, for the message that refuses another number.
        is_over: Whether `least` itself is refused.
        typed_only: See `TYPED_ONLY`.
    """
    bounds = {"min": least, "max": most, "is_over": is_over, "about": about}
    return field(default=default, metadata={**bounds, "typed_only": typed_only})


def at_least(default: float | None, least: float, *, typed_only: bool = False) -> Any:
    """Return a field that holds a number of at least `least`, or null."""
    about = f"must be {least:g} or more; leave it out for the default"
    return bounded(default, least, about=about, typed_only=typed_only)


class DispatchKind(Enum):
    """Which executor renders."""

    local = "local"
    ray = "ray"


class Order(Enum):
    """`takes`: the first seed of every row, then the second of every row. `rows`: row by row."""

    takes = "takes"
    rows = "rows"


class CacheKind(Enum):
    """Whether steps reuse the transformer's last result (`model.step_cache`)."""

    none = "none"
    static = "static"


class FileCheck(Enum):
    """How a finished clip's file is checked."""

    size = "size"
    sha256 = "sha256"


class OtherColumns(Enum):
    """What becomes of a manifest's columns that have no meaning here."""

    refuse = "refuse"
    tag = "tag"
    """They are labels, as if their names began with `tag_`."""
    ignore = "ignore"


@dataclass
class ManifestColumns:
    """Under which name a manifest has a column; null means its own name."""

    prompt: str | None = None
    id: str | None = None
    seed: str | None = None
    negative_prompt: str | None = None
    image: str | None = None
    height: str | None = None
    width: str | None = None
    num_frames: str | None = None
    num_inference_steps: str | None = None
    guidance_scale: str | None = None
    flow_shift: str | None = None
    fps: str | None = None
    loras: str | None = None
    model: str | None = None
    join: str | None = None


@dataclass
class SamplingConfig:
    """Sampling settings for every row; null means the model option's `default_sampling`."""

    seeds: Any = None
    """Integers 0..2^63-1: `7`, `1 2 5`, `1,2,5`, `0..3` (inclusive) or a list."""
    negative_prompt: str | None = None
    """What the frames should not show; used only with guidance."""
    height: int | None = None
    """Pixels, a multiple of 16."""
    width: int | None = None
    """Pixels, a multiple of 16."""
    num_frames: int | None = None
    """4n+1, for example 61 or 121."""
    num_inference_steps: int | None = bounded(
        *(None, 1, 1000),
        about="must be 1 to 1000; 50 is usual, 8 or 12 for step-distilled models",
    )
    """Denoising steps."""
    guidance_scale: float | None = bounded(
        None, 1, 100, about="must be 1 (no guidance) to 100; 6 is usual"
    )
    """Classifier-free guidance; 1 means none, with one forward per step."""
    flow_shift: float | None = bounded(
        *(None, 0, 100), is_over=True, about="must be over 0 and at most 100; 5 to 9 is usual"
    )
    """`shift` of the flow-match scheduler."""
    fps: float | None = bounded(None, 1, 240, about="must be 1 to 240; the model was trained at 24")
    """Frames per second of the written file."""
    cache: CacheKind | None = None
    """`static` computes some of the steps and reuses the last result in the others: faster, and a
    little off. For 10 steps or more; not for step-distilled models."""
    cache_every: int | None = at_least(None, 2)
    """One step of so many is computed between `cache_start` and `cache_end`; null means 4."""
    cache_start: int | None = at_least(None, 1)
    """First step, from 0, that may be reused; null means 22 % of the steps."""
    cache_end: int | None = at_least(None, 2)
    """All steps from this one on are computed; null means 90 % of the steps."""


@dataclass
class OffloadConfig:
    """One offload profile: one YAML under `conf/offload/`."""

    kind: OffloadKind = OffloadKind.auto
    """Where transformer, VAE and encoders are kept; typed as `offload=NAME`."""


@dataclass
class DispatchConfig:
    """Which executor renders: one YAML under `conf/dispatch/`."""

    kind: DispatchKind = DispatchKind.local
    """`local`: child processes here; `ray`: a cluster's workers. Typed as `dispatch=NAME`."""
    workers: int | str = "auto"
    """How many cards render at a time, a process each: a number, `all`, or `auto`, which takes
    those that are like the first one and as free (Ray: all free ones). On the CPU `auto` is one."""
    address: str | None = field(default=None, metadata={"typed_only": True})
    """A running Ray cluster: `auto` or `HOST:PORT`; null starts one for this machine alone."""


@dataclass
class RuntimeConfig:
    """How the maths is carried out on this machine."""

    engine: Engine = Engine.diffusers
    """`official` renders with Tencent's generate.py, see `official.repo`."""
    dtype: Dtype | None = None
    """Null means the model option's `dtype`."""
    attention_backend: str = field(default="auto", metadata={"typed_only": True})
    """`auto` chooses by the card's compute capability. docs/attention.md has the names that can be
    typed. One that ends in `_hub` is compiled code of the hub, which `prefetch` fetches."""
    linear: Linear = Linear.bf16
    """In what the transformer's matrix products compute. `fp8` and `int8` halve its weights, with
    an error of their own; `fp8` needs compute capability 8.9, `int8` 8.0. `bf16` means `dtype`."""
    mask_free: bool = True
    """Drop the padded text tokens instead of masking them: same maths, far less work."""
    compile: bool | str = "auto"
    """Compile the transformer's blocks, at the first two clip sizes: `true`, `false`, or `auto`,
    which compiles if the whole manifest is long enough to pay for it. `auto` is decided once in a
    run directory for each model, its weights and `linear`, and is `false` on the CPU."""
    vram_limit_gib: float | None = bounded(
        None, 0, is_over=True, about="must be over 0, for example 24"
    )
    """Use the card as if it had this much memory (GiB, CUDA's own part included)."""
    card: str | None = None
    """Card that the dry run predicts for, e.g. `rtx_4090`; null means the one in this machine."""
    allow_off_recipe: bool = False
    """Allow settings that a distilled checkpoint was not made for."""


@dataclass
class VideoConfig:
    """How frames become a file. These settings are part of a clip's identity."""

    codec: VideoCodec = VideoCodec.h264
    """`h264` in `.mp4`; lossless `ffv1` in `.mkv`; to edit, `prores` (422 HQ, 10 bit) or lossless
    `png` pictures in `.mov`. Browsers play `h264` alone."""
    crf: int = bounded(17, 0, 51, about="x264 takes 0 (lossless) to 51 (worst); try 17")
    """Constant rate factor of x264, 0 (lossless) to 51; for h264 alone."""
    preset: str = "medium"
    """x264 preset."""
    embed_metadata: bool = True
    """Write the clip's settings as JSON into the container's `comment` tag."""


_LUMA = "must be 0 (never suspect) to 255; leave it out for the default"


@dataclass
class QualityConfig:
    """When a finished clip is `suspect`. Luma is 0 to 255 (BT.709)."""

    black_luma: float = bounded(4.0, 0, 255, about=_LUMA)
    """A clip with a mean luma below this is black."""
    flat_std: float = bounded(2.0, 0, 255, about=_LUMA)
    """A clip with a standard deviation of luma below this is flat."""
    frozen_difference: float = bounded(0.02, 0, 255, about=_LUMA)
    """A clip whose neighbouring frames differ by less than this (mean absolute luma) is frozen."""
    clipped_share: float = bounded(
        *(0.9, 0, 1),
        is_over=True,
        about="must be over 0 and at most 1 (never suspect); leave it out for the default",
    )
    """A clip with a larger share of channel values at 0 or 255 is clipped; 1 means never. A drawing
    on white paper stays below."""
    parts: bool = True
    """Call a clip suspect also if a part of it stands still or is black, or if it cuts."""


@dataclass
class RetryConfig:
    """When a clip is rendered again, a worker replaced, or the run stopped."""

    suspect: bool = False
    """Denoise suspect clips again, on torch's own attention. For one command; not stored."""
    ladder: bool = True
    """When memory runs out, decode in smaller tiles, then with the transformer off the card;
    denoise with the next smaller offload profile. `false` fails the clip at once."""
    max_attempts: int = at_least(2, 1)
    """A clip whose worker died is tried this many times in one run, then skipped."""
    max_clips_per_worker: int | None = at_least(None, 1)
    """Replace the worker after this many clips; null sets no limit."""
    max_ram_growth_gib: float | None = at_least(8.0, 0.1)
    """Replace the worker when it holds this much more RAM (GiB) than after its first clip; null
    sets no limit."""
    stall_factor: float = at_least(10.0, 2)
    """A worker that takes this many times the expected time for a step or stage counts as dead.
    After two minutes at the earliest; half an hour to load, encode and render a size first."""
    stall_minutes: float | None = at_least(None, 0.01)
    """A worker that renders a clip and shows no progress for this long counts as dead, in place of
    `stall_factor`; null leaves it to that. A line of the official script is progress too."""
    max_consecutive_bad: int = at_least(5, 1)
    """Give a model with its LoRAs up after this many failed or suspect clips in a row; stop the run
    when all are given up."""


@dataclass
class BenchmarkConfig:
    """Repeated measurement."""

    repeat: int | None = at_least(None, 1)
    """Render each clip this many times to measure it; null renders it once and keeps its file."""
    calibrate: bool = False
    """Compare the measured seconds with the predicted ones at the end, and keep them in the user's
    cache, where they calibrate the predictions for this card in all folders. Needs a card."""


@dataclass
class NotifyConfig:
    """A command of yours that the run calls with news."""

    command: Any = field(default=None, metadata={"typed_only": True})
    """Program and arguments, as a text or a list. Called after the first clip, at failures and at
    the end, without a shell. Environment variables HV15_* have the details."""
    timeout_seconds: float = at_least(60.0, 0.1, typed_only=True)
    """The command is killed when it takes longer."""


@dataclass
class ReportConfig:
    """What the page shows."""

    price_per_kwh: float | None = at_least(None, 0)
    """Price of electricity, in any currency; null leaves cost out."""


OF_ONE_COMMAND = (
    *("only", "limit", "shard", "force", "add", "retry.suspect", "until", "time_limit"),
)
"""Settings that apply to one command only, so that `resume=` does not take them over."""


@dataclass
class Config:
    """All settings of one run."""

    manifest: str | None = None
    """CSV, TSV, JSON, JSON Lines, Parquet or .txt with one row per prompt."""
    manifest_literal: bool = False
    """Take prompts that look like comments, options or lists as they are typed."""
    manifest_columns: ManifestColumns = field(default_factory=ManifestColumns)
    manifest_other: OtherColumns = OtherColumns.refuse
    """What becomes of columns that have no meaning here."""
    templates: str | None = None
    """Expand `{red|blue}` in prompts: `all`, or so many draws of each; null takes it as text."""
    templates_seed: int = at_least(0, 0)
    """Draws other prompts; no seed of a clip."""
    run_dir: str | None = None
    """Folder, or s3://, gs:// or az:// URL, for clips and log; null means outputs/<manifest>."""
    resume: str | None = None
    """Run directory whose manifest and settings are used again."""
    dry_run: bool = False
    """Check, resolve and predict; render nothing."""
    limit: int | None = bounded(None, 1, about="must be 1 or more; leave it out for all clips")
    """Render at most this many clips."""
    only: str | None = None
    """Render only these rows: ids, separated by commas."""
    shard: str | None = None
    """Render only share k of n, typed as `k/n`, with k from 1 to n or from 0 to n-1. The other
    shares go to other commands with the same run directory, on any machine that sees it."""
    force: bool = False
    """Render finished clips again, denoising included."""
    until: str | None = None
    """Time of day, e.g. `07:00`: start only clips that will finish by then."""
    time_limit: str | None = None
    """The same as a duration from the start, e.g. `8h`, `90min`, `1h30m`."""
    sweep_value: str | None = None
    """Column of the log for a sweeper such as Optuna to minimise, e.g. `total_seconds`. Each run of
    the sweep returns the median over its clips; null returns the exit code."""
    window: str | None = None
    """Times of day, e.g. `22:00-07:00`: outside them the run waits with the card free."""
    add: bool = False
    """Allow new settings in a run directory that holds clips of other settings."""
    order: Order = Order.takes
    """`takes`: the first seed of every row, then the second of every row. `rows`: row by row."""
    check_files: FileCheck = FileCheck.size
    """How a finished clip's file is checked: by its logged size, or the hash of all its bytes."""
    keep_latents: bool = True
    """Keep the denoised latents (3 MB a clip), from which a clip is decoded without denoising."""
    preview: bool = True
    """Show the clip that denoises as a small picture, in `view` and in `previews/`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    dispatch: DispatchConfig = field(default_factory=DispatchConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    override: SamplingConfig = field(default_factory=SamplingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    official: OfficialConfig = field(default_factory=OfficialConfig)
    models: dict[str, ModelConfig] = field(default_factory=dict)
    """Options that cells `model` name (`config.options`); stored by a run, never typed."""
    preset_sampling: list[str] = field(default_factory=list)
    """`sampling` values of the preset, which hold for its own model; stored, never typed."""
    preset_notes: list[str] = field(default_factory=list)
    """What the preset's own text file says of it, printed before a run; stored, never typed."""
    model_option: str | None = None
    """Name of the option `model` whose file says another `name`; stored, never typed."""
    config_dir: str | None = field(default=None, metadata={"omegaconf_ignore": True})
    """Folder of `--config-dir`; never stored."""


CONFIG_DIR = "--config-dir"
"""The flag, as messages name it."""
NOT_TYPED = ("models", "preset_sampling", "preset_notes", "model_option", "config_dir")
"""What is gathered while settings are composed."""

X264_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slow", "slower", "veryslow"),
)


def each_setting(config: Any, section: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield dotted name, value and metadata of every setting, those of sections included."""
    for setting in fields(config):
        name, value = f"{section}{setting.name}", getattr(config, setting.name)
        if name in NOT_TYPED:
            continue
        if is_dataclass(value):
            yield from each_setting(value, f"{name}.")
        else:
            yield name, value, setting.metadata


TYPED_ONLY = tuple(
    name for name, _, metadata in each_setting(Config()) if metadata.get("typed_only")
)
"""Settings that can start a process, open a socket or cause a download: they are never taken from
the stored configuration of an earlier run."""
