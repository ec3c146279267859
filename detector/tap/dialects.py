"""What one event of a stream, or one whole JSON body, says, in the dialects of the engines.

Read are: OpenAI chat and completions as vLLM, llama.cpp, SGLang and OpenAI send them, vLLM's
``/inference/v1/generate``, SGLang's ``/generate``, the Responses API and Anthropic's messages. Unknown members are
ignored; a member of a wrong type counts as absent and the rest is read. Nothing that an engine may send raises.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from detector.observation import SpeculationCounts
from detector.tap.engine_figures import (
    MAX_COUNT,
    EngineFigures,
    count,
    from_llama_cpp,
    from_sglang,
    from_usage,
    from_vllm,
    members,
)

Kind = Literal["content", "role", "usage", "error", "done", "other"]

_TEXTS: Final = ("content", "reasoning", "reasoning_content", "refusal")
_CALLS: Final = ("tool_calls", "function_call")


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event, in the same words for every dialect."""

    kind: Kind
    """``content``: carries the outcome of an engine step, even one whose text is withheld. ``role``: opens an answer
    without a token. ``usage``: only counts. ``done``: the engine's own end mark."""
    plain: bool = False
    """Text of choice 0 and at most counts of tokens: no other field is set."""
    choices: tuple[int, ...] = (0,)
    """Index of each choice that the event speaks of."""
    completion_tokens: int | None = None
    """Tokens of the answer up to and including this event."""
    token_ids: int | None = None
    """Tokens of this event alone, where it lists their ids."""
    parsed: bool = False
    """Reasoning or a tool call: a parser of the engine is at work, which may swallow steps."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    speculation: SpeculationCounts | None = None
    speculation_trimmed: bool = False
    """The accepted tokens in ``speculation`` were derived, so what the last step lost is missing."""
    generation_seconds: float | None = None
    """From the first token to the last, on the engine's clock."""


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct, gc=False):
    completion_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)] | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: dict[str, Any] | None = None
    error: Any = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_ANY: Final = msgspec.json.Decoder()
_DONE: Final = Event(kind="done", choices=())
_OTHER: Final = Event(kind="other", choices=())
_ERROR: Final = Event(kind="error", choices=())
TEXT: Final = Event(kind="content", plain=True)
"""Text of choice 0 and nothing else: by far the most frequent event, always this one object."""
PARSED_TEXT: Final = Event(kind="content", plain=True, parsed=True)


def read_event(data: bytes) -> Event:
    """The data of one server-sent event."""
    try:
        chunk = _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _DONE if data.strip() == b"[DONE]" else read_body(data)
    if len(chunk.choices) == 1 and chunk.timings is None and chunk.error is None:
        event = _plain_text(chunk.choices[0], chunk.usage)
        if event is not None:
            return event
    return read_body(data)


def read_body(data: bytes) -> Event:
    """A whole JSON body, or an event that is not plain text."""
    try:
        value = _ANY.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _OTHER
    if isinstance(value, list) and value:
        value = value[0]
    return _read(value) if isinstance(value, dict) else _OTHER


def _plain_text(choice: _Choice, usage: _Usage | None) -> Event | None:
    """The event of nearly every step; None where the whole event has to be looked at."""
    delta, ids = choice.delta, choice.token_ids
    if choice.finish_reason is not None or choice.index != 0:
        return None
    if delta is None:
        parsed = False
        if not choice.text and not ids:
            return None
    else:
        parsed = not delta.content
        if parsed and not delta.reasoning and not delta.reasoning_content:
            return None
    if usage is None and ids is None:
        return PARSED_TEXT if parsed else TEXT
    return Event(
        kind="content",
        plain=True,
        completion_tokens=None if usage is None else usage.completion_tokens,
        token_ids=None if ids is None else len(ids),
        parsed=parsed,
    )


def _read(body: dict[str, Any]) -> Event:
    name = body.get("type")
    name = name if isinstance(name, str) else ""
    if body.get("error") is not None or body.get("object") == "error" or name in ("error", "response.failed"):
        return _ERROR
    if isinstance(body.get("choices"), list):
        return _read_choices(body)
    if isinstance(body.get("meta_info"), dict):
        return _read_sglang(body)
    if name.startswith("response.") or body.get("object") == "response":
        return _read_response(body, name)
    if name.startswith(("message", "content_block")):
        return _read_message(body, name)
    if isinstance(body.get("usage"), dict):
        return _counted("usage", body, choices=())
    return _OTHER


