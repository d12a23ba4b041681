"""Kernels of the hub: `prefetch` fetches what is typed, and later runs find it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName
from fakes.checkpoint import message
from fakes.command import Answer
from fakes.kernels import COMMIT, fetching_environ
from fakes.packages import install

from hv15_batch.config.settings import Config, RuntimeConfig
from hv15_batch.model.attention import KERNELS, is_fetched
from hv15_batch.model.options import model_options
from hv15_batch.prefetch import prefetch
from hv15_batch.weights.kernels._child import Untrusted, check_publisher, is_trusting
from hv15_batch.weights.kernels.fetched import fetch_kernel, find_fetched, hub_fault

HUB = [name for name in KERNELS if is_fetched(name)]
SAGE = "runtime.attention_backend=sage_hub"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))


@pytest.mark.parametrize("name", HUB)
def test_the_repositories_are_those_of_diffusers(name: str) -> None:
    theirs, ours = _HUB_KERNELS_REGISTRY[AttentionBackendName(name)], KERNELS[name].hub

    assert ours is not None
    assert (ours.repo, ours.version) == (theirs.repo_id, theirs.version)


def test_what_comes_from_the_hub_is_told_by_its_name() -> None:
    assert {name for name, kernel in KERNELS.items() if kernel.hub} == set(HUB)


def test_a_kernel_is_fetched_once_by_commit_and_known_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kernels="0.17.2")
    said: list[str] = []
    environ = fetching_environ(tmp_path)
    assert find_fetched("sage_hub") is None

    first = fetch_kernel("sage_hub", say=said.append, environ=environ)

    assert (first.repo, first.commit) == ("SageAttention/sage-attention", COMMIT)
    assert first.folder.name == "torch-cuda-v3"
    assert find_fetched("sage_hub") == first
    assert hub_fault("sage_hub") is None
    assert said[0].endswith(
        "compiled code of SageAttention/sage-attention, v3, is fetched; a run executes it"
    )
    assert said[1].startswith("complete: SageAttention/sage-attention at 555555555555 in ")
    # Fetching again would fail: the folder exists.
    assert fetch_kernel("sage_hub", say=said.append, environ={"HF_HUB_OFFLINE": "1"}) == first
    assert find_fetched("flash_hub") is None


def test_a_kernel_for_another_torch_or_without_its_files_is_to_be_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kernels="0.17.2", torch="2.11.0+cu130")
    fetched = fetch_kernel("sage_hub", say=lambda _: None, environ=fetching_environ(tmp_path))

    install(monkeypatch, torch="2.13.0+cu130")
    assert hub_fault("sage_hub") == (
        f"{SAGE}: was fetched for torch 2.11.0+cu130, and 2.13.0+cu130 is installed; fetch it with "
        f"`hv15-batch prefetch {SAGE}`, or leave it at auto."
    )
    shutil.rmtree(fetched.folder)
    assert hub_fault("sage_hub") == (
        f"{SAGE}: compiled code of the hub that is not on this machine; fetch it with `hv15-batch "
        f"prefetch {SAGE}`, or leave it at auto."
    )
    assert hub_fault("sage") is None


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (
            {"HF_HUB_OFFLINE": "1"},
            f"{SAGE}: SageAttention/sage-attention is not on this machine, and HF_HUB_OFFLINE=1 "
            f"forbids fetching it; run once with network: HF_HUB_OFFLINE=0 hv15-batch prefetch "
            f"{SAGE}",
        ),
        (
            {"NO_BUILD": "1"},
            f"{SAGE}: SageAttention/sage-attention cannot be fetched: FileNotFoundError: Cannot "
            "find a build variant for this system; use auto.",
        ),
    ],
)
def test_what_cannot_be_fetched_is_refused_and_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], reason: str
) -> None:
    install(monkeypatch, kernels="0.17.2")
    there = fetching_environ(tmp_path, **environ)

    assert message(lambda: fetch_kernel("sage_hub", say=lambda _: None, environ=there)) == reason
    assert find_fetched("sage_hub") is None


@pytest.mark.parametrize("paths", ["", ":"])
def test_code_in_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: str
) -> None:
    install(monkeypatch, kernels="0.17.2")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("kernels", "json", "inspect", "huggingface_hub"):
        text = f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n"
        (here / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(here)
    environ = fetching_environ(tmp_path)
    environ["PYTHONPATH"] = paths + environ["PYTHONPATH"]

    found = fetch_kernel("sage_hub", say=lambda _: None, environ=environ)

    assert found.commit == COMMIT
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("code", [0, 3])
def test_a_download_that_ends_without_a_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    install(monkeypatch, kernels="0.17.2")
    environ = fetching_environ(tmp_path)
    text = f"import os\nos._exit({code})\n"
    (tmp_path / "packages" / "kernels" / "__init__.py").write_text(text, encoding="utf-8")

    assert message(lambda: fetch_kernel("sage_hub", say=lambda _: None, environ=environ)) == (
        f"{SAGE}: SageAttention/sage-attention cannot be fetched: the download ended with exit "
        f"code {code} and named no folder; use auto."
    )


def test_without_its_package_nothing_is_fetched(tmp_path: Path) -> None:
    assert message(lambda: fetch_kernel("sage_hub", say=lambda _: None)) == (
        f"{SAGE}: needs kernels 0.12 or later, which is not installed; install it with "
        "`pip install -U kernels`."
    )


def test_the_publisher_must_be_one_that_the_hub_vouches_for() -> None:
    def overview(owner: str) -> SimpleNamespace:
        return SimpleNamespace(trustedKernelPublisher=owner == "kernels-community")

    check_publisher("kernels-community/flash-attn3", overview)
    with pytest.raises(
        Untrusted, match=r"someone is not among .* DIFFUSERS_TRUST_\w+=true takes theirs"
    ):
        check_publisher("someone/kernel", overview)
    assert is_trusting({"DIFFUSERS_TRUST_REMOTE_KERNELS": "true"})
    assert not is_trusting({"DIFFUSERS_TRUST_REMOTE_KERNELS": "0"})


def test_prefetch_fetches_the_kernel_that_is_typed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kernels="0.17.2")
    environ = fetching_environ(tmp_path)
    model = model_options()["tiny_t2v"]

    prefetch(Config(model=model), lambda _: None, environ=environ)
    assert not (tmp_path / "cache").exists()

    typed = Config(model=model, runtime=RuntimeConfig(attention_backend="sage_hub"))
    assert prefetch(typed, lambda _: None, environ=environ) == 0
    assert (tmp_path / "cache" / "SageAttention--sage-attention" / "fetched").read_text() == "v3"


def test_a_run_does_not_fetch_a_kernel(
    command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kernels="0.17.2")
    (tmp_path / "p.csv").write_text("prompt\na cat\n")

    answer = command("p.csv", "model=480p_t2v", "model.weights=random", "--dry-run", SAGE)

    assert f"A run would be refused: {hub_fault('sage_hub')}" in answer.out.splitlines()
