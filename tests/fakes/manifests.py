"""Manifests and images as tests write them, and parts of messages about them."""

from __future__ import annotations

import csv
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.columns import Reading
from hv15_batch.manifest.read import Manifest, read_manifest
from hv15_batch.model.variant import Task

HARD_PROMPTS = [
    "plain",
    "commas, and; semicolons\tand tabs",
    'a sign that says "OPEN" and “营业中”',
    '"begins and ends quoted"',
    "two\nlines and a\r\nthird",
    "${oc.env:HOME} {braces} %s $(id) `x` \\n \\",
    "一只猫在雨中",
    "emoji 🐈‍⬛🎬 and e\u0301",
    "NA",
    "null",
    "nan",
    "None",
    "007",
    "true",
    " spaces around ",
    "=SUM(A1)",
    "# no comment",
    "line separator \u2028 and next line \x85 inside",
]
ONE_LINE_PROMPTS = [prompt for prompt in HARD_PROMPTS if "\n" not in prompt]
UTF8 = 'save it as UTF-8 (in a spreadsheet: "CSV UTF-8")'
TWICE = 'write a quotation mark inside a quoted cell twice ("")'
SEED_FORMS = "write them like 7, like 1 2 5, like 1,2,5 or like 0..3"
LABEL = "or begin it with tag_ if it is a label of your own"
KNOWN = (
    "the known names are prompt, id, seed, negative_prompt, image, height, width, num_frames, "
    "num_inference_steps, guidance_scale, flow_shift, fps, loras, model, join"
)
OTHERS = "manifest_other=tag takes such columns as labels, manifest_other=ignore leaves them out"
TEXT = "must be text; in JSON put it in quotation marks, in Parquet write the column as string"
SIDE = "must be a multiple of 16; write it in digits, like 480"
FRAMES = "must be 4n+1; write it in digits, like 121"
STEPS = "must be a whole number of 1 or more; write it in digits, like 50"
REAL = "must be a finite number; write it like 6 or 5.5"
ID = (
    "an id is 1 to 64 of A-Z a-z 0-9 . _ -; use only these, "
    "or leave it empty and it is made from the prompt"
)


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


LITERAL = Reading(literal=True)


def read(
    name: str, content: str | bytes, task: Task = Task.t2v, reading: Reading | None = None
) -> Manifest:
    return read_manifest(write(name, content), task, reading or Reading())


def faults_of(
    name: str, content: str | bytes, task: Task = Task.t2v, reading: Reading | None = None
) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read(name, content, task, reading)
    return caught.value.faults


def write_csv(name: str, rows: list[list[Any]]) -> Path:
    with open(name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return Path(name)


def write_png_header(name: str, width: int, height: int) -> None:
    """Write a PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    Path(name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))


def write_image(name: str, size: tuple[int, int] = (96, 64), **options: Any) -> Path:
    Image.effect_noise(size, 50).convert("RGB").save(name, **options)
    return Path(name)
