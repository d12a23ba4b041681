"""One prompt and its answer: what is asked again, what counts, and what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.chat_server import ChatServer, chat_server

from hv15_batch.config.rewriting import RewriteConfig
from hv15_batch.rewrite import client
from hv15_batch.rewrite.asked import Key, Rewriting

KEY = Key("a cat", None, "small", "0" * 64)
SIGN = KEY._replace(prompt_original='A sign "OPEN" and "24 h".')


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(client, "MAX_RETRIES", 1)
    with chat_server() as server:
        server.headers = {"Retry-After-Ms": "10"}
        yield server


def asking(server: ChatServer) -> client.Client:
    config = RewriteConfig(base_url=server.url, model="small")
    return client.Client(config, Rewriting("small", "Write it out.", "Move it."))


def test_the_prompt_is_sent_with_the_instructions_and_nothing_else(server: ChatServer) -> None:
    assert asking(server).rewrite(KEY) == "Rewritten: a cat"
    assert asking(server).rewrite(KEY._replace(image_sha256="1" * 64)) == "Rewritten: a cat"
    assert [each["system"] for each in server.asked] == ["Write it out.", "Move it."]
    assert server.asked[0]["body"].keys() == {"model", "messages"}


@pytest.mark.parametrize("first", [429, 500, 503, None, b"{broken", b"[]", b'{"choices": []}', ""])
def test_what_passes_is_asked_again(server: ChatServer, first: Any) -> None:
    server.first = [first]
    assert asking(server).rewrite(KEY) == "Rewritten: a cat"
    assert server.prompts == ["a cat", "a cat"]


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": "A cat that"}, "finish_reason": "length"},
        {"message": {"content": "A cat that"}, "finish_reason": "content_filter"},
        {"message": {"content": "A cat that"}, "finish_reason": "abort"},
        {"message": {"content": "<think>A cat?"}, "finish_reason": "stop"},
    ],
)
def test_an_answer_that_is_cut_off_is_asked_for_again_and_never_a_prompt(
    server: ChatServer, choice: dict[str, Any]
) -> None:
    broken = json.dumps({"choices": [choice]}).encode()
    server.first = [broken]
    assert asking(server).rewrite(KEY) == "Rewritten: a cat"
    server.answer = lambda prompt: broken
    with pytest.raises(client.NotRewritten, match=r"the answer .* \(3 answers\)"):
        asking(server).rewrite(KEY)


@pytest.mark.parametrize("content", ["", None])
def test_a_model_that_refuses_is_heard(server: ChatServer, content: str | None) -> None:
    message = {"content": content, "refusal": "I do not write of cats."}
    answer = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    server.answer = lambda prompt: answer
    with pytest.raises(client.NotRewritten, match="the model refuses: I do not write of cats"):
        asking(server).rewrite(KEY)


def test_an_answer_that_never_ends_is_left(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_byte_at_a_time(data: bytes) -> Iterator[bytes]:
        for byte in data:
            time.sleep(0.05)
            yield bytes([byte])

    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.3)
    server.in_parts = a_byte_at_a_time
    start = time.monotonic()
    with pytest.raises(client.NotRewritten, match="timed out") as caught:
        asking(server).rewrite(KEY)
    assert caught.value.is_server
    assert time.monotonic() - start < 5, "it would take longer to the end"
    assert len(server.asked) == 2


def test_an_answer_that_is_too_large_is_not_read_to_its_end(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 2**20)
    server.answer = lambda prompt: b" " * (2**20 + 1)
    with pytest.raises(client.NotRewritten, match="more than 1 MiB"):
        asking(server).rewrite(KEY)


def test_a_busy_server_is_asked_after_the_time_that_it_names(server: ChatServer) -> None:
    server.first, server.headers = [429], {"Retry-After": "1"}
    start = time.monotonic()
    assert asking(server).rewrite(KEY) == "Rewritten: a cat"
    assert time.monotonic() - start >= 1


def test_a_server_that_says_nothing_is_left_after_a_time(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.2)
    server.answer = lambda prompt: 0.5
    with pytest.raises(client.NotRewritten, match="timed out") as caught:
        asking(server).rewrite(KEY)
    assert caught.value.is_server
    assert not caught.value.is_hopeless


@pytest.mark.parametrize(("status", "is_hopeless"), [(400, False), (401, True), (404, True)])
def test_a_refusal_is_not_repeated(server: ChatServer, status: int, is_hopeless: bool) -> None:
    server.answer = lambda prompt: status
    with pytest.raises(client.NotRewritten, match=f"the server answered {status}") as caught:
        asking(server).rewrite(KEY)
    assert caught.value.is_hopeless is is_hopeless
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer", ["A sign.", 'A sign "open".', 'A sign "OPEN', "\u201cOPEN\u201d!"]
)
def test_a_quoted_text_must_come_back_letter_by_letter(server: ChatServer, answer: str) -> None:
    server.answer = lambda prompt: answer
    with pytest.raises(client.NotRewritten, match="the answer lacks the quoted text"):
        asking(server).rewrite(SIGN)
    assert len(server.asked) == client.MAX_ANSWERS
    server.answer = lambda prompt: 'A sign glows: "OPEN", below it "24 h".'
    assert asking(server).rewrite(SIGN) == 'A sign glows: "OPEN", below it "24 h".'


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<think>\nA cat?\n</think>\n\nA cat.\n", "A cat."),
        ("They want a cat.\n</think>\n\nA cat.", "A cat."),
        ("<think>One.</think> No. <think>Two.</think>\nA cat.", "A cat."),
        ("Let me see: <think>A cat?</think>A cat.", "A cat."),
        ('"A cat sleeps."', "A cat sleeps."),
        ("“A cat sleeps.”", "A cat sleeps."),
        ('"A" and "B"', '"A" and "B"'),
    ],
)
def test_thoughts_and_quotation_marks_around_an_answer_are_no_part_of_it(
    answer: str, text: str
) -> None:
    assert client.checked("a cat", answer) == text


@pytest.mark.parametrize(
    "answer",
    [
        *("", "  \n", "<think>x</think>", "a" * 20_001, "a\0b"),
        *("<think>The answer must", "<think>x</think>A cat. <think>The answer"),
    ],
)
def test_an_answer_that_is_no_prompt_is_none(answer: str) -> None:
    with pytest.raises(ValueError, match=r"answer|NUL"):
        client.checked("a cat", answer)
