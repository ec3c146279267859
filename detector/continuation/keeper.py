"""Reading the first engine's events on their way to the client, and keeping what a continuation needs.

The proxy asks for ``return_token_ids``. What comes back for it is taken out again: vLLM writes ``null`` where nobody
asked, so the value becomes ``null``, and an event that is there for its token ids alone is left out. Everything else
passes byte for byte, whole event by whole event: what is held when the engine dies was never seen by the client, so
every cut is between two events.

An event that says that the engine gave up (an error, ``finish_reason: "abort"``, an end mark without a
``finish_reason``) is not passed on: it becomes ``failure``, and whoever drives the keeper decides what the client gets.

Formats: ``return_token_ids`` as vLLM 0.20 to 0.33 answer it, in chat and completions.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from detector.observation import Ending
from detector.tap.sse import EVENT_END, OVERLAP_BYTES, event_data

MAX_EVENT_BYTES: Final = 1 << 24
"""A longer event ends the keeping: it passes as it is. (The first event lists the prompt: seven bytes a token.)"""

_TOKEN_IDS: Final = re.compile(rb'"token_ids"\s*:\s*\[([0-9,\s]*)\]')
_OPENS_TOKEN_IDS: Final = b'"token_ids":['
_PROMPT_TOKEN_IDS: Final = re.compile(rb'"prompt_token_ids"\s*:\s*\[([0-9,\s]*)\]')
_RUNNING: Final = b'"finish_reason":null'
_FIRST_CHOICE: Final = b'"choices":[{"index":0,'
_CHAT_TEXT: Final = b'"delta":{"content":"'
_EMPTY_DELTA: Final = b'"delta":{}'
_COMPLETION_TEXT: Final = b'"text":"'
_ANY: Final = msgspec.json.Decoder()

GaveUp = Literal["error", "abort", "no_finish_reason", "tokens_differ"]


class Failure(msgspec.Struct, frozen=True):
    """The engine gave up, and said so inside the stream or not at all."""

    what: GaveUp
    ending: Ending
    message: str
    """For the client: the engine's own words where it had any."""


