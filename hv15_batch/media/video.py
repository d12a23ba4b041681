"""Frames to a verified video file and back, with PyAV.

This module handles containers and colours. The caller chooses and publishes the path, and measures
time.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from av.video.stream import VideoStream
from PIL import Image

from hv15_batch.config.settings import VideoCodec, VideoConfig
from hv15_batch.files import check_regular
from hv15_batch.units import GIB

MAX_VIDEO_BYTES = 1024 * GIB
"""Limit for a video: in effect any size, but no pipe."""

Frames = np.ndarray[Any, np.dtype[np.uint8]]
"""uint8 [F, H, W, 3], RGB."""

_LIMITED = {VideoCodec.h264: "yuv420p", VideoCodec.prores: "yuv422p10le"}
_RGB = {VideoCodec.ffv1: "bgr0", VideoCodec.png: "rgb24"}
"""Pixels of the codecs: BT.709 in limited range, and RGB."""
_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
# Keys of QuickTime hold longer texts than 64 KiB, where its older texts end.
_MOVFLAGS = {".mp4": "+faststart", ".mov": "+faststart+use_metadata_tags"}
_NTSC_RATES = tuple(Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120, 240))
_NTSC_TOLERANCE = 5e-3
"""Covers the usual spellings: 23.976, 23.98, 29.97, 59.94."""
_RATE_TOLERANCE = 1e-4
"""Relative. Matroska stores a frame's duration in nanoseconds; 23.976 and 24 are 1e-3 apart."""
_MAX_RATE_DENOMINATOR = 1001
_JPEG_QUALITY = 85

_READ_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm",
}
"""A playlist that poses as a video must not make FFmpeg open other files or hosts."""

# AREA is the mean of each 2x2 block, and ACCURATE_RND keeps every plane within rounding of the
# BT.709 formula; swscale's default (bilinear) is up to 30 levels off in chroma on sharp detail.
# Measured 2026-11-22 on random pixels, libswscale 9.5. The mean sits in the middle of its block,
# which is H.264's chroma location 1.
_INTERPOLATION = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
_X264_PARAMS = "chromaloc=1"

# The same frames give the same bytes on every x86-64 machine. x264 cuts its work by the number of
# threads; and with its AVX-512 code `mbtree` varied from run to run (core 165, measured
# 2026-11-25), while SSE4.2 and AVX2 give one file, in the same time.
_X264_THREADS = 8
_X264_PORTABLE = "asm=SSE4.2"


def file_suffix(codec: VideoCodec) -> str:
    """Return the suffix of a clip's file, with its dot."""
    return codec.suffix


def frame_rate(fps: float) -> Fraction:
    """Return the exact rate of `fps`, in frames per second.

    A rounded decimal of n*1000/1001 (23.976, 29.97) becomes that fraction.
    """
    for rate in _NTSC_RATES:
        if abs(fps - rate) < _NTSC_TOLERANCE:
            return rate
    return Fraction(fps).limit_denominator(_MAX_RATE_DENOMINATOR)


def write_video(
    frames: Frames, path: Path, *, fps: float, video: VideoConfig, comment: str | None
) -> None:
    """Encode frames into a file at `path`, which need not end in the container's suffix.

    h264: yuv420p in mp4, converted to and tagged as BT.709 limited range, index in front; the same
    frames give the same bytes, however many cores there are.
    ffv1: lossless RGB in Matroska, with a checksum in every slice.
    prores: 422 HQ, 10 bit, in QuickTime, converted and tagged as h264 is.
    png: lossless RGB pictures in QuickTime, tagged sRGB.

    Args:
        frames: uint8 [F, H, W, 3] RGB; goes to the encoder one frame at a time.
        path: File to write; an existing one is replaced.
        fps: Frames per second.
        video: Codec and its settings.
        comment: Text for the container's `comment` tag, or None.

    Raises:
        ValueError: Frames have another shape or type, or no file can hold the comment.
        OSError: The file cannot be written, with its errno (a full disk is ENOSPC).
    """
    _check_frames(frames)
    height, width = frames.shape[1:3]
    write_frames(frames, (height, width), path, fps=fps, video=video, comment=comment)


