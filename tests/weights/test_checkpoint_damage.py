"""A damaged checkpoint is one message that names a file: never a traceback, a wait or a clip."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoint import (
    COMMIT,
    FakeHub,
    Fetcher,
    at,
    hub_model,
    layout,
    message,
    snapshot,
    write,
)
from fakes.command import Answer
from fakes.hangs import no_hang
from fakes.runs import Project
from fakes.samples import SEED, sampled

from hv15_batch.engine.encode.encoders import Encoders
from hv15_batch.engine.load.components import check_checkpoint, load_component
from hv15_batch.errors import Refused
from hv15_batch.model.variant import Task
from hv15_batch.weights.checkpoint import cache_root, resolve_checkpoint

CPU = torch.device("cpu")
FILES = (
    "feature_extractor/preprocessor_config.json",
    "guider/guider_config.json",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/chat_template.jinja",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/added_tokens.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
"""After which a case counts as hanging."""
Damage = Callable[[Path, random.Random], None]


# -- kinds of damage --------------------------------------------------------------------------


def cut(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 8)):
        # In a safetensors file mostly the header, behind which every number is a number.
        data[dice.randrange(min(len(data), 4096))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def lengthen(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(dice.randint(1, 99)))


def swell(path: Path, dice: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


def empty(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, dice: random.Random) -> None:
    path.unlink()


def pipe(path: Path, dice: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def device(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def own_socket(path: Path, dice: random.Random) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def no_utf8(path: Path, dice: random.Random) -> None:
    path.write_bytes(b'{"a": "\xff\xfe\xff"}')


def deep(path: Path, dice: random.Random) -> None:
    levels = dice.choice((100, 5_000, 200_000))
    opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
    inside = "1" if opening != "[" else ""
    path.write_text('{"x":' + opening * levels + inside + closing * levels + "}", encoding="utf-8")


def other_top(path: Path, dice: random.Random) -> None:
    path.write_text(dice.choice(("[]", "null", "7", '"text"', "[[[1]]]", "true")), encoding="utf-8")


ODD_VALUES: tuple[Any, ...] = (
    *(None, -1, 0, 1.5, 10**9, 10**12, 2**63, -(2**31), 1e300, float("nan"), float("inf")),
    *("text", "", [], {}, [None], {"a": 1}, True, [10**9] * 5, "\ud800", "x" * 100_000),
)


def other_value(path: Path, dice: random.Random) -> None:
    """One value, somewhere, of another type or size."""
    content = json.loads(path.read_text(encoding="utf-8"))
    holder = content
    while True:
        key = dice.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or dice.random() < 0.3:
            break
        holder = inner
    holder[key] = dice.choice(ODD_VALUES)
    path.write_text(json.dumps(content), encoding="utf-8")


def huge_digits(path: Path, dice: random.Random) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("{", '{"zz": ' + "9" * 10_000 + ",", 1), encoding="utf-8")


def other_header(path: Path, dice: random.Random) -> None:
    """The header of a safetensors file with one claim changed."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    name = dice.choice([key for key in header if key != "__metadata__"])
    how = dice.randrange(7)
    if how == 0:
        path.write_bytes(struct.pack("<Q", dice.choice((2**63, 2**40, 10**8, 0))) + data[8:])
        return
    entry = header[name]
    if how == 1:
        entry["shape"] = [2**40, 2**40]
    elif how == 2:
        entry["dtype"] = dice.choice(("F999", "I8", None, 7))
    elif how == 3:
        entry["data_offsets"] = [0, 2**62]
    elif how == 4:
        header["renamed"] = header.pop(name)
    elif how == 5:
        entry["shape"] = [*reversed(entry["shape"]), 1]
    else:
        header[name] = "text"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


ANY: tuple[Damage, ...] = (
    *(cut, flip, lengthen, swell, empty, remove),
    *(pipe, folder_instead, loop, device, own_socket),
)
OF_JSON: tuple[Damage, ...] = (no_utf8, deep, other_top, other_value, huge_digits)
CASES = [
    pytest.param(name, damage, number, id=f"{name}-{damage.__name__}-{number}")
    for name in FILES
    for damage in (
        *ANY,
        *(OF_JSON if name.endswith(".json") else ()),
        *((other_header,) if name.endswith(".safetensors") else ()),
    )
    for number in range(8 if damage in (other_value, other_header, flip) else 1)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "damage", "number"), sampled(CASES, 16))
