"""What a client asked for, taken from the body of a chat or completions request and checked as vLLM checks it."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field

from .body import Body, check_integers, flag, integer, model_name, number, refused, stop_strings
from .engine import EngineRequest
from .errors import (
    ApiError,
    invalid_body,
    invalid_parameter,
    missing_field,
    schema_mismatch,
)
from .scenario import Scenario
from .text import VOCABULARY_SIZE, Speaker, decode, encode, stable_hash
from .tools import ToolCall, choose_tool_call


@dataclass(kw_only=True)
class GenerationRequest:
    """One API request, ready for the engine."""

    body: Body
    prompts: list[list[int]]
    model: str | None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    stream_interval: int = 1
    return_token_ids: bool = False
    logprobs: int | None = None
    """Alternatives to show per token; None: no logprobs."""
    echo: bool = False
    echo_only: bool = False
    """max_tokens was 0: one token is made, and not shown."""
    prompt_logprobs: int | None = None
    """Alternatives to show per prompt token; None: none."""
    top_p: float = 1.0
    tool_call: ToolCall | None = None

    @property
    def choices(self) -> int:
        """Answers it gets."""
        return self.n * len(self.prompts)

    def prompt_text(self, prompt: int) -> str:
        """Text of one of its prompts, as the model reads it."""
        return decode(self.prompts[prompt])


def parse_chat(body: Body, *, tool_parser: bool) -> GenerationRequest:
    """A chat request. tool_parser: the engine was started with one. Raises ApiError."""
    _check_stream_options(body)
    messages = _messages(body)
    if body.get("tools") == []:
        raise invalid_parameter(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.", "tools"
        )
    if body.get("tool_choice") not in (None, "none") and not body.get("tools"):
        raise invalid_parameter("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if body.get("continue_final_message") and body.get("add_generation_prompt", True):
        raise ApiError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    asked = flag(body, "logprobs")
    top = integer(body, "top_logprobs") or 0
    if top and not asked:
        raise invalid_parameter("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    max_tokens = integer(body, "max_completion_tokens")
    request = _common(body, max_tokens if max_tokens is not None else integer(body, "max_tokens"))
    request.prompts = [encode(chat_prompt(messages, body))]
    request.logprobs = top if asked else None
    if body.get("tools"):
        _check_tool_parser(body, tool_parser)
    if body.get("tools") and tool_parser:
        request.tool_call = choose_tool_call(body, messages)
    return request


def _check_tool_parser(body: Body, tool_parser: bool) -> None:
    choice = body.get("tool_choice") or "auto"
    if tool_parser or choice == "none":
        return
    if choice == "auto":
        raise ApiError('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    asked = f'function "{choice.get("function", {}).get("name")}"' if isinstance(choice, dict) else f'"{choice}"'
    raise ApiError(f"tool_choice={asked} requires --tool-call-parser to be set")


def parse_completion(body: Body) -> GenerationRequest:
    """A completions request. Raises ApiError."""
    _check_stream_options(body)
    max_tokens = integer(body, "max_tokens")
    request = _common(body, 16 if max_tokens is None else max_tokens)
    request.prompts = _completion_prompts(body)
    request.logprobs = integer(body, "logprobs")
    request.echo = flag(body, "echo")
    if request.echo and request.max_tokens == 0:
        request.max_tokens, request.echo_only = 1, True
    if body.get("suffix"):
        raise invalid_parameter("suffix is only supported for models with FIM completion rendering", "suffix")
    return request


def _common(body: Body, max_tokens: int | None) -> GenerationRequest:
    options = body.get("stream_options") or {}
    include_usage = bool(options.get("include_usage"))
    temperature, top_p = number(body, "temperature"), number(body, "top_p")
    shown = integer(body, "prompt_logprobs")
    if shown and body.get("stream"):
        raise invalid_parameter("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
    n = integer(body, "n")
    return GenerationRequest(
        body=body,
        prompts=[],
        model=model_name(body),
        n=1 if n is None else n,
        max_tokens=max_tokens,
        min_tokens=integer(body, "min_tokens") or 0,
        ignore_eos=flag(body, "ignore_eos"),
        temperature=1.0 if temperature is None else float(temperature),
        top_p=1.0 if top_p is None else float(top_p),
        prompt_logprobs=shown,
        seed=integer(body, "seed"),
        stop=stop_strings(body),
        stop_token_ids=list(body.get("stop_token_ids") or []),
        include_stop=flag(body, "include_stop_str_in_output"),
        stream=flag(body, "stream"),
        include_usage=include_usage,
        continuous_usage=include_usage and bool(options.get("continuous_usage_stats")),
        stream_interval=max(1, integer(body, "stream_interval") or 1),
        return_token_ids=flag(body, "return_token_ids"),
    )


def _check_stream_options(body: Body) -> None:
    if body.get("stream_options") and not body.get("stream"):
        raise invalid_parameter("Stream options can only be defined when `stream=True`.", "stream_options")


def _messages(body: Body) -> list[Body]:
    if "messages" not in body:
        raise invalid_body("body.messages", missing_field("messages", body))
    messages = body["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise refused(body, "messages", "list_type", "list")
    if not messages:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    return messages


def content_text(content: object) -> str:
    """Text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content) if content is not None else ""


