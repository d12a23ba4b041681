"""Two run directories compared: what is found, what is refused, and what may be shared."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.command import Answer, tiny_model
from safetensors.torch import save_file

from hv15_batch.compare._measures import FrameMeasures, measure_frames
from hv15_batch.compare._pairs import Pair
from hv15_batch.compare._quality import Quality, quality_lines
from hv15_batch.config.settings import Config, VideoCodec, VideoConfig
from hv15_batch.engine._latents import DenoisedClip
from hv15_batch.media.video import Frames, write_video
from hv15_batch.record import ClipRecord
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import write_settings

Command = Callable[..., Answer]

RUN_ID = "20261122T000000-0000-abcd"
FFV1 = VideoConfig(codec=VideoCodec.ffv1)
SHAPE = (5, 32, 48, 3)
WRITTEN = ("compare.md", "compare.html")


def picture(seed: int = 0) -> Frames:
    """Frames of smooth colours, away from black and white."""
    coarse = np.random.default_rng(seed).integers(80, 160, (SHAPE[0], 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


@dataclass
class Run:
    """A run directory that is written by hand."""

    path: Path
    video: VideoConfig

    def __post_init__(self) -> None:
        self.run_dir = RunDir(self.path)
        self.run_dir.create()
        folder = self.run_dir.run_folder(RUN_ID)
        folder.mkdir()
        write_settings(folder, Config(model=tiny_model("tiny_t2v"), video=self.video))
        self.log = RunLog(self.run_dir.log, RUN_ID)

    def add(
        self,
        row_id: str,
        frames: Frames | None = None,
        latents: torch.Tensor | None = None,
        **columns: Any,
    ) -> None:
        """Log a clip, and write its files where they are given."""
        clip_id = f"{row_id}_s{columns.get('seed', 0)}"
        known: dict[str, Any] = {
            "settings_sha256": f"{self.path.name}-{clip_id}",
            **{"run_id": RUN_ID, "row_id": row_id, "clip_id": clip_id, "seed": 0, "row_index": 0},
            **{"attempt": 1, "denoise_attempt": 1, "status": "ok", "prompt": f"about {row_id}"},
            **{"num_frames": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2], "fps": 24.0},
            **{"is_cold": False, "weights": "pretrained", "gpu_name": "NVIDIA X"},
            "model": "480p_t2v",
        }
        if frames is not None:
            known["file"] = f"clips/{clip_id}.{'mkv' if self.video is FFV1 else 'mp4'}"
            path = self.path / known["file"]
            write_video(frames, path, fps=24, video=self.video, comment=None)
        if latents is not None:
            known["latents_file"] = f"latents/{clip_id}.safetensors"
            known["latents_sha256"] = DenoisedClip(latents, {}, "").latents_sha256
            save_file({"latents": latents}, self.path / known["latents_file"])
        self.log.append(replace(ClipRecord(), **(known | columns)))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Run, Run]:
    """Two runs with lossless files."""
    return Run(tmp_path / "a", FFV1), Run(tmp_path / "b", FFV1)


def compare(command: Command, *more: str | Path) -> tuple[str, list[dict[str, str]]]:
    """Return what the command prints, and its table."""
    answer = command("compare", "a", "b", "--out", "out", *more)
    assert answer.code == 0, answer.err
    with Path("out/compare.csv").open(encoding="utf-8", newline="") as file:
        return answer.out, list(csv.DictReader(file))


# -- measures ---------------------------------------------------------------------------------


def test_lossless_frames_give_the_psnr_of_the_difference_that_was_planted(
    command: Command, runs: tuple[Run, Run]
) -> None:
    runs[0].add("fox", picture())
    runs[1].add("fox", picture() + np.uint8(2))

    out, (row,) = compare(command)

    assert float(row["psnr_db"]) == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert float(row["rgb_psnr_db"]) == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert float(row["temporal_psnr_db"]) > 100  # the same shift in every frame: no flicker
    assert 0.9 < float(row["ssim"]) < 1
    assert row["frames_basis"] == "lossless"
    assert "Frames (lossless files): PSNR 42.11 dB" in out


def test_flicker_costs_temporal_psnr_where_a_steady_shift_does_not() -> None:
    still = np.full((4, 16, 16, 3), 100, np.uint8)
    flicker = still.copy()
    flicker[1::2] += 4

    measured = measure_frames(iter(still), iter(flicker))

    assert measured.temporal_psnr_db == pytest.approx(20 * math.log10(255 / 4), abs=1e-3)
    assert measured.psnr_db == pytest.approx(20 * math.log10(255 / math.sqrt(8)), abs=1e-3)


def test_a_change_of_colour_alone_shows_in_rgb_psnr() -> None:
    grey = np.full((1, 16, 16, 3), 100, np.uint8)
    tinted = grey.copy()
    tinted[..., 2] += 60  # blue: 4.3 of luma

    measured = measure_frames(iter(grey), iter(tinted))

    assert measured.psnr_db > measured.rgb_psnr_db + 15
    assert measured.temporal_psnr_db is None  # a single frame does not change


def test_equal_latents_are_said_to_be_bit_identical_also_where_they_were_not_kept(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("fox", latents_sha256="ab" * 32, total_seconds=2.0)

    out, (row,) = compare(command)

    assert "Latents: 1 of 1 pairs bit-identical latents" in out
    assert "Files: " not in out  # the log has no hash of either
    assert (row["latents_identical"], row["latents_psnr_db"]) == ("true", "inf")
    assert (row["files_identical"], row["is_comparable"]) == ("", "true")


def test_equal_files_are_said_to_be_bit_identical_also_where_they_are_gone(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("kept", picture(), file_sha256="ab" * 32)
        run.add("gone", file="clips/gone.mkv", file_sha256="cd" * 32, row_index=1)
        run.add("other", picture(), file_sha256=run.path.name * 64, row_index=2)

    out, rows = compare(command)

    line = "Files: 2 of 3 pairs bit-identical files"
    for text in (out, Path("out/compare.html").read_text(), Path("out/compare.md").read_text()):
        assert line in text
    assert "kept seed 0: bit-identical files, frames (lossless) PSNR infinite (identical)" in out
    assert "gone seed 0: bit-identical files, the files of both are gone\n" in out
    assert [row["files_identical"] for row in rows] == ["true", "true", "false"]
    assert [row["is_comparable"] for row in rows] == ["true", "true", "true"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_latents_of_any_type_are_compared_relative_to_their_range(
    command: Command, runs: tuple[Run, Run], dtype: torch.dtype
) -> None:
    latents = torch.linspace(-2, 2, 64).to(dtype).reshape(1, 1, 4, 4, 4)
    runs[0].add("fox", latents=latents)
    runs[1].add("fox", latents=latents + 0.5)

    out, (row,) = compare(command)

    assert float(row["latents_data_range"]) == 4.0
    assert float(row["latents_psnr_db"]) == pytest.approx(20 * math.log10(4 / 0.5), abs=0.1)
    assert "relative to the range of A's latents, 4" in out


def test_latents_that_are_not_those_of_the_log_are_not_compared(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for number, run in enumerate(runs):
        run.add("fox", latents=torch.full((1, 1, 1, 2, 2), float(number)), total_seconds=2.0)
    save_file({"latents": torch.zeros(1, 1, 1, 2, 2)}, runs[1].path / "latents/fox_s0.safetensors")

    out, (row,) = compare(command)

    assert (row["latents_identical"], row["latents_psnr_db"]) == ("false", "")
    assert "Latents: 0 of 1 pairs bit-identical latents, 1 differs (not kept" in out
    assert "withheld" in out


def test_medians_are_of_the_pairs_that_differ_and_identical_ones_are_counted(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for number, shift in enumerate((0, 0, 10, 14)):
        runs[0].add(f"row{number}", picture(), row_index=number)
        runs[1].add(f"row{number}", picture() + np.uint8(shift), row_index=number)

    out, rows = compare(command)

    psnr = np.mean([20 * math.log10(255 / shift) for shift in (10, 14)])
    line = f"Frames (lossless files): 2 of 4 pairs identical; the others PSNR {psnr:.2f} dB, SSIM "
    for text in (out, Path("out/compare.html").read_text(), Path("out/compare.md").read_text()):
        assert line in text
        assert "(medians of 2 pairs)" in text
    assert [row["psnr_db"] for row in rows][:2] == ["inf", "inf"]


def frame_measures(psnr: float, temporal: float | None) -> FrameMeasures:
    return FrameMeasures(psnr, psnr, 1.0 if math.isinf(psnr) else 0.9, temporal)


def test_temporal_psnr_counts_what_is_infinite_too() -> None:
    pair = Pair("fox", 0, {}, {}, None)
    frames = (
        frame_measures(math.inf, math.inf),
        frame_measures(30.0, math.inf),  # a steady shift
        frame_measures(32.0, 40.0),
    )
    qualities = [Quality(pair, frames=found, basis="h264") for found in frames]

    (line,) = quality_lines(qualities)

    assert line == (
        "Frames (h264 files): 1 of 3 pairs identical; the others PSNR 31.00 dB, SSIM 0.9000, "
        "temporal PSNR 40.00 dB (1 of 2 infinite) (medians of 2 pairs); they include the "
        "codec's own error; video.codec=ffv1 has none"
    )


def test_latents_known_to_differ_are_counted_also_where_they_were_not_kept(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        for number in range(4):
            is_other = run is runs[1] and number >= 2
            sha256 = ("cd" if is_other else "ab") * 32
            run.add(f"row{number}", picture(), latents_sha256=sha256, row_index=number)

    out, rows = compare(command)

    line = "Latents: 2 of 4 pairs bit-identical latents, 2 differ (not kept, so not measured)"
    for text in (out, Path("out/compare.html").read_text(), Path("out/compare.md").read_text()):
        assert line in text
    assert [row["latents_identical"] for row in rows] == ["true", "true", "false", "false"]
    assert [row["latents_psnr_db"] for row in rows] == ["inf", "inf", "", ""]


def test_h264_files_are_compared_and_the_codecs_error_is_said_to_be_in_them(
    command: Command, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 3, SHAPE, dtype=np.uint8)
    for name, frames in (("a", picture()), ("b", picture() + noise)):
        Run(tmp_path / name, VideoConfig(crf=30)).add("fox", frames)

    out, (row,) = compare(command)

    assert row["frames_basis"] == "h264"
    assert 20 < float(row["psnr_db"]) < 60
    assert "they include the codec's own error; video.codec=ffv1 has none" in out


# -- speed and memory -------------------------------------------------------------------------


def add_timed(run: Run, seconds: list[float], **columns: Any) -> None:
    for number, value in enumerate(seconds):
        run.add(
            f"row{number}",
            latents_sha256="ab" * 32,
            total_seconds=value,
            peak_vram_reserved_bytes=int(value * 2**30),
            row_index=number,
            **columns,
        )


def test_ratios_are_of_medians_with_ranges_and_their_number(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_timed(runs[0], [7.0, 8.0, 9.0])
    add_timed(runs[1], [4.0] * 5)

    out, _ = compare(command)

    line = (
        "Seconds per clip: B is 2 times as fast as A (A 8 s, 7 to 9, n = 3 warm clips; "
        "B 4 s, 4 to 4, n = 5 warm clips)"
    )
    memory = (
        "Peak VRAM reserved: B takes 0.444 times what A takes (A 9.00 GiB, 7.00 to 9.00, "
        "n = 3 clips; B 4.00 GiB, 4.00 to 4.00, n = 5 clips)"
    )
    for text in (out, Path("out/compare.md").read_text()):
        assert line in text
        assert memory in text
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert all(f">{cell}<" in html for cell in ("2.00 times as fast", "8 s", "7 to 9"))
    assert out.index("bit-identical") < out.index("times as fast")


def test_figures_are_those_of_the_report(command: Command, runs: tuple[Run, Run]) -> None:
    add_timed(runs[0], [7.0, 8.0, 9.5])
    add_timed(runs[1], [4.0, 4.5], offload="stream")

    out, _ = compare(command)
    assert command("report", "a", "b", "--out", "report").code == 0

    with Path("report/comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["n"], line["median_seconds"]) for line in lines] == [("3", "8.0"), ("2", "4.25")]
    assert "A 8 s, 7 to 9.5, n = 3 warm clips; B 4.25 s, 4 to 4.5, n = 2 warm clips" in out


def test_cached_embeddings_make_no_run_faster(command: Command, runs: tuple[Run, Run]) -> None:
    add_timed(runs[0], [9.0, 8.0, 8.0], encode_seconds=4.0)
    add_timed(runs[1], [5.0, 4.0, 4.0], encode_cached=True)

    out, _ = compare(command)

    assert "Seconds per clip: B is 1 times as fast as A (A 4 s, 4 to 5, n = 3 warm clips" in out


def test_cold_clips_and_those_from_saved_latents_are_left_out(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        is_b = run is runs[1]
        run.add("cold", latents_sha256="ab" * 32, total_seconds=100.0, is_cold=is_b)
        run.add(
            *("again",), latents_sha256="ab" * 32, total_seconds=0.1, attempt=2, denoise_attempt=1
        )
        run.add("warm", latents_sha256="ab" * 32, total_seconds=2.0)

    out, _ = compare(command)

    assert "A 51 s, 2 to 100, n = 2 warm clips; B 2 s, 2 to 2, n = 1 warm clips" in out


def test_a_run_with_neither_warm_clips_nor_repetitions_has_no_ratio(
    command: Command, runs: tuple[Run, Run]
) -> None:
    runs[0].add("fox", latents_sha256="ab" * 32, total_seconds=3.0)
    runs[1].add("fox", latents_sha256="ab" * 32, total_seconds=9.0, is_cold=True)

    out, _ = compare(command)

    line = "Speed and memory: no ratio, because B has no warm clip and no repetition"
    html = Path("out/compare.html").read_text(encoding="utf-8")
    for text in (out, html, Path("out/compare.md").read_text()):
        assert line in text
        assert "times" not in text


def test_two_sizes_have_ratios_of_their_own(command: Command, runs: tuple[Run, Run]) -> None:
    for run, seconds in zip(runs, (8.0, 4.0), strict=True):
        for size, factor in ((32, 1), (64, 5)):
            run.add(
                f"row{size}", latents_sha256="ab" * 32, total_seconds=seconds * factor, height=size
            )

    out, _ = compare(command)

    html = Path("out/compare.html").read_text(encoding="utf-8")
    for name, seconds in (("32×48", 8), ("64×48", 40)):
        assert f"Seconds per clip ({name}): B is 2 times as fast as A (A {seconds} s, " in out
        assert f'<th scope="rowgroup" colspan="8">{name}</th>' in html


def test_a_speed_up_without_its_quality_is_withheld(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_timed(runs[0], [8.0, 8.0, 8.0])
    runs[1].add("row0", latents_sha256="cd" * 32, total_seconds=1.0)

    out, (row,) = compare(command)

    assert "Speed and memory: withheld, because no pair's quality could be measured" in out
    assert "times as fast" not in out
    assert row["is_comparable"] == "false"


def test_repetitions_are_what_is_timed_where_there_are_any(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("fox", latents_sha256="ab" * 32, total_seconds=9.0)
    for repeat in (0, 1, 2, 3):  # 0 is a warm-up
        runs[1].add("fox", repeat=repeat, total_seconds=3.0 if repeat else 50.0, is_cold=not repeat)

    out, rows = compare(command)

    assert (
        "Seconds per clip: B is 3 times as fast as A (A 9 s, 9 to 9, n = 1 warm clips; "
        "B 3 s, 3 to 3, n = 3 repetitions)"
    ) in out
    assert len(rows) == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"offload": "resident"},
        {"mask_free": True},
        {"compiled": True},
        {"attention_backend": "sage"},
        {"dtype": "float16"},
        {"vae_tile_size": 256},
        {"gpu_name": "NVIDIA Y"},
        {"driver_version": "600"},
        {"torch_version": "3.0"},
        {"num_inference_steps": 4},
        {"run_id": "20261123T000000-0000-abcd"},  # of another VRAM limit
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_repetitions_made_with_other_settings_than_the_clips_do_not_count(
    command: Command, runs: tuple[Run, Run], columns: dict[str, Any]
) -> None:
    config = Config(model=tiny_model("tiny_t2v"), video=FFV1)
    config.runtime.vram_limit_gib = 8.0
    other = runs[1].run_dir.run_folder("20261123T000000-0000-abcd")
    other.mkdir()
    write_settings(other, config)
    for run in runs:
        run.add("fox", latents_sha256="ab" * 32, total_seconds=9.0)
    for repeat in (1, 2, 3):
        runs[1].add("fox", repeat=repeat, total_seconds=3.0, **columns)

    out, _ = compare(command)

    assert "B is 1 times as fast as A (A 9 s, 9 to 9, n = 1 warm clips; B 9 s, 9 to 9" in out
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert "repetitions</td>" not in html


def test_what_makes_figures_unfit_to_quote_is_said_of_each_side(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_timed(runs[0], [8.0, 8.0])
    add_timed(runs[1], [4.0, 4.0, 7.0, 8.0])

    out, _ = compare(command)

    table = Path("out/compare.md").read_text(encoding="utf-8")
    for text in (out, table):
        assert "Warning: A: Too few timed clips to tell the spread (n = 2): use" in text
        assert "Warning: B: The timed clips differ much (" in text


def test_two_cards_are_warned_about(command: Command, runs: tuple[Run, Run]) -> None:
    runs[0].add("fox", latents_sha256="ab" * 32, total_seconds=2.0)
    runs[1].add("fox", latents_sha256="ab" * 32, total_seconds=1.0, gpu_name="NVIDIA Y")

    out, _ = compare(command)

    assert "Warning: two different cards (NVIDIA X; NVIDIA Y)" in out


@pytest.mark.parametrize(
    ("weights", "words", "others"),
    [
        ("tiny", "noise on purpose", "made-up world"),
        ("random", "noise on purpose: model.weights=random", "made-up world"),
        ("demo", "trained on a made-up world", "noise"),
        ("pretrained", "", "Note:"),
    ],
)
def test_clips_of_other_weights_are_called_what_they_are(
    command: Command, runs: tuple[Run, Run], weights: str, words: str, others: str
) -> None:
    for run in runs:
        run.add("fox", latents_sha256="ab" * 32, total_seconds=2.0, weights=weights)

    out, _ = compare(command)

    for text in (out, *(Path("out", name).read_text(encoding="utf-8") for name in WRITTEN)):
        assert words in text
        assert others not in text


# -- what belongs together --------------------------------------------------------------------


def test_a_clip_of_another_size_is_listed_as_not_comparable(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("fox", picture())
        run.add("owl", picture(), num_frames=SHAPE[0] + 4 * (run is runs[1]), row_index=1)

    out, rows = compare(command)

    assert [row["is_comparable"] for row in rows] == ["true", "false"]
    assert rows[1]["note"] == "sizes differ: 32x48, 5 frames and 32x48, 9 frames"
    assert "1 of 2 pairs compared" in out


def test_clips_that_began_with_other_pixels_of_the_clip_before_are_not_compared(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        own = "ab" if run is runs[0] else "cd"
        source = {"image": "@fox:last", "image_source": f"{'e' * 64}:4"}
        run.add("fox", picture())
        run.add("owl", picture(), row_index=1, **source, image_sha256="ab" * 32)
        run.add("hen", picture(), row_index=2, **source, image_sha256=own * 32)

    _, rows = compare(command)

    assert [row["is_comparable"] for row in rows] == ["true", "true", "false"]
    assert rows[2]["note"] == ("first frames differ: the clips that they follow have other pixels")


def test_the_setting_that_makes_every_pair_incomparable_is_shown_to_differ(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("fox", picture(), num_frames=9 if run is runs[0] else 13)

    compare(command)

    table = Path("out/compare.md").read_text(encoding="utf-8")
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert "| num_frames | 9 | 13 |" in table
    assert "No setting differs" not in table + html
    assert "<dt>video</dt><dd>ffv1</dd>" in html


def test_the_newest_settings_of_a_row_count_unless_the_plan_names_others(
    command: Command, runs: tuple[Run, Run]
) -> None:
    runs[0].add("fox", latents_sha256="ab" * 32)
    runs[1].add("fox", latents_sha256="ab" * 32, settings_sha256="planned")
    runs[1].add("fox", latents_sha256="cd" * 32, settings_sha256="other", attempt=2)
    out, _ = compare(command)
    assert "bit-identical" not in out.splitlines()[0]

    runs[1].run_dir.plan.write_text(
        "clip_id,row_index,seed,settings_sha256\nfox_s0,0,0,planned\n", encoding="utf-8"
    )
    out, _ = compare(command)

    assert "bit-identical latents" in out.splitlines()[0]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 7}, "no row with the same id and seed in common"),
        ({"prompt": "a dog"}, "row fox, seed 0: the prompts differ: 'about fox' in "),
        ({"image": "b.png"}, "row fox, seed 0: the first frames differ: None in "),
        ({"status": "failed"}, "no clip is finished there"),
    ],
)
def test_runs_of_different_things_are_refused(
    command: Command, runs: tuple[Run, Run], other: dict[str, Any], message: str
) -> None:
    runs[0].add("fox")
    runs[1].add("fox", **other)

    answer = command("compare", "a", "b")

    assert answer.code == 2
    assert message in answer.err
    assert not (runs[1].path / "compare").exists()


def test_what_is_no_run_directory_is_refused(command: Command, runs: tuple[Run, Run]) -> None:
    runs[0].add("fox")

    nowhere, twice = command("compare", "a", "nowhere"), command("compare", "a", "./a")

    assert (nowhere.code, twice.code) == (2, 2)
    assert "nowhere: no run directory" in nowhere.err
    assert "named twice" in twice.err
    assert command("compare", "a").code == 2
    assert command("compare", "--help").code == 0


# -- what is written --------------------------------------------------------------------------


def test_the_page_stands_in_b_with_assets_players_and_prompts_as_text(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("fox", picture(), prompt='<script>alert("1")</script>', num_inference_steps=4)
    runs[1].add("fox", picture(1), prompt='<script>alert("1")</script>', num_inference_steps=8)

    answer = command("compare", "a", "b")

    folder = runs[1].path / "compare" / "a"
    html = (folder / "compare.html").read_text(encoding="utf-8")
    assert answer.out.splitlines()[-1] == f"Page: {folder / 'compare.html'}"
    assert "&lt;script&gt;alert(" in html
    assert "<script>alert" not in html
    own = tuple(
        f"assets/{name}"
        for name in ("page.css", "clock.js", "paper.js", "compare.css", "compare.js")
    )
    for name in (*own, "compare.csv", "compare.md"):
        assert f'"{name}"' in html
        assert (folder / name).is_file()
    assert "default-src 'none'" in html
    for side in ("a", "b"):  # browsers play no Matroska
        assert f'src="previews/fox_s0_{side}.mp4"' in html
        assert (folder / f"previews/fox_s0_{side}.mp4").is_file()
    assert "| num_inference_steps | 4 | 8 |" in (folder / "compare.md").read_text()


def test_what_is_written_names_no_machine_and_no_folder(
    command: Command, runs: tuple[Run, Run], tmp_path: Path
) -> None:
    for run in runs:
        run.add(
            "fox", picture(), hostname=f"secret-{run.path.name}", repo=f"/home/{run.path.name}/w"
        )

    damage(runs[1], "owl", row_index=1)
    runs[0].add("owl", picture(), row_index=1)

    _, rows = compare(command)

    assert rows[1]["note"] == "a file could not be read"
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert "owl_s0.mkv cannot be read back: Invalid data found when processing input" in html
    for name in ("compare.html", "compare.md", "compare.csv"):
        text = Path("out", name).read_text(encoding="utf-8")
        assert "secret-" not in text
        assert "/home/" not in text
        assert str(tmp_path) not in text


def damage(run: Run, row_id: str, **columns: Any) -> None:
    """Add a clip whose file is no video."""
    run.add(row_id, picture(), **columns)
    (run.path / "clips" / f"{row_id}_s0.mkv").write_bytes(b"no video")


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("a", "the file of A is gone"),
        ("b", "the file of B is gone"),
        ("ab", "the files of both are gone"),
    ],
)
def test_a_file_that_is_gone_is_said_with_its_side(
    command: Command, runs: tuple[Run, Run], gone: str, note: str
) -> None:
    for run in runs:
        run.add("fox", picture())
        if run.path.name in gone:
            (run.path / "clips" / "fox_s0.mkv").unlink()

    out, (row,) = compare(command)

    assert row["note"] == note
    assert f"fox seed 0: not comparable: {note}\n" in out


# -- what may be shared -----------------------------------------------------------------------

SECRET = "s3cret"


@pytest.fixture
def private_runs(tmp_path: Path) -> tuple[Run, Run]:
    """Two runs in which everything private has the same word."""
    folder = tmp_path / f"{SECRET} folder"
    runs = (Run(folder / f"{SECRET}_a", FFV1), Run(folder / f"{SECRET}_b", FFV1))
    private: dict[str, Any] = {
        **dict.fromkeys(("prompt", "error_message", "hostname", "gpu_uuid"), SECRET),
        **{"image": f"{SECRET}.png", "tags": json.dumps({"tag_client": SECRET})},
        **{"total_seconds": 2.0, "revision": "0123456789abcdef"},
    }
    for run in runs:
        columns = {
            **private,
            "repo": str(run.path / SECRET),
            "negative_prompt": f"{SECRET} {run.path.name}",
        }
        run.add(f"{SECRET}_fox", picture(), **columns)
        for seed in (1, 2):
            run.add(f"{SECRET}_owl", picture(), seed=seed, **columns)
        damage(run, f"{SECRET}_damaged", row_index=2, **columns)
        run.add(f"{SECRET}_gone", row_index=3, **columns)
        run.add(f"{SECRET}_size", num_frames=5 + 4 * (run is runs[1]), row_index=4, **columns)
    return runs


def test_tables_to_share_hold_no_prompt_id_tag_folder_or_hostname(
    command: Command, private_runs: tuple[Run, Run], tmp_path: Path
) -> None:
    a, b = (run.path for run in private_runs)

    answer = command("compare", a, b, "--out", "out")

    assert answer.code == 0
    shared = {name: Path("out", name).read_text(encoding="utf-8") for name in
              ("compare.md", "compare.csv")}  # fmt: skip
    for text in shared.values():
        assert SECRET not in text
        assert str(tmp_path) not in text
    rows = list(csv.DictReader(shared["compare.csv"].splitlines()))
    assert [(row["pair"], row["seed"], row["note"]) for row in rows] == [
        ("1", "0", ""),
        ("2", "1", ""),
        ("3", "2", ""),
        ("4", "0", "a file could not be read"),
        ("5", "0", "the files of both are gone"),
        ("6", "0", "sizes differ: 32x48, 5 frames and 32x48, 9 frames"),
    ]
    assert [row["psnr_db"] for row in rows] == ["inf", "inf", "inf", "", "", ""]
    # That a private setting differs is said, what it is is not.
    assert "| negative_prompt | not shown | not shown |" in shared["compare.md"]
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert "This page is private" in html
    assert f'<th scope="row">2: <a href="#pair-2">{SECRET}_owl, seed 1</a>' in html
    assert "<dt>repo</dt><dd>local folder 01234567</dd>" in html


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("tencent/HunyuanVideo-1.5", "tencent/HunyuanVideo-1.5"),
        ("/home/me/s3cret/tuned.safetensors", "tuned.safetensors 01234567"),
        ("/home/me/s3cret", "local folder 01234567"),
        ("~/s3cret", "local folder 01234567"),
    ],
)
def test_local_weights_are_named_without_their_folder(
    command: Command, runs: tuple[Run, Run], repo: str, name: str
) -> None:
    runs[0].add("fox", picture(), repo=repo, revision="0123456789abcdef")
    runs[1].add("fox", picture(), repo="owner/other")

    compare(command)

    table = Path("out/compare.md").read_text(encoding="utf-8")
    assert f"| repo | {name} | owner/other |" in table


@pytest.mark.slow
def test_two_runs_of_the_tiny_model_are_compared_from_the_command_line(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("id,prompt,seed\nfox,a fox,0..1\n", encoding="utf-8")
    tiny = ("model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=5")
    assert command("p.csv", *tiny, "run_dir=a").code == 0
    assert command("p.csv", *tiny, "run_dir=b", "offload=resident").code == 0

    out, rows = compare(command)

    assert "Latents: 2 of 2 pairs bit-identical latents" in out
    assert "Frames (h264 files): PSNR infinite (identical), SSIM 1.0000" in out
    assert "Files: 2 of 2 pairs bit-identical files" in out
    assert "Seconds per clip: B is " in out
    assert [row["latents_identical"] for row in rows] == ["true", "true"]
    html = Path("out/compare.html").read_text(encoding="utf-8")
    for clip in Path("a/clips").iterdir():
        assert f'src="../a/clips/{clip.name}"' in html
