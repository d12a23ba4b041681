"""Frames written to a file come back: content, colours, rate, tags and comment."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from hv15_batch.config.settings import VideoCodec, VideoConfig
from hv15_batch.media.video import (
    check_video,
    file_suffix,
    frame_rate,
    lossy_codec,
    read_comment,
    read_frames,
    write_thumbnail,
    write_video,
)

HEIGHT, WIDTH = 64, 96
H264 = VideoConfig()
FFV1 = VideoConfig(codec=VideoCodec.ffv1)
PRORES = VideoConfig(codec=VideoCodec.prores)
PNG = VideoConfig(codec=VideoCodec.png)
EACH = pytest.mark.parametrize(
    "video", [H264, FFV1, PRORES, PNG], ids=["h264", "ffv1", "prores", "png"]
)
ODD_COMMENT = json.dumps(
    {
        "prompt": 'A sign says “开业大吉” and "OPEN"; 🐼\n${HOME}\r\n\ttab \\ end, '
        + "长" * 10_000,
        "seed": 2**63 - 1,
    },
    ensure_ascii=False,
)


def moving_frames(num_frames: int = 13) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return smooth colour ramps that move: uint8 [F, H, W, 3]."""
    f, y, x = np.mgrid[0:num_frames, 0:HEIGHT, 0:WIDTH]
    channels = (x * 2 + f * 3, y * 3 + f * 2, 255 - x - y - f)
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def decode_bt709(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return RGB 0..255 [F, H, W, 3] by the BT.709 formula, limited range, chroma repeated.

    Source: ITU-R BT.709-6, items 3.2 to 3.4 (luma weights 0.2126, 0.7152, 0.0722).
    """
    decoded = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = frame.to_ndarray().astype(np.float64)  # yuv420p: no conversion happens
            h, w = frame.height, frame.width
            luma = (planes[:h] - 16) / 219
            cb, cr = (planes[h:].reshape(2, h // 2, w // 2) - 128) / 224
            cb, cr = (c.repeat(2, axis=0).repeat(2, axis=1) for c in (cb, cr))
            red, blue = luma + 1.5748 * cr, luma + 1.8556 * cb
            green = (luma - 0.2126 * red - 0.0722 * blue) / 0.7152
            decoded.append(np.stack([red, green, blue], axis=-1) * 255)
    return np.stack(decoded)


def box_names(path: Path) -> list[str]:
    """Return the names of an mp4's top-level boxes, in their order."""
    data, names, place = path.read_bytes(), [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        names.append(data[place + 4 : place + 8].decode("ascii"))
        place += size
    return names


def written(path: Path, video: VideoConfig, num_frames: int = 13, fps: float = 24) -> Path:
    """Write moving frames and return the path."""
    write_video(moving_frames(num_frames), path, fps=fps, video=video, comment="c")
    return path


def whole(message: str) -> str:
    """Return a pattern that only the whole message matches."""
    return f"^{re.escape(message)}$"


def check(path: Path, **changes: Any) -> None:
    """Check a file that `written` made, with some expectations changed."""
    expected = {"num_frames": 13, "height": HEIGHT, "width": WIDTH, "fps": 24.0, **changes}
    check_video(path, **expected)


def test_h264_frames_come_back_close_to_what_was_written(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mp4", H264)

    error = decode_bt709(path) - moving_frames()

    assert 10 * np.log10(255**2 / (error**2).mean()) > 36


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (0, 0, 0), (255, 255, 255)]
)
def test_a_pure_colour_decoded_as_bt709_is_that_colour(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    frames = np.full((5, HEIGHT, WIDTH, 3), colour, dtype=np.uint8)

    write_video(frames, tmp_path / "clip.mp4", fps=24, video=H264, comment=None)

    assert np.abs(decode_bt709(tmp_path / "clip.mp4") - frames).max() <= 2.5


def test_h264_is_tagged_bt709_limited_range_in_the_stream_and_in_the_container(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "clip.mp4", H264)

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    colr = path.read_bytes().partition(b"colrnclx")[2][:7]

    assert frame.format.name == "yuv420p"
    assert (frame.color_primaries, frame.color_trc, frame.colorspace) == (1, 1, 1)
    assert frame.color_range == 1
    assert colr == bytes([0, 1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("video", [FFV1, PNG], ids=["ffv1", "png"])
def test_a_lossless_file_gives_every_rgb_value_back_exactly(
    tmp_path: Path, video: VideoConfig
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)

    write_video(frames, tmp_path / "clip", fps=24, video=video, comment=None)

    with av.open(str(tmp_path / "clip")) as container:
        back = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert np.array_equal(np.stack(back), frames)
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "clip"))), frames)
    assert lossy_codec(tmp_path / "clip") is None


