"""From one answer and what is known of its backend to the findings that the table of diagnosis judges."""

from __future__ import annotations

import math
from operator import mul
from typing import Final

from detector.observation import EngineSample, Observation
from detector.stats.baseline import MIN_ANSWERS, Baseline, step_time_of, token_time_of
from detector.stats.cause import Diagnosis, cause_of, diagnose
from detector.stats.findings import Findings
from detector.stats.sample import Sample
from detector.stats.timing import Timed, TimeLaw
from detector.verdict import Cause

MIN_TTFT_ANSWERS: Final = 20
MIN_LOG_ERROR: Final = 0.05
"""Nats; a reference of a few answers that happen to agree is no surer than this."""

_OF_ACCEPTANCE: Final = frozenset(
    {Cause.ACCEPTANCE_COLLAPSE, Cause.SPECULATION_OFF, Cause.LONG_CONTEXT, Cause.DEGENERATE_OUTPUT}
)
_OF_STEP_TIME: Final = frozenset({Cause.STEP_INFLATION, Cause.QUEUEING, Cause.LONG_CONTEXT})
_OF_HEALTHY_ANSWERS: Final = frozenset(
    {Cause.QUEUEING, Cause.LONG_CONTEXT, Cause.CONTENT, Cause.ARTEFACT, Cause.DEGENERATE_OUTPUT}
)


def diagnose_answer(
    observation: Observation,
    sample: Sample,
    baseline: Baseline,
    engine: EngineSample | None,
    *,
    others_degraded: bool | None = None,
) -> Diagnosis:
    """The row of the table that one answer hits.

    sample: the judged numbers of ``observation``. engine: the last reading of the engine's own figures.
    others_degraded: whether other answers of the backend are degraded as well, where that is known.
    """
    return diagnose(findings_of(observation, sample, baseline, engine, others_degraded))


def cause_of_collapse(diagnosis: Diagnosis, factor: Cause) -> Cause:
    """What an alarm is blamed on. The alarm has shown which factor moved; the table may say more, never otherwise."""
    possible = _OF_STEP_TIME if factor is Cause.STEP_INFLATION else _OF_ACCEPTANCE
    if factor is Cause.UNKNOWN:
        possible = _OF_ACCEPTANCE | _OF_STEP_TIME
    return diagnosis.cause if diagnosis.cause in possible else factor


def cause_of_slow_answer(
    observation: Observation, sample: Sample, baseline: Baseline, engine: EngineSample | None
) -> Cause | None:
    """What a slow answer of a healthy backend is put down to."""
    cause = cause_of(findings_of(observation, sample, baseline, engine, others_degraded=False))
    return cause if cause in _OF_HEALTHY_ANSWERS else None


def findings_of(
    observation: Observation,
    sample: Sample,
    baseline: Baseline,
    engine: EngineSample | None,
    others_degraded: bool | None = None,
) -> Findings:
    """Every number that is known of the answer, beside what is usual."""
    acceptance = _against(sample.acceptance_length, baseline.acceptance_lengths)
    ttft = _against(sample.ttft_seconds, baseline.ttft_seconds, MIN_TTFT_ANSWERS)
    step = _slower(step_time_of(sample), baseline.step_seconds)
    rate = _slower(token_time_of(sample), baseline.token_seconds)
    cached, prompt = observation.cached_tokens, observation.prompt_tokens
    return Findings(
        acceptance_log_ratio=acceptance[0],
        acceptance_log_error=acceptance[1],
        step_log_ratio=step[0],
        step_log_error=step[1],
        rate_log_ratio=None if rate[0] is None else -rate[0],
        rate_log_error=rate[1],
        ttft_log_ratio=ttft[0],
        ttft_log_error=ttft[1],
        acceptance_length=sample.acceptance_length,
        acceptance_is_upper_bound=sample.upper_bound,
        step_seconds=sample.step_seconds,
        decode_tokens_per_second=sample.decode_tokens_per_second,
        position_acceptance=observation.position_acceptance,
        expected_first_position_acceptance=baseline.usual_first_position(),
        verify_steps=sample.verify_steps,
        draft_steps=sample.verify_steps if sample.drafts_counted else None,
        num_speculative_tokens=sample.num_speculative_tokens,
        completion_tokens=None if sample.tokens is None else round(sample.tokens),
        finish_reason=observation.finish_reason,
        prompt_tokens=round(sample.context_tokens) or None,
        longest_usual_prompt_tokens=round(max(baseline.contexts, default=0)) or None,
        cached_share=cached / prompt if cached is not None and prompt else None,
        other_answers_degraded=others_degraded,
        client_paced=observation.client_paced,
        in_flight=sample.in_flight,
        most_usual_in_flight=round(max(baseline.loads, default=0)) or None,
        requests_running=engine.requests_running if engine is not None else None,
        requests_waiting=engine.requests_waiting if engine is not None else None,
        kv_cache_usage=engine.kv_cache_usage if engine is not None else None,
        engine_awake=engine.awake if engine is not None else None,
    )


def _against(value: float | None, usual: list[float], least: int = MIN_ANSWERS) -> tuple[float | None, float | None]:
    """ln(value / geometric mean of the usual ones), and the deviation of those."""
    if value is None or value <= 0 or len(usual) < least:
        return None, None
    logs = list(map(math.log, usual))
    mean = sum(logs) / len(logs)
    variance = (sum(map(mul, logs, logs)) - mean * sum(logs)) / (len(logs) - 1)
    return math.log(value) - mean, math.sqrt(max(MIN_LOG_ERROR**2, variance))


def _slower(timed: Timed | None, law: TimeLaw) -> tuple[float | None, float | None]:
    """Log ratio of a time to what is expected at its load and context, with its error."""
    if timed is None or law.answers < MIN_ANSWERS:
        return None, None
    compared = law.compare(timed)
    return compared.slower, compared.spread
