"""How a clip is cut for decoding, and the memory that takes; plain arithmetic, no torch.

The decoder is causal in time, so a clip is decoded in pieces of a few frames, each convolution
keeping the last two frames that it saw: the same frames as in one go. Where even that is too much
memory, the later stages also run on spatial tiles with a margin as wide as their receptive field,
which again gives the same frames. So a plan changes time and memory, never the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from hv15_batch.units import format_gib

SPATIAL_RATIO = 16
"""Pixels per latent row and column."""
TILED_FROM_STAGE = 2
"""First stage that runs on tiles; the ones before it see the whole frame."""
TILE_MARGIN = 4
"""Latent rows and columns decoded around a tile and dropped again.

The stages from `TILED_FROM_STAGE` on reach 7.125 pixels of their input (1 + 6/2 + 1/2 + 6/4 + 1/4
+ 7/8, with three residual blocks of two 3x3x3 convolutions per stage), which are 3.6 latents.
"""

# The published VAE, from the defaults of diffusers' AutoencoderKLHunyuanVideo15.
CHANNELS = (1024, 1024, 512, 256, 128)
FRAME_RATIO = (1, 2, 2, 1, 1)
CONVOLUTIONS = (10, 6, 6, 6, 7)
"""3x3x3 convolutions at each stage's own resolution, its upsampler not counted."""
WEIGHT_BYTES = 2 * 1_260_634_115
ITEM_BYTES = 2

DEFAULT_CHUNK_BYTES = 1 << 28
WORKSPACE_BYTES = 64 << 20
"""Reserved for cuBLAS's workspace and small tensors; cuDNN needs none for these convolutions."""
MAX_SPLITS = 4
PIECE_FRAMES = (8, 4, 2, 1)
"""Frames that the last stage takes at a time."""
PIECE_OVERHEAD = 0.11
"""A plan takes about 1 + PIECE_OVERHEAD / frames. Measured, 480x848x121, H200, 2026-11-22."""


class NoPlanError(ValueError):
    """Even the most frugal plan needs more memory than there is."""


@dataclass(frozen=True)
class TilePlan:
    """How one clip is decoded."""

    rows: int
    """Tiles from top to bottom; 1 with `columns` 1 is untiled."""
    columns: int
    """Tiles from left to right."""
    tile_height: int
    """Latent rows of a tile, its margin not counted; the last tile may have fewer."""
    tile_width: int
    """Latent columns of a tile, its margin not counted."""
    overlap: int
    """Latent rows and columns of margin on each inner side of a tile; 0 when untiled."""
    chunk_bytes: int
    """Size that no activation of a piece of frames exceeds, unless one frame alone does."""

    @property
    def is_tiled(self) -> bool:
        """Whether the frame is cut at all."""
        return self.rows * self.columns > 1

    @property
    def tile_size(self) -> int | None:
        """Longer edge of a tile in pixels, its margin not counted; None when untiled."""
        return max(self.tile_height, self.tile_width) * SPATIAL_RATIO if self.is_tiled else None


@dataclass(frozen=True)
class Span:
    """A tile's extent along one axis, in latents."""

    start: int
    stop: int
    outer_start: int
    """Start with the margin."""
    outer_stop: int

    @property
    def outer_size(self) -> int:
        """Size with the margin."""
        return self.outer_stop - self.outer_start

    def core(self, scale: int) -> slice:
        """Return where the tile lies in the frame."""
        return slice(self.start * scale, self.stop * scale)

    def with_margin(self, scale: int) -> slice:
        """Return where the tile with its margin lies in the frame."""
        return slice(self.outer_start * scale, self.outer_stop * scale)

    def core_within(self, scale: int) -> slice:
        """Return where the tile lies within its margin."""
        start = (self.start - self.outer_start) * scale
        return slice(start, start + (self.stop - self.start) * scale)


