"""The Parquet log: its schema, its segments, and those of other versions."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hv15_batch.errors import LogSchemaError
from hv15_batch.record import (
    KINDS,
    LOAD,
    STAGES,
    STAGES_ON_CARD,
    ClipRecord,
    columns,
    is_denoised_here,
    peak_column,
    seconds_column,
)
from hv15_batch.rundir.log import (
    SEGMENT_ROWS,
    RunLog,
    bring_to_current_schema,
    foreign_note,
    read_last_attempts,
    read_records,
    segments,
)
from hv15_batch.rundir.schema import SCHEMA_VERSION, arrow_schema

RUN_ID = "20261122T000000-0000-abcd"
OLD = "20250101T000000-0000-aaaa-0000.parquet"
"""A segment of an earlier run."""

COLUMNS = """
run_id clip_id row_id row_index attempt repeat settings_sha256 denoise_sha256 manifest_sha256
shard started_at finished_at
prompt negative_prompt image seed height width num_frames num_inference_steps guidance_scale
flow_shift fps tags attention_backend_requested off_recipe linear cache
transformer_sha256 loras engine
prompt_original rewrite_model rewrite_template_sha256 template_draw image_source
model repo revision weights task dtype attention_backend mask_free compiled offload vae_tile_size
decode_device num_text_tokens num_glyph_tokens num_video_tokens
engine_version image_sha256 num_computed_steps
lora_keys_matched lora_keys_unmatched
load_seconds encode_seconds encode_cached denoise_seconds step_seconds decode_seconds write_seconds
total_seconds is_cold denoise_attempt
peak_vram_allocated_bytes peak_vram_reserved_bytes
encode_peak_vram_allocated_bytes encode_peak_vram_reserved_bytes
denoise_peak_vram_allocated_bytes denoise_peak_vram_reserved_bytes
decode_peak_vram_allocated_bytes decode_peak_vram_reserved_bytes
peak_vram_device_bytes peak_ram_bytes num_alloc_retries
energy_joules power_watts_mean sm_clock_mhz_mean sm_clock_mhz_min temperature_celsius_max
throttle_seconds throttle_power_seconds throttle_thermal_seconds throttle_hardware_seconds
throttle_other_seconds
model_pflop tflops mfu
luma_mean luma_std frame_difference_mean clipped_pixel_share quality_flag
file file_bytes file_sha256 latents_file latents_sha256
status error_type error_message
gpu_name gpu_uuid gpu_index gpu_total_bytes driver_version torch_version diffusers_version
hv15_batch_version worker_id hostname system_sha256
""".split()


def a_record(number: int = 0, **changes: Any) -> ClipRecord:
    record = ClipRecord(
        run_id=RUN_ID,
        settings_sha256=f"{number:064x}",
        attempt=1,
        prompt='a sign, "OPEN"\n雨后 🎈',
        seed=2**63 - 1,
        started_at=datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=timezone.utc),
        step_seconds=[0.1, 0.2],
        status="ok",
    )
    return replace(record, **changes)


def write_segment(path: Path, rows: list[dict[str, Any]], version: int | None) -> None:
    metadata = {} if version is None else {"schema_version": str(version)}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pq.write_table(table, path)


# -- what a segment is ------------------------------------------------------------------------


def test_the_columns_are_those_of_the_contract_in_its_order() -> None:
    assert arrow_schema().names == COLUMNS


def test_the_schema_is_the_one_that_segments_of_this_version_have() -> None:
    stored = json.loads((Path(__file__).parents[1] / "data" / "log_schema.json").read_text("utf-8"))

    schema = arrow_schema()

    assert schema.metadata == {b"schema_version": stored["schema_version"].encode()}
    assert stored["columns"] == [
        [f.name, str(f.type), {k.decode(): v.decode() for k, v in f.metadata.items()}]
        for f in schema
    ], "a changed column needs a new SCHEMA_VERSION"


def test_columns_by_kind_make_up_the_log_in_its_order() -> None:
    assert [name for kind in KINDS for name in columns(kind)] == COLUMNS
    assert {*columns(private=True), *columns(private=False)} == set(COLUMNS)


def test_what_clips_are_grouped_by_holds_nothing_private() -> None:
    assert {"compiled", "attention_backend", "gpu_name"} <= set(columns(groups=True))
    assert not columns(groups=True, private=True)
    assert {"prompt", "row_id", "tags", "hostname", "repo"} <= set(columns(private=True))


def test_each_stage_has_its_columns() -> None:
    assert set(map(seconds_column, (LOAD, *STAGES))) <= set(columns("time"))
    assert set(map(peak_column, STAGES_ON_CARD)) <= set(columns("memory"))


@pytest.mark.parametrize(
    ("denoise_attempt", "is_here"), [(2, True), (1, False), (0, False), (None, True)]
)
def test_an_attempt_without_latents_of_another_one_denoised_itself(
    denoise_attempt: int | None, is_here: bool
) -> None:
    assert is_denoised_here({"attempt": 2, "denoise_attempt": denoise_attempt}) is is_here


def test_every_column_says_what_it_is_and_numbers_of_a_unit_name_it() -> None:
    for field in arrow_schema():
        assert field.metadata[b"about"], field.name
        for ending, unit in {"_seconds": b"second", "_bytes": b"byte"}.items():
            if field.name.endswith(ending) and field.name != "step_seconds":
                assert field.metadata[b"unit"] == unit, field.name


def test_the_sources_of_steps_writing_and_extremes_are_what_is_done() -> None:
    sources = {f.name: f.metadata[b"source"].decode() for f in arrow_schema()}

    assert sources["step_seconds"].startswith("CUDA events on the device's stream")
    assert "synchronised" not in sources["step_seconds"] + sources["write_seconds"]
    for name in ("peak_vram_device_bytes", "temperature_celsius_max"):
        assert sources[name] == "NVML, largest of the samples every 0.25 s"
    assert sources["sm_clock_mhz_min"] == "NVML, smallest of the samples every 0.25 s"


def test_a_source_in_this_package_exists() -> None:
    named = [f.metadata[b"source"].decode() for f in arrow_schema()]
    rooms = r"\b((?:engine|model|forecast|media)\.[a-z_.]+)\.(\w+)"
    sources = [found for text in named for found in re.findall(rooms, text)]

    assert ("model.shapes", "forward_flop") in sources
    for module, name in sources:
        assert hasattr(importlib.import_module(f"hv15_batch.{module}"), name), name


def test_units_sources_and_version_are_in_every_segment_and_its_schema_is_one(
    tmp_path: Path,
) -> None:
    run_log = RunLog(tmp_path, RUN_ID)
    for number in range(SEGMENT_ROWS + 1):
        run_log.append(a_record(number))
    # A segment of which a column has nothing but nulls has its type all the same.
    RunLog(tmp_path, "20261123T000000-0000-abcd").append(ClipRecord())

    schemas = [pq.read_schema(path) for path in segments(tmp_path)]

    assert len(schemas) == 3
    for schema in schemas:
        assert schema.equals(arrow_schema(), check_metadata=True)
        assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
        assert schema.field("total_seconds").metadata[b"unit"] == b"second"
        assert schema.field("peak_vram_reserved_bytes").metadata == {
            b"about": b"of all stages",
            b"unit": b"byte",
            b"source": b"torch.cuda.max_memory_reserved",
        }


def test_the_log_is_readable_by_pandas_after_every_append_and_segments_are_short(
    tmp_path: Path,
) -> None:
    run_log = RunLog(tmp_path, RUN_ID)
    total = 2 * SEGMENT_ROWS + 3
    for number in range(total):
        run_log.append(a_record(number))
        if number % 43 == 0 or number % SEGMENT_ROWS in (0, SEGMENT_ROWS - 1):
            # What a killed run leaves behind is passed by.
            (tmp_path / f".99.{RUN_ID}-0000.parquet").write_bytes(b"PAR1")
            assert len(pd.read_parquet(tmp_path)) == number + 1

    rows = [pq.read_metadata(path).num_rows for path in segments(tmp_path)]
    assert rows == [SEGMENT_ROWS, SEGMENT_ROWS, 3]
    assert [path.name for path in segments(tmp_path)] == [
        f"{RUN_ID}-{number:04d}.parquet" for number in range(3)
    ]
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == COLUMNS
    assert frame["settings_sha256"].nunique() == total


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    record = a_record(tags=json.dumps({"tag_x": "1"}), total_seconds=0.1 + 0.2, is_cold=True)
    RunLog(tmp_path, RUN_ID).append(record)

    (row,) = read_records(tmp_path).to_pylist()

    assert ClipRecord(**row) == record
    assert row["denoise_seconds"] is None


def test_an_append_that_fails_leaves_the_log_as_it_was_and_the_next_one_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_log = RunLog(tmp_path, RUN_ID)
    run_log.append(a_record(0))

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", no_space)
        with pytest.raises(OSError, match="No space"):
            run_log.append(a_record(1))
    assert read_records(tmp_path).num_rows == 1

    run_log.append(a_record(2))
    assert [int(r["settings_sha256"], 16) for r in read_records(tmp_path).to_pylist()] == [0, 1, 2]
    run_log.flush()
    assert read_records(tmp_path).num_rows == 3


def test_no_segment_means_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "log").num_rows == 0
    assert read_last_attempts(tmp_path / "log") == []


# -- the last attempt -------------------------------------------------------------------------


def test_the_last_attempt_is_the_highest_also_where_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    later = RunLog(tmp_path, "20250101T000000-0000-aaaa")
    later.append(a_record(1, attempt=2, status="ok"))
    earlier = RunLog(tmp_path, "20261122T000000-0000-aaaa")
    earlier.append(a_record(1, attempt=1, status="failed"))
    earlier.append(a_record(2, attempt=1, status="suspect"))

    last = {int(r["settings_sha256"], 16): r["status"] for r in read_last_attempts(tmp_path)}

    assert last == {1: "ok", 2: "suspect"}


def test_benchmark_repetitions_are_no_attempts(tmp_path: Path) -> None:
    run_log = RunLog(tmp_path, RUN_ID)
    run_log.append(a_record(1))
    run_log.append(a_record(1, attempt=2, repeat=1, status="failed"))

    (last,) = read_last_attempts(tmp_path, ["status"])

    assert last["status"] == "ok"


# -- other versions ---------------------------------------------------------------------------


def test_a_segment_of_an_older_version_is_brought_to_the_current_one(tmp_path: Path) -> None:
    old = {"settings_sha256": "a", "attempt": 3, "status": "ok", "gone_column": 7, "fps": 24}
    write_segment(tmp_path / OLD, [old], 0)
    RunLog(tmp_path, RUN_ID).append(a_record(1))
    before = (tmp_path / f"{RUN_ID}-0000.parquet").read_bytes()

    assert bring_to_current_schema(tmp_path) == 1

    schema = pq.read_schema(tmp_path / OLD)
    assert schema.equals(arrow_schema(), check_metadata=True)
    assert (tmp_path / f"{RUN_ID}-0000.parquet").read_bytes() == before
    frame = pd.read_parquet(tmp_path).set_index("settings_sha256")
    assert (frame.loc["a", "attempt"], frame.loc["a", "fps"]) == (3, 24.0)
    assert pd.isna(frame.loc["a", "prompt"])
    assert bring_to_current_schema(tmp_path) == 0


def test_a_segment_of_an_older_version_is_read_before_it_is_brought_up(tmp_path: Path) -> None:
    write_segment(tmp_path / OLD, [{"settings_sha256": "a", "attempt": 1}], 0)

    (row,) = read_last_attempts(tmp_path, ["status", "file_bytes"])

    assert row == {"status": None, "file_bytes": None, "settings_sha256": "a", "attempt": 1,
                   "repeat": None}  # fmt: skip


def test_a_segment_without_the_reasons_of_throttling_keeps_its_figures(tmp_path: Path) -> None:
    reasons = {f"throttle_{name}_seconds" for name in ("power", "thermal", "hardware", "other")}
    old = {k: v for k, v in vars(a_record(throttle_seconds=7.5)).items() if k not in reasons}
    schema = pa.schema([f for f in arrow_schema() if f.name in old], {"schema_version": "1"})
    path = tmp_path / OLD
    pq.write_table(pa.Table.from_pylist([old], schema=schema), path)

    assert bring_to_current_schema(tmp_path) == 1

    (row,) = read_records(tmp_path).to_pylist()
    assert row == old | dict.fromkeys(reasons)
    assert pq.read_schema(path).metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()


def test_a_segment_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / OLD
    write_segment(path, [{"settings_sha256": "a"}], SCHEMA_VERSION + 1)

    for read in (bring_to_current_schema, read_records, read_last_attempts):
        with pytest.raises(LogSchemaError) as caught:
            read(tmp_path)
        assert str(caught.value) == (
            f"{path}: schema version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}; update "
            "hv15_batch to the version that wrote it."
        )


@pytest.mark.parametrize("size", [0, 4, -9])
def test_a_truncated_segment_is_refused_with_what_to_do(tmp_path: Path, size: int) -> None:
    RunLog(tmp_path, RUN_ID).append(a_record())
    path = tmp_path / f"{RUN_ID}-0000.parquet"
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(LogSchemaError) as caught:
        bring_to_current_schema(tmp_path)

    assert str(caught.value).startswith(f"{path}: not a readable log segment (")
    assert str(caught.value).endswith(
        "); move it out of the folder; then its clips are rendered again, or decoded again from "
        "their latents."
    )


def test_a_column_of_an_impossible_type_is_refused_with_its_segment(tmp_path: Path) -> None:
    path = tmp_path / OLD
    write_segment(path, [{"settings_sha256": "a", "attempt": "two"}], 0)

    with pytest.raises(LogSchemaError, match="not a readable log segment"):
        bring_to_current_schema(tmp_path)


FOREIGN = pa.table({"prompt": ["mine"], "settings_sha256": ["a"], "attempt": [1]})


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("mine.parquet", {}),
        ("mine.parquet", {"schema_version": "1"}),
        ("mine-0000.parquet", {}),
        (OLD.replace(".parquet", " (copy).parquet"), {"schema_version": "1"}),
        (OLD, {}),
        (OLD, {"pandas": "{}"}),
    ],
)
def test_a_foreign_parquet_file_is_neither_read_nor_changed_and_is_named(
    tmp_path: Path, name: str, metadata: dict[str, str]
) -> None:
    pq.write_table(FOREIGN.replace_schema_metadata(metadata), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    RunLog(tmp_path, RUN_ID).append(a_record(1))

    assert bring_to_current_schema(tmp_path) == 0
    assert read_records(tmp_path).num_rows == 1
    assert len(read_last_attempts(tmp_path)) == 1

    assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"{RUN_ID}-0000.parquet"])
    note = foreign_note(tmp_path)
    assert note is not None
    assert note.startswith(f"{tmp_path}: {name}: not part of this log, so hv15-batch ignores it; ")
    assert "\n" not in note


def test_a_log_without_foreign_files_has_nothing_to_say_of_them(tmp_path: Path) -> None:
    assert foreign_note(tmp_path / "log") is None
    RunLog(tmp_path, RUN_ID).append(a_record(1))
    write_segment(tmp_path / OLD, [{"settings_sha256": "a", "attempt": 1}], 0)
    (tmp_path / f".{'0' * 16}.{RUN_ID}-0001.parquet").touch()

    assert foreign_note(tmp_path) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_log_that_the_disk_does_not_read_is_not_to_be_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    RunLog(tmp_path, RUN_ID).append(a_record())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "[Errno] as Arrow words it")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(LogSchemaError) as caught:
        bring_to_current_schema(tmp_path)

    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/{RUN_ID}-0000.parquet: cannot be read (")
    assert os.strerror(number) in text
    assert "move it out" not in text


def test_every_field_says_its_unit_and_source() -> None:
    for field in arrow_schema():
        assert set(field.metadata) == {b"about", b"unit", b"source"}, field.name
        assert all(field.metadata.values()), field.name
