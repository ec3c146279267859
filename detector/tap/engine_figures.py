"""What an engine says of one answer beside the answer itself: its own counts of speculation, and its decode time."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from detector.observation import SpeculationCounts

MAX_COUNT: Final = 1 << 53
"""No count is larger: up to here every JSON reader keeps whole numbers exact."""

_SGLANG_ACCEPTED: Final = ("spec_num_correct_drafts", "spec_accepted_drafts")
_SGLANG_DRAFTED: Final = ("spec_num_proposed_drafts", "spec_proposed_drafts")


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's account of one answer."""

    speculation: SpeculationCounts | None = None
    trimmed: bool = False
    """The accepted tokens were derived from the tokens that were sent, so what the last step lost is missing."""
    generation_seconds: float | None = None
    """From the first token to the last, on the engine's clock."""
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


def count(value: Any) -> int | None:
    """A count out of JSON: a whole number from 0 to MAX_COUNT, else None."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def members(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def from_vllm(metrics: dict[str, Any]) -> EngineFigures:
    """``metrics`` of vLLM: ``--enable-per-request-metrics`` and ``--per-request-spec-decode-metrics``."""
    said = members(metrics.get("speculative_decoding"))
    steps, accepted = count(said.get("num_spec_steps")), count(said.get("num_accepted_draft_tokens"))
    speculation = None
    if steps is not None and accepted is not None:
        positions = _positions(said.get("acceptance_histogram"), steps)
        speculation = SpeculationCounts(
            verify_steps=steps,
            accepted_tokens=accepted,
            drafted_tokens=count(said.get("num_draft_tokens")),
            num_speculative_tokens=count(said.get("num_spec_tokens")),
            accepted_per_position=positions,
        )
    return EngineFigures(speculation=speculation, generation_seconds=_seconds(metrics.get("generation_time_ms")))


def from_llama_cpp(timings: dict[str, Any]) -> EngineFigures:
    """``timings`` of llama.cpp. A step yields its accepted drafts and one token; the first token comes from prefill."""
    tokens, accepted = count(timings.get("predicted_n")), count(timings.get("draft_n_accepted"))
    drafted, speculation = count(timings.get("draft_n")), None
    if tokens is not None and accepted is not None and drafted and tokens - 1 - accepted > 0:
        speculation = SpeculationCounts(
            verify_steps=tokens - 1 - accepted, accepted_tokens=accepted, drafted_tokens=drafted
        )
    evaluated, cached = count(timings.get("prompt_n")), count(timings.get("cache_n"))
    return EngineFigures(
        speculation=speculation,
        trimmed=True,
        generation_seconds=_seconds(timings.get("predicted_ms")),
        completion_tokens=tokens,
        prompt_tokens=None if evaluated is None or cached is None else evaluated + cached,
        cached_tokens=cached,
    )


def from_sglang(meta_info: dict[str, Any]) -> EngineFigures:
    """``meta_info`` of SGLang. Versions that do not count the accepted drafts leave them to be derived."""
    tokens, steps = count(meta_info.get("completion_tokens")), count(meta_info.get("spec_verify_ct"))
    accepted = next((n for name in _SGLANG_ACCEPTED if (n := count(meta_info.get(name))) is not None), None)
    drafted = next((n for name in _SGLANG_DRAFTED if (n := count(meta_info.get(name))) is not None), None)
    trimmed = accepted is None
    if accepted is None and tokens is not None and steps is not None:
        accepted = max(0, tokens - 1 - steps)
    speculation = None
    if steps and accepted is not None:
        speculation = SpeculationCounts(verify_steps=steps, accepted_tokens=accepted, drafted_tokens=drafted)
    return EngineFigures(
        speculation=speculation,
        trimmed=trimmed,
        completion_tokens=tokens,
        prompt_tokens=count(meta_info.get("prompt_tokens")),
        cached_tokens=count(meta_info.get("cached_tokens")),
    )


def from_usage(usage: dict[str, Any]) -> EngineFigures:
    """``usage`` as OpenAI, its Responses API or Anthropic spell it."""
    details = members(usage.get("prompt_tokens_details")) or members(usage.get("input_tokens_details"))
    cached = count(details.get("cached_tokens"))
    return EngineFigures(
        completion_tokens=_either(usage, "completion_tokens", "output_tokens"),
        prompt_tokens=_either(usage, "prompt_tokens", "input_tokens"),
        cached_tokens=count(usage.get("cache_read_input_tokens")) if cached is None else cached,
    )


def _positions(histogram: Any, steps: int) -> tuple[int, ...] | None:
    """Steps that accepted draft position i, from the steps that accepted exactly j drafts."""
    counts = [count(bin_) for bin_ in histogram] if isinstance(histogram, list) else []
    whole = [n for n in counts if n is not None]
    if len(whole) < 2 or len(whole) != len(counts) or sum(whole) != steps:
        return None
    return tuple(sum(whole[position + 1 :]) for position in range(len(whole) - 1))


def _seconds(milliseconds: Any) -> float | None:
    number = isinstance(milliseconds, (int, float)) and not isinstance(milliseconds, bool)
    return milliseconds / 1000 if number and 0 < milliseconds < 1e12 else None


def _either(source: dict[str, Any], name: str, other: str) -> int | None:
    value = count(source.get(name))
    return count(source.get(other)) if value is None else value
