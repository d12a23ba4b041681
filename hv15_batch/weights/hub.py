"""The Hugging Face hub: its methods that are used here, repeated attempts, and its refusals."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hv15_batch.errors import Refused

Answer = TypeVar("Answer")
Say = Callable[[str], None]

LOOK_UP_WAITS_SECONDS = (2, 5)
"""Pauses between attempts at a look-up; short, because a missing network shows soon."""
DOWNLOAD_WAITS_SECONDS = (5, 15, 45, 120)
"""Pauses between attempts at a download, which resumes where it was."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_TOO_MANY_REQUESTS = 429
TYPED_BAR_SECONDS = 60.0
"""Pause between two states of a bar if each is a line of its own."""


class Hub(Protocol):
    """The methods of `huggingface_hub.HfApi` that are used here."""

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        """Return the commit (`sha`) and the files (`siblings`) of a repository."""

    def snapshot_download(
        self, repo_id: str, *, revision: str, cache_dir: str, allow_patterns: list[str]
    ) -> Any:
        """Download what the cache lacks of a commit and return the snapshot's folder."""


def open_hub() -> Hub:
    """Return the real hub, with bars that fit a terminal that is made narrower."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import tqdm as hub_bar

    class Bar(hub_bar):
        def __init__(self, *args: Any, **named: Any) -> None:
            seconds = TYPED_BAR_SECONDS if os.environ.get("TERM") == "dumb" else 0.1
            named |= {"dynamic_ncols": True, "mininterval": seconds}
            super().__init__(*args, **named)  # type: ignore[no-untyped-call]

    class Api(HfApi):
        snapshot_download = partialmethod(HfApi.snapshot_download, tqdm_class=Bar)

    return Api(library_name="hv15_batch")


def hub_cache_folder() -> Path:
    """Return the cache folder of huggingface_hub (HF_HUB_CACHE, or HF_HOME/hub)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def check_online(model_name: str, environ: Mapping[str, str]) -> None:
    """Check that the environment allows weights to be fetched.

    Raises:
        Refused: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Refused(
                f"the weights of model={model_name} are not complete on this machine and "
                f"{name}={environ[name]} forbids fetching them; run once with network: "
                f"{name}=0 hv15-batch prefetch model={model_name}"
            )


def ask_hub(
    call: Callable[[], Answer],
    repo: str,
    revision: str | None,
    say: Say,
    waits: tuple[int, ...] = LOOK_UP_WAITS_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    setting: str = "model",
) -> Answer:
    """Return what `call` returns, trying again while the network or the hub falters.

    Args:
        call: One request or download, which may be repeated.
        repo: Repository, for messages.
        revision: Revision, for messages.
        say: Told of each further attempt.
        waits: Seconds between attempts; one attempt more than there are waits.
        sleep: Waits.
        setting: Whose `repo` and `revision` are asked for, for messages.

    Raises:
        Refused: refused by the hub, unreachable after all attempts, or the disk is full; the
            message says what to do.
    """
    from huggingface_hub import errors

    # The first base is the error of the HTTP library that huggingface_hub is built on.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    xet: type[Exception] = getattr(errors, "XetDownloadError", RuntimeError)
    for wait in (*waits, None):
        try:
            return call()
        except (transport, OSError, RuntimeError, xet, errors.HFValidationError) as error:
            if wait is None or not _is_passing(error):
                raise Refused(_explain(error, repo, revision, setting)) from error
            say(f"{_first_line(error)}; trying again in {wait} s; the downloaded part is kept")
        sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return bool(status >= 500 or status == _TOO_MANY_REQUESTS)
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.HFValidationError)):
        return False
    return getattr(error, "errno", None) not in _DISK_ERRORS


def _explain(error: Exception, repo: str, revision: str | None, setting: str) -> str:
    """Return the fault and what to do, in one message."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    again = "the downloaded part is kept, and the same command resumes"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"the hub does not let you have {repo} yet: accept its licence at {page} with your "
            "account, log in here with `hf auth login`, then run the same command again."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{setting}.revision={revision} does not exist in {repo}; see {page}/commits/main."
    if isinstance(error, errors.HFValidationError):
        return f"{setting}.repo={repo!r} is not a hub id of the form owner/name."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub knows no repository {repo}: check {setting}.repo; if it is private, log in "
            "with `hf auth login` first."
        )
    if status == 401:
        return (
            "the hub refused your login (401): the token has expired or is wrong; log in again "
            "with `hf auth login`, or unset HF_TOKEN."
        )
    if status is not None:
        return f"the hub answered {status} for {repo} ({_first_line(error)}); {again}."
    if getattr(error, "errno", None) in _DISK_ERRORS:
        return (
            f"cannot write the weights of {repo}: {_first_line(error)}; free some disk, or set "
            f"HF_HUB_CACHE to a folder that can be written; {again}."
        )
    return (
        f"cannot reach the hub for {repo} ({_first_line(error)}): check the network, a proxy "
        f"(HTTPS_PROXY) or a mirror (HF_ENDPOINT); {again}."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
