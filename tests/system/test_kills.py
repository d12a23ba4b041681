"""A run survives SIGKILL: of its parent, its child or both, at named points and at any moment.

Real parent, real child, real run directory. For 200 kills a torch-free renderer sleeps behind them,
for 15 the tiny model renders. Kill, look, resume, kill again; in the end every clip is there once.
`make test` takes a sample of the run directories, `make test-all` takes them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import pytest
from fakes.kill_parent import content_of
from fakes.kill_points import VICTIMS, Kill, arm, named_kills
from fakes.runs import Project
from fakes.samples import sampled
from filelock import FileLock

from hv15_batch.clip import Clip
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.read import read_manifest
from hv15_batch.media.video import check_video
from hv15_batch.rundir.log import read_records, segments
from hv15_batch.weights.checkpoint import resolve_checkpoint

SEED = 20261122
RUN_DIRECTORIES, KILLS_EACH = 20, 10
TWO_WORKER_DIRECTORIES = 10
TINY_RUN_DIRECTORIES, TINY_KILLS_EACH = 3, 5
SAMPLED, TINY_SAMPLED = 2, 1
"""Of the run directories, those that `make test` takes."""
MARK = "HV15_BATCH_KILL_SUITE"
TESTS = Path(__file__).parents[1]
POLL_SECONDS = 0.02
RUN_SECONDS = 120.0
ORPHAN_SECONDS = 10.0


@dataclass
class Night:
    """One run directory that is killed again and again."""

    folder: Path
    renderer: str
    rng: random.Random
    workers: int = 1
    kills: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    @cached_property
    def project(self) -> Project:
        return Project(self.folder)

    def add_rows(self, count: int) -> None:
        """Add rows to the manifest, so that there is always something to lose."""
        self.rows += count
        rows = (f"row{n},clip number {n}" for n in range(self.rows))
        self.project.write("id,prompt", *rows)

    def clips(self) -> list[Clip]:
        config = self.project.config()
        manifest = read_manifest(self.project.manifest, config.model.task)
        return list(make_clips(manifest, config, resolve_checkpoint(config.model).revision))

    # -- one run --------------------------------------------------------------------------------

    def run(self, kill: Kill | None) -> int:
        """Run once, killed or not, and hold what must hold after every run; return its code.

        Whoever is to be killed at no named point is killed at a random moment.
        """
        (self.folder / "kill.json").unlink(missing_ok=True)
        if kill is not None and kill.point:
            arm(self.folder, kill)
        done, denoised = self.done(), self.denoised()
        begin = len(self.journal())
        with self.parent() as parent:
            if kill is not None and not kill.point:
                self.kill_at_random(parent, kill.victim, begin)
            self.watch(parent)
        lines = self.journal()[begin:]
        self.kills.update(line.removeprefix("kill ") for line in lines if line.startswith("kill "))
        self.check_no_process()
        self.check_nothing_again(lines, done, denoised)
        self.check_files()
        return parent.returncode

    def parent(self) -> subprocess.Popen[bytes]:
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        env = os.environ | {MARK: str(self.folder), "TMPDIR": str(temporary)}
        env["CUDA_VISIBLE_DEVICES"] = ""
        env["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "inductor")  # torch's, made at import
        words = [sys.executable, "-m", "fakes.kill_parent", str(self.folder), self.renderer]
        words.append(str(self.workers))
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(words, cwd=TESTS, env=env, stdout=said, stderr=said)

    def watch(self, parent: subprocess.Popen[bytes]) -> None:
        """Read the log until the run ends: it is right at every moment."""
        end = time.monotonic() + RUN_SECONDS
        while parent.poll() is None:
            read_records(self.project.run_dir.log)
            if time.monotonic() > end:
                parent.kill()
                raise TimeoutError(f"{self.folder}: {self.said()}")
            time.sleep(POLL_SECONDS)

    def kill_at_random(self, parent: subprocess.Popen[bytes], victim: str, begin: int) -> None:
        """Wait, half of the time for the first sign of rendering, then a random while; kill."""
        if self.rng.random() < 0.7:
            self.wait_for(parent, lambda: len(self.journal()) > begin)
            self.sleep(parent, self.rng.uniform(0, 0.25))
        else:
            self.sleep(parent, self.rng.uniform(0, 1.0))
        if victim == "child":
            self.wait_for(parent, lambda: bool(children_of(parent.pid)))
        targets = [] if victim == "parent" else children_of(parent.pid)
        if victim != "child" and parent.poll() is None:
            targets.insert(self.rng.randrange(2), psutil.Process(parent.pid))
        for target in targets:
            with suppress(psutil.NoSuchProcess):
                target.kill()
                self.kills[f"{victim} at random"] += target is targets[-1]

    def wait_for(self, parent: subprocess.Popen[bytes], what: Callable[[], bool]) -> None:
        while parent.poll() is None and not what():
            time.sleep(POLL_SECONDS / 4)

    def sleep(self, parent: subprocess.Popen[bytes], seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            parent.wait(seconds)

    # -- what is there --------------------------------------------------------------------------

    def journal(self) -> list[str]:
        path = self.folder / "journal.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(encoding="utf-8")[-2000:]

    def done(self) -> set[str]:
        """The clips that are rendered and recorded."""
        return {
            record["clip_id"]
            for record in self.project.records()
            if record["status"] == "ok" and (self.project.run_dir.path / record["file"]).is_file()
        }

    def denoised(self) -> set[str]:
        """The clips whose latents are saved."""
        saved = self.project.run_dir.saved_latents()
        return {clip.clip_id for clip in self.clips() if clip.denoise_sha256 in saved}

    # -- what must hold -------------------------------------------------------------------------

    def check_no_process(self) -> None:
        """Hold that parent and child are gone, and with them the lock."""
        end = time.monotonic() + ORPHAN_SECONDS
        while left := processes_of(self.folder):
            assert time.monotonic() < end, f"still alive: {[p.cmdline() for p in left]}"
            time.sleep(POLL_SECONDS)
        if self.project.run_dir.path.exists():
            # A process that ends gives up its environment before its files.
            with FileLock(self.project.run_dir.path / ".lock", timeout=ORPHAN_SECONDS):
                pass

    def check_nothing_again(self, lines: list[str], done: set[str], denoised: set[str]) -> None:
        """Hold that a run left alone what was done before it."""
        words = [line.split() for line in lines]
        again = {word[1] for word in words if len(word) > 1 and word[1] in done}
        assert not again, f"done, and rendered again: {again}"
        denoised_again = {word[1] for word in words if word[0] == "denoise"} & denoised
        assert not denoised_again, f"latents saved, and denoised again: {denoised_again}"
        assert not [word for word in words if word[0] == "redundant"]

    def check_files(self) -> None:
        """Hold that what has a name is whole, and that the log tells no attempt twice."""
        run_dir = self.project.run_dir
        for segment in segments(run_dir.log):
            assert read_records(segment.parent, ["clip_id"]).num_rows > 0
        attempts = [(r["settings_sha256"], r["attempt"]) for r in self.project.records()]
        assert len(set(attempts)) == len(attempts)
        if run_dir.page.exists():
            assert run_dir.page.read_text(encoding="utf-8").rstrip().endswith("</html>")
        for path in (run_dir.status, *run_dir.runs.glob("*/system.json")):
            if path.exists():
                json.loads(path.read_text(encoding="utf-8"))
        self.check_contents()

    def check_contents(self) -> None:
        """Hold that every visible file of a clip has all of its bytes."""
        run_dir = self.project.run_dir
        for clip in self.clips():
            latents = run_dir.latents_file(clip.denoise_sha256)
            video = run_dir.clips / f"{clip.clip_id}.mp4"
            if self.renderer == "tiny":
                if video.exists():
                    check_video_of(clip, video)
                continue
            if latents.exists():
                json.loads(latents.read_text(encoding="utf-8"))
            embedding = run_dir.embeddings / f"{clip.row_id}.safetensors"
            for path in (video, run_dir.thumbs / f"{clip.clip_id}.jpg", embedding):
                assert not path.exists() or path.read_bytes() == content_of(clip)

    def check_end(self) -> None:
        """Hold that every clip is there once, by its row and its file, and that nothing else is."""
        run_dir, clips = self.project.run_dir, self.clips()
        ok = [r for r in self.project.records() if r["status"] == "ok"]
        assert Counter(r["clip_id"] for r in ok) == Counter(clip.clip_id for clip in clips)
        for record in ok:
            content = (run_dir.path / record["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == record["file_sha256"]
        lost = [r for r in self.project.records() if r["status"] != "ok"]
        assert {(r["status"], r["error_type"]) for r in lost} <= {("failed", "WorkerDied")}

        names = {clip.clip_id for clip in clips}
        assert stems(run_dir.clips) == stems(run_dir.thumbs) == names
        assert stems(run_dir.latents) == {clip.denoise_sha256 for clip in clips}
        assert {row["state"] for row in self.project.plan()} == {"done"}
        assert self.project.strays() == []
        assert list((self.folder / "tmp").iterdir()) == []


def children_of(parent: int) -> list[psutil.Process]:
    """Return the executor's process; multiprocessing has another one of its own."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(parent).children()
        return [child for child in children if "spawn_main" in " ".join(cmdline_of(child))]
    return []


