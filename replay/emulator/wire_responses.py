"""Bytes of ``/v1/responses``, streamed and whole: text answers only. Its events carry no token counts but the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .body import Body
from .engine import FinishReason
from .errors import ApiError, invalid_body, missing_field
from .job import Job, encode_json, timing_metrics
from .output import ChoiceOutput
from .text import stable_hash


def chat_body(body: Body) -> Body:
    """The chat request that asks for the same. Raises ApiError."""
    if "input" not in body:
        # vLLM has put its own request id into the body by then, and counts it.
        raise invalid_body("body.input", missing_field("input", body | {"request_id": None}))
    given = body["input"]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if body.get("instructions") and isinstance(messages, list):
        messages = [{"role": "system", "content": body["instructions"]}, *messages]
    shared = ("model", "stream", "temperature", "seed", "ignore_eos")
    asked = {key: body[key] for key in shared if key in body}
    return asked | {"messages": messages, "max_tokens": body.get("max_output_tokens")}


def _usage(job: Job, completion_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": job.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": job.cached_tokens,
            "cache_write_tokens": job.created_cache_tokens,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": job.prompt_tokens + completion_tokens,
    }


def _response(job: Job, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
    request = job.request
    body: dict[str, Any] = {
        "id": job.id,
        "created_at": job.created,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": None,
        "model": job.profile.model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": request.temperature,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": job.streams[0].request.max_tokens,
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
    }
    if usage is not None and job.profile.modern and job.profile.per_request_metrics:
        body["metrics"] = timing_metrics(job.streams[0].request, known=True) | {"speculative_decoding": None}
    return body | {
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def _message(job: Job, text: str | None) -> dict[str, Any]:
    """The one output item: finished with a text, or begun without."""
    parts = [] if text is None else [_part(text)]
    status = "in_progress" if text is None else "completed"
    message = {"id": _item_id(job), "content": parts, "role": "assistant", "status": status, "type": "message"}
    return message | {"phase": None}


def _item_id(job: Job) -> str:
    return f"msg_{stable_hash(job.id):016x}"


def _part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _final_status(finish_reason: FinishReason | None) -> str:
    return "incomplete" if finish_reason is FinishReason.LENGTH else "completed"


def response_body(job: Job, outputs: list[ChoiceOutput]) -> bytes:
    """The whole answer as one JSON object."""
    output = outputs[0]
    status = _final_status(output.finish_reason)
    return encode_json(_response(job, status, [_message(job, output.text)], _usage(job, len(output.tokens))))


class ResponsesStream:
    """Events of one streamed answer, numbered from 0."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._number = 0
        self._text = ""
        self._tokens = 0
        self._finish_reason: FinishReason | None = None

    def _event(self, kind: str, **fields: Any) -> bytes:
        """One event; its keys are in alphabetical order, as they happen to be in vLLM's."""
        body = dict(sorted({**fields, "sequence_number": self._number, "type": kind}.items()))
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode_json(body) + b"\n\n"

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, content_index=0, item_id=_item_id(self._job), output_index=0, **fields)

    def events(self, outputs: list[ChoiceOutput]) -> Iterator[bytes]:
        """Events for what the engine has: with the first, those that open the message."""
        if self._number == 0:
            begun = _response(self._job, "in_progress", [], None)
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
            yield self._event("response.output_item.added", item=_message(self._job, None), output_index=0)
            yield self._part_event("response.content_part.added", part=_part("", []))
        for output in outputs:
            self._text += output.text
            self._tokens += len(output.tokens)
            self._finish_reason = output.finish_reason
            yield self._part_event("response.output_text.delta", delta=output.text, logprobs=[])

    def tail(self) -> Iterator[bytes]:
        """Events that close the message and the response, which is called completed even if it is not."""
        message = _message(self._job, self._text)
        yield self._part_event("response.output_text.done", logprobs=[], text=self._text)
        yield self._part_event("response.content_part.done", part=_part(self._text))
        yield self._event("response.output_item.done", item=message, output_index=0)
        status = _final_status(self._finish_reason)
        final = _response(self._job, status, [message], _usage(self._job, self._tokens))
        yield self._event("response.completed", response=final)


def error_event(error: ApiError) -> bytes:
    """The event after which a failed stream simply ends."""
    return b"event: error\ndata: " + error.body + b"\n\n"
