from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import forecasts
from fakes.command import Answer
from fakes.planned import BASE, clip_of, planned_clip

from hv15_batch.config.compose import Job, run_jobs
from hv15_batch.forecast import forecast
from hv15_batch.forecast._eta import Course, course
from hv15_batch.manifest.read import Manifest
from hv15_batch.model.shapes import bucket_size
from hv15_batch.model.variant import ModelConfig
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.run._dry_run import MAX_PROMPT_TOKENS, TEMPLATE_TAIL_TOKENS, print_dry_run
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind, resolve_checkpoint, tiny_root

Command = Callable[..., Answer]
MAX_LINES = 20
"""Of the whole dry run; the last one, where every clip is, comes from the session."""

NO_TEMPLATE = "without the chat template"

HUB = Checkpoint("owner/name", "a" * 40, None, CheckpointKind.hub)


def lines_of(
    planned: Sequence[PlannedClip],
    checkpoint: Checkpoint = HUB,
    beaten: dict[str, int] | None = None,
) -> list[str]:
    manifest = Manifest(Path("/p.csv"), "p.csv", "0" * 64, rows=())
    lines: list[str] = []
    checkpoints = {p.clip.settings.model: checkpoint for p in planned}
    print_dry_run(manifest, planned, checkpoints, beaten or {}, 2**20, lines.append)
    return lines


@pytest.fixture(scope="session")
def tiny_on_disk() -> Path:
    """The checkpoint of tiny_t2v where a command finds it."""
    from hv15_batch.engine.load.tiny import ensure_checkpoint

    return ensure_checkpoint(tiny_t2v(), tiny_root())


def tiny_t2v() -> ModelConfig:
    jobs: list[Job] = []

    def keep(job: Job) -> int:
        jobs.append(job)
        return 0

    run_jobs(["model=tiny_t2v"], keep)
    return jobs[0].config.model


# -- what is shown ----------------------------------------------------------------------------


def test_the_whole_of_a_small_dry_run(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        'prompt,seed\na cat,0..2\n"a sign reads ""OPEN""",\n', encoding="utf-8"
    )

    answer = command("p.csv", "--dry-run")

    assert answer == Answer(
        0,
        "p.csv: 2 rows, 4 clips: 4 new\n"
        "Model: 480p_t2v_distilled, "
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v_distilled at 1abb14f06518, "
        "not on disk: fetched at the start of a run; the times below do not include that\n"
        "     4 x 480x848 121 frames at 24 fps, 50 steps, guidance 1, shift 5 (4 new)\n"
        'Glyphs: quoted text, drawn as lettering, in 1 clip: "OPEN"\n'
        "Tokens: not counted, because the tokenizer is not on disk yet\n"
        "Disk: about 24.1 MiB for the clips to render\n"
        "Time: no known card here; runtime.card=rtx_4090 predicts for that one\n"
        f"Every clip: {tmp_path}/outputs/p/plan.csv\n",
        "",
    )
    assert sorted(p.name for p in (tmp_path / "outputs" / "p").iterdir()) == ["plan.csv"]


