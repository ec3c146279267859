"""What becomes of each request parameter when its answer is continued on another engine: a table.

Faithful means: greedy, the client gets the tokens that the uninterrupted answer would have had; sampled, the rest is
drawn from the same distribution as an uninterrupted rest. What breaks that is refused, and so is what this table does
not know. Whose effect depends on the answer's own tokens starts anew with a prompt that holds them: vLLM counts
``presence_penalty`` and ``frequency_penalty`` over the output only, and a grammar starts at its root.
(``repetition_penalty`` counts prompt and output alike, so nothing changes for it.)
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import msgspec


class Fate(StrEnum):
    """What becomes of a parameter."""

    KEPT = "kept"
    """It goes on as it is."""
    PUT_RIGHT = "put right"
    """It goes on, changed by what the first engine has done already."""
    LEFT_OUT = "left out"
    """It has done its work in the prompt's tokens, or says nothing to the engine."""
    REFUSED = "refused"
    """The answer is not continued, unless the value says nothing."""


class Parameter(msgspec.Struct, frozen=True):
    """A row of the table."""

    names: tuple[str, ...]
    fate: Fate
    why: str
    harmless: Callable[[Any], bool] = lambda _value: False
    """For REFUSED: values that do not stand in the way (null never does)."""
    example: Any = None
    """For REFUSED: a value that does."""


def _no_object(value: Any) -> bool:
    return value in ({}, [], "", False)


def _zero(value: Any) -> bool:
    return not value


def _one(value: Any) -> bool:
    return bool(value == 1)


