"""Making the events of another engine those of the answer that it continues.

The client sees one answer: the ``id``, ``created`` and ``model`` of the first part, no second role, usage over both
parts, log-probabilities whose offsets go on, and one end mark. The ``metrics`` object and ``prompt_tokens_details`` of
the second part are left out, since they are about another prompt. ``system_fingerprint`` is the first part's where its
events had one, else that of the engine that ended the answer.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from detector.continuation.handover import Handover, Way
from detector.continuation.keeper import Failure, error_words
from detector.observation import Ending
from detector.tap.sse import EventFramer

MAX_EVENT_BYTES: Final = 1 << 24
DONE: Final = b"data: [DONE]\n\n"
_NOT_THE_SAME: Final = "the other engine makes other tokens of the text than the first one had generated"


class Stitcher:
    """A streaming filter over the payload of the second engine; has the same face as a Keeper.

    It goes on filling the Keeper, so that the answer can be handed over once more. ``whole`` becomes true where a stop
    string across the cut ends the answer: the second engine is to be hung up on.
    """

    def __init__(self, handover: Handover, *, client_wants_ids: bool) -> None:
        self.failure: Failure | None = None
        self.finished = False
        self.done = False
        self.whole = False
        self.measured_unfiltered = True
        self._handover = handover
        self._keeper = handover.keeper
        self._client_wants_ids = client_wants_ids
        self._framer = EventFramer(MAX_EVENT_BYTES)
        first = msgspec.json.decode(self._keeper.first_event)
        self._identity = {name: first[name] for name in ("id", "object", "created", "model") if name in first}
        self._fingerprint = first.get("system_fingerprint")
        self._offset = self._keeper.logprob_end
        self._prompt_tokens = self._keeper.prompt_count
        self._kept_tokens = handover.kept_tokens
        self._keeper.resume(handover.kept_tokens)

    def feed(self, payload: bytes) -> bytes:
        """What the client gets for it."""
        return b"".join(self._event(data) for data in self._framer.feed(payload))

    def end(self) -> bytes:
        """The engine ended its answer."""
        out = b"".join(self._event(data) for data in self._framer.end())
        if not self.finished and not self.done and self.failure is None:
            self._fail("no_finish_reason", Ending.UPSTREAM_CLOSED, "the engine ended the answer without finishing it")
        return out

    def _event(self, data: bytes) -> bytes:
        if self.failure is not None or self.whole:
            return b""
        if data.strip() == b"[DONE]":
            self.done = True
            if not self.finished:
                message = "the engine ended the answer without finishing it"
                self._fail("no_finish_reason", Ending.UPSTREAM_CLOSED, message)
                return b""
            return DONE
        try:
            event = msgspec.json.decode(data)
            return self._decoded(event)
        except (msgspec.DecodeError, LookupError, TypeError, AttributeError, ValueError):
            self._fail("error", Ending.UPSTREAM_INVALID, "the engine sent an event that is not one of a completion")
            return b""

    def _decoded(self, event: dict[str, Any]) -> bytes:
        if event.get("error") is not None:
            self._fail("error", Ending.ENGINE_ERROR, error_words(event["error"]))
            return b""
        if not event["choices"]:
            return self._usage_chunk(event)
        choice = event["choices"][0]
        if choice.get("finish_reason") in ("abort", "error"):
            self._fail("abort", Ending.ENGINE_ABORT, "the engine aborted the answer")
            return b""
        if self._handover.way is Way.MESSAGES:
            return self._of_chat(event, choice)
        return self._of_completion(event, choice)

    def _fail(self, what: Any, ending: Ending, message: str) -> None:
        if self.failure is None:
            self.failure = Failure(what, ending, message)

    # ---- a chat that goes on as a chat -------------------------------------------------------------------------------

    def _of_chat(self, event: dict[str, Any], choice: dict[str, Any]) -> bytes:
        delta = choice["delta"]
        if delta.get("role") is not None:
            if event.get("prompt_token_ids") != self._handover.expected_prompt:
                self._fail("tokens_differ", Ending.COMPLETE, _NOT_THE_SAME)
            return b""
        ids = choice.get("token_ids")
        self._keeper.extend(ids, delta.get("content") or "", delta)
        if choice.get("finish_reason") is not None:
            self.finished = True
        elif not delta and not self._client_wants_ids and choice.get("logprobs") is None:
            return b""
        if "token_ids" in choice and not self._client_wants_ids:
            choice["token_ids"] = None
        return self._written(event)

    # ---- a completion, as one or as a chat ---------------------------------------------------------------------------

    def _of_completion(self, event: dict[str, Any], choice: dict[str, Any]) -> bytes:
        ids, text = choice.get("token_ids"), choice["text"]
        finished = choice.get("finish_reason") is not None
        if self._handover.seam is not None:
            text, stopped = self._handover.seam.feed(text, finished=finished)
            if stopped is not None:
                choice |= {"finish_reason": "stop", "stop_reason": stopped}
                finished = self.whole = True
        choice["text"] = text
        self.finished = self.finished or finished
        self._keeper.extend(ids, text, None)
        if isinstance(logprobs := choice.get("logprobs"), dict):
            self._shift(logprobs)
        if not self._client_wants_ids:
            choice["token_ids"] = None
        choice["prompt_token_ids"] = None
        if self._handover.dresses_as_chat:
            event["choices"] = [_chat_choice(choice, self._handover.top_logprobs)]
        out = self._written(event)
        return out + self._end_of_whole() if self.whole else out

    def _shift(self, logprobs: dict[str, Any]) -> None:
        offsets = logprobs.get("text_offset")
        if offsets:
            logprobs["text_offset"] = [offset + self._offset for offset in offsets]
            self._keeper.logprob_end = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])

    def _end_of_whole(self) -> bytes:
        """What follows where the second engine is not asked any more."""
        self.done = True
        if not self._handover.usage_asked:
            return DONE
        usage = self._usage({"completion_tokens": self._keeper.token_count - self._kept_tokens})
        event = {**self._identity, "choices": [], "usage": usage}
        return b"data: " + msgspec.json.encode(event) + b"\n\n" + DONE

    # ---- what all events have ----------------------------------------------------------------------------------------

    def _usage_chunk(self, event: dict[str, Any]) -> bytes:
        event.pop("metrics", None)
        return self._written(event)

    def _written(self, event: dict[str, Any]) -> bytes:
        event |= self._identity
        if isinstance(usage := event.get("usage"), dict):
            event["usage"] = self._usage(usage)
        if self._fingerprint is not None:
            event["system_fingerprint"] = self._fingerprint
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    def _usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The counts of both parts together."""
        tokens = self._kept_tokens + usage["completion_tokens"]
        usage.pop("prompt_tokens_details", None)
        counts = {"prompt_tokens": self._prompt_tokens, "total_tokens": self._prompt_tokens + tokens}
        return {**counts, "completion_tokens": tokens, **{key: usage[key] for key in usage if key not in _COUNTS}}


_COUNTS: Final = ("prompt_tokens", "total_tokens", "completion_tokens")


def _chat_choice(choice: dict[str, Any], top_logprobs: int) -> dict[str, Any]:
    """The choice of a completion event as that of a chat event, in vLLM's order."""
    made = {
        "index": 0,
        "delta": {"content": choice["text"]},
        "logprobs": _chat_logprobs(choice.get("logprobs"), top_logprobs),
        "finish_reason": choice.get("finish_reason"),
    }
    if made["finish_reason"] is not None:
        made["stop_reason"] = choice.get("stop_reason")
    return made | {"token_ids": choice.get("token_ids")}


def _chat_logprobs(logprobs: Any, top: int) -> dict[str, Any] | None:
    """Log-probabilities of a completion in the form of a chat."""
    if not isinstance(logprobs, dict):
        return None
    content = []
    ranked = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    for token, logprob, others in zip(logprobs["tokens"], logprobs["token_logprobs"], ranked, strict=True):
        shown = [_chat_logprob(*other) for other in list((others or {}).items())[:top]]
        content.append(_chat_logprob(token, logprob) | {"top_logprobs": shown})
    return {"content": content}


def _chat_logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