def test_what_each_clip_takes_on_a_card_stands_in_the_plan(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt,num_frames\na,121\nb,61\n", encoding="utf-8")

    answer = command("p.csv", "--dry-run", "runtime.card=h200")

    assert answer.code == 0
    with (tmp_path / "outputs" / "p" / "plan.csv").open(encoding="utf-8", newline="") as file:
        long, short = csv.DictReader(file)
    # One H200: 3.0 and 1.06 s a forward, 50 of them; 2.04 s for decoding 121 frames.
    assert float(long["predicted_denoise_seconds"]) == pytest.approx(150, rel=0.1)
    assert float(short["predicted_denoise_seconds"]) == pytest.approx(53, rel=0.1)
    assert float(long["predicted_decode_seconds"]) == pytest.approx(2.2, rel=0.1)


def test_the_course_on_several_cards_is_worked_out_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na\nb\nc\n", encoding="utf-8")
    worked_out: list[int] = []

    def counted(work: Any, *arguments: Any) -> Course:
        worked_out.append(len(work))
        return course(work, *arguments)

    monkeypatch.setattr(forecast, "course", counted)

    words = ("dispatch.workers=2", "runtime.card=rtx_4090", "until=07:00", "runtime.compile=false")
    answer = command("p.csv", "--dry-run", *words)

    assert answer.code == 0
    assert "Workers: 2 x " in answer.out
    assert worked_out == [3]


def test_the_course_groups_by_all_that_a_worker_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "course", lambda work, *rest: (work, rest))
    settings = [BASE, replace(BASE, loras=(("a" * 64, 1.0),)), replace(BASE, linear="int8")]
    todo = [planned_clip(clip_of(n, each)) for n, each in enumerate(settings)]
    here = forecasts.machine(24)
    found = forecast.make_forecast(forecasts.config("stream"), todo, here, tmp_path)
    assert found is not None

    work, (_, load_seconds, *_) = replace(found, num_workers=2).course(todo)

    plain, lora, int8 = (group for group, _ in work)
    assert len({plain, lora, int8}) == 3
    assert load_seconds(plain, lora) == 0, "LoRAs are set in seconds"
    assert load_seconds(None, plain) == load_seconds(lora, int8) > 0


def test_thirty_settings_fit_the_screen_and_every_row_is_in_the_table(
    command: Command, tmp_path: Path
) -> None:
    rows = [f"prompt {n},{4 * n + 1}" for n in range(30)]
    (tmp_path / "p.csv").write_text("prompt,num_frames\n" + "\n".join(rows), encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v", "--dry-run")

    lines = answer.out.splitlines()
    assert (answer.code, answer.err) == (0, "")
    assert len(lines) <= MAX_LINES
    assert lines[6] == "    26 x 26 more settings"
    with (tmp_path / "outputs" / "p" / "plan.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prompt"] for row in table] == [f"prompt {n}" for n in range(30)]
    assert [int(row["num_frames"]) for row in table] == [4 * n + 1 for n in range(30)]


def test_one_more_reason_is_no_reasons(tiny_on_disk: Path) -> None:
    clip = clip_of(1, BASE, off_recipe=True)
    planned = [
        planned_clip(clip, State.changed, f"num_inference_steps 50 -> {n}") for n in range(3)
    ]
    lines = lines_of(planned, resolve_checkpoint(tiny_t2v()))
    assert "     1 for 1 more reason" in lines


def test_the_longest_dry_run_is_twenty_lines(tiny_on_disk: Path) -> None:
    planned = [
        planned_clip(
            clip_of(
                n,
                dataclasses.replace(BASE, num_frames=4 * n + 1, prompt=f'"{n}" ' + "long " * 400),
                off_recipe=True,
            ),
            State.changed,
            f"num_inference_steps 50 -> {n}",
        )
        for n in range(30)
    ]
    names = ("num_frames", "fps", "flow_shift", "guidance_scale", "num_inference_steps", "seeds")
    checkpoint = resolve_checkpoint(tiny_t2v())

    lines = lines_of(planned, checkpoint, dict.fromkeys(names, 3))

    # The forecast has three lines, one more for a deadline, and the table's path one.
    assert len(lines) == MAX_LINES - 5
    assert lines[7:] == [
        "     1 changed: num_inference_steps 50 -> 0",
        "     1 changed: num_inference_steps 50 -> 1",
        "    28 for 28 more reasons",
        "Rows use their own value: "
        + ", ".join(f"sampling.{name} in 3 rows" for name in names)
        + "; "
        + ", ".join(f"override.{name}" for name in names)
        + " would replace it",
        'Glyphs: quoted text, drawn as lettering, in 30 clips: "0", "1", "2" and 27 more',
        "Off the checkpoint's recipe: 30 clips (runtime.allow_off_recipe)",
        lines[13],
        "Disk: about 1.0 MiB for the clips to render",
    ]
    assert lines[13].endswith(
        "WARNING: 30 clips with over 995; the model never sees the rest; "
        "the first is row0 in line 2"
    )


