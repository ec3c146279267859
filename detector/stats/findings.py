"""What is known of one slow answer, and the intervals that the diagnosis (``cause``) judges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from detector.stats.proportion import OVERDISPERSION, Z, wilson_interval

Interval = tuple[float, float]

DEFAULT_LOG_ERROR: Final = 0.05
"""Standard error, in nats, of a log ratio that came without one: what answers of a steady engine scatter by."""
UNKNOWN_STEPS: Final = 50.0
"""Verify steps of an answer that does not tell how many it took, for the width of its intervals."""
LARGEST: Final = 1e100
"""Nothing measured is as large; what is cannot overflow a formula."""
OFF_ACCEPTANCE_LENGTH: Final = 1.005
"""Up to here, every step gave one token."""
OFF_STEP_LOG_RATIO: Final = math.log(0.8)
"""A plain decoding step takes at most this share of a verify step (published: T(K)/T(0) from 1.36 to 3.4)."""
FULL_CACHE: Final = 0.95
"""Share of the KV cache from which on an engine must make requests wait or preempt them."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the diagnosis of one answer, or of one episode, reads. None (or NaN): unknown.

    Log ratios are ln(measured / expected of this answer), in nats, the expected one being that of the same load, prompt
    length and class as far as the baseline tells them apart; step time and rate without the longest gap of the answer,
    so that one stall does not read as slow steps. ``*_log_error`` is the standard error of the ratio, the expectation's
    own included; None: ``DEFAULT_LOG_ERROR``.
    """

    acceptance_log_ratio: float | None = None
    acceptance_log_error: float | None = None
    step_log_ratio: float | None = None
    step_log_error: float | None = None
    rate_log_ratio: float | None = None
    rate_log_error: float | None = None
    ttft_log_ratio: float | None = None
    ttft_log_error: float | None = None

    acceptance_length: float | None = None
    """A, 1..K+1."""
    acceptance_is_upper_bound: bool = False
    """Steps were merged on the way: A and T are at most what is given (``Quality.UPPER_BOUND``)."""
    step_seconds: float | None = None
    decode_tokens_per_second: float | None = None
    position_acceptance: tuple[float, ...] | None = None
    """p_i: share of verify steps in which draft position i was accepted."""
    expected_first_position_acceptance: float | None = None
    """p_0 of healthy answers."""
    break_even_acceptance_length: float | None = None
    """T(K)/T(0) of this backend (``nspec.break_even_acceptance_length``)."""
    verify_steps: float | None = None
    draft_steps: float | None = None
    """Steps with drafts that the engine counted: ``drafts`` of the counters' difference, or of the answer's metrics."""
    num_speculative_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    visible_bytes_per_token: float | None = None
    """Bytes of generated text, reasoning and tool calls included, per generated token: near 0 where an engine
    generates what nobody can see."""

    prompt_tokens: int | None = None
    longest_usual_prompt_tokens: int | None = None
    """Longest prompt of the healthy answers of the baseline."""
    cached_share: float | None = None
    """Share of the prompt that came from the prefix cache, 0..1."""
    content_differs: bool | None = None
    """The answer is known to be of another class of content than the baseline (client, route, prompt prefix)."""
    other_answers_degraded: bool | None = None
    """Answers of usual prompts that the backend gave in the meantime: True, most are degraded; False, none is."""

    client_paced: bool | None = None
    in_flight: int | None = None
    most_usual_in_flight: int | None = None
    """Most requests in flight among the healthy answers of the baseline."""
    requests_running: float | None = None
    requests_waiting: float | None = None
    kv_cache_usage: float | None = None
    """0..1."""
    preemptions: float | None = None
    """During this answer."""
    sibling_busy: bool | None = None
    """Another backend that shares the GPU was serving during this answer."""
    engine_awake: bool | None = None
    process_restarted: bool | None = None
    """The engine's process is younger than this answer, or this is one of its first answers."""


