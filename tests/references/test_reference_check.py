"""A published figure counts as reproduced only on its card with all that its source states."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fakes.published import OMNI, START
from msgspec.structs import replace

from hv15_batch.machine.cards import CONTEXT_BYTES
from hv15_batch.model.options import conf_dir
from hv15_batch.model.shapes import Shape
from hv15_batch.record import ClipRecord
from hv15_batch.references._implied import Feasibility, combinations
from hv15_batch.references.check import (
    CHECK_COLUMNS,
    MET,
    ReferenceVerdict,
    Verdict,
    compare_with_references,
)
from hv15_batch.references.data import Reference, bounds_of, read_references
from hv15_batch.references.text import format_verdicts_text
from hv15_batch.units import GIB

REFERENCES = {r.name: r for r in read_references(conf_dir() / "reference")}
STEP_DISTILLED = OMNI | {
    "model": "480p_i2v_step_distilled", "task": "i2v", "num_frames": 61, "num_inference_steps": 8,
    "guidance_scale": 1.0, "flow_shift": 7.0, "gpu_name": "NVIDIA GeForce RTX 4090",
    "gpu_total_bytes": 24 * GIB, "total_seconds": 60.0, "width": 848,
}  # fmt: skip


CARD = (
    "Other GPU than the reference: render on 1x H200, or predict for it with --dry-run "
    "runtime.card=h200; until then quote what was measured for its own card only."
)


def rows(base: dict[str, Any], *seconds: float, **changes: Any) -> list[dict[str, Any]]:
    """Warm clips of the log that took so long each."""
    made = []
    for index, value in enumerate(seconds or (base["total_seconds"],)):
        started = START + timedelta(minutes=index)
        values = {"started_at": started, **base, "total_seconds": value, **changes}
        record = vars(ClipRecord(**values))
        made.append({name: record.get(name) for name in CHECK_COLUMNS})
    return made


def verdict(name: str, records: list[dict[str, Any]]) -> ReferenceVerdict:
    (found,) = compare_with_references(records, [REFERENCES[name]])
    return found


def plain(found: ReferenceVerdict) -> str:
    """The verdict as it is printed, without its line breaks."""
    return " ".join(format_verdicts_text([found]).split())


def test_the_same_card_and_all_stated_settings_reproduce_a_figure_with_n_and_spread() -> None:
    found = verdict("vllm_omni_121", rows(OMNI, 250.0, 260.0, 270.0))

    assert found.verdict is Verdict.reproduced
    assert found.best is not None
    assert (found.best.values.n, found.best.compared, found.best.differences) == (3, 260.0, ())
    assert found.best.values.spread == pytest.approx(10 / 260)
    assert found.best.ratio == pytest.approx(260 / 259.4)


SCRIPT = f"official@60783e704160023913bee78f0b47036d393d4dfa code={16 * 'a'} ckpts={16 * 'b'}"


def test_clips_of_the_official_script_are_compared_like_those_of_diffusers() -> None:
    found = verdict(
        "tencent_step_distilled", rows(STEP_DISTILLED, 60.0, engine=SCRIPT, offload=None)
    )

    assert found.verdict is verdict("tencent_step_distilled", rows(STEP_DISTILLED, 60.0)).verdict
    assert "The published number is of Tencent generate.py; this log is of Tencent's" in plain(
        found
    )
    with_flag = rows(STEP_DISTILLED, 60.0, engine=f"{SCRIPT} use_fp8_gemm=true")
    found = verdict("tencent_step_distilled", with_flag)
    assert found.verdict is Verdict.not_comparable
    assert "official.arguments=null" in plain(found)


def test_slower_is_not_reproduced_and_says_by_how_much() -> None:
    found = verdict("vllm_omni_121", rows(OMNI, 518.8))

    assert found.verdict is Verdict.not_reproduced
    assert found.reason == (
        "Same card and all that the source states; 2.00 times the published number: slower."
    )


def test_far_faster_is_surpassed_and_not_called_reproduced() -> None:
    found = verdict("vllm_omni_diffusers_121", rows(OMNI, 250.0))

    assert found.verdict is Verdict.surpassed
    assert found.reason.endswith("0.22 times the published number: faster than published.")


@pytest.mark.parametrize(
    ("changes", "sentence", "remedy"),
    [
        ({"gpu_name": "Tesla T4"}, "Card: 1x H200 stated, Tesla T4 here.", CARD),
        ({"gpu_name": "NVIDIA H200 NVL"}, "Card: 1x H200 stated, NVIDIA H200 NVL here.", CARD),
        ({"gpu_name": None}, "Card: 1x H200 stated, not logged.", CARD),
        (
            {"gpu_total_bytes": None},
            "Card: 1x H200 stated; how much memory this NVIDIA H200 has is not logged.",
            CARD,
        ),
        (
            {"gpu_total_bytes": 70 * GIB},
            "Card: 1x H200 stated, NVIDIA H200 with 70 GiB here.",
            CARD,
        ),
        (
            {"model": "480p_t2v_distilled"},
            "Model: 480p_t2v stated, 480p_t2v_distilled here.",
            "model=480p_t2v",
        ),
        ({"task": "i2v"}, "Task: t2v stated, i2v here.", "model=480p_t2v"),
        (
            {"width": 848},
            "Size: 480x832 stated, 480x848 here.",
            "override.height=480 override.width=832",
        ),
        ({"num_frames": 61}, "Frames: 121 stated, 61 here.", "override.num_frames=121"),
        (
            {"num_inference_steps": 30},
            "Steps: 50 stated, 30 here.",
            "override.num_inference_steps=50",
        ),
        ({"guidance_scale": 1.0}, "Guidance: 6 stated, 1 here.", "override.guidance_scale=6"),
        ({"flow_shift": 7.0}, "Shift: 5 stated, 7 here.", "override.flow_shift=5"),
        ({"cache": "4:5:45"}, "Step cache: none stated, 4:5:45 here.", "sampling.cache=none"),
        ({"linear": "fp8"}, "8-bit linear modules: none stated, fp8 here.", "runtime.linear=bf16"),
        ({"loras": '[["a1b2", 0.5]]'}, "LoRAs: none stated, 1 here.", "no LoRA"),
        (
            {"transformer_sha256": "0123456789"},
            "Transformer: the model's own stated, a file with SHA-256 01234567 here.",
            "the model's transformer",
        ),
        ({"dtype": "float16"}, "Type: bfloat16 stated, float16 here.", "runtime.dtype=bfloat16"),
    ],
)
def test_each_stated_setting_that_differs_is_not_comparable_and_says_what_to_do(
    changes: dict[str, Any], sentence: str, remedy: str
) -> None:
    found = verdict("vllm_omni_121", rows(OMNI, **changes))

    assert found.verdict is Verdict.not_comparable
    assert found.best is not None
    assert found.best.differences == (sentence,)
    if remedy is not CARD:
        remedy = f"Settings differ from the reference: render again with {remedy}."
    assert found.best.remedies == (remedy,)
    assert f"- {sentence} - {remedy}" in plain(found)


def test_several_settings_that_differ_have_one_remedy_to_paste() -> None:
    found = verdict(
        "recipe_standard", rows(STEP_DISTILLED, num_frames=5, height=320, width=576)
    ).best

    assert found is not None
    assert found.remedies == (
        "Settings differ from the reference: render again with -m model=480p_t2v "
        "override.height=480 override.width=848 override.num_frames=61,81,121 "
        "override.num_inference_steps=20,30,50.",
    )


def test_beside_a_size_only_models_that_take_one_are_named() -> None:
    """Image to video refuses `override.height`: its first frame decides."""
    mixed = {"model": "480p_i2v", "task": "i2v", "num_inference_steps": 50, "guidance_scale": 6.0}
    for name in ("recipe_standard", "comfyui_rtx5090"):
        found = verdict(name, rows({**STEP_DISTILLED, **mixed}, height=320, width=576)).best

        assert found is not None
        words = found.remedies[-1].split()
        assert "override.height=480" in words
        (model,) = [word for word in words if word.startswith("model=")]
        assert "_i2v" not in model
        assert "_t2v" in model


def test_a_size_that_no_image_to_video_model_renders_is_asked_of_another_model() -> None:
    found = verdict("rtx5090d_unmasked", rows(STEP_DISTILLED)).best

    assert found is not None
    assert "model=480p_t2v override.height=320 override.width=576" in found.remedies[1]


def test_in_image_to_video_the_remedy_for_a_size_is_another_first_frame() -> None:
    found = verdict("tencent_step_distilled", rows(STEP_DISTILLED, height=720, width=1280)).best

    assert found is not None
    assert found.remedies == (
        "Settings differ from the reference: "
        "render again with first frames of 848x480 (width x height).",
    )


@pytest.mark.parametrize(
    ("name", "seconds", "said"),
    [
        ("vllm_omni_121", 259.4 * 1.0499, "reproduced: 1.0499 times the published number."),
        ("vllm_omni_121", 259.4 * 1.0501, "not reproduced: 1.0501 times the published number: "
         "slower."),
        ("vllm_omni_121", 259.4 * 1.044, "reproduced: 1.04 times the published number."),
        ("vllm_omni_121", 259.4 * 0.9499, "surpassed: 0.9499 times the published number: faster "
         "than published."),
        ("tencent_step_distilled", 75.0, "reproduced: 1.00 times the published number."),
        ("tencent_step_distilled", 75.3, "not reproduced: 1.004 times the published number: "
         "slower."),
    ],
)  # fmt: skip
def test_near_the_limit_a_ratio_has_the_decimals_that_tell_its_side(
    name: str, seconds: float, said: str
) -> None:
    base = STEP_DISTILLED if name == "tencent_step_distilled" else OMNI
    found = verdict(name, rows(base, seconds))

    ratio = found.reason.removeprefix("Same card and all that the source states; ")
    assert f"{found.verdict.value}: {ratio}" == said


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("vllm_omni_121", rows(OMNI, 250.0, 251.0, 252.0)),
        (
            "tencent_minimum_vram",
            rows(OMNI, 250.0, 251.0, 252.0, offload="stream", peak_vram_device_bytes=13 * 10**9),
        ),
    ],
)
def test_clips_that_are_all_suspect_meet_nothing_and_some_are_noted(
    name: str, records: list[dict[str, Any]]
) -> None:
    black = [row | {"status": "suspect", "quality_flag": "black"} for row in records]

    every, some = verdict(name, black), verdict(name, [*records[:2], black[2]])

    assert every.verdict is Verdict.not_comparable
    assert every.reason == "Quality: 3 of 3 clips are suspect (black)."
    assert every.best is not None
    assert not any("suspect" in note for note in every.best.notes)
    assert every.best.remedies == (
        "Every clip is suspect: look at the clips, remove the cause, then render again with "
        "retry.suspect=true.",
    )
    assert some.verdict in MET
    assert some.best is not None
    assert "1 of 3 clips is suspect (black): look before quoting." in some.best.notes


def test_a_loading_counts_whatever_the_picture_but_that_is_said() -> None:
    black = {"status": "suspect", "quality_flag": "black", "load_seconds": 80.0}
    found = verdict("recipe_load", rows(STEP_DISTILLED, **black))

    assert found.verdict is Verdict.reproduced
    assert found.best is not None
    assert "1 of 1 clip is suspect (black): look before quoting." in found.best.notes


def test_a_4090_laptop_chip_and_a_48_gb_board_are_not_the_rtx_4090() -> None:
    laptop = rows(STEP_DISTILLED, gpu_name="NVIDIA GeForce RTX 4090 Laptop GPU")
    modified = rows(STEP_DISTILLED, gpu_total_bytes=48 * GIB)

    assert verdict("tencent_step_distilled", rows(STEP_DISTILLED)).verdict is Verdict.reproduced
    for records in (laptop, modified):
        assert verdict("tencent_step_distilled", records).verdict is Verdict.not_comparable


def test_a_figure_that_calls_the_image_to_video_checkpoint_text_to_video_is_never_met() -> None:
    found = verdict("recipe_step_distilled", rows(STEP_DISTILLED))

    assert found.verdict is Verdict.not_comparable
    assert found.reason == (
        "Task: t2v stated, i2v here. "
        "No run can be both: the stated checkpoint is of the other task."
    )
    other = verdict("recipe_step_distilled", rows(STEP_DISTILLED, model="480p_t2v", task="t2v"))
    for each in (found.best, other.best):
        assert each is not None
        assert each.remedies == (
            "The source contradicts itself: no settings can meet it; "
            "compare with a number whose model and task agree.",
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"is_cold": True},
        {"is_cold": None},
        {"repeat": 0},
        {"denoise_attempt": 0},
        {"status": "failed"},
        {"weights": "tiny"},
        {"total_seconds": None},
    ],
)
def test_what_is_no_warm_full_size_rendering_does_not_count(changes: dict[str, Any]) -> None:
    found = verdict("vllm_omni_121", rows(OMNI | changes))

    assert (found.verdict, found.measured) == (Verdict.not_comparable, ())
    assert found.reason == "No finished warm clip of a full-size model is in the log."


def test_random_weights_count_for_time_and_are_noted_but_not_for_loading() -> None:
    records = rows(OMNI, weights="random", load_seconds=90.0)

    timed = verdict("vllm_omni_121", records)
    loaded = verdict("recipe_load", records)

    assert timed.verdict is Verdict.reproduced
    assert timed.best is not None
    assert timed.best.notes[0].startswith("Random weights: time and memory")
    assert loaded.measured == ()


def test_text_encoding_is_left_out_and_said() -> None:
    found = verdict("vllm_omni_121", rows(OMNI, 280.0, encode_seconds=20.0))

    assert found.best is not None
    assert found.best.compared == 260.0
    assert "Not included: encoding of a new text, 20.0 s (median, n = 1)." in found.best.notes


def test_the_utilisation_is_that_of_denoising_as_logged() -> None:
    found = verdict("vllm_omni_121", [*rows(OMNI, 250.0, 260.0, mfu=0.6), *rows(OMNI, mfu=0.5)])
    unknown = verdict("vllm_omni_121", rows(OMNI, mfu=None))

    assert found.best is not None
    assert found.best.utilisation == 0.6
    assert unknown.best is not None
    assert unknown.best.utilisation is None
    assert "utilisation: 51% implied by the published number, 60% here" in plain(found)
    assert "utilisation: 51% implied by the published number, \N{EN DASH} here" in plain(unknown)


# -- what a source does not state -------------------------------------------------------------

RTX_4090 = {"gpu_name": "NVIDIA GeForce RTX 4090", "gpu_total_bytes": 24 * GIB, "width": 848}


@pytest.mark.parametrize(
    ("name", "base", "changes", "sentence"),
    [
        (
            "tencent_step_distilled",
            STEP_DISTILLED,
            {"num_frames": 5, "total_seconds": 4.0},
            "Frames: not stated; 61, 81 or 121 counts, 5 here.",
        ),
        (
            "tencent_step_distilled",
            STEP_DISTILLED,
            {"guidance_scale": 6.0},
            "Guidance: not stated; 1 counts, 6 here.",
        ),
        (
            "recipe_standard",
            OMNI | RTX_4090,
            {"num_frames": 61, "num_inference_steps": 1, "total_seconds": 190.0},
            "Steps: not stated; 20, 30 or 50 counts, 1 here.",
        ),
        (
            "tencent_rtx4090_defaults",
            OMNI | RTX_4090,
            {"num_frames": 121, "total_seconds": 1200.0},
            "Length: 3 s clip (73 frames) stated, 121 here.",
        ),
        (
            "tencent_rtx4090_defaults",
            OMNI | RTX_4090,
            {"num_frames": 5, "total_seconds": 4.0},
            "Length: 3 s clip (73 frames) stated, 5 here.",
        ),
        (
            "tencent_rtx4090_defaults",
            OMNI | RTX_4090,
            {"num_frames": 73, "height": 320, "width": 576},
            "Size: not stated; 480p or 720p counts, 320x576 here.",
        ),
    ],
)
def test_a_clip_outside_of_what_is_swept_reproduces_nothing(
    name: str, base: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    found = verdict(name, rows(base | changes))

    assert (found.verdict, found.reason) == (Verdict.not_comparable, sentence)


@pytest.mark.parametrize("frames", [61, 81, 121])
@pytest.mark.parametrize("steps", [8, 12])
def test_a_figure_that_is_met_says_with_which_combination(frames: int, steps: int) -> None:
    found = verdict(
        "tencent_step_distilled",
        rows(STEP_DISTILLED, num_frames=frames, num_inference_steps=steps),
    )

    assert found.verdict is Verdict.reproduced
    said = (
        f"reproduced with 480x848, {frames} frames, {steps} steps, shift 7, bfloat16, "
        "offload=resident, attention _native_cudnn and not compiled, which the source does not "
        "state"
    )
    assert said in plain(found)


def test_the_published_3_seconds_are_stated_but_not_their_size() -> None:
    found = verdict("tencent_rtx4090_defaults", rows(OMNI | RTX_4090, 1200.0, num_frames=73))

    assert found.verdict is Verdict.reproduced
    assert found.best is not None
    assert found.best.combination == (
        *("480p_t2v", "480x848", "50 steps", "guidance 6", "shift 5", "bfloat16"),
        *("offload=resident", "attention _native_cudnn", "not compiled"),
    )


def test_a_verdict_names_the_type_compilation_and_recipe_that_the_source_leaves_open() -> None:
    base = OMNI | {"model": "720p_i2v_distilled", "task": "i2v", "guidance_scale": 1.0}
    base |= {"gpu_name": "NVIDIA GeForce RTX 5090", "gpu_total_bytes": int(31.8 * GIB)}
    off = {"dtype": "float16", "compiled": True, "off_recipe": True, "flow_shift": 2.5}
    silent = {"dtype": None, "compiled": None, "off_recipe": None, "flow_shift": None}
    combinations = []
    for changes in (off, silent):
        found = verdict("comfyui_rtx5090", rows(base, 284.0, width=848, **changes))
        assert found.verdict is Verdict.reproduced
        assert found.best is not None
        combinations.append(found.best.combination)

    start = ("720p_i2v_distilled", "50 steps", "guidance 1")
    kernel = ("offload=resident", "attention _native_cudnn")
    assert combinations == [
        (*start, "shift 2.5", "float16", *kernel, "compiled", "off the model's recipe"),
        (*start, "shift not logged", "dtype not logged", *kernel, "compiling not logged"),
    ]


def test_what_the_source_states_is_not_named_with_the_combination() -> None:
    found = verdict("vllm_omni_121", rows(OMNI, compiled=True))

    assert found.best is not None
    assert found.best.combination == (*("offload=resident", "attention _native_cudnn", "compiled"),)


def test_of_several_groups_the_best_verdict_stands_and_the_others_are_counted() -> None:
    records = rows(OMNI, 600.0) + rows(OMNI, 255.0, compiled=True) + rows(OMNI, 9.0, num_frames=33)
    found = verdict("vllm_omni_121", records)

    assert [m.verdict for m in found.measured] == [
        Verdict.reproduced,
        Verdict.not_reproduced,
        Verdict.not_comparable,
    ]
    text = plain(found)
    assert "Of 2 groups of clips on this card with these settings 1 meets it." in text
    assert "1 other group of clips is not comparable." in text


def test_what_the_source_leaves_open_is_said_with_a_figure_that_is_met() -> None:
    text = format_verdicts_text([verdict("tencent_step_distilled", rows(STEP_DISTILLED))])

    assert "Left open by the source: frames, height and width, which step count" in text


def test_the_mask_decides_between_the_two_figures_of_the_profile() -> None:
    base = OMNI | {
        "height": 320, "width": 576, "gpu_name": "NVIDIA GeForce RTX 5090 D",
        "gpu_total_bytes": int(31.8 * GIB), "total_seconds": 272.0,
    }  # fmt: skip

    assert verdict("rtx5090d_unmasked", rows(base)).verdict is Verdict.reproduced
    assert verdict("rtx5090d_masked", rows(base)).reason == (
        "Attention mask: present stated, none here."
    )


# -- memory and loading -----------------------------------------------------------------------


def peaks(gb: float, **changes: Any) -> list[dict[str, Any]]:
    measured = {
        "offload": "stream",
        "peak_vram_device_bytes": int(gb * 1e9),
        "peak_vram_reserved_bytes": int(gb * 1e9) - CONTEXT_BYTES,
    }
    return rows(OMNI | measured | changes)


@pytest.mark.parametrize(
    ("gb", "expected", "word"),
    [
        (13.9, Verdict.reproduced, "The peak is under both."),
        (14.5, Verdict.not_reproduced, "Only the second is met, and the first decides."),
        (15.1, Verdict.not_reproduced, "The peak is over both."),
    ],
)
def test_both_readings_of_gb_are_said_and_the_smaller_one_counts(
    gb: float, expected: Verdict, word: str
) -> None:
    found = verdict("tencent_minimum_vram", peaks(gb))

    assert found.verdict is expected
    assert found.best is not None
    (note,) = (n for n in found.best.notes if "GB" in n)
    assert "13.0 GiB if GB is 10^9 bytes, 14 GiB if it is 2^30" in note
    assert word in note


def test_what_about_allows_is_not_called_under_the_figure() -> None:
    found = verdict("recipe_vram", peaks(24.2, offload="resident"))

    assert found.best is not None
    (note,) = (n for n in found.best.notes if "GB" in n)
    assert "The peak is 0.8% over the first reading, which decides" in note
    assert "under both" not in note


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_frames": 33}, "Frames: not stated; 61 or more count, 33 here."),
        (
            {"height": 320, "width": 576},
            "Size: not stated; 480p or 720p counts, 320x576 here.",
        ),
    ],
)
def test_a_small_clip_shows_no_minimum_of_memory(changes: dict[str, Any], sentence: str) -> None:
    found = verdict("tencent_minimum_vram", peaks(7.0, **changes))

    assert (found.verdict, found.reason) == (Verdict.not_comparable, sentence)


def test_a_minimum_of_memory_says_with_which_clip_it_was_met() -> None:
    changes = {"num_inference_steps": 4, "decode_device": "cuda:0", "vae_tile_size": 256}
    found = verdict("tencent_minimum_vram", peaks(13.0, num_frames=129, **changes))

    assert found.verdict is Verdict.reproduced
    assert found.best is not None
    assert found.best.combination == (
        *("480p_t2v", "480x832", "129 frames", "bfloat16", "offload=stream"),
        *("VAE tiles of 256 px", "not compiled"),
    )


def test_a_peak_of_clips_decoded_from_saved_latents_meets_nothing() -> None:
    decoded = peaks(9.0, attempt=2)
    found = verdict("tencent_minimum_vram", decoded)

    assert (found.verdict, found.measured) == (Verdict.not_comparable, ())
    assert found.reason == (
        "No clip of a full-size model, denoised and decoded at once, with its peak memory is in "
        "the log."
    )
    both = verdict("tencent_minimum_vram", decoded + peaks(13.0)).best
    assert both is not None
    assert (both.values.n, both.compared) == (1, 13.0e9)


def test_a_peak_without_encoding_says_so() -> None:
    note = "The peak is without encoding: all embeddings were cached."
    cached = verdict("tencent_minimum_vram", peaks(13.0) + peaks(12.0)).best
    encoded = verdict("tencent_minimum_vram", peaks(13.0) + peaks(12.0, encode_seconds=3.0)).best
    timed = verdict("vllm_omni_121", rows(OMNI)).best

    assert cached is not None
    assert encoded is not None
    assert timed is not None
    assert note in cached.notes
    assert note not in (*encoded.notes, *timed.notes)


def test_the_highest_peak_counts_that_of_cold_clips_included() -> None:
    found = verdict("tencent_minimum_vram", peaks(9.0) + peaks(13.0, is_cold=True))

    assert found.best is not None
    assert (found.best.compared, found.best.values.n) == (13.0e9, 2)
    assert found.best.method == "highest peak of the whole card, NVML"


def test_without_nvml_the_context_is_added_to_what_torch_reserved_and_said() -> None:
    found = verdict("tencent_minimum_vram", peaks(13.0) + peaks(13.0, peak_vram_device_bytes=None))

    assert found.best is not None
    assert found.best.compared == 13.0e9
    assert "torch's reserved peaks plus 1.4 GiB" in found.best.method


def test_about_24_gb_is_surpassed_by_far_less_where_a_minimum_is_a_bound() -> None:
    changes = {"gpu_name": "NVIDIA GeForce RTX 4090", "gpu_total_bytes": 24 * GIB}
    found = [
        verdict("recipe_vram", [r | {"offload": "resident"} for r in peaks(gb, **changes)])
        for gb in (12.0, 23.0, 27.0)
    ]

    assert [f.verdict for f in found] == [
        Verdict.surpassed,
        Verdict.reproduced,
        Verdict.not_reproduced,
    ]
    assert found[0].reason.endswith("0.50 times the published number: smaller than published.")
    assert found[2].reason.endswith("1.12 times the published number: larger.")
    assert verdict("tencent_minimum_vram", peaks(7.0)).verdict is Verdict.reproduced


def test_an_offload_that_the_figure_does_not_mean_is_a_difference() -> None:
    found = verdict("tencent_minimum_vram", [r | {"offload": "resident"} for r in peaks(12.0)])

    assert found.reason == (
        "Offload: model offloading (offload=model or stream or stream_disk) stated, resident here."
    )


def test_loading_is_compared_on_its_card_whatever_was_rendered() -> None:
    records = rows(STEP_DISTILLED, is_cold=True, load_seconds=80.0)

    found = verdict("recipe_load", records)

    assert found.verdict is Verdict.reproduced
    assert found.best is not None
    assert (
        "Not included: the text encoder, which this project loads separately." in found.best.notes
    )
    assert verdict("recipe_load", rows(OMNI, load_seconds=80.0)).verdict is Verdict.not_comparable


# -- what figures imply -----------------------------------------------------------------------


def feasible(name: str) -> dict[tuple[int, int, bool], Feasibility]:
    return {
        (c.shape.num_frames, c.shape.num_inference_steps, c.shape.has_guidance): c.feasibility
        for c in combinations(REFERENCES[name])
    }


def test_75_seconds_need_few_frames_or_steps_or_8_bit_attention() -> None:
    found = feasible("tencent_step_distilled")

    assert set(found) == {(f, s, False) for f in (61, 81, 121) for s in (8, 12)}
    assert found[61, 8, False] is Feasibility.meets
    assert found[121, 8, False] is Feasibility.faster_than_predicted
    assert found[121, 12, False] is Feasibility.fast_attention


def test_the_standard_model_at_121_frames_and_50_steps_with_guidance_is_over_the_peak() -> None:
    (found,) = (
        c
        for c in combinations(REFERENCES["recipe_standard"])
        if c.shape == Shape(480, 848, 121, 50, True, False)
    )

    assert found.utilisation == pytest.approx(found.tflops / 165.2)
    assert found.utilisation > 1
    least_minutes = found.model_pflop * 1e15 / 165.2e12 / 60
    assert least_minutes == pytest.approx(13.6, abs=0.05)  # as the reference's note says


def test_a_figure_with_everything_stated_has_one_combination() -> None:
    (found,) = combinations(REFERENCES["vllm_omni_121"])

    assert found.shape == Shape(480, 832, 121, 50, True, False)
    assert found.utilisation == pytest.approx(0.51, abs=0.01)


def test_an_unknown_card_has_a_rate_but_no_utilisation() -> None:
    (found,) = combinations(replace(REFERENCES["vllm_omni_121"], card=None))

    assert found.tflops > 0
    assert (found.utilisation, found.feasibility) == (None, Feasibility.unknown)


def test_figures_of_memory_and_loading_imply_no_rate() -> None:
    assert combinations(REFERENCES["recipe_vram"]) == []
    assert combinations(REFERENCES["recipe_load"]) == []


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("vllm_omni_121", 259.4 * 0.95, 259.4 * 1.05),
        ("comfyui_rtx4090_48gb", 3240, 3960),
        ("recipe_standard", 180, 720),
        ("tencent_step_distilled", float("-inf"), 75),
    ],
)
def test_a_single_figure_has_a_tolerance_a_range_and_a_bound_have_none(
    name: str, low: float, high: float
) -> None:
    reference: Reference = REFERENCES[name]

    assert bounds_of(reference) == (pytest.approx(low), pytest.approx(high))
