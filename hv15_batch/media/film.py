"""Several clips as one file: their packets are copied, so that nothing is encoded twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    with container_of(film, codec) as output:
        output.metadata["comment"] = json.dumps({_KEY: 1, "clips": list(sha256s)})
        copied: VideoStream | None = None
        parameters = b""
        done = 0
        for clip in clips:
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
                # Matroska counts milliseconds: each clip begins at the nearest one.
                begin = round(Fraction(done) / rate / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue  # marks the end
                    packet.dts += begin
                    if packet.pts is not None:
                        packet.pts += begin
                    packet.stream = copied
                    output.mux(packet)
                    done += 1
    height, width = size
    check_video(film, num_frames=num_frames, height=height, width=width, fps=fps)


def film_members(film: Path) -> list[str] | None:
    """Return the SHA-256 of the files that a film was made of; None for another file or none."""
    try:
        comment = read_comment(film) or ""
        values = parse_json(comment) if len(comment) <= _MAX_COMMENT_CHARACTERS else None
    except (OSError, ValueError):
        return None
    members = values.get("clips") if isinstance(values, dict) and _KEY in values else None
    return members if isinstance(members, list) else None
