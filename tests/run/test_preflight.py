"""What is refused or said before a run touches anything."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoint import COMMIT, layout, snapshot, write
from fakes.command import Answer
from fakes.planned import BASE, clip_of, planned_clip
from fakes.runs import FakeExecutor, Project

from hv15_batch.config.settings import Config, RuntimeConfig, VideoConfig
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.errors import Refused
from hv15_batch.forecast import forecast
from hv15_batch.forecast.disk import SPARE_BYTES, disk_need
from hv15_batch.forecast.offload import OffloadChoice, choose_offload
from hv15_batch.machine.machine import Machine, read_machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.variant import Dtype, Linear, OffloadKind, Task, Weights
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.run import _preflight as preflight
from hv15_batch.run import _run as one_run
from hv15_batch.run import outlook, session
from hv15_batch.units import GIB, MIB
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind
from hv15_batch.weights.files import file_sha256s

Command = Callable[..., Answer]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("id,prompt", *(f"row{n},clip {n}" for n in range(40)))
    return made


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let every disk have this many bytes free."""

    def set_free(num_bytes: int) -> None:
        monkeypatch.setattr(preflight, "free_disk_bytes", lambda _path: num_bytes)

    return set_free


def refusal(project: Project, **changes: Any) -> str:
    with pytest.raises(Refused) as caught:
        project.run(**changes)
    return str(caught.value)


# -- how much disk ----------------------------------------------------------------------------


def need_of(*planned: PlannedClip, **changes: Any) -> Any:
    return disk_need(planned, Config(**changes))


def test_a_done_clip_needs_nothing_and_a_new_one_video_latents_and_embedding() -> None:
    assert need_of(planned_clip(clip_of(0, BASE), State.done)).plan_bytes == 0

    need = need_of(planned_clip(clip_of(0, BASE)))

    video, latents = 480 * 848 * 121 // 16, 32 * 49290 * 2
    assert video + latents < need.clip_bytes[0] < video + latents + 100 * 1024
    assert need.encode_bytes == 9 * 3584 * 2  # "a cat" and what the template puts behind it


def test_latents_count_only_where_they_are_kept_and_not_yet_there() -> None:
    new = planned_clip(clip_of(0, BASE))
    from_latents = replace(new, has_latents=True, use_latents=True)

    kept, dropped = need_of(new), need_of(new, keep_latents=False)

    assert kept.plan_bytes - dropped.plan_bytes == 32 * 49290 * 2
    assert need_of(from_latents).clip_bytes == dropped.clip_bytes
    assert need_of(from_latents).encode_bytes == 0


def test_a_text_that_many_clips_share_is_encoded_and_counted_once() -> None:
    clips = [planned_clip(clip_of(n, replace(BASE, seed=n))) for n in range(5)]

    assert need_of(*clips).encode_bytes == need_of(clips[0]).encode_bytes
    guided = planned_clip(clip_of(0, replace(BASE, guidance_scale=6.0, negative_prompt="blur")))
    assert need_of(guided).encode_bytes > need_of(clips[0]).encode_bytes


def test_lossless_and_noise_take_more() -> None:
    lossless = replace(BASE, video={**BASE.video, "codec": "ffv1"})
    noise = replace(BASE, weights="random")

    sizes = [need_of(planned_clip(clip_of(0, s))).plan_bytes for s in (BASE, noise, lossless)]

    assert sizes == sorted(sizes)
    assert sizes[2] > 10 * sizes[0]


def test_files_to_edit_take_more_than_those_to_watch() -> None:
    each = [
        replace(BASE, video={**BASE.video, "codec": name}) for name in ("h264", "prores", "png")
    ]

    sizes = [need_of(planned_clip(clip_of(0, settings))).plan_bytes for settings in each]

    assert sizes[1] > 5 * sizes[0]
    assert sizes[2] > 2 * sizes[1]


def test_before_a_clip_there_must_be_room_for_it_and_for_the_one_still_being_written() -> None:
    lossless = replace(BASE, video={**BASE.video, "codec": "ffv1"})

    need = need_of(planned_clip(clip_of(0, BASE)), planned_clip(clip_of(1, lossless)))

    assert need.next_bytes >= SPARE_BYTES + 2 * need.clip_bytes[1]


# -- too little of it -------------------------------------------------------------------------