def cmdline_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return all processes that a run in this folder has left, by the environment they inherit."""

    def found() -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_of_run = process.environ().get(MARK) == str(folder)
                if is_of_run and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    return list(found())


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def check_video_of(clip: Clip, path: Path) -> None:
    s = clip.settings
    check_video(path, num_frames=s.num_frames, height=s.height, width=s.width, fps=s.fps)


def survive(night: Night, plan: list[Kill]) -> None:
    """Carry out a plan of kills; a run that ends before its random moment is repeated."""
    for number, kill in enumerate(plan, 1):
        for _ in range(5):
            night.add_rows(2)
            code = night.run(kill)
            assert code in (0, 3, 4, -9), f"{kill}: exit code {code}\n{night.said()}"
            if night.kills.total() == number:
                break
        assert night.kills.total() == number, f"{kill} was never reached\n{night.said()}"

    assert night.run(None) == 0, night.said()
    night.check_end()
    begin = len(night.journal())
    assert night.run(None) == 0
    assert night.journal()[begin:] == []


def plan_of(rng: random.Random, named: list[Kill], total: int) -> list[Kill]:
    """Return named kills, some at their second call, and as many random ones as are missing."""
    plan = [*named, *(Kill(rng.choice(VICTIMS), "") for _ in range(total - len(named)))]
    rng.shuffle(plan)
    return plan


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled(range(RUN_DIRECTORIES), SAMPLED))
def test_after_ten_kills_every_clip_is_there_once_and_nothing_was_done_twice(
    tmp_path: Path, number: int
) -> None:
    rng = random.Random(f"{SEED}-{number}")
    print(f"seed {SEED}-{number}")
    night = Night(tmp_path, "fake", rng)
    named = named_kills()[number::RUN_DIRECTORIES]

    survive(night, plan_of(rng, named, KILLS_EACH))

    assert night.kills.total() == KILLS_EACH


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled(range(TWO_WORKER_DIRECTORIES), 1))
def test_after_ten_kills_of_two_workers_every_clip_is_there_once(
    tmp_path: Path, number: int
) -> None:
    rng = random.Random(f"{SEED}-two-{number}")
    print(f"seed {SEED}-two-{number}")
    night = Night(tmp_path, "fake", rng, workers=2)
    kills = named_kills()[number::TWO_WORKER_DIRECTORIES]
    named = rng.sample(kills, min(len(kills), KILLS_EACH - 3))

    survive(night, plan_of(rng, named, KILLS_EACH))

    assert night.kills.total() == KILLS_EACH


TINY_POINTS = (
    *("child begins", "encoding", "embeddings: before rename", "denoising"),
    *("latents: half", "latents: published", "decoded", "thumbs: before rename", "writing"),
    *("clips: before rename", "clips: published", "log: half", "after row"),
)


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled(range(TINY_RUN_DIRECTORIES), TINY_SAMPLED))
def test_after_five_kills_of_the_tiny_model_every_clip_decodes_and_is_there_once(
    tmp_path: Path, number: int
) -> None:
    rng = random.Random(f"{SEED}-tiny-{number}")
    print(f"seed {SEED}-tiny-{number}")
    night = Night(tmp_path, "tiny", rng)
    named = [Kill(rng.choice(VICTIMS), point) for point in TINY_POINTS[number::3]]

    survive(night, plan_of(rng, named[:TINY_KILLS_EACH], TINY_KILLS_EACH))

    assert night.kills.total() == TINY_KILLS_EACH


CHUNKS = 48
OF_OPERATIONS = (
    *(("parent", victim) for victim in ("parent", "both")),
    *(("child", victim) for victim in VICTIMS),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "victim", "first"),
    [
        *sampled([(*who, n) for who in OF_OPERATIONS[:2] for n in range(1, CHUNKS + 1)], 1),
        *sampled([(*who, n) for who in OF_OPERATIONS[2:] for n in range(1, CHUNKS + 1)], 2),
    ],
)
def test_after_a_kill_at_any_operation_on_a_file_the_next_run_makes_what_is_missing(
    tmp_path: Path, side: str, victim: str, first: int
) -> None:
    """Each `CHUNKS`-th operation from `first` on, each in a run directory of its own."""
    number = first
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        night = Night(folder, "fake", random.Random(number))
        night.add_rows(1)

        code = night.run(Kill(victim, f"{side} operation", number))

        assert code in (0, 3, 4, -9), f"operation {number}: exit code {code}\n{night.said()}"
        if not night.kills:
            assert code == 0, night.said()  # it has fewer operations than that
            night.check_end()
            assert number > FEWEST_OPERATIONS[side], "the operations are no longer seen"
            return
        assert night.run(None) == 0, f"operation {number}\n{night.said()}"
        night.check_end()
        number += CHUNKS


FEWEST_OPERATIONS = {"parent": 60, "child": 10}


def test_the_suite_kills_two_hundred_times_and_at_every_named_point() -> None:
    named = named_kills()
    planned = [named[n::RUN_DIRECTORIES] for n in range(RUN_DIRECTORIES)]

    assert RUN_DIRECTORIES * KILLS_EACH == 200
    assert TINY_RUN_DIRECTORIES * TINY_KILLS_EACH == 15
    assert max(map(len, planned)) < KILLS_EACH
    assert sum(map(len, planned)) == len(named) > 100
