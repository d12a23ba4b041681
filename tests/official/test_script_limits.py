"""What the official script cannot do is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.command import Answer
from fakes.official import official_project
from PIL import Image

from hv15_batch.config.settings import Config, RuntimeConfig
from hv15_batch.errors import Refused
from hv15_batch.model.official import OfficialConfig, cache_is_asked, typed_flags
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Engine
from hv15_batch.official.limits import check_official

ENGINE = "runtime.engine=official"


@pytest.fixture
def render(tmp_path: Path, command: Callable[..., Answer]) -> Callable[..., Answer]:
    """Plan the manifest of one row with the stand-in."""
    project = official_project(tmp_path, "prompt", "a cat")

    def plan(*words: str) -> Answer:
        where = (f"official.repo={project.repo}", f"official.python={project.python}")
        model = () if any(w.startswith("model=") for w in words) else ("model=480p_t2v",)
        return command(str(project.manifest), ENGINE, *where, *model, "dry_run=true", *words)

    return plan


REFUSED = [
    (["model=480p_t2v_4step"], "model=480p_t2v_4step with runtime.engine=official: Tencent has"),
    (["model=demo_t2v"], "loads Tencent's checkpoints only; use 480p_t2v"),
    (["model=tiny_t2v"], "model=tiny_t2v with runtime.engine=official"),
    (["model.weights=random"], "model.weights=random with runtime.engine=official"),
    (["model.repo=other/repo"], "model.repo=other/repo with runtime.engine=official"),
    (["model.loras=[{path: a.safetensors}]"], "model.loras="),
    (["model.transformer_file=a.safetensors"], "model.transformer_file=a.safetensors with"),
    (["runtime.linear=fp8"], "runtime.linear=fp8 with runtime.engine=official: leave it out, and"),
    (["runtime.compile=true"], "--enable_torch_compile true"),
    (["runtime.mask_free=false"], "runtime.mask_free=false with"),
    (["runtime.vram_limit_gib=14"], "runtime.vram_limit_gib=14 with"),
    (["runtime.card=rtx_4090"], "runtime.card=rtx_4090 with"),
    (["runtime.dtype=float16"], "it computes in bfloat16 or float32"),
    (["runtime.attention_backend=native"], "auto (what it finds"),
    (["offload=stream"], "offload=stream with runtime.engine=official: it offloads in ways of its"),
    (["sampling.cache=static"], "sampling.cache=static with"),
    (["video.crf=20"], "video.crf=20 with"),
    (["video.codec=ffv1"], "video.codec=ffv1 with"),
    (["retry.suspect=true"], "retry.suspect=true with"),
    (["benchmark.calibrate=true"], "benchmark.calibrate=true with"),
    (["override.fps=15"], "override.fps=15: with runtime.engine=official it is 24"),
    (["override.guidance_scale=4"], "override.guidance_scale=4: with runtime.engine=official it"),
    (["sampling.flow_shift=7"], "sampling.flow_shift=7: with runtime.engine=official it is 5"),
    (["override.width=640"], "the nearest size is 544x720"),
    (["official.arguments=--sr true"], "--sr is always false: super-resolution takes noise"),
    (["official.arguments=--sr"], "--sr is always false"),
    (["official.arguments=--rewrite true"], "use rewrite.base_url"),
    (["official.arguments=--enable_step_distill"], "--enable_step_distill is decided by model"),
    (["official.arguments=--seed 3"], "--seed is decided by seed"),
    (["official.arguments=--lora_path x"], "would not be part of a clip's identity"),
    (["official.arguments=--use_fp8"], "has no flag --use_fp8"),
    (["official.arguments=--sr=yes"], "--sr is always false"),
    (["official.arguments=--offloading maybe"], "--offloading is maybe; it takes true or false"),
    (["official.arguments=--enable_cache=2"], "--enable_cache is 2; it takes true or false"),
    (["official.arguments=--total_steps 4 5"], "--total_steps takes one value, and 4 5 is more"),
    (["official.arguments=--use_fp8_gemm -x"], "--use_fp8_gemm is followed by -x"),
    (["model.target_size=960"], "model.target_size=960 with runtime.engine=official"),
    (["official.arguments=fast"], "begins with 'fast'"),
    (['official.arguments="--quant_type \'x"'], "close the quote"),
    (["official.arguments=[{a: 1}]"], "must be a text or a list of texts"),
    (
        ["official.arguments=--use_sageattn true", "runtime.attention_backend=sage"],
        "--use_sageattn is in official.arguments too",
    ),
    (["official.repo=no_such"], "there is no generate.py in it"),
    (["official.python=no_such"], "official.python=no_such: no such program can be run here"),
    (["official.repo=null"], "name the folder with generate.py"),
    (["official.python=null"], "name the interpreter"),
]


def some_exhaustive(cases: list[Any], every: int) -> list[Any]:
    """Return the cases; those between every so many are for `make test-all`."""
    late = pytest.mark.exhaustive
    return [
        pytest.param(*case, marks=late, id=str(case)[:40]) if number % every else case
        for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize(("words", "message"), some_exhaustive(REFUSED, 4))
def test_what_it_cannot_do_is_refused_by_name(
    render: Callable[..., Answer], tmp_path: Path, words: list[str], message: str
) -> None:
    answer = render(*words)

    assert (answer.code, "Traceback" in answer.err) == (2, False)
    assert message in answer.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["official.arguments=[--use_fp8_gemm]"],
        ["official.arguments=--use_fp8_gemm true --quant_type fp8-per-token-sgl"],
        ["official.arguments=--rewrite false --sr false --use_sageattn false"],
        ["runtime.attention_backend=sage"],
        ["runtime.dtype=float32"],
        ["official.load_once=true"],
        ["keep_latents=false"],
        ["video.embed_metadata=false"],
    ],
    ids=str,
)
def test_what_it_can_do_is_planned(render: Callable[..., Answer], words: list[str]) -> None:
    answer = render(*words)

    assert (answer.code, answer.err) == (0, "")
    assert "A run would be refused" not in answer.out


@pytest.mark.parametrize(
    "typed", [{"repo": "x"}, {"python": "x"}, {"load_once": True}, {"arguments": "--sr"}]
)
def test_its_settings_have_no_effect_without_it(typed: dict[str, Any]) -> None:
    config = Config(model=model_options()["480p_t2v"], official=OfficialConfig(**typed))
    (name,) = typed

    with pytest.raises(Refused, match=rf"official.{name}=.*: has no effect without"):
        check_official(config)


def test_of_a_flag_typed_twice_the_last_counts() -> None:
    config = OfficialConfig(arguments="--enable_cache true --enable_cache false --quant_type x")

    assert not cache_is_asked(config)
    assert [flag.words for flag in typed_flags(config)] == [
        ("--enable_cache", "false"),
        ("--quant_type", "x"),
    ]


def test_flags_are_found_however_the_script_makes_them(tmp_path: Path) -> None:
    project = official_project(tmp_path, "prompt", "a cat")
    (project.repo / "generate.py").write_text("from hyvideo.flags import main\n")
    (project.repo / "hyvideo").mkdir(exist_ok=True)
    (project.repo / "hyvideo" / "flags.py").write_text("FLAGS = ['new_flag']\n")

    for known in ("--use_fp8_gemm true", "--offloading false", "--new_flag 3"):
        check_official(project.config(official={"arguments": known}))
    for other in ("--new 3", "--flag 3", "--new_flags 3"):
        with pytest.raises(Refused, match="has no flag"):
            check_official(project.config(official={"arguments": other}))


def test_a_checkpoint_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    project = official_project(tmp_path, "prompt", "a cat")
    (project.repo / "ckpts" / "transformer" / "480p_i2v").mkdir(parents=True)

    with pytest.raises(Refused, match=r"has no 480p_t2v \(there are 480p_i2v\); download it"):
        check_official(project.config())
    check_official(project.config(model="480p_i2v"))


def test_a_step_cache_is_refused_for_a_step_distilled_model(tmp_path: Path) -> None:
    project = official_project(tmp_path, "prompt", "a cat")
    official = {"arguments": "--enable_cache true"}

    check_official(project.config(official=official))
    with pytest.raises(Refused, match="not for a step-distilled model"):
        check_official(project.config(model="480p_i2v_step_distilled", official=official))


def test_rows_with_what_it_cannot_do_are_named_with_their_lines(
    render: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text(
        "prompt,fps,flow_shift,height,width\na,24,5,480,848\nb,30,,,\nc,,9,,\nd,,,640,640\ne,,,480,640\n"
    )

    answer = render()

    assert answer.code == 2
    assert "prompts.csv:3: fps=30: with runtime.engine=official it is 24 for this" in answer.err
    assert "prompts.csv:4: flow_shift=9: with runtime.engine=official it is 5" in answer.err
    assert "prompts.csv:6: height=480 and width=640: with runtime.engine=official" in answer.err
    assert "prompts.csv:5" not in answer.err  # a square is one of its sizes
    assert "prompts.csv:2" not in answer.err


def test_a_first_frame_is_plain_and_upright(
    render: Callable[..., Answer], tmp_path: Path, photo: Path
) -> None:
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "plain.png")
    (tmp_path / "prompts.csv").write_text(
        f"prompt,image\na,plain.png\nb,clear.png\nc,{photo}\n", encoding="utf-8"
    )

    answer = render("model=480p_i2v")

    assert answer.code == 2
    assert "prompts.csv:2" not in answer.err
    assert "prompts.csv:3: image=clear.png: with runtime.engine=official a first" in answer.err
    assert "this one needs white.v1; save it as an upright RGB PNG" in answer.err
    assert "prompts.csv:4: image=" in answer.err
    assert "this one has an orientation" in answer.err


def test_a_machine_without_a_card_is_no_reason_to_refuse(render: Callable[..., Answer]) -> None:
    answer = render()

    assert answer.code == 0
    assert "CUDA" not in answer.out
    assert "Time: not predicted for the official script" in answer.out


def test_the_other_engine_stays_the_default() -> None:
    config = Config(model=model_options()["480p_t2v"])

    assert config.runtime.engine is Engine.diffusers
    check_official(config)
    check_official(replace(config, runtime=RuntimeConfig()))
