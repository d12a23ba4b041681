"""`notify.command` hears of the first clip, of failures and of the end, and can harm nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.command import Answer
from fakes.runs import FakeExecutor, FakeRenderer, Project, fake_local_executor

from hv15_batch.config.checks import parse_command
from hv15_batch.config.settings import NotifyConfig
from hv15_batch.dispatch.protocol import ExecutorSpec, Job
from hv15_batch.errors import Refused
from hv15_batch.record import FAILED, ClipRecord
from hv15_batch.run._notify import MAX_OUTPUT_CHARACTERS, Notices, Notifier
from hv15_batch.run._progress import Progress
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import latest_settings

WRITE_DOWN = """
import json, os, sys, time
facts = {"environ": dict(os.environ), "argv": sys.argv[1:]}
facts["descriptors"] = os.listdir("/proc/self/fd")
name = os.path.join(sys.argv[1], "%d-%d.json" % (time.time_ns(), os.getpid()))
with open(name + ".part", "w") as file:
    json.dump(facts, file)
os.rename(name + ".part", name)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where the command writes down what it is told."""
    folder = tmp_path / "told"
    folder.mkdir()
    return folder


def writing_down(told: Path, **changes: Any) -> NotifyConfig:
    """A command that writes down its environment."""
    return NotifyConfig(command=[sys.executable, "-c", WRITE_DOWN, str(told)], **changes)


def notices_in(told: Path) -> list[dict[str, Any]]:
    """What was told so far, oldest first."""
    return [json.loads(path.read_text()) for path in sorted(told.glob("*.json"))]


def by_event(told: Path) -> dict[str, dict[str, str]]:
    """The HV15_* variables of each event that was told once."""
    found = [notice["environ"] for notice in notices_in(told)]
    events = {environ["HV15_EVENT"]: environ for environ in found}
    assert len(events) == len(found)
    return {
        event: {name[5:]: value for name, value in environ.items() if name.startswith("HV15_")}
        for event, environ in events.items()
    }


def run_log(project: Project) -> str:
    (path,) = project.run_dir.runs.glob("*/run.log")
    return path.read_text(encoding="utf-8")


class RendererWithThumbnails(FakeRenderer):
    """Also leaves a thumbnail, as the real one does before the clip."""

    def render(self, job: Job, emit: Callable[[Any], None]) -> Callable[[], ClipRecord]:
        (self._run_dir.thumbs / f"{job.clip.clip_id}.jpg").write_bytes(b"jpeg")
        return super().render(job, emit)


def executor_with_thumbnails(spec: ExecutorSpec) -> FakeExecutor:
    return FakeExecutor(spec, RendererWithThumbnails)


def test_the_first_clip_is_told_with_its_thumbnail_and_the_measured_end(
    project: Project, told: Path
) -> None:
    project.write("id,prompt,seed", "cat,sleep 0.3,0..2")

    assert project.run(executor_with_thumbnails, notify=writing_down(told)) == 0

    first = by_event(told)["first_clip"]
    clip_id = first["CLIP_ID"]
    assert clip_id == project.records()[0]["clip_id"]
    assert first["THUMBNAIL"] == str(project.run_dir.thumbs / f"{clip_id}.jpg")
    assert (first["DONE"], first["TOTAL"], first["FAILED"], first["SUSPECT"]) == (
        "1",
        "3",
        "0",
        "0",
    )
    assert (first["STATUS"], first["EXIT_CODE"]) == ("rendering", "")
    assert first["ETA_BASIS"] == "measured"
    end, late = (datetime.fromisoformat(first[name]) for name in ("ETA", "ETA_P90"))
    assert end.tzinfo is not None
    assert end <= late
    assert first["MESSAGE"].startswith(f"first clip: {clip_id} in 0 s; 1 of 3 done; done about ")


def test_the_end_is_told_with_counts_and_exit_code_once_the_page_is_there(
    project: Project, tmp_path: Path, told: Path
) -> None:
    project.write("id,prompt", "cat,a cat", "odd,suspect", "bad,fail")
    code = """if True:
        import os, shutil, sys
        if os.environ["HV15_EVENT"] == "ended":
            shutil.copy(os.environ["HV15_RUN_DIR"] + "/index.html", sys.argv[1])
    """
    command = [sys.executable, "-c", code]

    assert project.run(notify=writing_down(told)) == 3
    end = by_event(told)["ended"]
    project.run(notify=NotifyConfig(command=[*command, str(tmp_path / "copy.html")]))

    assert (end["STATUS"], end["EXIT_CODE"]) == ("failed", "3")
    assert (end["DONE"], end["FAILED"], end["SUSPECT"]) == ("2", "1", "1")
    assert end["RUN_DIR"] == str(project.run_dir.path)
    assert end["MESSAGE"] == "failed: 2 of 3 done, 1 failed, 1 suspect; 1 of 3 clips failed"
    assert (tmp_path / "copy.html").is_file()


def test_a_run_that_stops_early_says_so(project: Project, told: Path) -> None:
    project.write("id,prompt,seed", "bad,die,0..5")

    assert project.run(notify=writing_down(told)) == 4

    stopped = by_event(told)["stopped"]
    assert (stopped["STATUS"], stopped["EXIT_CODE"], stopped["DONE"]) == ("stopped", "4", "0")
    assert "the worker was ended by SIGKILL" in stopped["MESSAGE"]
    assert "ended" not in by_event(told)


def test_a_run_that_is_refused_by_its_executor_says_so(project: Project, told: Path) -> None:
    project.write("id,prompt", "cat,refuse")

    with pytest.raises(Refused):
        project.run(notify=writing_down(told))

    assert by_event(told)["stopped"]["EXIT_CODE"] == "2"


def test_the_first_failure_is_told_at_once(project: Project, told: Path) -> None:
    project.write("id,prompt,seed", "bad,fail,0..4")

    project.run(notify=writing_down(told))

    first = by_event(told)["clip_failed"]
    assert first["CLIP_ID"] == project.records()[0]["clip_id"]
    assert (first["FAILED"], first["STATUS"]) == ("1", "rendering")
    assert first["MESSAGE"] == f"{first['CLIP_ID']} failed: RuntimeError: as the prompt says"


class RememberingNotifier(Notifier):
    """Runs nothing."""

    def __init__(self) -> None:
        super().__init__((), 1.0)
        self.told: list[tuple[str, str]] = []

    def tell(self, event: str, values: Mapping[str, object]) -> None:
        self.told.append((event, str(values["MESSAGE"])))


def test_further_failures_are_told_every_ten_minutes_with_their_number(tmp_path: Path) -> None:
    notifier = RememberingNotifier()
    clock = iter((0, 10, 599, 601, 700, 1300))
    progress = Progress(tmp_path / "status.json", "r1", total=9, done=0)
    notices = Notices(notifier, RunDir(tmp_path), progress.snapshot, print, lambda: next(clock))

    for name in "abcde":
        notices.finished(ClipRecord(clip_id=name, status=FAILED, error_type="E", error_message="m"))
    notices.finished(ClipRecord(clip_id="ok", status="ok"))
    progress.end("done")

    assert [message for event, message in notifier.told if event == "clip_failed"] == [
        "a failed: E: m",
        "d failed: E: m (and 2 more since the last notice)",
        "e failed: E: m",
    ]


HOSTILE = "'; touch pwned; \" $(touch pwned) `touch pwned` ${HOME} %s {}\n| tee pwned"


class QuotingRenderer(FakeRenderer):
    """Fails with the prompt in its message, as real errors may."""

    def _finish(self, job: Job, words: list[str], columns: dict[str, Any]) -> ClipRecord:
        record = super()._finish(job, ["fail"], columns)
        return replace(record, error_message=job.clip.settings.prompt)


def test_no_text_of_a_manifest_is_interpreted_or_reaches_the_command_line(
    project: Project, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = HOSTILE.replace('"', '""')
    project.write("id,prompt", f'cat,"{quoted}"')

    project.run(lambda spec: FakeExecutor(spec, QuotingRenderer), notify=writing_down(told))

    assert by_event(told)["clip_failed"]["MESSAGE"].endswith(
        " failed: RuntimeError: " + " ".join(HOSTILE.split())
    )
    assert all(notice["argv"] == [str(told)] for notice in notices_in(told))
    assert not (tmp_path / "pwned").exists()


def test_a_text_is_split_into_words_once_and_a_list_is_taken_as_it_is(told: Path) -> None:
    assert parse_command("sh -c 'echo \"$HV15_EVENT\"; x'")[1:] == ("-c", 'echo "$HV15_EVENT"; x')
    assert parse_command(["sh", "-c", "$(a) 'b'"])[1:] == ("-c", "$(a) 'b'")
    assert parse_command("sh *.txt ~ $HOME | x && y")[1:] == (
        "*.txt",
        "~",
        "$HOME",
        "|",
        "x",
        "&&",
        "y",
    )
    assert parse_command(None) == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no-such-program -x", "no program 'no-such-program' can be run here"),
        ("./no-such.sh", "no program './no-such.sh' can be run here"),
        ([__file__], f"no program {__file__!r} can be run here"),
        ("sh -c 'open", "not a command (No closing quotation)"),
        ("", "names no program"),
        ([], "names no program"),
        (7, "must be a text or a list of texts"),
        (["sh", 7], "must be a text or a list of texts"),
        ({"a": "b"}, "must be a text or a list of texts"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_before_anything_is_touched(
    project: Project, value: object, reason: str
) -> None:
    project.write("id,prompt", "cat,a cat")

    with pytest.raises(Refused) as refused:
        project.run(notify=NotifyConfig(command=value))

    assert str(refused.value).startswith(f"notify.command={value!r}: {reason}")
    assert not project.run_dir.path.exists()


@pytest.mark.parametrize(
    "word", ["notify.command=no-such --title 'a b'", "notify.command=[no-such,--title,'a b']"]
)
def test_text_and_list_come_through_the_command_line(
    command: Callable[..., Answer], tmp_path: Path, word: str
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")

    answer = command("prompts.csv", "model=tiny_t2v", "--dry-run", word)

    assert answer.code == 2
    assert "no program 'no-such' can be run here" in answer.err
    assert "a b" in answer.err


def test_the_command_is_stored_as_it_was_typed_and_a_resumed_run_must_be_given_it(
    project: Project, told: Path
) -> None:
    project.write("id,prompt", "cat,a cat")
    notify = writing_down(told)
    notify.command.append("${HV15_EVENT} 'x'")

    project.run(notify=notify)

    with pytest.raises(Refused, match=r"type it: .* notify\.command=\.\.\.$"):
        latest_settings(project.run_dir)
    assert latest_settings(project.run_dir, ["notify.command"]).notify == notify


def test_a_command_that_fails_is_said_once_and_changes_nothing(project: Project) -> None:
    project.write("id,prompt,seed", "cat,a cat,0..2")
    code = "import sys; print('no route to host', file=sys.stderr); sys.exit(7)"

    assert project.run(notify=NotifyConfig(command=[sys.executable, "-c", code])) == 0

    assert [r["status"] for r in project.records()] == ["ok"] * 3
    assert "notice first_clip: exit code 7: no route to host" in run_log(project)
    assert "notice ended: exit code 7: no route to host" in run_log(project)


def test_a_command_that_fails_is_shown_to_the_user(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "cat,a cat")

    project.run(notify=NotifyConfig(command="false"))

    said = [line for line in capsys.readouterr().out.splitlines() if "notify" in line]
    assert len(said) == 1
    assert said[0].startswith("notify.command: notice ")
    assert said[0].endswith(": exit code 1; the run continues, see run.log")


HANG = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + "/pids", "a") as file:
    print(child.pid, __import__("os").getpid(), file=file)
time.sleep(600)
"""


