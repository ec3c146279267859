"""Where in its cycle a backend probably is, and when it will probably turn: a hidden semi-Markov filter.

The hidden state is the phase, healthy or degraded, and the answer after which it began (Yu 2010, explicit-duration
hidden Markov models). Keeping beginnings instead of elapsed counts gives the elapsed time on every clock at once. How
long phases last is learned from complete runs; evidence of each answer comes from outside, as a log likelihood ratio.
"""

from __future__ import annotations

import math

import msgspec

from detector.stats.clocks import UNKNOWN, ZERO, Clock, ClockReading
from detector.stats.run_history import RunHistory, RunLaws
from detector.stats.run_law import DEGRADED_SIGNATURE, HEALTHY_SIGNATURE, RunLaw, prior_law, with_signature
from detector.stats.runs import Run

PRIOR_HEALTHY_REQUESTS, PRIOR_DEGRADED_REQUESTS = 300.0, 10.0
"""Median lengths of the runs of a backend of which nothing is known, beside the published cycle."""
MAX_BEGINNINGS = 24
NEGLIGIBLE = 1e-3
"""A beginning less probable than this is forgotten."""
MAX_NATS = 9.0
"""Evidence of one answer, either way; no answer is surer than this."""
CLOCK_PRIOR = {
    Clock.REQUESTS: math.log(0.4),
    Clock.TOKENS: math.log(0.2),
    Clock.STEPS: math.log(0.1),
    Clock.KV_BLOCKS: math.log(0.1),
    Clock.SECONDS: math.log(0.2),
}


class Beginning(msgspec.Struct, kw_only=True, gc=False):
    """One hypothesis: the phase under way, and what the clocks did since its first answer."""

    degraded: bool
    probability: float
    elapsed: ClockReading
    """All unknown where the phase began before the watch did."""


class RegimeState(msgspec.Struct, kw_only=True):
    """Everything that a Regime remembers; bounded."""

    healthy_runs: RunHistory = msgspec.field(default_factory=RunHistory)
    degraded_runs: RunHistory = msgspec.field(default_factory=RunHistory)
    beginnings: list[Beginning] = msgspec.field(
        default_factory=lambda: [Beginning(degraded=False, probability=1.0, elapsed=UNKNOWN)]
    )


class Regime:
    """Filters the phase of one backend and predicts its turns.

    ``update`` for every answer with evidence, ``learn`` for every complete run (``stats.runs``).
    """

    def __init__(self, state: RegimeState | None = None, healthy_runs: RunLaws | None = None) -> None:
        """``healthy_runs``: of somebody who learns them before ``learn`` is called; ``state`` then has none."""
        self.state = state or RegimeState()
        """To be stored; a filter made from it goes on where this one was."""
        self._learns_healthy = healthy_runs is None
        healthy_runs = healthy_runs or RunLaws(self.state.healthy_runs)
        self._healthy = Durations(healthy_runs, HEALTHY_SIGNATURE, PRIOR_HEALTHY_REQUESTS)
        self._degraded = Durations(RunLaws(self.state.degraded_runs), DEGRADED_SIGNATURE, PRIOR_DEGRADED_REQUESTS)

    @property
    def degraded_probability(self) -> float:
        """Probability that the last answer was degraded."""
        return min(1.0, sum(one.probability for one in self.state.beginnings if one.degraded))

    def update(self, evidence_nats: float, advance: ClockReading) -> None:
        """Take one answer in.

        evidence_nats: log of P(what was seen | degraded) / P(what was seen | healthy); 0 where nothing was seen.
        advance: what the answer added to the clocks.
        """
        weight = math.exp(max(-MAX_NATS, min(MAX_NATS, evidence_nats)))
        stays: list[float] = []
        onset = recovery = 0.0
        for one in self.state.beginnings:
            probability = one.probability
            if one.degraded:
                turn = self._degraded.turn_probability(one.elapsed, advance)
                recovery += probability * turn
                stays.append(probability * (1 - turn) * weight)
            else:
                turn = self._healthy.turn_probability(one.elapsed, advance)
                onset += probability * turn * weight
                stays.append(probability * (1 - turn))
        self.state.beginnings = self._kept(stays, onset, recovery, advance)

    def _kept(self, stays: list[float], onset: float, recovery: float, advance: ClockReading) -> list[Beginning]:
        """The beginnings after an answer that are not negligible, summing to 1; ``stays`` are of those before it."""
        share = sum(stays) + onset + recovery
        bar = NEGLIGIBLE * share
        for probability in (*stays, onset, recovery):
            if probability < bar:
                share -= probability
        kept = [
            Beginning(degraded=one.degraded, probability=stay / share, elapsed=one.elapsed.plus(advance))
            for one, stay in zip(self.state.beginnings, stays, strict=True)
            if stay >= bar
        ]
        if onset >= bar:
            kept.append(Beginning(degraded=True, probability=onset / share, elapsed=ZERO))
        if recovery >= bar:
            kept.append(Beginning(degraded=False, probability=recovery / share, elapsed=ZERO))
        return kept if len(kept) <= MAX_BEGINNINGS else _most_probable(kept)

    def onset_probability(self, advance: ClockReading) -> float:
        """Probability that the backend is healthy now and collapses while the clocks advance by this much."""
        return sum(
            one.probability * self._healthy.turn_probability(one.elapsed, advance)
            for one in self.state.beginnings
            if not one.degraded
        )

    def next_degraded_probability(self, advance: ClockReading) -> float:
        """Probability that the next answer is degraded; ``advance`` is what it will probably add to the clocks."""
        probability = 0.0
        for one in self.state.beginnings:
            if one.degraded:
                probability += one.probability * (1 - self._degraded.turn_probability(one.elapsed, advance))
            else:
                probability += one.probability * self._healthy.turn_probability(one.elapsed, advance)
        return probability

    def degraded_within(self, advance: ClockReading) -> float:
        """Probability that the backend is degraded now or collapses while the clocks advance by this much.

        For N tokens or N seconds, ``BackendClocks.advance_for`` says what the other clocks do meanwhile.
        """
        return self.degraded_probability + self.onset_probability(advance)

    def learn(self, run: Run, *, degraded: bool) -> None:
        """Take one complete run in."""
        durations = self._durations(degraded)
        if degraded or self._learns_healthy:
            durations.runs.add(run)
        durations.refresh()

    def begin(self, *, degraded: bool, elapsed: ClockReading) -> None:
        """Go on from a phase that is known, and from what the clocks did since its first answer."""
        self.state.beginnings = [Beginning(degraded=degraded, probability=1.0, elapsed=elapsed)]

    def restart(self) -> None:
        """The backend was launched anew: healthy, for all that is known. What was learned stays."""
        self.state.beginnings = RegimeState().beginnings

    def _durations(self, degraded: bool) -> Durations:
        return self._degraded if degraded else self._healthy