def test_a_disk_without_room_for_the_first_clips_is_refused_and_nothing_is_touched(
    project: Project, free: Callable[[int], None]
) -> None:
    free(100 * MIB)

    message = refusal(project)

    assert message == (
        f"run_dir={project.run_dir.path}: 0.10 GiB free on its disk, and the first clips need "
        "0.50 GiB to be written safely; free some, or name a folder on another disk with "
        "run_dir=DIR."
    )
    assert [path.name for path in project.folder.iterdir()] == ["prompts.csv"]


def test_a_disk_that_is_too_small_for_the_whole_plan_is_said_at_once_and_the_run_begins(
    project: Project, free: Callable[[int], None]
) -> None:
    need = disk_need([planned_clip(clip_of(0, BASE))], Config())
    free(SPARE_BYTES + 2 * MIB)

    assert project.run() == 0

    assert need.plan_bytes > 2 * MIB
    assert project.said[1].startswith(
        f"WARNING: the disk of {project.run_dir.path} has 0.50 GiB free and the whole plan needs "
    )
    assert "of 40 clips, with code 4; free some before then, or type limit=" in project.said[1]
    assert project.said[1].endswith(", keep_latents=false or run_dir=DIR on another disk.")


def test_as_many_clips_as_a_short_disk_is_said_to_hold_begin_without_a_word(
    project: Project, free: Callable[[int], None]
) -> None:
    free(SPARE_BYTES + 2 * MIB)
    assert project.run() == 0
    limit = int(project.said[1].split("limit=")[1].split(",")[0])
    assert 0 < limit < 40

    assert project.run(force=True, limit=limit) == 0
    assert not any("WARNING" in line for line in project.said)


def test_the_number_of_clips_that_fit_is_that_of_the_clips_that_begin() -> None:
    clips = [planned_clip(clip_of(n, replace(BASE, seed=n))) for n in range(4)]
    need = need_of(*clips)
    room = need.start_bytes + 2 * need.clip_bytes[0]

    assert [need.count_clips(room + n) for n in (-1, 0)] == [2, 3]
    assert need.count_clips(2**40) == 4
    assert need.count_clips(need.start_bytes - 1) == 0


def test_a_dry_run_tells_what_a_run_would_refuse_and_goes_on(
    project: Project, free: Callable[[int], None]
) -> None:
    free(100 * MIB)

    assert project.run(dry_run=True) == 0

    assert any(
        line.startswith(f"A run would be refused: run_dir={project.run_dir.path}: 0.10 GiB free")
        for line in project.said
    )
    assert project.said[-1].startswith("Every clip: ")


