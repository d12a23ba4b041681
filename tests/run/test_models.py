"""Several models in one run: whose settings hold for which rows, their order, log and ends."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.command import CARD, Answer
from fakes.loras import lora_of, saved_lora
from fakes.runs import FakeExecutor, FakeRenderer, Project
from PIL import Image

from hv15_batch.clock import Clock
from hv15_batch.config.checks import check_config
from hv15_batch.config.compose import compose_one
from hv15_batch.config.options import config_of
from hv15_batch.config.settings import (
    CONFIG_DIR,
    BenchmarkConfig,
    Config,
    Order,
    RetryConfig,
    SamplingConfig,
)
from hv15_batch.dispatch.protocol import ExecutorSpec, Job, Note
from hv15_batch.errors import Refused
from hv15_batch.forecast import compilation
from hv15_batch.machine.machine import read_machine
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Lora, OffloadKind, SamplingDefaults, Weights
from hv15_batch.prefetch import prefetch
from hv15_batch.run import _preflight, outlook, session
from hv15_batch.run.outlook import Plan, make_plan
from hv15_batch.run.prepare import prepare
from hv15_batch.run.schedule import Deadline, Rules
from hv15_batch.rundir import stored as stored_module
from hv15_batch.rundir.stored import latest_settings, remembered_weights, to_type_again
from hv15_batch.units import GIB

DEMO = model_options()["demo_t2v"].default_sampling


@pytest.fixture
def project(tmp_path: Path) -> Project:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    project = Project(tmp_path)
    project.write(
        "id,prompt,model,image,seed",
        "cat,a cat,,,0 1",
        "dog,a dog,demo_t2v,,0",
        "owl,an owl,tiny_t2v,,0",
        "fox,a fox,demo_i2v,a.png,0",
        "bee,a bee,demo_t2v,,0 1",
    )
    return project


def planned(project: Project, config: Config | None = None, swept: tuple[str, ...] = ()) -> Plan:
    asked = prepare(config or project.config(), (), "sweep" if swept else None, None, swept)
    return make_plan(asked, Rules(Clock()))


def rows(project: Project, config: Config | None = None) -> dict[str, Any]:
    return {p.clip.row_id: p.clip.settings for p in planned(project, config).clips}


# -- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("takes", "cat0 owl0 cat1 dog0 bee0 bee1 fox0"),
        ("rows", "cat0 cat1 owl0 dog0 bee0 bee1 fox0"),
    ],
)
def test_each_model_has_its_clips_together_in_their_order(
    project: Project, order: str, expected: str
) -> None:
    plan = planned(project, project.config(order=Order[order]))

    clips = [f"{p.clip.row_id}{p.clip.settings.seed}" for p in plan.clips]

    assert " ".join(clips) == expected


def test_lora_sets_stay_within_their_model(tmp_path: Path) -> None:
    project = Project(tmp_path)
    lines = ["a,a,,", "b,b,demo_t2v,", "c,c,,", "d,d,demo_t2v,"]
    project.write("id,prompt,model,seed", *lines)
    plain = [p.clip for p in planned(project).clips]
    lora = (("0" * 64, 1.0),)
    settings = [replace(c.settings, loras=lora if c.row_id in "cd" else None) for c in plain]

    groups = [s.group for s in settings]

    assert [s.prompt for s in settings] == ["a", "c", "b", "d"]
    assert len(set(groups)) == 4


# -- whose settings hold ----------------------------------------------------------------------


def test_a_rows_model_comes_from_its_own_file_alone(project: Project) -> None:
    typed = SamplingDefaults(height=64, width=64, num_frames=5, num_inference_steps=3)
    config = project.config()
    config.model = replace(config.model, default_sampling=typed)

    found = rows(project, config)

    for row in ("cat", "owl"):  # without a cell, and with one that names the command's option
        assert (found[row].model, found[row].num_inference_steps) == ("tiny_t2v", 3)
    assert found["dog"].model == "demo_t2v"
    assert (found["dog"].height, found["dog"].num_inference_steps) == (128, 16)
    assert (found["dog"].weights, found["fox"].weights) == ("demo", "demo")


def test_typed_sampling_holds_for_all_rows_and_that_of_a_preset_for_its_own_model(
    project: Project,
) -> None:
    sampling = SamplingConfig(seeds=0, num_inference_steps=7, fps=30.0)
    config = project.config(sampling=sampling, preset_sampling=["num_inference_steps"])

    found = rows(project, config)

    assert [found[r].num_inference_steps for r in ("cat", "owl", "dog", "fox")] == [7, 7, 16, 16]
    assert {s.fps for s in found.values()} == {30.0}


def test_a_preset_is_known_by_what_it_sets_and_was_not_typed(tmp_path: Path) -> None:
    words = ["experiment=rtx4090_step_distilled", "sampling.flow_shift=6"]

    preset = compose_one(words, None).config
    typed = compose_one([*words, "sampling.num_inference_steps=12"], None).config

    assert "num_inference_steps" in preset.preset_sampling
    assert "flow_shift" not in preset.preset_sampling
    assert "num_inference_steps" not in typed.preset_sampling
    assert compose_one(["sampling.num_inference_steps=12"], None).config.preset_sampling == []


def test_overrides_and_runtime_hold_for_all_rows(project: Project) -> None:
    override = SamplingConfig(num_inference_steps=4, guidance_scale=1.0)

    found = rows(project, project.config(override=override))

    assert {(s.num_inference_steps, s.guidance_scale) for s in found.values()} == {(4, 1.0)}


def test_random_weights_hold_for_all_full_size_options(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,", "b,b,480p_t2v_4step", "c,c,demo_t2v")
    model = replace(model_options()["480p_t2v"], weights=Weights.random)

    found = rows(project, project.config(model=model))

    assert [found[row].weights for row in "abc"] == ["random", "random", "demo"]
    assert found["b"].transformer_sha256 is None


def test_random_weights_hold_for_stored_options_and_end_with_the_command(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,", "b,b,480p_t2v_4step", "c,c,demo_t2v")
    pretrained = model_options()["480p_t2v"]
    models = {name: model_options()[name] for name in ("480p_t2v_4step", "demo_t2v")}
    models["480p_t2v_4step"] = replace(models["480p_t2v_4step"], revision="a" * 40)
    asked = replace(pretrained, weights=Weights.random)

    found = prepare(project.config(model=asked, models=models), (), None)
    again = prepare(replace(found.config, model=pretrained), (), None)

    assert found.config.models["480p_t2v_4step"].weights is Weights.random
    assert found.config.models["480p_t2v_4step"].revision is None
    assert found.config.models["demo_t2v"] == models["demo_t2v"]
    assert again.config.models["480p_t2v_4step"].weights is Weights.pretrained


@pytest.mark.parametrize(
    ("name", "value"), [("repo", "/nothere"), ("transformer_file", "nothere.safetensors")]
)
def test_a_typed_model_setting_that_no_row_takes_is_refused(
    tmp_path: Path, name: str, value: str
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,tiny_t2v", "b,b,demo_t2v")
    config = project.config(model=replace(model_options()["720p_i2v"], **{name: value}))

    with pytest.raises(Refused, match=rf"model\.{name}: every row of .* than 720p_i2v, for which"):
        prepare(config, (f"model.{name}",), None)

    project.write("id,prompt,model", "a,a,", "b,b,demo_t2v")
    prepare(project.config(), ("model.dtype",), None)
    project.write("id,prompt,model", "b,b,480p_t2v")
    random = replace(config.model, weights=Weights.random)
    prepare(project.config(model=random), ("model.weights",), None)


def test_a_command_line_hands_over_what_it_typed_of_the_model(tmp_path: Path, command: Any) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,tiny_t2v")

    answer = command(str(project.manifest), "model=720p_i2v", "model.repo=/no", "--dry-run")

    assert answer.code == 2
    assert "prompts.csv has another model than 720p_i2v, for which model.repo is" in answer.err


def test_loras_of_the_command_hold_for_its_own_model(project: Project, tmp_path: Path) -> None:
    from hv15_batch.manifest.weights import loras_of

    config = project.config(models={"demo_t2v": model_options()["demo_t2v"]})
    config.model = replace(config.model, loras=[Lora(str(tmp_path / "a.safetensors"))])
    asked = prepare(project.config(), (), None).manifest.rows

    counts = [len(loras_of(row, config_of(config, row.model), {})) for row in asked[:3]]

    assert counts == [1, 0, 1]


def test_the_rules_of_a_column_are_those_of_the_rows_model(tmp_path: Path) -> None:
    project = Project(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    project.write(
        "prompt,model,image,height",
        "a,demo_t2v,a.png,",
        "b,demo_i2v,,",
        "c,demo_i2v,a.png,128",
        "d,,a.png,",
        "e,demo_t2v,,128",
        "f,demo_i2v,a.png,",
    )

    with pytest.raises(ManifestError) as caught:
        planned(project)

    places = [message.split(": ")[0].split(":")[-1] for message in caught.value.faults]
    columns = [message.split(": ")[1].split("=")[0] for message in caught.value.faults]
    assert list(zip(places, columns, strict=True)) == [
        ("2", "image"),
        ("3", "image"),
        ("4", "height"),
        ("5", "image"),
    ]


def test_an_unknown_option_is_one_fault_with_the_nearest_name(tmp_path: Path) -> None:
    project = Project(tmp_path)
    header = "prompt,model,image,height"
    lines = ["a,demo_t3v,,97", "b,480p_t2v.yaml,x.png,", "c,../demo_t2v,,", "d,demo_i3v,x.png,"]
    project.write(header, *lines)

    with pytest.raises(ManifestError) as caught:
        planned(project)

    faults = caught.value.faults  # whether an image or a size is allowed, nobody knows
    assert len(faults) == 4
    assert "model=demo_t3v: did you mean demo_t2v? a row names a model option, one of" in faults[0]
    assert "--config-dir=DIR adds those in DIR/model" in faults[0]


def test_one_id_in_rows_of_two_models_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,tiny_t2v", "a,a,demo_t2v")

    with pytest.raises(ManifestError, match="3: id=a: an id is unique, and line 2 has it already"):
        planned(project)


def test_the_recipe_is_that_of_the_rows_model(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model,guidance_scale", "a,a,,6", "b,b,480p_t2v_distilled,6")

    with pytest.raises(ManifestError) as caught:
        planned(project)

    (fault,) = caught.value.faults
    assert ":3: guidance_scale=6.0: 480p_t2v_distilled is distilled for guidance_scale 1" in fault


def test_a_setting_that_one_of_the_models_refuses_names_it(project: Project) -> None:
    override = SamplingConfig(height=128, width=128)

    with pytest.raises(Refused, match=r"rows with model demo_i2v: override\.height=128: an image"):
        planned(project, project.config(override=override))


def test_a_model_of_the_command_that_no_row_uses_is_not_checked(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,tiny_t2v")
    config = project.config(model=model_options()["480p_t2v_distilled"])

    assert project.run(model=config.model) == 0  # no card is here

    assert [r["model"] for r in project.records()] == ["tiny_t2v"]


@pytest.mark.parametrize("section", ["override", "sampling"])
def test_a_typed_size_is_judged_by_the_models_of_rows(tmp_path: Path, section: str) -> None:
    project = Project(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    typed = {section: SamplingConfig(height=96)}
    config = project.config(model=model_options()["tiny_i2v"], **typed)
    project.write("id,prompt,model,image", "a,a,tiny_t2v,", "b,b,demo_t2v,")

    assert {s.height for s in rows(project, config).values()} == {96}

    project.write("id,prompt,model,image", "a,a,tiny_t2v,", "b,b,,a.png")
    with pytest.raises(Refused, match=rf"^{section}\.height=96: an image-to-video model takes"):
        planned(project, config)


def test_a_command_line_leaves_a_typed_size_to_the_rows(tmp_path: Path, command: Any) -> None:
    Project(tmp_path).write("id,prompt,model", "a,a,tiny_t2v")
    words = ("prompts.csv", "model=tiny_i2v", "--dry-run")

    fits = command(*words, "override.height=96")
    odd = command(*words, "override.height=97")

    assert (fits.code, fits.err) == (0, "")
    assert "96x" in fits.out
    assert odd.code == 2
    assert "rows with model tiny_t2v: override.height=97: must be a multiple of 16" in odd.err


@pytest.fixture
def mixed(tmp_path: Path) -> Project:
    """Rows of a small model, and one of a full-size model that is not on disk."""
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,", "b,b,480p_t2v", "c,c,tiny_t2v")
    return project


@pytest.mark.parametrize("selection", [{"only": "a,c"}, {"limit": 2}])
def test_only_the_models_to_render_need_weights_and_a_card(
    mixed: Project, selection: dict[str, Any]
) -> None:
    config = mixed.config(**selection, order=Order.rows)
    assert planned(mixed, config).refusals == ()
    assert mixed.run(**selection) == 0
    assert {r["model"] for r in mixed.records()} == {"tiny_t2v"}

    assert mixed.run(only="a") == 0  # everything selected is done

    with pytest.raises(Refused, match="model=480p_t2v: needs a CUDA card"):
        mixed.run()


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Let something happen between the first look at a run directory and its lock."""
    make_run, waiting = session.make_run, [happens]

    def made(*arguments: Any) -> Any:
        run = make_run(*arguments)
        while waiting:
            waiting.pop()()
        return run

    monkeypatch.setattr(session, "make_run", made)


