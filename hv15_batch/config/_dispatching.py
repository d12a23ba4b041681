"""Checks of `dispatch`: which machines render, and how a cluster is named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hv15_batch.errors import Refused

if TYPE_CHECKING:
    from hv15_batch.config.settings import Config

AUTO = "auto"
_ADDRESS = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def check_dispatch(config: Config) -> None:
    """Check that the settings of `dispatch` fit each other; nothing is asked of a cluster.

    Raises:
        Refused: They do not.
    """
    address, is_ray = config.dispatch.address, config.dispatch.kind.name == "ray"
    if address is not None and not is_ray:
        raise Refused(
            f"dispatch.address={address} with dispatch={config.dispatch.kind.name}: only a Ray "
            "cluster has an address; type dispatch=ray too, or leave it out."
        )
    if address is not None and address.startswith("ray://"):
        raise Refused(
            f"dispatch.address={address}: through Ray's client the driver would be on another "
            "machine than its command; start this command on a machine of the cluster, with "
            "dispatch.address=auto."
        )
    if address not in (None, AUTO):
        found = _ADDRESS.fullmatch(str(address))
        if found is None or not 0 < int(found[2]) < 2**16:
            raise Refused(
                f"dispatch.address={address}: must be auto or HOST:PORT, for example "
                "10.0.0.1:6379; leave it out for a cluster on this machine alone."
            )
    if is_ray and (config.benchmark.repeat is not None or config.benchmark.calibrate):
        raise Refused(
            "dispatch=ray with a benchmark: it measures one card of this machine; leave "
            "dispatch=ray out."
        )
    if is_ray and config.runtime.engine.name == "official":
        raise Refused(
            "dispatch=ray with runtime.engine=official: the script's folder is one of this "
            "machine; leave dispatch=ray out."
        )
    if is_ray and config.shard is not None:
        raise Refused(
            f"dispatch=ray with shard={config.shard}: both share a manifest between machines; "
            "leave one of them out."
        )
