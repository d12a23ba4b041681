"""A Ray cluster renders one manifest: as workers of one machine do, and machines come and go."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from fakes.clusters import TESTS, Hits, Unfit, opened, ray_cluster
from fakes.engine import InProcessExecutor
from fakes.object_store import lend
from fakes.runs import FakeRenderer, Project

from hv15_batch.config.settings import DispatchConfig, DispatchKind
from hv15_batch.dispatch import _ray_executor
from hv15_batch.dispatch._child import make_renderer
from hv15_batch.errors import Refused
from hv15_batch.machine.machine import cache_root
from hv15_batch.run.rendering import team
from hv15_batch.rundir.log import read_records
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.shared import Question
from hv15_batch.rundir.status import read_status
from hv15_batch.rundir.store import place

if TYPE_CHECKING:
    from fakes.object_store import Server

RAY = DispatchConfig(kind=DispatchKind.ray)
exhaustive = pytest.mark.exhaustive
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def node_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the cluster's machine, as far as the driver can tell another one."""
    return tmp_path_factory.mktemp("node") / "hv15_batch"


@pytest.fixture(scope="module")
def cluster(server: Server, node_cache: Path) -> Iterator[Any]:
    """One machine with two CPUs, whose cache is not the driver's."""
    environ = {
        "AWS_ACCESS_KEY_ID": "key-of-nobody",
        "AWS_SECRET_ACCESS_KEY": "secret-of-nobody",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.url,
        "XDG_CACHE_HOME": str(node_cache.parent),
        "CUDA_VISIBLE_DEVICES": "",
    }
    with ray_cluster(**environ) as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run(project: Project, renderer: Any = FakeRenderer, **changes: Any) -> int:
    from hv15_batch.run import session

    project.said.clear()
    config = project.config(**{"dispatch": RAY, **changes})
    return session.run(config, (), None, project.said.append, open_cluster=opened(renderer))


def places(project: Project) -> Counter[str]:
    """Return how many clips each worker finished."""
    return Counter(r["worker_id"] for r in project.records() if r["status"] == "ok")


def attempts(project: Project, row_id: str) -> list[str]:
    return [r["status"] for r in project.records() if r["row_id"] == row_id]


def test_two_actors_make_the_same_latents_as_one_worker(
    cluster: Any, project: Project, tmp_path: Path
) -> None:
    project.write("id,prompt", *(f"r{n},a clip of number {n}" for n in range(4)))

    assert run(project, make_renderer) == 0
    there = {r["clip_id"]: r for r in project.records()}
    assert len(there) == len(project.records()) == 4
    assert {r["worker_id"] for r in there.values()} == {"ray-0-0", "ray-1-0"}
    status = read_status(project.run_dir.path)
    assert sum(worker.done for worker in status.workers) == 4
    assert all(re.fullmatch(r".+ \(127\.0\.0\.1\), CPU", w.where) for w in status.workers)
    assert not list(project.run_dir.path.glob("probe/*")), "the trial of the store left nothing"

    assert project.run(InProcessExecutor, run_dir=str(tmp_path / "one")) == 0
    here = read_records(RunDir(tmp_path / "one").log).to_pylist()
    assert {r["clip_id"]: r["latents_sha256"] for r in here} == {
        clip_id: r["latents_sha256"] for clip_id, r in there.items()
    }


