"""What the runs of one recording say of another's cycle: e-values for it, and against it.

For it, three bets are laid on the second recording's healthy runs: the certificate of ``detector.stats.cycle``, the
same with the first recording's runs learned before, and the first recording's law against chance alone. None gains on
average where collapses come by chance at a constant rate, so neither does their mean, an e-value: docs/replay.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from detector.stats.clocks import Clock
from detector.stats.cycle import CycleState, CycleTest
from detector.stats.run_history import RunHistory, RunLaws
from detector.stats.run_law import RunLaw, memoryless_log_cells, typical_length
from detector.stats.run_parts import Interval
from detector.stats.runs import Run
from replay.phases import Side

LAW_STAKE = 0.3
"""Stake of A's law against chance, which decides fastest; the rest is on the certificate, whose guarantee is wider."""
MIN_LEARNED_RUNS = 2
"""Complete runs of A from which the law of a phase is learned."""
EVEN_SHARE = 0.2
"""Of A's law: spread evenly over the clocks; the rest goes by how well each clock predicted A's own runs."""
_LEAST_PROBABILITY = 1e-12


def cyclic_evidence(a: Side, b: Side) -> float:
    """E-value for a cycle in B, A's taken into account: mean of the three bets by their stakes."""
    informed = CycleTest(state=CycleState(history=_laws(a, degraded=False).history))
    for run, degraded in b.runs:
        informed.update(run, degraded=degraded)
    certificate = (b.cycle.e_value + informed.verdict.e_value) / 2
    law = _law_evidence(a, b)
    return certificate if law is None else (1 - LAW_STAKE) * certificate + LAW_STAKE * law


def chance_evidence(a: Side, b: Side) -> float:
    """How much better chance predicts B's runs than A's laws do, on the clock where it does so least.

    Where B's runs, healthy and slow, did follow A's laws on one of the clocks, this is an e-value: the memoryless law
    predicts each run from B's runs before it, so the ratio has mean 1 under A's laws.
    """
    healthy = _against_law(a, b, degraded=False)
    slow = _against_law(a, b, degraded=True)
    evidence = [against + slow.get(clock, 0.0) for clock, against in healthy.items()]
    return math.exp(min(evidence, default=-math.inf))


def duration_evidence(a: Side, b: Side) -> float:
    """The same of B's slow runs alone: evidence that B's collapses last otherwise than A's."""
    return math.exp(min(_against_law(a, b, degraded=True).values(), default=-math.inf))


def _laws(side: Side, *, degraded: bool) -> RunLaws:
    """The complete runs of one phase, and what they say of the next one."""
    laws = RunLaws(RunHistory())
    for run, its in side.runs:
        if its is degraded:
            laws.add(run)
    laws.learn()
    return laws


def _law_evidence(a: Side, b: Side) -> float | None:
    """How much better A's law predicts B's healthy runs than any memoryless law on any clock does.

    All laws predict the same events, namely in which cell each run ends; so they compare over clocks. The runs that
    the recording's ends cut off count too: under a memoryless law what is left of a run has the law of a whole one.
    So, under a memoryless law on one of the clocks, the ratio has mean 1 at most: it is an e-value. None: A has too
    few runs.
    """
    learned = _laws(a, degraded=False)
    history = learned.history
    laws = learned.current if history.count >= MIN_LEARNED_RUNS else {}
    cells = _cells(b, degraded=False)
    first = {clock: _last_cell(b.first_healthy, clock) for clock in cells} if b.first_healthy else {}
    chance = []
    told: dict[Clock, float] = {}
    for clock, its in cells.items():
        left = first.get(clock)
        chance.append(_best_memoryless([*its, left] if left else its))
        if clock in laws:
            known = sum(math.log(laws[clock].between(*cell)) for cell in its)
            told[clock] = known + (math.log(residual(laws[clock], *left)) if left else 0.0)
    if not told:
        return None
    shares = _shares({clock: history.scores.get(clock, 0.0) for clock in told})
    return sum(share * math.exp(max(-700.0, min(700.0, told[clock] - max(chance)))) for clock, share in shares.items())


def _shares(scores: dict[Clock, float]) -> dict[Clock, float]:
    """How far each clock is trusted: by how well it predicted A's own runs, which B's know nothing of."""
    weights = {clock: math.exp(score - max(scores.values())) for clock, score in scores.items()}
    whole = sum(weights.values())
    return {clock: EVEN_SHARE / len(weights) + (1 - EVEN_SHARE) * weight / whole for clock, weight in weights.items()}


def residual(law: RunLaw, low: float, high: float) -> float:
    """Probability that a run of this law which one meets at a random moment goes on for (low, high], at least 1e-12.

    The density of what is left is P(run > x) / mean run (Feller, An Introduction to Probability Theory II, XI.4), here
    up to the law's last tabulated length.
    """
    lengths = law.points.array
    survival = 1.0 - law.cumulative
    below = np.concatenate([[0.0], np.cumsum(np.diff(lengths) * (survival[1:] + survival[:-1]) / 2)])
    between = np.interp([low, high], lengths, below / below[-1])
    return max(_LEAST_PROBABILITY, float(between[1] - between[0]))


def _best_memoryless(cells: Sequence[Interval]) -> float:
    """Log likelihood of these cells under the exponential law that suits them best."""
    low, high = np.array(cells).T
    ended = np.isfinite(high)
    rate = max(1, int(ended.sum())) / float(np.where(ended, (low + high) / 2, low).sum())
    rates = np.geomspace(0.2, 5.0, 81)[:, None] * rate
    likelihoods = np.exp(-rates * low) - np.exp(-rates * high)
    return float(np.log(np.maximum(likelihoods, 1e-300)).sum(axis=1).max())


def _against_law(a: Side, b: Side, *, degraded: bool) -> dict[Clock, float]:
    """On each clock, the log likelihood of B's runs of one phase by chance over that by A's law; none: not known."""
    learned = _laws(a, degraded=degraded)
    history = learned.history
    if history.count < MIN_LEARNED_RUNS:
        return {}
    cells = _cells(b, degraded=degraded)
    return {
        clock: _by_chance(cells[clock], typical_length(history.intervals[clock]))
        - sum(math.log(law.between(*cell)) for cell in cells[clock])
        for clock, law in learned.current.items()
        if clock in cells
    }


def _by_chance(cells: Iterable[Interval], scale: float) -> float:
    low, high = np.array(list(cells)).T / scale
    return float(memoryless_log_cells(low, high).sum())


def _cells(side: Side, *, degraded: bool) -> dict[Clock, list[Interval]]:
    """On each clock that knows all of them, where the runs of a phase ended; the one under way ends some time."""
    runs = [run for run, its in side.runs if its is degraded]
    under_way = side.under_way[0] if side.under_way and side.under_way[1] is degraded else None
    found: dict[Clock, list[Interval]] = {}
    for clock in Clock:
        cells = [cell for run in runs if (cell := _last_cell(run, clock))]
        so_far = under_way.actual.on(clock) if under_way else None
        if not cells or len(cells) < len(runs) or (under_way and so_far is None):
            continue
        found[clock] = [*cells, (so_far, math.inf)] if so_far else cells
    return found


def _last_cell(run: Run, clock: Clock) -> Interval | None:
    """Between which two points of the clock the run ended."""
    ends = run.ends(clock)
    if ends is None or ends[-1] <= 0:
        return None
    return (ends[-2] if len(ends) > 1 else 0.0, ends[-1])
