"""`runtime.compile=auto`: what decides it, and what keeps it for the runs of a directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Answer
from fakes.forecasts import SETTINGS, config, machine, row
from fakes.planned import clip_of, planned_clip
from fakes.runs import read_csv

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import Config
from hv15_batch.forecast import compilation as decision
from hv15_batch.forecast.compilation import Compilation, decide_compilation
from hv15_batch.forecast.forecast import make_forecast
from hv15_batch.machine.machine import Machine
from hv15_batch.model import attention
from hv15_batch.model.variant import Linear, Weights
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.record import ClipRecord
from hv15_batch.rundir.decided import write_compile
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir


@pytest.fixture(autouse=True)
def with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "compiler_fault", lambda: None)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "out" / "prompts")
    made.create()
    return made


def clips(count: int, settings: ClipSettings = SETTINGS) -> list[PlannedClip]:
    return [planned_clip(clip_of(n, replace(settings, seed=n))) for n in range(count)]


def decided(
    run_dir: RunDir,
    todo: Sequence[PlannedClip],
    asked: Config | None = None,
    here: Machine | None = None,
) -> Compilation:
    return decide_compilation(asked or config(), todo, here or machine(24), run_dir)


def on_card(name: str) -> Config:
    asked = config()
    asked.runtime.card = name
    return asked


def fewest(run_dir: RunDir, asked: Config, settings: ClipSettings = SETTINGS) -> int:
    """Return from how many clips on it is compiled, and check that it is so from there on."""
    found = [decided(run_dir, clips(n, settings), asked).is_on for n in range(1, 20)]
    first = found.index(True)
    assert all(found[first:])
    return first + 1


def test_it_compiles_from_where_the_card_saves_what_compiling_takes(run_dir: RunDir) -> None:
    """Seven clips of 8 steps were measured on one H100; the cost model says it for each card."""
    for card in ("h200", "rtx_4090"):
        asked, few = on_card(card), fewest(run_dir, on_card(card))
        plain, compiled = (
            make_forecast(Compilation(way).in_config(asked), clips(1), machine(24), run_dir.log)
            for way in (False, True)
        )
        assert plain is not None
        assert compiled is not None
        saved = plain.clip_seconds(clips(1)[0]) - compiled.clip_seconds(clips(1)[0])
        assert (few - 1) * saved <= compiled.start.compile_seconds < few * saved

    assert 5 <= fewest(run_dir, on_card("h200")) <= 8
    fifty = replace(SETTINGS, num_inference_steps=50)
    assert fewest(run_dir, on_card("h200"), fifty) == 1
    assert fewest(run_dir, on_card("h200"), replace(SETTINGS, num_frames=61)) > 8


def test_where_forwards_wait_for_the_bus_compiling_saves_nothing(run_dir: RunDir) -> None:
    asked = on_card("rtx_4060_ti")
    asked.offload.kind = type(asked.offload.kind).stream_disk
    short = replace(SETTINGS, height=192, width=320, num_frames=33)

    found = decided(run_dir, clips(200, short), asked)

    assert not found.is_on
    assert found.words == (
        "Compilation: no; it would take about 22 s and save about 0 s in the manifest's 200 clips"
    )


def test_all_of_the_manifest_counts_done_or_not_and_repetitions_too(run_dir: RunDir) -> None:
    done = [replace(p, state=State.done, has_result=True) for p in clips(60)]
    saved = [replace(p, has_latents=True, use_latents=True) for p in clips(60)]
    two = clips(2)
    repeated = on_card("h200")
    repeated.benchmark.repeat = 30

    for todo in (done, saved):
        found = decided(run_dir, todo, on_card("h200"))
        assert found.is_on
        assert " in the manifest's 60 clips; quality: PSNR " in found.words
    assert not decided(run_dir, two, on_card("h200")).is_on
    assert decided(run_dir, two, repeated).is_on


def test_what_was_typed_holds_and_says_nothing(run_dir: RunDir) -> None:
    write_compile(run_dir, config(), True)
    for typed, is_on in ((True, True), (False, False), ("true", True), ("False", False)):
        asked = config()
        asked.runtime.compile = typed
        assert decided(run_dir, clips(60), asked) == Compilation(is_on)


def test_on_the_cpu_and_without_a_compiler_nothing_is_compiled_or_stored(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = config()
    small.model = replace(small.model, weights=Weights.tiny, repo=None)

    assert decided(run_dir, clips(200), small) == Compilation(False, "Compilation: no, on the CPU")
    monkeypatch.setattr(decision, "compiler_fault", lambda: "it needs a C compiler: sudo apt ...")
    found = decided(run_dir, clips(200))
    assert found == Compilation(False, "Compilation: no; it needs a C compiler: sudo apt ...")
    assert decided(run_dir, clips(200), on_card("rtx_4090")).is_on  # a card of another machine


@pytest.mark.parametrize("name", ["sage", "_flash_3", "comfy_int8", "sage_hub", "xformers"])
def test_a_kernel_from_outside_torch_is_compiled_like_one_that_auto_takes(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The compiler sees it as one operation."""
    monkeypatch.setattr(attention, "package_fault", lambda _: None)  # all are installed
    auto, asked = on_card("h200"), on_card("h200")
    asked.runtime.attention_backend = name

    assert attention.auto_kernel((9, 0)) == "_flash_3"
    for count, is_on in ((200, True), (1, False)):
        for each in (auto, asked):
            found = decided(run_dir, clips(count), each)
            assert (found.is_on, found.is_new) == (is_on, True), found.words


