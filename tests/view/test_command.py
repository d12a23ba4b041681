"""The command line of `view`: what it prints, and what it refuses."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from fakes.pages import make_run, record

from hv15_batch.view.command import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such"], "no-such: no run directory (it has no log)"),
        (["s3://bucket/run"], "s3://bucket/run: view serves run directories on a disk"),
        (["--port", "0"], "--port=0: must be a number from 1 to 65535."),
        (["--port", "65536"], "--port=65536: must be a number"),
        ([], "no run below"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_typed_port_in_use_is_refused_and_the_usual_one_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    run_dir = make_run(tmp_path / "run", [record("a")], [record("a")])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("hv15_batch.view.command.USUAL_PORT", port)

        assert main([str(run_dir), "--port", str(port)]) == 2
        assert f"--port={port}: cannot be used" in capsys.readouterr().err
        assert main([str(run_dir)]) == 130

    printed = capsys.readouterr().out
    address = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=[0-9a-f]{64}\n", printed)
    assert address is not None
    assert int(address[1]) != port
    assert str(run_dir) in printed
