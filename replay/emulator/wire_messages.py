"""Bytes of ``/v1/messages``, streamed and whole: text answers only, usage in the first and the last event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .body import Body
from .engine import FinishReason
from .errors import ApiError, invalid_body, missing_field
from .job import Job, encode_json
from .output import ChoiceOutput
from .request import GenerationRequest


def chat_body(body: Body) -> Body:
    """The chat request that asks for the same. Raises ApiError."""
    for field in ("messages", "max_tokens"):
        if field not in body:
            raise invalid_body(f"body.{field}", missing_field(field, body))
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    shared = ("model", "stream", "temperature", "max_tokens")
    asked = {key: body[key] for key in shared if key in body}
    return asked | {"messages": [*system, *body["messages"]], "stop": body.get("stop_sequences")}


def counted(request: GenerationRequest) -> bytes:
    """How long the prompt is, as ``count_tokens`` tells."""
    tokens = sum(map(len, request.prompts))
    return encode_json({"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})


def _usage(job: Job, completion_tokens: int) -> dict[str, int]:
    """Counts at the end. With --enable-prompt-tokens-details, what was cached does not count as input."""
    if not job.profile.prompt_tokens_details:
        return {"input_tokens": job.prompt_tokens, "output_tokens": completion_tokens}
    return {
        "input_tokens": job.prompt_tokens - job.cached_tokens - job.created_cache_tokens,
        "output_tokens": completion_tokens,
        "cache_creation_input_tokens": job.created_cache_tokens,
        "cache_read_input_tokens": job.cached_tokens,
    }


def _stop(output: ChoiceOutput) -> dict[str, Any]:
    """How the answer ended, in Anthropic's words; None for an abort, which they have no word for."""
    if output.finish_reason is FinishReason.LENGTH:
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if output.finish_reason is not FinishReason.STOP:
        return {"stop_reason": None, "stop_sequence": None}
    if isinstance(output.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": output.stop_reason}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def message_response(job: Job, outputs: list[ChoiceOutput]) -> bytes:
    """The whole answer as one JSON object, without the fields that are null."""
    output = outputs[0]
    body = {
        "id": job.id,
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": output.text}],
        "model": job.profile.model,
        **_stop(output),
        "usage": _usage(job, len(output.tokens)),
    }
    return encode_json({key: value for key, value in body.items() if value is not None})


class MessagesStream:
    """Events of one streamed answer."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = False
        self._tokens = 0
        self._last: ChoiceOutput | None = None

    @staticmethod
    def _event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + encode_json({"type": kind, **fields}) + b"\n\n"

    def events(self, outputs: list[ChoiceOutput]) -> Iterator[bytes]:
        """Events for what the engine has: with the first, those that open the message."""
        if not self._began:
            self._began = True
            message: dict[str, Any] = {
                "id": self._job.id,
                "type": "message",
                "role": "assistant",
                "content": [],
                "model": self._job.profile.model,
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": self._job.prompt_tokens, "output_tokens": 0},
            }
            yield self._event("message_start", message=message)
            yield self._event("content_block_start", content_block={"type": "text", "text": ""}, index=0)
        for output in outputs:
            self._tokens += len(output.tokens)
            self._last = output
            if output.text:
                delta = {"type": "text_delta", "text": output.text}
                yield self._event("content_block_delta", delta=delta, index=0)

    def tail(self) -> Iterator[bytes]:
        """Events that close the message."""
        if self._last is not None:
            yield self._event("content_block_stop", index=0)
            yield self._event("message_delta", delta=_stop(self._last), usage=_usage(self._job, self._tokens))
        yield self._event("message_stop")


def error_body(error: ApiError) -> bytes:
    """An error as Anthropic's clients expect it."""
    return encode_json({"type": "error", "error": {"type": error.kind, "message": str(error)}})


def error_event(error: ApiError) -> bytes:
    """The event after which a failed stream ends."""
    return b"event: error\ndata: " + error_body(error) + b"\n\n"