def test_a_command_that_hangs_delays_no_clip_and_is_killed_with_what_it_started(
    project: Project, told: Path
) -> None:
    project.write("id,prompt,seed", "cat,a cat,0..9")
    command = [sys.executable, "-c", HANG, str(told)]

    began = time.monotonic()
    code = project.run(notify=NotifyConfig(command=command, timeout_seconds=3))
    took = time.monotonic() - began

    records = project.records()
    assert code == 0
    assert (records[-1]["finished_at"] - records[0]["started_at"]).total_seconds() < 3
    assert took < 20
    assert "notice ended: killed after 3 s" in run_log(project)
    pids = [int(pid) for pid in (told / "pids").read_text().split()]
    assert pids
    assert not [pid for pid in pids if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.05)
    return True


def test_what_a_command_printed_before_its_time_was_over_is_in_the_log(project: Project) -> None:
    project.write("id,prompt", "cat,a cat")

    project.run(notify=NotifyConfig(command="sh -c 'echo busy; sleep 60'", timeout_seconds=0.5))

    assert "notice ended: killed after 0.5 s: busy\n" in run_log(project)


def test_a_command_that_never_stops_talking_is_killed_and_cut_in_the_log(project: Project) -> None:
    project.write("id,prompt", "cat,a cat")

    began = time.monotonic()
    project.run(notify=NotifyConfig(command="yes", timeout_seconds=60))

    assert time.monotonic() - began < 30
    assert "notice ended: killed, having printed more than 1 MiB: y y y" in run_log(project)
    assert len(run_log(project)) < 20_000


