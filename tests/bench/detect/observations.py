"""What a proxy would know of a simulated answer: the same answer through each source of measurement."""

from __future__ import annotations

import math
from typing import Any

from detector.observation import Observation, Quality, RequestFacts, Source
from tests.bench.detect.scenarios import Measuring, Scenario
from tests.bench.detect.simulator import Answer

MERGED_STEPS = 0.8
"""Share of the steps that remain events of their own where events merge."""

_COUNTED_BY_ENGINE = {"engine": Source.ENGINE, "counters": Source.COUNTERS}


def observations_of(scenario: Scenario, answers: list[Answer]) -> list[Observation]:
    """One Observation per answer, in the same order."""
    return [_observe(scenario, answer, number) for number, answer in enumerate(answers)]


def _observe(scenario: Scenario, answer: Answer, number: int) -> Observation:
    measuring, depth = scenario.measuring, scenario.engine.num_speculative_tokens
    fields: dict[str, Any] = {}
    if not answer.no_rate:
        fields |= _times(measuring, answer)
    if _is_counted(measuring, answer):
        fields |= _acceptance(measuring, answer, depth)
    return Observation(
        request_id=f"r{number}",
        backend=scenario.name,
        facts=RequestFacts(
            route=answer.shape.route,
            model="model",
            stream=True,
            max_tokens=answer.shape.max_tokens,
            parsers_possible=answer.shape.parsers_possible,
        ),
        started_unix=answer.started,
        started=answer.started,
        ended=answer.ended,
        status=200,
        ttft_seconds=answer.ttft_seconds,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.tokens + 1,
        client_paced=answer.no_rate,
        in_flight=answer.in_flight,
        **fields,
    )


def _is_counted(measuring: Measuring, answer: Answer) -> bool:
    """Whether the acceptance of this answer can be known."""
    if answer.no_acceptance or measuring.source == "rate":
        return False
    if measuring.source == "counters":
        return answer.in_flight == 1  # counters of several answers cannot be told apart
    return measuring.source == "engine" or not answer.no_rate


def _times(measuring: Measuring, answer: Answer) -> dict[str, Any]:
    by_engine = measuring.source == "engine"
    return {
        "decode_seconds": answer.decode_seconds,
        "decode_tokens_per_second": answer.tokens_per_second,
        "rate_source": Source.ENGINE if by_engine else Source.CADENCE,
        "longest_gap_seconds": answer.longest_gap_seconds if measuring.gaps_known else None,
    }


def _acceptance(measuring: Measuring, answer: Answer, depth: int) -> dict[str, Any]:
    steps, quality = answer.verify_steps, Quality.TRIMMED
    if measuring.source == "merged":
        steps, quality = max(1, math.ceil(steps * MERGED_STEPS)), Quality.UPPER_BOUND
    elif measuring.source in _COUNTED_BY_ENGINE:
        quality = Quality.EXACT
    fields: dict[str, Any] = {
        "verify_steps": steps,
        "acceptance_length": answer.tokens / steps,
        "acceptance_source": _COUNTED_BY_ENGINE.get(measuring.source, Source.CADENCE),
        "acceptance_quality": quality,
        "num_speculative_tokens": depth,
    }
    if measuring.source in _COUNTED_BY_ENGINE:
        fields["position_acceptance"] = answer.position_acceptance
    if not answer.no_rate:
        fields["step_seconds"] = answer.decode_seconds / steps
    return fields
