"""Chains of rows: which frame a cell names, what is refused, and which clip each one follows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from hv15_batch.clip import Clip
from hv15_batch.config.options import with_models
from hv15_batch.config.settings import Config
from hv15_batch.config.shard import Shard
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.chains import links
from hv15_batch.manifest.clips import make_clips, read_rows
from hv15_batch.manifest.columns import Reading
from hv15_batch.manifest.frame import frame_content
from hv15_batch.manifest.read import scan_manifest
from hv15_batch.manifest.templates.asked import Templates
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Task

HEAD = "id,prompt,model,image,seed,num_frames,join"
A = "a,a cat,tiny_t2v,,0 1,9,"
B = "b,a dog,tiny_i2v,@a:last,0 1,9,"
CIRCLE = "a chain of rows has a beginning, and this one is a circle; correct one of its cells."


def chain(tmp_path: Path, *lines: str, head: str = HEAD) -> dict[str, Clip]:
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    config = Config(manifest=str(path), model=model_options()["tiny_t2v"])
    manifest = read_rows(path, config)
    config = with_models(config, (row.model for row in manifest.rows))
    return {f"{c.row_id}{c.settings.seed}": c for c in make_clips(manifest, config, "1")}


def faults(tmp_path: Path, *lines: str, head: str = HEAD) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        chain(tmp_path, *lines, head=head)
    prefix = f"{tmp_path / 'prompts.csv'}:"
    return [message.removeprefix(prefix) for message in str(caught.value).splitlines()]


# -- which clip, which frame ------------------------------------------------------------------


@pytest.mark.parametrize(("frame", "number"), [("last", 8), ("first", 0), ("3", 3), ("8", 8)])
def test_a_clip_begins_with_a_frame_of_the_clip_in_the_same_place(
    tmp_path: Path, frame: str, number: int
) -> None:
    clips = chain(tmp_path, A, B.replace("last", frame).replace("0 1", "5 6"))
    for own, before in (("b5", "a0"), ("b6", "a1")):
        source = clips[own].source
        assert source is not None
        assert source.settings_sha256 == clips[before].settings_sha256
        assert source.clip_id == clips[before].clip_id
        assert clips[own].settings.image_source == f"{clips[before].denoise_sha256}:{number}"
        assert clips[own].settings.image_sha256 is None
        assert clips[before].kept_frames == (number,)
        size = clips[before].settings.height, clips[before].settings.width
        assert (clips[own].settings.height, clips[own].settings.width) == size


def test_one_clip_may_be_followed_by_all_seeds_of_several_rows_and_those_by_others(
    tmp_path: Path,
) -> None:
    clips = chain(
        tmp_path,
        "d,a fox,tiny_i2v,@c:first,,9,",  # before the rows that it follows
        A.replace("0 1", "7"),
        B,
        "c,an owl,tiny_i2v,@a:4,,9,",
    )
    assert {name: clip.level for name, clip in clips.items()} == {
        **{"d0": 2, "a7": 0},
        **{"b0": 1, "b1": 1, "c0": 1},
    }
    assert clips["a7"].kept_frames == (4, 8)
    assert clips["d0"].source is not None
    assert clips["d0"].source.first.row_id == "a"


def test_the_first_prompt_changes_both_clips_and_the_second_one(tmp_path: Path) -> None:
    before = chain(tmp_path, A, B)
    first = chain(tmp_path, A.replace("a cat", "a red cat"), B)
    second = chain(tmp_path, A, B.replace("a dog", "a red dog"))
    other_fps = chain(tmp_path, "a,a cat,tiny_t2v,,0 1,9,,12", B + ",", head=HEAD + ",fps")

    def changed(now: dict[str, Clip]) -> set[str]:
        return {n for n in now if now[n].settings_sha256 != before[n].settings_sha256}

    assert changed(first) == {"a0", "a1", "b0", "b1"}
    assert changed(second) == {"b0", "b1"}
    assert changed(other_fps) == {"a0", "a1"}, "the frames are the same"


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_chain_belongs_to_one_shard(tmp_path: Path, count: int) -> None:
    rows = [f"r{n},cat {n},tiny_t2v,,,9," for n in range(8)]
    rows += [f"f{n},dog,tiny_i2v,@r{n}:last,,9," for n in range(8)]
    rows += [f"g{n},dog,tiny_i2v,@f{n}:last,,9," for n in range(8)]
    clips = chain(tmp_path, *rows)
    for number in range(count):
        shard = Shard(number, count)
        for n in range(8):
            assert len({shard.has(clips[f"{kind}{n}0"]) for kind in "rfg"}) == 1


# -- what is refused --------------------------------------------------------------------------


def test_rows_that_cannot_follow_are_refused_with_their_lines(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        A,
        "b,x,tiny_i2v,@a:last,0..2,9,",
        "c,x,tiny_i2v,@aa:last,,9,",
        "d,x,tiny_i2v,@e:last,,9,",
        "e,x,tiny_i2v,@d:last,,9,",
        "f,x,tiny_i2v,@f:last,,9,",
        "g,x,tiny_i2v,@a:9,0 1,9,",
        "h,x,tiny_i2v,@a:end,,9,",
        "i,x,tiny_i2v,@d:last,,9,",  # follows a refused row
        "j,,tiny_t2v,,,9,",
        "k,x,tiny_i2v,@j:last,,9,",  # likewise
        "l,x,tiny_t2v,@a:last,,9,",
    )
    assert found == [
        "3: image=@a:last: a has 2 seeds and this row 3, and a clip follows the one in the same "
        "place; give both as many, or a one for all.",
        "4: image=@aa:last: no row has the id aa; write @a:last if that is meant.",
        f"5: image=@e:last: {CIRCLE}",
        f"7: image=@f:last: {CIRCLE}",
        "8: image=@a:9: the frames of a are 0 to 8; name one of them, or last.",
        "9: image=@a:end: @ begins a frame of another row's clip: @ID:last, @ID:first, or @ID:N "
        "with N from 0; write it like @fox:last.",
        "11: prompt='': must not be empty; write what the clip shows, or delete the row.",
        "13: image=@a:last: a text-to-video model uses no image; leave the cell empty, or use an "
        "image-to-video model (model=480p_i2v).",
    ]


def test_a_fault_that_needs_the_settings_is_found_without_others(tmp_path: Path) -> None:
    assert faults(tmp_path, A, B.replace("last", "9")) == [
        "3: image=@a:9: the frames of a are 0 to 8; name one of them, or last."
    ]
    long = "a,a cat,tiny_t2v,,0 1,9,,16,128"
    assert faults(tmp_path, long, B + ",,", head=HEAD + ",height,width") == [
        "3: image=@a:last: a first frame is at most 4:1, and the clips of a have 128x16 pixels; "
        "change their size."
    ]


@pytest.mark.parametrize("name", ["a", "a-c5c4a7"])
def test_a_template_cannot_be_followed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "prompts.csv"
    rows = ["a,a {red|blue} cat,tiny_t2v,,,", f"b,a dog,tiny_i2v,@{name}:last,,"]
    path.write_text("\n".join(["id,prompt,model,image,seed,join", *rows]), encoding="utf-8")
    reading = Reading(templates=Templates(None))
    manifest, _ = scan_manifest(path, Task.t2v, reading)
    if name != "a":
        expanded = manifest.rows[0].id
        text = path.read_text(encoding="utf-8").replace(name, expanded)
        path.write_text(text, encoding="utf-8")
        name = expanded
    manifest, found = scan_manifest(path, Task.t2v, reading)
    assert found.messages == [
        f"{path}:3: image=@{name}:last: {name} is a template, which makes many rows, and a clip "
        "follows one of them; write that one as a row of its own."
    ]
    assert [row.template_id for row in manifest.rows] == ["a", "a"]


def test_a_long_chain_is_read(tmp_path: Path) -> None:
    rows = [f"r{n},x,tiny_i2v,@r{n - 1}:last,,9," for n in range(1500, 0, -1)]
    clips = chain(tmp_path, *rows, "r0,x,tiny_t2v,,,9,")
    assert clips["r15000"].level == 1500


def test_a_default_id_of_rows_with_different_clips_cannot_be_followed(tmp_path: Path) -> None:
    rows = [",a cat,tiny_t2v,,1,9,", ",a cat,tiny_t2v,,2,9,"]
    (name,) = {clip.row_id for clip in chain(tmp_path, *rows).values()}
    follower = f"b,a dog,tiny_i2v,@{name}:last,2,9,"
    assert faults(tmp_path, *rows, follower) == [
        f"4: image=@{name}:last: {name} is the id of 2 rows: lines 2, 3, which make different "
        "clips, and a clip follows one of them; give those rows ids of their own."
    ]
    assert chain(tmp_path, rows[0], rows[0], follower)["b2"].source is not None, "one clip"
    own = [f"{letter}{row}" for letter, row in zip("cd", rows, strict=True)]
    assert chain(tmp_path, *own, "b,a dog,tiny_i2v,@d:last,2,9,")["b2"].source is not None


def test_ids_like_a_wrong_one_are_sought_for_faults_that_are_shown_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[str] = []

    def seek(name: str, *_: object, **__: object) -> list[str]:
        sought.append(name)
        return []

    monkeypatch.setattr(links.difflib, "get_close_matches", seek)
    faults(tmp_path, *(f"r{n},x,tiny_i2v,@gone{n}:last,,9," for n in range(70)))
    assert sought == [f"gone{n}" for n in range(50)]


# -- files and formats ------------------------------------------------------------------------


def test_a_file_whose_name_begins_like_that_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "@a.png")
    clips = chain(tmp_path, "b,a dog,tiny_i2v,@a.png,,9,")
    assert clips["b0"].source is None
    assert clips["b0"].settings.image_sha256 is not None


def test_a_file_with_the_name_of_a_frame_is_reached_by_its_folder_alone(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "@a:last", "PNG")
    (tmp_path / "@a:3").symlink_to("@a:last")
    one = A.replace("0 1", "7")
    for cell in ("@a:last", "@a:3"):
        assert chain(tmp_path, one, f"b,a dog,tiny_i2v,{cell},,9,")["b0"].source is not None
    assert chain(tmp_path, one, "b,a dog,tiny_i2v,./@a:last,,9,")["b0"].source is None


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_has_both_columns(tmp_path: Path, suffix: str) -> None:
    rows = pd.DataFrame(
        {
            "id": ["a", "b"],
            "prompt": ["a cat", "a dog"],
            "model": ["tiny_t2v", "tiny_i2v"],
            "image": [None, "@a:last"],
            "join": ["story", "story"],
        }
    )
    path = tmp_path / f"prompts.{suffix}"
    match suffix:
        case "parquet":
            rows.to_parquet(path)
        case "json" | "jsonl":
            rows.to_json(path, orient="records", lines=suffix == "jsonl")
        case _:
            rows.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    config = Config(manifest=str(path), model=model_options()["tiny_t2v"])
    found = read_rows(path, config).rows
    assert [row.join for row in found] == ["story", "story"]
    assert found[1].image_frame is not None
    assert (found[1].image_frame.row_id, found[1].image_frame.frame) == ("a", "last")
    lines = frame_content(rows, Reading()).decode().splitlines()
    assert json.loads(lines[1])["image"] == "@a:last", "no path of the working directory"


# -- films ------------------------------------------------------------------------------------


def films(clips: dict[str, Clip]) -> dict[str, list[str]]:
    found: dict[str, dict[int, str]] = {}
    for name, clip in clips.items():
        for film, place in clip.films:
            found.setdefault(film, {})[place] = name
    return {film: [of[place] for place in sorted(of)] for film, of in sorted(found.items())}


def test_a_film_has_its_rows_in_order_after_those_that_they_follow(tmp_path: Path) -> None:
    c = "c,an owl,tiny_i2v,@b:last,,9,"
    one = [A.replace("0 1", "7"), B.replace("0 1", "8")]
    assert films(chain(tmp_path, c + "long", *one)) == {"long": ["a7", "b8", "c0"]}
    assert films(chain(tmp_path, *(f"{row}story" for row in one))) == {"story": ["a7", "b8"]}
    assert films(chain(tmp_path, f"{A}story", f"{B}story")) == {
        "story_s0": ["a0", "b0"],
        "story_s1": ["a1", "b1"],
    }
    assert films(chain(tmp_path, one[0], f"{B}ends")) == {
        "ends_s0": ["a7", "b0"],
        "ends_s1": ["a7", "b1"],
    }


def test_a_film_is_no_part_of_a_clips_identity(tmp_path: Path) -> None:
    with_film, without = chain(tmp_path, f"{A}story"), chain(tmp_path, A)
    assert with_film["a0"].settings_sha256 == without["a0"].settings_sha256


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (
            [f"{A}story", "b,x,tiny_t2v,,0..2,9,story"],
            "2: join=story: this row has 2 seeds and another row of the film 3, and each film has "
            "one clip of a row; give all rows as many, or one.",
        ),
        (
            [f"{A}story", "b,x,tiny_t2v,,0 1,9,Story"],
            "3: join=Story: the film story has a file of that name; give one of them another name.",
        ),
        (
            [
                "a,a cat,tiny_t2v,,7,9,story",
                "b,x,tiny_t2v,,7 7,9,story",
                "c,x,tiny_t2v,,1 2,9,story",
            ],
            "3: join=story: two films would be named story_s7, because a row has that seed twice; "
            "give it each seed once.",
        ),
        (
            [f"{A}../up"],
            "2: join=../up: the name of a film is 1 to 64 of A-Z a-z 0-9 . _ - and begins with no "
            "full stop; use only these.",
        ),
        (
            [f"{A}.hidden"],
            "2: join=.hidden: the name of a film is 1 to 64 of A-Z a-z 0-9 . _ - and begins with "
            "no full stop; use only these.",
        ),
    ],
)
def test_films_that_cannot_be_joined_are_refused(
    tmp_path: Path, rows: list[str], fault: str
) -> None:
    assert faults(tmp_path, *rows) == [fault]


def test_clips_of_a_film_have_one_size_and_rate(tmp_path: Path) -> None:
    head = "id,prompt,join,width,fps"
    assert faults(tmp_path, "a,x,story,,", "b,x,story,128,", "c,x,story,,12", head=head) == [
        "3: join=story: the clips of a film have one size and one frame rate, and it has 96x160 "
        "at 24 fps and 96x128 at 24 fps; give all its rows the same."
    ]
