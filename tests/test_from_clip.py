"""`from=clip.mp4`: a clip rendered again from its own tag, and tags that nobody should trust."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_fakes import Answer
from PIL import Image
from run_fakes import read_csv
from safetensors import safe_open
from test_report import read_data

from hv15_batch.clip import ClipSettings
from hv15_batch.config import VideoConfig
from hv15_batch.video import read_comment, write_video

Command = Callable[..., Answer]

TINY = ("model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=1")
SMALL = (*TINY, "override.num_inference_steps=3", "override.flow_shift=6.5", "video.crf=21")
PROMPT = 'a sign, "OPEN"; ${x} 雨'


def latents_of(run_dir: Path) -> dict[str, str]:
    """Metadata of the one latents file of a run."""
    (path,) = (run_dir / "latents").glob("*.safetensors")
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def planned(command: Command, *words: str | Path) -> tuple[Answer, list[dict[str, str]]]:
    """Return what a dry run says, and its plan."""
    answer = command(*words, "run_dir=again", "dry_run=true")
    plan = Path("again/plan.csv")
    return answer, read_csv(plan) if plan.is_file() else []


def write_tagged(path: Path, tag: dict[str, Any] | str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = json.dumps(tag, ensure_ascii=False) if isinstance(tag, dict) else tag
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    write_video(frames, path, fps=24, video=VideoConfig(), comment=comment)
    return path


@pytest.fixture(scope="module")
def tag() -> dict[str, Any]:
    """The tag of a clip of the tiny model, as it is written."""
    from test_conf_data import read_model

    from hv15_batch.architectures import definition_sha256
    from hv15_batch.clip import make_clip
    from hv15_batch.clip_facts import settings_comment

    settings = ClipSettings(
        **{"prompt": PROMPT, "negative_prompt": "", "image_sha256": None, "seed": 2**63 - 1},
        **{"height": 32, "width": 48, "num_frames": 1, "num_inference_steps": 3, "fps": 23.976},
        **{"guidance_scale": 5.5, "flow_shift": 6.5, "model": "tiny_t2v", "weights": "tiny"},
        **{"dtype": "float32", "attention_backend": "native"},
        video={"codec": "h264", "crf": 21, "preset": "fast", "embed_metadata": True},
        revision=definition_sha256("tiny", read_model("tiny_t2v")),
    )
    clip = make_clip(
        **{"row_id": "sign", "row_index": 0, "line": 2, "settings": settings, "image": None},
        **{"image_path": None, "tags": {}, "off_recipe": False},
    )
    values = json.loads(settings_comment(clip, "/home/someone/tiny", "t2v"))
    assert isinstance(values, dict)
    return values


def rehashed(tag: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A tag of other settings, with the hash that goes with them."""
    values = {**tag, **changes}
    settings = {name: values[name] for name in ClipSettings.__dataclass_fields__}
    return {**values, "settings_sha256": ClipSettings(**settings).settings_sha256()}


# -- rendered again ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_is_rendered_again_from_its_tag_to_the_same_bits(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "sign", "prompt": PROMPT, "seed": 7}))
    assert command("p.jsonl", *SMALL, "run_dir=a").code == 0
    (clip,) = (tmp_path / "a" / "clips").iterdir()
    copy = tmp_path / "elsewhere" / "my clip (1),2.mp4"
    copy.parent.mkdir()
    copy.write_bytes(clip.read_bytes())
    (tmp_path / "p.jsonl").unlink()

    answer = command(f"from={copy}")

    assert answer.code == 0, answer.err
    again = tmp_path / "outputs" / "my clip (1),2"
    assert latents_of(again)["latents_sha256"] == latents_of(tmp_path / "a")["latents_sha256"]
    assert (again / "clips" / clip.name).read_bytes() == clip.read_bytes()

    copy.unlink()
    gone = command(f"resume={again}")
    assert gone.code == 2
    assert "its manifest" in gone.err


