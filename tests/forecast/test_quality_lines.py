"""No speed-up without its quality line, whose figures are those of BENCHMARKS.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.command import Answer
from fakes.forecasts import SETTINGS, config
from PIL import Image

from hv15_batch.config.settings import Config
from hv15_batch.forecast import _quality
from hv15_batch.forecast._quality import Measured, measured, of_model, of_setting
from hv15_batch.forecast.cheaper import cheaper_ways
from hv15_batch.machine import cards
from hv15_batch.machine.cards import CARDS
from hv15_batch.model.options import model_options
from hv15_batch.model.step_cache import make_step_cache

BENCHMARKS = Path(__file__).parents[2] / "BENCHMARKS.md"
LARGE = "model=720p_t2v"
TWO_HUNDRED = "manifests/rtx4090_200_clips.csv"


@pytest.mark.parametrize("name", list(measured()))
def test_the_figures_are_those_of_the_table(name: str) -> None:
    found = measured()[name]
    cells = r"\|".join(["([^|]*)"] * 11)
    rows = re.findall(
        rf"^\| {re.escape(found.row)} \|{cells}\|$",
        BENCHMARKS.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    rows = [row for row in rows if int(row[1]) == found.clips]

    assert len(rows) == 1, rows
    _, clips, *counts, psnr, _, _ = (cell.strip() for cell in rows[0])
    pairs = [tuple(map(int, cell.split("/"))) for cell in counts]
    assert (int(clips), float(psnr)) == (found.clips, found.psnr_db)
    assert (found.obeyed, found.asked) == tuple(map(sum, zip(*pairs, strict=True)))


def test_a_line_says_decibels_and_obedience_with_and_without_the_setting() -> None:
    assert of_setting("cache") == (
        "PSNR 35.8 dB on 160 demo clips (text to video, 9 of 16 steps computed), 43.5 without; "
        "prompts obeyed as without"
    )


def test_a_line_says_how_much_is_obeyed_where_that_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {"base": Measured("a", 8, 41.4, 38, 38), "slip": Measured("b", 8, 31.8, 36, 38)}
    monkeypatch.setattr(_quality, "measured", lambda: rows)

    assert of_setting("slip") == (
        "PSNR 31.8 dB on 8 demo clips, 41.4 without; 94.7% of what the prompts ask, and 100.0% "
        "without"
    )


def test_the_cache_line_says_how_many_steps_were_computed_of_how_many() -> None:
    steps = model_options()["demo_t2v"].default_sampling.num_inference_steps
    computed = make_step_cache(steps, None, None, None).num_computed(steps)

    assert measured()["cache"].of == f"text to video, {computed} of {steps} steps computed"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            "runtime.linear=fp8",
            "PSNR 27.8 dB on 160 demo clips, 43.5 without; prompts obeyed as without",
        ),
        (
            "runtime.attention_backend=comfy_int8",
            "PSNR 40.3 dB on 160 demo clips, 43.5 without; prompts obeyed as without",
        ),
        ("runtime.compile=true", of_setting("compile")),
        ("sampling.cache=static", of_setting("cache")),
        (
            "runtime.attention_backend=sage",
            "fewer than 16 bits, and not compared on clips; docs/attention.md has the kernels' "
            "errors",
        ),
    ],
)
def test_a_dry_run_has_a_quality_line_for_what_is_typed(
    command: Callable[..., Answer], typed: str, line: str
) -> None:
    answer = command(TWO_HUNDRED, "--dry-run", "runtime.card=rtx_4090", typed)

    assert f"Quality: {typed}: {line}\n" in answer.out


def test_a_dry_run_of_the_defaults_has_none(command: Callable[..., Answer]) -> None:
    assert "Quality: " not in command(TWO_HUNDRED, "--dry-run", "runtime.card=rtx_4090").out


def test_a_line_of_other_weights_says_what_is_not_known() -> None:
    assert of_model(model_options()["480p_t2v_4step"]) == (
        "4 steps, other weights, without guidance, trained on up to 81 frames; compared with none "
        "of these clips yet: look at one first"
    )


def test_a_line_of_other_weights_warns_of_frames_only_where_there_are_more() -> None:
    asked: Config = replace(config(), model=model_options()["480p_t2v_distilled"])

    lines = {way.words: way.quality for way in cheaper_ways(asked, [SETTINGS])}

    assert "trained on up to 81 frames" in lines["model=480p_t2v_4step"]
    assert lines["model=480p_t2v_4step override.num_frames=61"] == (
        "clips of 2.5 s; 4 steps, other weights, without guidance; compared with none of these "
        "clips yet: look at one first"
    )


def test_a_smaller_picture_of_another_model_is_named(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    rows = "".join(f"a fox {n}\n" for n in range(100))
    (tmp_path / "p.csv").write_text(f"prompt\n{rows}", encoding="utf-8")

    asked = command("p.csv", "--dry-run", "runtime.card=rtx_4090", "time_limit=9h", LARGE)

    assert ways(asked.out)["model=480p_t2v_4step"].startswith(
        "pictures of 480x848 instead of 720x1280, 4 steps, other weights, "
    )
    Image.new("RGB", (1280, 720)).save(tmp_path / "a.png")
    rows = "".join(f"a fox {n},a.png\n" for n in range(60))
    (tmp_path / "i.csv").write_text(f"prompt,image\n{rows}", encoding="utf-8")
    night = ("i.csv", "--dry-run", "runtime.card=rtx_4090", "time_limit=9h", "model=720p_i2v")
    asked = command(*night)
    assert re.match(
        r"pictures of 480x\d+ instead of 720x1280, \d+ steps, other weights",
        ways(asked.out)["model=480p_i2v_step_distilled"],
    )


def test_every_way_has_a_quality_line() -> None:
    for option in model_options().values():
        asked: Config = replace(config(), model=option)
        for way in cheaper_ways(asked, [replace(SETTINGS, height=720, width=1280)]):
            assert len(way.quality) > 20, way.words


def ways(out: str) -> dict[str, str]:
    """The ways that fit, by what to type, with their quality lines."""
    found = re.findall(r"^Cheaper: (.*) would take .*; quality: (.*)$", out, re.MULTILINE)
    assert out.count("Cheaper: ") == len(found) or "no setting tried here" in out
    return dict(found)


def fitting(out: str) -> int:
    counted = re.search(r"^Until .*: (\d+) of 200 clips$", out, re.MULTILINE)
    assert counted is not None, out
    return int(counted[1])


def test_200_clips_of_the_default_model_are_offered_what_fits_a_night(
    command: Callable[..., Answer],
) -> None:
    night = (TWO_HUNDRED, "--dry-run", "runtime.card=rtx_4090", "time_limit=9h")

    asked = command(*night, "model=480p_t2v_distilled")

    assert asked.code == 0, asked.err
    assert fitting(asked.out) < 60
    offered = ways(asked.out)
    assert offered["model=480p_t2v_4step"].startswith("4 steps, other weights, ")
    assert "sampling.cache=static override.num_frames=61" in offered
    for words in offered:
        assert fitting(command(*night, *words.split()).out) == 200


def test_a_longer_night_is_offered_the_cache_first(command: Callable[..., Answer]) -> None:
    night = (TWO_HUNDRED, "--dry-run", "runtime.card=rtx_4090", "time_limit=22h")

    asked = command(*night, "model=480p_t2v_distilled")

    offered = ways(asked.out)
    assert next(iter(offered)) == "sampling.cache=static"
    assert "PSNR 35.8 dB on 160 demo clips" in offered["sampling.cache=static"]
    assert fitting(command(*night, "sampling.cache=static").out) == 200


def test_half_the_rate_of_a_card_changes_what_is_offered(
    command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    night = (TWO_HUNDRED, "--dry-run", "runtime.card=rtx_4090", "time_limit=5h")
    whole = command(*night, "model=480p_t2v_distilled").out
    rates = ("dense_bf16_tflops", "bandwidth_gb_per_second", "fp32_tflops", "host_gb_per_second")

    def halved(card: cards.Card) -> cards.Card:
        return replace(card, **{name: getattr(card, name) / 2 for name in rates})

    monkeypatch.setattr(cards, "CARDS", tuple(map(halved, CARDS)))
    half = command(*night, "model=480p_t2v_distilled").out

    assert fitting(half) == pytest.approx(fitting(whole) / 2, abs=1)
    assert "model=480p_t2v_4step" in ways(whole)
    assert list(ways(half)) == ["model=480p_t2v_4step override.num_frames=61"]


@pytest.mark.parametrize("card", [card.name for card in CARDS])
def test_few_steps_and_cache_are_predicted_for_each_card(
    command: Callable[..., Answer], card: str
) -> None:
    def seconds(*words: str) -> float:
        answer = command(TWO_HUNDRED, "--dry-run", f"runtime.card={card}", *words)
        assert answer.code == 0, answer.err
        assert re.search(r"^Compilation: (yes|no); it ", answer.out, re.MULTILINE), answer.out
        found = re.search(r"(\d+) s per warm clip", answer.out)
        assert found is not None
        return float(found[1])

    fifty = seconds("model=480p_t2v_distilled")

    assert seconds("model=480p_t2v_distilled", "sampling.cache=static") < 0.6 * fifty
    assert seconds("model=480p_t2v_4step") < 0.3 * fifty
