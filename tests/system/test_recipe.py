"""`hv15-batch recipe`: a clip rendered again from its own tag, and tags nobody should trust."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.command import Answer
from fakes.manifests import LITERAL
from fakes.runs import read_csv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import VideoConfig
from hv15_batch.manifest.read import read_manifest
from hv15_batch.media.video import read_comment, write_video
from hv15_batch.model.architectures import definition_sha256
from hv15_batch.model.options import model_options
from hv15_batch.model.shapes import bucket_size
from hv15_batch.model.variant import Task
from hv15_batch.record import ClipRecord
from hv15_batch.rundir.log import RunLog

Command = Callable[..., Answer]

TINY = ("model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=1")
SMALL = (*TINY, "override.num_inference_steps=3", "override.flow_shift=6.5", "video.crf=21")
PROMPT = 'a sign, "OPEN"; ${x} 雨'


def latents_of(run_dir: Path) -> dict[str, str]:
    """Metadata of the one latents file of a run."""
    (path,) = (run_dir / "latents").glob("*.safetensors")
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def recipe(command: Command, clip: str | Path, *words: str | Path) -> tuple[list[str], Answer]:
    """Return the words of the command that is printed for a clip, and the answer it stands in."""
    answer = command("recipe", clip, *words)
    assert (answer.code, answer.err) == (0, "")
    return shlex.split(answer.out.rpartition("\nhv15-batch ")[2]), answer


def planned(command: Command, *words: str | Path) -> list[dict[str, str]]:
    """Return the plan of a command line."""
    answer = command(*words, "run_dir=again", "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    return read_csv(Path("again/plan.csv"))


def write_tagged(path: Path, tag: dict[str, Any] | str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = json.dumps(tag, ensure_ascii=False) if isinstance(tag, dict) else tag
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    write_video(frames, path, fps=24, video=VideoConfig(), comment=comment)
    return path


def base_settings() -> dict[str, Any]:
    """What is asked of a clip of the tiny model."""
    return dict(
        **{"prompt": PROMPT, "negative_prompt": "", "image_sha256": None, "seed": 2**63 - 1},
        **{"height": 32, "width": 48, "num_frames": 1, "num_inference_steps": 3, "fps": 23.976},
        **{"guidance_scale": 5.5, "flow_shift": 6.5, "model": "tiny_t2v", "weights": "tiny"},
        **{"dtype": "float32", "attention_backend": "native"},
        video={"codec": "h264", "crf": 21, "preset": "fast", "embed_metadata": True},
        revision=definition_sha256("tiny", model_options()["tiny_t2v"]),
    )


@pytest.fixture(scope="module")
def tag() -> dict[str, Any]:
    """The tag of a clip of the tiny model, as it is written."""
    from hv15_batch.clip import make_clip
    from hv15_batch.media.tag import settings_comment

    asked = ClipSettings(**base_settings())
    clip = make_clip(
        **{"row_id": "sign", "row_index": 0, "line": 2, "settings": asked, "image": None},
        **{"image_path": None, "tags": {}, "off_recipe": False},
    )
    values = json.loads(settings_comment(clip, "/home/someone/tiny", "t2v"))
    assert isinstance(values, dict)
    return values


def rehashed(tag: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A tag of other settings, with the hash that goes with them."""
    values = {**tag, **changes}
    asked = {name: values[name] for name in ClipSettings.__dataclass_fields__}
    return {**values, "settings_sha256": ClipSettings(**asked).settings_sha256()}


# -- rendered again ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_is_rendered_again_from_its_recipe_to_the_same_bits(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "sign", "prompt": PROMPT, "seed": 7}))
    assert command("p.jsonl", *SMALL, "run_dir=a").code == 0
    (clip,) = (tmp_path / "a" / "clips").iterdir()
    copy = tmp_path / "elsewhere" / "my clip (1),2.mp4"
    copy.parent.mkdir()
    copy.write_bytes(clip.read_bytes())
    (tmp_path / "p.jsonl").unlink()

    words, _ = recipe(command, copy)
    answer = command(*words)

    assert answer.code == 0, answer.err
    again = tmp_path / "outputs" / "my clip (1),2"
    assert latents_of(again)["latents_sha256"] == latents_of(tmp_path / "a")["latents_sha256"]
    assert (again / "clips" / clip.name).read_bytes() == clip.read_bytes()


