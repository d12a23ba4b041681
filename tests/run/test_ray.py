"""A Ray cluster renders one manifest: as workers of one machine do, and machines come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.clusters import opened, ray_cluster
from fakes.runs import FakeRenderer, Project

from hv15_batch.config.settings import DispatchConfig, DispatchKind

RAY = DispatchConfig(kind=DispatchKind.ray)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run(project: Project, renderer: Any = FakeRenderer, **changes: Any) -> int:
    from hv15_batch.run import session

    project.said.clear()
    config = project.config(dispatch=RAY, **changes)
    return session.run(config, (), None, project.said.append, open_cluster=opened(renderer))


def places(project: Project) -> Counter[str]:
    return Counter(r["worker_id"] for r in project.records() if r["status"] == "ok")


def test_two_actors_render_each_clip_once(cluster: Any, project: Project) -> None:
    project.write("id,prompt", *(f"r{n},sleep 0.1 {n}" for n in range(12)))

    assert run(project) == 0
    assert Counter(r["row_id"] for r in project.records()) == {f"r{n}": 1 for n in range(12)}
    assert set(places(project)) == {"ray-0-0", "ray-1-0"}
    assert run(project) == 0
    assert len(project.records()) == 12, "everything is done"
