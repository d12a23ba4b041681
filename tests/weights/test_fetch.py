from __future__ import annotations

import errno
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.checkpoint import (
    COMMIT,
    OTHER,
    REPO,
    FakeHub,
    Fetcher,
    NoHub,
    hub_model,
    layout,
    message,
    safetensors,
    snapshot,
    write,
)
from fakes.screen import Screen
from huggingface_hub import HfApi, errors

from hv15_batch.config.settings import Config
from hv15_batch.model.variant import ModelConfig, Weights
from hv15_batch.prefetch import prefetch
from hv15_batch.weights.checkpoint import (
    Checkpoint,
    CheckpointKind,
    cache_root,
    resolve_checkpoint,
)
from hv15_batch.weights.fetch import LICENCE
from hv15_batch.weights.hub import DOWNLOAD_WAITS_SECONDS, LOOK_UP_WAITS_SECONDS, open_hub


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "hub")


def test_a_fetch_says_what_and_where_to_downloads_and_records_the_commit(fetcher: Fetcher) -> None:
    files = {**layout(), "README.md": b"x", "vae/diffusion_pytorch_model.bin": b"pickle"}
    hub = FakeHub(files)

    found = fetcher(hub_model(), hub)

    folder = snapshot(fetcher.hub_cache)
    assert found == Checkpoint(REPO, COMMIT, folder, CheckpointKind.hub)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == sorted(layout())
    assert fetcher.lines[0] == (
        "owner/name at 111111111111: 17 files, 0.0 GiB, 0.0 GiB to download"
    )
    assert fetcher.lines[1].startswith(f"into {fetcher.hub_cache} (")
    assert fetcher.lines[2:] == [LICENCE, f"complete and verified: {folder}"]
    assert hub.calls == [("model_info", None), ("snapshot_download", COMMIT)]
    record = json.loads((cache_root() / "checkpoints/owner--name.json").read_text())
    assert record["commit"] == COMMIT
    assert record["snapshots"][COMMIT] == {name: len(text) for name, text in layout().items()}


def test_after_a_fetch_neither_looking_nor_fetching_uses_the_network(fetcher: Fetcher) -> None:
    first = fetcher(hub_model(), FakeHub())

    assert fetcher(hub_model(), NoHub(), environ={"HF_HUB_OFFLINE": "1"}) == first
    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache) == first


def test_weights_that_another_tool_downloaded_are_recorded(fetcher: Fetcher) -> None:
    folder = write(snapshot(fetcher.hub_cache), layout())
    write(folder.parents[1] / "refs", {"main": COMMIT.encode()})

    fetcher(hub_model(), NoHub())
    (folder.parents[1] / "refs/main").write_text(OTHER)

    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).folder == folder


def test_the_pinned_commit_is_what_is_fetched(fetcher: Fetcher) -> None:
    hub = FakeHub()

    fetcher(hub_model(revision=COMMIT), hub)

    assert hub.calls[0] == ("model_info", COMMIT)
    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).revision is None


def test_a_branch_that_is_typed_becomes_the_recorded_commit(fetcher: Fetcher) -> None:
    fetcher(hub_model(), FakeHub())

    fetcher(hub_model(revision="main"), FakeHub(commit=OTHER))

    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).revision == OTHER


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_a_fetch_is_refused_and_prefetch_named(name: str, fetcher: Fetcher) -> None:
    assert message(lambda: fetcher(hub_model(), NoHub(), environ={name: "1"})) == (
        f"the weights of model=480p_t2v are not complete on this machine and {name}=1 forbids "
        f"fetching them; run once with network: {name}=0 hv15-batch prefetch model=480p_t2v"
    )


def test_a_disk_that_is_too_small_is_refused_before_the_download(fetcher: Fetcher) -> None:
    hub = FakeHub(listed_size=10**17)

    text = message(lambda: fetcher(hub_model(), hub))

    assert text.startswith(f"the disk of {fetcher.hub_cache.parent} has ")
    assert text.endswith(
        " GiB free and owner/name needs 1583248376.8 GiB and 1.0 GiB to spare; free some, or set "
        "HF_HUB_CACHE to a folder on a larger disk."
    )
    assert [call for call, _ in hub.calls] == ["model_info"]


