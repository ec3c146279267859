"""Whether and how an answer that broke off goes on, and the request that continues it.

Three ways. ``TOKENS``: a completion whose prompt is the token ids of the prompt and of the answer so far. ``MESSAGES``:
the chat once more with the text so far as its last message (``continue_final_message``), for answers that may yet call
a tool; it counts only if the other engine made the very same tokens of it. ``AGAIN``: the request itself, because the
client has seen nothing yet.

A token whose character is not whole yet has shown no text: such tokens are left to the other engine, because a prompt
that ends inside a character would bring its text out again (tokenizers' ``DecodeStream``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from detector.continuation.keeper import Keeper
from detector.continuation.parameters import Fate, fate_of, parameter_in_the_way
from detector.continuation.seam import Seam
from detector.observation import Route

MAX_DROPPED_TOKENS: Final = 4
"""Bytes of the longest UTF-8 character."""
TAIL_TOKENS: Final = 32
"""Of an answer whose text nobody needs, this many last tokens are turned into text, to see how it ends."""
DEFAULT_COMPLETION_TOKENS: Final = 16
"""vLLM's ``max_tokens`` of a completion that sets none."""
_REPLACEMENT: Final = "\ufffd"


class Way(StrEnum):
    """How an answer goes on."""

    TOKENS = "tokens"
    MESSAGES = "messages"
    AGAIN = "again"


REASONS: Final[dict[str, str]] = {
    "route": "only streamed chat and completions are continued",
    "parameter": "the request has a parameter that cannot be continued faithfully",
    "token_ids_missing": "the engine did not tell the answer's token ids",
    "too_long": "the answer outgrew continuation.max_kept_tokens",
    "reasoning": "the answer broke off while the model was reasoning, and the parser's state is not in the tokens",
    "tool_call": "the answer broke off in a tool call",
    "several_choices": "the stream holds several choices",
    "already_finished": "the answer had its finish_reason already",
    "text_differs": "the other engine makes another text of the tokens than the client got",
    "tokens_differ": "the other engine makes other tokens of the text than the first one had generated",
    "half_character": "the client saw tokens of a character, or of a call, that the other engine has to make again",
    "no_room": "the other engine does not say its context length, or it is full",
    "failed": "the continuation itself failed; a bug, please report it",
    "no_backend": "no other backend can take it",
    "budget": "the answer had been continued continuation.max_per_answer times",
}
"""Why an answer is not continued: the codes, and what they mean."""


class Refused(msgspec.Struct, frozen=True):
    """The answer is not continued."""

    reason: str
    """A key of ``REASONS``."""
    detail: str = ""

    @property
    def message(self) -> str:
        """One clause for the client."""
        return f"{REASONS[self.reason]} ({self.detail})" if self.detail else REASONS[self.reason]


def keeps_text(body: bytes) -> bool:
    """Whether the text of the answer to this request has to be kept. Cheap, and wrong only towards yes."""
    return b'"stop"' in body or b'"tools"' in body or b'"logprobs"' in body


def hand_over(route: Route, sent_body: bytes, keeper: Keeper) -> Handover | Refused:
    """How this answer may go on. ``sent_body`` is the request as the first engine got it."""
    if not keeper.passed_any:
        return Handover(Way.AGAIN, route, {}, sent_body, keeper)
    body = _decoded(sent_body)
    if route not in ("chat", "completions") or body is None:
        return Refused("route")
    in_the_way = parameter_in_the_way(body)
    if in_the_way is not None:
        return Refused("parameter", in_the_way)
    for reason, applies in (
        ("already_finished", keeper.finished),
        ("too_long", keeper.too_long),
        ("several_choices", keeper.several_choices),
        ("tool_call", keeper.in_tool_call),
        ("reasoning", keeper.in_reasoning),
        ("token_ids_missing", keeper.prompt_ids is None or keeper.ids_incomplete),
    ):
        if applies:
            return Refused(reason)
    tools = route == "chat" and body.get("tools") and body.get("tool_choice") != "none"
    if body.get("stop") and (body.get("min_tokens") or 0) > keeper.token_count:
        return Refused("parameter", "stop: not looked for before min_tokens")
    if not keeper.keeps_text and (tools or body.get("stop") or body.get("logprobs")):
        return Refused("parameter", "names spelt with escapes")
    handover = Handover(Way.MESSAGES if tools else Way.TOKENS, route, body, sent_body, keeper)
    try:
        handover.request_body()
    except (TypeError, ValueError, AttributeError, LookupError):
        return Refused("parameter", "a value of an unexpected type")
    return handover