def test_an_unknown_card_is_reckoned_as_the_example(run_dir: RunDir) -> None:
    here = machine(24)
    unknown = replace(here, gpus=(replace(here.gpus[0], name="NVIDIA RTX 7090"),))

    found = decided(run_dir, clips(200), here=unknown)

    assert found.is_on
    assert (
        ", predicted for the rtx_4090, because no figures of this card are known; quality: "
        in found.words
    )


def test_a_decision_is_kept_whatever_becomes_of_manifest_and_card(run_dir: RunDir) -> None:
    other = config()
    other.model = replace(other.model, name="480p_t2v_distilled")
    write_compile(run_dir, config(), False)
    write_compile(run_dir, other, True)

    found = decided(run_dir, clips(200))

    assert found == Compilation(
        False,
        "Compilation: no, as decided for this run directory; runtime.compile=true changes it",
    )
    assert decided(run_dir, clips(1), other).is_on


def test_a_decision_holds_for_its_weights_and_linear_modules_only(run_dir: RunDir) -> None:
    fp8, pretrained = config(), config()
    fp8.runtime.linear = Linear.fp8
    pretrained.model = replace(pretrained.model, weights=Weights.pretrained)
    write_compile(run_dir, config(), False)

    assert not decided(run_dir, clips(200)).is_on
    for other in (fp8, pretrained):
        found = decided(run_dir, clips(200), other)
        assert found.is_on
        assert found.is_new
    write_compile(run_dir, fp8, True)
    assert not decided(run_dir, clips(200)).is_on
    assert decided(run_dir, clips(1), fp8).is_on


def test_finished_clips_decide_for_their_weights_and_linear_modules_only(run_dir: RunDir) -> None:
    log, fp8 = RunLog(run_dir.log, "r"), config()
    fp8.runtime.linear = Linear.fp8
    for number, linear in enumerate((None, "fp8")):
        done = row(model="480p_t2v", compiled=linear is None, linear=linear)
        log.append(replace(ClipRecord(), **done, settings_sha256=str(number)))

    assert decided(run_dir, clips(1)).is_on
    assert not decided(run_dir, clips(200), fp8).is_on


def test_a_file_of_an_earlier_version_decides_for_16_bits(run_dir: RunDir) -> None:
    run_dir.decided.write_text('{"compile": {"480p_t2v": false}}', encoding="utf-8")
    fp8 = config()
    fp8.runtime.linear = Linear.fp8

    assert not decided(run_dir, clips(200)).is_on
    assert decided(run_dir, clips(200), fp8).is_new
    write_compile(run_dir, config(), True)
    assert decided(run_dir, clips(1)).is_on


@pytest.mark.parametrize("text", ["{", "[]", '{"compile": 3}', '{"compile": {"480p_t2v": "no"}}'])
def test_a_file_that_decides_nothing_is_passed_over(run_dir: RunDir, text: str) -> None:
    run_dir.decided.write_text(text, encoding="utf-8")

    assert decided(run_dir, clips(200)).is_new