def test_settings_are_grouped_largest_first_with_their_states() -> None:
    short = dataclasses.replace(BASE, num_frames=1, num_inference_steps=1, fps=23.976)
    planned = [
        planned_clip(clip_of(0, short), State.retry, "failed before"),
        planned_clip(clip_of(1, BASE), State.done),
        planned_clip(clip_of(2, BASE)),
    ]

    lines = lines_of(planned)

    assert lines[0] == "p.csv: 0 rows, 3 clips: 1 done, 1 new, 1 retry"
    assert lines[2:5] == [
        "     2 x 480x848 121 frames at 24 fps, 50 steps, guidance 1, shift 5 (1 done, 1 new)",
        "     1 x 480x848 1 frame at 23.976 fps, 1 step, guidance 1, shift 5 (1 retry)",
        "     1 retry: failed before",
    ]


def test_a_reason_of_any_length_stays_on_its_line() -> None:
    [*_, line, _, _] = lines_of([planned_clip(clip_of(0, BASE), State.changed, "a\nb " * 200)])

    assert line.startswith("     1 changed: a b a b ")
    assert line.endswith("…")
    assert len(line) < 200


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        (
            HUB,
            "owner/name at aaaaaaaaaaaa, not on disk: fetched at the start of a run; the "
            "times below do not include that",
        ),
        (
            dataclasses.replace(HUB, revision=None),
            "owner/name at its newest revision, not on disk: fetched at the start of a run; "
            "the times below do not include that",
        ),
        (
            dataclasses.replace(HUB, folder=Path("/nowhere")),
            "owner/name at aaaaaaaaaaaa, on disk",
        ),
        (
            Checkpoint("/mine", "b" * 64, Path("/mine"), CheckpointKind.local),
            "/mine at bbbbbbbbbbbb, on disk",
        ),
        (
            Checkpoint("owner/name", "b" * 64, None, CheckpointKind.random),
            "random weights: nothing is downloaded, and the clips are noise",
        ),
        (
            Checkpoint("/tiny", "b" * 64, None, CheckpointKind.tiny),
            "built on this machine in seconds: the clips are noise on purpose",
        ),
    ],
)
def test_where_the_weights_come_from_is_said(checkpoint: Checkpoint, words: str) -> None:
    assert lines_of([planned_clip(clip_of(0, BASE))], checkpoint)[1] == (
        f"Model: 480p_t2v_distilled, {words}"
    )


def test_nothing_selected_is_said(command: Command, tmp_path: Path) -> None:
    assert lines_of([]) == ["p.csv: 0 rows, 0 clips: none"]


# -- tokens and glyphs ------------------------------------------------------------------------