def write_frames(
    frames: Iterable[Frames],
    size: tuple[int, int],
    path: Path,
    *,
    fps: float,
    video: VideoConfig,
    comment: str | None,
) -> int:
    """Encode frames as they come, as `write_video` does; return how many there were.

    Args:
        frames: uint8 [H, W, 3] RGB each; one is in memory at a time.
        size: Height and width of every frame; even.
        path: File to write; an existing one is replaced.
        fps: Frames per second.
        video: Codec and its settings.
        comment: Text for the container's `comment` tag, or None.

    Raises:
        ValueError: No file can hold the comment.
        OSError: The file cannot be written, with its errno (a full disk is ENOSPC).
    """
    if comment is not None:
        _check_comment(comment)
    codec = video.codec
    count = 0
    with container_of(path, codec) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        codec_name, options = _codec_options(video)
        stream = container.add_stream(codec_name, rate=frame_rate(fps), options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = _LIMITED.get(codec) or _RGB[codec]
        _tag_colours(stream, codec)
        if codec is VideoCodec.h264:
            stream.codec_context.thread_type = ThreadType.FRAME
            stream.codec_context.thread_count = _X264_THREADS
        reformatter = VideoReformatter()
        for pixels in frames:
            container.mux(stream.encode(_convert(pixels, reformatter, codec)))
            count += 1
        container.mux(stream.encode(None))
    return count


def container_of(path: Path, codec: VideoCodec) -> OutputContainer:
    """Return a new container for videos of a codec; the index of mp4 and mov stands in front."""
    flags = _MOVFLAGS.get(codec.suffix)
    options = {"movflags": flags} if flags else {}
    name = _FORMATS[codec.suffix]
    container: OutputContainer = av.open(str(path), "w", format=name, options=options)
    return container


def _codec_options(video: VideoConfig) -> tuple[str, dict[str, str]]:
    if video.codec is VideoCodec.h264:
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        params = f"{_X264_PARAMS}:{_X264_PORTABLE}" if is_x86 else _X264_PARAMS
        return "libx264", {"crf": str(video.crf), "preset": video.preset, "x264-params": params}
    if video.codec is VideoCodec.prores:
        return "prores_ks", {"profile": "hq", "vendor": "apl0"}
    if video.codec is VideoCodec.png:
        return "png", {"pred": "mixed"}
    return "ffv1", {"level": "3", "g": "1", "slicecrc": "1"}


def _tag_colours(stream: VideoStream, codec: VideoCodec) -> None:
    context = stream.codec_context
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    if codec is VideoCodec.png:
        context.color_trc = ColorTrc.IEC61966_2_1
    if codec in _LIMITED:
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
    else:
        context.color_range = ColorRange.JPEG


def _convert(pixels: Frames, reformatter: VideoReformatter, codec: VideoCodec) -> VideoFrame:
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if codec in _RGB:
        return reformatter.reformat(frame, format=_RGB[codec])
    return reformatter.reformat(
        frame,
        format=_LIMITED[codec],
        interpolation=_INTERPOLATION,
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        dst_color_trc=ColorTrc.BT709,
        dst_color_primaries=ColorPrimaries.BT709,
    )


def _check_frames(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [F, H, W, 3]"
        )
    if not len(frames):
        raise ValueError("there are no frames to write")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"frames are {height}x{width}; yuv420p needs even sides")


def _check_comment(comment: str) -> None:
    if "\0" in comment:
        raise ValueError("the comment holds a NUL character, where a container would cut it")
    if not comment:
        raise ValueError("the comment is empty; give None to leave it out")
    comment.encode("utf-8")  # A lone surrogate is refused here, with its place in the text.


def check_video(path: Path, *, num_frames: int, height: int, width: int, fps: float) -> None:
    """Read a file back, decode every frame, and check that it is what was written.

    Raises:
        ValueError: It differs or cannot be read; the message names every difference.
        OSError: The file cannot be opened.
    """
    with open_video(path) as container:
        faults = _find_faults(container, num_frames, height, width, frame_rate(fps))
    if faults:
        raise ValueError(f"{path.name} is not what was written: {'; '.join(faults)}")


