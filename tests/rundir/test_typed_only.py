"""What decides what is run or fetched is typed, and never taken from a stored configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Answer
from fakes.runs import Project

from hv15_batch.config.settings import (
    TYPED_ONLY,
    Config,
    ManifestColumns,
    NotifyConfig,
    RuntimeConfig,
    each_setting,
)
from hv15_batch.errors import Refused
from hv15_batch.model.official import OfficialConfig
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Lora
from hv15_batch.rundir.stored import latest_settings, to_type_again, write_settings
from hv15_batch.status.show import type_again_text

REACHING = {
    "model.repo": "is downloaded",
    "model.transformer_file": "is a file that is read",
    "model.loras": "are files that are read",
    "model.transformer_hub.repo": "is downloaded from",
    "model.transformer_hub.file": "is downloaded",
    "model.transformer_hub.revision": "is downloaded",
    "dispatch.address": "is a cluster that runs what it is sent",
    "notify.command": "is started as a process",
    "notify.timeout_seconds": "says how long that process may run",
    "official.repo": "is a folder with a program that is started",
    "official.python": "is a program that is started",
    "official.load_once": "says in which way that program is started",
    "official.arguments": "are given to that program",
    "rewrite.base_url": "is an address that prompts are sent to",
    "rewrite.model": "turns that on",
    "rewrite.template": "is a file that is sent there",
    "runtime.attention_backend": "downloads and runs a kernel of the hub",
}
"""Settings that reach a process, a socket or a download, and how."""
INWARD = {
    "manifest": "a file that is read",
    "templates": "all or a number; any other text is refused",
    "run_dir": "a folder of the user",
    "resume": "never stored",
    "dispatch.workers": "a number, auto or all; any other text is refused",
    "shard": "two whole numbers, k/n; any other text is refused",
    "only": "names of rows",
    "until": "a time",
    "time_limit": "a time",
    "window": "a time",
    "sweep_value": "a column of the log",
    **{f"manifest_columns.{c.name}": "a column of the manifest" for c in fields(ManifestColumns)},
    "model.name": "a name for messages and log",
    "model.revision": "a commit of a repository that is the option's own or typed",
    "model.transformer_hub.sha256": "a hash that a file must have",
    "model.advice.words": "words that a prompt is compared with",
    "sampling.seeds": "numbers",
    "sampling.negative_prompt": "text for the encoder",
    "override.seeds": "numbers",
    "override.negative_prompt": "text for the encoder",
    "model.default_sampling.negative_prompt": "text for the encoder",
    "runtime.card": "a name in a table",
    "runtime.compile": "auto, true or false; any other text is refused",
    "video.preset": "one of x264's names",
}
"""All other settings that hold text, and why they reach nothing of the kind."""
FULL = "480p_t2v"


def texts() -> set[str]:
    """Names of settings that may hold any text."""
    names = {name for name, value, _ in each_setting(Config()) if isinstance(value, str)}
    # Null by default: what may be put there is seen from the type.
    for name, value, _ in each_setting(Config()):
        if value is None and {"str", "Any"} & set(annotation(name).replace("|", " ").split()):
            names.add(name)
    return names


def annotation(name: str) -> str:
    *sections, field = name.split(".")
    section: Any = Config()
    for part in sections:
        section = getattr(section, part)
    return str(type(section).__annotations__[field])


def test_every_setting_that_reaches_a_process_a_socket_or_a_download_is_marked() -> None:
    assert set(TYPED_ONLY) == set(REACHING)


def test_of_every_setting_that_holds_text_it_is_said_whether_it_reaches_out() -> None:
    assert texts() - set(REACHING) == set(INWARD)
    no_texts = {"notify.timeout_seconds", "model.loras", "official.load_once"}
    assert texts() & set(REACHING) == set(REACHING) - no_texts


def store(project: Project, **changes: Any) -> Path:
    """Store the settings of a run that ended; return their file."""
    folder = project.run_dir.run_folder("20261122T000000-0000-abcd")
    folder.mkdir(parents=True)
    write_settings(folder, project.config(**changes))
    return folder / "config.yaml"


OTHER_REPO = replace(model_options()[FULL], repo="owner/other")
USED: list[tuple[dict[str, Any], list[str]]] = [
    ({"notify": NotifyConfig("echo")}, ["notify.command"]),
    ({"notify": NotifyConfig(["echo"], 5)}, ["notify.command", "notify.timeout_seconds"]),
    ({"runtime": RuntimeConfig(attention_backend="sage_hub")}, ["runtime.attention_backend"]),
    (
        {"official": OfficialConfig("a", "b", True, ["--use_fp8_gemm"])},
        [f"official.{name}" for name in ("repo", "python", "load_once", "arguments")],
    ),
    ({"model": OTHER_REPO}, ["model.repo"]),
    ({"model": replace(OTHER_REPO, name="mine")}, ["model.repo"]),
    (
        {"model": replace(model_options()[FULL], loras=[Lora("${oc.env:HOME} a.safetensors")])},
        ["model.loras"],
    ),
]


@pytest.mark.parametrize(("changes", "names"), USED)
def test_what_a_run_used_of_them_is_typed_again_or_the_resume_is_refused(
    tmp_path: Path, changes: dict[str, Any], names: list[str]
) -> None:
    project = Project(tmp_path)
    file = store(project, **changes)

    with pytest.raises(Refused) as refused:
        latest_settings(project.run_dir, ["video.crf"])

    words = " ".join(f"{name}=..." for name in names)
    assert str(refused.value) == (
        f"resume={project.run_dir.path}: the last run used {', '.join(names)}, which decides "
        "what is run or fetched on this machine and is never taken from a stored configuration; "
        f"read {file}, and type it: hv15-batch resume={project.run_dir.path} {words}"
    )
    assert latest_settings(project.run_dir, names) == latest_settings(
        project.run_dir, [name.split(".")[0] for name in names]
    )
    assert to_type_again(project.config(**changes)) == names


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": model_options()[FULL]},
        {"runtime": RuntimeConfig(attention_backend="_native_math")},
    ],
)
def test_what_is_the_packages_own_is_taken_over(tmp_path: Path, changes: dict[str, Any]) -> None:
    project = Project(tmp_path)
    store(project, **changes)

    config = latest_settings(project.run_dir)

    assert config.model.repo == project.config(**changes).model.repo
    assert config.runtime == project.config(**changes).runtime
    assert to_type_again(config) == []


def test_a_resumed_run_has_the_command_that_is_typed_and_no_other(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    project = Project(tmp_path)
    stored, typed = tmp_path / "stored", tmp_path / "typed"
    config = project.config(
        manifest=str(tmp_path / "p.csv"),
        run_dir=str(project.run_dir.path),
        notify=NotifyConfig(["touch", str(stored)]),
    )
    folder = project.run_dir.run_folder("20261122T000000-0000-abcd")
    folder.mkdir(parents=True)
    write_settings(folder, config)
    resume = f"resume={project.run_dir.path}"

    refused = command(resume, "--dry-run")
    without = command(resume, "notify.command=null", "--dry-run")
    unknown = command(resume, f"notify.command=no-such {typed}", "--dry-run")

    assert (refused.code, refused.out) == (2, "")
    assert "notify.command=..." in refused.err
    assert str(stored) not in refused.err
    assert (without.code, without.err) == (0, "")
    assert "no program 'no-such' can be run here" in unknown.err
    assert not stored.exists()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), ""),
        (("limit", "only"), "type again if you want them: only, limit"),
        (("notify.command",), "type again in any case: notify.command"),
        (
            ("model.repo", "only", "rm -r"),
            "type again if you want them: only; type again in any case: model.repo",
        ),
    ],
)
def test_what_is_to_be_typed_again_is_said_at_the_end_of_a_run(
    names: Sequence[str], text: str
) -> None:
    assert type_again_text(names) == text
