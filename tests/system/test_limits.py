"""A damaged or hostile run directory is one message, or as if its file were missing; never a wait.

Each file of a run directory in each way, and the commands that read it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.command import Answer
from fakes.hangs import no_hang
from fakes.runs import Project
from fakes.samples import SEED, sampled

from hv15_batch.config.settings import VideoConfig
from hv15_batch.errors import LogSchemaError
from hv15_batch.media.video import read_comment, write_video
from hv15_batch.rundir import log
from hv15_batch.rundir.log import read_records, segments
from hv15_batch.rundir.schema import arrow_schema

Command = Callable[..., Answer]
SEGMENT = "20261122T000000-0000-abcd-0000.parquet"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


FILES = {
    "status.json": "status.json",
    "config.yaml": "runs/*/config.yaml",
    "system.json": "runs/*/system.json",
    "log": "log/*.parquet",
    "plan.csv": "plan.csv",
    "clips.csv": "clips.csv",
    "clip": "clips/*.mp4",
    "latents": "latents/*.safetensors",
    "lock": ".lock.json",
    "page": "index.html",
}
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "noise": bytes(range(256)) * 9,
    "deep json": b'{"a":' + b"[" * 200_000,
    "a list": b"[]",
    "null": b"null",
    "text": b'"text"',
    "lists of everything": b'{"pid": [], "state": {}, "model": 7, "runtime": "x", "project": [1]}',
    "yaml bomb": BOMB.encode(),
    "yaml of other types": b"model: 7\nruntime: [1]\nvideo: text\nnotify: x\nmanifest: [1]\n7: 8\n",
    "many digits": b"model: {name: " + b"9" * 9_999 + b"}\n",
}
KINDS = (*CONTENTS, "cut", "pipe", "folder", "device", "loop", "huge")
CASES = [pytest.param(name, kind, id=f"{name}-{kind}") for name in FILES for kind in KINDS]


def spoil(path: Path, kind: str) -> None:
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    elif kind == "cut":
        data = path.read_bytes()
        path.write_bytes(data[: random.Random(SEED).randrange(max(len(data), 1))])
    elif kind == "huge":
        with path.open("r+b") as file:
            file.truncate(2**40)
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "device" else path.name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and the run directory `out` of it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.write("id,prompt,tag_x", "a,a cat,1", "b,a dog,2")
    assert project.run() == 0
    lock = project.run_dir.path / ".lock.json"
    lock.write_text('{"pid": 1, "hostname": "h", "run_id": "r", "started_at": "x"}')
    return project.folder


@pytest.mark.parametrize(("name", "kind"), sampled(CASES, 24))
def test_every_reader_of_a_run_directory_ends_with_a_code_and_at_most_a_message(
    finished: Path, tmp_path: Path, command: Command, name: str, kind: str
) -> None:
    shutil.copytree(finished, tmp_path / "x", symlinks=True)
    out = tmp_path / "x" / "out"
    for path in sorted(out.glob(FILES[name]))[:1]:
        spoil(path, kind)

    for words in (
        ("status", out),
        ("status", out, "--json"),
        ("report", out),
        ("compare", out, out),
        ("references", out),
        (f"resume={out}", "--dry-run"),
        (tmp_path / "x" / "prompts.csv", f"run_dir={out}", "model=tiny_t2v", "--dry-run"),
    ):
        with no_hang():
            answer = command(*words)

        assert answer.code in (0, 2, 3, 4), answer.err
        assert "Traceback" not in answer.err + answer.out
        assert len(answer.err) < 4_000


# -- the log ----------------------------------------------------------------------------------


def rows(**columns: Any) -> pa.Table:
    schema = arrow_schema()
    count = len(next(iter(columns.values())))
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def test_a_segment_of_more_rows_than_a_log_has_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(rows(prompt=["x"] * 2_000), tmp_path / SEGMENT)
    monkeypatch.setattr(log, "MAX_SEGMENT_ROWS", 1_000)

    with pytest.raises(LogSchemaError, match=r"it claims 2,000 rows and .* move it out"):
        read_records(tmp_path)


def test_a_small_segment_that_unpacks_to_much_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * 1_000_000
    pq.write_table(rows(prompt=[text] * 400, error_message=["y"] * 400), tmp_path / SEGMENT)
    assert (tmp_path / SEGMENT).stat().st_size < 5_000_000
    monkeypatch.setattr(log, "MAX_TABLE_BYTES", 100_000_000)

    with pytest.raises(LogSchemaError, match="it unpacks to more than"):
        read_records(tmp_path)


def test_batches_give_the_same_rows_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(rows(prompt=[f"{n}" for n in range(300)]), tmp_path / SEGMENT)
    whole = read_records(tmp_path)
    monkeypatch.setattr(log, "MAX_TABLE_BYTES", whole.nbytes + 1)  # the product is more

    assert read_records(tmp_path).equals(whole)
    assert read_records(tmp_path, ["prompt"]).num_rows == 300


def test_a_segment_with_a_column_twice_or_of_another_type_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    for table in (twice, pa.table({"seed": ["no number"]}), pa.table({"attempt": [[1]]})):
        ours = table.append_column("settings_sha256", pa.array(["a"]))
        ours = ours.replace_schema_metadata({"schema_version": "3"})
        pq.write_table(ours, tmp_path / SEGMENT)

        with pytest.raises(LogSchemaError, match="not a readable log segment"):
            read_records(tmp_path)


@pytest.mark.exhaustive
def test_no_damage_of_a_segment_is_more_than_a_message(tmp_path: Path) -> None:
    pq.write_table(rows(prompt=["a", "b"], seed=[1, 2]), tmp_path / SEGMENT)
    whole = (tmp_path / SEGMENT).read_bytes()
    dice = random.Random(SEED)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            # The footer, where counts and sizes are claimed, is at the end.
            data[-dice.randrange(1, min(len(data), 3_000))] = dice.randrange(256)
        (tmp_path / SEGMENT).write_bytes(data)
        with no_hang(), suppress(LogSchemaError):
            read_records(tmp_path)


def test_segments_are_looked_at_by_kind_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SEGMENT)

    assert segments(tmp_path)
    with no_hang(), pytest.raises(LogSchemaError, match="is a pipe and no regular file"):
        read_records(tmp_path)


# -- others -----------------------------------------------------------------------------------


def test_a_pipe_that_is_called_a_clip_is_refused(tmp_path: Path, command: Command) -> None:
    os.mkfifo(tmp_path / "clip.mp4")

    with no_hang():
        assert "is no regular file" in command("recipe", tmp_path / "clip.mp4").err
        with pytest.raises(OSError, match="is a pipe"):
            read_comment(tmp_path / "clip.mp4")


def test_a_tag_that_is_nested_too_deeply_is_none(tmp_path: Path, command: Command) -> None:
    comment = '{"schema":' + "[" * 500 + "]" * 500 + "}"
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    write_video(frames, tmp_path / "clip.mp4", fps=24, video=VideoConfig(), comment=comment)

    answer = command("recipe", tmp_path / "clip.mp4")

    assert answer.code == 2
    assert "its comment is not the settings of a clip" in answer.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: " + "[" * 5_000, "nested more than 64 levels deep"),
        (None, "more than 1 MiB"),
    ],
)
def test_a_configuration_of_the_users_own_has_limits_too(
    tmp_path: Path, command: Command, content: str | None, words: str
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    file = tmp_path / "mine" / "experiment" / "e.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content or "")
    if content is None:
        os.truncate(file, 2**40)

    with no_hang():
        answer = command("p.txt", "--config-dir", "mine", "experiment=e", "--dry-run")

    assert answer.code == 2
    assert str(file) in answer.err
    assert words in answer.err
    assert answer.err.count("\n") == 1