def test_the_plan_has_the_same_settings_and_the_same_name(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    clip = write_tagged(tmp_path / "clip.mp4", tag)

    answer, (row,) = planned(command, f"from={clip}")

    assert answer.code == 0, answer.err
    assert row["settings_sha256"] == tag["settings_sha256"]
    assert row["clip_id"] == tag["clip_id"]
    assert "not the clip of" not in answer.out


def test_what_is_typed_beside_from_wins_and_is_said(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    clip = write_tagged(tmp_path / "clip.mp4", tag)

    answer, (row,) = planned(command, f"from={clip}", "override.seeds=3", "video.crf=30")

    assert (row["seed"], row["num_inference_steps"]) == ("3", "3")
    assert f"not the clip of {clip}: seed, video differ, as typed" in answer.out


def test_a_clip_off_its_recipe_is_rendered_again_without_being_asked(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path
) -> None:
    odd = i2v(tag, photo, model="tiny_i2v_step_distilled", num_inference_steps=5)
    clip = write_tagged(tmp_path / "clip.mp4", {**odd, "off_recipe": True, "task": "i2v"})

    answer, (row,) = planned(command, f"from={clip}", f"image={photo}")

    assert answer.code == 0, answer.err
    assert row["num_inference_steps"] == "5"


# -- first frames -----------------------------------------------------------------------------


def i2v(tag: dict[str, Any], photo: Path, **changes: Any) -> dict[str, Any]:
    """The tag of a clip that was made from a picture."""
    from test_conf_data import read_model

    from hv15_batch.architectures import definition_sha256
    from hv15_batch.resolve import bucket_size
    from hv15_batch.rundir import sha256_of_file

    model = read_model(changes.get("model", "tiny_i2v"))
    height, width = bucket_size(60, 40, model.target_size)
    known = {"model": model.name, "revision": definition_sha256("tiny", model), "height": height}
    known |= {"width": width, "image": photo.name, "image_sha256": sha256_of_file(photo)}
    if "step" in model.name:
        known |= {"guidance_scale": 1.0, "negative_prompt": None}
    return rehashed({**tag, "task": "i2v"}, **known | changes)


@pytest.mark.parametrize("place", ["beside", "typed", "manifest"])
def test_the_first_frame_is_found(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path, place: str
) -> None:
    clip = write_tagged(tmp_path / "run" / "clips" / "clip.mp4", i2v(tag, photo))
    words = [f"from={clip}"]
    if place == "beside":
        (clip.parent / photo.name).write_bytes(photo.read_bytes())
    elif place == "typed":
        words.append(f"image={photo}")
    else:
        folder = tmp_path / "run" / "runs" / "20261122T000000-0000-abcd"
        folder.mkdir(parents=True)
        manifest = photo.parent / "p.csv"
        (folder / "config.yaml").write_text(f"manifest: {manifest}\nmodel: {{name: tiny_i2v}}\n")

    answer, (row,) = planned(command, *words)

    assert answer.code == 0, answer.err
    assert (row["settings_sha256"], row["image"]) == (
        i2v(tag, photo)["settings_sha256"],
        photo.name,
    )


def test_another_picture_of_the_same_name_is_refused(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path
) -> None:
    clip = write_tagged(tmp_path / "clip.mp4", i2v(tag, photo))
    Image.new("RGB", (40, 60)).save(tmp_path / photo.name)

    found, typed = (
        command(f"from={clip}", "dry_run=true", *more) for more in ([], [f"image={photo.name}"])
    )

    assert (found.code, typed.code) == (2, 2)
    assert f"its first frame '{photo.name}' is not in {tmp_path}" in found.err
    assert "is not the first frame of" in typed.err


# -- the page of such a run -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_the_page_has_the_command_that_makes_the_clip_again_and_the_first_frame_where_it_lies(
    command: Command, tmp_path: Path, tag: dict[str, Any], photo: Path, task: str
) -> None:
    if task == "i2v":
        tag = i2v(tag, photo, num_inference_steps=1)
    clip = write_tagged(tmp_path / "it's" / "clip.mp4", tag)
    words = [f"image={photo}"] if task == "i2v" else []
    # Back at the default, which is not what the tag says.
    assert command(f"from={clip}", *words, "video.crf=17", "run_dir=b").code == 0
    (shown,) = read_data(tmp_path / "b")["clips"]

    answer = command(*shlex.split(shown["command"])[1:])

    assert (answer.code, answer.err) == (0, "")
    (made,), (again,) = (
        (tmp_path / name / "clips").iterdir() for name in ("b", f"b.again/{shown['id']}")
    )
    assert again.name == made.name != f"{tag['clip_id']}.mp4"
    assert shown["pick"].get("image") == (str(photo) if task == "i2v" else None)


# -- tags that are not used -------------------------------------------------------------------


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
        ({"cache": "fast"}, "cache=fast in its tag is not supported"),
        ({"more": 1}, "more=1 in its tag is missing, or not known here"),
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

    answer = command(f"from={clip}")

    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "outputs").exists()


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

    answer = command("from=clip.mp4")

    assert answer.code == 2
    assert message in answer.err


