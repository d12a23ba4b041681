"""`hv15-batch convert FILE`: a transformer in one file becomes one in diffusers' layout."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hv15_batch.errors import EXIT_OK, Refused
from hv15_batch.files import make_beside
from hv15_batch.machine.machine import free_disk_bytes
from hv15_batch.units import GIB, Say, format_gib
from hv15_batch.weights.single_file import SingleFile, open_single_file
from hv15_batch.weights.write import diffusers_bytes, write_diffusers


def main(argv: Sequence[str], say: Say = print) -> int:
    """Convert one file, print where the result is, and return 0.

    Raises:
        Refused: the file is no whole transformer, or the result cannot be written there.
    """
    parser = argparse.ArgumentParser(
        prog="hv15-batch convert",
        description="Write a transformer in one safetensors file (Tencent's original, Comfy-Org's "
        "or diffusers' layout; bf16, fp16 or scaled fp8) in diffusers' layout. model.transformer_"
        "file takes such a file as it is, so this is only for other programs.",
        epilog="example: hv15-batch convert hunyuanvideo1.5_480p_t2v_fp16.safetensors",
    )
    parser.add_argument("file", metavar="FILE", help="the transformer, .safetensors")
    parser.add_argument(
        "--out", metavar="FILE", help="default: <name of FILE>.diffusers.safetensors beside it"
    )
    arguments = parser.parse_args(argv)
    source = Path(arguments.file).expanduser()
    out = Path(arguments.out or source.with_suffix(".diffusers.safetensors")).expanduser()
    file = open_single_file(source, arguments.file)
    say(f"{arguments.file}: {file.kind}, {len(file.tensors)} tensors")
    convert_file(file, out, say)
    say(f"written: {os.path.abspath(out)}")
    return EXIT_OK


def convert_file(file: SingleFile, out: Path, say: Say) -> None:
    """Write a transformer in diffusers' layout under a name that is free.

    Raises:
        Refused: the name is taken, its folder missing or its disk too small.
    """
    if os.path.lexists(out):
        raise Refused(f"--out {out}: exists, and is never written over; name another file.")
    if not out.parent.is_dir():
        raise Refused(f"--out {out}: the folder {out.parent} does not exist; make it first.")
    needed, free = diffusers_bytes(file), free_disk_bytes(out.parent)
    if needed + GIB > free:
        raise Refused(
            f"--out {out}: needs {format_gib(needed)} GiB and 1 GiB to spare, and "
            f"{format_gib(free)} GiB are free; free some, or name a file on another disk."
        )
    say(f"writing {format_gib(needed)} GiB")
    try:
        temporary = make_beside(out)
        try:
            with temporary.open("wb") as target:
                write_diffusers(file, target)
                target.flush()
                os.fsync(target.fileno())
            os.link(temporary, out)  # unlike a rename, fails where the name is taken
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"--out {out}: cannot be written ({error.strerror}).") from error