def answered(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace())
    return kind(f"{status} from the hub\nwith details", response=response)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            answered(errors.GatedRepoError, 403),
            "the hub does not let you have owner/name yet: accept its licence at "
            "https://huggingface.co/owner/name with your account, log in here with "
            "`hf auth login`, then run the same command again.",
        ),
        (
            answered(errors.HfHubHTTPError, 401),
            "the hub refused your login (401): the token has expired or is wrong; log in again "
            "with `hf auth login`, or unset HF_TOKEN.",
        ),
        (
            answered(errors.RepositoryNotFoundError, 404),
            "the hub knows no repository owner/name: check model.repo; if it is private, log in "
            "with `hf auth login` first.",
        ),
        (
            answered(errors.RevisionNotFoundError, 404),
            "model.revision=v9 does not exist in owner/name; see "
            "https://huggingface.co/owner/name/commits/main.",
        ),
        (
            errors.OfflineModeIsEnabled("offline"),
            "cannot reach the hub for owner/name (OfflineModeIsEnabled: offline): check the "
            "network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); the downloaded part "
            "is kept, and the same command resumes.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot write the weights of owner/name: OSError: [Errno 28] No space left on device; "
            "free some disk, or set HF_HUB_CACHE to a folder that can be written; the "
            "downloaded part is kept, and the same command resumes.",
        ),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do_and_is_not_repeated(
    error: Exception, text: str, fetcher: Fetcher
) -> None:
    assert message(lambda: fetcher(hub_model(revision="v9"), FakeHub(troubles=(error,)))) == text
    assert fetcher.waits == []


def test_a_download_that_breaks_off_goes_on(fetcher: Fetcher) -> None:
    troubles = (None, ConnectionError("reset"), answered(errors.HfHubHTTPError, 503))

    found = fetcher(hub_model(), FakeHub(troubles=troubles))

    assert found.folder is not None
    assert fetcher.waits == list(DOWNLOAD_WAITS_SECONDS[:2])
    assert fetcher.lines[3:5] == [
        "ConnectionError: reset; trying again in 5 s; the downloaded part is kept",
        "HfHubHTTPError: 503 from the hub; trying again in 15 s; the downloaded part is kept",
    ]


@pytest.mark.parametrize(
    ("answers", "waits"), [(0, LOOK_UP_WAITS_SECONDS), (1, DOWNLOAD_WAITS_SECONDS)]
)
def test_without_network_a_fetch_ends_after_its_attempts(
    answers: int, waits: tuple[int, ...], fetcher: Fetcher
) -> None:
    troubles = [ConnectionError("no route") for _ in range(9)]
    hub = FakeHub(troubles=(*[None] * answers, *troubles))

    assert message(lambda: fetcher(hub_model(), hub)) == (
        "cannot reach the hub for owner/name (ConnectionError: no route): check the network, a "
        "proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); the downloaded part is kept, and the same "
        "command resumes."
    )
    assert fetcher.waits == list(waits)


def test_an_error_of_the_http_library_is_one_readable_message(fetcher: Fetcher) -> None:
    transport = errors.HfHubHTTPError.__bases__[0]
    hub = FakeHub(troubles=tuple(transport("name resolution") for _ in range(9)))

    assert message(lambda: fetcher(hub_model(), hub)).startswith(
        "cannot reach the hub for owner/name (HTTPError: name resolution): check the network"
    )


def test_damaged_files_are_named_where_they_can_be_deleted(fetcher: Fetcher) -> None:
    files = {**layout(), "vae/config.json": b"{} "}
    text = message(lambda: fetcher(hub_model(), FakeHub(files, is_damaging=True)))

    blobs = snapshot(fetcher.hub_cache).parents[1] / "blobs"
    assert text.startswith(f"17 of the files of owner/name are not what the hub has: {blobs}/")
    assert text.endswith(" and 14 more; delete them and run again.")


