"""Files from elsewhere are regular, of limited size and depth, before anything is made of them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hv15_batch.files import (
    MAX_DEPTH,
    MAX_YAML_NODES,
    TooLarge,
    check_depth,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
)

READERS: tuple[Callable[[Path], Any], ...] = (
    lambda path: read_bytes(path, 99),
    lambda path: read_text(path, 99),
    read_json,
    read_yaml,
    lambda path: open_regular(path, 99).close(),
)


def odd_file(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to a pipe":
        os.mkfifo(folder / "behind")
        path.symlink_to("behind")
    else:
        path.symlink_to(path.name)
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "socket", "device", "link to a pipe", "link to itself"]
)
def test_what_is_no_regular_file_is_refused_at_once_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, read: Callable[[Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = odd_file(tmp_path, kind)

    with pytest.raises(OSError, match=re.escape(str(path))) as caught:
        read(path)

    assert caught.value.filename == str(path)
    if kind != "link to itself":
        assert kind.rsplit(maxsplit=1)[-1] in str(caught.value.strerror)


def test_a_file_is_read_up_to_its_limit_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 99)
    (tmp_path / "link").symlink_to("a")

    assert read_bytes(tmp_path / "link", 99) == b"x" * 99
    with pytest.raises(TooLarge) as caught:
        read_bytes(tmp_path / "a", 98)
    assert caught.value.num_bytes == 99
    with (tmp_path / "b").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match=r"has 1,099,511,627,776 bytes, more than 16 MiB"):
        read_json(tmp_path / "b")


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 5_000, 1_000_000])
@pytest.mark.parametrize("kind", ["list", "object", "both"])
def test_json_that_is_too_deep_is_refused_and_what_is_less_deep_is_read(
    levels: int, kind: str
) -> None:
    opening, closing = {"list": ("[", "]"), "object": ('{"a":', "}"), "both": ('[{"a":', "}]")}[
        kind
    ]
    inside = "1"

    with pytest.raises(ValueError, match="nested more than 64 levels deep"):
        parse_json(opening * levels + inside + closing * levels)
    assert parse_json(opening * 30 + inside + closing * 30)


def test_depth_is_that_of_lists_and_objects(tmp_path: Path) -> None:
    check_depth([[[1]]], 3)
    with pytest.raises(ValueError, match="nested more than 2"):
        check_depth([[[1]]], 2)
    with pytest.raises(ValueError, match="digits"):
        parse_json("9" * 10_000)


def bomb(lines: int) -> str:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for n in range(1, lines):
        text += f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n"
    return text


BAD_YAML = {
    "aliases": (bomb(9), f"more than {MAX_YAML_NODES:,} values"),
    "deep": ("a: " + "[" * 100_000, "nested more than 64 levels deep"),
    "deep by lines": ("\n".join(" " * n + "a:" for n in range(999)), "nested more than 64"),
    "itself": ("a: &a [*a]", r"\*a stands for nothing, or for itself"),
    "many": ("a: [" + "1," * 100_001 + "]", "more than 100,000 values"),
    "tag": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "digits": ("a: " + "9" * 10_000, "digits"),
    "date": ("a: 2001-99-99", "month"),
    "no yaml": ("a: [", "did not find expected node content"),
    "tab": ("a:\n\t- b", "cannot start any token"),
}


@pytest.mark.parametrize("kind", sorted(BAD_YAML))
def test_yaml_that_would_take_time_memory_or_code_is_refused(tmp_path: Path, kind: str) -> None:
    text, message = BAD_YAML[kind]
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_a_few_aliases_are_yaml_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n")

    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