class Handover:
    """One continuation in the making: what has to be asked of the other engine first, and then the request.

    Ask ``question`` until it is None and give ``learn`` the answers; tell ``learn_context_length`` if
    ``needs_context_length``; then ``request_body``.
    """

    def __init__(self, way: Way, route: Route, body: dict[str, Any], sent_body: bytes, keeper: Keeper) -> None:
        self.way = way
        self.route = route
        self.keeper = keeper
        self.seam: Seam | None = None
        self._body = body
        self._sent_body = sent_body
        self._answer_ids = _numbers(bytes(keeper.answer_ids)) if way is not Way.AGAIN else []
        if way is Way.MESSAGES:
            self._answer_ids = self._answer_ids[: keeper.text_ids]
        self._dropped = 0
        self._context_length: int | None = None
        self._settled = not self._answer_ids

    @property
    def kept_tokens(self) -> int:
        """Tokens of the first part that count: the continuation begins after them."""
        return len(self._answer_ids)

    @property
    def expected_prompt(self) -> list[int]:
        """The prompt that the other engine must report, where it makes the tokens itself."""
        return _numbers(self.keeper.prompt_ids or b"") + self._answer_ids

    @property
    def dresses_as_chat(self) -> bool:
        """The other engine's completion events have to become chat events."""
        return self.way is Way.TOKENS and self.route == "chat"

    @property
    def top_logprobs(self) -> int:
        """Alternatives per token that a chat asked for."""
        return int(self._body.get("top_logprobs") or 0)

    @property
    def usage_asked(self) -> bool:
        """The engine was asked for a usage chunk."""
        options = self._body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    # ---- what has to be asked first ----------------------------------------------------------------------------------

    @property
    def question(self) -> dict[str, Any] | None:
        """Body for the other engine's ``/detokenize``; None: nothing is open."""
        if self._settled:
            return None
        ids = self._answer_ids if self._stop() else self._answer_ids[-TAIL_TOKENS:]
        return {"model": self._body.get("model"), "tokens": ids}

    def learn(self, text: str) -> Refused | None:
        """The text of the tokens asked for. Refused, where it is not what the client got."""
        if text.endswith(_REPLACEMENT) and self._dropped < MAX_DROPPED_TOKENS and self._answer_ids:
            self._dropped += 1
            self._answer_ids.pop()
            self._settled = not self._answer_ids
            return None
        self._settled = True
        stop = self._stop()
        if not stop:
            last = self.keeper.text[-1] if self.way is Way.MESSAGES else _text_of(self.keeper.last_event)
            return None if text.endswith(last[-len(text) :]) else Refused("text_differs")
        sent = "".join(self.keeper.text)
        if sent.startswith(" ") and not text.startswith(" "):
            text = " " + text  # some tokenizers leave out the blank at the beginning
        if not text.startswith(sent):
            return Refused("text_differs")
        self.seam = Seam(text, len(sent), stop, include_stop=bool(self._body.get("include_stop_str_in_output")))
        return None

    @property
    def shows_tokens_twice(self) -> bool:
        """Tokens are left to the other engine that the client has seen by their ids or log-probabilities."""
        seen = not self.keeper.asked or bool(self._body.get("logprobs"))
        return seen and self.way is not Way.AGAIN and self.kept_tokens < self.keeper.token_count

    @property
    def needs_context_length(self) -> bool:
        """The request sets no limit, and a completion needs one."""
        return self.dresses_as_chat and self._limit() is None

    def learn_context_length(self, tokens: int | None) -> Refused | None:
        """``max_model_len`` of the other engine."""
        self._context_length = tokens
        used = self.keeper.prompt_count + self.kept_tokens
        return Refused("no_room") if tokens is None or tokens <= used else None

    # ---- the request -------------------------------------------------------------------------------------------------

    def path(self, target: bytes) -> bytes:
        """The request target of the continuation, from that of the first request."""
        return target.replace(b"/chat/completions", b"/completions", 1) if self.dresses_as_chat else target

    def request_body(self) -> bytes:
        """The request for the other engine."""
        if self.way is Way.AGAIN:
            return self._sent_body
        body = self._tokens_body() if self.way is Way.TOKENS else self._messages_body()
        if self._body.get("min_tokens"):
            body["min_tokens"] = max(0, int(self._body["min_tokens"]) - self.kept_tokens)
        body["return_token_ids"] = True
        return msgspec.json.encode(body)

    def _tokens_body(self) -> dict[str, Any]:
        body = {name: value for name, value in self._body.items() if fate_of(name) is Fate.KEPT}
        ids = b"".join(b",%d" % token for token in self._answer_ids)
        body["prompt"] = msgspec.Raw(b"[" + (self.keeper.prompt_ids or b"") + ids + b"]")
        limit = self._limit()
        if limit is not None:
            body["max_tokens"] = max(1, limit - self.kept_tokens)
        elif self._context_length is not None:
            body["max_tokens"] = self._context_length - self.keeper.prompt_count - self.kept_tokens
        if self._body.get("stop"):
            body["stop"] = self._body["stop"]
        if self.route == "completions" and self._body.get("logprobs") is not None:
            body["logprobs"] = self._body["logprobs"]
        elif self._body.get("logprobs"):
            body["logprobs"] = self._body.get("top_logprobs") or 0
        return body

    def _messages_body(self) -> dict[str, Any]:
        body = dict(self._body)
        text = "".join(self.keeper.text)
        if text:
            messages = list(body["messages"])
            if body.get("continue_final_message") and isinstance(messages[-1].get("content"), str):
                messages[-1] = {**messages[-1], "content": messages[-1]["content"] + text}
            else:
                messages.append({"role": "assistant", "content": text})
            body |= {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
        for name in ("max_completion_tokens", "max_tokens"):
            if body.get(name) is not None:
                body[name] = max(1, int(body[name]) - self.kept_tokens)
        return body

    def _limit(self) -> int | None:
        body = self._body
        if self.route == "completions":
            limit = body.get("max_tokens")
            return DEFAULT_COMPLETION_TOKENS if limit is None else int(limit)
        limit = body.get("max_completion_tokens")
        limit = body.get("max_tokens") if limit is None else limit
        return None if limit is None else int(limit)

    def _stop(self) -> list[str]:
        """Stop strings to look for across the cut. A chat that goes on as a chat is continued from the text that was
        sent, so that its engine sees them whole."""
        stop = (self._body.get("stop") or []) if self.way is Way.TOKENS else []
        return [one for one in ([stop] if isinstance(stop, str) else stop) if one]


def _decoded(body: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _numbers(ids: bytes) -> list[int]:
    return [int(token) for token in ids.split(b",") if token.strip()]


def _text_of(event: bytes) -> str:
    """Text of the first choice of an event."""
    begin = event.find(b"{")
    try:
        choice = msgspec.json.decode(event[begin:].rstrip())["choices"][0]
    except (msgspec.DecodeError, LookupError, TypeError):
        return ""
    text = choice.get("text") if "text" in choice else (choice.get("delta") or {}).get("content")
    return text if isinstance(text, str) else ""
