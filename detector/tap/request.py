"""What a request's own bytes say, and how to ask the engine for usage without re-serialising a client's JSON."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from detector.observation import RequestFacts, Route
from detector.tap.sse import BYTE_ORDER_MARK

_ROUTES: Final[tuple[tuple[str, Route], ...]] = (
    ("/chat/completions", "chat"),
    ("/completions", "completions"),
    ("/responses", "responses"),
    ("/messages", "messages"),
    ("/generate", "generate"),
)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_EMPTY: Final = msgspec.Raw(b"")
_MAX_PLACES_TRIED: Final = 8
"""How many nested members of the searched name are tried before the body is left alone."""
_OPENS_TOKEN_IDS: Final = re.compile(rb"\[\s*[-0-9]")
_OPENS_EMPTY_OBJECT: Final = re.compile(rb"\{\s*\}")
_COLON: Final = re.compile(rb"\s*:\s*")
_T = TypeVar("_T")


class SplicedBody(msgspec.Struct, frozen=True):
    """A request body that asks for usage, and what the answer then holds that the client had not asked for."""

    body: bytes
    remove_usage_chunk: bool
    """The last event, with ``choices: []``, is ours."""
    remove_event_usage: bool
    """The ``usage`` member of every other event is ours."""


class _Body(msgspec.Struct):
    """The members that matter, undecoded: one of a wrong type must not hide the others."""

    model: msgspec.Raw = _EMPTY
    stream: msgspec.Raw = _EMPTY
    stream_options: msgspec.Raw = _EMPTY
    n: msgspec.Raw = _EMPTY
    best_of: msgspec.Raw = _EMPTY
    prompt: msgspec.Raw = _EMPTY
    max_tokens: msgspec.Raw = _EMPTY
    max_completion_tokens: msgspec.Raw = _EMPTY
    max_output_tokens: msgspec.Raw = _EMPTY
    sampling_params: msgspec.Raw = _EMPTY
    tools: msgspec.Raw = _EMPTY
    functions: msgspec.Raw = _EMPTY
    reasoning: msgspec.Raw = _EMPTY
    reasoning_effort: msgspec.Raw = _EMPTY
    include_reasoning: msgspec.Raw = _EMPTY
    thinking: msgspec.Raw = _EMPTY
    chat_template_kwargs: msgspec.Raw = _EMPTY


class _StreamOptions(msgspec.Struct):
    include_usage: msgspec.Raw = _EMPTY
    continuous_usage_stats: msgspec.Raw = _EMPTY


class _SamplingParams(msgspec.Struct):
    n: msgspec.Raw = _EMPTY
    max_tokens: msgspec.Raw = _EMPTY
    max_new_tokens: msgspec.Raw = _EMPTY


class _TemplateSwitches(msgspec.Struct):
    enable_thinking: msgspec.Raw = _EMPTY
    thinking: msgspec.Raw = _EMPTY


_BODY: Final = msgspec.json.Decoder(_Body)
_STREAM_OPTIONS: Final = msgspec.json.Decoder(_StreamOptions)
_SAMPLING_PARAMS: Final = msgspec.json.Decoder(_SamplingParams)
_TEMPLATE_SWITCHES: Final = msgspec.json.Decoder(_TemplateSwitches)
_INTEGER: Final = msgspec.json.Decoder(int, strict=False)
_BOOLEAN: Final = msgspec.json.Decoder(bool, strict=False)
_STRING: Final = msgspec.json.Decoder(str)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


def route_of(path: str) -> Route:
    """Which kind of answer a path gives; ``other`` is not measured. ``path`` may carry a query and any prefix."""
    bare = path.partition("?")[0].rstrip("/")
    return next((route for ending, route in _ROUTES if bare.endswith(ending)), "other")


def read_request(path: str, body: bytes) -> RequestFacts:
    """What the detector needs to know of a request. Never raises: what cannot be read keeps its default.

    ``path`` may carry a query and any prefix; ``body`` is the whole body, decoded from its content coding.
    """
    route = route_of(path)
    fields = _decode(_BODY, body.removeprefix(BYTE_ORDER_MARK)) if body else None
    if fields is None:
        return RequestFacts(route=route, body_bytes=len(body))
    options = _decode(_STREAM_OPTIONS, fields.stream_options) or _StreamOptions()
    sampling = _decode(_SAMPLING_PARAMS, fields.sampling_params) or _SamplingParams()
    usage_asked = _true(options.include_usage)
    limits = (
        fields.max_completion_tokens,
        fields.max_tokens,
        fields.max_output_tokens,
        sampling.max_tokens,
        sampling.max_new_tokens,
    )
    choices = max(_integer(raw) or 1 for raw in (fields.n, fields.best_of, sampling.n))
    return RequestFacts(
        route=route,
        model=_decode(_STRING, fields.model),
        stream=_true(fields.stream),
        n=max(1, choices) * _prompts(fields.prompt),
        max_tokens=next((limit for raw in limits if (limit := _integer(raw)) is not None), None),
        usage_asked=usage_asked,
        token_counts_asked=usage_asked and _true(options.continuous_usage_stats),
        parsers_possible=_parsers_possible(fields),
        body_bytes=len(body),
    )


def ask_usage(body: bytes, facts: RequestFacts, *, token_counts: bool) -> SplicedBody | None:
    """Splice ``stream_options`` into ``body`` so that the engine sends usage; every other byte stays as it is.

    ``include_usage`` is always asked for, ``continuous_usage_stats`` (usage on every event) with ``token_counts``.
    ``facts`` are those of ``read_request`` for the same body. Of members that occur twice the last one counts, as in
    the JSON readers of the engines. None where there is nothing to ask: no stream, another route, already asked by the
    client, or options that cannot be read and so are left for the engine to refuse.
    """
    if not facts.stream or facts.route not in ("chat", "completions"):
        return None
    mark = BYTE_ORDER_MARK if body.startswith(BYTE_ORDER_MARK) else b""
    text = body.removeprefix(mark)
    fields = _decode(_BODY, text)
    if fields is None:
        return None
    old = bytes(fields.stream_options)
    options = _decode(_STREAM_OPTIONS, b"{}" if old in (b"", b"null") else old)
    if options is None:
        return None
    included, continuous = _switch(options.include_usage), _switch(options.continuous_usage_stats)
    if included is None or continuous is None:
        return None
    wanted = {"include_usage": not included, "continuous_usage_stats": token_counts and not continuous}
    names = [name for name, missing in wanted.items() if missing]
    if not names:
        return None
    spliced = _with_options(text, old, names)
    if spliced is None:
        return None
    return SplicedBody(
        body=mark + spliced,
        remove_usage_chunk=not included,
        remove_event_usage=(token_counts or continuous) and not (included and continuous),
    )


def rename_model(body: bytes, name: str) -> bytes:
    """``body`` asking for the model ``name``; every other byte stays as it is; all of them where it names no model."""
    mark = BYTE_ORDER_MARK if body.startswith(BYTE_ORDER_MARK) else b""
    text = body.removeprefix(mark)
    fields = _decode(_BODY, text)
    if fields is None or not fields.model:
        return body
    renamed = _replaced(text, "model", bytes(fields.model), msgspec.json.encode(name), _BODY)
    return body if renamed is None else mark + renamed


def _decode(decoder: msgspec.json.Decoder[_T], raw: msgspec.Raw | bytes) -> _T | None:
    """The value, or None where it is absent or not of the decoder's type."""
    if not raw:
        return None
    try:
        return decoder.decode(raw)
    except _UNREADABLE:
        return None