def test_tokens_are_counted_where_the_tokenizer_is_on_disk(
    tiny_on_disk: Path, command: Command, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    prompts = ["a cat", "雨后的花园", 'a sign reads "OPEN"']
    (tmp_path / "p.txt").write_text("\n".join(prompts), encoding="utf-8")

    answer = command("p.txt", "model=tiny_t2v", "--dry-run")

    tokenizer = AutoTokenizer.from_pretrained(tiny_on_disk / "tokenizer")
    expected = [len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in prompts]
    assert f"Tokens: at most {max(expected)} in a prompt, {NO_TEMPLATE}\n" in answer.out
    with (tmp_path / "outputs" / "p" / "plan.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["num_prompt_tokens"]) for row in table] == expected
    assert [row["glyph_text"] for row in table] == ["", "", "OPEN"]


def test_a_prompt_of_too_many_tokens_is_warned_about(
    tiny_on_disk: Path, command: Command, tmp_path: Path
) -> None:
    limit = MAX_PROMPT_TOKENS - TEMPLATE_TAIL_TOKENS
    # The tiny tokenizer knows bytes: one token a letter.
    (tmp_path / "p.txt").write_text(f"{'x' * limit}\n{'y' * (limit + 1)}\n", encoding="utf-8")

    answer = command("p.txt", "model=tiny_t2v", "--dry-run")

    [line] = [line for line in answer.out.splitlines() if line.startswith("Tokens")]
    assert line.startswith(
        f"Tokens: at most 996 in a prompt, {NO_TEMPLATE}; WARNING: 1 clip with over 995; the "
        "model never sees the rest; the first is yyyyyyyyyyyyyyyyyyyyyyyy-"
    )
    assert line.endswith(" in line 2")


# -- what a small model was trained on ----------------------------------------------------------


def test_a_demo_model_warns_of_sizes_and_words_that_it_was_not_trained_on(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text(
        "prompt,height,num_frames\n"
        "A cat walks on the grass.,,\n"
        '"A red ball bounces, with the word ""CATS"".",,\n'
        "A red ball,256,49\n",
        encoding="utf-8",
    )

    answer = command("p.csv", "model=demo_t2v", "--dry-run")

    assert answer.code == 0
    assert [line for line in answer.out.splitlines() if line.startswith("WARNING")] == [
        "WARNING: off the recipe of demo_t2v in 1 clip: 49 frames: trained on up to 25, and this "
        "is 2.0 times as long",
        "WARNING: off the recipe of demo_t2v in 1 clip: 256x192 pixels: trained at 128x192",
        'WARNING: words that demo_t2v was not trained on in 1 clip: "cat", "walks"',
    ]


@pytest.mark.parametrize("name", ["demo", "demo_i2v"])
def test_the_manifests_of_the_demonstration_are_what_its_models_were_trained_on(
    command: Command, name: str
) -> None:
    model = "demo_i2v" if name == "demo_i2v" else "demo_t2v"

    answer = command(f"manifests/{name}.csv", f"model={model}", "--dry-run")

    assert answer.code == 0
    assert "WARNING" not in answer.out


# -- precedence -------------------------------------------------------------------------------


def test_a_typed_default_that_some_rows_beat_is_counted(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,num_frames\na,5\nb,\nc,9\n", encoding="utf-8")

    answer = command("p.csv", "model=tiny_t2v", "sampling.num_frames=13", "--dry-run")

    assert (
        "Rows use their own value: sampling.num_frames in 2 rows; "
        "override.num_frames would replace it\n"
    ) in answer.out
    assert [line.split(" frames")[0] for line in answer.out.splitlines()[2:5]] == [
        "     1 x 96x160 5",
        "     1 x 96x160 13",
        "     1 x 96x160 9",
    ]


def test_an_image_to_video_dry_run_shows_the_size_of_the_bucket(
    command: Command, tmp_path: Path, photo: Path
) -> None:
    (tmp_path / "p.csv").write_text(f"prompt,image\na,{photo}\n", encoding="utf-8")

    answer = command("p.csv", "model=480p_i2v_step_distilled", "--dry-run")

    assert (answer.code, answer.err) == (0, "")
    # shown 60x40, so taller than wide by 3:2
    height, width = bucket_size(60, 40, 640)
    assert height > width
    assert (
        f"     1 x {height}x{width} 121 frames at 24 fps, 8 steps, guidance 1, shift 7 (1 new)\n"
        in (answer.out)
    )


def test_a_dry_run_that_is_refused_has_said_what_it_knew_before(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")

    answer = command(
        *("p.csv", "--dry-run", "model=480p_t2v", "runtime.card=rtx_4090"),
        "window=22:00-22:10",
    )

    assert answer.code == 2
    assert answer.out.startswith("p.csv: 1 row, 1 clip: 1 new\n")
    assert answer.err.startswith("window=22:00-22:10: ")
