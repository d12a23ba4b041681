"""Seconds against memory: one sentence, the Pareto front and the quality of what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import MEASURED, make_run, record

from hv15_batch.report.command import main

GIB = 2**30


def run_of(
    folder: Path, seconds: float, gib: float | None, bits: str = "same", **changes: Any
) -> Path:
    """Write a run of three warm clips whose files have these bits."""
    values = {**MEASURED, "encode_seconds": None, "total_seconds": seconds, **changes}
    peak = None if gib is None else int(gib * GIB)
    clips = [
        record(f"c{n}", n, peak_vram_reserved_bytes=peak, file_sha256=f"{bits}{n}", **values)
        for n in range(3)
    ]
    return make_run(folder, clips, clips)


def plot_of(folder: Path) -> dict[str, Any]:
    """Return the first plot of the comparison."""
    text = (folder / "assets" / "comparison-data.js").read_text(encoding="ascii")
    plots: list[dict[str, Any]] = json.loads(text[text.index("hv15.data = ") + 12 :].rstrip(";\n"))[
        "plots"
    ]
    return plots[0]


def headline_of(folder: Path) -> str | None:
    html = (folder / "comparison.html").read_text(encoding="utf-8")
    if 'id="headline">' not in html:
        return None
    return html.split('id="headline">')[1].split("</p>")[0]


def test_one_sentence_says_what_less_memory_costs(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "resident", 100.0, 40.0, offload="resident"),
        run_of(tmp_path / "stream", 153.0, 11.6, offload="stream"),
    ]

    assert main([*map(str, runs)]) == 0

    said = "stream is 1.53 times slower than resident and needs 71 % less memory, same bits"
    assert headline_of(tmp_path) == said
    assert f"\n{said}.\n" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seconds": 150.0, "gib": 30.0, "bits": "other"},
         "stream is 1.5 times slower than resident and needs 50 % more memory, other bits"),
        ({"seconds": 100.1, "gib": 10.0},
         "stream is as fast as resident and needs 50 % less memory, same bits"),
        ({"seconds": 300.0, "gib": 20.05},
         "stream is 3 times slower than resident and needs as much memory, same bits"),
        ({"seconds": 200.0, "gib": 10.0, "gpu_name": "NVIDIA H200"},
         "stream, NVIDIA H200 is 2 times slower than resident, NVIDIA GeForce RTX 4090 and needs "
         "50 % less memory, same bits"),
        ({"seconds": 200.0, "gib": 10.0, "prompt": "another"},
         "stream is 2 times slower than resident and needs 50 % less memory, bits not compared"),
    ],
    ids=["worse in both", "as fast", "as much", "another card", "nothing in common"],
)  # fmt: skip
def test_the_sentence_says_what_was_measured(
    tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    runs = [
        run_of(tmp_path / "a", 100.0, 20.0, offload="resident"),
        run_of(tmp_path / "b", **other, offload="stream"),
    ]

    main([*map(str, runs)])

    assert headline_of(tmp_path) == said


def test_without_a_card_ram_is_compared(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / name, seconds, None, offload=name, peak_ram_bytes=ram * GIB)
        for name, seconds, ram in (("resident", 100.0, 20), ("stream", 200.0, 15))
    ]

    main([*map(str, runs)])

    assert headline_of(tmp_path) == (
        "stream is 2 times slower than resident and needs 25 % less RAM, same bits"
    )
    assert plot_of(tmp_path)["over"] == "peak RAM, GiB"


def test_there_is_no_sentence_and_no_plot_of_a_single_group(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, 100.0, 20.0) for name in ("one", "two")]

    main([*map(str, runs)])

    assert headline_of(tmp_path) is None
    assert plot_of(tmp_path)["id"] == "seconds"


def test_the_first_plot_names_the_pareto_front(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / name, seconds, gib, offload=name)
        for name, seconds, gib in (
            *(("resident", 100.0, 40.0), ("model", 140.0, 20.0)),
            *(("stream", 150.0, 12.0), ("stream_disk", 400.0, 13.0)),
        )
    ]

    main([*map(str, runs)])

    plot = plot_of(tmp_path)
    dots = {t["name"]: (t["x"], t["y"]) for t in plot["traces"] if t["mode"] == "markers"}
    assert plot["title"] == "Seconds against memory"
    assert dots == {
        "resident (Pareto front)": ([40.0], [100.0]),
        "model (Pareto front)": ([20.0], [140.0]),
        "stream (Pareto front)": ([12.0], [150.0]),
        "stream_disk": ([13.0], [400.0]),
    }
    [line] = [t for t in plot["traces"] if t["mode"] == "lines"]
    assert (line["x"], line["y"]) == ([12.0, 20.0, 40.0], [150.0, 140.0, 100.0])
    assert plot["caption"].startswith("Pareto front: resident; model; stream. ")


def test_the_plot_has_the_quality_of_each_group(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "plain", 100.0, 40.0, offload="resident"),
        run_of(tmp_path / "small", 150.0, 12.0, offload="stream"),
        run_of(tmp_path / "fp8", 80.0, 30.0, "other", offload="resident", linear="fp8"),
        run_of(tmp_path / "short", 60.0, 20.0, "none", offload="resident", num_frames=61),
    ]

    main([*map(str, runs)])

    plain = "resident, Frames 121, 8-bit linear modules none"
    assert plot_of(tmp_path)["caption"] == (
        "Pareto front: resident, Frames 61, 8-bit linear modules none; "
        "stream, Frames 121, 8-bit linear modules none. "
        "No other is faster without more memory. Not all have the same size and frames. "
        f"stream, Frames 121, 8-bit linear modules none: same bits as {plain} in 3 clips. "
        f"resident, Frames 121, 8-bit linear modules fp8: 3 of 3 clips with other bits than "
        f"{plain}; PSNR 27.8 dB on 160 demo clips, 43.5 without; prompts obeyed as without. "
        f"resident, Frames 61, 8-bit linear modules none: 3 of 3 clips with other bits than "
        f"{plain}; hv15-batch compare says how far apart."
    )
