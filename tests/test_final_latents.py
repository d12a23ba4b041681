"""benchmarks/final_latents.py: how far settings move a clip's final latents."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from final_latents import FULL, SETTINGS, main, relative_error

from hv15_batch.config.compose import compose_one


def test_the_error_is_the_norm_of_the_difference_over_the_norm() -> None:
    plain = torch.tensor([3.0, 4.0])

    assert relative_error(torch.tensor([3.0, 4.5]), plain) == pytest.approx(0.1)
    assert relative_error(plain, plain) == 0.0
    with pytest.raises(ValueError, match=r"latents of \(1,\) and \(2,\)"):
        relative_error(torch.tensor([3.0]), plain)


def test_what_is_typed_are_settings() -> None:
    for words in SETTINGS.values():
        config = compose_one([*FULL, *words], None).config
        assert (config.model.weights.name, config.override.num_frames) == ("random", 61)


@pytest.mark.exhaustive
def test_the_tiny_model_gives_a_line_for_each_setting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert main([str(tmp_path / "out"), "--tiny"]) == 0

    out = capfd.readouterr().out
    errors = {n: float(e) for n, e in re.findall(r"^(.+): relative error (.+)$", out, re.MULTILINE)}
    assert list(errors) == ["fp8 linears", "int8 linears", "static cache"]
    assert all(0 < error < math.inf for error in errors.values())
    assert errors["int8 linears"] < errors["fp8 linears"] < 0.5
    assert "attention comfy_int8: not measured: runtime.attention_backend=comfy_int8: " in out
