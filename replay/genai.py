"""Attributes of OpenTelemetry's semantic conventions for generative AI (status: Development), made of an Observation.

What the conventions do not name is ``specbreaker.*``. Unknown values are None. No text of a prompt or an answer is in
them.
"""

from __future__ import annotations

from typing import Any, Final

from detector.observation import Observation

_OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "responses": "chat", "messages": "chat"}
_SPECULATION: Final = (
    "acceptance_length",
    "verify_steps",
    "step_seconds",
    "num_speculative_tokens",
    "decode_tokens_per_second",
)


def operation_of(observation: Observation) -> str:
    """``gen_ai.operation.name``."""
    return _OPERATIONS.get(observation.facts.route, "text_completion")


def span_name(observation: Observation) -> str:
    """The operation and the model asked for."""
    return f"{operation_of(observation)} {observation.facts.model or ''}".strip()


def response_attributes(observation: Observation) -> dict[str, Any]:
    """What is known of the answer."""
    reasons = None if observation.finish_reason is None else [observation.finish_reason]
    return {
        "gen_ai.response.finish_reasons": reasons,
        "gen_ai.response.time_to_first_chunk": observation.ttft_seconds,
        "gen_ai.usage.input_tokens": observation.prompt_tokens,
        "gen_ai.usage.output_tokens": observation.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": observation.cached_tokens,
        "error.type": observation.ending.value if observation.ending.failed else None,
    }


def speculation_attributes(observation: Observation) -> dict[str, Any]:
    """What the conventions have no names for."""
    return {f"specbreaker.{name}": getattr(observation, name) for name in _SPECULATION}
