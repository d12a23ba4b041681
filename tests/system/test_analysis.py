"""The examples of docs/analysis.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hv15_batch.record import ClipRecord
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.schema import SCHEMA_VERSION, arrow_schema

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(
    r"^## (.+?)\n(?:.*?)^```python\n(.*?)^```",
    (DOCS / "analysis.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
OLD_RUN, NEW_RUN = "20261122T000000-0000-abcd", "20261123T000000-0000-abcd"
LATE_COLUMNS = ("energy_joules", "throttle_power_seconds", "peak_vram_device_bytes")
HUGE_SEED = 2**63 - 1


def a_record(run_id: str, name: str, **columns: Any) -> ClipRecord:
    known: dict[str, Any] = {"settings_sha256": name, "attempt": 1}
    known["denoise_attempt"] = columns.get("attempt", 1)
    known |= {"status": "ok", "is_cold": False, "num_inference_steps": 50, "gpu_name": "NVIDIA X"}
    return ClipRecord(run_id=run_id, **(known | columns))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of an older version's segment, one of this version, and one being written."""
    folder = tmp_path / "outputs" / "prompts" / "log"
    folder.mkdir(parents=True)
    old = [
        a_record(OLD_RUN, "a", seed=1, denoise_seconds=100.0, is_cold=True),
        a_record(OLD_RUN, "b", seed=2, denoise_seconds=10.0),
        a_record(OLD_RUN, "c", seed=3, denoise_seconds=999.0, status="failed"),
    ]
    names = [name for name in arrow_schema().names if name not in LATE_COLUMNS]
    schema = pa.schema([arrow_schema().field(name) for name in names])
    schema = schema.with_metadata({"schema_version": str(SCHEMA_VERSION - 1)})
    table = pa.Table.from_pylist([vars(record) for record in old], schema=schema)
    pq.write_table(table, folder / f"{OLD_RUN}-0000.parquet")
    new = RunLog(folder, NEW_RUN)
    new.append(a_record(NEW_RUN, "c", attempt=2, seed=3, denoise_seconds=12.0, energy_joules=5.0))
    new.append(
        a_record(NEW_RUN, "d", seed=HUGE_SEED, denoise_seconds=14.0, throttle_power_seconds=0.0)
    )
    new.append(a_record(NEW_RUN, "e", seed=5, denoise_seconds=3.0, num_inference_steps=8))
    # Decoded from saved latents: its denoising is another, cold attempt's.
    new.append(a_record(NEW_RUN, "f", seed=6, denoise_seconds=500.0, attempt=2, denoise_attempt=1))
    new.append(a_record(NEW_RUN, "e", seed=5, denoise_seconds=1.0, repeat=1, energy_joules=1.0))
    (folder / f".123.{NEW_RUN}-0000.parquet").write_bytes(b"half")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_reads_both_versions(
    title: str, code: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(code, title, "exec"), {})

    out = capsys.readouterr().out
    figures = re.sub(r"[^0-9A-Za-z.\[\],-]+", " ", out)
    if title == "Several runs":
        assert re.search(rf"{OLD_RUN}\W+NVIDIA X\W+3\W+{NEW_RUN}\W+NVIDIA X\W+5", out), out
        return
    assert re.search(r"\b8 1 3\.0 50 3 12\.0\b", figures), out
    assert f"[1, 2, 3, 5, 6, {HUGE_SEED}]" in out
    assert "1 clips with a measured energy" in out


def test_there_is_an_example_for_each_reader() -> None:
    assert [title for title, _ in EXAMPLES] == ["pandas", "DuckDB", "polars", "Several runs"]


def test_without_the_examples_readers_drop_the_newer_columns_or_stop_as_the_page_says(
    log: Path,
) -> None:
    assert not set(LATE_COLUMNS) & set(pd.read_parquet(log).columns)
    with pytest.raises(pl.exceptions.SchemaError):
        pl.read_parquet(log / "[0-9]*.parquet")
