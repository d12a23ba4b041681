"""From rows to clips: precedence, recipes, duplicates and identity."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from fakes.tiny_clips import clips_of, config_of

from hv15_batch.config.settings import (
    CacheKind,
    Config,
    OffloadConfig,
    Order,
    RuntimeConfig,
    SamplingConfig,
    VideoConfig,
)
from hv15_batch.errors import Refused
from hv15_batch.manifest import rows as manifest_rows
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.clips import read_rows, repeats_note, step_cache_of
from hv15_batch.manifest.read import read_manifest
from hv15_batch.manifest.typed import check_typed
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Distillation, Dtype, Linear, OffloadKind, Recipe

# -- precedence -------------------------------------------------------------------------------


def test_override_beats_cell_beats_typed_sampling_beats_the_model_option(
    tmp_path: Path,
) -> None:
    rows = ["id,prompt,num_inference_steps,flow_shift", "cat,a cat,3,", "dog,a dog,,"]
    sampling = SamplingConfig(seeds=0, num_inference_steps=4, flow_shift=6.0)

    def values(**changes: Any) -> list[tuple[int, float]]:
        clips = clips_of(tmp_path, *rows, **changes)
        return [(c.settings.num_inference_steps, c.settings.flow_shift) for c in clips]

    assert values() == [(3, 5.0), (2, 5.0)]
    assert values(sampling=sampling) == [(3, 6.0), (4, 6.0)]
    override = SamplingConfig(num_inference_steps=8)
    assert values(sampling=sampling, override=override) == [(8, 6.0), (8, 6.0)]


def test_seeds_follow_the_same_precedence(tmp_path: Path) -> None:
    rows = ["id,prompt,seed", "cat,a cat,7 8", "dog,a dog,"]

    def seeds(**changes: Any) -> list[tuple[str, int]]:
        return [(c.row_id, c.settings.seed) for c in clips_of(tmp_path, *rows, **changes)]

    assert seeds() == [("cat", 7), ("cat", 8), ("dog", 0)]
    assert seeds(sampling=SamplingConfig(seeds="1,2"))[2:] == [("dog", 1), ("dog", 2)]
    assert seeds(override=SamplingConfig(seeds=[5])) == [("cat", 5), ("dog", 5)]
    assert seeds(sampling=SamplingConfig())[2:] == [("dog", 0)]


def test_a_negative_prompt_counts_only_with_guidance(tmp_path: Path) -> None:
    rows = ["id,prompt,negative_prompt,guidance_scale", "a,x,blurry,1", "b,x,blurry,6", "c,x,,6"]

    clips = clips_of(tmp_path, *rows, sampling=SamplingConfig(seeds=0, negative_prompt="dark"))

    assert [c.settings.negative_prompt for c in clips] == [None, "blurry", "dark"]


@pytest.mark.parametrize(
    ("section", "seeds"), [("sampling", "5..1"), ("override", -1), ("sampling", "a")]
)
def test_seeds_that_are_none_are_refused_with_their_key(
    tmp_path: Path, section: str, seeds: Any
) -> None:
    with pytest.raises(Refused, match=rf"^{section}\.seeds={seeds}: "):
        clips_of(tmp_path, "prompt", "a cat", **{section: SamplingConfig(seeds=seeds)})


def test_typed_values_that_some_rows_beat_are_counted_and_those_that_all_beat_refused(
    tmp_path: Path,
) -> None:
    clips_of(tmp_path, "id,prompt,fps,seed", "cat,a cat,12,1", "dog,a dog,,2")
    manifest = read_manifest(tmp_path / "prompts.csv", config_of(tmp_path).model.task)
    config = config_of(tmp_path, sampling=SamplingConfig(seeds=3, fps=25.0))

    names = [f.name for f in fields(SamplingConfig) if f.name != "seeds"]
    assert check_typed(manifest, config, names) == {"fps": 1}
    with pytest.raises(Refused) as caught:
        check_typed(manifest, config, ["seeds"])
    assert str(caught.value).endswith("to replace them all use override.seeds=3.")
    replaced = replace(config, override=SamplingConfig(seeds=4, fps=30.0))
    assert check_typed(manifest, replaced, ["fps", "seeds"]) == {}


# -- recipes and duplicates -------------------------------------------------------------------


def test_a_distilled_model_off_its_recipe_is_refused_per_row_or_marked_when_allowed(
    tmp_path: Path,
) -> None:
    model = replace(
        config_of(tmp_path).model, distillation=Distillation.cfg, recipe=Recipe([50], guidance=1.0)
    )
    rows = ["id,prompt,num_inference_steps,guidance_scale", "a,x,50,1", "b,y,30,1", "c,z,50,6"]

    with pytest.raises(ManifestError) as caught:
        clips_of(tmp_path, *rows, model=model)
    assert [fault.split(":", 1)[1].split(";")[0] for fault in caught.value.faults] == [
        "3: num_inference_steps=30: tiny_t2v is CFG-distilled for exactly 50 steps",
        "4: guidance_scale=6.0: tiny_t2v is distilled for guidance_scale 1",
    ]

    clips = clips_of(tmp_path, *rows, model=model, runtime=RuntimeConfig(allow_off_recipe=True))
    assert [clip.off_recipe for clip in clips] == [False, True, True]


def test_clips_that_are_equal_only_after_precedence_are_rendered_once_with_both_ids(
    tmp_path: Path,
) -> None:
    rows = ["id,prompt,num_inference_steps", "a,x,3", "b,x,4"]
    assert len(clips_of(tmp_path, *rows)) == 2

    (clip,) = clips_of(tmp_path, *rows, override=SamplingConfig(num_inference_steps=5))

    assert clip.clip_id == f"a_s0_{clip.settings_sha256[:8]}"
    assert (clip.ids, clip.other_lines) == (("a", "b"), (3,))


def test_the_first_own_id_names_a_clip_and_labels_of_later_rows_fill_its_gaps(
    tmp_path: Path,
) -> None:
    (clip,) = clips_of(
        tmp_path, "prompt,id,tag_a,tag_b", "x,,1,", "x,second,2,3", "x,third,,", "x,second,,"
    )

    derived = clip.other_ids[-1]
    assert clip.clip_id == f"second_s0_{clip.settings_sha256[:8]}"
    assert clip.ids == ("second", "third", derived)
    assert derived.startswith("x-")
    assert (clip.row_index, clip.line, clip.other_lines) == (0, 2, (3, 4, 5))
    assert clip.tags == {"tag_a": "1", "tag_b": "3"}


def test_seeds_that_come_twice_make_one_clip_and_are_told(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, "prompt,seed", '"a, b",7 8 7', "c,0..2 1", '"a, b",8')
    manifest = read_manifest(tmp_path / "prompts.csv", config_of(tmp_path).model.task)

    assert [clip.settings.seed for clip in clips] == [7, 8, 0, 1, 2]
    assert repeats_note(manifest, clips) == (
        "Repeated in the manifest, rendered once: 3 clips, 3 times more: seed 7 twice in line 2, "
        "line 4 as line 2, seed 1 twice in line 3"
    )
    assert repeats_note(manifest, clips[2:3]) is None


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["cat,x,3", "cat,x,4"], "id=cat: an id is unique, and line 2 has it already"),
        (["cat,x,3", "Cat,x,4"], "id=Cat: an id is unique, and line 2 has cat, which a disk may"),
        (["cat,x,3", "cat,y,3"], "id=cat: an id is unique, and line 2 has it already"),
    ],
)
def test_one_id_of_rows_that_make_different_clips_is_refused(
    tmp_path: Path, rows: list[str], fault: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        clips_of(tmp_path, "id,prompt,num_inference_steps", *rows)

    assert [message.split(":3: ")[1].startswith(fault) for message in caught.value.faults] == [True]


def test_one_id_of_rows_that_make_the_same_clips_is_no_fault(tmp_path: Path) -> None:
    clips = clips_of(tmp_path, "id,prompt,seed", "cat,x,0..2", "cat,x,1", "cat,x,0 1 2")

    assert [clip.clip_id.split("_")[:2] for clip in clips] == [["cat", f"s{n}"] for n in range(3)]
    assert [clip.other_ids for clip in clips] == [()] * 3


def test_faults_of_rows_and_of_the_clips_that_good_rows_make_are_told_together(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,num_frames,id,seed\ncat,,a,1\ncat,,a,2\ndog,8,,\ncat,,a,\ndog,8,,\n")

    with pytest.raises(ManifestError) as caught:
        read_rows(path, config_of(tmp_path))

    same = "id=a: an id is unique, and line 2 has it already; change one of the two"
    odd = "num_frames=8: must be 4n+1; nearest are 5 and 9"
    assert caught.value.faults == (
        f"{path}:3: {same}.",
        f"{path}:4: {odd}.",
        f"{path}:5: {same}.",
        f"{path}:6: {odd}.",
    )


def test_rows_beyond_the_most_clips_are_not_taken_for_clips_of_the_default_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_rows, "MAX_CLIPS", 2)
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,seed\ncat,1\ncat,2\ncat,3\ncat,4\ncat,5\n")

    with pytest.raises(ManifestError) as caught:
        read_rows(path, config_of(tmp_path))

    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}:4: seed=3: a manifest makes at most 2 clips")


# -- identity ---------------------------------------------------------------------------------

_SAME = [
    {"offload": OffloadConfig(OffloadKind.model)},
    {"runtime": RuntimeConfig(mask_free=False)},
    {"runtime": RuntimeConfig(linear=Linear.bf16)},
    {"order": Order.rows, "limit": 1, "keep_latents": False},
]
_OTHER_FILE = [
    {"override": SamplingConfig(fps=12.0)},
    {"video": VideoConfig(crf=30)},
    {"video": VideoConfig(embed_metadata=False)},
]
_OTHER_LATENTS = [
    {"override": SamplingConfig(seeds=1)},
    {"override": SamplingConfig(num_frames=5)},
    {"override": SamplingConfig(guidance_scale=5.0)},
    {"override": SamplingConfig(negative_prompt="dark")},
    {"runtime": RuntimeConfig(dtype=Dtype.bfloat16)},
    {"runtime": RuntimeConfig(attention_backend="native")},
    {"runtime": RuntimeConfig(linear=Linear.fp8)},
    {"runtime": RuntimeConfig(linear=Linear.int8)},
]


@pytest.mark.parametrize("changes", _SAME, ids=str)
def test_how_and_where_a_clip_is_rendered_is_no_part_of_its_identity(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (clip,) = clips_of(tmp_path, "id,prompt", "cat,a cat")
    (other,) = clips_of(tmp_path, "id,prompt", "cat,a cat", **changes)

    assert clip == other


@pytest.mark.parametrize("changes", _OTHER_FILE, ids=str)
def test_what_only_the_file_depends_on_keeps_the_latents(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (clip,) = clips_of(tmp_path, "id,prompt", "cat,a cat")
    (other,) = clips_of(tmp_path, "id,prompt", "cat,a cat", **changes)

    assert clip.settings_sha256 != other.settings_sha256
    assert clip.denoise_sha256 == other.denoise_sha256


@pytest.mark.parametrize("changes", _OTHER_LATENTS, ids=str)
def test_what_the_latents_depend_on_makes_another_clip(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (clip,) = clips_of(tmp_path, "id,prompt", "cat,a cat")
    (other,) = clips_of(tmp_path, "id,prompt", "cat,a cat", **changes)

    assert clip.settings_sha256 != other.settings_sha256
    assert clip.denoise_sha256 != other.denoise_sha256


def test_id_and_place_are_in_the_name_only(tmp_path: Path) -> None:
    (clip,) = clips_of(tmp_path, "id,prompt,seed,tag_a", "cat,a cat,7,x")
    _, other = clips_of(tmp_path, "prompt,id,seed", "a dog,dog,7", "a cat,tom,7")

    assert clip.settings == other.settings
    assert clip.clip_id == f"cat_s7_{clip.settings_sha256[:8]}"
    assert other.clip_id == f"tom_s7_{clip.settings_sha256[:8]}"


def test_hashes_are_over_canonical_json_of_what_was_asked(tmp_path: Path) -> None:
    """Another text here would make every finished clip of every user a new one."""
    (clip,) = clips_of(tmp_path, "id,prompt", 'cat,"a ""cat"", 雨"')
    text = (
        '{"attention_backend":"auto","cache":null,"dtype":"float32","flow_shift":5.0,FPS'
        '"guidance_scale":6.0,"height":32,"image_sha256":null,"model":"tiny_t2v",'
        '"negative_prompt":"","num_frames":1,"num_inference_steps":2,'
        '"prompt":"a \\"cat\\", 雨","quantisation":null,"revision":"1","schema":1,"seed":0,'
        'VIDEO"weights":"tiny","width":32}'
    )
    video = '"video":{"codec":"h264","crf":17,"embed_metadata":true,"preset":"medium"},'
    settings = text.replace("FPS", '"fps":24.0,').replace("VIDEO", video)
    denoise = text.replace("FPS", "").replace("VIDEO", "")

    assert clip.settings_sha256 == hashlib.sha256(settings.encode()).hexdigest()
    assert clip.denoise_sha256 == hashlib.sha256(denoise.encode()).hexdigest()


# -- the static step cache --------------------------------------------------------------------


def cached_config(**sampling: Any) -> Config:
    config = Config(model=model_options()["480p_t2v"])
    return replace(config, sampling=SamplingConfig(cache=CacheKind.static, **sampling))


def test_a_cache_is_resolved_for_the_steps_of_each_clip() -> None:
    assert str(step_cache_of(cached_config(), 50)) == "4:11:45"
    assert str(step_cache_of(cached_config(cache_every=2), 20)) == "2:4:18"
    assert step_cache_of(Config(model=model_options()["480p_t2v"]), 50) is None


def test_an_override_switches_the_cache_off() -> None:
    config = replace(cached_config(), override=SamplingConfig(cache=CacheKind.none))

    assert step_cache_of(config, 50) is None


def test_a_cache_for_a_step_distilled_model_is_refused() -> None:
    config = replace(cached_config(), model=model_options()["480p_i2v_step_distilled"])

    with pytest.raises(Refused, match="each of them must be computed"):
        step_cache_of(config, 12)


def test_bounds_of_a_cache_that_is_not_there_are_refused() -> None:
    config = replace(Config(), sampling=SamplingConfig(cache_start=3))

    with pytest.raises(Refused, match=r"cache_start=3: has no effect without"):
        step_cache_of(config, 50)
