"""What a pair of clips looks like: latents and frames, and what their codec hides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hv15_batch.compare.frames import FrameMeasures, measure_codec_floor, measure_frames
from hv15_batch.compare.pairs import Pair, Record, read_tag
from hv15_batch.compare.tensors import LatentMeasures, measure_latents
from hv15_batch.config import ConfigError, VideoCodec, VideoConfig
from hv15_batch.run_facts import codec_text
from hv15_batch.rundir import RunDir
from hv15_batch.stored_settings import FILE, read_settings
from hv15_batch.video import read_frames

LOSSLESS = "lossless"
H264 = "h264"
BOTH_FILES_DB = 3.01
"""The error of both files against that of one, where they are independent: it doubles."""
GONE = {
    (True, False): "the file of A is gone",
    (False, True): "the file of B is gone",
    (True, True): "the files of both are gone",
}
"""Which of the two files there is no more, and how that is said."""


@dataclass(frozen=True)
class Quality:
    """How far the two clips of a pair are apart."""

    pair: Pair
    latents: LatentMeasures | None
    frames: FrameMeasures | None
    basis: str | None
    """`lossless` where both files are, else `h264`; None where no frames were measured."""
    floor: FrameMeasures | None
    """What h264 alone costs each of the two files (estimated); None for lossless ones."""
    fault: str | None
    """Why nothing, or not all, could be measured."""
    codecs: tuple[str, str] | None = None
    """How the two files were encoded; None where no frames were measured."""

    @property
    def is_known(self) -> bool:
        """Whether there is a figure to stand beside a speed-up."""
        is_measured = self.latents is not None and self.latents.psnr_db is not None
        return is_measured or self.frames is not None

    @property
    def is_at_floor(self) -> bool:
        """Whether the frames differ by no more than what their codec alone can account for."""
        if self.frames is None or self.floor is None:
            return False
        return self.frames.psnr_db >= self.floor.psnr_db - BOTH_FILES_DB


def measure_pair(run_a: RunDir, run_b: RunDir, pair: Pair) -> Quality:
    """Measure one pair; what cannot be measured is said in `fault`."""
    if pair.fault is not None:
        return Quality(pair, None, None, None, None, pair.fault)
    quality = Quality(pair, measure_latents(run_a, run_b, pair), None, None, None, None)
    is_gone_a, is_gone_b = (not _file(*clip).is_file() for clip in _clips(run_a, run_b, pair))
    if is_gone_a or is_gone_b:
        return replace(quality, fault=GONE[is_gone_a, is_gone_b])
    try:
        return _with_frames(quality, run_a, run_b)
    except (OSError, ValueError) as error:  # also a ConfigError
        return replace(quality, fault=_without_folders(str(error), run_a, run_b))


def _without_folders(text: str, *run_dirs: RunDir) -> str:
    """Return a text in which files go by the names of their runs: it is for showing."""
    for run_dir in run_dirs:
        text = text.replace(str(run_dir.path), run_dir.path.name)
    return text


def _with_frames(quality: Quality, run_a: RunDir, run_b: RunDir) -> Quality:
    """Add how far the frames are apart, on what basis, and the codec's floor.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is damaged, or how it was encoded is not known.
    """
    clips = _clips(run_a, run_b, quality.pair)
    videos = [video_settings(*clip) for clip in clips]
    frames = measure_frames(*(read_frames(_file(*clip)) for clip in clips))
    is_lossless = all(video.codec is VideoCodec.ffv1 for video in videos)
    return replace(
        quality,
        frames=frames,
        basis=LOSSLESS if is_lossless else H264,
        floor=None if is_lossless else _floor(clips, videos),
        codecs=(codec_text(*_encoding(videos[0])), codec_text(*_encoding(videos[1]))),
    )


def _encoding(video: VideoConfig) -> tuple[str, int, str]:
    return video.codec.name, video.crf, video.preset


def _clips(run_a: RunDir, run_b: RunDir, pair: Pair) -> tuple[tuple[RunDir, Record], ...]:
    return (run_a, pair.a), (run_b, pair.b)


def _file(run_dir: RunDir, record: Record) -> Path:
    return run_dir.path / str(record["file"])


def _floor(
    clips: tuple[tuple[RunDir, Record], ...], videos: list[VideoConfig]
) -> FrameMeasures | None:
    """Return the floor of the h264 files; the lower one where their settings differ."""
    floors: list[FrameMeasures | None] = []
    for (run_dir, record), video in zip(clips, videos, strict=True):
        is_first_of_its_kind = not floors or video != videos[0]
        if video.codec is VideoCodec.h264 and is_first_of_its_kind:
            floors.append(measure_codec_floor(_file(run_dir, record), video))
    known = [floor for floor in floors if floor is not None]
    return min(known, key=lambda floor: floor.psnr_db, default=None)


def video_settings(run_dir: RunDir, record: Record) -> VideoConfig:
    """Return how a clip's file was written: by its own tag, or else by the run that wrote it.

    Raises:
        ConfigError: neither is there any more.
    """
    stored = read_tag(run_dir, record).get("video")
    if isinstance(stored, dict):
        try:
            return VideoConfig(
                VideoCodec[stored["codec"]], int(stored["crf"]), str(stored["preset"])
            )
        except (KeyError, ValueError, TypeError):
            pass  # not a tag of ours
    video = _video_of_run(run_dir, record["run_id"])
    return VideoConfig(video.codec, video.crf, video.preset)


@cache
def _video_of_run(run_dir: RunDir, run_id: str) -> VideoConfig:
    path = run_dir.run_folder(run_id) / FILE
    if not path.is_file():
        raise ConfigError(
            f"{path}: is gone, and the clip has no tag: how it was encoded is not known"
        )
    return read_settings(path).video