class Numbers:
    """The numbers of some findings by name, each as the interval that holds the true one.

    They are worked out when they are asked for: most rows of the table fall at their first condition.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._known: dict[str, Interval | None] = {}

    def get(self, name: str) -> Interval | None:
        """One of ``NUMBERS``; None where it is not known."""
        if name in self._known:
            return self._known[name]
        interval = NUMBERS[name](self._findings)
        if interval is not None and not math.isfinite(interval[1]):
            interval = None
        self._known[name] = interval
        return interval


def acceptance_length_interval(findings: Findings) -> Interval | None:
    """Where the true A of the answer lies, from its verify steps; None where A is unknown.

    Accepted drafts a step are taken for geometric, with variance a (1 + a), and the steps for overdispersed.
    """
    length = known(findings.acceptance_length)
    if length is None:
        return None
    accepted = max(0.0, length - 1)
    half = Z * math.sqrt(OVERDISPERSION * accepted * (1 + accepted) / _steps(findings))
    return 1.0 if findings.acceptance_is_upper_bound else max(1.0, 1 + accepted - half), 1 + accepted + half


def known(number: float | None) -> float | None:
    """The number if it is one: neither None nor NaN, nor as large as no measurement is."""
    return float(number) if number is not None and -LARGEST < number < LARGEST else None


def _point(number: float | None) -> Interval | None:
    value = known(number)
    return None if value is None else (value, value)


def _ratio(number: float | None, usual: float | None) -> float | None:
    value, reference = known(number), known(usual)
    return None if value is None or reference is None or reference <= 0 else value / reference


def _log_ratio(ratio: float | None, error: float | None) -> Interval | None:
    middle, deviation = known(ratio), known(error)
    if middle is None:
        return None
    half = Z * (DEFAULT_LOG_ERROR if deviation is None or deviation < 0 else deviation)
    return middle - half, middle + half


def _acceptance_log_ratio(findings: Findings) -> Interval | None:
    interval = _log_ratio(findings.acceptance_log_ratio, findings.acceptance_log_error)
    return (-math.inf, interval[1]) if interval is not None and findings.acceptance_is_upper_bound else interval


def _step_log_ratio(findings: Findings) -> Interval | None:
    interval = _log_ratio(findings.step_log_ratio, findings.step_log_error)
    return (-math.inf, interval[1]) if interval is not None and findings.acceptance_is_upper_bound else interval


def _steps(findings: Findings) -> float:
    steps = known(findings.verify_steps)
    return UNKNOWN_STEPS if steps is None or steps <= 0 else steps


def _positions(findings: Findings) -> tuple[float, ...]:
    """p_i up to the first that is unknown, each taken into 0..1."""
    positions: list[float] = []
    for share in findings.position_acceptance or ():
        if known(share) is None:
            break
        positions.append(min(1.0, max(0.0, share)))
    return tuple(positions)


def _first_position(findings: Findings) -> Interval | None:
    """p_0, or its bounds by A: a chain accepts position i only after i - 1, so (A - 1) / K <= p_0 <= A - 1."""
    positions, steps = _positions(findings), _steps(findings)
    if positions:
        return wilson_interval(positions[0], steps)
    length, depth = known(findings.acceptance_length), findings.num_speculative_tokens
    if length is None or depth == 0:
        return None
    lowest = 0.0
    if depth is not None and depth > 0 and not findings.acceptance_is_upper_bound:
        lowest = wilson_interval((length - 1) / depth, steps)[0]
    return lowest, wilson_interval(length - 1, steps)[1]


def _first_position_share(findings: Findings) -> Interval | None:
    interval, reference = _first_position(findings), known(findings.expected_first_position_acceptance)
    if interval is None or reference is None or reference <= 0:
        return None
    return interval[0] / reference, interval[1] / reference


def _second_given_first(findings: Findings) -> Interval | None:
    """p_1 / p_0: acceptance of the second position where the first was accepted."""
    positions = _positions(findings)
    if len(positions) < 2 or positions[0] <= 0:
        return None
    return wilson_interval(positions[1] / positions[0], _steps(findings) * positions[0])


def _second_excess(findings: Findings) -> Interval | None:
    second, p0 = _second_given_first(findings), _first_position(findings)
    return None if second is None or p0 is None else (second[0] - p0[1], second[1] - p0[0])


def _accepted_share(findings: Findings) -> Interval | None:
    """(A - 1) / K: 1 where every draft was accepted."""
    length, depth = known(findings.acceptance_length), findings.num_speculative_tokens
    if length is None or depth is None or depth <= 0:
        return None
    share = (length - 1) / depth
    return 0.0 if findings.acceptance_is_upper_bound else share, share


def _rate_mismatch(findings: Findings) -> Interval | None:
    """|ln(rate x T / A)|: zero where the three were measured rightly, since tok/s = S x A."""
    rate, step, length = (
        known(number)
        for number in (findings.decode_tokens_per_second, findings.step_seconds, findings.acceptance_length)
    )
    if rate is None or step is None or length is None or min(rate, step, length) <= 0:
        return None
    return _point(abs(math.log(rate) + math.log(step) - math.log(length)))


def _drafting(findings: Findings) -> float | None:
    """1: drafts were made; 0: none was; None: nothing tells.

    Without a count of drafts, more than one token a step proves them. One token a step needs the step time: a plain
    step is much faster than a verify step, unless something else slows the GPU down.
    """
    drafts, length = known(findings.draft_steps), known(findings.acceptance_length)
    if drafts is not None:
        return float(drafts > 0)
    if findings.num_speculative_tokens == 0:
        return 0.0
    if any(share > 0 for share in _positions(findings)):
        return 1.0
    if length is None:
        return None
    if length > OFF_ACCEPTANCE_LENGTH:
        return None if findings.acceptance_is_upper_bound else 1.0
    step = _step_log_ratio(findings)
    if step is not None and step[1] <= OFF_STEP_LOG_RATIO:
        return 0.0
    slowed = findings.sibling_busy is True
    return 1.0 if step is not None and step[0] > OFF_STEP_LOG_RATIO and not slowed else None


def _queue_signs(findings: Findings) -> float | None:
    """How many of the engine's own signs of a full engine there were; None where it tells none of them."""
    waiting, usage, preempted = (
        known(number) for number in (findings.requests_waiting, findings.kv_cache_usage, findings.preemptions)
    )
    if waiting is None and usage is None and preempted is None:
        return None
    return float((waiting or 0) >= 1) + float((usage or 0) >= FULL_CACHE) + float((preempted or 0) >= 1)


