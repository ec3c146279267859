"""What others would put on the same tokens per second: two alerting rules, a control chart, and libraries from PyPI.

A peer sees the rate of each answer, or None, and nothing else. Its first ``WARM_RATES`` rates are healthy and become
its reference. An edge peer turns rates into statistics and alarms where they rise over its threshold; a restarting peer
alarms and starts over by itself. Where there was a choice (log rates or rates, one side or both, restart or not), each
has what serves it best on the scenario ``deploy``. Libraries are imported where they are used: they live in an
environment of their own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean, median, stdev
from typing import Any, Protocol

WARM_RATES = 150
RECENT_RATES = 50
"""A change counts as an alarm where the rate is below the median of so many: a rise is no collapse."""
Rates = Sequence[float | None]


class Reference:
    """The healthy rates that a peer starts from."""

    def __init__(self, rates: Sequence[float]) -> None:
        self.rates = rates
        self.mean, self.median = fmean(rates), median(rates)
        logs = [math.log(rate) for rate in rates]
        self._deviation, self._log_mean, self._log_deviation = stdev(rates), fmean(logs), stdev(logs)
        self.scores = [self.standard_score(rate) for rate in rates]

    def standard_score(self, rate: float) -> float:
        """Deviations of the log rate from its healthy mean: for libraries that expect a standard normal."""
        return (math.log(rate) - self._log_mean) / self._log_deviation

    def plain_score(self, rate: float) -> float:
        """Deviations of the rate itself."""
        return (rate - self.mean) / self._deviation


class Edge(Protocol):
    """A rule that alarms where its statistic rises over the threshold."""

    def statistic(self, rate: float) -> float:
        """Large means collapse."""
        ...


class Restarting(Protocol):
    """A rule that starts over after its alarm."""

    def alarm(self, rate: float) -> bool:
        """Take one rate in."""
        ...


class PrometheusRule:
    """``avg_over_time`` of the last 6 answers, about a minute, below a share of the long average."""

    def __init__(self, reference: Reference) -> None:
        self._long, self._last = reference.mean, deque[float](maxlen=6)

    def statistic(self, rate: float) -> float:
        """See Edge. Minus the share."""
        self._last.append(rate)
        self._long += (rate - self._long) / 500
        return -fmean(self._last) / self._long if len(self._last) == 6 else -math.inf


class ConsecutiveRule:
    """Three answers in a row below a share of the healthy median, as proxies eject a host."""

    def __init__(self, reference: Reference) -> None:
        self._median, self._last = reference.median, deque[float](maxlen=3)

    def statistic(self, rate: float) -> float:
        """See Edge. Minus the share that the best of the three still has."""
        self._last.append(rate)
        return -max(self._last) / self._median if len(self._last) == 3 else -math.inf


class FastBocpd:
    """fast-bocpd: Bayesian online change-point detection, Gaussian of unknown mean and variance; P(run <= 3), logit.

    Rates, not their logs.
    """

    def __init__(self, reference: Reference) -> None:
        from fast_bocpd import BOCPD, ConstantHazard, GaussianNIG

        self._model = BOCPD(GaussianNIG(0, 0.05, 2.0, 1.0), ConstantHazard(50.0), max_run_length=200)
        self._reference, self._recent = reference, deque(reference.rates, maxlen=RECENT_RATES)
        for rate in reference.rates:
            self._model.update(reference.plain_score(rate))

    def statistic(self, rate: float) -> float:
        """See Edge. A change upwards is no collapse."""
        run_lengths, _ = self._model.update(self._reference.plain_score(rate))
        fell = rate < median(self._recent)
        self._recent.append(rate)
        return _logit(float(run_lengths[:4].sum())) if fell else -math.inf


class HmmlearnTwoStates:
    """hmmlearn: two Gaussian states fitted to the last 600 log rates, again every 100; P(low state) in logits."""

    REFIT, WINDOW, MIN_GAP = 100, 600, 0.35

    def __init__(self, reference: Reference) -> None:
        self._logs = deque((math.log(rate) for rate in reference.rates), maxlen=self.WINDOW)
        self._seen = 0
        self._fit()

    def _fit(self) -> None:
        import numpy as np
        from hmmlearn.hmm import GaussianHMM

        model = GaussianHMM(2, covariance_type="diag", n_iter=20, random_state=0, min_covar=1e-4)
        model.fit(np.array(self._logs)[:, None])
        low, high = np.argsort(model.means_.ravel())
        order = [low, high]
        self._means = [float(model.means_.ravel()[state]) for state in order]
        self._variances = [float(model.covars_.reshape(2)[state]) for state in order]
        changes = model.transmat_[np.ix_(order, order)] + 1e-4
        self._changes = (changes / changes.sum(1, keepdims=True)).tolist()
        self._low = 0.01

    def statistic(self, rate: float) -> float:
        """See Edge. States less than 30 % apart are no collapse."""
        log_rate = math.log(rate)
        self._logs.append(log_rate)
        self._seen += 1
        if self._seen % self.REFIT == 0:
            self._fit()
        before = (self._low, 1 - self._low)
        joint = [
            sum(before[source] * self._changes[source][state] for source in (0, 1))
            * (math.exp(-0.5 * (log_rate - mean) ** 2 / variance) / math.sqrt(variance) + 1e-12)
            for state, (mean, variance) in enumerate(zip(self._means, self._variances, strict=True))
        ]
        self._low = joint[0] / sum(joint)
        return _logit(self._low) if self._means[1] - self._means[0] > self.MIN_GAP else -math.inf


class EwmaChart:
    """Exponentially weighted moving average with weight 0.3 (Roberts 1959), lower side, in its own deviations."""

    WEIGHT = 0.3

    def __init__(self, reference: Reference, threshold: float) -> None:
        self._reference, self._average = reference, 0.0
        self._limit = -threshold * math.sqrt(self.WEIGHT / (2 - self.WEIGHT))

    def alarm(self, rate: float) -> bool:
        """See Restarting."""
        self._average += self.WEIGHT * (self._reference.standard_score(rate) - self._average)
        if self._average > self._limit:
            return False
        self._average = 0.0
        return True


class Focus:
    """changepoint-online: FOCuS, Gaussian, change of any size to either side, healthy mean known."""

    def __init__(self, reference: Reference, threshold: float) -> None:
        self._reference, self._threshold = reference, threshold
        self._detector = self._new()

    def _new(self) -> Any:
        from changepoint_online import Focus as Detector
        from changepoint_online import Gaussian

        return Detector(Gaussian(loc=0.0), side="both")

    def alarm(self, rate: float) -> bool:
        """See Restarting."""
        self._detector.update(self._reference.standard_score(rate))
        if self._detector.statistic() < self._threshold:
            return False
        self._detector = self._new()
        return True


class RiverPageHinkley:
    """river: Page-Hinkley test, downwards."""

    def __init__(self, reference: Reference, threshold: float) -> None:
        from river.drift import PageHinkley

        self._reference = reference
        self._detector = PageHinkley(min_instances=5, delta=0.5, threshold=threshold, mode="down")
        for score in reference.scores:
            self._detector.update(score)

    def alarm(self, rate: float) -> bool:
        """See Restarting."""
        self._detector.update(self._reference.standard_score(rate))
        return bool(self._detector.drift_detected)


class RiverAdwin:
    """river: ADWIN, looking after every answer; its confidence is e to the minus threshold."""

    def __init__(self, reference: Reference, threshold: float) -> None:
        from river.drift import ADWIN

        self._reference = reference
        self._detector = ADWIN(delta=math.exp(-threshold), clock=1, grace_period=10)
        for score in reference.scores:
            self._detector.update(self._unit(score))

    @staticmethod
    def _unit(score: float) -> float:
        return score / 10 + 0.5  # ADWIN's bound is for values between 0 and 1

    def alarm(self, rate: float) -> bool:
        """See Restarting."""
        self._detector.update(self._unit(self._reference.standard_score(rate)))
        return bool(self._detector.drift_detected)


EDGES: dict[str, Callable[[Reference], Edge]] = {
    "Prometheus rule: avg of 6 < h x long average": PrometheusRule,
    "3 in a row < h x median": ConsecutiveRule,
    "fast-bocpd 1.0.0: BOCPD": FastBocpd,
    "hmmlearn 0.3.3: two states": HmmlearnTwoStates,
}
RESTARTING: dict[str, tuple[Callable[[Reference, float], Restarting], float, float]] = {
    "EWMA chart, weight 0.3": (EwmaChart, 0.5, 40.0),
    "changepoint-online 1.2.1: FOCuS": (Focus, 1.0, 400.0),
    "river 0.26.1: PageHinkley": (RiverPageHinkley, 1.0, 400.0),
    "river 0.26.1: ADWIN": (RiverAdwin, 0.05, 60.0),
}
"""With the thresholds between which theirs is searched."""
PEERS = (
    "Prometheus rule: avg of 6 < h x long average",
    "3 in a row < h x median",
    "EWMA chart, weight 0.3",
    "changepoint-online 1.2.1: FOCuS",
    "river 0.26.1: PageHinkley",
    "river 0.26.1: ADWIN",
    "fast-bocpd 1.0.0: BOCPD",
    "hmmlearn 0.3.3: two states",
)
"""In the order of the tables."""


def statistics_of(name: str, rates: Rates) -> list[float]:
    """Statistic of an edge peer after each answer; minus infinity where it has none."""
    values: list[float] = []
    peer: Edge | None = None
    warm: list[float] = []
    for rate in rates:
        if rate is None:
            values.append(values[-1] if values else -math.inf)
        elif peer is None:
            warm.append(rate)
            values.append(-math.inf)
            if len(warm) == WARM_RATES:
                peer = EDGES[name](Reference(warm))
        else:
            values.append(peer.statistic(rate))
    return values


def edges(values: Sequence[float], threshold: float) -> list[int]:
    """Where a statistic rises to the threshold."""
    above = [False, *(value >= threshold for value in values)]
    return [number for number in range(len(values)) if above[number + 1] and not above[number]]


def alarms_of(name: str, threshold: float, rates: Rates) -> list[int]:
    """Numbers of the answers at which a peer alarms."""
    if name in EDGES:
        return edges(statistics_of(name, rates), threshold)
    alarms: list[int] = []
    peer: Restarting | None = None
    warm: list[float] = []
    recent = deque[float](maxlen=RECENT_RATES)
    for number, rate in enumerate(rates):
        if rate is None:
            continue
        if peer is None:
            warm.append(rate)
            if len(warm) == WARM_RATES:
                peer = RESTARTING[name][0](Reference(warm), threshold)
                recent.extend(warm)
        else:
            if peer.alarm(rate) and rate < median(recent):
                alarms.append(number)
            recent.append(rate)
    return alarms


def _logit(share: float) -> float:
    share = min(1 - 1e-12, max(1e-12, share))
    return math.log(share / (1 - share))