def spans(length: int, tile: int, margin: int) -> list[Span]:
    """Return the tiles along one axis."""
    result = []
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        result.append(Span(start, stop, max(0, start - margin), min(stop + margin, length)))
    return result


def make_plan(
    latent_height: int, latent_width: int, rows: int, columns: int, chunk_bytes: int
) -> TilePlan:
    """Return the plan that cuts a frame evenly into so many rows and columns of tiles."""
    return TilePlan(
        rows=rows,
        columns=columns,
        tile_height=-(-latent_height // rows),
        tile_width=-(-latent_width // columns),
        overlap=TILE_MARGIN if rows * columns > 1 else 0,
        chunk_bytes=chunk_bytes,
    )


def plan_tiles(
    latent_height: int,
    latent_width: int,
    num_latent_frames: int,
    budget_bytes: int | None,
    device_type: str,
) -> TilePlan:
    """Return the fastest plan for this clip within a memory budget.

    Args:
        latent_height: Rows of the latents.
        latent_width: Columns of the latents.
        num_latent_frames: Frames of the latents.
        budget_bytes: What decoding may take of the device's memory in all, the VAE's bf16
            weights included (2.35 GiB); None for no limit.
        device_type: `cuda`, or `cpu`, where the budget does not count.

    Raises:
        NoPlanError: if even the most frugal plan needs more than the budget.
    """
    if device_type == "cpu":
        return make_plan(latent_height, latent_width, 1, 1, DEFAULT_CHUNK_BYTES)
    plans = candidate_plans(latent_height, latent_width)
    if budget_bytes is None:
        return plans[0]
    peaks = [
        predict_peak_bytes(plan, latent_height, latent_width, num_latent_frames) for plan in plans
    ]
    for plan, peak in zip(plans, peaks, strict=True):
        if peak <= budget_bytes:
            return plan
    raise NoPlanError(
        f"decoding {latent_height * SPATIAL_RATIO}x{latent_width * SPATIAL_RATIO} with "
        f"{num_latent_frames} latent frames needs {format_gib(min(peaks))} GiB at least, and "
        f"{format_gib(budget_bytes)} GiB are free for it; free memory or render smaller clips."
    )


def most_frugal_plan(latent_height: int, latent_width: int, num_latent_frames: int) -> TilePlan:
    """Return the plan that takes the least memory."""
    return min(
        candidate_plans(latent_height, latent_width),
        key=lambda plan: predict_peak_bytes(plan, latent_height, latent_width, num_latent_frames),
    )


def candidate_plans(latent_height: int, latent_width: int) -> list[TilePlan]:
    """Return all plans for a frame of this size, fastest first."""
    timed = []
    for rows in range(1, min(MAX_SPLITS, latent_height) + 1):
        for columns in range(1, min(MAX_SPLITS, latent_width) + 1):
            plan = make_plan(latent_height, latent_width, rows, columns, 0)
            rows_cut = spans(latent_height, plan.tile_height, plan.overlap)
            columns_cut = spans(latent_width, plan.tile_width, plan.overlap)
            decoded = sum(r.outer_size for r in rows_cut) * sum(c.outer_size for c in columns_cut)
            work = decoded / (latent_height * latent_width)
            tile = max(r.outer_size for r in rows_cut), max(c.outer_size for c in columns_cut)
            for frames in PIECE_FRAMES:
                chunk_bytes = frames * _plane_bytes(len(CHANNELS) - 1, *tile)
                seconds = work * (1 + PIECE_OVERHEAD / frames)
                timed.append((seconds, replace(plan, chunk_bytes=chunk_bytes)))
    return [plan for _, plan in sorted(timed, key=lambda pair: pair[0])]


def frames_per_piece(chunk_bytes: int, output_frame_bytes: int, frame_ratio: int) -> int:
    """Return how many frames a stage takes at a time, so that its output stays within a chunk."""
    return max(1, chunk_bytes // (output_frame_bytes * frame_ratio))


@lru_cache(maxsize=1024)
def predict_peak_bytes(
    plan: TilePlan, latent_height: int, latent_width: int, num_latent_frames: int
) -> int:
    """Return the peak device memory of decoding with this plan, bf16 weights included.

    Counts the context frames that the convolutions keep, the piece that each stage hands on and
    the activations alive inside the busiest stage.
    """
    frames = [num_latent_frames]
    for ratio in FRAME_RATIO[1:]:
        frames.append(frames[-1] * ratio - (ratio - 1))
    fixed = WEIGHT_BYTES + WORKSPACE_BYTES
    size = latent_height, latent_width
    if not plan.is_tiled:
        return fixed + _stages_bytes(plan, 0, len(CHANNELS), size, frames)
    tile = (
        max(r.outer_size for r in spans(latent_height, plan.tile_height, plan.overlap)),
        max(c.outer_size for c in spans(latent_width, plan.tile_width, plan.overlap)),
    )
    canvas = frames[-1] * latent_height * latent_width * SPATIAL_RATIO**2 * 3
    last = TILED_FROM_STAGE - 1
    handed_on = frames[last] * _plane_bytes(last, *size)
    whole = _stages_bytes(plan, 0, TILED_FROM_STAGE, size, frames)
    tiled = _stages_bytes(plan, TILED_FROM_STAGE, len(CHANNELS), tile, frames)
    return fixed + handed_on + max(whole, canvas + tiled)


def _stages_bytes(
    plan: TilePlan, first: int, end: int, size: tuple[int, int], frames: list[int]
) -> int:
    """Return the peak of running stages `first` to `end` on latents of this size."""
    contexts = 0
    if first == 0:
        contexts = 2 * frames[0] * _plane_bytes(0, *size)  # keys and values of the attention
    for stage in range(first, end):
        contexts += 2 * CONVOLUTIONS[stage] * _plane_bytes(stage, *size, padding=1)
        if stage > 0:
            contexts += 2 * _plane_bytes(stage - 1, *size, padding=1)
    arriving = frames[max(0, first - 1)]
    return contexts + _busiest_bytes(plan, first, end, size, arriving, True)


def _busiest_bytes(
    plan: TilePlan, stage: int, end: int, size: tuple[int, int], arriving: int, is_first: bool
) -> int:
    """Return the most bytes alive, without contexts, while frames pass this and the later stages.

    Every length of piece is followed: a piece that is shorter by a frame may be cut less often in a
    later stage, and then takes more at a time.
    """
    if stage == end:
        return 0
    plane, ratio = _plane_bytes(stage, *size), FRAME_RATIO[stage]
    padded = _plane_bytes(stage, *size, padding=1)
    pieces = -(-arriving // frames_per_piece(plan.chunk_bytes, plane, ratio))
    shorter, num_longer = divmod(arriving, pieces)  # as `tensor_split` cuts, the longer ones first
    kinds = {(shorter + (num_longer > 0), is_first)}
    if num_longer > 1:
        kinds.add((shorter + 1, False))
    if pieces > max(num_longer, 1):
        kinds.add((shorter, False))
    busiest = 0
    for taken, has_first in kinds:
        given = taken * ratio - (ratio - 1 if has_first else 0)  # the clip's first frame stays one
        working = 2 * given * plane + (given + 2) * padded
        if stage == 0:
            working += 3 * given * plane  # of the attention: normalised in float32, query
        else:
            before = _plane_bytes(stage - 1, *size, padding=1)
            working = max(working, given * plane + max(given * plane, (taken + 2) * before))
        later = _busiest_bytes(plan, stage + 1, end, size, given, has_first)
        busiest = max(busiest, working, given * plane + later)
    return busiest


def _plane_bytes(stage: int, latent_height: int, latent_width: int, padding: int = 0) -> int:
    """Return the bytes of one frame at a stage's resolution."""
    height = (latent_height << stage) + 2 * padding
    width = (latent_width << stage) + 2 * padding
    return height * width * CHANNELS[stage] * ITEM_BYTES