class _ChatDelta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _ChatDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class Keeper:
    """A streaming filter over the payload of one answer, and what is known of the answer so far.

    Parameters:
        asked: the proxy asked for token ids, and the client did not.
        keep_text: keep the text too, for stop strings, log-probabilities and tools.
        max_tokens: of prompt and answer together; beyond it nothing is kept and the answer cannot be continued. A token
            takes about six bytes, a character of text one to four.
        measured_unfiltered: the measurement is to see the token ids, and so count the tokens of each event.
    """

    __slots__ = (
        "_max_tokens",
        "_pending",
        "_swallowing",
        "answer_ids",
        "asked",
        "done",
        "failure",
        "finished",
        "first_event",
        "ids_incomplete",
        "in_reasoning",
        "in_tool_call",
        "keeps_text",
        "last_event",
        "logprob_end",
        "measured_unfiltered",
        "passed_any",
        "prompt_count",
        "prompt_ids",
        "several_choices",
        "text",
        "text_ids",
        "token_count",
        "too_long",
        "whole",
    )

    def __init__(self, *, asked: bool, keep_text: bool, max_tokens: int, measured_unfiltered: bool = False) -> None:
        self.measured_unfiltered = measured_unfiltered
        self.asked = asked
        self.keeps_text = keep_text
        self._max_tokens = max_tokens
        self._pending = bytearray()
        self._swallowing = False
        self.prompt_ids: bytes | None = None
        """The prompt's token ids as JSON wrote them, without brackets."""
        self.prompt_count = 0
        self.answer_ids = bytearray()
        """The same for the answer so far, each with a comma before it."""
        self.token_count = 0
        """Tokens in ``answer_ids``."""
        self.text_ids = 0
        """Tokens up to the last event with text; only with ``keep_text``."""
        self.text: list[str] = []
        """The text that the client got, piece by piece; only with ``keep_text``."""
        self.logprob_end = 0
        """Characters of the tokens whose log-probabilities the client got: the next ``text_offset``."""
        self.first_event = b""
        """Data of the first event with a choice: id, created, model."""
        self.last_event = b""
        """The last whole event with tokens."""
        self.passed_any = False
        """Some event went to the client."""
        self.in_reasoning = False
        self.in_tool_call = False
        self.several_choices = False
        self.ids_incomplete = False
        """Tokens came without their ids."""
        self.too_long = False
        """Nothing is kept any more."""
        self.finished = False
        """The engine said why the answer ended."""
        self.done = False
        """The end mark has passed."""
        self.failure: Failure | None = None
        self.whole = False
        """Never here: the answer ends where the engine ends it."""

    # ---- the stream --------------------------------------------------------------------------------------------------

    def feed(self, payload: bytes) -> bytes:
        """What of it may go to the client; nothing more once there is a ``failure``."""
        if self._swallowing:
            return payload
        if not self._pending and payload.startswith(b"data: ") and payload.find(b"\n\n") == len(payload) - 2:
            return self._event(payload)
        out: list[bytes] = []
        scan_from = max(0, len(self._pending) - OVERLAP_BYTES)
        self._pending += payload
        begin = 0
        while (found := EVENT_END.search(self._pending, scan_from)) is not None:
            out.append(self._event(bytes(self._pending[begin : found.end()])))
            begin = scan_from = found.end()
        del self._pending[:begin]
        if len(self._pending) > MAX_EVENT_BYTES and self.failure is None:
            self._give_up()
            self._swallowing = True
            out.append(bytes(self._pending))
            self._pending.clear()
        return b"".join(out)

    def end(self) -> bytes:
        """The engine ended the answer: what was held. An answer without a ``finish_reason`` becomes a ``failure``."""
        rest = bytes(self._pending)
        self._pending.clear()
        if not self.finished and not self.done and not self._swallowing:
            self._fail("no_finish_reason", Ending.UPSTREAM_CLOSED, "the engine ended the answer without finishing it")
        return rest if self.failure is None else b""

    def _event(self, block: bytes) -> bytes:
        if self.failure is not None:
            return b""
        place = block.rfind(_OPENS_TOKEN_IDS)
        ids = _TOKEN_IDS.match(block, place) if place >= 0 else _TOKEN_IDS.search(block)
        if ids is None or _RUNNING not in block or not self.first_event:
            return self._unusual(block, ids)
        plain = _FIRST_CHOICE in block and (_CHAT_TEXT in block or _COMPLETION_TEXT in block)
        if self.keeps_text or self.in_reasoning or not plain:
            return self._looked_into(block, ids)
        self._keep(block, ids[1])
        return self._without_ids(block, ids)

    def _keep(self, block: bytes, ids: bytes) -> None:
        if self.too_long:
            return
        self.last_event = block
        if ids:
            self.answer_ids += b"," + ids
            self.token_count += ids.count(b",") + 1
            if self.token_count > self._max_tokens:
                self._give_up()

    def _without_ids(self, block: bytes, ids: re.Match[bytes]) -> bytes:
        if not self.asked:
            return block
        return block[: ids.start(1) - 1] + b"null" + block[ids.end(1) + 1 :]

    def _give_up(self) -> None:
        self.too_long = True
        self.answer_ids.clear()
        self.text.clear()
        self.prompt_ids = None
        self.last_event = b""

    def _fail(self, what: GaveUp, ending: Ending, message: str) -> None:
        if self.failure is None:
            self.failure = Failure(what, ending, message)

    # ---- another engine goes on --------------------------------------------------------------------------------------

    def resume(self, kept_tokens: int) -> None:
        """The answer goes on after its first ``kept_tokens`` tokens."""
        self.failure = None
        self._pending.clear()
        kept = bytes(self.answer_ids).split(b",")[1 : kept_tokens + 1]
        self.answer_ids = bytearray(b"".join(b"," + token for token in kept))
        self.token_count = len(kept)

    def extend(self, ids: list[int] | None, text: str, delta: dict[str, Any] | None) -> None:
        """Tokens of the other engine, and what the client got for them."""
        if ids is None:
            self.ids_incomplete = self.ids_incomplete or bool(text)
        elif not self.too_long:
            self.answer_ids += b"".join(b",%d" % token for token in ids)
            self.token_count += len(ids)
        self.last_event = msgspec.json.encode({"choices": [{"text": text}]})
        if delta is not None and (delta.get("tool_calls") or delta.get("function_call")):
            self.in_tool_call = True
        if self.keeps_text and text and not self.too_long:
            self.text.append(text)
            self.text_ids = self.token_count
        if self.token_count > self._max_tokens:
            self._give_up()

    # ---- events that are not the next tokens of a plain text ---------------------------------------------------------

    def _unusual(self, block: bytes, ids: re.Match[bytes] | None) -> bytes:
        data = event_data(block)
        if data is None:
            return block  # a comment
        if data.strip() == b"[DONE]":
            self.done = True
            if not self.finished and self.prompt_ids is not None:  # vLLM, which always gives a finish_reason
                message = "the engine ended the answer without finishing it"
                self._fail("no_finish_reason", Ending.UPSTREAM_CLOSED, message)
                return b""
            return block
        chunk = _decode(data)
        if chunk is None:
            return self._passed(block)
        if chunk.error is not None:
            self._fail("error", Ending.ENGINE_ERROR, error_words(chunk.error))
            return b""
        if not chunk.choices:
            return self._passed(block)
        if any(choice.finish_reason in ("abort", "error") for choice in chunk.choices):
            self._fail("abort", Ending.ENGINE_ABORT, "the engine aborted the answer")
            return b""
        if not self.first_event:
            block = self._begin(block)
            ids = _TOKEN_IDS.search(block)
        return self._looked_into(block, ids, chunk)

    def _begin(self, block: bytes) -> bytes:
        """The first event with a choice: remember the prompt's ids, and take them out."""
        prompt = _PROMPT_TOKEN_IDS.search(block)
        shown = block
        if prompt is not None:
            self.prompt_ids = prompt[1]
            self.prompt_count = prompt[1].count(b",") + 1
            self._max_tokens -= self.prompt_count
            if self._max_tokens < 0:
                self._give_up()
            shown = block[: prompt.start(1) - 1] + b"null" + block[prompt.end(1) + 1 :]
        self.first_event = event_data(shown) or b"{}"
        return shown if self.asked else block

    def _looked_into(self, block: bytes, ids: re.Match[bytes] | None, chunk: _Chunk | None = None) -> bytes:
        """An event with choices, decoded."""
        chunk = chunk or _decode(event_data(block) or b"")
        if chunk is None or not chunk.choices:
            return self._passed(block)
        choice = chunk.choices[0]
        if len(chunk.choices) > 1 or choice.index != 0:
            self.several_choices = True
        self._note(choice)
        if ids is not None:
            self._keep(block, ids[1])
        elif _carries_text(choice):
            self.ids_incomplete = True
        if self.keeps_text and not self.too_long:
            self._note_text(choice)
        if choice.finish_reason is not None:
            self.finished = True
        if ids is None:
            return self._passed(block)
        if self.asked and _EMPTY_DELTA in block and choice.finish_reason is None and choice.logprobs is None:
            return b""  # without the question there would have been no such event
        return self._passed(self._without_ids(block, ids))

    def _note(self, choice: _Choice) -> None:
        delta = choice.delta
        if delta is None:
            return
        if delta.content:
            self.in_reasoning = False
        if delta.reasoning or delta.reasoning_content:
            self.in_reasoning = True
        if delta.tool_calls or delta.function_call is not None or delta.refusal:
            self.in_tool_call = True

    def _note_text(self, choice: _Choice) -> None:
        text = choice.text if choice.delta is None else choice.delta.content
        if text:
            self.text.append(text)
            self.text_ids = self.token_count
        logprobs = choice.logprobs
        if isinstance(logprobs, dict) and logprobs.get("text_offset") and logprobs.get("tokens"):
            self.logprob_end = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])

    def _passed(self, block: bytes) -> bytes:
        self.passed_any = True
        return block


def _decode(data: bytes) -> _Chunk | None:
    try:
        return _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _carries_text(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


def error_words(error: Any) -> str:
    """What an engine says of its error."""
    message = error.get("message") if isinstance(error, dict) else error
    return f"the engine failed: {message}"[:400] if isinstance(message, str) else "the engine failed"
