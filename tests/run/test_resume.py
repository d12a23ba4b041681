"""Going on after a kill, damage or a change: with real processes, and with the tiny models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from fakes.engine import InProcessExecutor
from fakes.runs import FakeExecutor, Project, read_csv
from PIL import Image
from safetensors import safe_open

from hv15_batch.config.settings import QualityConfig, RuntimeConfig, SamplingConfig, VideoConfig
from hv15_batch.dispatch.protocol import Event, Job
from hv15_batch.engine import _ladder as ladder
from hv15_batch.engine import _write as clip_writer
from hv15_batch.engine.denoise.pipeline import Denoised
from hv15_batch.engine.encode import encoders, phase
from hv15_batch.engine.render import ClipRenderer
from hv15_batch.errors import Refused
from hv15_batch.media.conversion import Look
from hv15_batch.media.video import check_video, read_comment
from hv15_batch.model.variant import Linear, Task
from hv15_batch.rundir.log import read_records

TESTS = Path(__file__).parents[1]


def wait_for(
    is_true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120
) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"it never came true: {process.communicate()}")
        time.sleep(0.01)


def count_logged(project: Project) -> int:
    return int(read_records(project.run_dir.log).num_rows)


# -- killed -----------------------------------------------------------------------------------


def start_parent(project: Project) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "fakes.run_parent", str(project.folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=TESTS, text=True, **pipes)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_after_a_killed_parent_every_clip_is_made_once_and_nothing_that_was_done_twice(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path)
    rows = [f"row{n},sleep 0.05 for clip {n}" for n in range(8)]
    project.write("id,prompt", *rows)

    for logged in (1, 4):
        with start_parent(project) as parent:
            wait_for(lambda logged=logged: count_logged(project) >= logged, parent)
            children = children_of(parent)
            parent.kill()
        assert parent.returncode == -signal.SIGKILL
        psutil.wait_procs(children, timeout=10)
        assert not [child for child in children if child.is_running()]
    done_before = {r["clip_id"] for r in project.records()}
    project.did()
    (project.run_dir.clips / ".999.half.mp4").touch()

    assert project.run() == 0

    records = project.records()
    assert sorted(r["row_id"] for r in records) == [f"row{n}" for n in range(8)]
    assert {r["status"] for r in records} == {"ok"}
    again = {line.split()[1] for line in project.did()}
    assert not again & done_before
    assert sorted(p.name for p in project.run_dir.clips.iterdir()) == sorted(
        Path(r["file"]).name for r in records
    )
    assert project.strays() == []
    assert [row["state"] for row in project.plan()] == ["done"] * 8


def test_a_second_process_beside_a_run_is_refused_and_told_its_number(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,sleep 30")
    with start_parent(project) as first:
        wait_for(lambda: (project.folder / "journal.txt").exists(), first)
        with start_parent(project) as second:
            _, err = second.communicate(timeout=60)
        os.kill(first.pid, signal.SIGTERM)
        out, _ = first.communicate(timeout=60)

    assert second.returncode == 2
    assert f": in use by process {first.pid} on " in err
    assert first.returncode == 143
    assert "interrupted by SIGTERM; resume with: hv15-batch resume=" in out
    (record,) = project.records()
    assert (record["status"], record["error_type"]) == ("interrupted", "SIGTERM")


def test_the_lock_of_a_killed_run_passes_on_only_when_its_worker_is_gone_too(
    tmp_path: Path,
) -> None:
    """One that is stuck in a driver call outlives its parent: here it is stopped."""
    project = Project(tmp_path)
    project.write("id,prompt", "cat,unsignal stop")
    with start_parent(project) as first:
        wait_for(lambda: (project.folder / "journal.txt").exists(), first)
        (worker,) = (c for c in children_of(first) if "spawn_main" in " ".join(c.cmdline()))
        wait_for(lambda: worker.status() == psutil.STATUS_STOPPED, first)
        first.kill()
        first.wait()
    try:
        with start_parent(project) as second:
            _, err = second.communicate(timeout=60)

        assert second.returncode == 2
        assert f": in use by a worker of process {first.pid} on " in err
        assert "which was killed; the worker still holds the card; wait until " in err
        worker.resume()  # now its watching thread sees that the parent is gone
        worker.wait(timeout=30)
        with project.run_dir.locked("20261122T000000-0000-abcd") as descriptor:
            assert descriptor is not None
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


@pytest.mark.exhaustive
def test_a_killed_run_of_the_tiny_model_goes_on_from_the_command_line(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps,seed",
        "cat,a cat,32,32,1,2,0..3",
        'neon,"a sign ""OPEN""",32,32,5,2,7',
    )
    words = [sys.executable, "-m", "hv15_batch", str(project.manifest), "model=tiny_t2v"]
    words += [f"run_dir={project.run_dir.path}"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=env, text=True, **pipes) as parent:
        wait_for(lambda: count_logged(project) >= 1, parent)
        parent.kill()
        _, err = parent.communicate(timeout=30)
    assert err == ""
    before = project.records()

    again = subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    records = project.records()
    first_line = f"{project.run_dir.path}: {len(before)} of 5 done"
    if len(before) < 5:  # the kill may have come after the last clip
        assert again.stdout.splitlines()[0] == first_line
    assert records[: len(before)] == before
    assert sorted((r["row_id"], r["seed"]) for r in records) == [
        ("cat", 0), ("cat", 1), ("cat", 2), ("cat", 3), ("neon", 7),
    ]  # fmt: skip
    for record in records:
        path = project.run_dir.path / record["file"]
        check_video(path, num_frames=record["num_frames"], height=32, width=32, fps=record["fps"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record["file_sha256"]
    assert project.strays() == []
    # A worker loads once: all, or first the VAE, where its first clips come from saved latents.
    for run_id in {r["run_id"] for r in records}:
        loads = [r["load_seconds"] for r in records if r["run_id"] == run_id]
        assert loads[0] > 0
        assert sum(seconds is not None for seconds in loads) <= 2


# -- the record of a clip ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two rows, three clips, rendered once with the tiny model; tests work on copies."""
    project = Project(tmp_path_factory.mktemp("rendered"))
    project.write(
        "id,prompt,seed,fps,num_frames", "cat,a cat,0 1,24,1", 'neon,"a sign ""OPEN""",5,24,5'
    )
    assert project.run(InProcessExecutor) == 0
    return project


@pytest.fixture
def project(rendered: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The rendered project under the same path: a run directory belongs to one manifest path."""
    backup = tmp_path_factory.mktemp("backup") / "copy"
    shutil.copytree(rendered.folder, backup, symlinks=True)
    yield Project(rendered.folder)
    shutil.rmtree(rendered.folder)
    shutil.copytree(backup, rendered.folder, symlinks=True)


def by_clip(project: Project) -> dict[tuple[str, int], dict[str, Any]]:
    """The last record of each clip."""
    return {(r["row_id"], r["seed"]): r for r in project.records()}


def test_a_record_has_the_seconds_of_each_stage_and_their_sum(rendered: Project) -> None:
    records = rendered.records()

    for record in records:
        stages = [record[f"{s}_seconds"] for s in ("encode", "denoise", "decode", "write")]
        assert record["total_seconds"] == sum(s for s in stages if s is not None)
        assert all(s is None or s > 0 for s in stages)
        assert len(record["step_seconds"]) == record["num_inference_steps"] == 2
        assert sum(record["step_seconds"]) <= record["denoise_seconds"]
        assert record["denoise_attempt"] == record["attempt"] == 1
        assert record["started_at"] < record["finished_at"]
        assert record["peak_vram_allocated_bytes"] is None
    assert [r["load_seconds"] is None for r in records] == [False, True, True]
    assert [r["is_cold"] for r in records] == [True, False, False]


def test_each_text_is_encoded_once_and_its_seconds_are_on_the_clip_that_caused_it(
    rendered: Project,
) -> None:
    records = by_clip(rendered)

    # Two prompts, and the empty negative one, which every clip needs.
    assert len(list(rendered.run_dir.embeddings.iterdir())) == 3
    assert records["cat", 0]["encode_seconds"] > 0
    assert records["neon", 5]["encode_seconds"] > 0
    assert records["cat", 1]["encode_seconds"] is None
    cached = {key: record["encode_cached"] for key, record in records.items()}
    assert cached == {("cat", 0): False, ("neon", 5): False, ("cat", 1): True}


def test_every_file_of_a_run_may_be_read_by_whom_the_user_lets_read_files(
    rendered: Project,
) -> None:
    usual = rendered.manifest.stat().st_mode
    modes = {
        path.relative_to(rendered.run_dir.path): oct(path.stat().st_mode)
        for path in rendered.run_dir.path.rglob("*")
        if path.is_file() and path.stat().st_mode != usual
    }

    assert modes == {}


def test_hashes_and_sizes_in_the_log_are_those_of_the_files(rendered: Project) -> None:
    for record in rendered.records():
        path = rendered.run_dir.path / record["file"]
        assert path.stat().st_size == record["file_bytes"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record["file_sha256"]
        with safe_open(rendered.run_dir.path / record["latents_file"], "pt") as file:
            latents = file.get_tensor("latents")
            metadata = file.metadata()
        raw = latents.numpy().tobytes()
        assert hashlib.sha256(raw).hexdigest() == record["latents_sha256"]
        settings = json.loads(metadata["settings"])
        assert (settings["seed"], settings["prompt"]) == (record["seed"], record["prompt"])
        assert json.loads(metadata["denoise"])["step_seconds"] == record["step_seconds"]


def test_what_is_in_effect_is_read_back_and_what_a_cpu_lacks_is_null(rendered: Project) -> None:
    record = rendered.records()[0]

    assert (record["dtype"], record["offload"], record["mask_free"]) == (
        "float32", "resident", True,
    )  # fmt: skip
    assert record["attention_backend"] == "native"
    assert record["attention_backend_requested"] == "auto"
    assert (record["num_video_tokens"], record["decode_device"]) == (4, "cpu")
    for name in ("gpu_name", "mfu", "tflops", "vae_tile_size", "frame_difference_mean"):
        assert record[name] is None
    assert record["torch_version"] == torch.__version__


def test_8_bit_linear_modules_make_other_clips_and_are_logged(project: Project) -> None:
    plain = {r["row_id"]: r for r in project.records() if r["row_id"] == "neon"}["neon"]
    runtime = RuntimeConfig(linear=Linear.int8)

    assert project.run(InProcessExecutor, runtime=runtime, only="neon", add=True) == 0
    assert project.run(InProcessExecutor, runtime=runtime, only="neon", add=True) == 0

    both = [r for r in project.records() if r["row_id"] == "neon"]
    assert len(both) == 2  # the second run found it done
    (made,) = [r for r in both if r["linear"] is not None]
    assert (made["linear"], made["dtype"], made["status"]) == ("int8", "float32", "ok")
    assert plain["linear"] is None
    assert made["denoise_sha256"] != plain["denoise_sha256"]
    assert made["latents_sha256"] != plain["latents_sha256"]
    comment = read_comment(project.run_dir.path / made["file"])
    assert comment is not None
    assert json.loads(comment)["linear"] == "int8"


def test_an_mp4_has_its_settings_in_the_comment_and_no_folder_names(rendered: Project) -> None:
    for record in rendered.records():
        comment = read_comment(rendered.run_dir.path / record["file"])
        assert comment is not None
        facts = json.loads(comment)
        for name in ("prompt", "seed", "num_inference_steps", "fps", "model", "settings_sha256"):
            assert facts[name] == record[name]
        assert "/" not in comment


# -- damaged and changed ----------------------------------------------------------------------


def test_damaged_clips_and_one_without_a_row_are_made_again_from_their_latents(
    project: Project,
) -> None:
    before = by_clip(project)
    (project.run_dir.path / before["cat", 0]["file"]).unlink()
    os.truncate(project.run_dir.path / before["cat", 1]["file"], 100)
    (segment,) = project.run_dir.log.iterdir()
    table = pq.read_table(segment)
    kept = [row != "neon" for row in table["row_id"].to_pylist()]
    pq.write_table(table.filter(kept), segment)

    assert project.run(InProcessExecutor) == 0

    after = by_clip(project)
    assert {key: r["attempt"] for key, r in after.items()} == {
        ("cat", 0): 2, ("cat", 1): 2, ("neon", 5): 1,
    }  # fmt: skip
    for key, record in after.items():
        assert record["denoise_attempt"] == record["attempt"] - 1
        for name in ("step_seconds", "denoise_seconds", "latents_sha256", "num_text_tokens"):
            assert record[name] == before[key][name], name
        assert record["file_sha256"] == before[key]["file_sha256"]
        assert record["encode_seconds"] is None


def test_fps_changed_in_the_manifest_decodes_and_truncated_latents_are_denoised_again(
    project: Project,
) -> None:
    before = by_clip(project)
    os.truncate(project.run_dir.path / before["cat", 0]["latents_file"], 100)
    project.write(
        "id,prompt,seed,fps,num_frames", "cat,a cat,0 1,12,1", 'neon,"a sign ""OPEN""",5,24,5'
    )

    assert project.run(InProcessExecutor) == 0

    after = by_clip(project)
    assert after["neon", 5] == before["neon", 5]
    decoded, denoised = after["cat", 1], after["cat", 0]
    assert decoded["step_seconds"] == before["cat", 1]["step_seconds"]
    assert [(r["attempt"], r["denoise_attempt"]) for r in (decoded, denoised)] == [(1, 0), (1, 1)]
    assert denoised["step_seconds"] != before["cat", 0]["step_seconds"]
    assert denoised["latents_sha256"] == before["cat", 0]["latents_sha256"]
    assert {decoded["encode_cached"], denoised["encode_cached"]} == {None, True}
    path = project.run_dir.path / decoded["file"]
    check_video(path, num_frames=1, height=32, width=32, fps=12)
    assert "fps 24 -> 12" not in json.dumps(read_csv(project.run_dir.plan))


def test_force_denoises_again_to_the_same_latents(project: Project) -> None:
    before = by_clip(project)

    assert project.run(InProcessExecutor, force=True, only="neon") == 0

    record = by_clip(project)["neon", 5]
    assert (record["attempt"], record["denoise_attempt"]) == (2, 2)
    assert record["latents_sha256"] == before["neon", 5]["latents_sha256"]
    assert record["encode_cached"] is True


def test_latents_are_not_kept_and_settings_not_embedded_where_that_is_asked(
    project: Project,
) -> None:
    for path in project.run_dir.latents.iterdir():
        path.unlink()

    code = project.run(
        InProcessExecutor, keep_latents=False, video=VideoConfig(embed_metadata=False), add=True
    )

    assert code == 0
    assert list(project.run_dir.latents.iterdir()) == []
    for record in project.records()[3:]:
        assert record["latents_file"] is None
        assert len(record["latents_sha256"]) == 64
        assert read_comment(project.run_dir.path / record["file"]) is None


def test_latents_that_are_not_finite_fail_the_clip_and_are_not_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ladder.denoise

    def spoiled(pipe: Any, clip: Any, *rest: Any) -> Denoised:
        result = real(pipe, clip, *rest)
        if clip.row_id == "owl":
            result.latents[0, 0, 0, 0, 0] = float("nan")
        return result

    monkeypatch.setattr(ladder, "denoise", spoiled)
    project.write("id,prompt", "owl,an owl", "cow,a cow")

    assert project.run(InProcessExecutor) == 3

    owl, cow = by_clip(project)["owl", 0], by_clip(project)["cow", 0]
    assert (owl["status"], owl["error_type"]) == ("failed", "FloatingPointError")
    assert owl["error_message"] == (
        "the latents are not finite after 2 steps; bfloat16 is the safe type"
    )
    assert owl["file"] is None
    assert owl["denoise_sha256"] not in project.run_dir.saved_latents()
    assert cow["status"] == "ok"


def test_a_stage_that_raises_fails_its_clip_and_the_next_one_runs(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clip_writer.write_video

    def fails_for_five_frames(frames: Any, path: Path, **rest: Any) -> None:
        if len(frames) == 5:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(frames, path, **rest)

    monkeypatch.setattr(clip_writer, "write_video", fails_for_five_frames)

    assert project.run(InProcessExecutor, force=True) == 3

    statuses = {key: r["status"] for key, r in by_clip(project).items()}
    assert statuses == {("cat", 0): "ok", ("cat", 1): "ok", ("neon", 5): "failed"}
    neon = by_clip(project)["neon", 5]
    assert (neon["error_type"], neon["write_seconds"]) == ("OSError", None)
    assert neon["decode_seconds"] > 0
    assert project.strays() == []


def test_quality_is_measured_and_does_not_judge_noise(project: Project) -> None:
    bounds = QualityConfig(black_luma=255.0)

    assert project.run(InProcessExecutor, force=True, only="neon", quality=bounds) == 0

    record = by_clip(project)["neon", 5]
    assert (record["status"], record["quality_flag"]) == ("ok", "black")
    assert 0 <= record["luma_mean"] <= 255


# -- image to video ---------------------------------------------------------------------------


class ChangesAnImage(ClipRenderer):
    """Between plan and encoding, somebody saves another picture under the same name."""

    def encode(self, clips: Any, emit: Callable[[Event], None]) -> None:
        path = next(c.image_path for c in clips if c.row_id == "dog")
        Image.new("RGB", (16, 16), "red").save(path)
        super().encode(clips, emit)


def test_an_image_that_changes_between_plan_and_encoding_fails_its_clips_only(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path)
    for name in ("cat", "dog"):
        gradient = Image.linear_gradient("L").resize((16, 16))
        image = gradient if name == "cat" else gradient.rotate(90)
        image.convert("RGB").save(tmp_path / f"{name}.png")
    project.write("id,prompt,image", "cat,a cat,cat.png", "dog,a dog,dog.png")
    model = project.config().model
    sampling = replace(model.default_sampling, guidance_scale=1.0)
    model = replace(model, name="tiny_i2v", task=Task.i2v, default_sampling=sampling)

    code = project.run(lambda spec: FakeExecutor(spec, ChangesAnImage), model=model)

    assert code == 3
    cat, dog = project.records()
    assert (cat["status"], cat["image"], cat["negative_prompt"]) == ("ok", "cat.png", None)
    assert (dog["status"], dog["error_type"]) == ("failed", "ValueError")
    assert dog["error_message"] == "dog.png has changed since the run began; run again"

    assert project.run(InProcessExecutor, model=model) == 0
    assert [r["status"] for r in project.records()] == ["ok", "failed", "ok"]
    comment = json.loads(read_comment(project.run_dir.path / cat["file"]) or "")
    assert comment["image"] == "cat.png"
    assert str(tmp_path) not in json.dumps(comment)


def test_a_worker_that_sees_an_image_otherwise_than_the_plan_fails_its_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of another version on another machine would."""
    project = Project(tmp_path)
    Image.new("RGBA", (16, 16), (255, 0, 0, 90)).save(tmp_path / "cat.png")
    project.write("id,prompt,image", "cat,a cat,cat.png")
    model = replace(project.config().model, name="tiny_i2v", task=Task.i2v)
    monkeypatch.setattr(phase, "look", lambda _: Look((16, 16), None, ()))

    assert project.run(InProcessExecutor, model=model) == 3

    assert "was planned with image_conversion=white.v1, and this worker finds None" in str(
        project.records()[0]["error_message"]
    )
    assert any("transparent parts, put on white: cat.png" in line for line in project.said)


def test_weights_that_are_found_damaged_while_they_are_loaded_are_refused_and_blame_no_clip(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any) -> None:
        raise Refused("checkpoint/tokenizer: its files are damaged; fetch them again.")

    shutil.rmtree(project.run_dir.path)
    monkeypatch.setattr(encoders, "load_component", damaged)

    with pytest.raises(Refused, match="are damaged"):
        project.run(InProcessExecutor)

    assert project.records() == []


def test_more_seeds_find_every_text_in_the_cache(project: Project) -> None:
    seeds = SamplingConfig(seeds=9)

    assert project.run(InProcessExecutor, override=seeds, add=True, only="cat") == 0

    record = by_clip(project)["cat", 9]
    assert (record["encode_cached"], record["encode_seconds"]) == (True, None)
    assert isinstance(record["denoise_seconds"], float)


def test_a_job_says_which_attempt_it_is(project: Project) -> None:
    seen: list[Job] = []

    class Remembers(ClipRenderer):
        def render(self, job: Job, emit: Callable[[Event], None]) -> Any:
            seen.append(job)
            return super().render(job, emit)

    (project.run_dir.path / by_clip(project)["cat", 1]["file"]).unlink()
    assert project.run(lambda spec: FakeExecutor(spec, Remembers)) == 0

    assert [(job.clip.row_id, job.attempt, job.use_latents) for job in seen] == [("cat", 2, True)]


def test_latents_that_another_clip_owns_are_kept(project: Project) -> None:
    before = {path.name for path in project.run_dir.latents.iterdir()}
    override = replace(project.config().override, fps=12.0)

    assert project.run(InProcessExecutor, override=override, add=True, keep_latents=False) == 0

    assert {path.name for path in project.run_dir.latents.iterdir()} == before
    assert all((project.run_dir.path / r["latents_file"]).is_file() for r in project.records())