def _load_ratio(findings: Findings) -> float | None:
    """Requests on the engine, by the proxy's count or by its own, to the most that the baseline knows."""
    counts = [count for count in (known(findings.in_flight), known(findings.requests_running)) if count is not None]
    return _ratio(max(counts), findings.most_usual_in_flight) if counts else None


def _itself(name: str) -> Callable[[Findings], Interval | None]:
    return lambda findings: _point(getattr(findings, name))


def _finished_by_length(findings: Findings) -> float | None:
    return None if findings.finish_reason is None else findings.finish_reason == "length"


NUMBERS: Final[dict[str, Callable[[Findings], Interval | None]]] = {
    "acceptance_log_ratio": _acceptance_log_ratio,
    "step_log_ratio": _step_log_ratio,
    "rate_log_ratio": lambda findings: _log_ratio(findings.rate_log_ratio, findings.rate_log_error),
    "ttft_log_ratio": lambda findings: _log_ratio(findings.ttft_log_ratio, findings.ttft_log_error),
    "first_position_acceptance": _first_position,
    "first_position_share": _first_position_share,
    "second_position_given_first": _second_given_first,
    "second_position_excess": _second_excess,
    "accepted_share_of_drafts": _accepted_share,
    "rate_mismatch_nats": _rate_mismatch,
    "drafting": lambda findings: _point(_drafting(findings)),
    "queue_signs": lambda findings: _point(_queue_signs(findings)),
    "load_ratio": lambda findings: _point(_load_ratio(findings)),
    "prompt_ratio": lambda findings: _point(_ratio(findings.prompt_tokens, findings.longest_usual_prompt_tokens)),
    "finished_by_length": lambda findings: _point(_finished_by_length(findings)),
    "cached_share": _itself("cached_share"),
    "client_paced": _itself("client_paced"),
    "completion_tokens": _itself("completion_tokens"),
    "content_differs": _itself("content_differs"),
    "engine_awake": _itself("engine_awake"),
    "other_answers_degraded": _itself("other_answers_degraded"),
    "preemptions": _itself("preemptions"),
    "process_restarted": _itself("process_restarted"),
    "sibling_busy": _itself("sibling_busy"),
    "visible_bytes_per_token": _itself("visible_bytes_per_token"),
}
"""What the conditions of the table may name."""
