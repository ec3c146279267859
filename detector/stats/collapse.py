"""Evidence of a collapse, in nats: positive speaks for it, negative for a healthy backend.

Request level: each answer gives an e-value against "the backend is healthy" from its acceptance and its step time, from
its rate only where neither is known; the Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo, arXiv 2203.03532) adds
them up. docs/detection.md says what holds under which assumptions. The steps inside an answer: ``stats.stream``.
"""

from __future__ import annotations

import math
from operator import attrgetter

import msgspec

from detector.stats.acceptance import FREAK, TRUSTED_ANSWERS, LogRatios
from detector.stats.baseline import (
    MIN_ANSWERS,
    Baseline,
    acceptance_of,
    paced_acceptance,
    step_time_of,
    token_time_of,
)
from detector.stats.sample import Sample
from detector.stats.timing import RATE, STEP, Compared
from detector.verdict import Cause

MIN_ACCEPTANCE = 0.1
"""A backend whose median acceptance is below this has nothing that could collapse (speculation off)."""
OFF_ACCEPTANCE_LENGTH = 1.005
OFF_STEP_SHARE = 0.8
"""Plain decoding steps are faster than verify steps by at least this (measured: 0.29..0.63 of T(K))."""
LOW_RATE_SHARE = 0.6
"""A rate below this share of the healthy one is low."""
MIN_EVIDENCE = -6.0
"""Nats; one answer never speaks for health more strongly, so that it cannot outweigh what comes after."""
STALL_MARGIN = 2.0
"""A shorter stall than that of a usual answer is enough where the content is slow."""
MAX_DETECTOR = 1e12


class Factor(msgspec.Struct, frozen=True, gc=False):
    """What an answer says of one factor of its speed, in nats: log likelihood ratios of degraded against healthy."""

    nats: float
    first_nats: float
    """Of the first answer of a collapse, which may have begun inside it."""
    cause: Cause


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """What one answer says: of one factor, or of both."""

    acceptance: Factor | None
    step: Factor | None
    """Where one of both is unknown, it is None; where both are, the rate stands for both."""

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Those that are known."""
        if self.acceptance is None or self.step is None:
            return tuple(factor for factor in (self.acceptance, self.step) if factor is not None)
        return self.acceptance, self.step

    @property
    def loudest(self) -> Factor:
        """The one that speaks most for a collapse."""
        return max(self.factors, key=_nats)

    @property
    def nats(self) -> float:
        """Log likelihood ratio of degraded against healthy: either factor may have collapsed."""
        if self.acceptance is None or self.step is None:
            return self.loudest.nats
        return math.log((math.exp(self.acceptance.nats) + math.exp(self.step.nats)) / 2)


class EDetector(msgspec.Struct):
    """Shiryaev-Roberts e-detectors: for each factor, the sum over all onsets of the product of the e-values since.

    M = M L + L_first (arXiv 2203.03532, section 2), where L_first is the e-value of an answer in which the collapse may
    have begun, and the weighted mean of both factors' M. M - (number of e-values) is a supermartingale while all
    e-values have a conditional mean of at most 1, and so is the mean, whatever its weights are as long as they stay:
    the mean number of answers to an alarm at M >= A is at least A. Two factors, since one freak in each is no
    collapse.
    """

    acceptance: float = 0.0
    step: float = 0.0
    acceptance_share: float = 0.5
    """Weight of acceptance in the mean: how often it was the factor that collapsed."""

    def update(self, evidence: Evidence) -> float:
        """Take one answer in; returns log M."""
        if evidence.acceptance is not None:
            self.acceptance = _grown(self.acceptance, evidence.acceptance)
        if evidence.step is not None:
            self.step = _grown(self.step, evidence.step)
        return self.nats

    @property
    def nats(self) -> float:
        """Log M, not below ``MIN_EVIDENCE``."""
        mean = self.acceptance_share * self.acceptance + (1 - self.acceptance_share) * self.step
        return math.log(max(mean, math.exp(MIN_EVIDENCE)))


def _grown(total: float, factor: Factor) -> float:
    return min(MAX_DETECTOR, math.exp(factor.first_nats) + total * math.exp(factor.nats))


def weigh(sample: Sample, baseline: Baseline) -> Evidence | None:
    """What one answer says against the backend; None where there is nothing to compare with."""
    compared = _step_compared(sample, baseline)
    acceptance = _acceptance_evidence(sample, baseline, compared)
    step = _inflation_evidence(baseline, compared)
    if acceptance is None and step is None:
        acceptance = step = _rate_evidence(sample, baseline)
    return None if acceptance is None and step is None else Evidence(acceptance, step)


def weigh_recovery(evidence: Evidence | None, cause: Cause) -> Factor | None:
    """What one answer says of a backend that is degraded for this cause: the factor that is worst.

    Where the factor is back that opened the episode, the other one does not keep it open: a canary may share its GPU
    with the fallback that carries the traffic, and ask for content that is accepted less.
    """
    if evidence is None:
        return None
    its_own = _FACTORS_OF.get(cause, ())
    back = [factor for factor in evidence.factors if factor.nats < 0 and factor.cause in its_own]
    return max(back or evidence.factors, key=_nats)


_FACTORS_OF = {
    Cause.ACCEPTANCE_COLLAPSE: (Cause.ACCEPTANCE_COLLAPSE, Cause.SPECULATION_OFF),
    Cause.STEP_INFLATION: (Cause.STEP_INFLATION,),
}
_nats = attrgetter("nats")


def is_low(sample: Sample, baseline: Baseline) -> bool:
    """Below what is usual in one factor. Content and load do that too: it only dates the onset of an alarm."""
    usual = baseline.medians.acceptance_length
    if sample.acceptance_length is not None and usual is not None and sample.acceptance_length < LOW_RATE_SHARE * usual:
        return True
    expected = baseline.expected_step_seconds(sample.in_flight, sample.context_tokens)
    if sample.step_seconds is not None and expected is not None:
        return sample.step_seconds > expected / LOW_RATE_SHARE
    rate = baseline.expected_rate(sample.in_flight, sample.context_tokens)
    if sample.decode_tokens_per_second is not None and rate is not None:
        return sample.decode_tokens_per_second < LOW_RATE_SHARE * rate
    return False


def is_late(sample: Sample, baseline: Baseline) -> bool:
    """The first token came later than any of the last healthy answers'."""
    longest = baseline.medians.longest_ttft_seconds
    return sample.ttft_seconds is not None and longest is not None and sample.ttft_seconds > longest


