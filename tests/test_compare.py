"""Two run directories held against each other: what is found, and what is refused."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_fakes import Answer, tiny_model
from safetensors.torch import save_file
from skimage import data

from hv15_batch.compare.frames import FrameMeasures, measure_codec_floor, measure_frames
from hv15_batch.compare.pairs import Pair
from hv15_batch.compare.quality import Quality
from hv15_batch.compare.quality_text import quality_lines
from hv15_batch.compare.ratios import compare_costs
from hv15_batch.config import Config, VideoCodec, VideoConfig
from hv15_batch.latents import DenoisedClip
from hv15_batch.records import ClipRecord
from hv15_batch.rundir import RunDir
from hv15_batch.runlog import RunLog
from hv15_batch.stored_settings import write_settings
from hv15_batch.video import Frames, read_frames, write_video

Command = Callable[..., Answer]

RUN_ID = "20261122T000000-0000-abcd"
FFV1 = VideoConfig(codec=VideoCodec.ffv1)
SHAPE = (5, 32, 48, 3)


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
    assert (row["frames_basis"], row["floor_psnr_db"]) == ("lossless", "")
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
    assert row["is_comparable"] == "true"


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


def test_temporal_psnr_and_floors_count_what_is_infinite_too() -> None:
    pair = Pair("fox", 0, {}, {}, None)
    floors = (math.inf, 50.0, 52.0)
    frames = (
        frame_measures(math.inf, math.inf),
        frame_measures(30.0, math.inf),  # a steady shift
        frame_measures(32.0, 40.0),
    )
    qualities = [
        Quality(pair, None, found, "h264", frame_measures(floor, floor), None)
        for found, floor in zip(frames, floors, strict=True)
    ]

    (line,) = quality_lines(qualities)

    assert line == (
        "Frames (h264 files): 1 of 3 pairs identical; the others PSNR 31.00 dB, SSIM 0.9000, "
        "temporal PSNR 40.00 dB (1 of 2 infinite) (medians of 2 pairs); the codec alone costs "
        "each file, estimated: 1 of 3 pairs without any error; the others PSNR 51.00 dB, "
        "SSIM 0.9000, temporal PSNR 51.00 dB (medians of 2 pairs); 1 of 3 pairs differ by no more "
        "than two such errors"
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


def test_the_codecs_floor_is_near_its_true_error(tmp_path: Path) -> None:
    photo = data.astronaut()
    frames = np.stack([photo[10 + n : 138 + n, 2 * n : 2 * n + 160] for n in range(17)])
    video = VideoConfig(crf=20)
    write_video(frames, tmp_path / "clip", fps=24, video=video, comment=None)

    floor = measure_codec_floor(tmp_path / "clip", video)
    truth = measure_frames(iter(frames), read_frames(tmp_path / "clip"))

    assert floor is not None
    assert floor.psnr_db == pytest.approx(truth.psnr_db, abs=1)
    assert floor.ssim == pytest.approx(truth.ssim, abs=0.01)


def test_h264_files_are_compared_with_the_codecs_floor_stated(
    command: Command, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 3, SHAPE, dtype=np.uint8)
    for name, frames in (("a", picture()), ("b", picture() + noise)):
        Run(tmp_path / name, VideoConfig(crf=30)).add("fox", frames)

    out, (row,) = compare(command)

    assert row["frames_basis"] == "h264"
    assert float(row["psnr_db"]) >= float(row["floor_psnr_db"]) - 3.01
    assert "the codec alone costs each file, estimated: PSNR " in out
    assert "1 of 1 pairs differ by no more than two such errors" in out


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


def test_ratios_are_of_medians_with_an_interval_and_their_number(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_timed(runs[0], [8.0] * 5)
    add_timed(runs[1], [4.0] * 5)

    out, _ = compare(command)

    assert (
        "Seconds per clip: B is 2 times as fast as A (95 % 2 to 2; medians 8 -> 4 s, "
        "n=5 pairs of warm clips)"
    ) in out
    assert "Peak VRAM reserved: B takes 0.5 times what A takes" in out
    assert out.index("bit-identical") < out.index("times as fast")


def test_cached_embeddings_make_no_run_faster(command: Command, runs: tuple[Run, Run]) -> None:
    add_timed(runs[0], [9.0, 8.0, 8.0], encode_seconds=4.0)
    add_timed(runs[1], [5.0, 4.0, 4.0], encode_cached=True)

    out, _ = compare(command)

    assert "Seconds per clip: B is 1 times as fast as A (range of pairs 1 to 1; medians 4" in out


def timing(row_id: str, seconds: float) -> dict[str, Any]:
    """A warm rendering, of which only the time is known."""
    known = {"is_cold": False, "denoise_attempt": 1, "attempt": 1, "row_id": row_id, "seed": 0}
    return dict.fromkeys(ClipRecord.__dataclass_fields__) | known | {"total_seconds": seconds}


def test_the_interval_holds_the_ratio_and_is_the_same_every_time() -> None:
    generator = np.random.default_rng(1)
    timed = [
        (
            timing(f"row{number}", 10 + generator.normal()),
            timing(f"row{number}", 5 + generator.normal() / 2),
        )
        for number in range(20)
    ]

    (ratio,) = compare_costs(timed).ratios
    (again,) = compare_costs(timed).ratios

    assert ratio == again
    assert ratio.interval is not None
    assert ratio.interval[0] < ratio.ratio < ratio.interval[1]
    assert 1.6 < ratio.interval[0] < 2 < ratio.interval[1] < 2.4


def test_repetitions_of_a_clip_do_not_narrow_the_interval() -> None:
    once = [
        (timing(f"row{number}", seconds), timing(f"row{number}", 5.0))
        for number, seconds in enumerate((8.0, 9.0, 10.0, 11.0, 12.0))
    ]

    (ratio,) = compare_costs(once).ratios
    (repeated,) = compare_costs(once * 12).ratios

    assert repeated.interval == ratio.interval
    assert (repeated.n, repeated.num_clips) == (60, 5)
    assert ratio.n_text == "n=5 pairs of warm clips"


@pytest.mark.parametrize("clips", [2, 4])
def test_fewer_than_five_clips_have_a_range_and_no_interval(clips: int) -> None:
    timed = [
        (timing(f"row{number}", 10.0 + number), timing(f"row{number}", 5.0))
        for number in range(clips)
        for _ in range(3)
    ]

    (ratio,) = compare_costs(timed).ratios

    assert ratio.interval is None
    assert ratio.spread_text() == f"range of pairs 2 to {2 + (clips - 1) / 5:.3g}"
    assert ratio.n_text == f"n = {3 * clips} timings of {clips} clips"


def test_range_and_number_of_timings_stand_on_page_and_in_tables(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run, seconds in zip(runs, (6.0, 3.0), strict=True):
        for row_id in ("fox", "owl"):
            run.add(row_id, latents_sha256="ab" * 32, total_seconds=99.0)
            for repeat in (1, 2):
                run.add(row_id, repeat=repeat, total_seconds=seconds + repeat)

    out, _ = compare(command)

    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert "95 % interval is of a bootstrap over clips" in html
    for text, start in ((out, ""), (Path("out/compare.md").read_text(), "- ")):
        assert (
            f"\n{start}Seconds per clip: B is 1.67 times as fast as A (range of pairs 1.6 to 1.75; "
            "medians 7.5 -> 4.5 s, n = 4 timings of 2 clips)"
        ) in text
    assert ">range of pairs 1.60 to 1.75<" in html
    assert ">n = 4 timings of 2 clips<" in html


def test_cold_clips_and_those_from_saved_latents_are_left_out_and_counted(
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

    assert "medians 2 -> 2 s, n=1 pairs of warm clips" in out
    assert "(no range of one pair; " in out
    assert "Left out of the ratios: 1 cold, 1 decoded from saved latents" in out


def test_a_speed_up_without_its_quality_is_withheld(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_timed(runs[0], [8.0, 8.0, 8.0])
    runs[1].add("row0", latents_sha256="cd" * 32, total_seconds=1.0)

    out, (row,) = compare(command)

    assert "Speed and memory: withheld, because no pair's quality could be measured" in out
    assert "times as fast" not in out
    assert (row["is_comparable"], row["clip_seconds_a"], row["clip_seconds_b"]) == (
        *("false", "", ""),
    )


def test_benchmark_repetitions_are_what_is_timed_where_both_have_them(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run, seconds in zip(runs, (6.0, 3.0), strict=True):
        run.add("fox", latents_sha256="ab" * 32, total_seconds=99.0)
        for repeat in (0, 1, 2, 3):  # 0 is a warm-up
            timed = seconds if repeat else 50.0
            run.add("fox", repeat=repeat, total_seconds=timed, latents_sha256="ab" * 32)

    out, rows = compare(command)

    assert "medians 6 -> 3 s, n = 3 timings of 1 clip)" in out
    assert len(rows) == 1


def add_benchmark(run: Run, seconds: float, row_id: str = "fox", **columns: Any) -> None:
    """Add a kept clip, and three repetitions of it that were made with `columns`."""
    run.add(row_id, latents_sha256="ab" * 32, total_seconds=99.0)
    for repeat in (1, 2, 3):
        run.add(row_id, repeat=repeat, total_seconds=seconds, **columns)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"offload": "resident"}, "offload"),
        ({"mask_free": True}, "mask_free"),
        ({"compiled": True}, "compiled"),
        ({"attention_backend": "sage"}, "attention_backend"),
        ({"dtype": "float16"}, "dtype"),
        ({"vae_tile_size": 256}, "vae_tile_size"),
        ({"gpu_name": "NVIDIA Y"}, "gpu_name"),
        ({"driver_version": "600"}, "driver_version"),
        ({"torch_version": "3.0"}, "torch_version"),
        ({"settings_sha256": "other", "num_inference_steps": 4}, "num_inference_steps"),
        ({"settings_sha256": "other"}, "settings_sha256"),
    ],
)
def test_repetitions_made_otherwise_than_the_clip_give_no_ratio(
    command: Command, runs: tuple[Run, Run], columns: dict[str, Any], named: str
) -> None:
    add_benchmark(runs[0], 6.0)
    add_benchmark(runs[1], 3.0, **columns)

    out, (row,) = compare(command)

    assert "bit-identical latents" in out
    assert "times as fast" not in out
    assert "no ratio, because no repetition was made as the clips whose quality is shown" in out
    assert (
        "Left out of the ratios: 3 timings of repetitions made otherwise than the clips whose "
        f"quality is shown (3 by {named} of B); render clips and repetitions alike"
    ) in out
    assert (row["num_timings"], row["num_timings_left_out"]) == ("0", "3")
    assert row["left_out_by"] == f"{named} of B"
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert f"(3 by {named} of B)" in html
    assert "times as fast" not in html


def test_repetitions_made_as_the_clip_are_timed_and_the_others_counted(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_benchmark(runs[0], 6.0)
    add_benchmark(runs[0], 60.0, "owl", compiled=True)
    for row_id in ("fox", "owl"):
        add_benchmark(runs[1], 3.0, row_id)
    runs[1].add("fox", repeat=1, attempt=2, total_seconds=0.1, offload="resident")  # a later one

    out, rows = compare(command)

    assert "medians 6 -> 3 s, n = 3 timings of 1 clip)" in out
    assert "3 timings of repetitions" in out
    assert "(3 by compiled of A)" in out
    assert [row["num_timings"] for row in rows] == ["3", "0"]
    assert [row["timed_seconds_a"] for row in rows] == ["6.0", ""]
    assert [row["timed_seconds_b"] for row in rows] == ["3.0", ""]
    assert [row["clip_seconds_a"] for row in rows] == ["99.0", "99.0"]


@pytest.mark.parametrize(
    ("limits", "video", "named"),
    [
        ((None, 8.0), FFV1, "vram_limit_gib"),
        ((8.0, 8.0), VideoConfig(crf=30), "video"),
        ((8.0, None), None, "video, vram_limit_gib"),  # the settings of that run are gone
        ((8.0, 8.0), FFV1, ""),
    ],
)
def test_repetitions_of_a_run_with_another_vram_limit_or_codec_are_left_out(
    command: Command,
    runs: tuple[Run, Run],
    limits: tuple[float | None, float | None],
    video: VideoConfig | None,
    named: str,
) -> None:
    other = "20261123T000000-0000-abcd"
    add_benchmark(runs[0], 6.0)
    add_benchmark(runs[1], 3.0, run_id=other)
    for run_id, limit, codec in zip((RUN_ID, other), limits, (FFV1, video), strict=True):
        if codec is not None:
            config = Config(model=tiny_model("tiny_t2v"), video=codec)
            config.runtime.vram_limit_gib = limit
            runs[1].run_dir.run_folder(run_id).mkdir(exist_ok=True)
            write_settings(runs[1].run_dir.run_folder(run_id), config)

    out, (row,) = compare(command)

    assert row["left_out_by"] == (f"{named} of B" if named else "")
    assert ("times as fast" in out) == (not named)


def test_settings_and_warnings_are_also_of_what_was_timed(
    command: Command, runs: tuple[Run, Run]
) -> None:
    add_benchmark(runs[0], 6.0, hv15_batch_version="1")
    add_benchmark(runs[1], 3.0, hv15_batch_version="2")
    config = Config(model=tiny_model("tiny_t2v"), video=VideoConfig(crf=30))
    config.runtime.vram_limit_gib = 8.0
    write_settings(runs[1].run_dir.run_folder(RUN_ID), config)

    out, _ = compare(command)

    assert "B is 2 times as fast as A" in out
    table = Path("out/compare.md").read_text(encoding="utf-8")
    assert "| hv15\\_batch\\_version | 1, none | 2, none |" in table
    assert "| vram\\_limit\\_gib | none | 8 |" in table
    assert "| video | ffv1 | h264 crf 30 medium |" in table


def test_two_cards_are_warned_about(command: Command, runs: tuple[Run, Run]) -> None:
    runs[0].add("fox", latents_sha256="ab" * 32, total_seconds=2.0)
    runs[1].add("fox", latents_sha256="ab" * 32, total_seconds=1.0, gpu_name="NVIDIA Y")

    out, _ = compare(command)

    assert "Warning: two different cards (NVIDIA X; NVIDIA Y)" in out


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


def test_the_setting_that_makes_every_pair_incomparable_is_shown_to_differ(
    command: Command, runs: tuple[Run, Run]
) -> None:
    for run in runs:
        run.add("fox", picture(), num_frames=9 if run is runs[0] else 13)

    compare(command)

    table = Path("out/compare.md").read_text(encoding="utf-8")
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert "| num\\_frames | 9 | 13 |" in table
    assert "No setting differs" not in table + html
    assert "<dt>video</dt>" not in html


def test_the_newest_settings_of_a_row_count_unless_the_plan_names_others(
    command: Command, runs: tuple[Run, Run]
) -> None:
    runs[0].add("fox", latents_sha256="ab" * 32)
    runs[1].add("fox", latents_sha256="ab" * 32, settings_sha256="planned")
    runs[1].add("fox", latents_sha256="cd" * 32, settings_sha256="other", attempt=2)
    out, _ = compare(command)
    assert "bit-identical" not in out.splitlines()[0]

    runs[1].run_dir.plan.write_text("settings_sha256\nplanned\n", encoding="utf-8")
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
    own = ("assets/page.css", "assets/compare.css", "assets/compare.js")
    for name in (*own, "compare.csv", "compare.md"):
        assert f'"{name}"' in html
        assert (folder / name).is_file()
    assert "default-src 'none'" in html
    for side in ("a", "b"):  # browsers play no Matroska
        assert f'src="previews/fox_s0_{side}.mp4"' in html
        assert (folder / f"previews/fox_s0_{side}.mp4").is_file()
    assert "| num\\_inference\\_steps | 4 | 8 |" in (folder / "compare.md").read_text()


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

    assert (
        rows[1]["note"]
        == "owl_s0.mkv cannot be read back: Invalid data found when processing input"
    )
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


def test_how_a_file_was_encoded_is_missing_under_the_name_of_its_run(
    command: Command, runs: tuple[Run, Run], tmp_path: Path
) -> None:
    for run in runs:
        run.add("fox", picture())
    (settings,) = runs[0].run_dir.runs.glob("*/*")
    settings.unlink()

    _, (row,) = compare(command)

    assert row["note"].startswith(f"a/runs/{RUN_ID}/{settings.name}: is gone, ")


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
    assert "Left out of the ratios: 1 cold" in out
    assert [row["clip_id_a"] for row in rows] == [row["clip_id_b"] for row in rows]
    html = Path("out/compare.html").read_text(encoding="utf-8")
    assert f'src="../a/clips/{rows[0]["clip_id_a"]}.mp4"' in html
