"""One request to an OpenAI-style server: what is sent, and what counts as an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hv15_batch.clip import Clip, glyph_texts
from hv15_batch.config.rewriting import KEY_VARIABLE, URL_VARIABLE, RewriteConfig
from hv15_batch.files import parse_json
from hv15_batch.manifest.cells import is_empty, parse_text
from hv15_batch.redaction import redacted, secret_values
from hv15_batch.rewrite.asked import Key, Rewriting
from hv15_batch.units import MIB, shortened

TIMEOUT_SECONDS = 120.0
"""For the beginning of an answer, and then for the rest; a large model on a CPU takes a minute."""
MAX_ANSWER_BYTES = 16 * MIB
"""Of an answer with all that a server adds, such as a model's thoughts."""
MAX_RETRIES = 4
"""After 408, 409, 429, 5xx, a broken connection or a time-out, each time after a longer wait."""
MAX_ANSWERS = 3
"""Answers that are taken before a prompt counts as failed for what they hold."""
MAX_CHARACTERS = 20_000
"""Of an answer. The encoder reads a thousand tokens."""
MAX_REASON_CHARACTERS = 300
_HOPELESS = (401, 403, 404, 405)
"""Status codes that each further request would get too: a wrong key, address or model."""
_BROKEN_OFF = {
    "length": "is cut off: raise the server's limit of tokens",
    "content_filter": "was held back by the server's content filter",
    "abort": "was broken off by the server",
    "error": "was broken off by the server",
    "tool_calls": "calls a tool in place of a text",
    "function_call": "calls a tool in place of a text",
}
"""What it means that a server ended an answer for such a reason: what there is of it is no text."""
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
"""Around the thoughts of a model. Servers that begin an answer with the first leave it out."""
PIP = "pip install 'hv15_batch[rewrite]'"


class NotRewritten(Exception):
    """A prompt could not be rewritten; the message is for the user."""

    def __init__(self, reason: str, *, is_hopeless: bool = False, is_server: bool = False) -> None:
        """Take the reason.

        Args:
            reason: Why.
            is_hopeless: No other prompt would fare better.
            is_server: The server did not answer, or with an error.
        """
        super().__init__(shortened(redacted(reason), MAX_REASON_CHARACTERS))
        self.is_hopeless, self.is_server = is_hopeless, is_server


def missing_fault(config: RewriteConfig, clips: Iterable[Clip]) -> str | None:
    """Return what a run lacks to rewrite the prompts of clips, or None.

    Raises:
        Refused: The address of the environment is none.
    """
    if not any(clip.is_pending for clip in clips):
        return None
    if find_spec("openai") is None:
        return f"rewriting prompts needs the client openai; install it with: {PIP}"
    if config.address(os.environ) is None:
        return (
            f"rewrite.model={config.model}: no server is named; type rewrite.base_url=http://... "
            f"or set {URL_VARIABLE}."
        )
    return None


class Client:
    """Asks one server; used by several threads."""

    def __init__(self, config: RewriteConfig, rewriting: Rewriting) -> None:
        """Make the client; nothing is sent yet."""
        import openai  # takes a second

        self._errors = openai
        self._rewriting = rewriting
        self._client = openai.OpenAI(
            api_key=os.environ.get(KEY_VARIABLE) or "none",  # a server of one's own asks for none
            base_url=config.address(os.environ),
            timeout=TIMEOUT_SECONDS,
            max_retries=MAX_RETRIES,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [_bounding(openai)]}),
        )

    def rewrite(self, key: Key) -> str:
        """Return the rewritten prompt.

        Raises:
            NotRewritten: The server did not answer, or with nothing that can be used.
        """
        for number in range(MAX_ANSWERS):
            try:
                return checked(key.prompt_original, self._answer(key))
            except ValueError as error:
                if number == MAX_ANSWERS - 1:
                    raise NotRewritten(f"{error} ({MAX_ANSWERS} answers)") from None
        raise AssertionError

    def close(self) -> None:
        """End requests that are under way."""
        self._client.close()

    def _answer(self, key: Key) -> str:
        """Return the text of an answer.

        Raises:
            NotRewritten: There is none.
            ValueError: It is cut off, or not of the form that such servers answer in.
        """
        messages: Any = [
            {"role": "system", "content": self._rewriting.template_of(key)},
            {"role": "user", "content": key.prompt_original},
        ]
        try:
            answer = self._client.chat.completions.with_raw_response.create(
                model=key.rewrite_model, messages=messages
            )
            content = answer.content
        except self._errors.APIStatusError as error:
            code = error.status_code
            hint = f"; the key comes from {KEY_VARIABLE}" if code in (401, 403) else ""
            reason = f"the server answered {code}: {error.message}{hint}"
            is_hopeless = code in _HOPELESS
            raise NotRewritten(reason, is_hopeless=is_hopeless, is_server=True) from None
        except self._errors.OpenAIError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise NotRewritten(f"{error}{cause}", is_server=True) from None
        try:
            choice = parse_json(content)["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text, refusal = message["content"], message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError("the answer is no chat completion in JSON") from None
        if isinstance(reason, str) and reason in _BROKEN_OFF:
            raise ValueError(f"the answer {_BROKEN_OFF[reason]}")
        if isinstance(refusal, str) and refusal:
            raise ValueError(f"the model refuses: {shortened(refusal, 100)}")
        if not isinstance(text, str):
            raise ValueError("the answer has no text")
        return text


def _bounding(openai: Any) -> Callable[[Any], None]:
    """Return what lets the reading of an answer end: a server may send for ever, or very slowly.

    The client treats an answer that ends so like a broken connection, and asks again.
    """
    # openai 2 stands on httpx and openai 3 on httpx2, which have these names in common.
    http: Any = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])

    class Bounded(http.SyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            end, size = time.monotonic() + TIMEOUT_SECONDS, 0
            for part in self._stream:
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise http.RemoteProtocolError(
                        f"the answer has more than {MAX_ANSWER_BYTES // MIB} MiB"
                    )
                if time.monotonic() > end:
                    raise http.ReadTimeout(f"the answer took more than {TIMEOUT_SECONDS:g} s")
                yield part

        def close(self) -> None:
            self._stream.close()

    def bound(response: Any) -> None:
        response.stream = Bounded(response.stream)

    return bound


def checked(original: str, answer: str) -> str:
    """Return an answer as a prompt: without thoughts before it and quotation marks around it.

    Raises:
        ValueError: It is empty or too long, ends in a thought, or lacks a quoted text of the
            original.
    """
    text = answer.rpartition(_THOUGHT_END)[2].strip()
    if _THOUGHT in text:
        raise ValueError(f"the answer has {_THOUGHT} and no {_THOUGHT_END} after it")
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”")):
        inside = text[1:-1]
        if glyph_texts(text) == [inside] and inside not in glyph_texts(original):
            text = inside.strip()  # else all of it would be lettering
    if is_empty(text):
        raise ValueError("the answer is empty")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the answer has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    parse_text(text)
    kept = glyph_texts(text)
    for quoted in glyph_texts(original):
        if quoted not in kept:
            raise ValueError(f"the answer lacks the quoted text {shortened(quoted, 60)!r}")
    if any(value in text for value in secret_values()):
        raise ValueError("the answer holds a secret of the environment")
    return text
