"""A first frame is what a person sees on opening the file, and only clips for which that is new
are new."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.command import Answer
from fakes.pictures import (
    adobe_rgb,
    cmyk_profile,
    gama,
    grey_profile,
    iccp,
    png,
    saved,
)
from PIL import Image, ImageCms, ImageOps

from hv15_batch.media.conversion import CONVERSIONS, look, note_lines, open_upright
from hv15_batch.media.image import read_first_frame

Command = Callable[..., Answer]
RAMP = np.arange(256)[None].repeat(4, 0)


def seen(data: bytes) -> Any:
    return np.asarray(open_upright(data)).astype(int)


def plainly(data: bytes) -> Any:
    """What versions before made of an image."""
    with Image.open(BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)


def grey(values: Any) -> Any:
    return np.asarray(values)[..., None].repeat(3, 2)


# -- bit depth --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [257, 256])
def test_a_ramp_of_16_bits_of_grey_is_the_ramp_of_8(factor: int) -> None:
    data = png(RAMP * factor, 0, depth=16)

    assert np.abs(seen(data) - grey(RAMP)).max() <= (0 if factor == 257 else 1)
    assert look(data).conversion == "grey16.v1"


def test_16_bits_of_colour_are_8_as_ever() -> None:
    data = png(np.stack([RAMP * 257, RAMP[:, ::-1] * 257, RAMP * 0], 2), 2, depth=16)

    assert (seen(data) == plainly(data)).all()
    assert (seen(data)[..., 0] == RAMP).all()
    assert look(data).conversion is None


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_few_bits_goes_from_black_to_white(depth: int) -> None:
    steps = 2**depth
    data = png(np.arange(steps)[None].repeat(4, 0), 0, depth=depth)

    assert (seen(data)[0, :, 0] == np.round(np.arange(steps) * 255 / (steps - 1))).all()
    assert look(data).conversion is None


def test_a_palette_shows_its_colours() -> None:
    data = saved(Image.effect_noise((8, 8), 90).convert("P"), "PNG")

    assert (seen(data) == plainly(data)).all()
    assert look(data).conversion is None


# -- transparency -----------------------------------------------------------------------------

RED, BLUE = (200, 30, 30), (30, 30, 200)


def half_transparent(mode: str) -> bytes:
    """Left half opaque red (or 100 of grey), right half transparent with something hidden."""
    is_clear = np.zeros((8, 8), bool)
    is_clear[:, 4:] = True
    if mode == "LA":
        return png(np.stack([np.full((8, 8), 100), np.where(is_clear, 0, 255)], 2), 4)
    if mode in ("L", "L2", "L4", "L1"):
        depth = {"L": 8, "L1": 1, "L2": 2, "L4": 4}[mode]
        key = struct.pack(">H", 1)
        return png(np.where(is_clear, 1, 0), 0, depth=depth, before=((b"tRNS", key),))
    if mode == "I;16":
        samples = np.where(is_clear, 0x1234, 0x1235)
        return png(samples, 0, depth=16, before=((b"tRNS", struct.pack(">H", 0x1234)),))
    picture = np.where(is_clear[..., None], BLUE, RED)
    if mode == "RGB":
        return png(picture, 2, before=((b"tRNS", struct.pack(">3H", *BLUE)),))
    if mode in ("P", "P half"):
        cover = bytes([255, 0]) if mode == "P" else bytes([255, 128])
        palette = (b"PLTE", bytes([*RED, *BLUE]))
        return png(is_clear.astype(int), 3, before=(palette, (b"tRNS", cover)))
    alpha = np.where(is_clear, 0, 255)[..., None]
    return png(np.concatenate([picture, alpha], 2), 6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "L1", "L2", "L4", "I;16"])
def test_what_is_transparent_is_white_and_what_is_opaque_stays(mode: str) -> None:
    data = half_transparent(mode)

    picture = seen(data)

    assert (picture[:, 4:] == 255).all()
    assert (picture[:, :4] != 255).any()
    opaque = {"LA": 100, "L": 0, "L1": 0, "L2": 0, "L4": 0, "I;16": 0x12}
    assert (picture[:, :4] == opaque.get(mode, RED)).all()
    assert look(data).conversion == ("grey16.v1+white.v1" if mode == "I;16" else "white.v1")


def test_what_is_half_transparent_is_half_white() -> None:
    picture = seen(half_transparent("P half"))

    assert np.abs(picture[0, 7] - [142, 142, 227]).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_alpha_channel_that_covers_nothing_changes_no_clip(form: str) -> None:
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    image.putalpha(255)
    data = saved(image, form, **({"lossless": True} if form == "WEBP" else {}))

    assert (seen(data) == plainly(data)).all()
    assert look(data) == look(saved(image.convert("RGB"), "PNG"))


def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque() -> None:
    image = Image.new("RGBA", (8, 8), (*RED, 0))
    data = saved(image, "BMP")

    assert (seen(data) == RED).all()
    assert look(data).conversion is None


def test_a_transparent_colour_of_16_bits_is_refused_because_8_bits_cannot_tell_it() -> None:
    key = (b"tRNS", struct.pack(">3H", 0x1234, 0, 0))
    data = png(np.zeros((4, 4, 3)), 2, depth=16, before=(key,))

    for call in (look, open_upright):
        with pytest.raises(ValueError, match="save it as RGBA"):
            call(data)


# -- colours ----------------------------------------------------------------------------------


def adobe_to_srgb(value: tuple[int, int, int]) -> Any:
    """By the matrices of the two specifications, without a profile."""
    to_xyz = [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    to_rgb = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    light = np.array(to_rgb) @ np.array(to_xyz) @ (np.array(value) / 255) ** 2.19921875
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("colour", [(120, 160, 90), (60, 60, 60), (200, 120, 100)])
def test_an_embedded_profile_is_converted_to_srgb(form: str, colour: tuple[int, int, int]) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    image = Image.new("RGB", (16, 16), colour)
    data = saved(image, form, icc_profile=adobe_rgb(), **options.get(form, {}))

    assert np.abs(seen(data)[8, 8] - adobe_to_srgb(colour)).max() <= 3
    assert look(data).conversion == "srgb.v1"


def test_a_profile_that_is_srgb_changes_no_clip() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    for form in ("PNG", "JPEG", "WEBP"):
        data = saved(image, form, icc_profile=profile)

        assert (seen(data) == plainly(data)).all()
        assert look(data).conversion is None
        assert look(data).notes == ()


def test_grey_follows_its_profile_at_8_and_16_bits() -> None:
    light = (np.arange(256) / 255) ** 1.0
    wanted = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    eight = png(RAMP, 0, before=(iccp(grey_profile(1.0)),))
    sixteen = png(RAMP * 257, 0, depth=16, before=(iccp(grey_profile(1.0)),))
    colours = png(RAMP, 0, before=(iccp(adobe_rgb()),))  # also holds for grey

    assert np.abs(seen(eight)[0, :, 0] - wanted).max() <= 2
    assert (seen(sixteen) == seen(eight)).all()
    assert look(eight).conversion == "srgb.v1"
    assert look(sixteen).conversion == "grey16.v1+srgb.v1"
    assert look(colours).conversion == "srgb.v1"
    assert np.abs(seen(colours)[0, 60] - adobe_to_srgb((60, 60, 60))).max() <= 3


def test_cmyk_follows_its_profile_and_without_one_is_made_rgb_as_ever_and_said() -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    with_profile = saved(image, "JPEG", quality=100, icc_profile=cmyk_profile())
    without = saved(image, "JPEG", quality=100)

    red, green, blue = seen(with_profile)[8, 8]
    assert max(red, green, blue) - min(red, green, blue) <= 3  # that press prints grey
    assert 100 <= red <= 140
    assert look(with_profile).conversion == "srgb.v1"
    assert (seen(without) == plainly(without)).all()
    assert look(without).conversion is None
    assert look(without).notes[0].startswith("CMYK without a colour profile")


@pytest.mark.parametrize(
    "profile",
    [b"no profile", adobe_rgb()[:200], bytes(128), grey_profile(2.2), cmyk_profile(), b""],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_profile_that_cannot_be_used_is_said_and_the_colours_are_srgb(
    profile: bytes, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    image.putpixel((0, 0), RED)
    data = saved(image, form)
    if form == "PNG":
        data = png(np.asarray(image), 2, before=(iccp(profile),))
    elif profile:
        data = saved(image, form, icc_profile=profile)
    else:
        return  # no profile at all

    assert (seen(data) == plainly(data)).all()
    assert look(data).conversion is None
    assert look(data).notes[0].startswith("a colour profile that is broken")
    assert capfd.readouterr().err == ""


def test_a_damaged_profile_chunk_is_said(tmp_path: Path) -> None:
    data = png(np.full((8, 8, 3), 90), 2, before=((b"iCCP", b"icc\0\0not zlib"),))

    assert look(data).notes[0].startswith("a colour profile that is broken")
    assert (seen(data) == 90).all()


def test_gamma_counts_where_it_is_not_that_of_every_screen() -> None:
    linear = png(RAMP, 0, before=(gama(1.0),))
    colour = png(grey(RAMP), 2, before=(gama(1.0),))
    deep = png(RAMP * 257, 0, depth=16, before=(gama(1.0),))
    usual = png(RAMP, 0, before=(gama(0.45455),))
    stated = png(RAMP, 0, before=((b"sRGB", b"\0"), gama(1.0)))

    light = RAMP[0] / 255
    wanted = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    for data in (linear, colour, deep):
        assert np.abs(seen(data)[0, :, 1] - wanted).max() <= 2
    assert look(linear).conversion == look(colour).conversion == "srgb.v1"
    assert look(deep).conversion == "grey16.v1+srgb.v1"
    for data in (usual, stated):
        assert (seen(data)[..., 0] == RAMP).all()
        assert look(data).conversion is None


def test_primaries_in_numbers_count_like_those_of_a_profile() -> None:
    """Adobe RGB as cHRM and gAMA, and Display P3 as cICP."""
    xy = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    chrm = (b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in xy)))
    colour = (120, 160, 90)
    flat = np.full((4, 4, 3), colour)
    numbers = png(flat, 2, before=(gama(1 / 2.19921875), chrm))
    p3 = png(flat, 2, before=((b"cICP", bytes([12, 13, 0, 1])),))

    assert np.abs(seen(numbers)[0, 0] - adobe_to_srgb(colour)).max() <= 4
    assert look(numbers).conversion == look(p3).conversion == "srgb.v1"
    # Green of Display P3 lies beyond that of sRGB, and red becomes less.
    assert seen(p3)[0, 0, 1] >= 160
    assert seen(p3)[0, 0, 0] < 118
    for numbers_of_hdr in ([9, 16, 0, 1], [9, 18, 0, 1]):
        with pytest.raises(ValueError, match="is HDR"):
            look(png(flat, 2, before=((b"cICP", bytes(numbers_of_hdr)),)))


def test_transparency_is_put_on_white_after_the_colours_are_converted() -> None:
    picture = np.concatenate([np.full((4, 4, 3), 120), np.full((4, 4, 1), 128)], 2)
    data = png(picture, 6, before=(iccp(adobe_rgb()),))

    inside = adobe_to_srgb((120, 120, 120))[0] * 128 / 255 + 127
    assert np.abs(seen(data) - inside).max() <= 3
    assert look(data).conversion == "srgb.v1+white.v1"


# -- orientation ------------------------------------------------------------------------------


def turned(mode: str, form: str, orientation: int) -> bytes:
    """A picture whose corner at the top left is dark when it is upright, stored turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.linear_gradient("L").resize((48, 32))
    image = Image.merge(
        "RGB", (image, image, image.transpose(Image.Transpose.ROTATE_90).resize((48, 32)))
    )
    image = image.convert(mode)
    if mode == "RGBA":
        image.putpixel((47, 31), (0, 0, 0, 0))
    return saved(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGBA", "PNG"), ("P", "PNG")],
)
def test_every_orientation_is_as_wide_as_planned_and_upright(
    mode: str, form: str, orientation: int
) -> None:
    data = turned(mode, form, orientation)

    picture = seen(data)

    assert look(data).size == picture.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    if mode != "RGBA":
        assert (picture == plainly(data)).all()
    else:
        assert look(data).conversion == "white.v1"
        assert (picture == 255).all(axis=2).sum() == 1


