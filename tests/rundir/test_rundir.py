"""Paths, publishing, run ids and folder names of a run directory."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from hv15_batch.errors import Refused
from hv15_batch.rundir import names
from hv15_batch.rundir.names import default_run_dir, new_run_id, sweep_folder_name
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_json, publish_text, publishing, sha256_of_file


def test_a_published_file_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    publish_text(path, "old")

    with publishing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")

    assert path.read_text(encoding="utf-8") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.csv"]


def test_a_file_whose_writing_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    publish_text(path, "old")

    def write_half() -> None:
        with publishing(path) as temporary:
            temporary.write_text("ne", encoding="utf-8")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()

    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.csv"]


def test_json_is_published_with_its_characters(tmp_path: Path) -> None:
    publish_json(tmp_path / "a.json", {"prompt": "雨后"})

    assert '"雨后"' in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    # Source: FIPS 180-2, appendix B.1.
    assert sha256_of_file(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_run_id_sorts_after_all_others_also_when_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = ["2026-11-22T10:00:00", "2026-11-22T10:00:00", "2026-11-22T09:00:00", "2020-01-01"]
    existing: list[str] = []
    for time in [*times, "2026-11-22T10:00:01"]:
        now = datetime.fromisoformat(time).replace(tzinfo=timezone.utc)
        monkeypatch.setattr(names, "utc_now", lambda now=now: now)
        existing.append(new_run_id(reversed(existing)))

    assert existing == sorted(existing)
    assert [name.rpartition("-")[0] for name in existing] == [
        "20261122T100000-0000",
        "20261122T100000-0001",
        "20261122T100000-0002",
        "20261122T100000-0003",
        "20261122T100001-0000",
    ]


def test_a_run_id_sorts_after_log_segments_whose_run_folder_was_deleted(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.create()
    segment = "29990101T000000-0007-abcd-0000.parquet"
    (run_dir.log / segment).touch()

    assert run_dir.new_run_id().startswith("29990101T000000-0008-")


def test_a_run_that_was_never_started_is_not_listed(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.create()
    for name in ("b", "a", "c"):
        run_dir.run_folder(name).mkdir()
    for name in ("c", "a"):
        (run_dir.run_folder(name) / "config.yaml").touch()

    assert run_dir.run_ids() == ["a", "c"]


def test_saved_latents_are_listed_without_half_written_ones(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.create()
    run_dir.latents_file("aa").touch()
    (run_dir.latents / ".12.bb.safetensors").touch()

    assert run_dir.saved_latents() == {"aa"}


def test_a_held_lock_is_refused_within_the_process_too_and_released_after(
    tmp_path: Path,
) -> None:
    run_dir = RunDir(tmp_path)

    with run_dir.locked("first"):
        with pytest.raises(Refused, match=r"in use by process .* \(run first, since"):
            with run_dir.locked("second"):
                pass
        assert (tmp_path / ".lock.json").exists()

    with run_dir.locked("third"):
        pass
    assert not (tmp_path / ".lock.json").exists()


def test_a_lock_without_a_word_of_its_holder_is_refused_too(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)

    with run_dir.locked("first"):
        (tmp_path / ".lock.json").write_text("{", encoding="utf-8")
        with pytest.raises(Refused, match="in use by another process; wait for it"):
            with run_dir.locked("second"):
                pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()

    with pytest.raises(Refused) as caught:
        RunDir(tmp_path / "out").check_usable()

    assert str(caught.value) == (
        f"run_dir={tmp_path}/out: a file has that name; name a folder with run_dir=DIR."
    )


@pytest.mark.parametrize("left", [[], ["plan.csv"], [".lock"]])
def test_an_empty_folder_or_one_of_a_dry_run_is_usable(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).touch()

    RunDir(tmp_path).check_usable()


def test_what_killed_writes_left_is_swept_and_a_users_hidden_files_beside_it_stay(
    tmp_path: Path,
) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    (run_dir.runs / "one").mkdir()
    (run_dir.path / "assets").mkdir()
    left = ("log/.1.a.parquet", "runs/one/.7.config.yaml", "assets/.9.data.js", ".9.index.html")
    kept = ("assets/.mine", ".mine", "assets/data.js", "clips/a.mp4")
    for name in (*left, *kept):
        (run_dir.path / name).touch()

    assert run_dir.sweep_temporary() == len(left)

    files = {p.relative_to(run_dir.path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == set(kept)


@pytest.mark.parametrize(
    ("manifest", "sweep", "expected"),
    [
        ("prompts.csv", None, "outputs/prompts"),
        ("/data/my prompts.v2.jsonl", None, "outputs/my prompts.v2"),
        (".hidden.csv", None, "outputs/hidden"),
        ("prompts.csv", "480p_t2v-30", "outputs/prompts.sweep/480p_t2v-30"),
    ],
)
def test_the_default_folder_is_named_after_the_manifest(
    manifest: str, sweep: str | None, expected: str
) -> None:
    assert default_run_dir(Path(manifest), sweep) == Path(expected)


def test_swept_values_make_a_folder_name_that_every_disk_takes() -> None:
    assert sweep_folder_name(["480p_t2v", "30"]) == "480p_t2v-30"
    assert re.fullmatch(r"a_b_c-[0-9a-f]{8}", sweep_folder_name(["a/b c", "..", "é"]))
    assert re.fullmatch(r"[0-9a-f]{8}", sweep_folder_name(["///"]))


def test_values_that_differ_only_in_replaced_characters_get_different_folders() -> None:
    names = {sweep_folder_name([value]) for value in ("a b", "a_b", "a/b", "猫", "犬")}

    assert len(names) == 5


def test_an_empty_swept_value_has_a_folder_of_its_own() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", sweep_folder_name([""]))
    assert len({sweep_folder_name(values) for values in (["", "5"], ["5", ""], ["5"])}) == 3


def test_long_swept_values_make_different_folder_names() -> None:
    first, second = (sweep_folder_name(["x" * 200 + end]) for end in "ab")

    assert first != second
    assert len(first) == len(second) == 120