def hub_project(project: Project, free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose model is on the hub only, on a machine with a large card."""
    card = Gpu(0, "NVIDIA H200", "GPU-0", 140 * GIB, 139 * GIB, "580.1", 700.0)
    machine = replace(read_machine(), gpus=(card,), ram_available_bytes=100 * GIB)
    for module in (session, outlook):
        monkeypatch.setattr(module, "read_machine", lambda: machine)
    monkeypatch.setattr(preflight, "free_disk_bytes", lambda _path: free_bytes)
    return project


def real_settings(config: Config, **changes: Any) -> dict[str, Any]:
    model = replace(
        config.model,
        name="480p_t2v",
        repo="owner/never_fetched",
        revision=COMMIT,
        weights=type(config.model.weights).pretrained,
        **changes,
    )
    return {"model": model}


def test_weights_that_are_still_to_be_fetched_count_where_they_share_the_disk(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_project(project, 20 * GIB, monkeypatch)
    monkeypatch.setattr(preflight, "_is_same_disk", lambda *_: True)

    message = refusal(project, **real_settings(project.config()))

    assert "20.00 GiB free on its disk" in message
    assert "beside 31.46 GiB of weights to be fetched" in message
    assert not project.run_dir.path.exists()


def test_a_cache_on_another_disk_that_is_too_small_for_the_weights_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_project(project, 20 * GIB, monkeypatch)
    monkeypatch.setattr(preflight, "_is_same_disk", lambda *_: False)

    message = refusal(project, **real_settings(project.config()))

    assert "31.46 GiB of weights to be fetched go there" in message
    assert message.endswith("set HF_HUB_CACHE to a folder on a larger disk.")


@pytest.mark.parametrize(
    ("name", "linear", "refused"),
    [
        ("NVIDIA GeForce RTX 3090", Linear.fp8, True),
        ("NVIDIA GeForce RTX 3090", Linear.int8, False),
        ("NVIDIA GeForce RTX 4090", Linear.fp8, False),
        ("NVIDIA RTX 9999", Linear.fp8, False),  # which the worker asks
    ],
)
def test_a_card_without_8_bit_products_is_refused_before_anything_is_fetched_or_made(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    linear: Linear,
    refused: bool,
) -> None:
    hub_project(project, MIB, monkeypatch)  # what comes later is refused for want of disk
    machine = session.read_machine()
    card = replace(machine, gpus=(replace(machine.gpus[0], name=name),))
    monkeypatch.setattr(session, "read_machine", lambda: card)
    runtime = RuntimeConfig(linear=linear, dtype=Dtype.bfloat16)

    message = refusal(project, **real_settings(project.config()), runtime=runtime)

    assert message.startswith("runtime.linear=fp8: needs compute capability 8.9") == refused
    assert not project.run_dir.path.exists()


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("card_gib", "ram_gib"), [(3, 100), (139, 2)])
def test_too_little_memory_is_refused_before_anything_is_fetched_or_made(
    project: Project, monkeypatch: pytest.MonkeyPatch, card_gib: int, ram_gib: int
) -> None:
    hub_project(project, 2**40, monkeypatch)
    machine = session.read_machine()
    gpu = replace(machine.gpus[0], free_bytes=card_gib * GIB)
    small: Machine = replace(machine, gpus=(gpu,), ram_available_bytes=ram_gib * GIB)
    monkeypatch.setattr(session, "read_machine", lambda: small)

    message = refusal(project, **real_settings(project.config()))

    assert "fits no profile here" in message
    assert not project.run_dir.path.exists()


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("has_card", [True, False])
def test_the_offload_profile_is_chosen_once(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_card: bool, dry_run: bool
) -> None:
    chosen: list[OffloadChoice] = []

    def choose(*arguments: Any) -> OffloadChoice:
        chosen.append(choose_offload(*arguments))
        return chosen[-1]

    for module in (forecast, one_run, outlook):
        monkeypatch.setattr(module, "choose_offload", choose)
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    specs: list[ExecutorSpec] = []

    def make_executor(spec: ExecutorSpec) -> FakeExecutor:
        specs.append(spec)
        return FakeExecutor(spec)

    # `auto` would first compare what both ways take, each with a profile of its own.
    changes: dict[str, Any] = {"dry_run": dry_run, "runtime": RuntimeConfig(compile=False)}
    if has_card:
        hub_project(project, 2**40, monkeypatch)
        changes |= real_settings(project.config())
        changes["model"] = replace(changes["model"], weights=Weights.random)

    assert project.run(make_executor, **changes) == 0

    assert len(chosen) == 1
    for spec, choice in zip(specs, chosen, strict=not dry_run):
        assert (spec.offload, spec.budget_bytes) == (choice.kind, choice.budget_bytes)
        assert (spec.gpu is not None) == has_card


# -- permissions ------------------------------------------------------------------------------


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Let no file be made in a folder: the error is what the kernel would say."""
    real = tempfile.TemporaryFile
    refused: dict[Path, int] = {}

    def temporary_file(*args: Any, dir: Path, **kwargs: Any) -> Any:
        if number := refused.get(Path(dir)):
            raise OSError(number, os.strerror(number))
        return real(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    return refused.__setitem__


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_place_with_a_used_up_quota_or_that_cannot_be_written_is_refused(
    project: Project, refusing: Callable[[Path, int], None], number: int
) -> None:
    refusing(project.folder, number)

    assert refusal(project) == (
        f"run_dir={project.run_dir.path}: cannot be made ({os.strerror(number)}); name a folder "
        "that can be written with run_dir=DIR."
    )
    assert not project.run_dir.path.exists()


def test_a_full_disk_is_no_reason_for_another_folder(
    project: Project, refusing: Callable[[Path, int], None]
) -> None:
    refusing(project.folder, errno.ENOSPC)

    assert refusal(project) == (
        f"run_dir={project.run_dir.path}: its disk is full; free some space, then run again."
    )


def test_one_folder_of_a_run_that_cannot_be_written_is_named(
    project: Project, refusing: Callable[[Path, int], None]
) -> None:
    assert project.run(limit=1) == 0
    refusing(project.run_dir.latents, errno.EACCES)

    assert refusal(project).startswith(
        f"run_dir={project.run_dir.latents}: cannot be written (Permission denied); "
    )


def test_the_folder_of_streamed_blocks_must_hold_them(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_project(project, 10 * GIB, monkeypatch)
    monkeypatch.setattr(preflight, "_is_same_disk", lambda *_: False)
    monkeypatch.setattr(preflight, "lacks_weights", lambda *_: False)
    config = project.config()
    offload = replace(config.offload, kind=OffloadKind.stream_disk)

    message = refusal(project, offload=offload, **real_settings(config))

    assert "15.17 GiB of the transformer's blocks (offload=stream_disk) go there" in message
    assert message.endswith("set XDG_CACHE_HOME to a folder on a larger disk.")


def test_what_was_tried_leaves_nothing_behind(project: Project) -> None:
    project.run(dry_run=True)

    assert [path.name for path in project.run_dir.path.iterdir()] == ["plan.csv"]


# -- licence ----------------------------------------------------------------------------------


def test_weights_without_a_licence_beside_them_are_said_and_with_one_not(tmp_path: Path) -> None:
    folder = write(snapshot(tmp_path), layout(Task.t2v))
    checkpoint = Checkpoint("owner/name", COMMIT, folder, CheckpointKind.hub)

    (line,) = preflight.licence_notes([checkpoint])
    assert line.startswith(f"Licence: no licence file lies beside the weights in {folder}; ")
    assert "Tencent Hunyuan Community License" in line

    (folder / "LICENSE.txt").write_text("terms", encoding="utf-8")
    assert preflight.licence_notes([checkpoint]) == []


def test_video_settings_of_a_plan_are_what_the_estimate_reads() -> None:
    assert set(BASE.video) == {field for field in vars(VideoConfig())}


# -- caches and the home folder ---------------------------------------------------------------


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    """A file where a folder is named: root cannot write there either."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache"


def variables(patch: pytest.MonkeyPatch, **values: Path | None) -> None:
    for name, value in values.items():
        patch.delenv(name, raising=False)
        if value is not None:
            patch.setenv(name, str(value))


def test_a_cache_that_cannot_hold_the_tiny_model_is_refused_with_its_variable(
    project: Project, in_the_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(monkeypatch, XDG_CACHE_HOME=in_the_way)

    assert refusal(project) == (
        f"XDG_CACHE_HOME={in_the_way}/hv15_batch/tiny: cannot be made (Not a directory); name a "
        "folder that can be written with the variable XDG_CACHE_HOME."
    )
    assert not project.run_dir.path.exists()


def test_a_home_that_cannot_be_written_is_refused_with_the_variable_that_helps(
    project: Project, in_the_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(monkeypatch, XDG_CACHE_HOME=None, HOME=in_the_way)

    assert f"XDG_CACHE_HOME={in_the_way}/.cache/hv15_batch/tiny: cannot be made" in refusal(project)


def test_a_home_that_nobody_knows_is_refused_with_the_variables_that_help(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    variables(monkeypatch, XDG_CACHE_HOME=None)
    monkeypatch.setattr(Path, "home", unknown)

    message = refusal(project)
    assert message.startswith("HOME is not set, and this user has no home folder; set HOME, or XDG")
    assert "HF_HOME" in message


def test_where_no_temporary_file_can_be_made_the_variable_is_named(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_arguments: object, **_named: object) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", nowhere)

    answer = command(project.manifest, "model=tiny_t2v")
    assert answer.code == 2
    assert answer.err.startswith("no folder for temporary files can be written (No usable ")
    assert answer.err.endswith("; set TMPDIR to a folder that can.\n")
    assert "set TMPDIR" in refusal(project)  # from Python


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("HF_HOME", "HF_HOME={}/hub"),
        ("TRITON_CACHE_DIR", "TRITON_CACHE_DIR={}"),
        ("TRITON_HOME", "TRITON_CACHE_DIR={}/.triton/cache"),
        ("XDG_CACHE_HOME", "XDG_CACHE_HOME={}/hv15_batch/checkpoints"),
    ],
)
def test_the_dry_run_of_a_real_model_names_the_cache_that_cannot_be_written(
    tmp_path: Path, in_the_way: Path, name: str, folder: str
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")
    command = [sys.executable, "-m", "hv15_batch", "p.csv", "--dry-run"]
    environ = {k: v for k, v in os.environ.items() if k not in ("TRITON_CACHE_DIR", "TRITON_HOME")}
    environ |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub")}

    answer = subprocess.run(
        command,
        cwd=tmp_path,
        env={**environ, name: str(in_the_way)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert f"A run would be refused: {folder.format(in_the_way)}: cannot be made" in answer.stdout


def test_hashes_that_cannot_be_kept_are_worked_out_again(tmp_path: Path, in_the_way: Path) -> None:
    told: list[str] = []
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"x")

    found = file_sha256s([file], in_the_way / "file_sha256.json", told.append)

    assert found == file_sha256s([file], tmp_path / "kept.json")
    (line,) = told
    assert line.startswith("the hashes of the weights are not kept for the next run (")
