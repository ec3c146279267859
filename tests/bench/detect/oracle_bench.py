"""What a detector could reach that is told the true laws of the traffic: the limit for our own delays and misses.

usage: python -m tests.bench.detect.oracle_bench [--output docs/results/detection-oracle.md]

The oracle knows every content with its share and spread, the law of a collapse with its step time, and how much of an
answer a collapse may leave alone; also the acceptance of answers that do not tell it, unless the client paced them. It
does not know when collapses come. It adds up exact likelihood ratios of tokens, steps and step times as an e-detector,
M = M x collapsed / healthy + begins here / healthy, and forgets everything at the end of each collapse.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.stats.timing import t4_density
from tests.bench.detect.physics import (
    PUBLISHED_K,
    conditional_acceptance,
    mean_accepted,
    step_seconds,
    variance_accepted,
)
from tests.bench.detect.scenarios import CONTENTS, NULL_OF, SCENARIOS, Scenario
from tests.bench.detect.scoring import Score, score
from tests.bench.detect.series import Size, series_of
from tests.bench.detect.simulator import CONTEXT_TOKENS, LOAD_SLOWDOWN, Answer, overdispersion

Array = NDArray[np.float64]
SIZE = Size(collapse_requests=2000, null_requests=6000, seeds=1)
NAMES = (
    "deploy",
    "k15",
    "blocks_cycle",
    "noisy",
    "wander",
    "wander_median_120_tokens",
    "median_120_tokens",
    "missing_data",
    "workers_8",
    "idle_gaps",
    "low_acceptance",
    "mild",
)
COLLAPSED_SHARES = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
"""Of the answer in which a collapse begins."""
MAX_NATS = 8.3
"""One answer never says more: one healthy answer in 4000 may look dead for a reason of its own."""
STEP_SPREAD, SLOW_FREAK = 0.042, 0.02
"""Least spread of a log step time, load and context known, and the share of answers that another reason slows."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)


class Laws(NamedTuple):
    """Mean and variance of a step's accepted tokens: of each healthy content with its weight, and collapsed."""

    means: Array
    variances: Array
    weights: Array
    collapsed_mean: float
    collapsed_variance: float


def laws_of(scenario: Scenario) -> Laws:
    """The true laws."""
    assert scenario.collapse is not None
    depth, workload, rows = scenario.engine.num_speculative_tokens, scenario.workload, []
    contents = [(content.accepted, share) for content, share in zip(CONTENTS, workload.shares, strict=True)]
    for accepted, share in [(workload.accepted, 1.0)] if workload.content == "fixed" else contents:
        p = conditional_acceptance(accepted, PUBLISHED_K)
        logit = math.log(p / (1 - p))
        for node, weight in zip(_NODES.tolist(), (_WEIGHTS / _WEIGHTS.sum()).tolist(), strict=True):
            q = 1 / (1 + math.exp(-logit - scenario.engine.acceptance_logit_deviation * node))
            rows.append((mean_accepted(q, depth), variance_accepted(q, depth), share * weight))
    means, variances, weights = np.array(rows).T
    dead = conditional_acceptance(scenario.collapse.accepted, PUBLISHED_K)
    return Laws(means, variances, weights, mean_accepted(dead, depth), variance_accepted(dead, depth))


def log_ratios(scenario: Scenario, laws: Laws, answer: Answer) -> tuple[float, float]:
    """(begins here, collapsed) against healthy, by tokens and steps."""
    tokens, per_token = answer.tokens, answer.verify_steps / answer.tokens
    accepted, fewest = 1 / per_token - 1, 0.5 / answer.tokens

    def deviation(means: Array, variances: Array, count: float) -> Array:
        steps = np.maximum(1.0, count / (1 + means))
        factors = np.array([overdispersion(scenario.engine, one) for one in steps.tolist()])
        return np.sqrt(factors * variances / steps)

    def whole(means: Array, variances: Array) -> Array:
        spread = deviation(means, variances, tokens)
        if per_token >= 1 - fewest:  # nothing was accepted: all that the normal law has below zero
            return np.array([_below((fewest / per_token - m) / s) * tokens for m, s in zip(means, spread, strict=True)])
        return _normal(accepted, means, spread) / per_token**2

    dead_mean, dead_variance = np.array([laws.collapsed_mean]), np.array([laws.collapsed_variance])
    healthy = float(laws.weights @ whole(laws.means, laws.variances))
    collapsed = float(whole(dead_mean, dead_variance)[0])
    begins = 0.0
    for share in COLLAPSED_SHARES:
        first = deviation(laws.means, laws.variances, (1 - share) * tokens) * (1 - share) / (1 + laws.means) ** 2
        second = deviation(dead_mean, dead_variance, share * tokens) * share / (1 + dead_mean) ** 2
        mean = (1 - share) / (1 + laws.means) + share / (1 + dead_mean)
        spread = np.maximum(np.hypot(first, second), 0.3 / tokens)
        begins += float(laws.weights @ _normal(per_token, mean, spread)) / len(COLLAPSED_SHARES)
    floor = max(healthy, 1e-300)
    return math.log(max(begins, 1e-300) / floor), math.log(max(collapsed, 1e-300) / floor)


