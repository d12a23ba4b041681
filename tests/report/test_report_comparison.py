"""Several runs: groups that never mix, tables fit to paste, and nothing private in them."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import MEASURED, failed, make_run, record

from hv15_batch.config.settings import Config
from hv15_batch.model.variant import ModelConfig
from hv15_batch.record import ClipRecord
from hv15_batch.report._comparison import clips_of_runs
from hv15_batch.report._gallery import Place
from hv15_batch.report._read import read_run
from hv15_batch.report.command import main
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import RUN_COLUMNS

SETTINGS: dict[str, Any] = {
    **MEASURED,
    "encode_seconds": None,
    "offload": "resident",
    "attention_backend": "_native_cudnn",
    "system_sha256": "a" * 64,
}


def run_of(folder: Path, seconds: list[float], **changes: Any) -> Path:
    """Write a run whose warm clips took these seconds."""
    clips = [
        record(f"c{n}", n, **{**SETTINGS, "total_seconds": s, **changes})
        for n, s in enumerate(seconds)
    ]
    return make_run(folder, clips, clips)


def compared(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_variant_profile_and_backend_is_a_line_with_its_figures(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0, 410.0, 420.0])
    two = run_of(tmp_path / "two", [500.0, 510.0], offload="stream")

    assert main([str(one), str(two)]) == 0

    lines = compared(tmp_path)
    shown = [
        (r["model"], r["offload"], r["n"], r["median_seconds"], r["p90_seconds"]) for r in lines
    ]
    assert shown == [
        ("480p_t2v", "resident", "3", "410.0", "418.0"),
        ("480p_t2v", "stream", "2", "505.0", "509.0"),
    ]
    assert lines[0]["peak_vram_reserved_bytes"] == "14388553318"
    assert lines[0]["energy_joules_median"] == "250000.0"
    assert lines[0]["runs"] == "1"


@pytest.mark.parametrize(
    "other",
    [
        {"gpu_name": "NVIDIA H200"},
        {"gpu_total_bytes": 48 * 2**30},
        {"num_frames": 61},
        {"num_inference_steps": 30},
        {"dtype": "float16"},
        {"attention_backend": "flash"},
        {"compiled": True},
        {"weights": "random"},
        {"torch_version": "2.11"},
        {"system_sha256": "b" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_cards_machines_and_settings_are_never_counted_together(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    one, two = run_of(tmp_path / "one", [400.0]), run_of(tmp_path / "two", [500.0], **other)

    main([str(one), str(two)])

    assert [line["median_seconds"] for line in compared(tmp_path)] == ["400.0", "500.0"]


def test_a_limit_of_vram_makes_another_group(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0])
    config = Config(manifest="p.csv", model=ModelConfig(name="480p_t2v"))
    config.runtime.vram_limit_gib = 14.0
    clip = record("c0", 0, **SETTINGS)
    two = make_run(tmp_path / "two", [clip], [clip], config=config)

    main([str(one), str(two)])

    assert [line["vram_limit_gib"] for line in compared(tmp_path)] == ["", "14.0"]


def test_equal_settings_of_two_runs_are_counted_together_and_both_are_named(tmp_path: Path) -> None:
    one, two = run_of(tmp_path / "one", [400.0]), run_of(tmp_path / "two", [500.0])

    main([str(one), str(two)])

    [line] = compared(tmp_path)
    assert (line["n"], line["median_seconds"], line["runs"]) == ("2", "450.0", "1 2")


def test_cold_clips_and_clips_from_saved_latents_are_not_timed(tmp_path: Path) -> None:
    clips = [
        record("cold", 0, **{**SETTINGS, "is_cold": True, "total_seconds": 900.0}),
        record("decoded", 1, **{**SETTINGS, "attempt": 2, "total_seconds": 20.0}),
        record("warm", 2, **{**SETTINGS, "total_seconds": 400.0}),
        failed("bad", row_index=3),
    ]
    one, two = make_run(tmp_path / "one", clips, clips), run_of(tmp_path / "two", [1.0], fps=15.0)

    main([str(one), str(two)])

    line = compared(tmp_path)[0]
    assert (line["n"], line["median_seconds"], line["cold_clips"]) == ("1", "400.0", "1")


def test_the_peak_of_clips_from_saved_latents_is_none_of_a_whole_clip(tmp_path: Path) -> None:
    decoded = {**SETTINGS, "attempt": 2, "is_cold": True, "peak_vram_reserved_bytes": 9 * 2**30}
    clips = [
        record("decoded", 0, **{**decoded, "fps": 15.0}),
        record("warm", 1, **{**SETTINGS, "peak_vram_reserved_bytes": 8 * 2**30}),
        record("later", 2, **decoded),
    ]
    one, two = make_run(tmp_path / "one", clips, clips), run_of(tmp_path / "two", [1.0], fps=8.0)

    main([str(one), str(two)])

    lines = [(r["fps"], r["n"], r["cold_clips"]) for r in compared(tmp_path)]
    assert lines == [("", "1", "0"), ("8.0", "1", "0")]
    assert compared(tmp_path)[0]["peak_vram_reserved_bytes"] == str(8 * 2**30)


def test_encoding_which_only_the_first_clip_of_a_text_pays_is_left_out(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0], encode_seconds=30.0)

    main([str(one), str(run_of(tmp_path / "two", [1.0], fps=15.0))])

    assert compared(tmp_path)[0]["median_seconds"] == "370.0"


def test_repetitions_of_a_benchmark_are_counted(tmp_path: Path) -> None:
    clip = record("a", **SETTINGS, guidance_scale=6.0)
    repeats = [replace(clip, repeat=n, file=None, total_seconds=400.0 + n) for n in (1, 2, 3)]
    one, two = (
        make_run(tmp_path / "one", repeats, [clip]),
        run_of(tmp_path / "two", [1.0], fps=15.0),
    )

    main([str(one), str(two)])

    line = compared(tmp_path)[0]
    assert (line["n"], line["median_seconds"]) == ("3", "402.0")


def test_a_sweep_is_named_by_its_folder_and_the_page_lies_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "p.sweep"
    runs = [run_of(sweep / "resident", [1.0]), run_of(sweep / "stream", [2.0], offload="stream")]

    assert main([str(sweep)]) == 0

    pages = [*(run / "index.html" for run in runs), sweep / "comparison.html"]
    assert capsys.readouterr().out.splitlines() == [str(page) for page in pages]
    html = (sweep / "comparison.html").read_text(encoding="utf-8")
    assert '<a href="resident/index.html">resident</a>' in html


def test_out_names_the_folder_of_the_comparison(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "x" / name, [1.0]) for name in ("one", "two")]

    main([*map(str, runs), "--out", str(tmp_path / "new" / "folder")])

    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"comparison.html", "comparison.csv", "comparison.md", "assets"}
    assert not (tmp_path / "x" / "comparison.html").exists()


def test_out_is_refused_where_there_is_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "one", [1.0])

    assert main([str(run), "--out", "new"]) == 2

    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "--out=new: names the folder of a comparison, but the page of a single run goes into "
        "its run directory; leave it out, or name several runs.\n",
    )
    assert not (run / "index.html").exists()


def test_paths_are_printed_without_the_way_that_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_of(tmp_path / name, [1.0]) for name in ("one", "two")]
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")

    assert main(["../one", "../two"]) == 0

    pages = [*(run / "index.html" for run in runs), tmp_path / "comparison.html"]
    assert capsys.readouterr().out.splitlines() == [str(page) for page in pages]


def test_the_markdown_table_says_once_what_is_common_and_aligns(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0, 410.0])
    two = run_of(tmp_path / "two", [500.0], offload="stream", energy_joules=None)

    main([str(one), str(two)])

    text = (tmp_path / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert text[0].startswith("Same for all: Weights: pretrained; Size: 480×848; Frames: 121;")
    assert text[2:6] == [
        "| Variant | Offload | Attention | n | median, s | p90, s | spread | peak VRAM, GiB "
        "| card's peak, GiB | Wh a clip |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
        "| 480p_t2v | resident | _native_cudnn | 2 | 405.0 | 409.0 | 1.2% | 13.4 | 15.0 | 69.4 |",
        "| 480p_t2v | stream | _native_cudnn | 1 | 500.0 | – | – | 13.4 | 15.0 | – |",
    ]


def test_the_csv_has_the_columns_and_units_of_the_log_unrounded(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0], gpu_total_bytes=85_520_809_984, mask_free=True)
    two = run_of(tmp_path / "two", [500.0], vae_tile_size=256, off_recipe=True)

    main([str(one), str(two)])

    text = (tmp_path / "comparison.csv").read_text(encoding="utf-8")
    lines = compared(tmp_path)
    assert text.isascii()
    names = {field.name for field in fields(ClipRecord)}
    own = {*RUN_COLUMNS, "n", "median_seconds", "p90_seconds", "spread", "cold_clips",
           "failed_attempts", "energy_joules_median", "energy_joules_n", "runs"}  # fmt: skip
    assert set(lines[0]) - names == own
    shown = ("height", "width", "gpu_total_bytes", "mask_free", "system_sha256", "energy_joules_n")
    assert [lines[0][n] for n in shown] == ["480", "848", "85520809984", "True", "a" * 64, "1"]
    assert [line["vae_tile_size"] for line in lines] == ["", "256"]
    assert [line["off_recipe"] for line in lines] == ["", "True"]


def test_a_revision_has_no_column_where_the_variant_implies_it(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0], revision="4f" * 32)
    two = run_of(tmp_path / "two", [500.0], revision="80" * 32, model="480p_t2v_distilled")
    other = run_of(tmp_path / "x" / "other", [400.0], revision="c0" * 32)

    main([str(one), str(two)])
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    main([str(one), str(other), "--out", str(tmp_path / "two")])
    revisions = (tmp_path / "two" / "comparison.md").read_text(encoding="utf-8")

    assert "| Variant | Offload | Attention | n |" in text
    assert "4f4f" not in text
    assert "| Variant | Offload | Attention | Revision | n |" in revisions
    assert "| 4f4f4f4f |" in revisions


def test_a_clip_on_its_recipe_is_said_not_to_be_off_it(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [400.0])
    two = run_of(tmp_path / "two", [500.0], off_recipe=True)

    main([str(one), str(two)])

    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert re.findall(r"\| 480p_t2v \| (\w+) \|", text) == ["no", "yes"]


def test_figures_that_are_unfit_to_quote_are_said_so_on_the_page_and_in_markdown(
    tmp_path: Path,
) -> None:
    repeats = [
        record(f"c{n}", n, **{**SETTINGS, "total_seconds": s}, repeat=n + 1, file=None)
        for n, s in enumerate([10.0, 12.0, 13.0, 9.0])
    ]
    one = make_run(tmp_path / "one", repeats, repeats)
    two = run_of(tmp_path / "two", [10.0, 10.0], offload="stream")

    main([str(one), str(two)])

    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "WARNING: resident: The timed clips differ much" in markdown
    assert "WARNING: stream: Too few timed clips" in markdown
    assert "raise benchmark.repeat" in markdown
    assert markdown.count("use benchmark.repeat") == 1  # to the run that had none
    section = html[html.index('id="warnings"') : html.index('id="plots"')]
    assert "<strong>resident</strong>: The timed clips differ much" in section
    assert html.count('href="#warnings">1 warning</a>') == 2


def test_a_plot_names_groups_by_as_little_as_tells_them_apart(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / f"{model}-{offload}", [1.0], model=model, offload=offload,
               guidance_scale=guidance, revision=model * 8)
        for model, guidance in (("480p_t2v", 6.0), ("480p_t2v_distilled", 1.0))
        for offload in ("resident", "stream")
    ]  # fmt: skip

    main([*map(str, runs)])

    text = (tmp_path / "assets" / "comparison-data.js").read_text(encoding="ascii")
    plots = json.loads(text[text.index("hv15.data = ") + 12 :].rstrip(";\n"))["plots"]
    [seconds] = [plot for plot in plots if plot["id"] == "seconds"]
    assert [trace["name"] for trace in seconds["traces"]] == [
        "480p_t2v, resident, n 1", "480p_t2v, stream, n 1",
        "480p_t2v_distilled, resident, n 1", "480p_t2v_distilled, stream, n 1", "median",
    ]  # fmt: skip


def test_tables_to_share_hold_no_prompt_id_tag_folder_or_hostname(tmp_path: Path) -> None:
    secret = "s3cret"
    folder = tmp_path / f"{secret} folder"
    private: dict[str, Any] = {
        **dict.fromkeys(("prompt", "negative_prompt", "hostname", "gpu_uuid", "row_id"), secret),
        **{"clip_id": f"{secret}_s7", "image": f"{secret}.png", "error_message": secret},
        **{"tags": json.dumps({"tag_client": secret}), "repo": str(folder / secret)},
    }
    clips = [
        record(f"c{n}", n, **{**SETTINGS, "guidance_scale": 6.0, **private, "repeat": n + 1,
                              "file": None})
        for n in range(2)
    ]  # fmt: skip
    runs = [
        make_run(folder / f"{secret}_{n}", clips, clips, config=config_of(folder)) for n in (1, 2)
    ]
    kept = record("other", 3, **{**SETTINGS, **private, "offload": "stream"})
    runs.append(make_run(folder / f"{secret}_3", [kept], [kept], config=config_of(folder)))

    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0

    shared = [tmp_path / "out" / "comparison.md", tmp_path / "out" / "comparison.csv"]
    shared += [run / f"benchmark.{suffix}" for run in runs[:2] for suffix in ("md", "csv")]
    texts = [path.read_text(encoding="utf-8") for path in shared]
    assert [n.name for n, t in zip(shared, texts, strict=True) if secret in t] == []
    assert all("480p_t2v" in text for text in texts)
    assert [line["runs"] for line in compared(tmp_path / "out")] == ["1 2", "3"]
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert f">{secret}_1</a>, 2: <a href=" in page  # which says whose the numbers are
    assert "This page is private" in page


def config_of(folder: Path) -> Config:
    """Settings with a private folder in each place that has one."""
    config = Config(manifest=str(folder / "p.csv"), run_dir=str(folder), model=ModelConfig())
    config.model.name, config.model.repo = "480p_t2v", str(folder)
    return config


def test_clips_of_one_prompt_stand_together_however_it_was_rewritten(tmp_path: Path) -> None:
    texts = {
        "plain": ("a fox", None),
        "one": ("A fox trots.", "a fox"),
        "two": ("A red fox.", "a fox"),
    }
    clips = []
    for name, (prompt, original) in texts.items():
        changes = {**SETTINGS, "prompt": prompt, "prompt_original": original}
        own = [record(f"{name}-fox", 0, **changes), record(f"{name}-owl", 1, prompt="an owl")]
        clips.append(make_run(tmp_path / name, own, own))

    runs = [read_run(RunDir(path)) for path in clips]
    views = clips_of_runs(runs, [Place("", n, run.folder) for n, run in enumerate(runs)])

    assert [view["id"] for view in views] == [
        *("plain-fox", "one-fox", "two-fox"),
        *("plain-owl", "one-owl", "two-owl"),
    ]
    assert [view["row"] for view in views] == [0, 0, 0, 1, 1, 1]


def test_runs_without_a_finished_clip_are_named(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", [1.0])
    empty = make_run(tmp_path / "empty", [], [record("a")])

    main([str(one), str(empty)])

    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Without a finished clip: empty." in html


def test_runs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / day / "p", [1.0], fps=fps) for day, fps in (("mo", 24.0), ("tu", 15.0))
    ]

    main([*map(str, runs)])

    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert all(f">{day}/p</a>" in html for day in ("mo", "tu"))


@pytest.mark.parametrize("weights", ["tiny", "random"])
def test_a_comparison_says_that_clips_are_noise(tmp_path: Path, weights: str) -> None:
    runs = [run_of(tmp_path / name, [1.0], weights=weights) for name in ("one", "two")]

    main([*map(str, runs)])

    for name in ("comparison.html", "comparison.md"):
        assert "These clips are noise on purpose" in (tmp_path / name).read_text(encoding="utf-8")


def test_the_plots_have_every_warm_clip(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "one", [1.0, 2.0]), run_of(tmp_path / "two", [3.0], fps=15.0)]

    main([*map(str, runs)])

    text = (tmp_path / "assets" / "comparison-data.js").read_text(encoding="ascii")
    plots = json.loads(text[text.index("hv15.data = ") + 12 :].rstrip(";\n"))["plots"]
    [seconds] = [plot for plot in plots if plot["id"] == "seconds"]
    assert [trace["x"] for trace in seconds["traces"]] == [[1.0, 2.0], [3.0], [1.5, 3.0]]
    assert seconds["traces"][-1]["name"] == "median"
