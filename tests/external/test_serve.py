"""The process that loads once calls any form of the script's `main`, and keeps one model."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hv15_batch.external import _serve
from hv15_batch.official.command import ENVIRONMENT


@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("def main(): pass", 0),
        ("def main(): return 3", 3),
        ("def main(): return 'why'", 1),
        ("def main(argv): return len(argv)", 2),
        ("def main(argv=None): return 4 if argv is None else 5", 4),
        ("import sys\nif __name__ == '__main__': sys.argv[2]", 0),
        ("import sys\nif __name__ == '__main__': sys.exit(int(sys.argv[2]))", 7),
    ],
)
def test_main_is_called_as_it_wants_and_its_value_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: str, code: int
) -> None:
    script = tmp_path / "generate.py"
    script.write_text(main)
    monkeypatch.setattr(sys, "argv", [str(script), "--seed", "7"])
    monkeypatch.setitem(sys.modules, "generate", types.ModuleType("generate"))

    run = _serve.load(str(script))

    try:
        found = run()
    except SystemExit as error:
        found = error.code
    assert _serve.exit_code(SystemExit(found)) == code


def test_a_model_is_kept_for_rows_and_not_for_another_model() -> None:
    class Pipeline:
        made = 0

        @staticmethod
        def create_pipeline(*_: Any, **__: Any) -> object:
            Pipeline.made += 1
            return object()

    _serve.keep_pipeline(Pipeline)

    def make(**changed: Any) -> object:
        flags = {"prompt": "a", "seed": 1, "output_path": "x", "dtype": "bf16", "o": object()}
        return Pipeline.create_pipeline("ckpts", args=argparse.Namespace(**(flags | changed)))

    first = make()
    assert make(prompt="b", seed=2, output_path="y") is first
    assert Pipeline.made == 1
    assert make(dtype="fp32") is not first
    assert Pipeline.made == 2


def test_ranks_of_another_launcher_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "8")
    for name in ("GROUP_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "8")

    _serve.set_up_distributed()

    found = {name: _serve.os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    assert found == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    assert _serve.os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert _serve.os.environ["MASTER_PORT"] != "8"


def test_no_warning_of_the_script_is_left_out() -> None:
    assert ENVIRONMENT["PYTHONWARNINGS"] == "default"
