"""The clips on the page: what is shown of each, its command, and what is picked."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import (
    HOSTILE,
    LONG_PROMPT,
    RUN_ID,
    build,
    failed,
    first_line,
    make_run,
    read_data,
    record,
    settings,
)

from hv15_batch.config.words import read_words
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Lora

# -- the clips --------------------------------------------------------------------------------


def test_an_earlier_text_of_a_rewritten_prompt_is_shown_in_its_row(tmp_path: Path) -> None:
    now = record("now", 3, row_id="fox", prompt="A red fox.", prompt_original="a fox")
    before = record("before", 0, row_id="fox", prompt="A fox trots.", prompt_original="a fox")
    plain = record("plain", 1, row_id="fox", prompt="a fox")
    other = record("other", 2, row_id="owl", prompt="an owl")
    _, clips = build(make_run(tmp_path, [before, plain, other, now], [now]))
    shown = [(c["id"], c["row"], c["isVariant"]) for c in clips]
    assert shown == [("now", 3, False), ("before", 3, True), ("plain", 3, True)]


def test_a_clip_says_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    clip = record("a", tags='{"tag_scene": "city"}', energy_joules=3600.0)

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    wanted = {
        "id": "a", "prompt": "prompt of a", "seed": "7", "status": "ok", "file": "clips/a.mp4",
        "poster": "thumbs/a.jpg", "isPlayable": True, "shape": 1.7667, "tags": {"scene": "city"},
        "facts": {"s": "412.3", "GiB": "13.4", "Wh": "1"},
    }  # fmt: skip
    assert {name: shown[name] for name in wanted} == wanted


def test_clips_follow_the_manifest_and_not_the_order_of_rendering(tmp_path: Path) -> None:
    takes = [record("a0"), record("b0", 1), record("a1", seed=8), record("b1", 1, seed=8)]

    _, clips = build(make_run(tmp_path, takes[::-1], takes))

    assert [clip["id"] for clip in clips] == ["a0", "a1", "b0", "b1"]


def test_clips_of_rows_that_left_the_manifest_are_not_shown(tmp_path: Path) -> None:
    html, clips = build(make_run(tmp_path, [record("old"), record("a")], [record("a")]))

    assert [clip["id"] for clip in clips] == ["a"]
    assert first_line(html) == "1 of 1"


def test_other_settings_of_a_row_stand_beside_it_with_what_differs(tmp_path: Path) -> None:
    now = record("a", prompt="same", row_id="fox")
    before = record("a_old", prompt="same", row_id="fox", num_inference_steps=30)

    html, clips = build(make_run(tmp_path, [before, now], [now]))

    assert [(c["id"], c["isVariant"], c["differences"]) for c in clips] == [
        ("a", False, {"Steps": "50"}),
        ("a_old", True, {"Steps": "30"}),
    ]
    assert first_line(html) == "1 of 1"


def test_what_all_clips_share_is_said_once(tmp_path: Path) -> None:
    clips = [record("a"), record("b", 1, num_frames=61)]

    html, shown = build(make_run(tmp_path, clips, clips))

    assert '<dt>Size</dt><dd dir="auto">480×848</dd>' in html
    assert "<dt>Frames</dt>" not in html
    assert [clip["differences"] for clip in shown] == [{"Frames": "121"}, {"Frames": "61"}]


def test_a_card_shows_the_first_characters_of_a_revision(tmp_path: Path) -> None:
    clips = [record("a", revision="a" * 64), record("b", 1, revision="b" * 64)]

    _, shown = build(make_run(tmp_path, clips, clips))

    assert [clip["differences"]["Revision"] for clip in shown] == ["aaaaaaaa", "bbbbbbbb"]


def test_a_renamed_row_shows_the_clip_under_its_old_file_name(tmp_path: Path) -> None:
    renamed = replace(record("old"), clip_id="new")

    _, [clip] = build(make_run(tmp_path, [record("old")], [renamed]))

    assert (clip["id"], clip["file"], clip["poster"]) == ("new", "clips/old.mp4", "thumbs/old.jpg")


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    attempts = [failed("a"), record("a", attempt=2)]

    html, [clip] = build(make_run(tmp_path, attempts, [record("a")]))

    assert (clip["status"], clip["problem"]) == ("ok", "")
    assert "out of memory" not in html


def test_a_clip_whose_file_is_gone_is_not_done(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    (run_dir / "clips" / "a.mp4").unlink()

    html, [clip] = build(run_dir)

    assert first_line(html).startswith("0 of 1, 1 file missing; resume with")
    assert (clip["status"], clip["file"]) == ("file missing", None)


def test_a_seed_above_2_to_the_53_is_exact(tmp_path: Path) -> None:
    clip = record("a", seed=2**63 - 1)

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    assert shown["seed"] == "9223372036854775807"


def test_failures_come_before_suspects_with_their_reasons(tmp_path: Path) -> None:
    clips = [record("s", status="suspect", quality_flag="frozen"), failed("f", row_index=1)]

    html, _ = build(make_run(tmp_path, clips, clips))

    section = html[html.index('id="problems"') :]
    places = [section.index(words) for words in ("RuntimeError: out of memory", "frozen")]
    assert places == sorted(places)


def test_a_thousand_failures_do_not_bury_the_rest(tmp_path: Path) -> None:
    clips = [failed(f"f{number:03d}", row_index=number) for number in range(60)]

    html, shown = build(make_run(tmp_path, clips, clips))

    assert html.count("data-clip=") == 50
    assert "and 10 more: set the gallery" in html
    assert len(shown) == 60


@pytest.mark.parametrize(
    "prompt", [HOSTILE, "\u2028 </script> <!--", "“开业大吉”\n🐼 مرحبا", LONG_PROMPT]
)
def test_text_arrives_whole_in_the_data_and_never_as_markup(tmp_path: Path, prompt: str) -> None:
    clip = failed("a", message=prompt, prompt=prompt, image=prompt)
    run_dir = make_run(tmp_path, [clip], [clip])

    html, [shown] = build(run_dir)

    assert (shown["prompt"], shown["image"]) == (prompt, prompt)
    assert shown["problem"] == f"RuntimeError: {prompt}"
    assert "<" not in (run_dir / "assets" / "data.js").read_text(encoding="ascii")
    assert "<script>alert" not in html
    assert html.count("<script") == 11


def test_a_prompt_longer_than_the_csv_module_allows_is_read(tmp_path: Path) -> None:
    clip = record("a", prompt="x" * 200_000)

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    assert len(shown["prompt"]) == 200_000


@pytest.mark.parametrize(
    ("weights", "words"),
    [("tiny", "the tiny models are small"), ("random", "builds the full-size model")],
)
def test_noise_on_purpose_is_said(tmp_path: Path, weights: str, words: str) -> None:
    clip = record("a", weights=weights)

    html, _ = build(make_run(tmp_path, [clip], [clip]))

    assert "These clips are noise on purpose" in html
    assert words in html


def test_clips_of_published_weights_carry_no_such_note(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a")], [record("a")]))

    assert "noise" not in html


def test_a_lossless_clip_is_no_video_because_browsers_do_not_play_it(tmp_path: Path) -> None:
    clip = record("a", file="clips/a.mkv")

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    assert (shown["file"], shown["isPlayable"]) == ("clips/a.mkv", False)


def test_what_was_not_measured_is_left_out_and_never_zero(tmp_path: Path) -> None:
    clip = record("a", peak_vram_reserved_bytes=None, total_seconds=None)
    run_dir = make_run(tmp_path, [clip], [clip])

    html, [shown] = build(run_dir)

    assert shown["facts"] == {}
    assert "<dt>Peak VRAM</dt>" not in html
    assert read_data(run_dir)["plots"] == []


def test_seconds_a_clip_leaves_cold_clips_out_and_says_how_many_count(tmp_path: Path) -> None:
    clips = [
        record("cold", total_seconds=900.0, is_cold=True),
        record("a", 1, total_seconds=10.0),
        record("b", 2, total_seconds=30.0),
    ]

    html, _ = build(make_run(tmp_path, clips, clips))

    assert "20.0 (median of 2 warm clips)" in html


def head_table(html: str) -> list[list[str]]:
    """Return the lines of the table of settings at the head."""
    head = html[html.index("<header>") : html.index("<nav")]
    rows = re.findall(r"<tr>(.*?)</tr>", head, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_different_settings_have_a_line_each_and_are_never_one_sample(tmp_path: Path) -> None:
    clips = [
        *(record(f"a{n}", n, total_seconds=10.0 + n) for n in range(3)),
        *(record(f"b{n}", n, num_frames=61, total_seconds=1.0) for n in range(2)),
    ]

    html, _ = build(make_run(tmp_path, clips, clips))

    _, *lines = head_table(html)
    assert [line[:3] for line in lines] == [["Frames 121", "3", "11.0"], ["Frames 61", "2", "1.00"]]
    assert "median of 5" not in html


def test_many_settings_are_folded_behind_the_first(tmp_path: Path) -> None:
    clips = [record(f"c{n}", n, num_frames=4 * n + 1) for n in range(9)]

    html, _ = build(make_run(tmp_path, clips, clips))

    assert "and 3 more settings" in html
    assert len(head_table(html)) == 2 + 9  # two tables, each with its head


def test_energy_is_that_of_warm_clips_and_says_how_many(tmp_path: Path) -> None:
    clips = [
        record("cold", energy_joules=36_000.0, is_cold=True),
        record("a", 1, energy_joules=3600.0),
        record("b", 2, energy_joules=7200.0),
        record("c", 3, energy_joules=None),
    ]
    config = settings()
    config.report.price_per_kwh = 0.5

    html, _ = build(make_run(tmp_path, clips, clips, config=config))

    assert "<dt>Energy a clip</dt><dd>1.5 Wh (median of 2 warm clips)</dd>" in html
    assert "<dt>Cost a clip</dt><dd>0.00075 (at 0.5 a kWh)</dd>" in html


# -- commands and picks -----------------------------------------------------------------------


def test_the_command_of_a_clip_names_its_row_seed_and_every_setting_that_is_no_default(
    tmp_path: Path,
) -> None:
    config = settings()
    config.override.negative_prompt = "blurry, it's grey"
    config.video.crf = 12
    clip = record("fox_s7", row_id="fox")
    run_dir = make_run(tmp_path / "it's", [clip], [clip], config=config)

    _, [shown] = build(run_dir)

    assert shlex.split(shown["command"]) == [
        "hv15-batch",
        f"manifest={run_dir}/runs/{RUN_ID}/manifest.csv",
        "only=fox",
        "override.seeds=7",
        "model=480p_t2v",
        "model.repo=...",
        "override.negative_prompt=blurry, it's grey",
        "video.crf=12",
        f"run_dir={run_dir}.again/fox_s7",
    ]


def test_what_decides_what_is_fetched_is_not_in_a_command_to_be_copied(tmp_path: Path) -> None:
    config = settings()
    config.runtime.attention_backend = "sage_hub"
    config.notify.command = "touch /tmp/x"
    clip = record("fox_s7", row_id="fox")

    _, [shown] = build(make_run(tmp_path, [clip], [clip], config=config))

    for text in (shown["command"], shown["pickWords"]):
        words = shlex.split(text)
        assert "runtime.attention_backend=..." in words
        assert "model.repo=..." in words
        assert "sage_hub" not in text
        assert "touch" not in text
    config.runtime.attention_backend = "_native_math"
    _, [shown] = build(make_run(tmp_path / "own", [clip], [clip], config=config))
    assert "runtime.attention_backend=_native_math" in shlex.split(shown["command"])


def test_the_command_of_a_clip_names_a_row_called_null_as_a_text(tmp_path: Path) -> None:
    clip = record("null_s7", row_id="null")

    _, [shown] = build(make_run(tmp_path, [clip], [clip], config=settings()))

    words = shlex.split(shown["command"])
    assert 'only="null"' in words
    typed = read_words(words[1:], is_sweep=False)
    assert typed.texts["only"] == "null"  # the text, not what Hydra calls null


@pytest.mark.exhaustive
def test_the_command_of_a_clip_makes_that_clip(tmp_path: Path, command: Any) -> None:
    (tmp_path / "p.csv").write_text(
        'id,prompt,seed,guidance_scale\nfox,"a fox, ""OPEN"", ${x}",3 4,\ncat,a cat,,2\n',
        encoding="utf-8",
    )
    words = ["p.csv", "model=tiny_t2v", "sampling.negative_prompt=dull, grey", "video.crf=20"]
    small = ["override.num_frames=1", "override.num_inference_steps=1", "override.height=32"]
    assert command(*words, *small, "limit=2").code == 0
    clips = {clip["id"]: clip for clip in read_data(tmp_path / "outputs" / "p")["clips"]}
    name, clip = next((n, c) for n, c in clips.items() if n.startswith("fox_s3"))

    answer = command(*shlex.split(clip["command"])[1:])

    assert (answer.code, answer.err) == (0, "")
    again = tmp_path / "outputs" / f"p.again/{name}"
    assert [path.stem for path in (again / "clips").iterdir()] == [name]


def test_a_first_frame_of_a_pick_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    clip = record("a", image="frames/a.png")

    _, [shown] = build(make_run(tmp_path, [clip], [clip], config=settings()))

    assert shown["pick"]["image"] == "/home/me/frames/a.png"
    assert "height" not in shown["pick"]


def test_commands_and_picks_of_clips_with_models_of_their_own(tmp_path: Path) -> None:
    other = model_options()["demo_t2v"]
    config = settings(models={"demo_t2v": other}, preset_sampling=["num_inference_steps"])
    config.sampling.num_inference_steps, config.sampling.fps = 8, 12.0
    clips = [record("a"), record("b", 1, model="demo_t2v", weights="demo")]

    _, shown = build(make_run(tmp_path, clips, clips, config=config))

    own, theirs = ([w for w in shlex.split(c["command"]) if "=" in w] for c in shown)
    # The row's own cell names its model. The command's is that of the rows without a cell.
    assert "model=480p_t2v" in own
    assert "model=480p_t2v" in theirs
    assert "sampling.num_inference_steps=8" in own
    assert "sampling.num_inference_steps=8" not in theirs
    assert "sampling.fps=12.0" in theirs
    # A manifest of picks has no column for it.
    assert [c["pickWords"] for c in shown] == ["model=480p_t2v model.repo=...", "model=demo_t2v"]
    assert [c["variant"] for c in shown] == ["480p_t2v", "demo_t2v"]


def test_commands_of_a_run_with_first_frames_and_an_option_of_the_user(tmp_path: Path) -> None:
    mine = replace(model_options()["demo_i2v"], name="mine")
    config = settings(models={"mine": mine})
    clips = [record("a"), record("b", 1, model="mine", image="a.png")]

    _, shown = build(make_run(tmp_path, clips, clips, config=config))

    # A first frame of another row would not be found beside the copy.
    assert [f"manifest={config.manifest}" in shlex.split(c["command"]) for c in shown] == [True] * 2
    assert [shlex.split(c["command"])[1] for c in shown] == ["--config-dir=..."] * 2
    assert ["--config-dir=..." in c["pickWords"] for c in shown] == [False, True]


def test_a_pick_has_the_loras_of_its_clip_and_no_setting_gives_it_others(tmp_path: Path) -> None:
    config = settings()
    config.model.loras = [Lora("style.safetensors", 0.123456789, "a" * 64)]
    clips = [
        record("styled", loras=json.dumps([["a" * 64, 0.123456789]])),
        record("own", 1, loras=json.dumps([["b" * 64, 1.0]])),
        record("plain", 2),
    ]

    _, shown = build(make_run(tmp_path / "some", clips, clips, config=config))

    assert [clip["pick"]["loras"] for clip in shown] == [
        "FILE1.safetensors:0.123456789",
        "FILE1.safetensors:1",
        "none",
    ]
    assert {clip["pickWords"] for clip in shown} == {"model=480p_t2v model.repo=..."}
    assert "model.loras=..." in shlex.split(shown[2]["command"])
    _, [alone] = build(make_run(tmp_path / "none", clips[2:], clips[2:], config=settings()))
    assert "loras" not in alone["pick"]


def test_the_command_names_the_manifest_where_another_row_has_loras(tmp_path: Path) -> None:
    config = settings()
    clip = record("plain")
    run_dir = make_run(tmp_path, [clip], [clip], config=config)
    copy = run_dir / "runs" / RUN_ID / "manifest.csv"
    copy.write_text("id,prompt,loras\nplain,a cat,\nstyled,a cat,in/a.safetensors\n")

    _, [shown] = build(run_dir)

    assert f"manifest={config.manifest}" in shlex.split(shown["command"])
    assert str(copy) not in shown["command"]
