"""`report --figures DIR`: each plot as SVG, PNG and CSV, drawn without a browser."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import HOSTILE, MEASURED, START, make_run, record
from PIL import Image

from hv15_batch.report.command import main
from hv15_batch.report.drawn.chart import Axis

SVG = "{http://www.w3.org/2000/svg}"


def run_of(folder: Path, seconds: float, gib: float, **changes: Any) -> Path:
    """Write a run of three warm clips."""
    values = {**MEASURED, "encode_seconds": None, "total_seconds": seconds, **changes}
    peak = int(gib * 2**30)
    clips = [
        record(f"c{n}", n, started_at=START + timedelta(minutes=7 * n),
               peak_vram_reserved_bytes=peak, file_sha256=f"{n}", **values)
        for n in range(3)
    ]  # fmt: skip
    return make_run(folder, clips, clips)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of a sweep of two runs."""
    tmp_path = tmp_path_factory.mktemp("figures")
    run_of(tmp_path / "p.sweep" / "resident", 100.0, 40.0, offload="resident")
    run_of(tmp_path / "p.sweep" / "stream", 150.0, 10.0, offload="stream")
    assert main([str(tmp_path / "p.sweep"), "--figures", str(tmp_path / "figures")]) == 0
    return tmp_path / "figures"


def texts(path: Path) -> list[str]:
    return [str(item.text) for item in ElementTree.parse(path).iter(f"{SVG}text")]


def test_each_plot_of_the_comparison_and_of_its_runs_is_written(figures: Path) -> None:
    names = {"seconds-against-memory", "seconds-a-clip", "peak-vram", "energy-a-clip"}
    own = {
        *("seconds-per-stage", "seconds-per-step", "vram-per-stage", "ram", "sm-clock"),
        *("temperature-of-the-card", "clips-per-hour", "energy"),
    }
    for folder, stems in ((figures, names), (figures / "resident", own), (figures / "stream", own)):
        files = {p.name for p in folder.iterdir() if p.is_file()}
        assert files == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png", "csv")}
        for stem in stems:
            with Image.open(folder / f"{stem}.png") as image:
                colours = image.convert("RGB").getcolors(1 << 24)
                svg = ElementTree.parse(folder / f"{stem}.svg").getroot()
                assert image.size == tuple(
                    2 * round(float(svg.attrib[side])) for side in ("width", "height")
                )
            assert colours is not None
            assert len(colours) > 20  # not an empty sheet


def test_a_picture_has_names_values_and_text_of_the_plot(figures: Path) -> None:
    path = figures / "seconds-against-memory.svg"
    said = texts(path)
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in ElementTree.parse(path).iter(f"{SVG}circle")
    ]

    assert said[0] == "Seconds against memory"
    assert {"resident (Pareto front)", "stream (Pareto front)", "seconds a clip"} < set(said)
    assert " ".join(said).endswith(
        "Pareto front: resident; stream. No other is faster without more memory. "
        "stream: same bits as resident in 3 clips."
    )
    (x_resident, y_resident), (x_stream, y_stream) = dots
    assert x_stream < x_resident
    assert y_resident > y_stream  # downwards


def test_the_values_are_those_of_the_plot(figures: Path) -> None:
    with (figures / "seconds-against-memory.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))

    assert rows == [
        ["series", "peak VRAM reserved by torch, GiB", "seconds a clip"],
        ["resident (Pareto front)", "40.0", "100.0"],
        ["stream (Pareto front)", "10.0", "150.0"],
        ["Pareto front", "10.0", "150.0"],
        ["Pareto front", "40.0", "100.0"],
    ]


def test_the_plots_of_one_run_go_into_the_folder_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", 100.0, 40.0)

    assert main([str(run), "--figures", str(tmp_path / "new" / "figures")]) == 0

    assert (tmp_path / "new" / "figures" / "seconds-per-stage.svg").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new" / "figures")


def test_text_of_a_log_is_text_in_a_picture(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / name, 100.0, gib, offload=f"{HOSTILE}{name}")
        for name, gib in (("a", 10.0), ("b", 20.0))
    ]

    assert main([*map(str, runs), "--figures", str(tmp_path / "figures")]) == 0

    said = texts(tmp_path / "figures" / "seconds-against-memory.svg")
    assert any("<script>" in text for text in said)
    root = ElementTree.parse(tmp_path / "figures" / "seconds-against-memory.svg").getroot()
    assert {item.tag for item in root} == {f"{SVG}{n}" for n in ("rect", "text", "line", "circle")}


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", 100.0, 40.0)
    (tmp_path / "file").write_text("mine", encoding="utf-8")

    assert main([str(run), f"--figures={tmp_path / 'file'}"]) == 2

    assert "is a file; name a folder for the plots." in capsys.readouterr().err
    assert not (run / "index.html").exists()


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3.0, 41.0], ["0", "10", "20", "30", "40", "50"]),
        ([0.0012], ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.001", "0.0012"]),
        ([], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_an_axis_has_round_ticks_that_hold_all_values(
    values: list[float], ticks: list[str]
) -> None:
    axis = Axis(values, 0.0, 100.0)

    found = list(axis.ticks())

    assert [text for _, text in found] == ticks
    assert found[-1][0] == pytest.approx(100.0)
    assert all(0 <= axis.place(value) <= 100 for value in values)


def test_clips_in_their_order_have_whole_numbers(figures: Path) -> None:
    said = texts(figures / "resident" / "vram-per-stage.svg")

    assert {"1", "2", "3"} <= set(said)
    assert not {"0.5", "1.5", "2.5"} & set(said)
