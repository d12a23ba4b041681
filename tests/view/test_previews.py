"""Pictures of clips that denoise: handed out by the worker's number alone, never by a path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import make_run, make_status, record
from fakes.served import Client, serving

from hv15_batch.config.shard import Shard
from hv15_batch.rundir.chosen.previews import preview_file, write_preview
from hv15_batch.rundir.paths import RunDir

WORKING: dict[str, Any] = {
    "state": "rendering", "hostname": "another", "total": 2, "done": 1, "clip_id": "b",
    "stage": "denoise", "step": 3, "steps": 50,
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(make_run(tmp_path / "run", [record("a")], [record("a"), record("b", 1)]))
    made.status.write_text(json.dumps(make_status(**WORKING)), encoding="utf-8")
    return made


@pytest.fixture
def client(run_dir: RunDir) -> Iterator[Client]:
    with serving(run_dir.path) as let_in:
        yield let_in


def put(run_dir: RunDir, worker: int = 0, content: bytes = b"picture") -> None:
    write_preview(run_dir, worker, lambda path: path.write_bytes(content) and None)


def looked(client: Client) -> list[dict[str, Any]]:
    for _ in range(3):  # the server's own look may come between
        client.view.watch._status_at = 0.0
        client.view.watch.seen = client.view.watch.look()
    previews: list[dict[str, Any]] = client.view.watch.seen.statuses[0].get("previews", [])
    return previews


def test_a_picture_has_an_address_of_numbers_and_is_gone_with_its_clip(
    client: Client, run_dir: RunDir
) -> None:
    assert client.get("/previews/0/0/0").status == 404
    put(run_dir)
    (shown,) = looked(client)
    assert (shown["address"], shown["clip"], shown["step"]) == ("previews/0/0/0", "b", 3)
    answer = client.get(f"/previews/0/0/0?v={shown['version']}")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.body == b"picture"

    preview_file(run_dir, 0).unlink()
    assert client.get("/previews/0/0/0").status == 404
    assert looked(client) == []


def test_each_of_two_workers_shows_its_own(client: Client, run_dir: RunDir) -> None:
    workers = [
        {"worker": n, "where": f"card {n}", "clip_id": name, "stage": "denoise", "step": n + 1,
         "steps": 50, "done": 0, "failed": 0}
        for n, name in enumerate(("a", "b"))
    ]  # fmt: skip
    status = make_status(**WORKING, workers=workers)
    run_dir.status.write_text(json.dumps(status), encoding="utf-8")
    for worker in (0, 1, 7):
        put(run_dir, worker, f"picture {worker}".encode())

    shown = looked(client)
    assert [(each["clip"], each["step"]) for each in shown] == [("a", 1), ("b", 2)]
    assert client.get("/previews/0/0/1").body == b"picture 1"
    assert client.get("/previews/0/0/7").status == 404


def test_a_shard_shows_its_own_beside_its_own_log(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "run", [record("a")], [record("a"), record("b", 1)])
    shard = RunDir(whole, Shard(1, 2))
    shard.own_log.mkdir(parents=True)
    (whole / "run.json").write_text('{"shards": 2}', encoding="utf-8")
    put(shard)

    assert preview_file(shard, 0) == whole / "shards" / "1-of-2" / "previews" / "worker-0.jpg"


def test_a_run_that_has_ended_shows_none(client: Client, run_dir: RunDir) -> None:
    put(run_dir)
    ended = make_status(**{**WORKING, "state": "stopped"})
    run_dir.status.write_text(json.dumps(ended), encoding="utf-8")

    assert looked(client) == []
    assert client.get("/previews/0/0/0").status == 404


@pytest.mark.parametrize(
    "path",
    ["/previews/0/0/../../../etc/passwd", "/previews/0/0/worker-0.jpg", "/previews/0/0/00",
     "/previews/1/0/0", "/previews/-1/0/0", "/previews/0/0/0.jpg", "/previews/worker-0.jpg",
     "/media/0/previews/worker-0.jpg", "/previews/0/0/%30%00"],
)  # fmt: skip
def test_no_other_address_gives_anything(client: Client, run_dir: RunDir, path: str) -> None:
    put(run_dir)
    looked(client)

    assert client.get(path).status == 404


@pytest.mark.parametrize("which", ["file", "folder"])
def test_links_are_not_followed(
    client: Client, run_dir: RunDir, tmp_path: Path, which: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "worker-0.jpg").write_bytes(b"secret")
    folder = preview_file(run_dir, 0).parent
    if which == "folder":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir()
        preview_file(run_dir, 0).symlink_to(elsewhere / "worker-0.jpg")
    looked(client)

    assert client.get("/previews/0/0/0").status == 404


def test_a_picture_needs_the_cookie(run_dir: RunDir) -> None:
    put(run_dir)
    with serving(run_dir.path, is_let_in=False) as stranger:
        assert stranger.get("/previews/0/0/0").status == 403


def test_plots_are_those_of_now(client: Client) -> None:
    told = client.get("/plots").json()

    assert told == client.view.watch.seen.served.data["plots"]
    assert {plot["id"] for plot in told} >= {"vram", "rate"}