def test_prores_has_ten_bits_and_is_tagged_and_decoded_as_bt709(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mov", PRORES)

    with av.open(str(path)) as container:
        assert container.format.name.startswith("mov")
        frame = next(container.decode(video=0))
        plane = frame.planes[0]
        rows = np.frombuffer(plane, "<u2").reshape(plane.height, plane.line_size // 2)
    assert frame.format.name == "yuv422p10le"
    assert (frame.color_primaries, frame.color_trc, frame.colorspace) == (1, 1, 1)
    luma = (rows[:, : plane.width] / 4 - 16) / 219 * 255
    error = luma - moving_frames()[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert 10 * np.log10(255**2 / (error**2).mean()) > 50
    assert lossy_codec(path) == "prores"


def test_the_pictures_of_a_png_clip_come_out_as_files_that_pillow_reads(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mov", PNG)

    with av.open(str(path)) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]

    back = [np.asarray(Image.open(BytesIO(picture)).convert("RGB")) for picture in pictures]
    assert np.array_equal(np.stack(back), moving_frames())


def test_the_index_of_an_mp4_comes_before_its_frames(tmp_path: Path) -> None:
    names = box_names(written(tmp_path / "clip.mp4", H264))

    assert names.index("moov") < names.index("mdat")


@EACH
def test_a_temporary_name_without_the_suffix_is_written_and_read(
    tmp_path: Path, video: VideoConfig
) -> None:
    path = written(tmp_path / ".clip.a1b2", video)

    check(path)


@EACH
@pytest.mark.parametrize("fps", [1, 7.3, 12.5, 16.6667, 23.976, 24, 29.97, 240])
@pytest.mark.parametrize("num_frames", [1, 13])
def test_every_rate_and_a_single_frame_survive(
    tmp_path: Path, video: VideoConfig, fps: float, num_frames: int
) -> None:
    path = written(tmp_path / "clip", video, num_frames, fps)

    check(path, fps=fps, num_frames=num_frames)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == frame_rate(fps)


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (24, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (16.6667, Fraction(50, 3)),
    ],
)
def test_a_typed_rate_stands_for_its_exact_fraction(fps: float, rate: Fraction) -> None:
    assert frame_rate(fps) == rate


@EACH
def test_a_long_comment_in_any_script_comes_back_unchanged(
    tmp_path: Path, video: VideoConfig
) -> None:
    write_video(moving_frames(5), tmp_path / "clip", fps=24, video=video, comment=ODD_COMMENT)

    assert read_comment(tmp_path / "clip") == ODD_COMMENT


@EACH
def test_a_clip_without_a_comment_has_none(tmp_path: Path, video: VideoConfig) -> None:
    write_video(moving_frames(5), tmp_path / "clip", fps=24, video=video, comment=None)

    assert read_comment(tmp_path / "clip") is None


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("a\0b", "the comment holds a NUL character, where a container would cut it"),
        ("", "the comment is empty; give None to leave it out"),
    ],
)
def test_a_comment_that_no_file_can_hold_is_refused_before_writing(
    tmp_path: Path, comment: str, message: str
) -> None:
    with pytest.raises(ValueError, match=whole(message)):
        write_video(moving_frames(5), tmp_path / "clip", fps=24, video=H264, comment=comment)

    assert not (tmp_path / "clip").exists()


@EACH
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, video: VideoConfig, kept: float) -> None:
    path = written(tmp_path / "clip", video)
    os.truncate(path, int(path.stat().st_size * kept))

    with pytest.raises(ValueError, match=r"^clip (cannot be read back|is not what was written): "):
        check(path)


def test_frames_damaged_in_the_middle_of_an_mp4_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "clip", H264)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 1000
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)

    with pytest.raises(ValueError, match=r"^clip cannot be read back: "):
        check(path)


@EACH
def test_every_difference_from_what_was_asked_is_named(tmp_path: Path, video: VideoConfig) -> None:
    path = written(tmp_path / "clip", video)

    message = (
        "clip is not what was written: 13 frames instead of 17; "
        "size 64x96 instead of 64x112; 24 fps instead of 23.976 fps"
    )

    with pytest.raises(ValueError, match=whole(message)):
        check(path, num_frames=17, width=112, fps=23.976)


def test_a_file_that_is_gone_is_no_value_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "clip.mp4")