@pytest.mark.parametrize("compiled", [True, False])
def test_clips_that_are_done_decide_where_no_decision_is_stored(
    run_dir: RunDir, compiled: bool
) -> None:
    """Those of a version that compiled nothing unasked, or of a run with a typed value."""
    log = RunLog(run_dir.log, "r")
    measured = row(model="480p_t2v", compiled=compiled)
    for status, way in (("ok", compiled), ("failed", not compiled)):
        changes: dict[str, Any] = {"settings_sha256": status, "compiled": way, "status": status}
        log.append(replace(ClipRecord(), **measured | changes))

    found = decided(run_dir, clips(200 if not compiled else 1))

    assert found.is_on is compiled
    assert not found.is_new
    assert ", as in the clips that are done here; " in found.words


def test_the_dry_run_says_the_same_for_a_part_of_the_manifest(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    manifest = tmp_path / "p.csv"
    rows = "".join(f"r{n},a cat {n}\n" for n in range(40))
    manifest.write_text(f"id,prompt\n{rows}", encoding="utf-8")
    typed = (str(manifest), "--dry-run", "runtime.card=h200", "model=480p_t2v_4step")

    def line(*words: str) -> str:
        answer = command(*typed, *words)
        assert answer.code == 0, answer.err
        (found,) = re.findall(r"^Compilation: .*$", answer.out, re.MULTILINE)
        return str(found)

    whole = line()
    assert whole.startswith("Compilation: yes; it takes about 22 s and saves about ")
    assert " in the manifest's 40 clips; quality: PSNR " in whole
    assert line("limit=1") == line("only=r3,r7") == whole


def test_a_clip_has_the_same_id_whatever_is_compiled(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    manifest = tmp_path / "p.csv"
    manifest.write_text("prompt\na cat\n", encoding="utf-8")
    plans = set()
    for word in ("auto", "true", "false"):
        words = ("--dry-run", "runtime.card=h200", f"run_dir={tmp_path / 'out'}")
        assert command(str(manifest), *words, f"runtime.compile={word}").code == 0
        (planned,) = read_csv(tmp_path / "out" / "plan.csv")
        plans.add((planned["clip_id"], planned["settings_sha256"], planned["denoise_sha256"]))
    assert len(plans) == 1


@pytest.mark.parametrize("value", ["maybe", "1", "null", "0.5"])
def test_another_value_is_refused(
    command: Callable[..., Answer], tmp_path: Path, value: str
) -> None:
    answer = command(str(tmp_path / "p.csv"), f"runtime.compile={value}")

    assert answer.code == 2
    allowed = "must not be null" if value == "null" else "must be auto, true or false"
    assert answer.err.startswith(f"runtime.compile={value}: {allowed}")


def test_a_number_of_workers_that_is_no_whole_number_is_refused_with_what_is_allowed(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = command(str(tmp_path / "p.csv"), "dispatch.workers=1.5")
    assert answer.code == 2
    assert answer.err.startswith("dispatch.workers=1.5: must be auto, all or a whole number")


def test_text_in_yaml_is_taken_too(command: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    preset = tmp_path / "experiment" / "mine.yaml"
    (tmp_path / "p.csv").write_text("prompt\na\n", encoding="utf-8")
    preset.write_text("# @package _global_\nruntime:\n  compile: null\n", encoding="utf-8")
    words = ("--config-dir", str(tmp_path), "experiment=mine")
    answer = command(str(tmp_path / "p.csv"), *words)
    assert answer.code == 2
    assert answer.err == (
        "experiment/mine.yaml: runtime.compile=null: must be auto, true or false.\n"
    )
    for text, typed in (("auto", "auto"), ("'true'", "true"), ("false", "false")):
        preset.write_text(f"# @package _global_\nruntime:\n  compile: {text}\n", encoding="utf-8")
        words = ("--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job")
        answer = command(str(tmp_path / "p.csv"), *words)
        assert answer.code == 0, answer.err
        assert re.search(rf"^  compile: '?{typed}'?$", answer.out, re.MULTILINE), answer.out


def test_the_stored_decision_is_plain_json(run_dir: RunDir) -> None:
    write_compile(run_dir, config(), True)

    stored = json.loads(run_dir.decided.read_text(encoding="utf-8"))
    assert stored == {"compile": {"480p_t2v/random/bf16": True}}
