"""Thresholds for peers: the lowest at which they keep a given mean time between false alarms on healthy traffic.

That is as kind to them as possible: nobody who runs them has thousands of answers known to be healthy, of just the
traffic to come. specbreaker gets no such thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.detect.peers import EDGES, RESTARTING, Rates, alarms_of, edges, statistics_of

GRID = 200
HALVINGS = 12


def calibrate(name: str, series: Sequence[Rates], mean_requests: float) -> tuple[float, float]:
    """(threshold, requests per false alarm on the series); a peer without any alarm counts as one half of one."""
    requests = sum(len(rates) for rates in series)
    allowed = requests / mean_requests
    if name in EDGES:
        statistics = [statistics_of(name, rates) for rates in series]
        threshold = lowest_edge_threshold(statistics, allowed)
        alarms = sum(len(edges(values, threshold)) for values in statistics)
    else:
        _, low, high = RESTARTING[name]

        def count(candidate: float) -> int:
            return sum(len(alarms_of(name, candidate, rates)) for rates in series)

        threshold = bisect(count, low, high, allowed)
        alarms = count(threshold)
    return threshold, requests / max(alarms, 0.5)


def lowest_edge_threshold(statistics: Sequence[Sequence[float]], allowed: float) -> float:
    """Come down from the largest statistic until the next threshold would alarm too often.

    Further down a statistic is always above its threshold and hardly ever rises over it: that is no detector.
    """
    values = sorted({value for one in statistics for value in one if value > float("-inf")}, reverse=True)
    if not values:
        return 0.0
    best = values[0] + 1e-9
    # Few alarms are allowed, so the answer is among the largest values: look at each of these, then at some below.
    candidates = [*values[: GRID * 2], *values[GRID * 2 :: max(1, len(values) // GRID)]]
    for candidate in candidates:
        if sum(len(edges(one, candidate)) for one in statistics) > allowed:
            break
        best = candidate
    return best


def bisect(count: Callable[[float], int], low: float, high: float, allowed: float) -> float:
    """The lowest threshold between ``low`` and ``high`` with at most ``allowed`` alarms, on a logarithmic scale."""
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if count(middle) <= allowed:
            high = middle
        else:
            low = middle
    return high
