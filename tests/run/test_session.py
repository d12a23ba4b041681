"""One invocation from settings to exit code, with a renderer that only writes a few bytes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.pages import read_data
from fakes.runs import FakeExecutor, FakeRenderer, Project, read_csv
from omegaconf import OmegaConf

from hv15_batch.config.settings import (
    OF_ONE_COMMAND,
    Config,
    ManifestColumns,
    OffloadConfig,
    OtherColumns,
    RetryConfig,
    SamplingConfig,
    VideoConfig,
)
from hv15_batch.config.words import setting_names
from hv15_batch.dispatch.protocol import Job
from hv15_batch.errors import Refused
from hv15_batch.model.variant import OffloadKind, Recipe, Weights
from hv15_batch.record import ClipRecord, asked_record
from hv15_batch.run import _preflight as preflight
from hv15_batch.run import _results, session
from hv15_batch.rundir.stored import (
    as_omegaconf,
    latest_settings,
    read_settings,
    to_type_again,
    write_settings,
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    return project


def refusal(project: Project, **changes: Any) -> str:
    with pytest.raises(Refused) as caught:
        project.run(**changes)
    return str(caught.value)


def states(project: Project) -> dict[str, str]:
    return {row["row_id"]: row["state"] for row in project.plan()}


# -- what a run says --------------------------------------------------------------------------


def test_the_first_line_is_the_folder_and_new_and_then_how_many_are_done(
    project: Project,
) -> None:
    assert project.run(limit=1) == 0
    assert project.said[0] == f"{project.run_dir.path}: new"

    assert project.run() == 0
    assert project.said[0] == f"{project.run_dir.path}: 1 of 2 done"


def test_a_second_run_says_that_nothing_is_to_do_and_does_nothing(project: Project) -> None:
    project.run()
    project.did()
    records = project.records()

    assert project.run() == 0

    assert project.said == [
        f"{project.run_dir.path}: 2 of 2 done",
        f"Nothing to do: every clip of {project.manifest} is done. force=true renders again.",
        f"Page: {project.run_dir.page}",
    ]
    assert project.did() == []
    assert project.records() == records
    assert len(project.run_dir.run_ids()) == 1


def status(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    return found


def test_forcing_some_clips_again_does_not_undo_the_others(project: Project) -> None:
    project.run()

    project.run(force=True, limit=1)

    assert project.said[0] == f"{project.run_dir.path}: 2 of 2 done"
    assert (status(project)["done"], status(project)["total"]) == (2, 2)


def test_a_forced_clip_that_fails_is_done_no_more(project: Project) -> None:
    project.run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeRenderer, "_finish", lambda self, job, words, columns: failed_record(job))
        project.run(force=True, limit=1)

    assert (status(project)["done"], status(project)["failed"]) == (1, 1)


def failed_record(job: Job) -> ClipRecord:
    known = {"status": "failed", "attempt": job.attempt, "error_type": "RuntimeError"}
    return asked_record(job.clip, **known)


def test_a_run_that_finds_everything_done_puts_the_status_right(project: Project) -> None:
    project.run()
    stale = status(project) | {"state": "rendering", "done": 1, "pid": 2**22 + 1}
    project.run_dir.status.write_text(json.dumps(stale), encoding="utf-8")

    project.run()

    assert (status(project)["state"], status(project)["done"]) == ("done", 2)


def test_all_done_is_not_called_new_where_the_runs_are_deleted(project: Project) -> None:
    project.run()
    shutil.rmtree(project.run_dir.path / "runs")

    project.run()

    assert project.said[0] == f"{project.run_dir.path}: 2 of 2 done"


def test_the_summary_counts_clips_and_names_page_and_folder(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,fail", "owl,suspect")

    assert project.run() == 3

    assert project.said[1:] == [
        "failed: 2 clips rendered, 1 failed, 1 suspect, 0.2 s per warm clip (median)",
        "  dog_s0_" + project.plan()[1]["clip_id"][-8:] + ": RuntimeError: as the prompt says",
        f"1 of 3 clips failed; resume with: hv15-batch resume={project.run_dir.path}",
        f"Page: {project.run_dir.page}",
        f"Clips: {project.run_dir.clips}",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert lines[1].endswith(" failed: RuntimeError: as the prompt says")


def test_a_manifest_that_goes_while_a_run_starts_is_one_message(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = session.system_facts

    def facts_of_a_slow_start(*arguments: Any) -> dict[str, Any]:
        project.manifest.unlink()
        return real(*arguments)

    monkeypatch.setattr(session, "system_facts", facts_of_a_slow_start)

    with pytest.raises(Refused, match=r"prompts\.csv: is gone since it was read"):
        project.run()

    assert project.run_dir.run_ids() == []


def test_a_manifest_edited_during_the_run_is_said_and_counts_at_the_next_start(
    project: Project,
) -> None:
    class EditsTheManifest(FakeRenderer):
        def encode(self, clips: Any, emit: Any) -> None:
            project.write("id,prompt", "cat,a cat", "dog,a dog", "owl,an owl")

    assert project.run(lambda spec: FakeExecutor(spec, EditsTheManifest)) == 0
    assert (
        "prompts.csv has changed since the start; run again to render its new clips."
        in project.said
    )
    assert len(project.records()) == 2
    (folder,) = project.run_dir.runs.iterdir()
    assert "owl" not in (folder / "manifest.csv").read_text(encoding="utf-8")

    assert project.run() == 0
    assert [r["row_id"] for r in project.records()] == ["cat", "dog", "owl"]


def test_only_and_limit_choose_what_is_rendered_and_the_plan_lists_everything(
    project: Project,
) -> None:
    assert project.run(only="dog") == 0
    assert states(project) == {"cat": "new", "dog": "done"}

    assert project.run(only="dog") == 0
    assert project.said[1] == (
        "Nothing to do: every clip of the rows of only=dog is done. force=true renders again."
    )

    project.write("id,prompt,seed", "cat,a cat,0..4")
    assert project.run(limit=2) == 0
    assert [row["state"] for row in project.plan()] == ["done"] * 2 + ["new"] * 3


# -- what is done, changed, or made again -----------------------------------------------------


def test_a_changed_cell_makes_only_that_rows_clip_and_the_plan_says_what_changed(
    project: Project,
) -> None:
    project.write("id,prompt,num_inference_steps", "cat,a cat,4", "dog,a dog,4")
    project.run()
    project.did()
    project.write("id,prompt,num_inference_steps", "cat,a cat,4", "dog,a dog,3")

    project.run(dry_run=True)
    cat, dog = project.plan()
    assert (cat["state"], cat["reason"]) == ("done", "")
    assert (dog["state"], dog["reason"]) == ("changed", "num_inference_steps 4 -> 3")
    assert project.did() == []

    assert project.run() == 0
    assert project.did() == [f"denoise {dog['clip_id']}"]
    assert project.run() == 0
    assert project.did() == []


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["id,prompt", "dog,a dog", "cat,a cat"], id="sorted"),
        pytest.param(["id,prompt", "tom,a cat", "dog,a dog"], id="renamed"),
        pytest.param(["prompt,id,tag_x", "a cat,cat,1", "a dog,dog,2"], id="columns moved"),
    ],
)
def test_a_row_that_is_moved_or_renamed_keeps_its_clip(project: Project, lines: list[str]) -> None:
    project.run()
    project.did()
    project.write(*lines)

    assert project.run() == 0

    assert project.did() == []
    assert len(list(project.run_dir.clips.iterdir())) == 2
    assert {row["file"] for row in project.plan()} == {r["file"] for r in project.records()}


def test_a_row_inserted_on_top_is_the_only_one_rendered(project: Project) -> None:
    project.write("prompt", "a cat", "a dog")
    project.run()
    project.did()
    project.write("prompt", "an owl", "a cat", "a dog")

    assert project.run() == 0

    (line,) = project.did()
    assert line.startswith("denoise an-owl-")
    assert [row["state"] for row in project.plan()] == ["done"] * 3


def test_a_clip_of_which_only_fps_changed_is_decoded_from_its_latents(project: Project) -> None:
    project.write("id,prompt,fps", "cat,a cat,24", "dog,a dog,24")
    project.run()
    project.did()
    project.write("id,prompt,fps", "cat,a cat,24", "dog,a dog,12")

    assert project.run() == 0

    assert project.did() == [f"decode {project.plan()[1]['clip_id']}"]
    before, after = [r for r in project.records() if r["row_id"] == "dog"]
    assert before["denoise_sha256"] == after["denoise_sha256"]
    assert before["settings_sha256"] != after["settings_sha256"]
    assert (before["fps"], after["fps"]) == (24, 12)


def test_another_offload_profile_changes_nothing(project: Project) -> None:
    project.run(offload=OffloadConfig(OffloadKind.resident))
    project.did()

    assert project.run(offload=OffloadConfig(OffloadKind.model)) == 0

    assert "Nothing to do" in project.said[1]
    assert project.did() == []


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_clip_whose_file_is_damaged_is_made_again_from_its_latents(
    project: Project, damage: str
) -> None:
    project.run()
    project.did()
    path = project.run_dir.path / project.records()[0]["file"]
    path.unlink() if damage == "delete" else path.write_bytes(b"")
    reason = "its file is missing" if damage == "delete" else "its file has 0 bytes instead of 64"

    project.run(dry_run=True)
    assert [(row["state"], row["reason"]) for row in project.plan()] == [
        ("retry", reason),
        ("done", ""),
    ]
    assert project.run() == 0

    assert project.did() == [f"decode {project.plan()[0]['clip_id']}"]
    assert path.stat().st_size == 64
    assert project.records()[-1]["attempt"] == 2


def test_a_byte_changed_in_a_clip_is_found_where_hashes_are_checked(project: Project) -> None:
    from hv15_batch.config.settings import FileCheck

    project.run()
    project.did()
    path = project.run_dir.path / project.records()[0]["file"]
    path.write_bytes(b"!" + path.read_bytes()[1:])

    assert project.run() == 0
    assert project.did() == []
    assert project.run(check_files=FileCheck.sha256) == 0
    assert len(project.did()) == 1


def test_a_file_without_a_row_is_made_again_from_its_latents(project: Project) -> None:
    project.run()
    project.did()
    for segment in project.run_dir.log.iterdir():
        segment.unlink()

    assert project.run() == 0

    assert [line.split()[0] for line in project.did()] == ["decode", "decode"]
    assert [r["attempt"] for r in project.records()] == [1, 1]


def test_failed_clips_are_tried_again_with_their_attempts_counted(project: Project) -> None:
    project.write("id,prompt", "cat,fail", "dog,fail once")

    assert project.run() == 3
    assert project.run() == 3
    assert project.run() == 3

    tried = [(r["row_id"], r["attempt"], r["status"]) for r in project.records()]
    assert tried == [
        ("cat", 1, "failed"),
        ("dog", 1, "failed"),
        ("cat", 2, "failed"),
        ("dog", 2, "ok"),
        ("cat", 3, "failed"),
    ]
    row = project.plan()[0]
    assert (row["state"], row["reason"]) == ("retry", "failed before: RuntimeError")


def test_suspect_counts_as_done_and_is_denoised_again_only_when_asked(project: Project) -> None:
    project.write("id,prompt", "cat,suspect", "dog,a dog")
    assert project.run() == 0
    project.did()

    assert project.run() == 0
    assert project.said[2] == "1 of them suspect; retry.suspect=true renders those again."
    assert project.did() == []

    assert project.run(retry=RetryConfig(suspect=True)) == 0
    assert project.said[0].endswith("2 of 2 done")
    assert project.did() == [f"denoise {project.plan()[0]['clip_id']}"]


def test_force_denoises_everything_again(project: Project) -> None:
    project.run()
    project.did()

    assert project.run(force=True) == 0

    assert [line.split()[0] for line in project.did()] == ["denoise", "denoise"]
    assert [r["attempt"] for r in project.records()] == [1, 1, 2, 2]
    assert states(project) == {"cat": "done", "dog": "done"}
    assert project.run() == 0
    assert project.did() == []


# -- whose folder, which settings -------------------------------------------------------------


def test_a_folder_of_another_manifest_is_refused(project: Project) -> None:
    project.run()
    other = Project(project.folder, "other.csv")
    other.write("prompt", "a cat")

    assert refusal(other) == (
        f"run_dir={project.run_dir.path}: belongs to the manifest {project.manifest}, not to "
        f"{other.manifest}; name another folder with run_dir=DIR."
    )


def test_a_folder_with_other_files_is_refused(project: Project) -> None:
    project.run_dir.path.mkdir()
    (project.run_dir.path / "thesis.tex").touch()

    assert refusal(project) == (
        f"run_dir={project.run_dir.path}: holds other files (thesis.tex) and is no run "
        "directory; name an empty or new folder with run_dir=DIR."
    )


def test_settings_that_would_render_again_what_is_done_are_refused(project: Project) -> None:
    project.run()
    changes: dict[str, Any] = {"override": SamplingConfig(num_inference_steps=3)}

    assert refusal(project, **changes) == (
        f"run_dir={project.run_dir.path}: clips are done here with other settings "
        "(num_inference_steps 2 -> 3; 2 clips). To resume with those: hv15-batch "
        f"resume={project.run_dir.path}. To keep both apart: run_dir=DIR. To add clips with the "
        "new settings here: add=true."
    )
    assert len(project.records()) == 2

    assert project.run(**changes, add=True) == 0
    assert len(project.records()) == 4
    assert {row["reason"] for row in project.plan()} == {""}
    # Both are done now, so that neither is refused any more.
    assert project.run(**changes) == 0
    assert project.run() == 0


def test_a_conflict_names_video_settings_too(project: Project) -> None:
    project.run()

    assert "(video.crf 17 -> 30; 2 clips)" in refusal(project, video=VideoConfig(crf=30))


def test_a_conflict_is_found_behind_a_changed_manifest(project: Project) -> None:
    project.run()
    project.write("id,prompt", "owl,an owl", "dog,a dog", "cat,another cat")

    message = refusal(project, override=SamplingConfig(flow_shift=7.0))

    assert "(flow_shift 5 -> 7; 1 clip)" in message


def test_more_seeds_are_no_conflict(project: Project) -> None:
    project.run()
    project.did()

    assert project.run(sampling=SamplingConfig(seeds="0..2")) == 0

    seeds = [row["seed"] for row in project.plan() if row["row_id"] == "cat"]
    assert seeds == ["0", "1", "2"]
    assert len(project.did()) == 4


def test_settings_of_what_was_never_finished_are_no_conflict(project: Project) -> None:
    project.write("id,prompt", "cat,fail")
    assert project.run() == 3

    assert project.run(override=SamplingConfig(num_inference_steps=3)) == 3


def test_a_first_frame_model_after_a_text_model_in_one_folder_does_not_break_planning(
    project: Project,
) -> None:
    from PIL import Image

    from hv15_batch.model.variant import Task

    Image.new("RGB", (64, 64)).save(project.folder / "a.png")
    config = project.config()
    i2v = replace(config.model, name="tiny_i2v", task=Task.i2v)
    project.write("id,prompt,image", "cat,a cat,a.png")
    assert project.run(model=i2v) == 0
    project.write("id,prompt", "cat,a cat")

    assert project.run() == 0
    assert states(project) == {"cat": "done"}


def test_stored_settings_are_read_back_as_they_were(project: Project) -> None:
    text = 'no ${oc.env:HOME} \\${x}, "quotes": yes'
    project.write("prompt", "a cat")
    project.run(sampling=SamplingConfig(seeds=[3, 4], negative_prompt=text))
    (run_id,) = project.run_dir.run_ids()

    stored = read_settings(project.run_dir.run_folder(run_id) / "config.yaml")

    assert stored.sampling == SamplingConfig(seeds=[3, 4], negative_prompt=text)
    assert stored.model.revision is not None
    assert stored.manifest == str(project.manifest)


def test_settings_stored_without_a_recipe_have_that_of_their_option(project: Project) -> None:
    """As the version wrote them that had the step counts in its code."""
    project.run()
    (run_id,) = project.run_dir.run_ids()
    path = project.run_dir.run_folder(run_id) / "config.yaml"
    stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    del stored["model"]["recipe"]
    stored["model"]["name"] = "480p_i2v_step_distilled"
    path.write_text(yaml.safe_dump(stored), encoding="utf-8")

    recipe = Recipe([8, 12], [4], guidance=1.0, meanflow=True)
    assert read_settings(path).model.recipe == recipe
    assert latest_settings(project.run_dir).model.recipe == recipe
    stored["model"] |= {"name": "of_another_version", "recipe": {"steps": [6]}}
    path.write_text(yaml.safe_dump(stored), encoding="utf-8")
    assert read_settings(path).model.recipe == Recipe([6])


def test_a_run_of_the_version_without_recipes_is_resumed_without_rendering(
    project: Project,
) -> None:
    assert project.run() == 0
    (run_id,) = project.run_dir.run_ids()
    path = project.run_dir.run_folder(run_id) / "config.yaml"
    stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    del stored["model"]["recipe"]
    path.write_text(yaml.safe_dump(stored), encoding="utf-8")
    made = {file.name: file.stat().st_mtime_ns for file in project.run_dir.clips.iterdir()}

    config = latest_settings(project.run_dir)

    assert session.run(config, (), None, project.said.append, FakeExecutor) == 0
    assert {file.name: file.stat().st_mtime_ns for file in project.run_dir.clips.iterdir()} == made


def test_resume_takes_the_latest_settings_but_not_what_was_meant_once(project: Project) -> None:
    project.run(only="cat", limit=1, force=True, keep_latents=False)

    config = latest_settings(project.run_dir)

    assert config.keep_latents is False
    assert (config.only, config.limit, config.force) == (None, None, False)
    assert session.run(config, (), None, project.said.append, FakeExecutor) == 0
    assert states(project) == {"cat": "done", "dog": "done"}


def test_what_is_to_be_typed_again_is_what_a_resume_does_not_take_over(project: Project) -> None:
    of_one_command: dict[str, Any] = {
        **{"only": "cat", "limit": 1, "shard": "1/2", "force": True, "add": True},
        **{"time_limit": "8h", "until": "23:59"},
        **{"retry": RetryConfig(suspect=True, max_attempts=7)},
    }
    config = project.config(**of_one_command, keep_latents=False)
    folder = project.run_dir.run_folder("20261122T000000-0000-abcd")
    folder.mkdir(parents=True)
    write_settings(folder, config)

    before, after = as_omegaconf(config), as_omegaconf(latest_settings(project.run_dir))

    lost = [n for n in setting_names() if OmegaConf.select(before, n) != OmegaConf.select(after, n)]
    assert sorted(lost) == sorted(to_type_again(config))
    assert to_type_again(config) == list(OF_ONE_COMMAND)
    assert to_type_again(project.config(keep_latents=False)) == []


def test_resume_reads_settings_that_an_earlier_version_stored(project: Project) -> None:
    project.run(keep_latents=False)
    (run_id,) = project.run_dir.run_ids()
    path = project.run_dir.run_folder(run_id) / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "verify: true\n", encoding="utf-8")

    assert latest_settings(project.run_dir).keep_latents is False


def test_resume_of_a_folder_without_a_run_is_refused(project: Project) -> None:
    with pytest.raises(Refused) as caught:
        latest_settings(project.run_dir)

    assert str(caught.value) == (
        f"resume={project.run_dir.path}: no run was started there; name a run directory, for "
        "example outputs/prompts, or start one: hv15-batch prompts.csv"
    )


def test_settings_that_are_no_yaml_are_refused_with_their_path(project: Project) -> None:
    project.run()
    (run_id,) = project.run_dir.run_ids()
    path = project.run_dir.run_folder(run_id) / "config.yaml"
    path.write_text("model: [", encoding="utf-8")

    assert refusal(project).startswith(f"{path}: not readable as settings of this version (")


def test_a_clip_of_two_rows_is_rendered_once_and_both_ids_are_known(project: Project) -> None:
    project.write("id,prompt,seed", "cat,a cat,1 2", "dog,a dog,1", "tom,a cat,2")
    note = "Repeated in the manifest, rendered once: 1 clip, once more: line 4 as line 2"

    assert project.run(dry_run=True) == 0
    assert note in project.said
    assert project.run() == 0

    assert note in project.said[:3]
    assert sorted(job.rsplit("_", 1)[0] for job in project.did()) == [
        "denoise cat_s1", "denoise cat_s2", "denoise dog_s1",
    ]  # fmt: skip
    assert [record["row_id"] for record in project.records()].count("tom") == 0
    table = read_csv(project.run_dir.clips_table)
    assert [(row["row_id"], row["other_ids"]) for row in table if row["seed"] == "2"] == [
        ("cat", "tom")
    ]
    for only, count in {"tom": 1, "cat": 2, "cat,tom": 2, "dog": 1}.items():
        assert project.run(only=only, force=True) == 0
        assert len(project.did()) == count
    with pytest.raises(Refused, match="no row has that id; ids are"):
        project.run(only="tim")


def test_the_second_id_of_a_clip_holds_no_secret_either(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_0123456789")
    project.write("id,prompt", "cat,a cat", "hf_planted_0123456789,a cat")

    message = refusal(project)

    assert ": holds the value of HF_TOKEN, which would be in log, video and page" in message
    assert "hf_planted_0123456789" not in message


def test_a_page_shows_and_finds_a_clip_by_the_ids_of_all_its_rows(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "tom,a cat")
    project.run()

    (clip,) = read_data(project.run_dir.path)["clips"]
    assert (clip["rowId"], clip["otherIds"]) == ("cat", ["tom"])


def test_a_run_is_resumed_and_made_again_from_its_page_with_the_columns_it_was_read_with(
    project: Project,
) -> None:
    project.write("Caption,mood", "a cat,calm", "# a dog --seed 5,wild")
    columns = ManifestColumns(prompt="Caption")
    other = OtherColumns.tag
    assert project.run(manifest_columns=columns, manifest_other=other, manifest_literal=True) == 0

    stored = latest_settings(project.run_dir)

    assert stored.manifest_columns == columns
    assert (stored.manifest_other, stored.manifest_literal) == (other, True)
    assert {json.loads(record["tags"])["tag_mood"] for record in project.records()} == {
        "calm",
        "wild",
    }
    for clip in read_data(project.run_dir.path)["clips"]:
        words = shlex.split(clip["command"])
        assert {"manifest_literal=true", "manifest_other=tag"} < set(words)
        assert "manifest_columns.prompt=Caption" in words


def test_a_typed_default_that_every_row_beats_is_refused(project: Project) -> None:
    project.write("id,prompt,num_inference_steps", "cat,a cat,2", "dog,a dog,3")
    sampling = SamplingConfig(seeds=0, num_inference_steps=4)

    with pytest.raises(Refused) as caught:
        project.run(typed=("num_inference_steps",), sampling=sampling)

    assert str(caught.value) == (
        f"sampling.num_inference_steps=4: every row of {project.manifest} has its own value, "
        "which takes precedence; to replace them all use override.num_inference_steps=4."
    )


def test_a_real_model_is_refused_where_there_is_no_card(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    model = replace(project.config().model, name="480p_t2v", repo="a/b", weights=Weights.random)

    assert refusal(project, model=model) == (
        "model=480p_t2v: needs a CUDA card, and none is visible here; to try the pipeline on the "
        "CPU use model=demo_t2v, to check the manifest and plan use dry_run=true."
    )
    assert not project.run_dir.path.exists()


def test_what_the_executor_refuses_is_an_error_and_resume_does_not_take_it_up(
    project: Project,
) -> None:
    assert project.run(only="cat") == 0
    before = project.run_dir.run_ids()
    project.write("id,prompt", "cat,a cat", "dog,refuse")

    assert refusal(project) == "runtime.attention_backend=flash: not here; use auto."

    assert project.run_dir.run_ids() == before
    status = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    assert (status["state"], status["message"]) == (
        "failed",
        "runtime.attention_backend=flash: not here; use auto.",
    )


def test_a_folder_that_cannot_be_made_is_refused(project: Project) -> None:
    (project.folder / "file").touch()

    message = refusal(project, run_dir=str(project.folder / "file" / "out"))

    assert message == (
        f"run_dir={project.folder}/file/out: cannot be made (Not a directory); name a folder "
        "that can be written with run_dir=DIR."
    )


# -- a disk that fills up ---------------------------------------------------------------------


def test_a_run_stops_before_a_clip_for_which_the_disk_is_too_full(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        preflight,
        "free_disk_bytes",
        lambda _path: 2**20 if project.run_dir.saved_latents() else 2**40,
    )

    assert project.run() == 4

    assert [r["row_id"] for r in project.records()] == ["cat"]
    assert project.said[1] == "stopped: 1 clip rendered, 0 failed, 0 suspect, " + (
        "0.2 s per warm clip (median)"
    )
    assert re.fullmatch(
        r"disk full: 0\.00 GiB free at .*/out, and the next clip needs 0\.50 to be written "
        r"safely; resume with: hv15-batch resume=.*/out",
        project.said[2],
    )
    assert states(project) == {"cat": "done", "dog": "new"}


def test_tables_that_cannot_be_written_do_not_hide_how_the_run_ended(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_results, "write_clips_table", no_space)

    assert project.run() == 0
    assert project.said[1].startswith("done: 2 clips rendered")
    assert project.said[-1] == "clips.csv is not up to date (No space left on device)"


# -- the lock ---------------------------------------------------------------------------------

_HOLDER = """
import sys, time
from pathlib import Path
from hv15_batch.rundir.paths import RunDir
run_dir = RunDir(Path(sys.argv[1]))
run_dir.create()
with run_dir.locked("20261122T000000-0000-abcd"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_holds_the_folder_and_a_killed_one_releases_it(
    project: Project,
) -> None:
    import socket

    words = [sys.executable, "-c", _HOLDER, str(project.run_dir.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        message = refusal(project)
        holder.kill()

    assert message.startswith(
        f"run_dir={project.run_dir.path}: in use by process {holder.pid} on "
        f"{socket.gethostname()} (run 20261122T000000-0000-abcd, since 20"
    )
    assert message.endswith(
        f"wait for it, watch it with `hv15-batch status {project.run_dir.path}`, or choose "
        "another folder with run_dir=DIR."
    )
    assert project.run() == 0
    assert not project.strays()


# -- what is left in the folder ---------------------------------------------------------------


def test_a_run_leaves_its_settings_machine_and_manifest_beside_the_clips(
    project: Project,
) -> None:
    project.run()

    names = {p.name for p in project.run_dir.path.iterdir()}
    assert names == {
        "clips", "latents", "thumbs", "log", "embeddings", "runs", "assets",
        "index.html", "status.json", "plan.csv", "clips.csv", ".lock",
    }  # fmt: skip
    (folder,) = project.run_dir.runs.iterdir()
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "system.json", "manifest.csv", "run.log",
    }  # fmt: skip
    assert (folder / "manifest.csv").read_bytes() == project.manifest.read_bytes()
    assert "done: 2 clips rendered" in (folder / "run.log").read_text(encoding="utf-8")
    status = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    assert (status["state"], status["done"], status["total"]) == ("done", 2, 2)


def test_temporary_files_of_a_killed_run_are_swept_and_a_users_hidden_file_stays(
    project: Project,
) -> None:
    project.run(limit=1)
    root = project.run_dir.path
    left = [root / ".77.plan.csv", project.run_dir.clips / ".77.dog.mp4"]
    left += [
        project.run_dir.log / f".{'0a' * 8}.x.parquet",
        project.run_dir.latents / ".78.a.safetensors",
    ]
    mine = [root / ".gitignore", project.run_dir.log / ".x.parquet", project.run_dir.clips / ".m"]
    for path in [*left, *mine]:
        path.write_text("half", encoding="utf-8")

    project.run()

    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in mine)


def test_clips_csv_has_one_line_per_current_clip(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,fail", "owl,an owl")
    project.run()
    project.write("id,prompt", "tom,a cat", "dog,fail", 'fox,"a fox, ""red"""')
    project.run(only="dog")

    rows = read_csv(project.run_dir.clips_table)

    assert [(r["row_id"], r["status"]) for r in rows] == [
        ("tom", "ok"),
        ("dog", "failed"),
        ("fox", ""),
    ]
    assert rows[2]["prompt"] == 'a fox, "red"'
    assert rows[0]["file"].startswith("clips/cat_s0_")
    assert rows[1]["error_message"] == "as the prompt says"


def test_a_dry_run_touches_nothing_but_the_plan(project: Project) -> None:
    assert project.run(dry_run=True) == 0

    assert [p.name for p in project.run_dir.path.iterdir()] == ["plan.csv"]
    assert project.run() == 0
    assert project.said[0] == f"{project.run_dir.path}: new"


def test_the_executor_is_told_of_attempts_and_latents(project: Project) -> None:
    jobs: list[Job] = []

    class Remembers(FakeExecutor):
        def submit(self, job: Job) -> None:
            jobs.append(job)
            super().submit(job)

    project.run()
    (project.run_dir.path / project.records()[0]["file"]).unlink()
    project.run(Remembers)
    project.run(Remembers, force=True, only="cat")

    assert [(j.clip.row_id, j.attempt, j.use_latents) for j in jobs] == [
        ("cat", 2, True),
        ("cat", 3, False),
    ]


def test_texts_of_clips_with_saved_latents_are_not_encoded(project: Project) -> None:
    encoded: list[int] = []

    class Counts(FakeRenderer):
        def encode(self, clips: Any, emit: Any) -> None:
            encoded.append(len(clips))

    project.run(only="cat")
    (project.run_dir.path / project.records()[0]["file"]).unlink()
    project.run(lambda spec: FakeExecutor(spec, Counts))

    assert encoded == [1]


def test_a_default_run_dir_is_named_after_the_manifest(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    config: Config = replace(project.config(), run_dir=None, manifest="prompts.csv")

    assert session.run(config, (), None, project.said.append, FakeExecutor) == 0
    assert project.said[0] == f"{project.folder}/outputs/prompts: new"

    assert session.run(config, (), "a-b", project.said.append, FakeExecutor) == 0
    assert (project.folder / "outputs/prompts.sweep/a-b/clips").is_dir()
    assert os.listdir(project.folder / "outputs") != []


def test_a_run_without_work_writes_table_and_page_again_only_where_they_are_behind(
    project: Project,
) -> None:
    project.run()
    project.run_dir.page.write_text("mine", encoding="utf-8")
    project.run()
    assert project.run_dir.page.read_text(encoding="utf-8") == "mine"

    # As a run leaves them that is killed between plan and page.
    os.utime(project.run_dir.page, ns=(0, 0))
    project.run()
    assert project.run_dir.page.read_text(encoding="utf-8") != "mine"

    project.run_dir.clips_table.unlink()
    project.run()
    assert len(read_csv(project.run_dir.clips_table)) == 2

    project.write("id,prompt", "dog,a dog", "tom,a cat")
    project.run()
    assert [row["row_id"] for row in read_csv(project.run_dir.clips_table)] == ["dog", "tom"]