def step_time_nats(scenario: Scenario, laws: Laws, answer: Answer) -> tuple[float, float]:
    """What the step time adds, load and context known, of a collapse that slows the steps: (begins here, collapsed)."""
    assert scenario.collapse is not None
    usual = step_seconds(scenario.engine.num_speculative_tokens) * (1 + LOAD_SLOWDOWN * (answer.in_flight - 1))
    each = (answer.decode_seconds - answer.longest_gap_seconds) / max(1, answer.verify_steps - 1)
    slower = math.log(max(each, 1e-6) / usual / (1 + answer.prompt_tokens / CONTEXT_TOKENS))
    spread = max(STEP_SPREAD, 1.3 * math.hypot(scenario.engine.step_noise, 0.02))

    def ratio(steps_share: float) -> float:
        expected = math.log1p(steps_share * (scenario.collapse.step_factor - 1))
        slow, healthy = (t4_density((slower - one) / spread) / spread for one in (expected, 0.0))
        return slow / ((1 - SLOW_FREAK) * healthy + SLOW_FREAK * slow)

    before, after = 1 / (1 + float(laws.weights @ laws.means)), 1 / (1 + laws.collapsed_mean)
    shares = [share * after / (share * after + (1 - share) * before) for share in COLLAPSED_SHARES]
    return math.log(sum(map(ratio, shares)) / len(shares)), math.log(ratio(1.0))


def evidence(scenario: Scenario, laws: Laws, answers: list[Answer], *, by_step_time: bool) -> list[tuple[float, float]]:
    """Of each answer: (begins here, collapsed)."""
    found = []
    for answer in answers:
        if answer.no_rate:
            found.append((0.0, 0.0))
            continue
        more = step_time_nats(scenario, laws, answer) if by_step_time else (0.0, 0.0)
        both = zip(log_ratios(scenario, laws, answer), more, strict=True)
        begins, collapsed = (min(MAX_NATS, tokens + times) for tokens, times in both)
        found.append((begins, collapsed))
    return found


def alarms(found: list[tuple[float, float]], threshold_nats: float, degraded: list[bool]) -> list[int]:
    """Answers at which the oracle alarms; everything is forgotten there, and where a collapse ends."""
    evidence, numbers = 0.0, []
    for number, (begins, collapsed) in enumerate(found):
        ended = number > 0 and degraded[number - 1] and not degraded[number]
        evidence = (0.0 if ended else evidence * math.exp(collapsed)) + math.exp(begins)
        if evidence >= math.exp(threshold_nats):
            numbers.append(number)
            evidence = 0.0
    return numbers


def row(name: str, *, by_step_time: bool) -> list[str]:
    """One line of the table for the setting 1000, and one for the threshold that has 1 false alarm per 1000."""
    scenario = SCENARIOS[name]
    laws, null = laws_of(scenario), next(series_of(SCENARIOS[NULL_OF[name]], SIZE))
    healthy = evidence(scenario, laws, null.answers, by_step_time=by_step_time)
    never = [False] * len(healthy)
    low, high = 0.0, 20.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        too_many = 1000 * len(alarms(healthy, middle, never)) > len(healthy)
        low, high = (middle, high) if too_many else (low, middle)
    series = next(series_of(scenario, SIZE))
    found = evidence(scenario, laws, series.answers, by_step_time=by_step_time)
    degraded = [answer.degraded for answer in series.answers]
    lines = []
    for threshold in (math.log(1000), high):
        result: Score = score(degraded, alarms(found, threshold, degraded), begin=series.begin)
        false = 1000 * len(alarms(healthy, threshold, never)) / len(healthy)
        lines.append(f"{result.mean_delay:.2f} · {result.long_missed_share or 0:.1%} · {false:.2f}")
    return lines


def _normal(value: float, mean: Array, spread: Array) -> Array:
    density: Array = np.exp(-(((value - mean) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    return density


def _below(score: float) -> float:
    return 0.5 * math.erfc(-score / math.sqrt(2))


HEAD = """# What an oracle would reach

Written by `python -m tests.bench.detect.oracle_bench --output docs/results/detection-oracle.md`: do not edit.

A detector that is told the true laws of the traffic, but not when collapses come (how: the head of
[oracle_bench.py](../../tests/bench/detect/oracle_bench.py)). Each cell: mean delay in answers · missed of the longer
collapses · false alarms per 1000 on the null. "As promised" alarms at 1000, which bounds the false alarms; "searched"
at the lowest threshold that has 1 per 1000 on this very null. The bar is 1.0 · 1 % · 1. One seed: 2000 answers with
collapses, 6000 without.

| scenario | acceptance, as promised | acceptance, searched | and step time, as promised | and step time, searched |
|---|---|---|---|---|
"""


def main() -> None:
    """Print the table, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, metavar="PAGE")
    output = parser.parse_args().output
    text = HEAD
    for name in NAMES:
        cells = row(name, by_step_time=False) + row(name, by_step_time=True)
        text += f"| {name} | {' | '.join(cells)} |\n"
        print(text.splitlines()[-1], flush=True)
    if output is not None:
        output.write_text(text)


if __name__ == "__main__":
    main()