def test_every_damage_ends_with_a_message_and_never_with_a_traceback_or_a_wait(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str, damage: Damage, number: int
) -> None:
    """What planning says of it, then what loading says where planning was not asked."""
    whole = tiny_folder("tiny_i2v")
    folder = shutil.copytree(whole, tmp_path / "checkpoint", copy_function=os.link)
    (folder / name).unlink()
    shutil.copyfile(whole / name, folder / name)  # the others are links: 30 MB less to copy
    damage(folder / name, random.Random(f"{name} {damage.__name__} {number} {SEED}"))
    model = hub_model(repo=str(folder), task=Task.i2v)
    config = Project(tmp_path).config()
    config.model.task = Task.i2v
    told = []

    with no_hang():
        try:
            resolve_checkpoint(model)
        except Refused as error:
            told.append(str(error))
        try:
            check_checkpoint(config, at(folder))
            load_all(folder, config)
        except Refused as error:
            told.append(str(error))

    for text in told:
        assert str(folder) in text
        assert text.endswith(".") or "prefetch" in text
        assert len(text) < 2000
        assert "\n" not in text
    if damage in (cut, empty, remove, swell, pipe, folder_instead, loop, device, own_socket):
        # A byte tokenizer needs no added tokens; what is cut of a template is a shorter one.
        assert told or name in ("tokenizer/chat_template.jinja", "tokenizer_2/added_tokens.json")
        assert not told or Path(name).parts[0].removesuffix(".json") in told[0]
    elif not told:
        # Flipped bits and other numbers may be valid: then they are other weights by their hash.
        assert (folder / name).read_bytes() != (whole / name).read_bytes()


def load_all(folder: Path, config: Any) -> None:
    """Load what a worker loads, and encode a text as it does."""
    components = ("transformer", "vae", "scheduler", "guider", "image_encoder", "feature_extractor")
    for component in components:
        load_component(component, config, at(folder), CPU)
    encoders = Encoders(lambda part: load_component(part, config, at(folder), CPU), CPU)
    encoders.encode_text('a cat with a sign "OPEN"')


# -- in the cache of the hub ------------------------------------------------------------------


def test_damage_of_the_right_size_in_the_hubs_cache_is_named_with_the_file_to_delete(
    tmp_path: Path,
) -> None:
    """huggingface_hub looks at names only: the file must go before it is downloaded again."""
    fetcher, hub = Fetcher(tmp_path / "hub"), FakeHub()
    fetcher(hub_model(), hub)
    blob = (snapshot(tmp_path / "hub") / "transformer" / "config.json").resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    hub.snapshot_download = lambda *_, **__: ""  # type: ignore[method-assign]

    assert resolve_checkpoint(hub_model(), hub_cache=tmp_path / "hub").folder is None
    told = message(lambda: fetcher(hub_model(), hub))

    assert "transformer/config.json is damaged" in told
    assert f"delete {blob} and run again" in told


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"7", b"\xff", b'{"commit": 7}', b'{"commit": "../x", "snapshots": [1]}'),
        *(b'{"snapshots": {"' + b"1" * 40 + b'": [1]}}', b'{"a":' + b"[" * 99_999),
    ],
)
def test_a_damaged_note_of_what_was_fetched_counts_as_none(tmp_path: Path, content: bytes) -> None:
    folder = write(snapshot(tmp_path), layout())
    write(folder.parents[1] / "refs", {"main": COMMIT.encode()})
    write(cache_root() / "checkpoints", {"owner--name.json": content})
    write(cache_root(), {"file_sha256.json": content})
    model = hub_model(repo=str(write(tmp_path / "local", layout())))

    assert resolve_checkpoint(hub_model(), hub_cache=tmp_path).folder == folder
    assert resolve_checkpoint(model).revision == resolve_checkpoint(model).revision


@pytest.mark.parametrize("content", [b"../../../etc", b"\xff\xfe", b"x" * 10**6, None])
def test_a_branch_that_names_no_commit_counts_as_unknown(
    tmp_path: Path, content: bytes | None
) -> None:
    folder = write(snapshot(tmp_path), layout())
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    if content is None:
        os.mkfifo(refs / "main")
    else:
        (refs / "main").write_bytes(content)

    with no_hang(10):
        assert resolve_checkpoint(hub_model(), hub_cache=tmp_path).revision is None


# -- what is said where -----------------------------------------------------------------------


def test_a_dry_run_that_counts_tokens_says_which_tokenizer_is_damaged(
    tiny_folder: Callable[[str], Path], tmp_path: Path, command: Callable[..., Answer]
) -> None:
    folder = shutil.copytree(tiny_folder("tiny_t2v"), tmp_path / "checkpoint")
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    (tmp_path / "p.txt").write_text("a cat\n", encoding="utf-8")

    answer = command("p.txt", f"model.repo={folder}", "--dry-run", "runtime.card=rtx_4090")

    assert answer.code == 2
    assert "tokenizer.json: the tokenizer is damaged" in answer.err
    assert "Traceback" not in answer.err
