"""Shards: several commands, one run directory, every clip once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.engine import InProcessExecutor
from fakes.runs import Project, read_csv

from hv15_batch.api import plan, read_log
from hv15_batch.config.shard import parse_shard
from hv15_batch.errors import Refused
from hv15_batch.references.command import main as references
from hv15_batch.report import live
from hv15_batch.report.command import main as report
from hv15_batch.rundir import _lock
from hv15_batch.rundir.log import segments
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing

TESTS = Path(__file__).parents[1]
ROWS = 12


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", *(f"r{n:02},a clip of {n}" for n in range(ROWS)))
    return project


def of_shard(project: Project, shard: str) -> RunDir:
    return RunDir(project.run_dir.path, parse_shard(shard))


def refusal(project: Project, **changes: Any) -> str:
    with pytest.raises(Refused) as refused:
        project.run(**changes)
    return str(refused.value)


def rendered(project: Project) -> list[str]:
    """Return the ids of finished rows, once for each time that they were rendered."""
    return sorted(r["row_id"] for r in project.records() if r["status"] == "ok")


def share(project: Project, shard: str) -> list[str]:
    return sorted(r["row_id"] for r in project.records() if r["shard"] == shard)


EVERY_ROW = [f"r{n:02}" for n in range(ROWS)]


@contextmanager
def held(project: Project, shard: str | None) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a shard, or of the directory."""
    code = """
import sys, time
from pathlib import Path
from hv15_batch.config.shard import parse_shard
from hv15_batch.rundir.paths import RunDir
run_dir = RunDir(Path(sys.argv[1]), parse_shard(sys.argv[2] or None))
run_dir.create()
with run_dir.locked("20261122T000000-0000-abcd"):
    print("held", flush=True)
    time.sleep(60)
"""
    words = [sys.executable, "-c", code, str(project.run_dir.path), shard or ""]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# -- every clip once --------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [["1/3", "2/3", "3/3"], ["0/2", "1/2"]])
def test_the_shards_render_every_clip_once_and_a_run_of_all_has_nothing_to_do(
    project: Project, shards: list[str]
) -> None:
    for shard in shards:
        assert project.run(shard=shard) == 0

    assert rendered(project) == EVERY_ROW
    assert sorted(row for shard in shards for row in share(project, shard)) == EVERY_ROW
    assert all(share(project, shard) for shard in shards)
    assert project.run() == 0
    assert project.said[0] == f"{project.run_dir.path}: {ROWS} of {ROWS} done"
    assert project.said[1] == (
        f"Nothing to do: every clip of {project.manifest} is done. force=true renders again."
    )
    assert project.run(shard=shards[0]) == 0
    assert project.said[1].startswith(f"Nothing to do: every clip of shard {shards[0]} of /")
    assert len(project.records()) == ROWS
    assert not project.strays()


@pytest.mark.exhaustive
def test_two_shards_give_the_clips_of_one_run_bit_by_bit(tmp_path: Path) -> None:
    """The tiny model itself, so that files, latents and embeddings are real."""

    def results(folder: str, *shards: str | None) -> dict[str, tuple[str, str, str]]:
        (tmp_path / folder).mkdir()
        project = Project(tmp_path / folder)
        project.write("id,prompt,seed", "cat,a cat,0..1", "dog,a dog,0..1")
        for shard in shards:
            assert project.run(InProcessExecutor, shard=shard) == 0
        rows = project.records()
        assert len(rows) == 4
        assert {row["shard"] for row in rows} == set(shards)
        assert all((project.run_dir.path / row["file"]).is_file() for row in rows)
        return {r["clip_id"]: (r["latents_sha256"], r["file_sha256"], r["file"]) for r in rows}

    assert results("shards", "1/2", "2/2") == results("whole", None)


