"""A Ray cluster of this machine alone, with raylets that a test adds and kills."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakes.runs import FakeRenderer
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.errors import Refused

TESTS = Path(__file__).parents[1]


@contextmanager
def ray_cluster(num_cpus: int = 2, **environ: str) -> Iterator[Any]:
    """Start a head with so many CPUs, connect to it, and yield it; its servers are local."""
    before = dict(os.environ)
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    import ray
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    driver = dict(os.environ)
    os.environ |= environ  # of the machine, not of the driver
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": num_cpus,
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": 80 * 2**20,
        },
    )
    os.environ.clear()
    os.environ.update(driver)
    try:
        ray.init(
            cluster.address, log_to_driver=False, logging_level="ERROR", configure_logging=False
        )
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def opened(renderer: Any = FakeRenderer) -> Any:
    """Return what `session.run` reaches the cluster with; fakes render on it."""

    def open_cluster(address: str | None, uses_card: bool | None, most: int) -> Any:
        from hv15_batch.dispatch.ray import cluster_at

        return cluster_at(address, uses_card, most, renderer)

    return open_cluster


class Hits(FakeRenderer):
    """Renders as its prompts say; `hit` kills the process of the cluster's worker above it."""

    def _act(self, words: list[str]) -> None:
        if "hit" in words:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        super()._act(words)


class Unfit(FakeRenderer):
    """Cannot render anywhere."""

    def __init__(self, spec: ExecutorSpec) -> None:
        raise Refused("runtime.linear=fp8: not on these cards")