def _text_only(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in (None, "text")


def _free_choice(value: Any) -> bool:
    return value in ("auto", "none")


def _one_prompt(value: Any) -> bool:
    """A text, a list of token ids, or a list of one of these."""
    if not isinstance(value, list):
        return isinstance(value, str)
    return len(value) == 1 or all(isinstance(entry, int) for entry in value)


def _only_text(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(one, dict) and _is_text(one.get("content")) for one in messages
    )


def _is_text(content: Any) -> bool:
    if not isinstance(content, list):
        return content is None or isinstance(content, str)
    return all(isinstance(part, dict) and part.get("type") in ("text", "refusal", "thinking") for part in content)


PARAMETERS: Final[tuple[Parameter, ...]] = (
    Parameter(
        ("temperature", "top_p", "top_k", "min_p", "logit_bias", "allowed_token_ids", "stop_token_ids", "ignore_eos"),
        Fate.KEPT,
        "acts on each token by itself",
    ),
    Parameter(("repetition_penalty",), Fate.KEPT, "counts prompt and output alike"),
    Parameter(
        ("seed",),
        Fate.KEPT,
        "greedy answers do not depend on it; a sampled rest is a valid sample, though not the one that the seed would "
        "have given",
    ),
    Parameter(
        ("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "length_penalty"),
        Fate.KEPT,
        "acts on text as it is made",
    ),
    Parameter(("model", "priority", "cache_salt", "user", "stream", "stream_options"), Fate.KEPT, "means the same"),
    Parameter(("stream_interval", "session_id"), Fate.KEPT, "means the same"),
    Parameter(
        ("max_tokens", "max_completion_tokens"),
        Fate.PUT_RIGHT,
        "less the tokens that the client has already",
    ),
    Parameter(("min_tokens",), Fate.PUT_RIGHT, "less the tokens that the client has already, at least 0"),
    Parameter(("stop",), Fate.PUT_RIGHT, "kept, and looked for across the cut"),
    Parameter(
        ("logprobs", "top_logprobs"),
        Fate.PUT_RIGHT,
        "in the shape of the route; offsets go on where the first part ended",
    ),
    Parameter(("prompt",), Fate.REFUSED, "several prompts have several answers", _one_prompt, ["one", "two"]),
    Parameter(
        ("messages",),
        Fate.REFUSED,
        "images and sounds are not in the prompt's tokens",
        _only_text,
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    ),
    Parameter(
        ("add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template"),
        Fate.LEFT_OUT,
        "is in the prompt's tokens",
    ),
    Parameter(
        ("chat_template_kwargs", "documents", "truncate_prompt_tokens", "truncation_side", "reasoning_effort"),
        Fate.LEFT_OUT,
        "is in the prompt's tokens",
    ),
    Parameter(("request_id", "return_token_ids"), Fate.LEFT_OUT, "the proxy sees to it"),
    Parameter(
        ("metadata", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity", "parallel_tool_calls"),
        Fate.LEFT_OUT,
        "says nothing to a vLLM that goes on with tokens",
    ),
    Parameter(("modalities",), Fate.REFUSED, "only text can be continued", lambda value: value == ["text"], ["audio"]),
    Parameter(("audio",), Fate.REFUSED, "only text can be continued", example={"voice": "alloy", "format": "wav"}),
    Parameter(("n", "best_of"), Fate.REFUSED, "several choices have several states", _one, 2),
    Parameter(("use_beam_search",), Fate.REFUSED, "beams are not in the stream", _zero, True),
    Parameter(
        ("presence_penalty", "frequency_penalty"),
        Fate.REFUSED,
        "counts the output only, and would start anew",
        _zero,
        0.5,
    ),
    Parameter(("bad_words",), Fate.REFUSED, "is matched against the output only", _no_object, ["half a word"]),
    Parameter(
        ("response_format",),
        Fate.REFUSED,
        "a grammar would start at its root",
        _text_only,
        {"type": "json_object"},
    ),
    Parameter(
        ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        Fate.REFUSED,
        "a grammar would start at its root",
        _no_object,
        {"regex": "[ab]+"},
    ),
    Parameter(
        ("guided_decoding_backend", "guided_whitespace_pattern", "structural_tag"),
        Fate.REFUSED,
        "a grammar would start at its root",
        _no_object,
        "xgrammar",
    ),
    Parameter(
        ("tool_choice", "function_call"),
        Fate.REFUSED,
        "a forced call is a grammar, and would start at its root",
        _free_choice,
        "required",
    ),
    Parameter(
        ("tools",),
        Fate.PUT_RIGHT,
        "the answer goes on as a chat, so that the other engine's parser sees a call that is still to come",
    ),
    Parameter(("functions",), Fate.REFUSED, "is the old form of tools", _no_object, [{"name": "f"}]),
    Parameter(
        ("thinking_token_budget", "reasoning"),
        Fate.REFUSED,
        "counts the thinking from the beginning",
        lambda value: value in (-1, {}),
        64,
    ),
    Parameter(
        ("include_reasoning",),
        Fate.REFUSED,
        "an engine that hides reasoning hides its tokens too",
        lambda value: value is True,
        False,
    ),
    Parameter(("repetition_detection",), Fate.REFUSED, "looks at the output only", _no_object, {"max_pattern_size": 8}),
    Parameter(
        ("logits_processors", "vllm_xargs"),
        Fate.REFUSED,
        "code that the proxy does not know may look at the output",
        _no_object,
        {"mine": 1},
    ),
    Parameter(("prompt_logprobs",), Fate.REFUSED, "the prompt of the rest is another", example=1),
    Parameter(("echo",), Fate.REFUSED, "the prompt of the rest is another", _zero, True),
    Parameter(("suffix",), Fate.REFUSED, "the prompt's tokens end with it", _no_object, "the end"),
    Parameter(("prompt_embeds",), Fate.REFUSED, "is no prompt of tokens", _no_object, "UE5H"),
    Parameter(("logprob_token_ids",), Fate.REFUSED, "has no place in the other route's shape", _no_object, [1]),
    Parameter(("return_tokens_as_token_ids",), Fate.REFUSED, "has no place in the other route's shape", _zero, True),
    Parameter(("watermarking",), Fate.REFUSED, "depends on the tokens before", _zero, True),
    Parameter(
        ("kv_transfer_params", "ec_transfer_params"),
        Fate.REFUSED,
        "belongs to one pair of engines",
        _no_object,
        {"do_remote_decode": True},
    ),
    Parameter(("store", "background"), Fate.REFUSED, "the first engine would keep the broken answer", _zero, True),
)

_BY_NAME: Final = {name: parameter for parameter in PARAMETERS for name in parameter.names}


def fate_of(name: str) -> Fate:
    """What becomes of a parameter; of one that the table does not know, REFUSED."""
    parameter = _BY_NAME.get(name)
    return parameter.fate if parameter is not None else Fate.REFUSED


def parameter_in_the_way(body: dict[str, Any]) -> str | None:
    """Why a request with this (decoded) body cannot be continued, as a clause that names the parameter; or None."""
    for name, value in body.items():
        if value is None:
            continue
        parameter = _BY_NAME.get(name)
        if parameter is None:
            return f"{name[:80]}: not known to be continued faithfully"
        if parameter.fate is Fate.REFUSED and not parameter.harmless(value):
            return f"{name}: {parameter.why}"
    return None