def test_what_another_shard_or_an_earlier_run_of_all_finished_is_done(project: Project) -> None:
    assert project.run(limit=5) == 0
    before = rendered(project)
    assert project.run(shard="1/2") == 0
    assert project.run(shard="2/2") == 0

    assert rendered(project) == EVERY_ROW
    assert {r["shard"] for r in project.records() if r["row_id"] in before} == {None}


def test_a_changed_count_leaves_what_is_done(project: Project) -> None:
    for shard in ("1/2", "0/3", "1/3", "2/3"):
        assert project.run(shard=shard) == 0

    assert rendered(project) == EVERY_ROW
    assert json.loads((project.run_dir.path / "run.json").read_text()) == {"shards": 3}


def test_a_clip_that_failed_in_another_division_is_tried_again_with_the_next_number(
    project: Project,
) -> None:
    project.write("id,prompt", "a,fail once", "b,once fail")
    assert project.run(shard="1/1") == 3
    for shard in ("1/2", "2/2"):
        assert project.run(shard=shard) == 0

    tried = sorted((r["row_id"], r["attempt"], r["status"]) for r in project.records())
    assert tried == [("a", 1, "failed"), ("a", 2, "ok"), ("b", 1, "failed"), ("b", 2, "ok")]


def test_two_processes_at_once_render_every_clip_once(project: Project) -> None:
    project.write("id,prompt", *(f"r{n:02},sleep 0.05 {n}" for n in range(ROWS)))
    words = [sys.executable, "-m", "fakes.run_parent", str(project.folder)]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([*words, f"{n}/2"], cwd=TESTS, stdout=pipe, stderr=pipe) for n in (1, 2)
    ]
    ends = [process.communicate(timeout=120) for process in running]

    assert [process.returncode for process in running] == [0, 0], ends
    assert rendered(project) == EVERY_ROW
    denoised = Counter(line for line in project.did() if line.startswith("denoise"))
    assert sorted(denoised.values()) == [1] * ROWS
    # Whichever ended last wrote them.
    assert {row["state"] for row in project.plan()} == {"done"}
    clips = read_csv(project.run_dir.clips_table)
    assert [(row["row_id"], row["status"]) for row in clips] == [(r, "ok") for r in EVERY_ROW]
    assert f"{ROWS} of {ROWS}" in project.run_dir.page.read_text(encoding="utf-8")
    assert not project.strays()


# -- folders ----------------------------------------------------------------------------------


def test_a_shard_has_its_own_log_status_and_runs_and_shares_all_else(project: Project) -> None:
    assert project.run(shard="1/2") == 0

    top = {p.name for p in project.run_dir.path.iterdir()}
    assert top == {
        "clips", "latents", "thumbs", "embeddings", "assets", "shards", "run.json",
        "index.html", "plan.csv", "clips.csv", ".lock",
    }  # fmt: skip
    own = of_shard(project, "1/2").own
    assert own == project.run_dir.path / "shards" / "1-of-2"
    assert {p.name for p in own.iterdir()} == {"log", "runs", "status.json", ".lock"}
    (folder,) = (own / "runs").iterdir()
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "system.json", "manifest.csv", "run.log",
    }  # fmt: skip
    assert "done: " in (folder / "run.log").read_text(encoding="utf-8")
    assert {path.parent for path in segments(project.run_dir.log)} == {own / "log"}
    done = [row for row in project.plan() if row["state"] == "done"]
    assert len(project.plan()) == ROWS
    assert sorted(row["row_id"] for row in done) == share(project, "1/2")


