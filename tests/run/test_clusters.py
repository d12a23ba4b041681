"""A run on a cluster: seats that join, leave or do not suit. Child processes stand for Ray."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes.runs import FakeRenderer, Project
from fakes.seats import FakeCluster, UnfitLater, seat
from fakes.worker import jobs, spec

from hv15_batch.clip import Source
from hv15_batch.config.settings import DispatchConfig, DispatchKind, RetryConfig, RuntimeConfig
from hv15_batch.config.shard import Shard
from hv15_batch.dispatch._node import _Serving
from hv15_batch.dispatch.protocol import Job
from hv15_batch.dispatch.seats import Order, Seat
from hv15_batch.errors import Refused
from hv15_batch.machine.nvml import Gpu
from hv15_batch.machine.system import system_sha256
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import OffloadKind
from hv15_batch.planning.todo import Todo
from hv15_batch.run import _cluster, _preflight
from hv15_batch.run._run import Run
from hv15_batch.run.rendering import team
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote import lease
from hv15_batch.rundir.remote.client import Client
from hv15_batch.rundir.remote.shared import Inputs
from hv15_batch.rundir.status import read_status
from hv15_batch.rundir.store import frame_of, place

if TYPE_CHECKING:
    from fakes.stored import Stored


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run(
    project: Project,
    cluster: FakeCluster,
    workers: int | str = "auto",
    address: str | None = None,
    **changes: Any,
) -> int:
    from hv15_batch.run import session

    project.said.clear()
    dispatch = DispatchConfig(kind=DispatchKind.ray, workers=workers, address=address)
    config = project.config(dispatch=dispatch, **changes)
    return session.run(config, (), None, project.said.append, open_cluster=cluster.open)


class Refilled(FakeCluster):
    """Has another seat once the first one is given up."""

    def __init__(self, capsys: pytest.CaptureFixture[str], first: Seat, second: Seat) -> None:
        super().__init__(first)
        self._capsys = capsys
        self._second = second
        self._is_added = False
        self.said = ""

    def new_seats(self) -> list[Seat]:
        self.said += self._capsys.readouterr().out
        if "worker 0 is given up" in self.said and not self._is_added:
            self._is_added = True
            self.add(self._second)
        return super().new_seats()


def done_by(project: Project) -> Counter[str]:
    return Counter(r["worker_id"] for r in project.records() if r["status"] == "ok")


def test_a_seat_that_joins_gets_clips_and_is_shown(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", *(f"r{n},sleep 0.5 {n}" for n in range(10)))
    cluster = FakeCluster(seat("one"))
    journal = project.folder / "journal.txt"

    def join() -> None:
        while not journal.exists() or "denoise" not in journal.read_text():
            time.sleep(0.02)
        cluster.notes.append("three is not used: it has another version.")
        cluster.add(seat("two"))

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    assert run(project, cluster) == 0
    thread.join(10)
    assert set(done_by(project)) == {"ray-0-0", "ray-1-0"}
    assert Counter(r["row_id"] for r in project.records()) == {f"r{n}": 1 for n in range(10)}
    said = capsys.readouterr().out
    assert "worker 1 joins: two, CPU" in said
    assert "three is not used: it has another version." in said
    assert [w.where for w in read_status(project.run_dir.path).workers] == ["one, CPU", "two, CPU"]
    assert {r["hostname"] for r in project.records() if r["hostname"]} <= {"one", "two"}
    facts = [json.loads(p.read_text()) for p in project.run_dir.runs.glob("*/system-*.json")]
    assert sorted(each["software"]["on"] for each in facts) == ["one", "two"]
    assert cluster.is_closed


def test_a_seat_that_leaves_is_given_up_and_another_one_goes_on(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "bad,die once", "cat,a cat", "dog,a dog")
    cluster = Refilled(capsys, seat("one", leaves=True), seat("two"))

    assert run(project, cluster) == 0
    statuses = Counter((r["row_id"], r["status"]) for r in project.records())
    assert statuses == dict.fromkeys([("bad", "failed"), *((r, "ok") for r in RIDS)], 1)
    lost = next(r for r in project.records() if r["status"] == "failed")
    assert (lost["hostname"], lost["worker_id"]) == ("one", "ray-0-0"), "not the driver"
    assert lost["system_sha256"] == system_sha256(dict(seat("one").facts))
    said = cluster.said + capsys.readouterr().out
    assert "worker 0 is given up, 0 workers left: the worker was ended by SIGKILL" in said
    assert "starting another one" not in said


class DiesEncoding(FakeRenderer):
    """Is killed, with the machine's worker, by a text that is encoded before all rendering."""

    def encode(self, clips: Any, emit: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_text_that_kills_the_machines_worker_while_all_are_encoded_ends_no_run(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    cluster = FakeCluster()
    cluster.begin_with(cluster.returning("one", 0, DiesEncoding))
    assert run(project, cluster) == 0
    assert done_by(project) == {"ray-2-0": 2}, "two workers died; the third renders"
    assert "from here on each clip is encoded just before" in capsys.readouterr().out


def test_bad_clips_in_a_row_are_counted_across_the_deaths_of_a_clusters_worker(
    project: Project,
) -> None:
    project.write("id,prompt", *(f"r{n},die {n}" for n in range(5)))
    cluster = FakeCluster()
    cluster.begin_with(cluster.returning("one", 0))
    retry = RetryConfig(max_attempts=1, max_consecutive_bad=2)
    assert run(project, cluster, retry=retry) == 4
    assert len(project.records()) == 2, "the other three are not tried"


def test_the_only_worker_is_given_up_if_it_is_unfit_once_the_log_has_rows(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "bad,die once", "cat,a cat", "dog,a dog")
    cluster = Refilled(capsys, seat("one", renderer=UnfitLater), seat("two"))

    assert run(project, cluster) == 0
    assert set(done_by(project)) == {"ray-1-0"}
    said = cluster.said + capsys.readouterr().out
    assert "worker 0 is given up, 0 workers left: loras: /a.safetensors is not on this" in said


def test_blocks_on_the_disks_of_other_machines_are_not_looked_for_here(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "offload_kinds", {OffloadKind.stream_disk})
    monkeypatch.setattr(_preflight, "transformer_bytes", lambda _: 10**18)
    project.write("id,prompt", "cat,a cat")

    with pytest.raises(Refused, match="offload=stream_disk"):
        run(project, FakeCluster(seat("one")))
    assert run(project, FakeCluster(seat("one")), address="auto") == 0


RIDS = ("bad", "cat", "dog")


def test_a_run_that_no_seat_is_left_for_stops_and_is_resumable(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "JOIN_SECONDS", 1.0)
    project.write("id,prompt", "bad,die once", "cat,a cat")

    assert run(project, FakeCluster(seat("one", leaves=True))) == 4
    assert "no worker is left, and none joined within 1 s" in " ".join(project.said)
    assert run(project, FakeCluster(seat("one"))) == 0


def test_a_held_run_directory_is_refused_before_the_cluster_is_asked(project: Project) -> None:
    project.write("id,prompt", "cat,a cat")
    project.run_dir.create()
    cluster = FakeCluster(seat("one"))

    with project.run_dir.locked("theirs"), pytest.raises(Refused, match=r"in use by .*run theirs"):
        run(project, cluster)
    shard = RunDir(project.run_dir.path, Shard(1, 2))
    shard.create()
    with shard.locked("theirs"), pytest.raises(Refused, match="shard 1/2"):
        run(project, cluster)
    assert cluster.asked == []
    assert run(project, cluster) == 0


def test_a_run_directory_whose_lease_is_held_is_refused_before_the_cluster_is_asked(
    stored: Stored,
) -> None:
    cluster = FakeCluster(seat("one"))
    holder = {"pid": 9, "hostname": "far", "run_id": "theirs", "started_at": "now", "folder": "x"}
    Client(stored.url).put(lease.NAME, json.dumps(holder).encode())

    with pytest.raises(Refused, match=r"in use by process 9 on far \(run theirs"):
        run(stored, cluster, run_dir=stored.url)
    assert cluster.asked == []


def test_a_frame_that_another_machine_put_is_found_by_the_worker_that_needs_it(
    stored: Stored,
) -> None:
    job = jobs(stored)["cat"]
    source = Source("0" * 64, "a" * 64, "cat_0", 4, 1, job.clip)
    place(stored.url)
    order = Order(replace(spec(stored), run_dir=stored.mirror.path), stored.url)
    serving = _Serving(order, FakeRenderer)
    serving._inputs = Inputs(stored.mirror)
    name = f"frames/{source.denoise_sha256}_4.0123456789abcdef.png"
    Client(stored.url).put(name, b"a frame")
    sent: list[Job] = []
    executor = cast(Any, SimpleNamespace(submit=sent.append))

    assert frame_of(stored.mirror, source.denoise_sha256, 4) is None
    serving._pass_on(executor, replace(job, clip=replace(job.clip, source=source)))
    found = frame_of(stored.mirror, source.denoise_sha256, 4)
    assert found is not None
    assert found.read_bytes() == b"a frame"
    assert len(sent) == 1


def test_a_cluster_is_asked_for_what_the_clips_need(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    cluster = FakeCluster(seat("one"))

    assert run(project, cluster, workers=1) == 0
    assert run(project, cluster) == 0, "all is done: no cluster is asked"
    assert cluster.asked == [(None, False, 1)]


SMALL = Gpu(0, "NVIDIA GeForce GTX 1650", "GPU-1", 2**32, 2**32, "580", None)
LARGE = Gpu(0, "NVIDIA H200", "GPU-2", 150 * 10**9, 150 * 10**9, "580", None)


def usable(project: Project, *seats: Seat) -> tuple[list[Seat], tuple[str, ...]]:
    """Return the seats that render a full-size model, and what is said of the others."""
    from hv15_batch.forecast.compilation import decide_compilations
    from hv15_batch.run.prepare import plan_against_log, prepare

    project.write("id,prompt", "cat,a cat")
    model = model_options()["480p_t2v"]
    model = model.__class__(**{**vars(model), "weights": model.weights.__class__("random")})
    config = project.config(model=model, runtime=RuntimeConfig(compile=False))
    asked = prepare(config, (), None)
    todo: Todo = plan_against_log(asked)
    machine = _cluster.as_one(seats[0].machine, seats)
    compilations = decide_compilations(asked.config, todo.clips, machine, asked.run_dir)
    found, choices, notes = _cluster.usable_seats(asked.config, todo, compilations, seats)
    assert [choice["480p_t2v"].gpu for choice in choices] == [each.gpu for each in found]
    return found, notes


def test_a_card_that_no_profile_fits_is_left_out_by_name(project: Project) -> None:
    small, large = seat("one", SMALL), seat("two", LARGE)

    found, notes = usable(project, small, large)
    assert found == [large]
    assert notes[0].startswith("one, NVIDIA GeForce GTX 1650, card 0 is not used: ")
    with pytest.raises(Refused):
        usable(project, small)