@pytest.fixture
def specs() -> list[ExecutorSpec]:
    return []


@pytest.fixture
def noting(specs: list[ExecutorSpec]) -> Callable[[ExecutorSpec], FakeExecutor]:
    def make(spec: ExecutorSpec) -> FakeExecutor:
        specs.append(spec)
        return FakeExecutor(spec)

    return make


def test_a_limit_that_reaches_a_further_model_after_the_lock_renders_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    specs: list[ExecutorSpec],
    noting: Callable[[ExecutorSpec], FakeExecutor],
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,", "b,b,demo_t2v")
    meanwhile(monkeypatch, lambda: project.run(noting, limit=1))

    assert project.run(noting, limit=1) == 0

    assert [spec.config.model.name for spec in specs] == ["tiny_t2v", "demo_t2v"]
    assert [r["model"] for r in project.records()] == ["tiny_t2v", "demo_t2v"]


def test_a_further_model_after_the_lock_whose_weights_are_lacking_is_refused(
    mixed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed.write("id,prompt,model", "a,a,", "b,b,480p_t2v")
    meanwhile(monkeypatch, lambda: mixed.run(limit=1))

    with pytest.raises(Refused, match="finished here meanwhile, and those that are left need"):
        mixed.run(limit=1)

    assert [r["row_id"] for r in mixed.records()] == ["a"]


def test_a_further_model_after_the_lock_is_checked_like_the_others(
    mixed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed.write("id,prompt,model", "a,a,tiny_t2v", "b,b,")
    model = replace(model_options()["480p_t2v"], weights=Weights.random)
    meanwhile(monkeypatch, lambda: mixed.run(limit=1, model=model))

    with pytest.raises(Refused, match="model=480p_t2v: needs a CUDA card"):
        mixed.run(limit=1, model=model)

    assert [r["row_id"] for r in mixed.records()] == ["a"]


def test_checks_are_those_of_the_models_to_render(mixed: Project) -> None:
    benchmark = BenchmarkConfig(calibrate=True)
    with pytest.raises(Refused, match="and none is visible here"):
        mixed.run(benchmark=benchmark)
    with pytest.raises(Refused, match="is small"):
        mixed.run(benchmark=benchmark, only="a")


def test_a_prediction_leaves_out_small_models_and_says_so(tmp_path: Path, command: Any) -> None:
    project = Project(tmp_path)
    full = ["a,a,480p_t2v_distilled"]
    words = ("prompts.csv", "--dry-run", "runtime.card=h200", "model.weights=random")
    project.write("id,prompt,model", *full)
    alone = command(*words).out.splitlines()

    project.write("id,prompt,model", "t,t,tiny_t2v", *full, "d,d,demo_t2v", "e,e,demo_t2v")
    mixed = command(*words).out.splitlines()
    project.write(
        "id,prompt,model,num_frames", *(f"{x},121" for x in full), "b,b,,61", "t,t,tiny_t2v,"
    )
    sizes = command(*words).out.splitlines()

    def told(lines: list[str], word: str) -> str:
        return next(line for line in lines if word in line)

    time, _, rest = told(mixed, "Time: ").partition(", without 3 clips of tiny_t2v and demo_t2v")
    assert time == told(alone, "Time: ").split(", done")[0]
    assert rest.startswith(" (some seconds each), done")
    stages = [told(lines, "Stages: a clip").split(", last write")[0] for lines in (mixed, alone)]
    assert stages[0] == stages[1]
    assert (
        told(sizes, "s per warm clip, denoise").lstrip().startswith("1 x 480p_t2v_distilled 480x")
    )
    with (tmp_path / "outputs" / "prompts" / "plan.csv").open(newline="") as file:
        plan = {row["row_id"]: row["predicted_denoise_seconds"] for row in csv.DictReader(file)}
    assert (plan["t"], float(plan["a"]) > 1) == ("", True)


# -- a sweep ----------------------------------------------------------------------------------


def test_a_swept_model_that_every_row_beats_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,tiny_t2v", "b,b,demo_t2v")

    with pytest.raises(Refused, match=r"model: every row of .* has its own model"):
        planned(project, swept=("model",))
    found = planned(project, swept=("model.target_size",))
    assert "Swept model.target_size: without effect in 1 of 2 rows" in "\n".join(found.lines)


def test_a_swept_model_that_some_rows_beat_is_counted(project: Project) -> None:
    lines = "\n".join(planned(project, swept=("model", "override.fps")).lines)

    assert "Swept model: without effect in 4 of 5 rows, which have their own model" in lines


@pytest.mark.parametrize("weights", [Weights.random, Weights.pretrained])
def test_swept_weights_hold_for_full_size_models_of_rows(tmp_path: Path, weights: Weights) -> None:
    project = Project(tmp_path)
    config = project.config(model=replace(model_options()["480p_t2v"], weights=weights))
    project.write("id,prompt,model", "a,a,480p_t2v_distilled", "b,b,480p_t2v_4step")
    whole = prepare(config, (), "sweep", None, ("model.weights",))
    project.write("id,prompt,model", "a,a,480p_t2v_distilled", "b,b,demo_t2v")
    partly = prepare(config, (), "sweep", None, ("model.weights",))

    assert "Swept" not in "\n".join(whole.manifest.notes)
    assert "Swept model.weights: without effect in 1 of 2" in "\n".join(partly.manifest.notes)


# -- what a run stores ------------------------------------------------------------------------


def stored(project: Project) -> dict[str, Any]:
    (folder,) = project.run_dir.runs.iterdir()
    return dict(yaml.safe_load((folder / "config.yaml").read_text()))


def test_a_run_stores_each_option_and_logs_it(project: Project) -> None:
    assert project.run() == 0

    models = stored(project)["models"]
    assert list(models) == ["demo_i2v", "demo_t2v", "tiny_t2v"]
    assert models["demo_i2v"]["task"] == "i2v"
    by_row = {r["row_id"]: r for r in project.records()}
    assert {row: r["model"] for row, r in by_row.items()} == {
        "cat": "tiny_t2v",
        "owl": "tiny_t2v",
        "dog": "demo_t2v",
        "bee": "demo_t2v",
        "fox": "demo_i2v",
    }
    assert models["demo_t2v"]["revision"] == by_row["dog"]["revision"]


def test_a_run_without_the_column_stores_no_options(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "a,a")
    assert project.run() == 0

    assert stored(project)["models"] == {}


def test_a_run_resumes_with_its_options(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    config = project.config(
        sampling=SamplingConfig(seeds=0, num_inference_steps=7),
        preset_sampling=["num_inference_steps"],
    )
    changes = {"sampling": config.sampling, "preset_sampling": config.preset_sampling}
    assert project.run(**changes) == 0
    project.did()

    again = latest_settings(project.run_dir)

    assert again.preset_sampling == ["num_inference_steps"]
    assert again.models["demo_t2v"] == stored_option(project, "demo_t2v")
    assert planned(project, again).todo == ()


def stored_option(project: Project, name: str) -> Any:
    revision = stored(project)["models"][name]["revision"]
    return replace(model_options()[name], revision=revision)


def test_a_stored_option_never_decides_what_is_fetched(project: Project) -> None:
    assert project.run() == 0
    (folder,) = project.run_dir.runs.iterdir()
    text = (folder / "config.yaml").read_text()
    values = yaml.safe_load(text)
    values["models"]["demo_t2v"] |= {"repo": "someone/else", "weights": "pretrained"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))

    text = "the option demo_t2v has repo=someone/else, and that of this version repo=null. "
    with pytest.raises(Refused, match=re.escape(text + "That decides what is fetched")) as refused:
        latest_settings(project.run_dir)
    assert "the last run used" not in str(refused.value)
    assert f"hv15-batch resume={project.run_dir.path} --config-dir=DIR. If the" in str(
        refused.value
    )
    assert "demo_t2v" not in latest_settings(project.run_dir, [CONFIG_DIR]).models


def test_a_stored_option_that_this_version_lacks_was_one_of_the_users(
    tmp_path: Path, own: Path
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,mine")
    assert project.run(config_dir=str(own)) == 0

    with pytest.raises(Refused, match="the last run used --config-dir, which decides"):
        latest_settings(project.run_dir)


@pytest.mark.parametrize("place", ["models", "models.demo_t2v", "model.loras", "sampling"])
def test_a_text_in_the_place_of_a_section_is_refused(project: Project, place: str) -> None:
    assert project.run() == 0
    (folder,) = project.run_dir.runs.iterdir()
    values = stored(project)
    *sections, name = place.split(".")
    holder = values
    for section in sections:
        holder = holder[section]
    holder[name] = "${oc.env:HOME}"
    (folder / "config.yaml").write_text(yaml.safe_dump(values))

    with pytest.raises(Refused, match=r"config\.yaml: not readable as settings of this version"):
        latest_settings(project.run_dir)


def test_what_is_remembered_of_weights_may_be_in_several_options(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("480p_t2v", "480p_t2v_4step")
    plain, other = (replace(model_options()[name], revision=None) for name in names)
    hub = replace(other.transformer_hub, sha256="b" * 64)
    newest = project.config(model=plain, models={"480p_t2v": plain})
    before = {"480p_t2v": replace(plain, revision="a" * 40)}
    before["480p_t2v_4step"] = replace(other, revision="c" * 40, transformer_hub=hub)
    runs = [newest, project.config(models=before)]
    monkeypatch.setattr(stored_module, "earlier_settings", lambda _: runs)

    found = remembered_weights(project.run_dir, other, True, True)

    assert (found.revision, found.transformer_hub.sha256) == ("a" * 40, "b" * 64)


def test_other_settings_for_done_clips_of_any_model_are_refused(project: Project) -> None:
    assert project.run() == 0

    with pytest.raises(Refused, match="num_inference_steps 2 -> 4; 7 clips"):
        project.run(override=SamplingConfig(num_inference_steps=4))
    assert project.run() == 0


def test_a_cell_that_changes_makes_a_new_clip_of_its_row_alone(project: Project) -> None:
    assert project.run() == 0
    text = project.manifest.read_text().replace("bee,a bee,demo_t2v", "bee,a bee,tiny_t2v")
    project.manifest.write_text(text)
    project.did()

    assert project.run() == 0

    assert len(project.did()) == 2
    states = {(p["row_id"], p["state"]) for p in project.plan()}
    assert {state for _, state in states} == {"done"}


# -- own options ------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text(
        "defaults: [demo_t2v, _self_]\nname: mine\ndefault_sampling: {num_inference_steps: 5}\n"
    )
    return folder


def test_a_row_names_an_option_of_the_users_folder(tmp_path: Path, own: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,mine", "b,b,demo_t2v")
    config = project.config(config_dir=str(own))

    assert rows(project, config)["a"].num_inference_steps == 5
    assert project.run(config_dir=str(own)) == 0

    assert stored(project)["models"]["mine"]["default_sampling"]["num_inference_steps"] == 5
    assert to_type_again(replace(config, models={"mine": model_options()["demo_i2v"]})) == []
    assert "config_dir" not in stored(project)


def test_the_folder_is_absolute_and_known_to_the_run(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own.parent)

    config = compose_one(["model=demo_t2v"], "conf").config

    assert config.config_dir == str(own)
    check_config(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [demo_t2v]\n", "name: demo_t2v, by which it is logged; write name: mine"),
        (
            "name: mine\nstops: 3\n",
            r"^[^:]*prompts\.csv:2: model=mine: [^:]*/conf/model/mine\.yaml: there is no setting "
            r"model\.stops.*[^.]\.$",
        ),
        (
            "name: mine\nstops: [\n",
            r"^[^:]*prompts\.csv:2: model=mine: [^:]*/conf/model/mine\.yaml:3: expected the node "
            r".*; correct the YAML there\.$",
        ),
    ],
)
def test_an_own_option_with_a_fault_is_refused_by_its_file(
    text: str, message: str, tmp_path: Path, own: Path
) -> None:
    (own / "model" / "mine.yaml").write_text(text)
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,mine")

    with pytest.raises(Refused, match=message):
        planned(project, project.config(config_dir=str(own)))


def test_a_cell_that_could_mean_two_options_is_refused(
    tmp_path: Path, own: Path, command: Any
) -> None:
    text = "defaults: [tiny_t2v, _self_]\nname: tiny_t2v\n"
    (own / "model" / "other.yaml").write_text(text + "default_sampling: {num_frames: 5}\n")
    project = Project(tmp_path)
    words = ("prompts.csv", "--config-dir=conf", "--dry-run")

    project.write("id,prompt,model", "a,a,", "b,b,demo_t2v")
    fits = command(*words, "model=other")
    project.write("id,prompt,model", "a,a,tiny_t2v", "b,b,demo_t2v")
    refused = command(*words, "model=other")
    ours = command(*words, "model=tiny_t2v")

    assert (fits.code, ours.code, refused.code) == (0, 0, 2)
    assert " 5 frames" in fits.out
    assert " 5 frames" not in ours.out
    assert refused.err.startswith(
        "prompts.csv:2: model=tiny_t2v: model=other of the command says name: tiny_t2v in its "
        "file, so this cell could mean either; write name: other into other.yaml."
    )


def test_a_resume_knows_the_option_whose_file_says_another_name(
    tmp_path: Path, own: Path, command: Any
) -> None:
    text = "defaults: [tiny_t2v, _self_]\nname: tiny_t2v\n"
    (own / "model" / "other.yaml").write_text(text + "default_sampling: {num_frames: 5}\n")
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,")
    config = compose_one(["model=other"], str(own)).config
    assert project.run(model=config.model, model_option=config.model_option) == 0

    project.write("id,prompt,model", "a,a,", "b,b,tiny_t2v")
    refused = command(f"resume={project.run_dir.path}", "--dry-run")
    words = (f"resume={project.run_dir.path}", "model=tiny_t2v", "add=true", "--dry-run")
    typed = command(*words)

    assert refused.code == 2
    assert "write name: other into other.yaml" in refused.err
    assert (typed.code, typed.err) == (0, "")


def test_a_refusal_of_other_settings_names_the_folder_that_a_resume_needs(
    tmp_path: Path, own: Path
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,model", "a,a,mine", "b,b,demo_t2v")
    assert project.run(config_dir=str(own)) == 0
    changes = {"config_dir": str(own), "override": SamplingConfig(num_inference_steps=4)}

    with pytest.raises(Refused) as refused:
        project.run(**changes)

    how = f"hv15-batch resume={project.run_dir.path} (type again in any case: --config-dir)."
    assert f"To resume with those: {how} To keep both" in str(refused.value)


# -- workers ----------------------------------------------------------------------------------


class Dying(FakeExecutor):
    """Steps down while it renders a dog, and dies of an owl."""

    specs: list[ExecutorSpec] = []  # noqa: RUF012

    def __init__(self, spec: ExecutorSpec) -> None:
        super().__init__(spec)
        self.specs.append(spec)

    def submit(self, job: Job) -> None:
        if job.clip.row_id == "dog":
            self._events.append(Note("less memory", OffloadKind.stream))
        super().submit(job)


def test_a_profile_that_was_left_is_that_of_its_model(tmp_path: Path) -> None:
    Dying.specs.clear()
    project = Project(tmp_path)
    project.write("id,prompt,model", "cat,a cat,", "dog,a dog,demo_t2v", "owl,die,demo_t2v")

    assert project.run(Dying) == 3

    kinds = [{n: m.offload.name for n, m in spec.models.items()} for spec in Dying.specs]
    assert kinds[0] == {"tiny_t2v": "resident", "demo_t2v": "resident"}
    assert kinds[-1] == {"tiny_t2v": "resident", "demo_t2v": "stream"}
    lost = [r for r in project.records() if r["row_id"] == "owl"][-1]
    assert (lost["model"], lost["task"]) == ("demo_t2v", "t2v")
    assert "demo_t2v" in lost["repo"]


# -- bad clips --------------------------------------------------------------------------------


class ByModel(FakeRenderer):
    """Fails each clip of the demo model."""

    def render(self, job: Job, emit: Any) -> Any:
        if job.clip.settings.model == "demo_t2v":
            settings = replace(job.clip.settings, prompt="fail")
            job = replace(job, clip=replace(job.clip, settings=settings))
        return super().render(job, emit)


def failing(spec: ExecutorSpec) -> FakeExecutor:
    return FakeExecutor(spec, ByModel)


def test_a_bad_model_is_given_up_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    bad = [f"d{n},dog {n},demo_t2v" for n in range(6)]
    project.write("id,prompt,model", *bad, "a,a cat,", "b,an owl,")

    code = project.run(failing, retry=RetryConfig(max_consecutive_bad=2))

    assert code == 3
    done = [(r["row_id"], r["status"]) for r in project.records()]
    assert [row for row, status in done if status == "ok"] == ["a", "b"]
    assert [row for row, status in done if status == "failed"] == ["d0", "d1", "d2"]
    shown = capsys.readouterr().out
    assert "model demo_t2v is given up, and 3 clips with it: 2 clips in a row failed" in shown
    assert "3 of 8 clips failed, 3 given up; resume with" in "\n".join(project.said)
    left = [p["row_id"] for p in project.plan() if p["state"] == "new"]
    assert left == ["d3", "d4", "d5"]


def test_the_run_stops_once_all_models_are_given_up(tmp_path: Path) -> None:
    project = Project(tmp_path)
    bad = [f"{m}{n},fail {n},{m}" for m in ("demo_t2v", "tiny_t2v") for n in range(5)]
    project.write("id,prompt,model", *bad)

    assert project.run(retry=RetryConfig(max_consecutive_bad=2)) == 4

    assert len(project.records()) == 6
    end = "model tiny_t2v is given up, and 2 clips with it: 2 clips in a row failed or are suspect"
    assert end in "\n".join(project.said)


def test_a_model_whose_clips_were_all_tried_was_not_given_up(tmp_path: Path) -> None:
    project = Project(tmp_path)
    tried = ["a,a,demo_t2v", "b,fail b,demo_t2v", "c,fail c,demo_t2v"]
    project.write("id,prompt,model", *tried, *[f"d{n},fail {n}," for n in range(5)])

    assert project.run(retry=RetryConfig(max_consecutive_bad=2)) == 3


def test_bad_clips_of_two_models_are_not_added_up(tmp_path: Path) -> None:
    project = Project(tmp_path)
    rows = ["a,a,demo_t2v", "b,fail b,demo_t2v", "c,fail c,", "d,d,", "e,fail e,", "f,f,"]
    project.write("id,prompt,model", *rows)

    assert project.run(retry=RetryConfig(max_consecutive_bad=2)) == 3

    assert len(project.records()) == 6


def test_a_bad_lora_gives_up_its_own_clips_alone(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt,loras", *[f"d{n},fail {n},bad.safetensors" for n in range(4)], "a,a,")
    saved_lora(project.folder / "bad.safetensors", lora_of("tiny_t2v"))

    assert project.run(retry=RetryConfig(max_consecutive_bad=2)) == 3

    assert [r["row_id"] for r in project.records()] == ["d0", "d1", "d2", "a"]
    assert "model tiny_t2v with LoRA bad.safetensors is given up" in capsys.readouterr().out


# -- weights ----------------------------------------------------------------------------------


def test_prefetch_with_a_manifest_fetches_each_model_of_its_rows(project: Project) -> None:
    said: list[str] = []

    assert prefetch(project.config(), said.append) == 0

    assert [line.split(" is built")[0] for line in said] == [
        "model=tiny_t2v",
        "model=demo_t2v",
        "model=demo_i2v",
    ]


def test_a_lora_is_compared_with_the_model_of_its_row(tmp_path: Path) -> None:
    project = Project(tmp_path)
    saved_lora(tmp_path / "x.safetensors", lora_of("tiny_t2v"))
    project.write("id,prompt,model,loras", "a,a,,x.safetensors", "b,b,demo_t2v,x.safetensors")

    with pytest.raises(ManifestError) as caught:
        planned(project)

    (fault,) = caught.value.faults
    assert ":3: loras=x.safetensors: " in fault


# -- ways that fit a deadline -----------------------------------------------------------------


NIGHT = ("p.csv", "--dry-run", "runtime.card=rtx_4090")


def offered(text: str) -> dict[str, str]:
    """What is offered and what it would take."""
    return dict(re.findall(r"^Cheaper: (.*?) would take (.*?), done ", text, re.MULTILINE))


@pytest.mark.parametrize("only", [(), ("only=a1",)])
def test_rows_that_name_the_commands_own_model_keep_it_in_each_way(
    command: Callable[..., Answer], tmp_path: Path, only: tuple[str, ...]
) -> None:
    rows = ["a1,a cat,480p_t2v_distilled", "a2,a dog,480p_t2v", *(f"b{n},b {n}," for n in range(9))]
    (tmp_path / "p.csv").write_text("\n".join(["id,prompt,model", *rows]), encoding="utf-8")
    limit = "time_limit=60s" if only else "time_limit=75min"

    answer = command(*NIGHT, *only, limit)

    assert answer.code == 0, answer.err
    found = offered(answer.out)
    assert only or "model=480p_t2v_4step" in found
    for words, seconds in found.items():
        typed = command(*NIGHT, *only, limit, *words.split()).out
        assert f"Time: {seconds} in all" in typed


def test_a_way_is_predicted_with_what_it_would_compile(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    """One clip of the first model is too little to compile for, and 100 of the other are not."""
    rows = ["f,a fox,480p_t2v_4step", *(f"b{n},a fox {n}," for n in range(100))]
    (tmp_path / "p.csv").write_text("\n".join(["id,prompt,model", *rows]), encoding="utf-8")

    answer = command(*NIGHT, "time_limit=8h")

    found = offered(answer.out)
    assert {"override.num_frames=61", "model=480p_t2v_4step"} <= set(found)
    for words, seconds in found.items():
        typed = command(*NIGHT, "time_limit=8h", *words.split()).out
        assert f"Time: {seconds} in all" in typed
        assert ": 101 of 101 clips" in typed


def test_a_recipe_is_not_offered_to_rows_of_other_models(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    rows = [f"b{n},a fox {n},480p_t2v" for n in range(20)]
    rows += [f"c{n},a fox {n}," for n in range(2)]
    (tmp_path / "p.csv").write_text("\n".join(["id,prompt,model", *rows]), encoding="utf-8")

    answer = command(*NIGHT, "time_limit=2h")

    assert "Until " in answer.out
    assert not any("num_inference_steps" in words for words in offered(answer.out))


def test_a_way_that_the_disk_has_no_room_for_says_what_is_lacking(
    command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"b{n},a fox {n}" for n in range(200)]
    (tmp_path / "p.csv").write_text("\n".join(["id,prompt", *rows]), encoding="utf-8")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def said(free_gib: int) -> str:
        free = free_gib * GIB
        monkeypatch.setattr(_preflight, "free_disk_bytes", lambda _: free)
        return command(*NIGHT, "time_limit=9h").out

    lacking, roomy, full = said(43), said(60), said(2)

    line = next(x for x in lacking.splitlines() if x.startswith("Cheaper: model=480p_t2v_4step "))
    assert "A run would be refused" not in lacking
    assert "; refused here until there is room: run_dir=" in line
    assert "43.00 GiB free on its disk" in line
    assert "15.52 GiB of the converted transformer; quality: 4 steps" in line
    assert lacking.count("until there is room") == 1  # the other ways need no more than the command
    assert "model=480p_t2v_4step" in offered(roomy)
    assert "until there is room" not in roomy
    assert "A run would be refused" in full  # which says it once for all
    assert "until there is room" not in full


def test_no_compilation_is_offered_where_nothing_can_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", *(f"b{n},a fox {n}" for n in range(100)))
    here = replace(read_machine(), gpus=(CARD,))
    monkeypatch.setattr(outlook, "read_machine", lambda: here)
    random = replace(model_options()["480p_t2v"], weights=Weights.random)
    config = replace(project.config(), model=random)

    def said(fault: str | None) -> list[str]:
        for module in (compilation, _preflight):
            monkeypatch.setattr(module, "compiler_fault", lambda: fault)
        late = Deadline("time_limit=43h", Clock().now() + timedelta(hours=43))
        asked = prepare(config, (), None)
        return [x for x in make_plan(asked, Rules(Clock(), (late,))).lines if "Cheaper" in x]

    config = replace(config, runtime=replace(config.runtime, compile=False))
    assert any("runtime.compile=true" in x for x in said(None))
    found = said("it needs a C compiler")
    assert any("sampling.cache=static" in x for x in found)
    assert not any("runtime.compile=true" in x for x in found)
