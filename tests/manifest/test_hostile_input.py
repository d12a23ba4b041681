"""A manifest is data: ids make no paths, images have limits, links lead where the user says."""

from __future__ import annotations

import os
import re
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fakes.command import Answer
from PIL import Image, PngImagePlugin

from hv15_batch.media.conversion import open_upright
from hv15_batch.media.image import open_image, read_first_frame, read_image_bytes

Command = Callable[..., Answer]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def names_made(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


# -- ids --------------------------------------------------------------------------------------

HOSTILE_IDS = (
    "..",
    ".",
    "../x",
    "..\\x",
    "/etc/passwd",
    "C:\\x",
    "C:x",
    "a/b",
    ".hidden",
    "~root",
    "a\0b",
    "a\u202egpj.exe",
    "caf\u00e9",
    "a b",
    "$HOME",
    "a;b",
    "-" * 65,
)


@pytest.mark.parametrize("row_id", HOSTILE_IDS)
def test_an_id_of_a_hostile_manifest_is_refused_and_nothing_is_made(
    tmp_path: Path, command: Command, row_id: str
) -> None:
    (tmp_path / "p.csv").write_bytes(f"id,prompt\n{row_id},a cat\n".encode())

    answer = command("p.csv", "model=tiny_t2v", "--dry-run")

    assert answer.code == 2
    assert answer.err.startswith("p.csv:")
    assert names_made(tmp_path) == {"p.csv"}
    assert "\u202e" not in answer.err
    assert "\0" not in answer.err


@pytest.mark.parametrize("row_id", ["CON", "nul", "com1.txt", "-rf", "x."])
def test_an_id_that_is_special_somewhere_names_only_part_of_a_file(
    tmp_path: Path, command: Command, row_id: str
) -> None:
    """Seed and hash follow it, so that no file is called like a device, a folder or an option."""
    (tmp_path / "p.csv").write_text(f"id,prompt\n{row_id},a cat\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v", "--dry-run")

    assert answer.code == 0, answer.err
    plan = (tmp_path / "outputs" / "p" / "plan.csv").read_text(encoding="utf-8")
    clip_id = plan.splitlines()[1].split(",")[0]
    assert re.fullmatch(re.escape(row_id) + r"_s0_[0-9a-f]{8}", clip_id)
    assert os.sep not in clip_id


@pytest.mark.parametrize("prompt", ["../../../etc/passwd", "\u202eevil", "CON", "a\0b", "~/.ssh"])
def test_an_id_made_from_a_prompt_is_a_plain_name(
    tmp_path: Path, command: Command, prompt: str
) -> None:
    (tmp_path / "p.csv").write_bytes(f"prompt\n{prompt}\n".encode())

    answer = command("p.csv", "model=tiny_t2v", "--dry-run")

    if answer.code == 2:  # a NUL is no text
        assert "\0" in prompt
        return
    plan = (tmp_path / "outputs" / "p" / "plan.csv").read_text(encoding="utf-8")
    clip_id = plan.splitlines()[1].split(",")[0]
    assert NAME.fullmatch(clip_id)
    assert not clip_id.startswith(".")


# -- images -----------------------------------------------------------------------------------


def png_with(path: Path, *chunks: tuple[bytes, bytes], after: bool = False) -> Path:
    """A small PNG with further chunks before or after the picture."""
    Image.new("RGB", (64, 64), "red").save(path)
    data = path.read_bytes()
    place = len(data) - 12 if after else 33
    made = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    path.write_bytes(data[:place] + made + data[place:])
    return path


def zeros_compressed(num_bytes: int) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(num_bytes // 2**20)) + packer.flush()


def peak_of(call: Callable[[], object]) -> tuple[str, int, float]:
    """Return what a call refuses, how many bytes it took and how many seconds."""
    warnings.simplefilter("ignore")  # Pillow's, of which run.log would tell
    tracemalloc.start()
    begin = time.monotonic()
    try:
        call()
        refused = ""
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return refused, peak, time.monotonic() - begin


BOMBS = {
    "text": (b"zTXt", b"Comment\0\0" + zeros_compressed(512 * 2**20)),
    "international text": (b"iTXt", b"Comment\0\1\0\0\0" + zeros_compressed(512 * 2**20)),
    "profile": (b"iCCP", b"icc\0\0" + zeros_compressed(512 * 2**20)),
    "exif": (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535)),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", sorted(BOMBS))
def test_a_chunk_that_unpacks_to_half_a_gibibyte_is_never_unpacked_whole(
    tmp_path: Path, kind: str, after: bool
) -> None:
    path = png_with(tmp_path / "bomb.png", BOMBS[kind], after=after)

    manifest = peak_of(lambda: read_first_frame(str(path)))
    executor = peak_of(lambda: open_upright(path.read_bytes()))

    for refused, peak, seconds in (manifest, executor):
        assert refused == "" or refused.startswith("ValueError: ")
        assert peak < 64 * 2**20
        assert seconds < 20
    assert bool(manifest[0]) == bool(executor[0])  # found before the night, if at all


@pytest.mark.parametrize(("suffix", "frames"), [("png", 3), ("webp", 2)])
def test_a_moving_image_is_refused_because_nobody_said_which_frame(
    tmp_path: Path, suffix: str, frames: int
) -> None:
    path = tmp_path / f"moving.{suffix}"
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")[:frames]]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)

    with pytest.raises(ValueError, match=f"this one has {frames} frames; save the frame you want"):
        read_first_frame(str(path))


def test_the_second_picture_in_a_phones_jpeg_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    red, blue = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    red.save(path, format="MPO", save_all=True, append_images=[blue])

    assert read_first_frame(str(path)).size == (48, 64)
    assert open_upright(path.read_bytes()).getpixel((5, 5))[0] > 200  # type: ignore[index]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO", "TGA", "PDF", "EPS"])
def test_other_formats_are_refused_in_manifest_and_executor_whatever_their_suffix(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path, format=kind)

    with pytest.raises(ValueError, match="must be a PNG, JPEG, WEBP or BMP image"):
        read_first_frame(str(path))
    with pytest.raises(OSError, match="cannot identify"):
        open_upright(path.read_bytes())


def test_the_executor_holds_the_limit_of_pixels_too() -> None:
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    for call in (open_image, open_upright):
        with pytest.raises(ValueError, match="at most 64 megapixels, and this one has 9000x9000"):
            call(data)


def test_a_link_leads_to_an_image_anywhere_and_not_to_a_pipe_or_a_device(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (64, 48)).save(elsewhere / "real.png")
    os.mkfifo(tmp_path / "pipe")
    manifest = tmp_path / "manifest"
    manifest.mkdir()
    targets = {"good": elsewhere / "real.png", "fifo": tmp_path / "pipe", "zero": Path("/dev/zero")}
    for name, target in targets.items():
        (manifest / f"{name}.png").symlink_to(target)

    assert read_first_frame(str(manifest / "good.png")).size == (48, 64)
    for name in ("fifo", "zero"):
        begin = time.monotonic()
        with pytest.raises(ValueError, match="is no regular file; name an image file"):
            read_image_bytes(str(manifest / f"{name}.png"))
        assert time.monotonic() - begin < 5


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")

    with pytest.raises(ValueError, match=r"must be readable, and .* is not"):
        read_first_frame(str(tmp_path / "loop.png"))


def test_a_picture_that_is_no_picture_is_not_quoted(tmp_path: Path, command: Command) -> None:
    (tmp_path / "secret.png").write_text("root:planted-content:0:0", encoding="utf-8")
    (tmp_path / "p.csv").write_text("prompt,image\na cat,secret.png\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_i2v")

    assert answer.code == 2
    assert "planted-content" not in answer.err


def test_ordinary_text_chunks_and_profiles_are_no_hindrance(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "made by hand " * 100, zip=True)
    path = tmp_path / "plain.png"
    Image.new("RGB", (64, 48)).save(path, pnginfo=info)

    assert read_first_frame(str(path)).size == (48, 64)


# -- cells ------------------------------------------------------------------------------------

FORMULAS: Sequence[str] = ("=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0")


def test_cells_that_a_spreadsheet_would_compute_stay_as_they_were_typed(
    tmp_path: Path, command: Command
) -> None:
    """Data for machines stays exact; docs/manifest.md tells how to open such a table."""
    (tmp_path / "p.txt").write_text("\n".join(FORMULAS) + "\n", encoding="utf-8")

    assert command("p.txt", "model=tiny_t2v", "--dry-run").code == 0

    import csv

    with (tmp_path / "outputs" / "p" / "plan.csv").open(encoding="utf-8", newline="") as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == list(FORMULAS)
