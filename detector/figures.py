"""The numbers behind a verdict: what is usual, and what decided."""

from __future__ import annotations

from typing import Any

import msgspec

from detector.phases_state import PhasesState
from detector.stats.baseline import Baseline
from detector.stats.sample import Sample


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the healthy state; None while unknown."""

    acceptance_length: float | None = None
    step_seconds: float | None = None
    decode_tokens_per_second: float | None = None


def reference_of(baseline: Baseline) -> Reference:
    """Medians of the healthy state, times and rates at the load that is most usual."""
    usual = baseline.medians
    return Reference(
        acceptance_length=usual.acceptance_length,
        step_seconds=usual.step_seconds,
        decode_tokens_per_second=usual.decode_tokens_per_second,
    )


def evidence_of(state: PhasesState, alarm_nats: float, sample: Sample | None) -> dict[str, float]:
    """By name with unit; those that are unknown are left out."""
    usual = state.baseline.medians
    numbers: dict[str, Any] = {
        "evidence_nats": state.detector.nats,
        "answer_evidence_nats": state.evidence_nats,
        "alarm_nats": alarm_nats,
        "reference_acceptance_length": usual.acceptance_length,
        "reference_step_seconds": usual.step_seconds,
        "reference_decode_tokens_per_second": usual.decode_tokens_per_second,
    }
    if state.step_rule.nats:
        numbers["step_evidence_nats"] = state.step_rule.nats
    if sample is not None:
        numbers |= {
            "acceptance_length": sample.acceptance_length,
            "conditional_acceptance": sample.conditional_acceptance,
            "step_seconds": sample.step_seconds,
            "decode_tokens_per_second": sample.decode_tokens_per_second,
            "in_flight": float(sample.in_flight),
        }
    if None in numbers.values():
        return {name: number for name, number in numbers.items() if number is not None}
    return numbers
