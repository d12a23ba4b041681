"""Runs whose prompts a server rewrites: what is asked, kept, rendered, logged and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.chat_server import ChatServer, chat_server
from fakes.command import Answer
from fakes.manifests import write_image
from fakes.pages import read_data
from fakes.runs import Project, read_csv

from hv15_batch.config.rewriting import RewriteConfig
from hv15_batch.config.shard import parse_shard
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.model.variant import Task
from hv15_batch.rewrite import client, phase
from hv15_batch.rundir import _lock
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import latest_settings, to_type_again

Command = Callable[..., Answer]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "MAX_RETRIES", 1)
    with chat_server() as server:
        yield server


class Rewritten(Project):
    """A project whose runs rewrite prompts."""

    server: ChatServer

    @property
    def file(self) -> Path:
        return self.run_dir.path / "rewrites.jsonl"

    def rewrites(self, **changes: Any) -> RewriteConfig:
        return RewriteConfig(**{"base_url": self.server.url, "model": "small", **changes})

    def run(self, *args: Any, **changes: Any) -> int:
        changes.setdefault("rewrite", self.rewrites())
        return super().run(*args, **changes)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text("utf-8").splitlines()]

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.file.write_text(text, encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, server: ChatServer) -> Rewritten:
    project = Rewritten(tmp_path)
    project.server = server
    project.write("id,prompt,seed", "cat,a cat,0 1", "dog,a dog,", "again,a cat,7")
    return project


# -- what is asked and kept -------------------------------------------------------------------


def test_each_prompt_is_asked_once_whatever_its_seeds_and_rendered_as_it_comes_back(
    project: Rewritten, server: ChatServer
) -> None:
    assert project.run() == 0
    assert sorted(server.prompts) == ["a cat", "a dog"]
    assert {each["model"] for each in server.asked} == {"small"}
    assert server.asked[0]["system"].startswith("You write prompts for a model that makes short")
    records = project.records()
    assert {(r["row_id"], r["seed"], r["prompt"], r["prompt_original"]) for r in records} == {
        ("cat", 0, "Rewritten: a cat", "a cat"),
        ("cat", 1, "Rewritten: a cat", "a cat"),
        ("again", 7, "Rewritten: a cat", "a cat"),
        ("dog", 0, "Rewritten: a dog", "a dog"),
    }
    assert {r["rewrite_model"] for r in records} == {"small"}
    assert {len(r["rewrite_template_sha256"]) for r in records} == {64}
    table = read_csv(project.run_dir.clips_table)
    assert {row["prompt_original"] for row in table} == {"a cat", "a dog"}
    clip = read_data(project.run_dir.path)["clips"][0]
    assert (clip["prompt"], clip["promptOriginal"]) == ("Rewritten: a cat", "a cat")


def test_a_finished_run_asks_for_nothing_and_an_id_comes_from_the_original(
    project: Rewritten, server: ChatServer
) -> None:
    project.write("prompt", "a cat")
    project.run()
    server.asked.clear()
    assert project.run() == 0
    assert server.asked == []
    assert any("Nothing to do" in line for line in project.said)
    (record,) = project.records()
    project.run(rewrite=RewriteConfig(), add=True)
    assert project.records()[1]["row_id"] == record["row_id"]
    assert project.records()[1]["clip_id"] != record["clip_id"]


def test_the_texts_are_published_before_anything_is_encoded(project: Rewritten) -> None:
    from fakes.runs import FakeExecutor, FakeRenderer

    seen: list[list[str]] = []

    class Looking(FakeRenderer):
        def encode(self, clips: Any, emit: Any) -> None:
            seen.append([line["prompt"] for line in project.lines()])
            super().encode(clips, emit)

    project.run(lambda spec: FakeExecutor(spec, Looking))
    assert [sorted(each) for each in seen] == [["Rewritten: a cat", "Rewritten: a dog"]]


def test_only_the_selected_rows_are_asked_for(project: Rewritten, server: ChatServer) -> None:
    project.run(only="dog")
    assert server.prompts == ["a dog"]
    project.run(limit=1)
    assert server.prompts == ["a dog", "a cat"]


def test_several_are_asked_at_once_and_no_more(project: Rewritten, server: ChatServer) -> None:
    project.write("prompt", *[f"a cat {n}" for n in range(24)])
    answer = server.answer

    def slowly(prompt: str) -> Any:
        server.lock.release()
        try:
            import time

            time.sleep(0.05)
        finally:
            server.lock.acquire()
        return answer(prompt)

    server.answer = slowly
    assert project.run() == 0
    assert 2 <= server.most_at_once <= phase.CONCURRENCY
    assert len(project.lines()) == 24


def test_an_edited_text_makes_a_new_clip_and_is_not_asked_for(
    project: Rewritten, server: ChatServer
) -> None:
    project.run()
    server.asked.clear()
    project.did()
    lines = project.lines()
    for line in lines:
        if line["prompt_original"] == "a dog":
            line["prompt"] = "A dog, as I want it."
    project.write_lines(lines)
    assert project.run() == 0
    assert server.asked == []
    assert len(project.did()) == 1
    assert project.records()[-1]["prompt"] == "A dog, as I want it."
    assert project.records()[-1]["prompt_original"] == "a dog"


def test_a_deleted_line_is_asked_for_again(project: Rewritten, server: ChatServer) -> None:
    project.run()
    server.asked.clear()
    server.answer = lambda prompt: f"Anew: {prompt}"
    project.write_lines([line for line in project.lines() if line["prompt_original"] == "a dog"])
    assert project.run() == 0
    assert server.prompts == ["a cat"]
    assert {line["prompt"] for line in project.lines()} == {"Anew: a cat", "Rewritten: a dog"}


def test_a_lost_file_is_made_again_from_the_log(project: Rewritten, server: ChatServer) -> None:
    project.run()
    lines = project.lines()
    server.asked.clear()
    project.file.unlink()
    assert project.run() == 0
    assert server.asked == []
    key = lambda line: line["prompt_original"]  # noqa: E731
    assert sorted(project.lines(), key=key) == sorted(lines, key=key)


def test_a_line_that_is_none_is_refused_with_its_number(project: Rewritten) -> None:
    project.run()
    with project.file.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "half\n{"prompt": ""}\n[1]\n')
    with pytest.raises(ManifestError) as caught:
        project.run()
    faults = caught.value.faults
    assert [fault.split(": ")[0].rpartition(":")[2] for fault in faults] == ["3", "4", "5"]
    assert all(
        fault.endswith("delete the line and the prompt is rewritten again.") for fault in faults
    )


def test_other_instructions_or_another_model_are_asked_anew_and_need_consent(
    project: Rewritten, server: ChatServer
) -> None:
    project.run()
    server.asked.clear()
    with pytest.raises(Refused, match="clips are done here with other settings"):
        project.run(rewrite=project.rewrites(model="large"))
    template = project.folder / "mine.txt"
    template.write_text("Make it short.", encoding="utf-8")
    with pytest.raises(Refused, match="clips are done here with other settings"):
        project.run(rewrite=project.rewrites(template=str(template)))
    with pytest.raises(Refused, match="prompt 'Rewritten: a cat' -> 'a cat'"):
        project.run(rewrite=RewriteConfig())
    assert server.asked == []
    assert project.run(rewrite=project.rewrites(template=str(template)), add=True) == 0
    assert {each["system"] for each in server.asked} == {"Make it short."}
    assert len(project.lines()) == 4


def test_a_run_without_rewriting_is_not_rendered_again_unasked(project: Rewritten) -> None:
    project.run(rewrite=RewriteConfig())
    with pytest.raises(Refused, match="prompts are rewritten"):
        project.run()
    assert project.run(add=True) == 0


def test_templates_are_expanded_before_they_are_rewritten(
    project: Rewritten, server: ChatServer
) -> None:
    project.write("id,prompt", "cat,a {red|grey} cat")
    assert project.run(templates="all") == 0
    assert sorted(server.prompts) == ["a grey cat", "a red cat"]
    found = {(r["prompt"], r["prompt_original"], r["template_draw"]) for r in project.records()}
    assert found == {
        ("Rewritten: a red cat", "a red cat", 0),
        ("Rewritten: a grey cat", "a grey cat", 1),
    }


def test_a_first_frame_has_instructions_and_texts_of_its_own(
    project: Rewritten, server: ChatServer
) -> None:
    for name in ("one", "two"):
        write_image(str(project.folder / f"{name}.png"))
    project.write(
        "id,prompt,image", "a,it moves,one.png", "b,it moves,two.png", "c,it moves,one.png"
    )
    model = replace(project.config().model, task=Task.i2v, name="tiny_i2v")
    assert project.run(model=model) == 0
    assert server.prompts == ["it moves", "it moves"]
    assert "continues a picture" in server.asked[0]["system"]
    images = {line["image_sha256"] for line in project.lines()}
    assert len(images) == 2
    assert {r["image_sha256"] for r in project.records()} == images
    project.file.unlink()
    project.run(model=model)
    assert {line["image_sha256"] for line in project.lines()} == images
    assert len(server.asked) == 2


# -- shards -----------------------------------------------------------------------------------


def test_a_shard_that_rewrites_keeps_no_other_from_starting(
    project: Rewritten, server: ChatServer
) -> None:
    other = RunDir(project.run_dir.path, parse_shard("2/2"))
    started: list[str] = []

    def answer(prompt: str) -> str:
        with other.moment(0):
            started.append(prompt)
        return f"Rewritten: {prompt}"

    server.answer = answer
    assert project.run(shard="1/2") == 0
    assert started
    server.answer = lambda prompt: f"Rewritten: {prompt}"
    assert project.run(shard="2/2") == 0
    assert sorted(server.prompts) == ["a cat", "a dog"]
    assert len(project.records()) == 4


def test_a_shard_waits_while_another_rewrites_and_says_so(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lock, "MOMENT_SECONDS", 0.0)
    other = RunDir(project.run_dir.path, parse_shard("2/2"))
    other.create()
    asked: list[list[str]] = []
    held, is_waiting = threading.Event(), threading.Event()
    waiting = f"Waiting while another shard rewrites prompts: {project.run_dir.path}"

    def rewrite() -> None:
        with other.rewriting(project.said.append):
            held.set()
            is_waiting.wait(30)
            asked.append(list(server.prompts))

    class Said(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if line == waiting:
                is_waiting.set()

    project.said = Said()
    thread = threading.Thread(target=rewrite)
    thread.start()
    assert held.wait(10)
    assert project.run(shard="1/2") == 0
    thread.join()
    assert is_waiting.is_set()
    assert asked == [[]]
    assert server.prompts


def test_a_shard_asks_only_for_what_only_names(project: Rewritten, server: ChatServer) -> None:
    for shard in ("1/2", "2/2"):
        assert project.run(shard=shard, only="dog") == 0
    assert server.prompts == ["a dog"]
    assert [r["row_id"] for r in project.records()] == ["dog"]


def test_a_link_in_place_of_the_lock_of_rewriting_is_refused(project: Rewritten) -> None:
    project.run_dir.create()
    (project.run_dir.path / _lock.REWRITING_LOCK).symlink_to(project.folder / "elsewhere")
    with pytest.raises(Refused, match=r"\.rewrites\.lock: is a link"):
        project.run(shard="1/2")


# -- failures ---------------------------------------------------------------------------------


def test_a_failure_is_its_row_s_alone_and_never_the_original(
    project: Rewritten, server: ChatServer
) -> None:
    server.answer = lambda prompt: 400 if prompt == "a cat" else f"Rewritten: {prompt}"
    assert project.run() == 3
    assert {r["prompt"] for r in project.records() if r["status"] == "ok"} == {"Rewritten: a dog"}
    failed = [r for r in project.records() if r["status"] == "failed"]
    assert {(r["row_id"], r["seed"]) for r in failed} == {("cat", 0), ("cat", 1), ("again", 7)}
    for record in failed:
        assert (record["prompt"], record["prompt_original"]) == (None, "a cat")
        assert record["error_type"] == "NotRewritten"
        assert record["error_message"].startswith("the server answered 400: ")
    assert not [line for line in project.did() if "dog" not in line]
    assert "3 of 4 clips failed" in "\n".join(project.said)

    server.answer = lambda prompt: f"At last: {prompt}"
    assert project.run() == 0
    assert server.prompts[-1:] == ["a cat"]
    states = {row["row_id"]: row["state"] for row in project.plan()}
    assert states == {"cat": "done", "dog": "done", "again": "done"}


def test_a_run_in_which_every_prompt_fails_renders_nothing(
    project: Rewritten, server: ChatServer
) -> None:
    server.answer = lambda prompt: 400
    assert project.run() == 3
    assert project.did() == []
    assert {r["status"] for r in project.records()} == {"failed"}
    assert {row["status"] for row in read_csv(project.run_dir.clips_table)} == {"failed"}


def test_a_wrong_key_is_found_at_the_first_prompt(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody-at-all")
    project.write("prompt", *[f"a cat {n}" for n in range(20)])
    server.answer = lambda prompt: 401
    assert project.run() == 3
    assert len(server.asked) <= 2 * phase.CONCURRENCY
    messages = {r["error_message"] for r in project.records()}
    assert any("401" in m and "the key comes from OPENAI_API_KEY" in m for m in messages)
    assert any(m.startswith("not asked, since the server failed before") for m in messages)
    assert len(project.records()) == 20


def test_a_server_that_dies_in_between_loses_only_what_was_not_answered(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_RETRIES", 0)
    project.write("prompt", *[f"a cat {n}" for n in range(24)])
    answer = server.answer
    server.answer = lambda prompt: answer(prompt) if len(server.asked) <= 6 else None
    assert project.run() == 3
    assert len(project.lines()) == 6
    assert len(server.asked) <= 6 + phase.MAX_FAILED_IN_A_ROW + 2 * phase.CONCURRENCY
    server.answer = answer
    assert project.run() == 0
    assert len(project.lines()) == 24


def test_no_answer_is_lost_when_the_user_ends_it(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = phase._answers

    def interrupted(*args: Any) -> Any:
        yield next(answers(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(phase, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        project.run()
    assert len(project.lines()) == 1
    assert project.records() == []


# -- secrets, settings, the dry run -----------------------------------------------------------


def test_the_key_comes_from_the_environment_and_is_stored_nowhere(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.first = [401]
    project.run(rewrite=RewriteConfig(model="small"))
    project.run(rewrite=RewriteConfig(model="small"))
    assert {each["key"] for each in server.asked} == {f"Bearer {key}"}
    for path in project.run_dir.path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path
    assert key not in "\n".join(project.said)


def test_an_answer_with_the_key_in_it_is_refused(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    server.answer = lambda prompt: f"{prompt} sk-0123456789abcdef"
    assert project.run() == 3
    assert not project.file.read_text("utf-8")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://me:secret@host/v1", "an address has no user and no password"),
        ("http://host/v1?key=secret", "an address has no ? and no #"),
        ("ftp://host", "must be an address such as http://127.0.0.1:8000/v1"),
        ("host:8000", "must be an address such as http://127.0.0.1:8000/v1"),
        ("http://[host", "must be an address such as http://127.0.0.1:8000/v1"),
    ],
)
def test_other_addresses_are_refused_without_being_repeated(
    project: Rewritten, monkeypatch: pytest.MonkeyPatch, url: str, fault: str
) -> None:
    with pytest.raises(Refused) as caught:
        project.run(rewrite=RewriteConfig(base_url=url))
    assert str(caught.value).startswith(f"rewrite.base_url: {fault}")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(Refused, match="OPENAI_BASE_URL: "):
        project.run(rewrite=RewriteConfig(model="small"))
    assert not project.run_dir.path.exists()


def test_what_is_missing_is_named_before_anything_is_touched(
    project: Rewritten, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"no server is named; type rewrite\.base_url"):
        project.run(rewrite=RewriteConfig(model="small"))
    with pytest.raises(Refused, match=r"has no effect without rewrite\.base_url"):
        project.run(rewrite=RewriteConfig(template="x.txt"))
    with pytest.raises(Refused, match=r"rewrite.template=.*x.txt: No such file"):
        project.run(rewrite=project.rewrites(template=str(project.folder / "x.txt")))
    monkeypatch.setattr(client, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'hv15_batch\[rewrite\]'"):
        project.run()
    assert not project.run_dir.path.exists()


def test_the_environment_alone_turns_nothing_on(
    project: Rewritten, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert project.run(rewrite=RewriteConfig()) == 0
    assert server.asked == []


def test_without_a_model_the_server_s_own_is_asked(project: Rewritten, server: ChatServer) -> None:
    project.run(rewrite=RewriteConfig(base_url=server.url))
    assert {each["model"] for each in server.asked} == {"default"}


def test_resume_prints_what_must_be_typed_again(project: Rewritten) -> None:
    project.run()
    config = project.config(rewrite=project.rewrites())
    assert to_type_again(config) == ["rewrite.base_url", "rewrite.model"]
    with pytest.raises(Refused, match=r"rewrite.base_url=\.\.\. rewrite.model=\.\.\."):
        latest_settings(project.run_dir)


def test_the_dry_run_counts_what_is_not_rewritten_and_asks_nobody(
    project: Rewritten, server: ChatServer, command: Command
) -> None:
    words = (
        *(project.manifest, f"run_dir={project.run_dir.path}", "model=tiny_t2v"),
        *(f"rewrite.base_url={server.url}", "rewrite.model=small"),
        *("override.height=32", "override.width=32", "override.num_frames=1", "--dry-run"),
    )
    answer = command(*words)
    assert answer.code == 0, answer.err
    assert "Rewriting by small: 2 prompts, 2 not yet: the server is asked when a run" in answer.out
    assert not project.file.exists()
    project.run(only="dog")
    server.asked.clear()
    answer = command(*words, "add=true")
    assert "Rewriting by small: 2 prompts, 1 not yet" in answer.out
    assert server.asked == []
    reasons = {row["row_id"]: row["reason"] for row in read_csv(project.run_dir.plan)}
    assert reasons["cat"] == "not yet rewritten"


# -- chains -----------------------------------------------------------------------------------


def test_the_prompt_of_a_clip_that_follows_another_is_asked_for_as_one_with_a_first_frame(
    project: Rewritten, server: ChatServer
) -> None:
    project.write("id,prompt,model,image", "a,a cat,,", "b,a dog,tiny_i2v,@a:last")
    assert project.run() == 0
    asked = {each["prompt"]: each["system"] for each in server.asked}
    assert "You do not see the picture" not in asked["a cat"]
    assert "You do not see the picture" in asked["a dog"]
    records = {r["row_id"]: r for r in project.records()}
    assert records["b"]["prompt"] == "Rewritten: a dog"
    assert records["b"]["image_source"].startswith(records["a"]["denoise_sha256"])
    server.asked.clear()
    project.file.unlink()
    assert project.run() == 0
    assert server.asked == [], "the log has both texts"


def test_what_follows_a_clip_without_a_text_is_skipped(
    project: Rewritten, server: ChatServer
) -> None:
    project.write("id,prompt,model,image", "a,bad cat,,", "b,a dog,tiny_i2v,@a:last")
    server.answer = lambda prompt: 400 if prompt == "bad cat" else f"Rewritten: {prompt}"
    assert project.run() == 3
    plan = {row["row_id"]: row for row in project.plan()}
    assert plan["b"]["state"] == "skipped"
    assert [r["row_id"] for r in project.records()] == ["a"]