@pytest.mark.parametrize("words", ["resume", "run_dir"])
def test_the_folder_of_a_shard_is_no_run_directory(
    project: Project, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from hv15_batch import cli

    project.run(shard="1/2")
    own = of_shard(project, "1/2").own
    manifest = [] if words == "resume" else [str(project.manifest), "model=tiny_t2v"]

    assert cli.main([*manifest, f"{words}={own}", "--dry-run"]) == 2
    assert cli.main(["report", str(own)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err == [f"{own}: is the folder of a shard; name {project.run_dir.path}."] * 2


def test_a_folder_of_that_name_that_is_no_shard_is_a_run_directory(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat")

    assert project.run(run_dir=str(tmp_path / "shards" / "1-of-2")) == 0


@pytest.mark.parametrize("name", ["shards", "shards/1-of-2", "shards/1-of-2/.lock"])
def test_a_shard_writes_through_no_link(project: Project, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "1-of-2" / "runs").mkdir(parents=True)
    project.run(limit=1)
    link = project.run_dir.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere if name != "shards/1-of-2/.lock" else elsewhere / "lock")
    (elsewhere / "1-of-2" / ".0123456789abcdef.a.json").write_text("{}")

    message = refusal(project, shard="1/2")

    assert "link" in message
    assert "remove the link" in message
    assert project.run() == 0
    assert (elsewhere / "1-of-2" / ".0123456789abcdef.a.json").exists()
    assert not (elsewhere / "lock").exists()


# -- locks ------------------------------------------------------------------------------------


def test_another_count_is_refused_while_a_shard_renders_and_allowed_afterwards(
    project: Project,
) -> None:
    with held(project, "1/4") as other:
        message = refusal(project, shard="1/2")
        assert project.run(shard="2/4") == 0

    assert message.startswith(
        f"run_dir={project.run_dir.path}: shard 1/4 is in use by process {other.pid} on "
    )
    assert message.endswith(
        ", and 1/2 would divide the clips in another way; wait until all shards have ended, or "
        "render one of them with shard=k/4."
    )
    assert project.run(shard="1/2") == 0


def test_another_count_is_refused_also_where_run_json_is_lost(project: Project) -> None:
    with held(project, "1/4"):
        (project.run_dir.path / "run.json").write_text("{broken")
        assert "would divide the clips in another way" in refusal(project, shard="1/2")
        assert project.run(shard="2/4") == 0


def test_a_shard_in_use_is_refused_and_so_is_its_other_name(project: Project) -> None:
    with held(project, "4/4"):
        same = refusal(project, shard="4/4")
        other = refusal(project, shard="0/4")

    assert same.startswith(f"run_dir={project.run_dir.path}: shard 4/4 is in use by process ")
    assert "and has the same clips as 0/4; count all shards from 1, or all from 0." in other


def test_a_run_of_all_clips_is_refused_while_a_shard_renders(project: Project) -> None:
    with held(project, "1/2") as other:
        message = refusal(project)

    assert message.startswith(
        f"run_dir={project.run_dir.path}: shard 1/2 is in use by process {other.pid} on "
    )
    assert message.endswith(
        "; wait until all shards have ended, or render one of them with shard=k/2."
    )
    assert project.run() == 0
    assert rendered(project) == EVERY_ROW


def test_a_shard_is_refused_at_once_while_a_run_of_all_clips_renders(project: Project) -> None:
    with held(project, None) as other:
        message = refusal(project, shard="1/2")

    assert message.startswith(f"run_dir={project.run_dir.path}: in use by process {other.pid} on ")
    # The note of a killed run misleads nobody.
    assert project.run_dir.lock_holder.exists()
    assert project.run(shard="1/2") == 0
    assert not project.run_dir.lock_holder.exists()


def test_a_shard_waits_for_others_that_start(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run_dir.create_folder()
    monkeypatch.setattr(_lock, "MOMENT_SECONDS", 0.1)
    monkeypatch.setattr(_lock, "_TRY_SECONDS", 0.05)
    with _lock.moment(project.run_dir.path):
        message = refusal(project, shard="1/2")

    assert message.startswith(f"run_dir={project.run_dir.path}: in use by another process; ")
    assert project.run(shard="1/2") == 0


# -- temporary files --------------------------------------------------------------------------


def test_a_shard_sweeps_what_is_common_only_while_no_other_one_renders(project: Project) -> None:
    assert project.run(shard="1/2") == 0
    assert project.run(shard="2/2") == 0
    one, two = of_shard(project, "1/2"), of_shard(project, "2/2")
    common = project.run_dir.clips / ".0123456789abcdef.a.mp4"
    of_one, of_two = (d.own / "log" / ".0123456789abcdef.a.parquet" for d in (one, two))

    def plant() -> None:
        for path in (common, of_one, of_two):
            path.write_bytes(b"")

    plant()
    with held(project, "2/2"):
        project.run(shard="1/2")
        assert [p.exists() for p in (common, of_one, of_two)] == [True, False, True]
    project.run(shard="1/2")
    assert [p.exists() for p in (common, of_one, of_two)] == [False, False, True]
    plant()
    project.run()
    assert [p.exists() for p in (common, of_one, of_two)] == [False, False, False]


# -- stop and resume --------------------------------------------------------------------------


def end(project: Project, shard: str, number: signal.Signals) -> tuple[int, str]:
    """Start a shard, send it a signal after its next clip; return its code and what it printed."""
    before = len(share(project, shard))
    words = [sys.executable, "-m", "fakes.run_parent", str(project.folder), shard]
    with subprocess.Popen(words, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        while len(share(project, shard)) == before:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while _lock._is_locked(of_shard(project, shard).own / ".lock"):  # its worker ends too
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process.returncode, out


@pytest.mark.exhaustive
def test_a_killed_shard_is_resumed_and_the_others_stay(project: Project) -> None:
    assert project.run(shard="2/2") == 0
    others = share(project, "2/2")
    project.write("id,prompt", *(f"r{n:02},sleep 0.2 {n}" for n in range(ROWS)))

    assert end(project, "1/2", signal.SIGKILL)[0] == -signal.SIGKILL
    code, out = end(project, "1/2", signal.SIGTERM)

    assert code == 143
    assert f"resume with: hv15-batch resume={project.run_dir.path} shard=1/2\n" in out
    assert "type again" not in out
    assert project.run(shard="1/2") == 0
    assert project.run(shard="2/2") == 0
    rows = [r["row_id"] for r in project.records() if r["status"] == "ok"]
    assert Counter(rows) == Counter([*EVERY_ROW, *others])  # the rows that were edited, again
    assert not project.strays()


def test_resume_takes_the_settings_of_the_last_run_of_any_shard(
    project: Project, command: Any
) -> None:
    words = [project.manifest, "model=tiny_t2v", f"run_dir={project.run_dir.path}", "limit=1"]
    assert command(*words, "shard=1/2", "--dry-run").code == 0
    project.run(shard="1/2", order=project.config().order, limit=1)

    answer = command(f"resume={project.run_dir.path}", "shard=2/2", "--dry-run")
    whole = command(f"resume={project.run_dir.path}", "--dry-run")

    assert answer.code == whole.code == 0
    assert answer.out.startswith(f"Shard 2/2: {ROWS - size(project)} of {ROWS} clips; the lines ")
    assert whole.out.startswith(f"{project.manifest}: {ROWS} rows, {ROWS} clips: 1 done, 11 new")


def size(project: Project) -> int:
    """Return how many clips shard 1/2 has."""
    (answer,) = [line for line in project.said if " clips)" in line]
    return int(answer.partition("shard 1/2: ")[2].split()[0])


def test_a_run_that_ends_early_in_a_shard_says_what_is_left_of_it(project: Project) -> None:
    assert project.run(shard="1/2", limit=1) == 0

    assert project.said[0].startswith(f"{project.run_dir.path}: new (shard 1/2: ")
    left = size(project) - 1
    assert (
        f"{left} clips left out by limit= or only=; to render them: hv15-batch "
        f"resume={project.run_dir.path} shard=1/2"
    ) in project.said
    assert project.run(shard="1/2") == 0
    assert project.said[0] == (
        f"{project.run_dir.path}: 1 of {left + 1} done (shard 1/2: {left + 1} of 12 clips)"
    )


def test_only_and_limit_hold_within_the_share(project: Project) -> None:
    todo = [p.clip.row_id for p in plan(project.config(shard="1/2")).todo]
    others = [row for row in EVERY_ROW if row not in todo]

    def planned(**changes: Any) -> list[str]:
        return [p.clip.row_id for p in plan(project.config(shard="1/2", **changes)).todo]

    assert planned(limit=2) == todo[:2]
    assert planned(only=f"{others[0]},{todo[1]}") == [todo[1]]
    assert planned(only=others[0]) == []
    with pytest.raises(Refused, match="no row has that id"):
        planned(only="nobody")
    assert project.run(shard="1/2", only=others[0]) == 0
    assert (
        f"Nothing to do: every clip of shard 1/2 of the rows of only={others[0]}"
        in (project.said[1])
    )


def test_the_dry_run_predicts_the_share_and_its_plan_has_every_clip(project: Project) -> None:
    found = plan(project.config(shard="2/4"))

    assert found.lines[0] == (
        f"Shard 2/4: {len(found.todo)} of {ROWS} clips; the lines below are about them"
    )
    assert found.lines[1].endswith(f", {len(found.todo)} clips: {len(found.todo)} new")
    assert 0 < len(found.todo) < ROWS
    assert len(found.clips) == ROWS


# -- readers of the whole ---------------------------------------------------------------------


def test_readers_of_the_directory_read_all_shards(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", *(f"r{n:02},{'suspect' if n == 3 else 'a'} {n}" for n in range(8)))
    for shard in ("1/2", "2/2"):
        assert project.run(shard=shard) == 0

    frame = read_log(project.run_dir.path)
    assert frame["row_id"].tolist() == [f"r{n:02}" for n in range(8)]
    assert set(frame["shard"]) == {"1/2", "2/2"}
    assert "shard" in frame.columns
    assert frame.columns.tolist().count("shard") == 1
    project.run_dir.page.unlink()
    assert report([str(project.run_dir.path)]) == 0
    assert "8 of 8, 1 suspect, done" in project.run_dir.page.read_text(encoding="utf-8")
    assert references([str(project.run_dir.path)]) == 0
    assert len(project.run_dir.run_ids()) == 2
    capsys.readouterr()


def test_the_page_that_is_written_last_has_every_clip(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard reads the logs and is overtaken by another before it writes."""
    from hv15_batch.run import _results

    monkeypatch.setattr(live, "write_page", lambda run_dir: None)
    write = _results.write_clips_table
    seen: list[str] = []

    def overtaken(run_dir: RunDir) -> None:
        if not seen:  # no other shard gets between reading and writing
            seen.append("first")
            monkeypatch.setattr(_lock, "MOMENT_SECONDS", 0.1)
            monkeypatch.setattr(_lock, "_TRY_SECONDS", 0.05)
            other = RunDir(run_dir.path, parse_shard("2/2"))
            with pytest.raises(Refused, match="in use by another process"), other.moment():
                pass
        write(run_dir)

    monkeypatch.setattr(_results, "write_clips_table", overtaken)
    assert project.run(shard="1/2") == 0
    assert seen == ["first"]
    assert project.run(shard="2/2") == 0
    assert all(row["status"] == "ok" for row in read_csv(project.run_dir.clips_table))


def test_a_log_of_another_shard_is_readable_while_that_one_writes_it(project: Project) -> None:
    assert project.run(shard="1/2") == 0
    log = of_shard(project, "1/2").own_log
    (segment,) = log.glob("*.parquet")

    with publishing(segment) as temporary:
        temporary.write_bytes(segment.read_bytes())
        assert project.run(shard="2/2") == 0

    assert rendered(project) == EVERY_ROW
