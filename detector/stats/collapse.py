"""Evidence of a collapse, in nats: positive speaks for it, negative for a healthy backend.

The acceptance of an answer is weighed against the worst healthy acceptance, its step time against the
healthy step time at the same load; its rate only where neither is known. The steps inside an answer: ``stats.stream``.
"""

from __future__ import annotations

import math

import msgspec

from detector.stats.baseline import Baseline, Level
from detector.stats.sample import ASSUMED_STEPS, Sample
from detector.verdict import Cause

WORST_HEALTHY_ACCEPTANCE = 0.6
"""Lowest conditional acceptance of healthy content (prose on a DFlash, MTP or EAGLE drafter was never seen below)."""
WORST_HEALTHY_SHARE = 0.75
"""A drafter whose median is low has a floor this share of its own median instead."""
COLLAPSED_SHARE = 0.48
"""Acceptance of a collapsed drafter as a share of the floor: 0.4 accepted tokens a step where the floor gives 1.5."""
OVERDISPERSION = 5.0
"""Variance of an answer's acceptance in units of what independent steps would give. Content makes it 16..28 over ten
seconds of a busy server; the worst healthy floor already allows for most of that."""
MIN_ACCEPTANCE = 0.1
"""A backend whose median acceptance is below this has nothing that could collapse (speculation off)."""
OFF_ACCEPTANCE_LENGTH = 1.005
OFF_STEP_SHARE = 0.8
"""Plain decoding steps are faster than verify steps by at least this (measured: 0.29..0.63 of T(K))."""
LOW_RATE_SHARE = 0.6
"""A rate below this share of the healthy median is low."""
STEP_INFLATION = 2.0
"""A step time above this multiple of the healthy median is inflated."""
MAX_DROP = 2.0
"""Nats; a deeper drop is no stronger evidence."""
STALL_SHARE = 0.005
"""Share of healthy answers that are slow by any amount, for reasons of their own (stalls, a neighbour)."""
MAX_ACCEPTANCE_EVIDENCE = 6.0
MAX_INFLATION_EVIDENCE = 4.0
"""Slow steps of one answer may be a stall: they are never enough for an alarm by themselves."""
MIN_EVIDENCE = -4.0


class Floor(msgspec.Struct, frozen=True):
    """The two acceptances that a drafter is judged between."""

    worst_healthy: float
    collapsed: float

    def gain(self, accepted: float, rejected: float) -> float:
        """Log likelihood ratio, collapsed against worst healthy, of so many accepted and rejected draft positions."""
        when_accepted = math.log(self.collapsed / self.worst_healthy)
        when_rejected = math.log((1 - self.collapsed) / (1 - self.worst_healthy))
        return accepted * when_accepted + rejected * when_rejected


class Evidence(msgspec.Struct, frozen=True):
    """What one answer says."""

    nats: float
    cause: Cause


def floor_of(baseline: Baseline) -> Floor | None:
    """The floor of this backend's drafter; None while it is unknown, or where nothing is drafted."""
    median = baseline.acceptance()
    if median is None or median < MIN_ACCEPTANCE:
        return None
    worst_healthy = min(WORST_HEALTHY_ACCEPTANCE, WORST_HEALTHY_SHARE * median)
    return Floor(worst_healthy, COLLAPSED_SHARE * worst_healthy)


def weigh(sample: Sample, baseline: Baseline) -> Evidence | None:
    """The strongest evidence against the backend that one answer gives; None where there is nothing to compare with."""
    found = [_acceptance_evidence(sample, baseline), _inflation_evidence(sample, baseline)]
    known = [evidence for evidence in found if evidence is not None]
    if not known:
        return _rate_evidence(sample, baseline)
    return max(known, key=lambda evidence: evidence.nats)


def weigh_recovery(sample: Sample, baseline: Baseline, cause: Cause) -> Evidence | None:
    """What one answer says of a backend that is degraded for this cause.

    A collapse of acceptance is over when acceptance is back. Slow steps do not speak against it: a canary may share
    its GPU with the fallback that carries the traffic.
    """
    if cause is Cause.ACCEPTANCE_COLLAPSE:
        acceptance = _acceptance_evidence(sample, baseline)
        if acceptance is not None and acceptance.nats < 0:
            return acceptance
    return weigh(sample, baseline)


def is_low(sample: Sample, baseline: Baseline) -> bool:
    """Below what is usual in one factor. Content and load do that too: it only dates the onset of an alarm."""
    usual = baseline.acceptance_length()
    if sample.acceptance_length is not None and usual is not None and sample.acceptance_length < LOW_RATE_SHARE * usual:
        return True
    step, rate = baseline.step_level(sample.in_flight), baseline.rate_level(sample.in_flight)
    if sample.step_seconds is not None and step is not None:
        return math.log(sample.step_seconds) > step.median - math.log(LOW_RATE_SHARE)
    if sample.decode_tokens_per_second is not None and rate is not None:
        return math.log(sample.decode_tokens_per_second) < rate.median + math.log(LOW_RATE_SHARE)
    return False