def chat_prompt(messages: list[Body], body: Body) -> str:
    """The prompt that the model's chat template makes of messages (and tools)."""
    turns = []
    if body.get("tools"):
        turns.append(f"<|im_start|>system\n{json.dumps(body['tools'])}<|im_end|>\n")
    for message in messages:
        calls = json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
        text = content_text(message.get("content")) + calls
        turns.append(f"<|im_start|>{message.get('role', 'user')}\n{text}<|im_end|>\n")
    if body.get("continue_final_message") and turns:
        turns[-1] = turns[-1].removesuffix("<|im_end|>\n")
    elif body.get("add_generation_prompt", True):
        turns.append("<|im_start|>assistant\n")
    return "".join(turns)


def _completion_prompts(body: Body) -> list[list[int]]:
    prompt = body.get("prompt")
    if prompt == []:
        raise ApiError("You must pass at least one prompt")
    if prompt in (None, ""):
        raise invalid_parameter("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(prompt, str):
        return [encode(prompt)]
    if not isinstance(prompt, list):
        a_list = schema_mismatch("list_type", "body.prompt", "Input should be a valid list", prompt)
        a_string = schema_mismatch("string_type", "body.prompt", "Input should be a valid string", prompt)
        raise invalid_body("body.prompt", a_list, a_list, a_string, a_list)
    if all(isinstance(entry, str) for entry in prompt):
        return [encode(entry) for entry in prompt]
    nested = prompt if all(isinstance(entry, list) for entry in prompt) else [prompt]
    for ids in nested:
        check_integers(ids, "prompt")
        for token in ids:
            if not 0 <= token < VOCABULARY_SIZE:
                raise ApiError(f"Token id {token} is out of vocabulary")
    return nested


def engine_requests(
    request: GenerationRequest, request_id: str, scenario: Scenario, *, seed: int, model: str, count: int
) -> list[EngineRequest]:
    """One engine request for each choice. count: requests the engine has had so far.

    Greedy answers depend on the model and the prompt only, seeded ones on the seed too, all others on their place.
    """
    made = []
    for place in range(request.choices):
        prompt = request.prompts[place // request.n]
        choice = place % request.n
        if request.temperature == 0:
            salt = stable_hash(model)
        elif request.seed is not None:
            salt = stable_hash(model, request.seed, choice)
        else:
            salt = stable_hash(model, seed, count + place)
        room = scenario.max_model_len - len(prompt)
        script = request.tool_call
        made.append(
            EngineRequest(
                request_id=request_id,
                prompt=prompt,
                max_tokens=room if request.max_tokens is None else min(room, request.max_tokens),
                min_tokens=request.min_tokens,
                ignore_eos=request.ignore_eos,
                stop_token_ids=frozenset(request.stop_token_ids),
                speaker=Speaker(salt, scenario.answer_tokens if request.max_tokens is None else None),
                script=deque(encode(script.text) if script else ()),
                n=request.n if choice == 0 else None,
            )
        )
    return made
