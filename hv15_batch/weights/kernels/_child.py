"""Downloads a kernel; `answer` runs in a process that `fetched` starts.

A process of its own, because the package `kernels` imports torch to find the build that fits it.
Nothing of the kernel is run. The last line of its output is the folder of that build, or the error,
as JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

TRUST = "DIFFUSERS_TRUST_REMOTE_KERNELS"
"""diffusers' variable: kernels of publishers that the hub does not vouch for may be run."""
_TRUE = ("1", "ON", "YES", "TRUE")


class Untrusted(Exception):
    """The hub does not vouch for the publisher."""


def is_trusting(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user allows kernels of any publisher."""
    return environ.get(TRUST, "").upper() in _TRUE


def check_publisher(repo: str, overview: Callable[[str], Any]) -> None:
    """Check that the hub marks a repository's owner as a trusted publisher of kernels.

    Args:
        repo: Hub id.
        overview: `huggingface_hub.get_organization_overview`.

    Raises:
        Untrusted: It does not.
    """
    owner = repo.partition("/")[0]
    if not getattr(overview(owner), "trustedKernelPublisher", False):
        raise Untrusted(
            f"{owner} is not among the publishers of kernels that the hub vouches for; "
            f"{TRUST}=true takes theirs too"
        )


def main(repo: str, revision: str) -> None:
    """Download the build for this torch and print its folder."""
    from huggingface_hub import get_organization_overview
    from kernels import install_kernel

    options: dict[str, Any] = {}
    if not is_trusting():
        check_publisher(repo, get_organization_overview)
    if "trust_remote_code" in inspect.signature(install_kernel).parameters:
        options["trust_remote_code"] = is_trusting()
    # By the branch's name: then the cache has a reference of that name too.
    found = install_kernel(repo, revision=revision, **options)
    folder = found[1] if isinstance(found, tuple) else found  # a tuple before kernels 0.14
    print(json.dumps({"folder": str(folder)}))


def answer() -> None:
    """Call `main` with the words of the command line; print an error as JSON and exit with 1."""
    try:
        main(*sys.argv[1:])
    except Exception as error:  # the parent words it
        print(
            json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
        )
        sys.exit(1)