def _integer(raw: msgspec.Raw) -> int | None:
    return _decode(_INTEGER, raw)


def _true(raw: msgspec.Raw) -> bool:
    return _decode(_BOOLEAN, raw) is True


def _switch(raw: msgspec.Raw) -> bool | None:
    """True or False (also where absent or null); None for anything else, which only the engine can judge."""
    value = bytes(raw)
    return {b"": False, b"null": False, b"false": False, b"true": True}.get(value)


def _present(raw: msgspec.Raw) -> bool:
    """The member is there and says something."""
    return bytes(raw) not in (b"", b"null", b"false", b"[]", b"{}", b'"none"')


def _prompts(raw: msgspec.Raw) -> int:
    """Prompts in a batch; a list of token ids is one prompt."""
    value = bytes(raw)
    if not value.startswith(b"[") or _OPENS_TOKEN_IDS.match(value):
        return 1
    prompts = _decode(_LIST, value)
    return max(1, len(prompts)) if prompts is not None else 1


def _parsers_possible(fields: _Body) -> bool:
    switches = _decode(_TEMPLATE_SWITCHES, fields.chat_template_kwargs) or _TemplateSwitches()
    asking = (
        fields.tools,
        fields.functions,
        fields.reasoning,
        fields.reasoning_effort,
        fields.include_reasoning,
        fields.thinking,
        switches.enable_thinking,
        switches.thinking,
    )
    return any(_present(raw) for raw in asking)


def _with_options(text: bytes, old: bytes, names: list[str]) -> bytes | None:
    """``text`` with the named stream options true; ``old`` is its present ``stream_options``, b"" if it has none."""
    if old in (b"", b"null"):
        new = b"{" + b",".join(b'"%b":true' % name.encode() for name in names) + b"}"
    else:
        edited: bytes | None = old
        for name in names:
            edited = _with_switch(edited, name) if edited is not None else None
        if edited is None:
            return None
        new = edited
    if not old:
        return _with_first_member(text, b'"stream_options":' + new)
    return _replaced(text, "stream_options", old, new, _BODY)


def _with_switch(options: bytes, name: str) -> bytes | None:
    """The object ``options`` with the switch ``name`` true."""
    present = _decode(_STREAM_OPTIONS, options)
    old = bytes(getattr(present, name)) if present is not None else b""
    if not old:
        return _with_first_member(options, b'"%b":true' % name.encode())
    return _replaced(options, name, old, b"true", _STREAM_OPTIONS)


def _with_first_member(text: bytes, member: bytes) -> bytes:
    """The JSON object ``text`` with one more member, at its beginning."""
    begin = text.index(b"{")
    comma = b"" if _OPENS_EMPTY_OBJECT.match(text, begin) else b","
    return text[: begin + 1] + member + comma + text[begin + 1 :]


def _replaced(text: bytes, name: str, old: bytes, new: bytes, decoder: msgspec.json.Decoder[_T]) -> bytes | None:
    """``text`` with the value of its own (not a nested) member ``name`` changed from ``old`` to ``new``.

    A place is taken only if the decoder then reads ``new``: that tells the member from its namesakes in nested objects.
    None where no place is found, as when the key is spelt with escapes.
    """
    quoted, end = b'"%b"' % name.encode(), len(text)
    for _ in range(_MAX_PLACES_TRIED):
        place = text.rfind(quoted, 0, end)
        if place < 0:
            return None
        value = _COLON.match(text, place + len(quoted))
        if value is not None and text.startswith(old, value.end()):
            edited = text[: value.end()] + new + text[value.end() + len(old) :]
            decoded = _decode(decoder, edited)
            if decoded is not None and bytes(getattr(decoded, name)) == new:
                return edited
        end = place
    return None
