"""The setting `shard`: what may be typed, and which clips belong to a share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.command import Answer
from fakes.planned import BASE, clip_of
from fakes.samples import sampled
from fakes.tiny_clips import clips_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hv15_batch.clip import Clip, Rewrite
from hv15_batch.config.shard import MAX_SHARDS, Shard, parse_shard, shard_of_folder
from hv15_batch.errors import Refused


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    folder = tmp_path_factory.mktemp("clips")
    return clips_of(folder, "prompt,seed", *(f"prompt {n},0..4" for n in range(30)))


@pytest.mark.parametrize("first", sampled([0, 1], 1))
@given(count=st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_the_shares_are_the_whole_manifest_and_no_two_have_a_clip_in_common(
    clips: tuple[Clip, ...], first: int, count: int
) -> None:
    owners = {
        clip.settings_sha256: [
            number for number in range(first, count + first) if Shard(number, count).has(clip)
        ]
        for clip in clips
    }

    assert all(len(found) == 1 for found in owners.values())
    for name, (number,) in owners.items():
        assert number % count == int(hashlib.sha256(name.encode()).hexdigest(), 16) % count


def test_shares_are_of_similar_size(clips: tuple[Clip, ...]) -> None:
    sizes = [sum(Shard(n, 5).has(clip) for clip in clips) for n in range(5)]

    assert sum(sizes) == 150
    assert min(sizes) >= 15


@given(number=st.integers(0, MAX_SHARDS), count=st.integers(1, MAX_SHARDS))
def test_a_shard_is_known_by_its_text_and_by_its_folder(number: int, count: int) -> None:
    shard = Shard(min(number, count), count)

    assert parse_shard(str(shard)) == shard
    assert parse_shard(f" {shard.number:03}/{shard.count:03} ") == shard
    assert shard_of_folder(shard.folder_name) == shard


def test_the_last_share_counted_from_one_is_the_first_counted_from_zero() -> None:
    assert Shard(4, 4).other_name == Shard(0, 4)
    assert Shard(0, 4).other_name == Shard(4, 4)
    assert Shard(3, 4).other_name is None
    assert Shard(4, 4).remainder == Shard(0, 4).remainder


@pytest.mark.parametrize(
    "name", ["", "shards", "2of4", "5-of-4", "02-of-4", "1-of-0", "-1-of-4", "1-of-4x", "1-of-4\n"]
)
def test_other_folders_belong_to_no_shard(name: str) -> None:
    assert shard_of_folder(name) is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "shard=: must be k/n, share k of n, for example shard=2/4; leave it out for all"),
        ("2", "shard=2: must be k/n, share k of n, "),
        ("a/b", "shard=a/b: must be k/n, share k of n, "),
        ("-1/4", "shard=-1/4: must be k/n, share k of n, "),
        ("1/4/2", "shard=1/4/2: must be k/n, share k of n, "),
        ("1.0/4", "shard=1.0/4: must be k/n, share k of n, "),
        ("٢/4", "shard=٢/4: must be k/n, share k of n, "),
        ("5/4", "shard=5/4: there are 4 shares, and k must be 1 to 4, or 0 to 3; correct it."),
        ("0/0", "shard=0/0: n must be 1 to 1,000,000; correct it."),
        ("1/1000001", "shard=1/1000001: n must be 1 to 1,000,000; correct it."),
        ("1/4,2/4", "one command for each shard, all with one run_dir; leave it out for all"),
    ],
)
def test_any_other_text_is_refused_with_what_is_allowed(typed: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_shard(typed)

    assert message in str(refused.value)


def test_a_sweep_over_shards_is_refused(command: Callable[..., Answer]) -> None:
    answer = command("-m", "manifests/demo.csv", "model=tiny_t2v", "shard=1/4,2/4")

    assert answer.code == 2
    assert "one command for each shard, all with one run_dir" in answer.err


def test_a_shard_in_an_experiment_is_refused(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nshard: 1/2\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    words = ["--config-dir", "own", "manifests/demo.csv", "model=tiny_t2v", "experiment=mine"]

    answer = command(*words, "--dry-run")

    assert answer.code == 2
    assert answer.err.startswith("shard=1/2 in an experiment: each command has its own share; type")
    assert command(*words, "--dry-run", "shard=1/2").code == 0


def test_a_benchmark_of_a_share_is_refused(command: Callable[..., Answer]) -> None:
    answer = command("manifests/demo.csv", "model=tiny_t2v", "shard=1/2", "benchmark.repeat=2")

    assert answer.code == 2
    assert answer.err.startswith("shard=1/2 with benchmark.repeat=2: a benchmark measures on one")


def test_a_rewritten_clip_keeps_the_share_of_its_original_prompt() -> None:
    clip = clip_of(0, BASE)
    rewrite = Rewrite(BASE.prompt, "a model", "0" * 64)
    written = clip_of(0, replace(BASE, prompt="A cat, at length.")).with_rewrite(rewrite)
    pending = clip.with_rewrite(replace(rewrite, is_pending=True))

    assert len({clip.settings_sha256, written.settings_sha256, pending.settings_sha256}) == 3
    for count in range(1, 40):
        shares = [Shard(n, count) for n in range(1, count + 1)]
        assert {n for n, s in enumerate(shares) for c in (written, pending) if s.has(c)} == {
            n for n, s in enumerate(shares) if s.has(clip)
        }
