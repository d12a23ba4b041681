"""Several clips as one file: their packets are copied, so that nothing is encoded twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.video.stream import VideoStream

from hv15_batch.config.settings import VideoCodec
from hv15_batch.files import parse_json
from hv15_batch.media.video import (
    check_video,
    container_of,
    frame_rate,
    open_video,
    read_comment,
)

_KEY = "hv15_batch_film"
_MAX_COMMENT_CHARACTERS = 16_000_000
_MAX_TIME_ERROR = Fraction(1, 1000)
"""Seconds: Matroska's unit."""


def join_videos(
    clips: Sequence[Path],
    film: Path,
    *,
    codec: VideoCodec,
    size: tuple[int, int],
    num_frames: int,
    fps: float,
    sha256s: Sequence[str],
) -> None:
    """Write clips one after the other into a file, and read it back.

    Args:
        clips: Files of one codec, with equal settings of the encoder.
        film: File to write; an existing one is replaced.
        codec: Of the clips, which decides the container.
        size: Height and width of the frames in pixels.
        num_frames: Of all clips together.
        fps: Frames per second of every clip.
        sha256s: Of the clips' files; `film_members` returns them.

    Raises:
        ValueError: The clips were encoded in different ways, or the file read back differs.
        OSError: A file cannot be read or written.
    """
    rate = frame_rate(fps)
    orders = [_order(clip, rate) for clip in clips]
    delay = max((order.delay for order in orders), default=0)
    with container_of(film, codec) as output:
        output.metadata["comment"] = json.dumps({_KEY: 1, "clips": list(sha256s)})
        copied: VideoStream | None = None
        parameters = b""
        done = 0
        for clip, order in zip(clips, orders, strict=True):
            with open_video(clip) as source:
                stream = source.streams.video[0]
                own = bytes(stream.codec_context.extradata or b"")
                if copied is None:
                    copied, parameters = output.add_stream_from_template(stream), own
                    copied.time_base = stream.time_base
                if own != parameters:
                    raise ValueError(
                        f"{clip.name} was encoded with other settings than the clips before it"
                    )
                assert stream.time_base is not None
                # Matroska counts milliseconds: each frame has the nearest one.
                ticks = 1 / (rate * stream.time_base)
                packets = (p for p in source.demux(stream) if p.dts is not None)
                for number, packet in enumerate(packets):
                    packet.pts = round((done + order.shown[number]) * ticks)
                    packet.dts = round((done + number - delay) * ticks)
                    packet.stream = copied
                    output.mux(packet)
                done += len(order.shown)
    height, width = size
    check_video(film, num_frames=num_frames, height=height, width=width, fps=fps)
    _check_times(film, rate)


@dataclass(frozen=True)
class _Order:
    """The order in which a clip's frames are stored and shown."""

    shown: list[int]
    """For each stored frame its number among those shown, from 0."""
    delay: int
    """Frames that are stored before the first one can be shown."""


def _order(clip: Path, rate: Fraction) -> _Order:
    """Return the order of a clip's frames.

    A clip of few frames is stored with a smaller delay than a long one. A film has the largest.
    """
    times, first_dts = _times(clip)
    places = {time: place for place, time in enumerate(sorted(times))}
    shown = [places[time] for time in times]
    late = max((number - place for number, place in enumerate(shown)), default=0)
    return _Order(shown, max(late, round((min(times, default=0) - first_dts) * rate)))


def _times(path: Path) -> tuple[list[Fraction], Fraction]:
    """Return when each stored frame is shown, and when the first one is decoded, in seconds.

    Raises:
        ValueError: Frames have no time, or share one.
    """
    with open_video(path) as source:
        stream = source.streams.video[0]
        tick = stream.time_base
        found = [(p.pts, p.dts) for p in source.demux(stream) if p.dts is not None]
    times = [pts * tick for pts, _ in found if pts is not None and tick is not None]
    if len(set(times)) != len(found):
        raise ValueError(f"{path.name} has frames without times of their own")
    return times, Fraction(found[0][1]) * (tick or 0) if found else Fraction(0)


def _check_times(film: Path, rate: Fraction) -> None:
    """Check that a film shows each frame in its turn, all equally long.

    Raises:
        ValueError: It does not.
    """
    times, _ = _times(film)
    for number, time in enumerate(sorted(times)):
        if abs(time - number / rate) > _MAX_TIME_ERROR:
            raise ValueError(
                f"{film.name} shows frame {number} at {float(time):.3f} s instead of "
                f"{float(number / rate):.3f} s"
            )


def film_members(film: Path) -> list[str] | None:
    """Return the SHA-256 of the files that a film was made of; None for another file or none."""
    try:
        comment = read_comment(film) or ""
        values = parse_json(comment) if len(comment) <= _MAX_COMMENT_CHARACTERS else None
    except (OSError, ValueError):
        return None
    members = values.get("clips") if isinstance(values, dict) and _KEY in values else None
    return members if isinstance(members, list) else None
