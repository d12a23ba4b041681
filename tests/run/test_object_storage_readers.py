"""Every reader of a run directory takes the URL of one on object storage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes.object_store import BUCKET
from fakes.stored import Stored

from hv15_batch import api, cli
from hv15_batch.errors import Refused
from hv15_batch.rundir.remote.address import mirror_folder
from hv15_batch.status import _watch


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command line; return its code and what it printed."""
    capsys.readouterr()
    code = cli.main(words)
    return code, *capsys.readouterr()


def test_status_is_read_from_the_url(
    stored: Stored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.go() == 0
    stored.on_another_machine()
    code, out, _ = said(capsys, "status", stored.url)
    assert code == 0
    assert out.splitlines()[:2] == [stored.url, "2 of 2 done"]
    assert f"page: {stored.url}/index.html" in out
    assert str(stored.mirror.path) not in out
    code, out, _ = said(capsys, "status", stored.url, "--json")
    assert json.loads(out)["state"] == "done"
    monkeypatch.setattr(_watch, "START_SECONDS", 0.0)
    assert said(capsys, "status", stored.url, "--watch")[0] == 0


def test_a_url_without_a_run_is_refused(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("status", stored.url), ("report", stored.url), ("references", stored.url)):
        code, out, error = said(capsys, *words)
        assert (code, out) == (2, "")
        assert error.startswith(f"{stored.url}: no run")
    with pytest.raises(Refused, match=f"resume={stored.url}: no run was started there"):
        api.load_config(f"resume={stored.url}")


def test_a_run_elsewhere_is_not_paused(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    assert stored.go() == 0
    code, _, error = said(capsys, "status", stored.url, "--pause")
    assert code == 2
    assert f"{stored.url}: no run of this machine is active there" in error


def test_the_page_is_built_again_there(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    assert stored.go() == 0
    stored.on_another_machine()
    data = f"{stored.name_there}/assets/data.js"
    del stored.server.bucket()[data]
    code, out, _ = said(capsys, "report", stored.url)
    assert (code, out) == (0, f"{stored.url}/index.html\n")
    content = bytes(stored.server.bucket()[data].value).decode()
    assert all(row["file"] in content for row in stored.rows())


def test_the_log_is_read_as_a_frame(stored: Stored) -> None:
    assert stored.go() == 0
    stored.on_another_machine()
    log = api.read_log(stored.url)
    assert log[["row_id", "status", "run_dir"]].values.tolist() == [
        ["cat", "ok", stored.url],
        ["dog", "ok", stored.url],
    ]


def test_a_run_is_resumed_by_its_url(stored: Stored) -> None:
    from fakes.uploading import UploadingExecutor

    from hv15_batch.run import session

    assert stored.go(limit=1) == 0
    stored.on_another_machine()
    config = api.load_config(f"resume={stored.url}")
    lines: list[str] = []
    assert session.run(config, (), None, lines.append, UploadingExecutor) == 0
    assert lines[0] == f"{stored.url}: 1 of 2 done"
    assert [row["row_id"] for row in stored.rows()] == ["cat", "dog"]
    settings = [name for name in stored.names("runs/") if name.endswith("config.yaml")]
    for name in settings:
        text = bytes(stored.server.bucket()[f"{stored.name_there}/{name}"].value).decode()
        assert f"run_dir: {stored.url}\n" in text


def test_a_sweep_has_a_folder_there_for_each_run(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(stored.manifest), f"run_dir={stored.url}", "model=tiny_t2v", "dry_run=true"]
    assert said(capsys, "-m", *words, "override.num_inference_steps=1,2")[0] == 0
    plans = [mirror_folder(f"{stored.url}/{value}") / "plan.csv" for value in (1, 2)]
    assert all(plan.is_file() for plan in plans)
    assert not stored.names(), "a plan writes nothing there"


def test_rows_from_python_are_stored_there(stored: Stored) -> None:
    import pandas as pd

    rows = pd.DataFrame({"prompt": ["a cat"], "id": ["cat"]})
    config = api.load_config(f"run_dir={stored.url}", "model=tiny_t2v")
    planned = api.plan(config, rows)
    assert [clip.clip.row_id for clip in planned.clips] == ["cat"]
    assert not stored.names(), "a plan writes nothing there"


@pytest.mark.exhaustive
def test_two_runs_there_are_compared_and_a_clip_gives_its_recipe(
    stored: Stored,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    stored.write("prompt,id", "a cat,cat")
    assert stored.render() == 0
    here = stored.config()
    from fakes.engine import InProcessExecutor

    assert stored.run(InProcessExecutor) == 0
    stored.on_another_machine()
    code, out, _ = said(capsys, "compare", str(here.run_dir), stored.url, "--out", "compared")
    assert code == 0
    assert "1 of 1 pairs compared" in out
    assert re.search(r"[Ll]atents.*identical", out)
    assert (tmp_path / "compared").is_dir()
    code, _, error = said(capsys, "compare", str(here.run_dir), stored.url)
    assert code == 2
    assert "--out DIR" in error

    stored.on_another_machine()
    clip = stored.rows()[0]["file"]
    code, out, _ = said(capsys, "recipe", f"{stored.url}/{clip}", "--out", "again.csv")
    assert code == 0
    assert "a cat" in (tmp_path / "again.csv").read_text()
    code, _, error = said(capsys, "recipe", f"s3://{BUCKET}/clip.mp4")
    assert code == 2
    assert "names no clip" in error
    code, _, error = said(capsys, "recipe", f"{stored.url}/clips/no.mp4")
    assert code == 2
    assert "there is no such clip" in error