class Durations:
    """How long one phase lasts: one law for each clock, weighted by how well that clock predicted the past runs."""

    def __init__(self, runs: RunLaws, signature: dict[float, float], prior_requests: float) -> None:
        self.runs, self._signature, self._prior_requests = runs, signature, prior_requests
        self._laws: list[tuple[str, RunLaw, float]] | None = None
        """Name and weight of each clock that matters; worked out when they are asked for."""
        self._mixed_of: RunLaw | None = None
        self._mixed: RunLaw

    def turn_probability(self, elapsed: ClockReading, advance: ClockReading) -> float:
        """Probability that the phase ends while the clocks advance, given that it lasted until now."""
        ends = lasts = 0.0
        if self._laws is None:
            self._laws = self._weighted_laws()
        for clock, law, weight in self._laws:
            since, more = getattr(elapsed, clock), getattr(advance, clock)
            if since is None or more is None:
                continue
            below, until = law.below_both(since, since + more)
            lasts += weight * (1 - below)
            ends += weight * (until - below)
        if lasts > 0:
            return min(1.0, ends / lasts)
        requests = 1.0 if advance.requests is None else advance.requests
        return 1 - math.exp(-requests / self._mean_requests())

    def _mean_requests(self) -> float:
        runs = self.runs.history.intervals.get(Clock.REQUESTS, [])
        return (self._prior_requests + sum(high for _, high in runs)) / (1 + len(runs))

    def refresh(self) -> None:
        """There may be more runs."""
        self._laws = None

    def _weighted_laws(self) -> list[tuple[str, RunLaw, float]]:
        history, laws = self.runs.history, dict(self.runs.current)
        requests = laws.get(Clock.REQUESTS)
        if requests is None:
            laws[Clock.REQUESTS] = prior_law(self._prior_requests, self._signature)
        else:
            if requests is not self._mixed_of:
                self._mixed_of = requests
                self._mixed = with_signature(requests, history.learned(Clock.REQUESTS), self._signature)
            laws[Clock.REQUESTS] = self._mixed
        scores = {clock: CLOCK_PRIOR[clock] + history.scores.get(clock, 0.0) for clock in laws}
        best = max(scores.values())
        weights = {clock: math.exp(score - best) for clock, score in scores.items()}
        total = sum(weights.values())
        return [
            (clock.value, law, weights[clock] / total)
            for clock, law in laws.items()
            if weights[clock] > NEGLIGIBLE or clock is Clock.REQUESTS
        ]


def _most_probable(beginnings: list[Beginning]) -> list[Beginning]:
    """As many as are kept, summing to 1."""
    kept = sorted(beginnings, key=lambda one: one.probability, reverse=True)[:MAX_BEGINNINGS]
    share = sum(one.probability for one in kept)
    for one in kept:
        one.probability /= share
    return kept
