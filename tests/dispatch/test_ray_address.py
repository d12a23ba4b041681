"""Which clusters may be named, and what is said where ray or the cluster is missing."""

from __future__ import annotations

import ast
import socket
import sys
from pathlib import Path

import pytest
from fakes.runs import Project

import hv15_batch
from hv15_batch.config.settings import (
    BenchmarkConfig,
    DispatchConfig,
    DispatchKind,
    RuntimeConfig,
)
from hv15_batch.dispatch import ray as ray_room
from hv15_batch.errors import Refused
from hv15_batch.model.variant import Engine

PACKAGE = Path(hv15_batch.__file__).parent


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat")
    return project


def refused(project: Project, address: str | None, kind: DispatchKind = DispatchKind.ray) -> str:
    """Return why a run with this address is refused; nothing is touched."""
    from hv15_batch.run import session

    config = project.config(dispatch=DispatchConfig(kind=kind, address=address))
    with pytest.raises(Refused) as error:
        session.run(config, (), None, print)
    assert not project.run_dir.path.exists()
    return str(error.value)


def test_the_client_of_ray_is_refused_with_what_to_do(project: Project) -> None:
    message = refused(project, "ray://10.0.0.1:10001")
    assert message.startswith("dispatch.address=ray://10.0.0.1:10001: ")
    assert "start this command on a machine of the cluster" in message


@pytest.mark.parametrize("address", ["here", "10.0.0.1", "h:0", "h:70000", "http://h:6379", "h:1 "])
def test_an_address_that_is_none_is_refused(project: Project, address: str) -> None:
    assert "must be auto or HOST:PORT, for example 10.0.0.1:6379" in refused(project, address)


def test_an_address_without_ray_is_refused(project: Project) -> None:
    message = refused(project, "auto", DispatchKind.local)
    assert message == (
        "dispatch.address=auto with dispatch=local: only a Ray cluster has an address; type "
        "dispatch=ray too, or leave it out."
    )


def test_an_address_where_nothing_answers_is_refused_at_once(project: Project) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert f"dispatch.address={address}: nothing answers at {address}" in refused(project, address)


def test_a_cluster_that_is_gone_is_not_waited_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_room, "_CURRENT", project.folder / "current")
    (project.folder / "current").write_text(address)
    message = refused(project, "auto")
    assert message.startswith(f"dispatch.address=auto: nothing answers at {address}")


def test_a_cluster_of_this_machine_alone_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ray_room._is_only_here(f"127.0.0.1:{server.getsockname()[1]}")


def test_without_ray_it_is_said_what_to_install(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused(project, None)
    assert message == "dispatch=ray: needs ray; type: pip install 'hv15_batch[ray]'"


def test_what_is_for_one_machine_is_refused_on_a_cluster(project: Project) -> None:
    from hv15_batch.run import session

    official = RuntimeConfig(engine=Engine.official)
    for changes in (
        {"benchmark": BenchmarkConfig(repeat=2)},
        {"shard": "1/2"},
        {"runtime": official},
    ):
        config = project.config(dispatch=DispatchConfig(kind=DispatchKind.ray), **changes)
        with pytest.raises(Refused, match=r"dispatch=ray with .*leave .* out"):
            session.run(config, (), None, print)


def test_one_file_imports_ray() -> None:
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.split(".")[0] == "ray" for name in names):
                importing.add(path.relative_to(PACKAGE).as_posix())
    assert importing == {"dispatch/ray.py"}