def test_a_killed_actor_a_clip_that_fails_and_one_that_kills_cost_no_other_clip(
    cluster: Any, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("hit,hit once", "bad,fail", "kills,die", *(f"r{n},sleep 0.2 {n}" for n in range(8)))
    project.write("id,prompt", *rows)

    assert run(project, Hits) == 3
    assert attempts(project, "hit") == ["failed", "ok"]
    assert attempts(project, "bad") == ["failed"]
    assert attempts(project, "kills") == ["failed"] * 2, "as many as retry.max_attempts"
    assert all(attempts(project, f"r{n}") == ["ok"] for n in range(8))
    lost = next(r for r in project.records() if r["row_id"] == "hit")
    assert lost["error_type"] == "WorkerDied"
    assert "is gone from the cluster" in lost["error_message"]
    said = capsys.readouterr().out
    assert "is given up" in said
    assert "worker 2 joins: " in said, "Ray made it again, and it is another worker"
    assert run(project, Hits) == 3
    assert attempts(project, "r0") == ["ok"], "done is done"


def broken_question(_: Any) -> Question:
    return Question("probe/nothing", "0" * 64, "probe/answer")


@exhaustive
def test_a_chain_on_object_storage_goes_on_from_a_frame_of_another_machine(
    cluster: Any, server: Server, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(server, monkeypatch)
    url = "s3://films/chain-on-ray"
    project.write(
        "id,prompt,model,image,height,width,num_frames,join",
        "a,a cat,,,128,128,5,story",
        "b,a dog,tiny_i2v,@a:last,,,5,story",
    )

    assert run(project, make_renderer, run_dir=url) == 0
    rows = read_records(RunDir(place(url)).log).to_pylist()
    assert sorted((r["row_id"], r["status"]) for r in rows) == [("a", "ok"), ("b", "ok")]


def test_a_worker_that_does_not_see_the_store_is_refused_by_name(
    cluster: Any,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asks: list[Callable[[Any], Question]] = [broken_question]
    real = _ray_executor.ask
    monkeypatch.setattr(
        _ray_executor, "ask", lambda shared: asks.pop()(shared) if asks else real(shared)
    )
    project.write("id,prompt", *(f"r{n},sleep 0.1 {n}" for n in range(4)))

    assert run(project) == 0
    assert len(places(project)) == 1
    said = capsys.readouterr().out
    fault = f"it cannot read {project.run_dir.path}/probe/nothing, which the driver has just "
    given_up = r"worker \d is given up, 1 worker left: .+ \(127\.0\.0\.1\): "
    assert re.search(given_up + fault, said)


@exhaustive
def test_a_run_whose_store_no_worker_sees_is_refused(
    cluster: Any, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ray_executor, "ask", broken_question)
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    with pytest.raises(Refused, match=r"cannot read .*run_dir=s3://BUCKET/FOLDER"):
        run(project)
    assert project.records() == []


@exhaustive
def test_a_run_that_every_worker_declines_is_refused(cluster: Any, project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    with pytest.raises(Refused, match=r"\(127.0.0.1\): runtime.linear=fp8: not on these cards"):
        run(project, Unfit)
    assert project.records() == []


@exhaustive
def test_a_machine_that_joins_gets_clips_and_one_that_is_killed_loses_none(
    cluster: Any, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", *(f"r{n},sleep 1 {n}" for n in range(40)))
    journal, codes = project.folder / "journal.txt", list[int]()
    thread = threading.Thread(target=lambda: codes.append(run(project)), daemon=True)
    thread.start()
    wait_for(lambda: journal.exists() and journal.read_text().count("denoise") >= 2)
    node = cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)
    wait_for(lambda: "ray-2-0" in places(project))
    cluster.remove_node(node, allow_graceful=False)
    thread.join(120)
    assert codes == [0]
    assert places(project)["ray-2-0"] >= 1
    ok = Counter(r["row_id"] for r in project.records() if r["status"] == "ok")
    assert ok == {f"r{n}": 1 for n in range(40)}
    said = capsys.readouterr().out
    assert "worker 2 joins: " in said
    assert "worker 2 is given up, 2 workers left: the worker on " in said


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@exhaustive
def test_a_card_that_the_driver_does_not_list_is_not_used(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=0, num_gpus=1, object_store_memory=80 * 2**20)
    try:
        wait_for(lambda: "GPU" in cluster_resources())
        with (
            opened()(None, None, 3) as found,
            pytest.raises(Refused, match=r"\(127.0.0.1\) is not used: Ray gave it a card that its"),
        ):
            found.first_seats()
    finally:
        cluster.remove_node(node)


def cluster_resources() -> dict[str, float]:
    import ray

    return dict(ray.cluster_resources())


@exhaustive
def test_a_run_without_workers_waits_for_one_and_then_stops(
    cluster: Any, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "JOIN_SECONDS", 1.0)
    monkeypatch.setattr("hv15_batch.dispatch._ray_cluster._MOST_DEATHS", 1)
    project.write("id,prompt", "hit,hit", "cat,hit")

    assert run(project, Hits) == 4
    assert any("no worker is left, and none joined within 1 s" in line for line in project.said)


@exhaustive
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_as_with_workers_of_this_machine(
    cluster: Any, project: Project, number: signal.Signals, code: int
) -> None:
    seconds = 0.6 if number == signal.SIGINT else 30
    project.write("id,prompt", *(f"r{n},sleep {seconds} {n}" for n in range(8)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def send() -> None:
        path = project.folder / "journal.txt"
        wait_for(lambda: path.exists() and path.read_text().count("denoise") >= 2)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        assert run(project) == code
    finally:
        thread.join(10)
        signal.signal(signal.SIGINT, before)
    wanted = "ok" if number == signal.SIGINT else "interrupted"
    assert {r["status"] for r in project.records()} == {wanted}


@exhaustive
def test_workers_of_other_machines_read_and_write_object_storage(
    cluster: Any,
    server: Server,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    node_cache: Path,
) -> None:
    lend(server, monkeypatch)
    url = "s3://films/on-ray"
    project.write("id,prompt", *(f"r{n},a clip of number {n}" for n in range(4)))

    assert run(project, make_renderer, run_dir=url) == 0
    rows = read_records(RunDir(place(url)).log).to_pylist()
    assert sorted(r["row_id"] for r in rows) == [f"r{n}" for n in range(4)]
    names = server.names("on-ray")
    assert {r["file"] for r in rows} <= set(names)
    assert {r["latents_file"] for r in rows} <= set(names)
    embeddings = [n for n in names if n.startswith("inputs/")]
    assert len(embeddings) == 5, "four prompts and the negative one, each once"
    assert not [n for n in names if n.startswith("probe/")]
    here = RunDir(place(url))
    for folder in (here.clips, here.latents, here.embeddings):
        assert list(folder.iterdir()) == [], "nothing went through the driver"
    there = node_cache / here.path.relative_to(cache_root())
    assert [list((there / name).iterdir()) for name in ("clips", "latents")] == [[], []]
    assert run(project, make_renderer, run_dir=url) == 0
    assert any("Nothing to do" in line for line in project.said)


@exhaustive
def test_a_killed_driver_leaves_no_worker_and_the_next_run_goes_on(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", *(f"r{n},sleep 0.5 {n}" for n in range(12)))
    script = (
        "import sys; from pathlib import Path; from fakes.runs import Project;"
        "from fakes.clusters import opened; from hv15_batch.run import session;"
        "from hv15_batch.config.settings import DispatchConfig, DispatchKind;"
        f"p = Project(Path({str(tmp_path)!r}));"
        "c = p.config(dispatch=DispatchConfig(kind=DispatchKind.ray));"
        "sys.exit(session.run(c, (), None, print, open_cluster=opened()))"
    )
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environ = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", script]
    driver = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(project.records()) >= 2)
        processes = psutil.Process(driver.pid).children(recursive=True)
        sockets = [c for p in processes for c in connections(p) if c.status == psutil.CONN_LISTEN]
        assert sockets
        rendering = ("ray::RayWorker", "spawn_main")
        workers = [p for p in processes if any(w in " ".join(p.cmdline()) for w in rendering)]
        assert len(workers) == 4, "two actors and their renderers"
        assert {c.laddr.ip for c in sockets} <= LOOPBACK, "no other machine reaches it"
    finally:
        driver.kill()
    driver.wait()
    wait_for(lambda: not any(p.is_running() for p in workers))

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "raylet" not in done.stdout + done.stderr, "what Ray says of itself is in run.log"
    assert done.stderr == ""
    ok = Counter(r["row_id"] for r in project.records() if r["status"] == "ok")
    assert ok == {f"r{n}": 1 for n in range(12)}


def connections(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections("inet"))
    except psutil.Error:
        return []