def _step_compared(sample: Sample, baseline: Baseline) -> Compared | None:
    """The step time of the answer beside the healthy one."""
    timed = step_time_of(sample)
    if timed is None or baseline.step_seconds.answers < MIN_ANSWERS:
        return None
    return baseline.step_seconds.compare(timed)


def _acceptance_evidence(sample: Sample, baseline: Baseline, step: Compared | None) -> Factor | None:
    acceptance = acceptance_of(sample)
    if acceptance is None:
        return None
    law = baseline.law_of(acceptance)
    if law.answers < MIN_ANSWERS or (baseline.medians.conditional_acceptance or 0.0) < MIN_ACCEPTANCE:
        return None
    # A collapse may slow the steps a little, too.
    drag_ratio = 1.0 if step is None else baseline.step_seconds.drag_ratio(step)
    ratios = law.nats(acceptance, drag_ratio)
    if sample.upper_bound and ratios.collapsed < 0:
        return None
    cause = Cause.SPECULATION_OFF if _speculation_is_off(sample, baseline) else Cause.ACCEPTANCE_COLLAPSE
    return _drafter_factor(ratios, cause)


def _speculation_is_off(sample: Sample, baseline: Baseline) -> bool:
    """One token every step, and either no draft was made or the steps are faster than verify steps are."""
    if sample.drafts_counted or sample.acceptance_length is None or sample.acceptance_length > OFF_ACCEPTANCE_LENGTH:
        return False
    if sample.num_speculative_tokens == 0:
        return True
    expected = baseline.expected_step_seconds(sample.in_flight, sample.context_tokens)
    return expected is not None and sample.step_seconds is not None and sample.step_seconds < OFF_STEP_SHARE * expected


def _inflation_evidence(baseline: Baseline, step: Compared | None) -> Factor | None:
    if step is None:
        return None
    nats = max(MIN_EVIDENCE, baseline.step_seconds.slow_nats(step, STEP))
    return Factor(nats, nats, Cause.STEP_INFLATION)


def _rate_evidence(sample: Sample, baseline: Baseline) -> Factor | None:
    """By the acceptance that the rate tells, where enough is known for that; else by the law of rates."""
    timed = token_time_of(sample)
    if timed is None or baseline.token_seconds.answers < MIN_ANSWERS:
        return None
    compared = baseline.token_seconds.compare(timed)
    told, law = baseline.acceptance_by_step_time(sample, timed), baseline.chain
    if told is None and baseline.paced.answers >= TRUSTED_ANSWERS:
        told, law = paced_acceptance(sample, compared), baseline.paced
    if told is None:
        nats = max(MIN_EVIDENCE, baseline.token_seconds.slow_nats(compared, RATE))
        return Factor(nats, nats, Cause.UNKNOWN)
    stalled = 0.0 if sample.stall_removed else STALL_MARGIN * baseline.token_seconds.stall_likelihood(compared)
    return _drafter_factor(law.nats(told, freak=FREAK + stalled), Cause.UNKNOWN)


def _drafter_factor(ratios: LogRatios, cause: Cause) -> Factor:
    return Factor(max(MIN_EVIDENCE, ratios.collapsed), max(MIN_EVIDENCE, ratios.first), cause)