def _find_faults(
    container: InputContainer, num_frames: int, height: int, width: int, rate: Fraction
) -> list[str]:
    if not container.streams.video:
        return ["it has no video stream"]
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    # By default FFmpeg repairs damaged frames and counts them as good.
    stream.codec_context.options = {"err_detect": "explode"}
    sizes: set[tuple[int, int]] = set()
    count = 0
    for frame in container.decode(stream):
        sizes.add((frame.height, frame.width))
        count += 1
    faults = []
    if count != num_frames:
        faults.append(f"{count} frames instead of {num_frames}")
    if sizes - {(height, width)}:
        found = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
        faults.append(f"size {found} instead of {height}x{width}")
    found_rate = stream.average_rate or stream.guessed_rate
    if found_rate is None or abs(found_rate / rate - 1) > _RATE_TOLERANCE:
        found_fps = "no frame rate" if found_rate is None else f"{float(found_rate):g} fps"
        faults.append(f"{found_fps} instead of {float(rate):g} fps")
    return faults


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise ValueError(f"{path.name} has no video stream")
    return container.streams.video[0]


def frame_size_and_rate(path: Path) -> tuple[tuple[int, int], Fraction]:
    """Return (height, width) of a file's frames, and frames per second.

    Raises:
        ValueError: The file is no video.
        OSError: The file cannot be opened.
    """
    with open_video(path) as container:
        stream = _video_stream(container, path)
        rate = stream.average_rate or stream.guessed_rate
        size = stream.codec_context.height, stream.codec_context.width
    if not rate or not all(size):
        raise ValueError(f"{path.name} has no size or frame rate")
    return size, frame_rate(float(rate))


def read_frames(path: Path, num_threads: int | None = None) -> Iterator[Frames]:
    """Yield the frames of a file one by one, as uint8 [H, W, 3] RGB.

    Args:
        path: The file.
        num_threads: That decode it; None for as many as FFmpeg likes.

    Raises:
        ValueError: The file is no video, or is damaged.
        OSError: The file cannot be opened.
    """
    with open_video(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        if num_threads is not None:
            stream.codec_context.thread_count = num_threads
        stream.codec_context.options = {"err_detect": "explode"}
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def lossy_codec(path: Path) -> str | None:
    """Return the name of a file's codec, such as `h264`; None where it gives every value back.

    Raises:
        ValueError: The file is no video.
        OSError: The file cannot be opened.
    """
    with open_video(path) as container:
        name = _video_stream(container, path).codec_context.name
    is_lossless = name in VideoCodec.__members__ and VideoCodec[name].is_lossless
    return None if is_lossless else name


def copy_video(source: Path, path: Path, comment: str | None) -> None:
    """Copy the packets of a file's first video stream into an mp4: the same frames, index in front.

    Args:
        source: A video in a codec that mp4 takes.
        path: File to write, whatever its suffix; an existing one is replaced.
        comment: Text for the container's `comment` tag, or None.

    Raises:
        ValueError: The source is no video, or cannot be copied.
        OSError: A file cannot be opened or written.
    """
    options = {"movflags": "+faststart"}
    with open_video(source) as original:
        stream = _video_stream(original, source)
        with av.open(str(path), "w", format="mp4", options=options) as container:
            if comment is not None:
                _check_comment(comment)
                container.metadata["comment"] = comment
            copy = container.add_stream_from_template(stream)
            for packet in original.demux(stream):
                if packet.dts is not None:  # else it is the empty one that ends the stream
                    packet.stream = copy
                    container.mux(packet)


def read_comment(path: Path) -> str | None:
    """Return the container's `comment` tag, or None without one.

    Raises:
        ValueError: The file is no video.
        OSError: The file cannot be opened.
    """
    with open_video(path) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    return tags.get("comment")  # Matroska spells its tags in capitals.


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a file; errors of FFmpeg, then or later, become a ValueError."""
    try:
        check_regular(path, MAX_VIDEO_BYTES)
        with av.open(str(path), options=_READ_OPTIONS) as container:
            yield container
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path.name} cannot be read back: {error.strerror}") from error


def write_thumbnail(frames: Frames, path: Path, width: int = 320) -> None:
    """Write the middle frame of uint8 [F, H, W, 3] as a JPEG, `width` pixels wide.

    A frame narrower than `width` keeps its size.
    """
    image = Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((width, width * image.height), Image.Resampling.LANCZOS)
    image.save(path, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