def test_hashes_are_compared_when_asked(fetcher: Fetcher) -> None:
    hub = FakeHub()
    found = fetcher(hub_model(), hub, check_sha256=True)
    assert found.folder is not None
    blob = (found.folder / "vae/diffusion_pytorch_model.safetensors").resolve()

    blob.write_bytes(safetensors(b"abce"))

    assert fetcher(hub_model(), NoHub()).folder == found.folder
    hub.snapshot_download = lambda *_, **__: None  # type: ignore[method-assign]
    assert message(lambda: fetcher(hub_model(), hub, check_sha256=True)) == (
        f"1 of the files of owner/name are not what the hub has: {blob}; delete them and run again."
    )


def test_a_repository_that_is_no_checkpoint_is_refused(fetcher: Fetcher) -> None:
    files = layout()
    del files["guider/guider_config.json"]

    assert message(lambda: fetcher(hub_model(), FakeHub(files))) == (
        "owner/name is not a complete checkpoint: guider/guider_config.json is missing."
    )
    assert not (cache_root() / "checkpoints").exists()


@pytest.mark.parametrize(
    "model",
    [ModelConfig(name="tiny_t2v", weights=Weights.tiny), hub_model(weights=Weights.random)],
)
def test_weights_made_in_code_are_never_downloaded(model: ModelConfig, fetcher: Fetcher) -> None:
    assert fetcher(model, NoHub(), environ={"HF_HUB_OFFLINE": "1"}) == resolve_checkpoint(model)


# The word `prefetch`


def said(model: ModelConfig, hub: Any, hub_cache: Path) -> list[str]:
    lines: list[str] = []
    assert prefetch(Config(model=model), lines.append, hub=hub, hub_cache=hub_cache) == 0
    return lines


def test_prefetch_ends_by_saying_that_runs_need_no_network(tmp_path: Path) -> None:
    lines = said(hub_model(), FakeHub(), tmp_path)

    assert lines[-2:] == [
        f"17 files, 0.0 GiB in {snapshot(tmp_path)}, revision {COMMIT}",
        "Runs with model=480p_t2v need no network from now on.",
    ]
    assert said(hub_model(), NoHub(), tmp_path) == lines[-2:]


def test_prefetch_says_when_nothing_needs_downloading(tmp_path: Path) -> None:
    tiny = ModelConfig(name="tiny_t2v", weights=Weights.tiny)

    assert said(tiny, NoHub(), tmp_path) == [
        "model=tiny_t2v is built on this machine in seconds: nothing to download."
    ]
    assert said(hub_model(weights=Weights.random), NoHub(), tmp_path) == [
        "model=480p_t2v model.weights=random is built on the device: nothing to download."
    ]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("model_info", {"repo_id", "revision", "files_metadata"}),
        ("snapshot_download", {"repo_id", "revision", "cache_dir", "allow_patterns"}),
    ],
)
def test_every_argument_passed_to_the_hub_exists_there(method: str, arguments: set[str]) -> None:
    assert arguments <= set(inspect.signature(getattr(HfApi, method)).parameters)


@pytest.mark.parametrize(("term", "seconds"), [("xterm", 0.1), ("dumb", 60.0)])
def test_the_bars_of_a_download_follow_the_width_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, term: str, seconds: float
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "snapshot_download", lambda self, *_, **named: given.update(named))
    monkeypatch.setenv("TERM", term)

    open_hub().snapshot_download("a/b", revision=COMMIT, cache_dir="c", allow_patterns=[])
    with Screen(45) as screen:
        bar = given["tqdm_class"](total=9, desc="Fetching 9 files", file=screen)
        screen.resize(30)
        bar.refresh()
        bar.close()
        lines = screen.lines()

    assert (bar.mininterval, bool(bar.dynamic_ncols)) == (seconds, True)
    assert max(map(len, lines)) <= 30
