"""What must start in about a second imports neither torch nor what is as slow."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import hv15_batch

WITH_TORCH = "engine"
"""The room of what runs inside the executor. All else is torch-free."""
TORCH_FREE = {
    *("cli", "compare", "config", "dispatch", "figures", "forecast", "machine", "manifest"),
    *("media", "model", "planning", "prefetch", "record", "references", "report", "run"),
    *("rundir", "status", "weights"),
}
"""What must be among the modules that are tried."""
SLOW = ("torch", "diffusers", "transformers")


def modules() -> list[str]:
    """Every module of the package outside the engine."""
    found = pkgutil.walk_packages(hv15_batch.__path__, "hv15_batch.")
    names = [name.removeprefix("hv15_batch.") for _, name, _ in found]
    return sorted(n for n in names if n.split(".")[0] != WITH_TORCH and n != "__main__")


def python(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_every_module_of_the_parent_is_torch_free(tmp_path: Path) -> None:
    names = modules()
    assert TORCH_FREE <= {name.split(".")[0] for name in names}
    code = f"""
import importlib, json, sys
guilty = []
for name in {names!r}:
    importlib.import_module("hv15_batch." + name)
    for slow in {SLOW!r}:
        if slow in sys.modules:
            guilty.append([name, slow])
            del sys.modules[slow]
print(json.dumps(guilty))
"""

    assert json.loads(python(code, tmp_path)) == []


def test_the_engine_is_what_brings_torch(tmp_path: Path) -> None:
    code = "import sys, hv15_batch.engine.render; print('torch' in sys.modules)"

    assert python(code, tmp_path) == "True"


COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "help": (["--help"], ("hydra", "omegaconf", "pyarrow", "pandas", "huggingface_hub", "jinja2")),
    "unknown setting": (["p.csv", "modle=x"], ("pyarrow", "pandas", "jinja2", "tqdm")),
    "dry run": (["p.csv", "--dry-run"], ("pandas", "huggingface_hub.hf_api", "tokenizers", "av")),
    "real model without a card": (["p.csv"], ("pandas", "huggingface_hub.hf_api", "av")),
    "status": (["status", "nowhere"], ("hydra", "pandas", "pyarrow")),
    "references": (["references"], ("hydra", "pandas", "jinja2")),
    "recipe": (["recipe", "nothing.mp4"], ("hydra", "pandas", "pyarrow", "jinja2")),
    "help of compare": (["compare", "--help"], ("skimage", "av", "pyarrow", "hydra", "jinja2")),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_imports_nothing_slow(case: str, tmp_path: Path) -> None:
    words, absent = COMMANDS[case]
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")
    code = f"""
import json, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from hv15_batch.cli import main
main({words!r})
print(json.dumps([name for name in {[*SLOW, *absent]!r} if name in sys.modules]))
"""

    assert json.loads(python(code, tmp_path)) == []


def test_a_run_imports_nothing_slow_in_the_parent(tmp_path: Path) -> None:
    """What comes out of the worker's pipe brings its modules along: records must be plain."""
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")
    words = ["p.csv", "model=tiny_t2v", "run_dir=run", "override.num_inference_steps=1"]
    words += ["override.height=64", "override.width=64", "override.num_frames=5"]
    code = f"""
import sys
from hv15_batch.cli import main
code = main({words!r})
print(code, [name for name in {SLOW!r} if name in sys.modules])
"""

    assert python(code, tmp_path) == "0 []"


def test_a_dry_run_of_a_tiny_model_makes_no_cuda_context(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")
    code = """
import sys
from hv15_batch.cli import main
main(["p.csv", "model=tiny_t2v", "--dry-run"])
maps = open("/proc/self/maps").read()
print("torch" in sys.modules, "libcudart" in maps, "libcuda." in maps)
"""

    assert python(code, tmp_path) == "False False False"
