"""OpenTelemetry GenAI spans as OTLP JSON: one ExportTraceServiceRequest a line, as file exporters write.

Names follow the semantic conventions for generative AI ("Development"); what they do not name is ``specbreaker.*``.
The turns of a conversation share a trace. Messages are written where the session holds text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from replay.conversations import predecessors, prompts_of
from replay.formats.base import Carries, Format, FormatError, body_of, line
from replay.genai import operation_of, response_attributes, span_name, speculation_attributes
from replay.recorded import Exchange, Recorded

_SAMPLING = ("temperature", "top_p", "top_k", "seed", "max_tokens", "frequency_penalty", "presence_penalty")
_CLIENT_SPAN = 3
ERROR = 2
"""The code of a span's status; others are left out."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One answer; times are seconds since 1970."""

    trace_id: str
    span_id: str
    name: str
    started_unix: float
    ended_unix: float
    attributes: dict[str, Any]
    error: str | None = None


def spans(recorded: Recorded, form: str) -> Iterator[Span]:
    """A span for each answer, in order of arrival. Raises FormatError where there is none."""
    exchanges = [exchange for exchange in recorded.exchanges if exchange.observation is not None]
    if not exchanges:
        raise FormatError(f"{form} needs answers, and the session holds none")
    turns = predecessors(exchanges, prompts_of(exchanges))
    conversations: list[str] = []
    for index, (exchange, before) in enumerate(zip(exchanges, turns, strict=True)):
        conversations.append(f"{index}/{exchange.request.request_id}" if before is None else conversations[before])
        yield _span(exchange, index, conversations[index])


def _write(recorded: Recorded) -> Iterator[bytes]:
    resource = {"attributes": _attributes({"service.name": "specbreaker"})}
    for span in spans(recorded, "otlp"):
        scope = {"scope": {"name": "specbreaker"}, "spans": [_encoded(span)]}
        yield line({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]})


def _encoded(span: Span) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _CLIENT_SPAN,
        "startTimeUnixNano": str(round(span.started_unix * 1e9)),
        "endTimeUnixNano": str(round(span.ended_unix * 1e9)),
        "attributes": _attributes(span.attributes),
    }
    if span.error is not None:
        encoded["status"] = {"code": ERROR, "message": span.error}
    return encoded


def _span(exchange: Exchange, index: int, conversation: str) -> Span:
    observation = exchange.observation
    assert observation is not None
    begin = observation.started_unix
    attributes = {"gen_ai.operation.name": operation_of(observation), "gen_ai.conversation.id": conversation}
    attributes |= _request(exchange) | response_attributes(observation) | speculation_attributes(observation)
    return Span(
        trace_id=hashlib.blake2b(conversation.encode(), digest_size=16).hexdigest(),
        span_id=hashlib.blake2b(f"{index}/{conversation}".encode(), digest_size=8).hexdigest(),
        name=span_name(observation),
        started_unix=begin,
        ended_unix=begin + observation.ended - observation.started,
        attributes={name: value for name, value in attributes.items() if value is not None},
        error=observation.ending.value if observation.ending.failed else None,
    )


def _request(exchange: Exchange) -> dict[str, Any]:
    facts, prompt, body = exchange.request.facts, exchange.request.prompt, body_of(exchange)
    parameters: Mapping[str, Any] = body if body is not None else prompt.parameters if prompt is not None else {}
    found = {f"gen_ai.request.{name}": parameters.get(name) for name in _SAMPLING}
    found |= {"gen_ai.request.model": facts.model, "gen_ai.request.stream": facts.stream}
    if body is not None:
        messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", body.get("input", ""))}]
        found["gen_ai.input.messages"] = msgspec.json.encode([_message(one) for one in messages]).decode()
        if body.get("tools"):
            found["gen_ai.tool.definitions"] = msgspec.json.encode(body["tools"]).decode()
    return found


def _message(message: Any) -> dict[str, Any]:
    """A message in the conventions' shape: a role and parts."""
    if not isinstance(message, dict):
        return {"role": "user", "parts": [{"type": "text", "content": str(message)}]}
    role, content = message.get("role", "user"), message.get("content")
    if role == "tool":
        parts: list[Any] = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
        return {"role": role, "parts": parts}
    parts = []
    if isinstance(content, str):
        parts.append({"type": "text", "content": content})
    elif isinstance(content, list):
        parts += [
            {"type": "text", "content": part["text"]} if isinstance(part, dict) and "text" in part else part
            for part in content
        ]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        named = {"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")}
        parts.append({"type": "tool_call", **named})
    return {"role": role, "parts": parts}


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64-bit integers are strings in protobuf's JSON
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}


FORMAT = Format(
    name="otlp",
    description="OpenTelemetry GenAI spans, OTLP JSON lines",
    carries=Carries(text=True, arrival=True, lengths=True, rates=True, acceptance=True),
    write=_write,
)