def _read_choices(body: dict[str, Any]) -> Event:
    """OpenAI's chat and completions, streamed or whole, and vLLM's ``/inference/v1/generate``."""
    choices = [choice for choice in body["choices"] if isinstance(choice, dict)]
    kinds = [_choice_kind(choice) for choice in choices]
    reasons = [reason for choice in choices if (reason := _reason(choice.get("finish_reason"))) is not None]
    ids = [choice["token_ids"] for choice in choices if isinstance(choice.get("token_ids"), list)]
    kind: Kind = "other"
    if "content" in kinds:
        kind = "content"
    elif "role" in kinds:
        kind = "role"
    elif not choices and (isinstance(body.get("usage"), dict) or isinstance(body.get("timings"), dict)):
        kind = "usage"
    parts = [members(choice.get("delta", choice.get("message"))) for choice in choices]
    names = ("reasoning", "reasoning_content", *_CALLS)
    return _counted(
        kind,
        body,
        meta_info=members(choices[0].get("meta_info")) if choices else {},
        choices=tuple(count(choice.get("index")) or 0 for choice in choices),
        token_ids=sum(map(len, ids)) if ids else None,
        parsed=any(part.get(name) for part in parts for name in names),
        finish_reason="abort" if "abort" in reasons else next(iter(reasons), None),
    )


def _choice_kind(choice: dict[str, Any]) -> Kind:
    """``content`` where the choice carries the outcome of a step.

    A step may show no text: vLLM sends an event for it all the same, also for a last step that held only the stop token
    (recognised by vLLM's ``stop_reason``; other engines send an empty event after the last step).
    """
    ids, reason, text = choice.get("token_ids"), choice.get("finish_reason"), choice.get("text")
    if isinstance(ids, list):
        return "content" if ids else "other"
    silent_step = reason is None or ("stop_reason" in choice and reason != "abort")
    if isinstance(text, str):
        return "content" if text or silent_step else "other"
    part = members(choice.get("delta", choice.get("message")))
    if any(part.get(name) for name in (*_TEXTS, *_CALLS)):
        return "content"
    if part.get("role") is not None and reason is None:
        return "role"
    return "content" if silent_step and any(part.get(name) == "" for name in _TEXTS) else "other"


def _read_sglang(body: dict[str, Any]) -> Event:
    """SGLang's ``/generate``: text so far, and counts so far in ``meta_info``."""
    meta_info = members(body["meta_info"])
    kind: Kind = "content" if count(meta_info.get("completion_tokens")) else "other"
    return _counted(kind, body, meta_info=meta_info, finish_reason=_reason(meta_info.get("finish_reason")))


def _read_response(body: dict[str, Any], name: str) -> Event:
    """The Responses API: usage only in the last event, so a delta says nothing but that it is there."""
    if name.endswith(".delta"):
        return TEXT if name == "response.output_text.delta" else PARSED_TEXT
    response = members(body.get("response")) if name else body
    status = response.get("status")
    if status not in ("completed", "incomplete"):
        return _ERROR if status == "failed" else _OTHER
    reason = _reason(members(response.get("incomplete_details")).get("reason"))
    return _counted("usage", response, choices=(), finish_reason=reason or "stop")


def _read_message(body: dict[str, Any], name: str) -> Event:
    """Anthropic's messages: prompt tokens in the first event, the rest in the last but one."""
    delta = members(body.get("delta"))
    if name == "content_block_delta":
        what = delta.get("type")
        if what == "text_delta":
            return TEXT
        return PARSED_TEXT if what in ("thinking_delta", "input_json_delta") else _OTHER
    if name == "message_start":
        return _counted("role", members(body.get("message")))
    if name == "message_delta":
        return _counted("usage", body, choices=(), finish_reason=_reason(delta.get("stop_reason")))
    if name == "message_stop":
        return _DONE
    if name == "message":
        return _counted("content", body, finish_reason=_reason(body.get("stop_reason")))
    return _OTHER


def _reason(value: Any) -> str | None:
    """``finish_reason`` as a word; SGLang wraps it in an object."""
    value = value.get("type") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _counted(
    kind: Kind,
    body: dict[str, Any],
    *,
    meta_info: dict[str, Any] | None = None,
    choices: tuple[int, ...] = (0,),
    token_ids: int | None = None,
    parsed: bool = False,
    finish_reason: str | None = None,
) -> Event:
    """The event with every count that its body holds; ``usage`` is believed before the engines' own members."""
    sources = [from_usage(members(body.get("usage")))]
    if isinstance(metrics := body.get("metrics"), dict):
        sources.append(from_vllm(metrics))
    if isinstance(timings := body.get("timings"), dict):
        sources.append(from_llama_cpp(timings))
    if meta := meta_info or members(body.get("meta_info")):
        sources.append(from_sglang(meta))
    counted = next((source for source in sources if source.speculation is not None), EngineFigures())
    timed = next((source for source in sources if source.generation_seconds is not None), EngineFigures())
    return Event(
        kind=kind,
        choices=choices,
        completion_tokens=_first([source.completion_tokens for source in sources]),
        token_ids=token_ids,
        parsed=parsed,
        finish_reason=finish_reason,
        prompt_tokens=_first([source.prompt_tokens for source in sources]),
        cached_tokens=_first([source.cached_tokens for source in sources]),
        speculation=counted.speculation,
        speculation_trimmed=counted.trimmed,
        generation_seconds=timed.generation_seconds,
    )


def _first(values: list[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)