LINGER = """
import os, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, start_new_session=True)
with open(sys.argv[1] + "/lingering", "a") as file:
    print(child.pid, file=file)
"""


def test_what_a_command_leaves_running_holds_neither_the_run_nor_its_lock(
    project: Project, told: Path
) -> None:
    project.write("id,prompt", "cat,a cat")
    notify = NotifyConfig(command=[sys.executable, "-c", LINGER, str(told)], timeout_seconds=30)

    began = time.monotonic()
    code = project.run(fake_local_executor, notify=notify)
    again = project.run(force=True)
    took = time.monotonic() - began
    pids = [int(pid) for pid in (told / "lingering").read_text().split()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    assert (code, again) == (0, 0)
    assert len(pids) == 2
    assert took < 25


def test_a_command_inherits_no_descriptor_but_the_three_of_its_own(
    project: Project, told: Path
) -> None:
    project.write("id,prompt", "cat,a cat")

    project.run(fake_local_executor, notify=writing_down(told))

    for notice in notices_in(told):  # the fourth is that of the listing itself
        assert sorted(notice["descriptors"], key=int)[:3] == ["0", "1", "2"]
        assert len(notice["descriptors"]) == 4


def test_a_secret_is_not_cut_in_two_where_the_output_of_a_command_ends(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-" * 8)
    project.write("id,prompt", "cat,a cat")
    code = f"import os; print('x' * {MAX_OUTPUT_CHARACTERS - 10} + os.environ['MY_TOKEN'])"

    project.run(notify=NotifyConfig(command=[sys.executable, "-c", code]))

    assert "xxx***\n" in run_log(project)
    assert "planted" not in run_log(project)


def test_a_command_has_the_whole_environment_and_no_secret_of_it_gets_to_a_file(
    project: Project, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_one")
    monkeypatch.setenv("MY_PASSWORD", "planted  too")
    monkeypatch.setenv("HV15_ETA", "of an outer run")
    monkeypatch.setenv("NOTIFY_TOKEN", "tk_planted")
    project.write("id,prompt", "cat,a cat")
    names = ["NOTIFY_TOKEN", "HF_TOKEN", "MY_PASSWORD"]
    code = WRITE_DOWN + f"\nprint('Bearer', *(os.environ[name] for name in {names}))"

    project.run(notify=NotifyConfig(command=[sys.executable, "-c", code, str(told)]))

    environ = notices_in(told)[-1]["environ"]
    assert environ["NOTIFY_TOKEN"] == "tk_planted"
    assert {name: environ[name] for name in names} == {name: os.environ[name] for name in names}
    assert environ["PATH"] == os.environ["PATH"]
    assert environ["HV15_ETA"] == ""
    assert "notice ended: told: Bearer *** *** ***" in run_log(project)
    files = [path for path in project.run_dir.path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"planted" in path.read_bytes()]


def test_without_a_command_nothing_is_started(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "bad,fail")

    project.run()

    assert "notice" not in run_log(project)
