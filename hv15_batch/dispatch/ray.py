"""Ray: how a cluster is reached, started and left. The only file that imports ray.

Nothing is imported before `dispatch=ray` asks for it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hv15_batch.dispatch._child import make_renderer
from hv15_batch.dispatch._node import NodeWorker
from hv15_batch.dispatch._ray_cluster import GROUPS, RayCluster
from hv15_batch.dispatch.protocol import HANDLED, ExecutorSpec, Renderer
from hv15_batch.errors import Refused
from hv15_batch.files import read_text

logger = logging.getLogger(__name__)

INSTALL = "pip install 'hv15_batch[ray]'"
_ANSWER_SECONDS = 5.0
_STORE_BYTES = 128 * 1024 * 1024
"""Of a cluster that is started here; only long lists of clips ever go there."""
_AUTO = "auto"
_CURRENT = Path("/tmp/ray/ray_current_cluster")
"""Where `ray start` notes the address of the machine's cluster."""
_MAX_ADDRESS = 1024


@contextmanager
def cluster_at(
    address: str | None,
    uses_card: bool | None,
    most: int,
    renderer: Callable[[ExecutorSpec], Renderer] = make_renderer,
) -> Iterator[RayCluster]:
    """Yield a cluster, and give its seats back at the end.

    Args:
        address: `auto` or `HOST:PORT`; None starts one on this machine, which no other can reach.
        uses_card: Whether a worker takes a card; None means where the cluster has some.
        most: How many workers are of use.
        renderer: Makes what renders.

    Raises:
        Refused: ray is not installed, or the cluster cannot be used.
    """
    with _connected(address) as ray:
        cluster = RayCluster(ray, _actor_class(ray), uses_card, most, renderer)
        try:
            yield cluster
        finally:
            cluster.close()


def _actor_class(ray: Any) -> Any:
    class RayWorker(NodeWorker):
        """A `NodeWorker` that knows where Ray has put it."""

        def __init__(self, facts: dict[str, str]) -> None:
            import ray as here

            node_id = here.get_runtime_context().get_node_id()
            address = here.util.get_node_ip_address()
            super().__init__({**facts, "node_id": node_id, "address": address})

    return ray.remote(concurrency_groups=GROUPS)(RayWorker)


# -- the connection ---------------------------------------------------------------------------


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Be connected to a cluster; yield the module `ray`.

    Without an address one is started on this machine, which no other can reach. A program that is
    connected already stays so.

    Raises:
        Refused: ray is not installed, or the cluster cannot be reached.
    """
    known = sys.modules.get("ray")
    if known is not None and known.is_initialized():
        _check_same(known, address)
        yield known
        return
    ray = _imported(is_local=address is None or _is_only_here(address))
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in HANDLED}
    try:
        _connect(ray, address)
        _restore(handlers)
        yield ray
    finally:
        ray.shutdown()
        _restore(handlers)


def _restore(handlers: Mapping[int, Any]) -> None:
    """Set handlers of signals again: Ray takes SIGTERM for itself."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _imported(is_local: bool) -> Any:
    """Return the module, quiet and without usage statistics.

    Raises:
        Refused: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own switch for machines that are no cluster: all its servers bind 127.0.0.1, and it does
    # not take that address for the machine's outer one.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0" if is_local else "1"
    try:
        import ray
    except ImportError as error:
        raise Refused(f"dispatch=ray: needs ray; type: {INSTALL}") from error
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = not is_local  # of an earlier import
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
        "include_dashboard": False,
    }
    _quieten(ray)
    if address is None:
        ray.init("local", object_store_memory=_STORE_BYTES, **quiet)
        return
    del quiet["include_dashboard"]
    try:
        ray.init(address, namespace="hv15_batch", **quiet)
    except Exception as error:  # of many kinds
        text = str(error).strip().splitlines()
        raise Refused(
            f"dispatch.address={address}: no Ray cluster can be used there ("
            f"{type(error).__name__}: {text[0] if text else ''}); start this command on one of its "
            "machines, where `ray status` must work. A cluster with a token and HOST:PORT needs "
            "RAY_AUTH_MODE=token."
        ) from error


def _is_only_here(address: str) -> bool:
    """Whether a cluster listens on this machine's own address alone, as one started here does.

    What listens is looked for first: Ray itself waits for minutes, and may end this process.

    Raises:
        Refused: Nothing listens there.
    """
    typed = _found_by_auto() if address == _AUTO else address
    host, _, port = typed.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        return False  # Ray says what is missing
    try:
        _reach(host, int(port))
    except (OSError, OverflowError) as error:
        raise Refused(
            f"dispatch.address={address}: nothing answers at {typed} ({error}); type the address "
            "that `ray start --head` printed, or dispatch.address=auto on a machine of the cluster."
        ) from error
    if host != "localhost" and not host.startswith("127.") and host != "::1":
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 1))  # sends nothing: the system names its outer address
            _reach(outward.getsockname()[0], int(port))
        except OSError:
            return True
    return False


def _reach(host: str, port: int) -> None:
    socket.create_connection((host, port), _ANSWER_SECONDS).close()


def _found_by_auto() -> str:
    """Return the address that Ray takes for `auto`; empty if it has to look further."""
    with suppress(OSError, UnicodeDecodeError):
        return os.environ.get("RAY_ADDRESS") or read_text(_CURRENT, _MAX_ADDRESS).strip()
    return ""


def _check_same(ray: Any, address: str | None) -> None:
    if address in (None, _AUTO):
        return
    known = str(ray.get_runtime_context().gcs_address)
    if known != address:
        raise Refused(
            f"dispatch.address={address}: this program is connected to the Ray cluster {known} "
            "already; call ray.shutdown() first, or leave dispatch.address out."
        )


def _quieten(ray: Any) -> None:
    """Send what Ray prints about its processes to run.log; it has no setting for that."""
    worker = ray._private.worker
    # It prints what dies to stdout, whatever `log_to_driver` says (2.60.0).
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _log_lines


def _log_lines(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
    for line in data.get("lines", ()):
        logger.info("ray: %s", line)