def test_a_file_that_is_no_video_has_no_comment_to_read(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("not a video")

    with pytest.raises(ValueError, match=r"^clip\.mp4 cannot be read back: "):
        read_comment(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            np.zeros((5, 16, 16, 3), np.float32),
            "frames are float32 [5, 16, 16, 3]; they must be uint8 [F, H, W, 3]",
        ),
        (
            np.zeros((5, 3, 16, 16), np.uint8),
            "frames are uint8 [5, 3, 16, 16]; they must be uint8 [F, H, W, 3]",
        ),
        (np.zeros((0, 16, 16, 3), np.uint8), "there are no frames to write"),
        (np.zeros((5, 15, 16, 3), np.uint8), "frames are 15x16; yuv420p needs even sides"),
    ],
)
def test_frames_of_another_shape_are_refused(
    tmp_path: Path, frames: np.ndarray[Any, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=whole(message)):
        write_video(frames, tmp_path / "clip", fps=24, video=H264, comment=None)


def test_a_view_with_other_strides_is_written_like_its_copy(tmp_path: Path) -> None:
    frames = np.ascontiguousarray(moving_frames().transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    write_video(frames, tmp_path / "clip", fps=24, video=FFV1, comment=None)

    with av.open(str(tmp_path / "clip")) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(first, moving_frames()[0])


@EACH
def test_a_write_that_the_system_refuses_is_an_os_error_with_its_number(
    tmp_path: Path, video: VideoConfig
) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from hv15_batch.config.settings import VideoCodec, VideoConfig\n"
        "from hv15_batch.media.video import write_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "frames = np.random.default_rng(0).integers(0, 256, (13, 64, 96, 3), dtype=np.uint8)\n"
        f"video = VideoConfig(codec=VideoCodec.{video.codec.name})\n"
        "try:\n"
        "    write_video(frames, Path(sys.argv[1]), fps=24, video=video, comment=None)\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clip")],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == str(errno.EFBIG)


def test_writing_does_not_hold_a_second_copy_of_the_clip(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from hv15_batch.config.settings import VideoConfig\n"
        "from hv15_batch.media.video import write_video\n"
        "frames = np.full((600, 240, 320, 3), 90, np.uint8)\n"  # 138 MB
        "video = VideoConfig(preset='ultrafast')\n"
        "write_video(frames[:60], Path(sys.argv[1]), fps=24, video=video, comment=None)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_video(frames, Path(sys.argv[1]), fps=24, video=video, comment=None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "clip")],
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(done.stdout) < 60 * 1024  # KiB; a copy would be 135 MiB


def test_the_suffix_follows_the_container() -> None:
    assert [file_suffix(codec) for codec in VideoCodec] == [".mp4", ".mkv", ".mov", ".mov"]


def test_the_thumbnail_is_the_middle_frame_at_the_asked_width(tmp_path: Path) -> None:
    frames = np.zeros((5, 480, 848, 3), np.uint8)
    frames[2] = (200, 30, 90)

    write_thumbnail(frames, tmp_path / ".thumb.tmp")

    with Image.open(tmp_path / ".thumb.tmp") as image:
        assert (image.format, image.size) == ("JPEG", (320, 181))
        assert np.abs(np.asarray(image).astype(int) - (200, 30, 90)).max() <= 3


def test_a_thumbnail_is_never_wider_than_its_frame(tmp_path: Path) -> None:
    write_thumbnail(np.zeros((1, 64, 96, 3), np.uint8), tmp_path / "thumb.jpg")

    with Image.open(tmp_path / "thumb.jpg") as image:
        assert image.size == (96, 64)


ENCODE_ON = """
import hashlib, os, sys
from pathlib import Path
os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[2].split(",")})
import numpy as np
from hv15_batch.config.settings import VideoCodec, VideoConfig
from hv15_batch.media.video import write_video
path = Path(sys.argv[1])
frames = np.load(path / "frames.npy")
for codec in (VideoCodec.h264, VideoCodec.h264, VideoCodec.prores, VideoCodec.png):
    video = VideoConfig(codec=codec)
    write_video(frames, path / "x", fps=24, video=video, comment=None)
    print(codec.name, hashlib.sha256((path / "x").read_bytes()).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_the_same_frames_give_the_same_bytes_on_one_core_and_on_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (30, 54, 3), dtype=np.int16).repeat(8, 0).repeat(8, 1)
    frames = [
        np.roll(blocks, (i, 2 * i), (0, 1)) + rng.integers(-6, 6, blocks.shape) for i in range(49)
    ]
    np.save(tmp_path / "frames.npy", np.stack(frames).clip(0, 255).astype(np.uint8))
    cpus = sorted(os.sched_getaffinity(0))
    hashes: list[str] = []
    for some in ([cpus[0]], cpus):
        words = [sys.executable, "-c", ENCODE_ON, str(tmp_path), ",".join(map(str, some))]
        hashes += subprocess.run(
            words, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    assert len(hashes) == 8
    assert len(set(hashes)) == 3