def test_an_unknown_crf_is_refused_as_if_it_were_typed(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    write_tagged(tmp_path / "clip.mp4", rehashed(tag, video={**tag["video"], "crf": 99}))

    assert "video.crf=99: x264 takes 0 (lossless) to 51" in command("from=clip.mp4").err


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

    answer = command("from=clip.mp4")

    assert answer.code == 2
    if comment is None:
        assert "it has no tag" in answer.err
    else:
        assert answer.err == (
            "from=clip.mp4: its comment is not the settings of a clip; name a clip that hv15-batch "
            "rendered with video.embed_metadata=true, or write a manifest.\n"
        )


def test_what_is_no_clip_is_refused(command: Command, tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_text("secret")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")

    for name in ("list.mp4", "secret.ts", "nothing.mp4", "."):
        answer = command(f"from={name}")
        assert answer.code == 2
        assert answer.err.startswith(f"from={name}: ")


def test_other_weights_than_those_of_the_clip_are_refused_unless_asked_for(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    clip = write_tagged(tmp_path / "clip.mp4", rehashed(tag, revision="0" * 64))

    refused = command(f"from={clip}")
    answer, _ = planned(command, f"from={clip}", "model.revision=null")

    assert refused.code == 2
    assert f"was rendered with revision {'0' * 64} of its weights by hv15_batch" in refused.err
    assert answer.code == 0
    assert "revision differ, as typed" in answer.out


def test_a_repository_is_never_taken_from_a_tag(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    changes = {"model": "480p_t2v", "weights": "pretrained", "revision": "a" * 40}
    tag = rehashed(tag, dtype="bfloat16", **changes)
    clip = write_tagged(tmp_path / "clip.mp4", {**tag, "repo": "evil/weights"})

    answer = command(f"from={clip}", "dry_run=true")

    assert answer.code == 2
    assert "its weights came from 'evil/weights', which is not that of model=480p_t2v" in answer.err


def test_a_kernel_from_the_hub_is_never_fetched_because_a_tag_says_so(
    command: Command, tmp_path: Path, tag: dict[str, Any]
) -> None:
    clip = write_tagged(tmp_path / "c.mp4", rehashed(tag, attention_backend="flash_hub"))

    assert command("from=c.mp4", "run_dir=again") == Answer(
        2,
        "",
        "from=c.mp4: was rendered with flash_hub, which fetches code from the Hugging Face hub and "
        "runs it, and a tag never decides that; type runtime.attention_backend=flash_hub if you "
        "want it, or runtime.attention_backend=auto.\n",
    )
    answer, plan = planned(command, f"from={clip}", "runtime.attention_backend=auto")
    assert (answer.code, answer.err, len(plan)) == (0, "", 1)
    assert "attention_backend differ, as typed" in answer.out


def test_from_stands_alone(command: Command, tmp_path: Path, tag: dict[str, Any]) -> None:
    clip = write_tagged(tmp_path / "clip.mp4", tag)
    (tmp_path / "p.csv").write_text("prompt\na cat\n", encoding="utf-8")

    with_manifest = command("p.csv", f"from={clip}")
    with_resume = command(f"from={clip}", "resume=somewhere")
    alone = command("p.csv", "model=tiny_t2v", "image=x.png")

    assert with_manifest.err.startswith(f"manifest= with from={clip}")
    assert with_resume.err.startswith(f"resume= with from={clip}")
    assert alone.err.startswith("image=: goes with from=clip.mp4")


def test_the_tag_has_what_from_needs(tmp_path: Path, tag: dict[str, Any]) -> None:
    written = json.loads(read_comment(write_tagged(tmp_path / "clip.mp4", tag)) or "")

    assert written.keys() >= ClipSettings.__dataclass_fields__.keys()
    assert (written["schema"], written["repo"]) == (1, "tiny")