def _acceptance_evidence(sample: Sample, baseline: Baseline) -> Evidence | None:
    floor = floor_of(baseline)
    acceptance = sample.conditional_acceptance
    if floor is None or acceptance is None:
        return None
    if sample.chain_length == 1:
        per_step = floor.gain(acceptance, 1 - acceptance)
    else:
        accepted = (sample.acceptance_length or 1.0) - 1
        full = 0.0 if sample.chain_length is None else acceptance**sample.chain_length
        per_step = floor.gain(accepted, 1 - full)
    nats = per_step * _healthy_steps(sample, floor) / OVERDISPERSION
    if sample.upper_bound and nats < 0:
        return None
    cause = Cause.SPECULATION_OFF if _speculation_is_off(sample, baseline) else Cause.ACCEPTANCE_COLLAPSE
    return Evidence(min(MAX_ACCEPTANCE_EVIDENCE, max(MIN_EVIDENCE, nats)), cause)


def _healthy_steps(sample: Sample, floor: Floor) -> float:
    """Verify steps that the worst healthy drafter would have taken for this answer: the weight of its acceptance.

    The steps that were taken grow as acceptance falls, so that a short unlucky answer would weigh as a long one.
    """
    steps, length = sample.verify_steps or ASSUMED_STEPS, sample.acceptance_length
    if length is None:
        return steps
    return steps * length * (1 - floor.worst_healthy)


def _speculation_is_off(sample: Sample, baseline: Baseline) -> bool:
    """One token every step, and either no draft was made or the steps are faster than verify steps are."""
    if sample.drafts_counted or sample.acceptance_length is None or sample.acceptance_length > OFF_ACCEPTANCE_LENGTH:
        return False
    if sample.num_speculative_tokens == 0:
        return True
    level = baseline.step_level(sample.in_flight)
    return (
        level is not None
        and sample.step_seconds is not None
        and math.log(sample.step_seconds) < level.median + math.log(OFF_STEP_SHARE)
    )


def _inflation_evidence(sample: Sample, baseline: Baseline) -> Evidence | None:
    level = baseline.step_level(sample.in_flight)
    if level is None or sample.step_seconds is None:
        return None
    drop = math.log(sample.step_seconds) - level.median
    nats = _drop_evidence(drop, level, math.log(STEP_INFLATION), 5 / (sample.verify_steps or ASSUMED_STEPS))
    return Evidence(min(MAX_INFLATION_EVIDENCE, nats), Cause.STEP_INFLATION)


def _rate_evidence(sample: Sample, baseline: Baseline) -> Evidence | None:
    level = baseline.rate_level(sample.in_flight)
    if level is None or sample.decode_tokens_per_second is None:
        return None
    drop = level.median - math.log(sample.decode_tokens_per_second)
    extra_variance = 10 / sample.tokens if sample.tokens is not None else 0.0
    return Evidence(_drop_evidence(drop, level, -math.log(LOW_RATE_SHARE), extra_variance), Cause.UNKNOWN)


def _drop_evidence(drop: float, level: Level, least_drop: float, extra_variance: float) -> float:
    """Log density ratio of a drop (nats towards slow) between collapsed and healthy.

    Healthy: Student's t with 4 degrees of freedom around the reference, and a small share of stalls of any size.
    Collapsed: any drop from ``least_drop`` to ``MAX_DROP``, equally likely, blurred by the spread. A smaller drop is
    never evidence of a collapse, however narrow the reference is.
    """
    spread = math.sqrt(level.spread**2 + extra_variance)
    drop = min(drop, max(MAX_DROP - spread, (least_drop + MAX_DROP) / 2))
    healthy = (1 - STALL_SHARE) * _t4_density(drop / spread) / spread + STALL_SHARE / 4
    reach = _t4_cumulative((drop - least_drop) / spread) - _t4_cumulative((drop - MAX_DROP) / spread)
    collapsed = max(reach / (MAX_DROP - least_drop), 1e-9)
    nats = max(MIN_EVIDENCE, math.log(collapsed / healthy))
    return nats if drop > least_drop else min(0.0, nats)


def _t4_density(x: float) -> float:
    return 0.375 / (1 + x * x / 4) ** 2 / math.sqrt(1 + x * x / 4)


def _t4_cumulative(x: float) -> float:
    w = x / math.sqrt(x * x + 4)
    return 0.5 + 0.75 * (w - w**3 / 3)