PROMPTS = [
    PROMPT,
    "  a cat, asleep \t",
    "one\ntwo\r\nthree\rfour",
    "\"quoted\" and 'quoted'",
    '"',
    "# no comment",
    "a cat --seed 5",
    "{red|blue} \\${oc.env:HOME} \\",
    "\u2028 \ufeff 🐈",
    "NA",
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_as_it_was(
    command: Command, tmp_path: Path, tag: dict[str, Any], prompt: str, suffix: str
) -> None:
    tag = rehashed(tag, prompt=prompt, negative_prompt=f" {prompt}")
    write_tagged(tmp_path / "clip.mp4", tag)

    words, _ = recipe(command, "clip.mp4", "--out", f"again{suffix}")

    (row,) = read_manifest(Path(f"again{suffix}"), Task.t2v, LITERAL).rows
    assert (row.prompt, row.negative_prompt) == (prompt, f" {prompt}")
    assert ("manifest_literal=true" in words) == ("--seed" in prompt)
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == tag["settings_sha256"]


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    numbers=st.tuples(*[st.floats(1, 100)] * 3),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_and_number_gives_the_same_settings(
    prompt: str, numbers: tuple[float, ...]
) -> None:
    from hv15_batch.media.tag import ClipTag
    from hv15_batch.recipe import _as_text, make_recipe

    names = ("guidance_scale", "flow_shift", "fps")
    values = {**base_settings(), **dict(zip(names, numbers, strict=True))}
    asked = ClipSettings(**{**values, "prompt": f"x{prompt}x", "negative_prompt": f"{prompt}x"})
    tag = ClipTag(
        **{"path": Path("/c.mp4"), "name": "c.mp4", "settings": asked, "video": VideoConfig()},
        **{"settings_sha256": asked.settings_sha256(), "clip_id": "a_s1_00000000", "image": None},
        **{"repo": "tiny", "task": Task.t2v, "off_recipe": False, "version": "1"},
    )
    cells = make_recipe(tag, Path("/")).cells

    for suffix in (".csv", ".jsonl"):
        path = Path(tempfile.mkdtemp()) / f"p{suffix}"
        path.write_text(_as_text(cells, suffix), encoding="utf-8", newline="")
        (row,) = read_manifest(path, Task.t2v).rows
        assert (row.prompt, row.negative_prompt) == (f"x{prompt}x", f"{prompt}x")
        assert (row.guidance_scale, row.flow_shift, row.fps) == numbers
        shutil.rmtree(path.parent)


def test_the_manifest_has_what_the_clip_has_and_the_command_only_what_is_no_default(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    write_tagged(tmp_path / "runs" / "my clip.mp4", tag)

    answer = command("recipe", "runs/my clip.mp4")

    assert answer == Answer(
        0,
        "my clip.csv: written, 1 row, 1 clip\n"
        "hv15-batch 'my clip.csv' model=tiny_t2v runtime.attention_backend=native video.crf=21 "
        "video.preset=fast\n",
        "",
    )
    (row,) = read_csv(tmp_path / "my clip.csv")
    names = ("id", "prompt", "seed", "height", "width", "num_frames", "num_inference_steps")
    names += ("guidance_scale", "flow_shift", "fps")
    known = {**tag, "id": "sign"}
    assert row == {name: str(known[name]) for name in names}
    (plan,) = planned(command, *shlex.split(answer.out.splitlines()[-1])[1:])
    assert (plan["settings_sha256"], plan["clip_id"]) == (tag["settings_sha256"], tag["clip_id"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "random", "model": "480p_t2v"}, ["model.weights=random"]),
        ({"dtype": "float16"}, ["runtime.dtype=float16"]),
        ({"guidance_scale": 1.0, "negative_prompt": None}, []),
        ({"negative_prompt": " "}, ["override.negative_prompt= "]),
        ({"negative_prompt": "\n"}, ["override.negative_prompt=\n"]),
        (
            {"video": {"codec": "ffv1", "crf": 0, "preset": "slow", "embed_metadata": False}},
            [
                *("video.codec=ffv1", "video.crf=0", "video.preset=slow"),
                "video.embed_metadata=false",
            ],
        ),
    ],
)
def test_each_setting_of_a_clip_is_in_the_command(
    command: Command, tmp_path: Path, tag: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    video = {"codec": "h264", "crf": 17, "preset": "medium", "embed_metadata": True}
    changes = {"attention_backend": "auto", "video": video, **changes}
    if changes.get("weights") == "random":
        revision = definition_sha256("full", model_options()[changes["model"]])
        changes |= {"dtype": "bfloat16", "revision": revision}
    tag = rehashed(tag, **changes)
    write_tagged(tmp_path / "clip.mp4", tag)

    printed, _ = recipe(command, "clip.mp4")

    assert printed == ["clip.csv", f"model={tag['model']}", *words]
    (plan,) = planned(command, *printed)
    assert plan["settings_sha256"] == tag["settings_sha256"]


def test_a_clip_off_its_recipe_is_allowed_to_be(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path
) -> None:
    odd = i2v(tag, photo, model="tiny_i2v_step_distilled", num_inference_steps=5)
    write_tagged(tmp_path / "clip.mp4", {**odd, "off_recipe": True})
    (tmp_path / photo.name).write_bytes(photo.read_bytes())

    words, _ = recipe(command, "clip.mp4")

    assert "runtime.allow_off_recipe=true" in words
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == odd["settings_sha256"]


def test_another_revision_of_the_options_own_repository_is_a_setting(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    changes = {"model": "480p_t2v", "weights": "pretrained", "dtype": "bfloat16"}
    repo = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"
    tag = {**rehashed(tag, revision="a" * 40, **changes), "repo": repo}
    write_tagged(tmp_path / "clip.mp4", tag)

    words, answer = recipe(command, "clip.mp4")

    assert f"model.revision={'a' * 40}" in words
    assert "Weights" not in answer.out
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == tag["settings_sha256"]


# -- the manifest -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-m.csv", "a=b.jsonl", "sub/$(x) `y`.csv", "it's.CSV"])
def test_the_manifest_may_have_any_name(
    command: Command, tmp_path: Path, tag: dict[str, Any], name: str
) -> None:
    write_tagged(tmp_path / "clip.mp4", tag)
    (tmp_path / "sub").mkdir()

    words, _ = recipe(command, "clip.mp4", f"--out={name}")

    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == tag["settings_sha256"]


def test_no_file_is_written_over(command: Command, tmp_path: Path, tag: dict[str, Any]) -> None:
    write_tagged(tmp_path / "clip.mp4", tag)
    (tmp_path / "clip.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to("nowhere.csv")

    for words in ([], ["--out", "clip.csv"], ["--out", "link.csv"]):
        name = words[-1] if words else "clip.csv"
        assert command("recipe", "clip.mp4", *words) == Answer(
            2, "", f"{name}: exists already; name another file with --out FILE.\n"
        )
    assert (tmp_path / "clip.csv").read_text() == "mine"
    assert not (tmp_path / "nowhere.csv").exists()


def test_a_name_that_is_no_manifest_of_text_is_refused(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    write_tagged(tmp_path / "clip.mp4", tag)

    assert command("recipe", "clip.mp4", "--out", "p.parquet") == Answer(
        2, "", "--out p.parquet: the manifest's name ends in .csv or .jsonl.\n"
    )
    assert command("recipe", "clip.mp4", "--out", "no/p.csv") == Answer(
        2,
        "",
        "no/p.csv: cannot be written (No such file or directory); name another file with "
        "--out FILE.\n",
    )
    assert command("recipe").code == 2


def test_it_is_a_module_too(tmp_path: Path, tag: dict[str, Any]) -> None:
    write_tagged(tmp_path / "clip.mp4", tag)
    program = [sys.executable, "-m", "hv15_batch.recipe", "clip.mp4"]

    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("clip.csv: written")
    assert done.stderr == ""


# -- first frames -----------------------------------------------------------------------------


def i2v(tag: dict[str, Any], photo: Path, **changes: Any) -> dict[str, Any]:
    """The tag of a clip that was made from a picture."""
    from hv15_batch.rundir.publish import sha256_of_file

    model = model_options()[changes.get("model", "tiny_i2v")]
    height, width = bucket_size(60, 40, model.target_size)
    known = {"model": model.name, "revision": definition_sha256("tiny", model), "height": height}
    known |= {"width": width, "image": photo.name, "image_sha256": sha256_of_file(photo)}
    if "step" in model.name:
        known |= {"guidance_scale": 1.0, "negative_prompt": None}
    return rehashed({**tag, "task": "i2v"}, **known | changes)


@pytest.mark.parametrize("place", ["beside", "manifest", "log"])
def test_the_first_frame_is_found(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path, place: str
) -> None:
    asked = i2v(tag, photo)
    clip = write_tagged(tmp_path / "run" / "clips" / "clip.mp4", asked)
    if place == "beside":
        (clip.parent / photo.name).write_bytes(photo.read_bytes())
    else:
        folder = tmp_path / "run" / "runs" / "20261122T000000-0000-abcd"
        folder.mkdir(parents=True)
        manifest = photo.parent / "p.csv"
        if place == "log":
            manifest = photo.parent.parent / "p.csv"
            image = str(photo.relative_to(photo.parent.parent))
            (tmp_path / "run" / "log").mkdir()
            log = RunLog(tmp_path / "run" / "log", folder.name)
            log.append(
                ClipRecord(
                    **{"run_id": folder.name, "settings_sha256": asked["settings_sha256"]},
                    **{"image": image, "status": "ok"},
                )
            )
        (folder / "config.yaml").write_text(f"manifest: {manifest}\nmodel: {{name: tiny_i2v}}\n")

    words, answer = recipe(command, clip)

    assert "First frame" not in answer.out
    assert set(read_csv(tmp_path / "clip.csv")[0]).isdisjoint({"height", "width"})
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == asked["settings_sha256"]


def test_a_first_frame_that_is_gone_or_another_one_is_named(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path
) -> None:
    asked = i2v(tag, photo)
    write_tagged(tmp_path / "clips" / "clip.mp4", asked)
    Image.new("RGB", (40, 60)).save(tmp_path / "clips" / photo.name)

    words, answer = recipe(command, "clips/clip.mp4")

    assert answer.out.splitlines()[1] == (
        f"First frame: photo.png (SHA-256 {asked['image_sha256']}) is not beside the clip, nor "
        "where its run had it; put it beside the manifest, or its path into the column image."
    )
    (tmp_path / photo.name).write_bytes(photo.read_bytes())
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == asked["settings_sha256"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_frame_of_another_clip_is_taken_from_the_run(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path, is_kept: bool
) -> None:
    source = f"{'0a' * 32}:24"
    changes = {"image": "@cat:last", "image_sha256": None, "image_source": source}
    write_tagged(tmp_path / "run" / "clips" / "clip.mp4", i2v(tag, photo, **changes))
    frame = tmp_path / "run" / "frames" / f"{'0a' * 32}_24.png"
    frame.parent.mkdir()
    if is_kept:
        Image.new("RGB", (40, 60), "red").save(frame)

    words, answer = recipe(command, "run/clips/clip.mp4")

    note = next(line for line in answer.out.splitlines() if line.startswith("First frame: "))
    what = "First frame: it is frame 24 of another clip (image=@cat:last)"
    if is_kept:
        assert note == f"{what}, taken from {frame}; the clip looks the same and has another name."
        (plan,) = planned(command, *words)
        assert plan["image"] == str(frame)
    else:
        assert note == f"{what}, which is not kept; put an image file into the column image."


def test_the_tag_has_the_prompt_before_it_was_rewritten(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    from hv15_batch.clip import Rewrite, make_clip
    from hv15_batch.media.tag import read_clip_tag, settings_comment

    asked = ClipSettings(**base_settings())
    clip = make_clip(
        **{"row_id": "sign", "row_index": 0, "line": 2, "settings": asked, "image": None},
        **{"image_path": None, "tags": {}, "off_recipe": False},
    ).with_rewrite(Rewrite("a sign", "qwen3", "0" * 64))
    written = json.loads(settings_comment(clip, "tiny", "t2v"))
    assert (written["prompt"], written["prompt_original"]) == (PROMPT, "a sign")
    path = write_tagged(tmp_path / "clip.mp4", written)

    assert read_clip_tag(str(path)).prompt_original == "a sign"
    words, answer = recipe(command, path)
    assert "Prompt: it was rewritten; the original is 'a sign'." in answer.out
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == clip.settings_sha256, "the rewritten prompt is the clip's"
    assert "prompt_original" not in tag


def test_a_transparent_first_frame_gives_the_same_clip_or_says_that_it_is_seen_otherwise(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    (tmp_path / "clips").mkdir()
    clear = tmp_path / "clips" / "clear.png"
    Image.new("RGBA", (40, 60), (200, 0, 0, 90)).save(clear)
    now, before = (i2v(tag, clear, image_conversion=name) for name in ("white.v1", None))
    write_tagged(tmp_path / "clips" / "now.mp4", now)
    write_tagged(tmp_path / "clips" / "before.mp4", before)

    words, answer = recipe(command, "clips/now.mp4")
    assert "First frame" not in answer.out
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == now["settings_sha256"]

    words, answer = recipe(command, "clips/before.mp4")
    assert "made it RGB by the plain conversion, and this version by white.v1" in answer.out


# -- what a tag does not decide ---------------------------------------------------------------


def test_other_weights_than_those_made_here_are_named(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    write_tagged(tmp_path / "clip.mp4", rehashed(tag, revision="0" * 64))

    words, answer = recipe(command, "clip.mp4")

    assert answer.out.splitlines()[1] == (
        f"Weights: version {tag['hv15_batch_version']!r} made them with revision {'0' * 64}, and "
        f"this version makes {tag['revision']}; the clip will be another."
    )
    assert not any(word.startswith("model.revision") for word in words)


@pytest.mark.parametrize(
    ("repo", "typed"),
    [
        ("evil/weights", f"model.repo=evil/weights model.revision={'a' * 40}"),
        ("my folder", "model.repo=FOLDER"),
        ("evil/weights runtime.dtype=float32", "model.repo=FOLDER"),
    ],
)
def test_a_repository_is_never_taken_from_a_tag(
    command: Command, tmp_path: Path, tag: dict[str, Any], repo: str, typed: str
) -> None:
    changes = {"model": "480p_t2v", "weights": "pretrained", "revision": "a" * 40}
    tag = rehashed(tag, dtype="bfloat16", **changes)
    write_tagged(tmp_path / "clip.mp4", {**tag, "repo": repo})

    words, answer = recipe(command, "clip.mp4")

    assert answer.out.splitlines()[1] == (
        f"Weights: they came from {repo!r}, which is not the repository of model=480p_t2v; a tag "
        f"never decides what is loaded. To use them, add {typed}."
    )
    assert not any(word.startswith(("model.repo", "model.revision")) for word in words)


def test_a_kernel_from_the_hub_is_never_fetched_because_a_tag_says_so(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    write_tagged(tmp_path / "c.mp4", rehashed(tag, attention_backend="flash_hub"))

    words, answer = recipe(command, "c.mp4")

    assert answer.out.splitlines()[1] == (
        "Attention: it was rendered with flash_hub, which fetches code from the Hugging Face hub "
        "and runs it; a tag never decides that. To use it, add "
        "runtime.attention_backend=flash_hub."
    )
    assert not any("attention" in word for word in words)


@pytest.mark.parametrize("linear", ["fp8", "int8"])
def test_8_bit_linear_modules_are_typed_again(
    command: Command, tmp_path: Path, tag: dict[str, Any], linear: str
) -> None:
    made = rehashed(tag, linear=linear)
    write_tagged(tmp_path / "clip.mp4", made)

    words, _ = recipe(command, "clip.mp4")

    assert f"runtime.linear={linear}" in words
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == made["settings_sha256"] != tag["settings_sha256"]


# -- tags that are not used -------------------------------------------------------------------


def test_a_tag_of_before_a_setting_has_its_default(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    older = {name: value for name, value in tag.items() if name not in ("quantisation", "cache")}
    write_tagged(tmp_path / "clip.mp4", older)

    words, _ = recipe(command, "clip.mp4")

    assert len(older) < len(tag)
    (plan,) = planned(command, *words)
    assert plan["settings_sha256"] == tag["settings_sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "its tag has schema 99, and this version reads 1"),
        ({"seed": 8}, "its tag was edited"),
        ({"model": "../../etc/passwd"}, "model=../../etc/passwd in its tag must be one of"),
        ({"revision": "../../refs"}, "revision=../../refs in its tag must be 40 or 64"),
        ({"dtype": "float32 hydra.run.dir=/"}, "in its tag must be one of bfloat16"),
        ({"attention_backend": "evil"}, "attention_backend=evil in its tag must be one of auto"),
        ({"video": {"codec": "h264"}}, "in its tag must have codec, crf, preset, embed_metadata"),
        ({"image": "../secret.png"}, "image=../secret.png in its tag must be a file's name"),
        ({"cache": "fast"}, "cache=fast in its tag must be every:start:end"),
        ({"linear": "bf16"}, "linear=bf16 in its tag must be one of fp8, int8"),
        ({"linear": ["fp8"]}, 'linear=["fp8"] in its tag must be one of fp8, int8'),
        ({"image_conversion": "white.v1"}, "image_conversion=white.v1 in its tag is not known"),
        ({"image_conversion": ["x"]}, 'image_conversion=["x"] in its tag is not known'),
        ({"image_source": "../up:1"}, "image_source=../up:1 in its tag must be a SHA-256 and"),
        ({"image_source": ["x"]}, 'image_source=["x"] in its tag must be a SHA-256 and'),
        ({"prompt_original": 1}, "prompt_original=1 in its tag must be text"),
        ({"more": 1}, "more=1 in its tag is missing or unknown"),
        ({"weights": ["tiny"]}, 'weights=["tiny"] in its tag must be one of'),
    ],
)
def test_a_tag_with_foreign_values_is_refused(
    command: Command,
    tmp_path: Path,
    tag: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    clip = write_tagged(tmp_path / "clip.mp4", {**tag, **changes})

    answer = command("recipe", clip)

    assert answer.code == 2
    assert message in answer.err
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 2}, "clip.mp4:1: num_frames=2: must be 4n+1"),
        ({"num_inference_steps": True}, "clip.mp4:1: num_inference_steps=true: must be a whole"),
        ({"seed": -1}, "clip.mp4:1: seed=-1: seeds are integers"),
        ({"height": 100_000}, "clip.mp4:1: height=100000: must be at most 4096 pixels"),
        ({"prompt": " "}, "clip.mp4:1: prompt=' ': must not be empty"),
        ({"prompt": 5}, "clip.mp4:1: prompt=5: must be text"),
    ],
)
def test_its_values_are_checked_as_those_of_a_manifest(
    command: Command, tmp_path: Path, tag: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    write_tagged(tmp_path / "clip.mp4", rehashed(tag, **changes))

    answer = command("recipe", "clip.mp4")

    assert answer.code == 2
    assert message in answer.err


def test_an_unknown_crf_is_refused_as_if_it_were_typed(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    write_tagged(tmp_path / "clip.mp4", rehashed(tag, video={**tag["video"], "crf": 99}))

    assert "video.crf=99: x264 takes 0 (lossless) to 51" in command("recipe", "clip.mp4").err


@pytest.mark.parametrize(
    "comment",
    [
        *(None, "made with a camera", "[" * 100_000, "[]", '{"a": 1', "{}"),
        *('{"camera": "x"}', '{"schema": 1}', '{"schema": true, "hv15_batch_version": "0.1.0"}'),
        '{"schema": "2.0", "hv15_batch_version": null}',
    ],
)
def test_a_file_without_settings_is_refused(
    command: Command, tmp_path: Path, comment: str | None
) -> None:
    write_tagged(tmp_path / "clip.mp4", comment)

    answer = command("recipe", "clip.mp4")

    assert answer.code == 2
    if comment is None:
        assert "it has no tag" in answer.err
    else:
        assert answer.err == (
            "clip.mp4: its comment is not the settings of a clip; name a clip that hv15-batch "
            "rendered with video.embed_metadata=true, or write a manifest.\n"
        )


def test_what_is_no_clip_is_refused(command: Command, tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_text("secret")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")

    for name in ("list.mp4", "secret.ts", "nothing.mp4", ".", "~nobody/clip.mp4"):
        answer = command("recipe", name)
        assert answer.code == 2
        assert answer.err.startswith(f"{name}: ")


def test_the_tag_has_what_a_recipe_needs(tmp_path: Path, tag: dict[str, Any]) -> None:
    written = json.loads(read_comment(write_tagged(tmp_path / "clip.mp4", tag)) or "")

    assert written.keys() >= ClipSettings.__dataclass_fields__.keys()
    assert (written["schema"], written["repo"]) == (1, "tiny")
