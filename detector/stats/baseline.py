"""The healthy state of one backend: running medians of the last healthy answers, by how busy the backend was."""

from __future__ import annotations

import math
from statistics import median

import msgspec

from detector.stats.sample import Sample

WINDOW = 50
"""Healthy answers that a median is taken over."""
MIN_ANSWERS = 3
"""Fewer say nothing yet."""
EARLY = 40
"""First answers that are kept whole, to tell a start in the middle of a collapse."""
MIN_SPREAD = 0.04
"""Nats; a few answers that happen to agree do not make a narrower reference than this."""
ACCEPTANCE_SPLIT = 0.6
"""Nats between two groups of first answers, from which on the lower group is taken for a collapse (on log A)."""
MAX_SPLIT_ACCEPTANCE = 0.45
"""And its median conditional acceptance is below this: content alone separates answers as far, but not as low."""
SPEED_SPLIT = 0.8
"""The same on step time and on rate, which content and load also move."""


class Level(msgspec.Struct, frozen=True):
    """Where the healthy answers lie, on a log scale."""

    median: float
    spread: float
    """Standard deviation, robust (1.4826 x median absolute deviation), widened while the answers are few."""


class Baseline(msgspec.Struct, kw_only=True):
    """Reference of the healthy state; grows only by answers that were judged healthy."""

    acceptance_lengths: list[float] = []
    conditional_acceptances: list[float] = []
    log_step_seconds: dict[int, list[float]] = {}
    """By load class (``load_class``)."""
    log_rates: dict[int, list[float]] = {}
    ttft_seconds: list[float] = []
    early: list[Sample] = []
    """The first answers, whatever they were judged; empty once there were ``EARLY`` of them."""
    settled: bool = False

    def learn(self, sample: Sample) -> None:
        """Take one healthy answer into the reference."""
        load = load_class(sample.in_flight)
        if sample.conditional_acceptance is not None and not sample.upper_bound:
            _push(self.conditional_acceptances, sample.conditional_acceptance)
            if sample.acceptance_length is not None:
                _push(self.acceptance_lengths, sample.acceptance_length)
        if sample.step_seconds is not None:
            _push(self.log_step_seconds.setdefault(load, []), math.log(sample.step_seconds))
        if sample.decode_tokens_per_second is not None:
            _push(self.log_rates.setdefault(load, []), math.log(sample.decode_tokens_per_second))
        if sample.ttft_seconds is not None:
            _push(self.ttft_seconds, sample.ttft_seconds)

    def rebuild(self, samples: list[Sample]) -> None:
        """Forget the reference and learn it from these answers."""
        self.acceptance_lengths, self.conditional_acceptances = [], []
        self.log_step_seconds, self.log_rates, self.ttft_seconds = {}, {}, []
        for sample in samples:
            self.learn(sample)

    def start(self, sample: Sample) -> bool:
        """Note one of the first answers; True where they show that the watch began in a collapse.

        The first answers are split in two groups where that separates them best. If the gap is the size of a collapse,
        the upper group becomes the reference.
        """
        if self.settled:
            return False
        self.early.append(sample)
        upper = _upper_group(self.early)
        began_collapsed = upper is not None
        if upper is not None:
            self.rebuild(upper)
            self.early = upper
        if len(self.early) >= EARLY:
            self.early, self.settled = [], True
        return began_collapsed

    def acceptance(self) -> float | None:
        """Median conditional acceptance."""
        values = self.conditional_acceptances
        return median(values) if len(values) >= MIN_ANSWERS else None

    def acceptance_length(self) -> float | None:
        """Median A."""
        values = self.acceptance_lengths
        return median(values) if len(values) >= MIN_ANSWERS else None

    def step_level(self, in_flight: int) -> Level | None:
        """Log seconds per verify step at this many requests in flight."""
        return _level(self.log_step_seconds, load_class(in_flight), slower=1.0)

    def rate_level(self, in_flight: int) -> Level | None:
        """Log tokens per second of one stream at this many requests in flight."""
        return _level(self.log_rates, load_class(in_flight), slower=-1.0)

    def usual_load(self) -> int:
        """Requests in flight at which most of the reference was measured (lower end of the class)."""
        if not self.log_rates:
            return 1
        load = max(self.log_rates, key=lambda candidate: (len(self.log_rates[candidate]), -candidate))
        return 1 << (load - 1)


def load_class(in_flight: int) -> int:
    """Class of a number of requests in flight: 1 -> 1, 2..3 -> 2, 4..7 -> 3, 8..15 -> 4, ..."""
    return max(1, in_flight).bit_length()


def _push(window: list[float], value: float) -> None:
    window.append(value)
    if len(window) > WINDOW:
        del window[0]


def _level(windows: dict[int, list[float]], load: int, slower: float) -> Level | None:
    """Level of the load class itself, or that of the nearest known one.

    A busier class than any known is expected as slow as if its streams shared the engine equally, which is the slowest
    that a healthy engine gets: twice the step time per class. A less busy one is expected no slower than the known one.
    """
    known = [candidate for candidate, values in windows.items() if len(values) >= MIN_ANSWERS]
    if not known:
        return None
    nearest = min(known, key=lambda candidate: (abs(candidate - load), candidate))
    values = windows[nearest]
    middle = median(values)
    deviation = median([abs(value - middle) for value in values])
    spread = max(MIN_SPREAD, 1.4826 * deviation) * (1 + 4 / len(values))
    return Level(middle + slower * math.log(2) * max(0, load - nearest), spread)


def _upper_group(samples: list[Sample]) -> list[Sample] | None:
    """The healthy part of answers that fall into two groups a collapse apart, or None where they do not."""
    cut = _best_cut(
        [math.log(s.acceptance_length) for s in samples if s.acceptance_length is not None], ACCEPTANCE_SPLIT
    )
    if cut is not None:
        upper = [s for s in samples if s.acceptance_length is None or math.log(s.acceptance_length) > cut]
        lower = [s.conditional_acceptance for s in samples if s not in upper and s.conditional_acceptance is not None]
        if median(lower) < MAX_SPLIT_ACCEPTANCE:
            return upper
    cut = _best_cut([-math.log(s.step_seconds) for s in samples if s.step_seconds is not None], SPEED_SPLIT)
    if cut is not None:
        return [s for s in samples if s.step_seconds is None or -math.log(s.step_seconds) > cut]
    if any(s.acceptance_length is not None for s in samples):
        return None
    rates = [s.decode_tokens_per_second for s in samples]
    cut = _best_cut([math.log(rate) for rate in rates if rate is not None], SPEED_SPLIT)
    if cut is not None:
        return [s for s, rate in zip(samples, rates, strict=True) if rate is None or math.log(rate) > cut]
    return None


def _best_cut(values: list[float], gap: float) -> float | None:
    """Where the values split best in two (largest variance between groups), if the means are ``gap`` apart."""
    ordered = sorted(values)
    total, below, best = sum(ordered), 0.0, (0.0, 0)
    for count in range(1, len(ordered)):
        below += ordered[count - 1]
        distance = (total - below) / (len(ordered) - count) - below / count
        best = max(best, (count * (len(ordered) - count) * distance * distance, count))
    count = best[1]
    if count == 0 or len(ordered) - count < MIN_ANSWERS:
        return None  # too few to be a reference
    distance = sum(ordered[count:]) / (len(ordered) - count) - sum(ordered[:count]) / count
    return (ordered[count - 1] + ordered[count]) / 2 if distance > gap else None
