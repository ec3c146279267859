"""The body of a replayed request: what was recorded, with sampling and length of the answer as they were asked for."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from replay.prompts import SyntheticPrompts
from replay.recorded import Exchange

CacheMode = Literal["keep", "salt", "reset"]
Length = int | Literal["recorded"]

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_STREAMED_ROUTES = ("chat", "completions")


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request is not taken as recorded. None: as recorded."""

    model: str | None = None
    temperature: float | None = None
    seed: int | None = None
    min_tokens: Length | None = None
    max_tokens: Length | None = None
    """``recorded``: the number of tokens that the recorded answer had."""
    ignore_eos: bool | None = None
    token_counts: bool = True
    """Ask for usage on every event, so that the tokens of each step are known."""


class Unplayable(ValueError):
    """The request cannot be sent again; the message says why."""


def make_body(
    exchange: Exchange, index: int, synthetic: SyntheticPrompts | None, overrides: Overrides
) -> dict[str, Any]:
    """The JSON object to send.

    synthetic: None where the recorded body is to be sent. A synthetic prompt says nothing about where an answer ends,
    so its answer has the recorded length unless the overrides say otherwise. Raises Unplayable.
    """
    if synthetic is None:
        body = _recorded_body(exchange)
    else:
        body = _synthetic_body(exchange, index, synthetic)
        tokens = exchange.completion_tokens
        if tokens and overrides.max_tokens is None and overrides.ignore_eos is None:
            overrides = msgspec.structs.replace(overrides, max_tokens=tokens, ignore_eos=True)
    _apply(body, exchange, overrides)
    return body


def _recorded_body(exchange: Exchange) -> dict[str, Any]:
    prompt = exchange.request.prompt
    if prompt is None or prompt.body is None:
        raise Unplayable("its text was not recorded")
    try:
        body = msgspec.json.decode(prompt.body)
    except (ValueError, RecursionError) as error:
        raise Unplayable(f"its body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Unplayable("its body is not a JSON object")
    return body


def _synthetic_body(exchange: Exchange, index: int, synthetic: SyntheticPrompts) -> dict[str, Any]:
    request = exchange.request
    if request.facts.route not in _STREAMED_ROUTES:
        raise Unplayable(f"{request.path} without recorded text: only chat and completions prompts can be made up")
    body: dict[str, Any] = {"model": request.facts.model}
    if request.facts.route == "chat":
        body["messages"] = synthetic.messages(index)
    else:
        body["prompt"] = synthetic.text(index)
    parameters = dict(request.prompt.parameters) if request.prompt is not None else {}
    for name in ("echo", "prompt_logprobs", "truncate_prompt_tokens", "add_generation_prompt"):
        parameters.pop(name, None)
    if not any(name in parameters for name in _LIMITS) and request.facts.max_tokens is not None:
        parameters["max_tokens"] = request.facts.max_tokens
    return body | parameters


def _apply(body: dict[str, Any], exchange: Exchange, overrides: Overrides) -> None:
    for name in ("model", "temperature", "seed", "ignore_eos"):
        value = getattr(overrides, name)
        if value is not None:
            body[name] = value
    for name, length in (("min_tokens", overrides.min_tokens), ("max_tokens", overrides.max_tokens)):
        tokens = exchange.completion_tokens if length == "recorded" else length
        if tokens is not None:
            if name == "max_tokens":
                _set_limit(body, tokens)
            else:
                body[name] = tokens
    if exchange.request.facts.route in _STREAMED_ROUTES:
        # An answer that is not streamed shows no steps, so every one is.
        body["stream"] = True
        options = body.get("stream_options")
        body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        if overrides.token_counts:
            body["stream_options"]["continuous_usage_stats"] = True


def _set_limit(body: dict[str, Any], tokens: int) -> None:
    """Set the limit under the name that the client used."""
    used = [name for name in _LIMITS if body.get(name) is not None] or ["max_tokens"]
    for name in used:
        body[name] = tokens