# -- parent and worker, names -----------------------------------------------------------------


def test_the_names_of_conversions_are_pinned() -> None:
    """They are in the names of clips: a changed way gets another name, and these stay."""
    assert sorted(CONVERSIONS) == [
        "grey16.v1",
        "grey16.v1+srgb.v1",
        "grey16.v1+srgb.v1+white.v1",
        "grey16.v1+white.v1",
        "srgb.v1",
        "srgb.v1+white.v1",
        "white.v1",
    ]


def test_first_frames_are_told_by_kind_and_each_file_once() -> None:
    lines = note_lines([("a.png", "x"), ("b.png", "x"), ("a.png", "x"), ("c.png", "y")])
    lines += note_lines([(f"{n}.png", "z") for n in range(9)])

    assert lines == [
        "First frames: 2 images have x: a.png, b.png",
        "First frames: 1 image has y: c.png",
        "First frames: 9 images have z: 0.png, 1.png, 2.png and 6 more",
    ]


def i2v_manifest(folder: Path, **images: bytes) -> None:
    rows = ["id,prompt,image"]
    for name, data in images.items():
        (folder / f"{name}.png").write_bytes(data)
        rows.append(f"{name},a cat,{name}.png")
    (folder / "p.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def clip_ids(folder: Path) -> list[str]:
    import csv

    with (folder / "outputs" / "p" / "plan.csv").open(encoding="utf-8", newline="") as file:
        return [row["clip_id"] for row in csv.DictReader(file)]


def test_only_the_clips_whose_frame_changes_are_new_and_the_dry_run_says_why(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opaque = saved(Image.new("RGB", (64, 48), "red"), "PNG")
    clear = saved(Image.new("RGBA", (64, 48), (255, 0, 0, 90)), "PNG")
    i2v_manifest(tmp_path, opaque=opaque, clear=clear)

    assert command("p.csv", "model=tiny_i2v", "--dry-run").code == 0
    now = clip_ids(tmp_path)
    answer = command("p.csv", "model=tiny_i2v", "--dry-run")
    monkeypatch.setattr("hv15_batch.media.conversion._steps", lambda *_: [])
    assert command("p.csv", "model=tiny_i2v", "--dry-run").code == 0
    before = clip_ids(tmp_path)

    assert now[0] == before[0]
    assert now[1] != before[1]
    assert "First frames: 1 image has transparent parts, put on white: clear.png" in answer.out


# -- other files ------------------------------------------------------------------------------

OTHERS = {
    "a HEIC image": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "magick PIC.heic PIC.png"),
    "an AVIF image": (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "magick PIC.avif PIC.png"),
    "a TIFF image": (b"II*\0\x08\0\0\0", "magick 'PIC.tif[0]' PIC.png"),
    "a JPEG XL image": (b"\xff\x0a\xfa\x1f", "djxl PIC.jxl PIC.png"),
    "a GIF image": (b"GIF89a\x10\0\x10\0", "magick 'PIC.gif[0]' PIC.png"),
    "an SVG drawing": (b"<?xml?>\n<svg></svg>", "rsvg-convert -w 1280 PIC.svg -o PIC.png"),
    "a video": (b"\0\0\0\x20ftypisom\0\0\2\0", "ffmpeg -i PIC.mp4 -frames:v 1 PIC.png"),
    "a PDF file": (b"%PDF-1.7\n", "pdftoppm -png -singlefile PIC.pdf PIC"),
    "a web page": (b"<!DOCTYPE html><html></html>", "download the image itself"),
    "empty": (b"", "copy or download it again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(OTHERS))
@pytest.mark.parametrize("has_wrong_suffix", [False, True])
def test_a_file_of_another_kind_is_named_with_the_command_that_helps(
    tmp_path: Path, command: Command, kind: str, has_wrong_suffix: bool
) -> None:
    data, fix = OTHERS[kind]
    named = re.search(r"PIC\.(\w+)", fix)
    name = "PIC.jpg" if has_wrong_suffix or not named else named[0]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "p.csv").write_text(f"prompt,image\na cat,{name}\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_i2v", "--dry-run")

    assert answer.code == 2
    assert answer.err.startswith(f"p.csv:2: image={name}: must be a PNG, JPEG, WEBP or BMP image")
    assert f"this is {kind}" in answer.err or f"this file is {kind}" in answer.err
    if not has_wrong_suffix:
        assert fix in answer.err


def test_a_real_avif_and_a_real_tiff_are_refused_by_what_they_are(tmp_path: Path) -> None:
    for form, kind in (("TIFF", "a TIFF image"), ("GIF", "a GIF image")):
        path = tmp_path / f"my {form}.bin"
        Image.new("RGB", (64, 64)).save(path, format=form)

        with pytest.raises(ValueError, match=f"this is {kind}.*'my {form}.bin"):
            read_first_frame(str(path))


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_an_image_without_pixels_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "none.png"
    path.write_bytes(png(np.zeros((4, 4)), 0))
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, 16, *size)
    path.write_bytes(data)

    with pytest.raises(ValueError, match=r"broken or something else|at most 4:1"):
        read_first_frame(str(path))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L"])
def test_a_file_cut_anywhere_is_refused_when_it_is_planned(
    tmp_path: Path, form: str, mode: str
) -> None:
    if form == "JPEG" and mode in ("RGBA", "LA"):
        return
    image = Image.effect_noise((48, 40), 80).convert(mode)
    data = saved(image.convert("RGB") if (form, mode) == ("BMP", "LA") else image, form)
    path = tmp_path / "cut.png"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])

        with pytest.raises(ValueError, match="must be a PNG, JPEG, WEBP or BMP image that can"):
            read_first_frame(str(path))


def test_a_jpeg_that_is_called_png_is_read_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(saved(Image.new("RGB", (64, 48), RED), "JPEG", quality=100))

    assert read_first_frame(str(path)).size == (48, 64)
