"""Collapse inside the stream: a sequential test over the verify steps of all running answers of one backend.

Healthy content wanders, and a wander lasts. So the healthy law is a hidden Markov model: the logit of the conditional
acceptance moves around the floor (an Ornstein-Uhlenbeck process, one path a stream), and a filter per stream follows
it. The collapsed law is one fixed acceptance, out of a few below the floor, that all streams share. A CUSUM adds up
the log likelihood ratio of the two, block by block. The alarm lies where the model raises one false alarm in
``MEAN_STEPS_BETWEEN_FALSE_ALARMS``, and higher where this backend's own healthy content comes that far.
Formulas, sources and figures: docs/detection-stream.md.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

MEAN_STEPS_BETWEEN_FALSE_ALARMS: Final = 2e5
LOWEST_FLOOR: Final = 0.2
"""A drafter whose worst healthy conditional acceptance is below this is not judged here: it could lose no more than a
quarter token a step."""
WANDER_DEVIATION: Final = 0.7
"""Standard deviation of content's wander, on the logit. With ``WANDER_STEPS`` it gives ten seconds of a busy server
16..28 times the variance of independent steps, as real logs have."""
WANDER_STEPS: Final = 60.0
"""Correlation length of the wander, in verify steps."""
SWITCH_SHARE: Final = 0.005
"""Chance in a block that the content is another one, anywhere in the wander's range."""
COLLAPSE_DEPTHS: Final = (1.2, 1.7, 2.3, 3.2)
"""Collapsed acceptances, in logits below the floor. 1.75 is 0.4 accepted tokens of 8 where the floor gives 2.2."""
COLLAPSE_SHARES: Final = (0.2, 0.6, 0.1, 0.1)
"""Their prior: the shallow ones need it, the deep ones show at once."""
LEVEL_CHANGE_SHARE: Final = 0.02
"""Chance in a block that a collapse is drawn anew from that prior: it may begin shallow and go deep."""
BLOCK_STEPS: Final = 8
"""Steps of one stream that are weighed at once."""
MAX_COUNTED: Final = 8
"""Accepted tokens of a step count up to here."""
MAX_STREAMS: Final = 4096
"""Streams followed at a time; beyond it the oldest is forgotten."""
RUNS_PER_STEP: Final = 0.047
"""Healthy runs of the evidence above h nats, per step, are this times exp(-h): measured on the model itself."""
MODEL_ALARM_NATS: Final = math.log(MEAN_STEPS_BETWEEN_FALSE_ALARMS * RUNS_PER_STEP)
KEPT_PEAKS: Final = 20
"""Largest runs of the evidence on this backend's healthy content, from which the alarm is set."""
EPOCH_STEPS: Final = int(8 * MEAN_STEPS_BETWEEN_FALSE_ALARMS)
"""Steps after which the peaks before the last so many are forgotten; ten hours of one stream at 43 steps/s."""
COLLAPSE_NATS: Final = 30.0
"""A run of the evidence that came this far was a collapse, not healthy content, and teaches nothing."""
HEALTHY_BLOCK_NATS: Final = 2.0
"""A block that speaks this much against a collapse is healthy; usual content gives ten times as much."""

_FRESH_LEVELS: Final = tuple([LEVEL_CHANGE_SHARE * share for share in COLLAPSE_SHARES])
_NODES: Final = 13
_REACH: Final = 3.0
_STORED: Final = np.dtype("<f8")
Array = npt.NDArray[np.float64]


def _transition(deviations: Array, stationary: Array) -> Array:
    """Rows: where the wander is one block later. Cells reach half way to the next node."""
    carry = math.exp(-BLOCK_STEPS / WANDER_STEPS)
    edges = [-math.inf, *((deviations[1:] + deviations[:-1]) / 2).tolist(), math.inf]
    scale = math.sqrt(2 * (1 - carry * carry))
    below = np.array([[math.erf((edge - carry * start) / scale) for edge in edges] for start in deviations.tolist()])
    moved = np.diff(below, axis=1) / 2
    return (1 - SWITCH_SHARE) * moved + SWITCH_SHARE * stationary


_DEVIATIONS: Final[Array] = np.linspace(-_REACH, _REACH, _NODES)
_STATIONARY: Final[Array] = np.exp(-(_DEVIATIONS**2) / 2) / np.exp(-(_DEVIATIONS**2) / 2).sum()
_TRANSITION: Final[Array] = _transition(_DEVIATIONS, _STATIONARY)


class StreamModel:
    """The two laws for one floor and one K: likelihoods of a block, by its accepted and rejected draft positions."""

    def __init__(self, floor: float, num_speculative_tokens: int | None) -> None:
        self.most_tokens = None if num_speculative_tokens is None else num_speculative_tokens + 1
        """More in one event are more than one step."""
        # Where K is unknown, only the first position is sure to have been drafted.
        self.counted = 1 if num_speculative_tokens is None else min(MAX_COUNTED, num_speculative_tokens)
        centre = math.log(floor / (1 - floor))
        healthy = centre + WANDER_DEVIATION * _DEVIATIONS
        self._log_accept: Array = -np.log1p(np.exp(-healthy))
        self._log_reject: Array = -np.log1p(np.exp(healthy))
        levels = [1 / (1 + math.exp(depth - centre)) for depth in COLLAPSE_DEPTHS]
        self._collapsed = [(math.log(level), math.log1p(-level)) for level in levels]
        self._blocks: dict[tuple[int, int], tuple[Array, list[float]]] = {}

    def block(self, accepted: int, rejected: int) -> tuple[Array, list[float]]:
        """Likelihood at each node of the wander, and log likelihood of each collapsed level."""
        found = self._blocks.get((accepted, rejected))
        if found is None:
            healthy = np.exp(accepted * self._log_accept + rejected * self._log_reject)
            collapsed = [accepted * accept + rejected * reject for accept, reject in self._collapsed]
            found = self._blocks[accepted, rejected] = (healthy, collapsed)
        return found


def stream_model(floor: float, num_speculative_tokens: int | None) -> StreamModel | None:
    """The model of a drafter, or None where nothing is drafted or too little to be judged.

    ``floor`` is the conditional acceptance of the worst healthy content, 0..1; it is rounded to 0.005.
    ``num_speculative_tokens`` None: unknown, and only the first draft position of each step counts.
    """
    if num_speculative_tokens == 0 or not LOWEST_FLOOR <= floor <= 1:
        return None
    return _rounded_model(min(0.995, round(floor * 200) / 200), num_speculative_tokens)


@lru_cache(maxsize=32)
def _rounded_model(floor: float, num_speculative_tokens: int | None) -> StreamModel:
    return StreamModel(floor, num_speculative_tokens)


class RunningStream(msgspec.Struct, kw_only=True):
    """What is remembered of one running answer."""

    steps: int = -1
    """Verify steps seen; the first event is the prefill's token, not a step."""
    held: int | None = None
    """Accepted tokens of the last step: the engine may have cut it, so it counts when another one follows."""
    block_start: int = 0
    block_steps: int = 0
    accepted: int = 0
    rejected: int = 0
    belief: bytes = _STATIONARY.astype(_STORED).tobytes()
    """Weight of each node of the wander before the block: little-endian float64."""
    explained: bool = False
    """It ran when the last collapse ended: until a healthy block it may still suffer from that one, and is no evidence
    of another."""


def _model_peaks() -> list[float]:
    return [MODEL_ALARM_NATS - math.log(rank) for rank in range(KEPT_PEAKS, 0, -1)]


class HealthyPeaks(msgspec.Struct, kw_only=True):
    """How far the evidence runs on the healthy content of this backend, and so where the alarm must lie.

    The largest peaks have an exponential tail; its mean is that of their excesses, and it is extrapolated to the peak
    that comes once in a budget of steps (Hill, Weissman; here on peaks that are logarithms already). Peaks are kept for
    one to two epochs. Before the first, there are those that the model would have shown in one budget.
    """

    steps: int = 0
    peaks: list[float] = []
    """The largest of this epoch, ascending."""
    older_steps: int = int(MEAN_STEPS_BETWEEN_FALSE_ALARMS)
    older_peaks: list[float] = msgspec.field(default_factory=_model_peaks)

    def learn(self, peak: float, steps: int) -> bool:
        """A healthy run of the evidence is over; True: the alarm may have moved."""
        self.steps += steps
        kept = peak > 0 and (len(self.peaks) < KEPT_PEAKS or peak > self.peaks[0])
        if kept:
            bisect.insort(self.peaks, peak)
            del self.peaks[:-KEPT_PEAKS]
        if self.steps >= EPOCH_STEPS:
            self.older_steps, self.older_peaks = self.steps, self.peaks
            self.steps, self.peaks = 0, []
        return kept

    def alarm_nats(self) -> float:
        """Evidence that healthy content reaches once in ``MEAN_STEPS_BETWEEN_FALSE_ALARMS``; at least the model's.

        What lies above the model's is taken one standard error higher: the tail is known from a few peaks.
        """
        largest = sorted(self.older_peaks + self.peaks)[-KEPT_PEAKS:]
        if len(largest) < KEPT_PEAKS:
            return MODEL_ALARM_NATS
        mean_excess = sum(peak - largest[0] for peak in largest) / (KEPT_PEAKS - 1)
        expected = KEPT_PEAKS * MEAN_STEPS_BETWEEN_FALSE_ALARMS / (self.older_steps + self.steps)
        above_model = largest[0] + mean_excess * math.log(expected) - MODEL_ALARM_NATS
        return MODEL_ALARM_NATS + max(0.0, above_model) * (1 + 1 / math.sqrt(KEPT_PEAKS))


class StreamRule(msgspec.Struct, kw_only=True):
    """The test over all streams of one backend; after an alarm it gathers evidence anew, so that the alarm repeats."""

    nats: float = 0.0
    """Evidence towards the next alarm."""
    alarm_nats: float = MODEL_ALARM_NATS
    onset_stream: str | None = None
    """Stream and verify step (from 1) at which ``nats`` left zero last: where the collapse, if it is one, began."""
    onset_step: int = 0
    levels: tuple[float, ...] = COLLAPSE_SHARES
    """Weight of each collapsed level by what was seen since ``nats`` left zero."""
    run_nats: float = 0.0
    """Evidence since it left zero, alarms included; up to ``COLLAPSE_NATS``."""
    run_peak: float = 0.0
    run_steps: int = 0
    healthy: HealthyPeaks = msgspec.field(default_factory=HealthyPeaks)
    streams: dict[str, RunningStream] = {}

    def update(self, model: StreamModel | None, stream_id: str, tokens: int | None) -> bool:
        """Take one event of a stream in; True: alarm.

        ``tokens`` are those that the event brought, None where that is unknown. An event of more than K+1 tokens holds
        an unknown number of steps; like one of unknown tokens it is no evidence. Any other is read as one step, which
        is the reading that speaks least for a collapse. Without a model the steps are only numbered.
        """
        stream = self.streams.get(stream_id) or self._begin(stream_id)
        if tokens is not None and tokens < 1:
            return False
        held, stream.held = stream.held, None
        stream.steps += 1
        if tokens is not None and stream.steps > 0 and (model is None or tokens <= (model.most_tokens or tokens)):
            stream.held = tokens - 1
        if model is None or held is None:
            return False
        return self._count(model, stream_id, stream, held)

    def end(self, model: StreamModel | None, stream_id: str) -> bool:
        """The stream is over: weigh what is left of it, but for its last step; True: alarm."""
        stream = self.streams.pop(stream_id, None)
        if model is None or stream is None or stream.block_steps == 0:
            return False
        return self._weigh(model, stream_id, stream)

    def recovered(self) -> None:
        """A collapse is over: what still runs began in it, and the evidence so far belongs to it."""
        for stream in self.streams.values():
            stream.explained = True
        self._forget_run()

    def restart(self) -> None:
        """The engine was launched anew: forget its streams and the evidence. Its content is still the same."""
        self.streams = {}
        self._forget_run()

    def _begin(self, stream_id: str) -> RunningStream:
        if len(self.streams) >= MAX_STREAMS:
            del self.streams[next(iter(self.streams))]
        stream = self.streams[stream_id] = RunningStream()
        return stream

    def _count(self, model: StreamModel, stream_id: str, stream: RunningStream, accepted: int) -> bool:
        if stream.block_steps == 0:
            stream.block_start = stream.steps - 1
        if accepted < model.counted:
            stream.accepted += accepted
            stream.rejected += 1
        else:
            stream.accepted += model.counted
        stream.block_steps += 1
        return stream.block_steps >= BLOCK_STEPS and self._weigh(model, stream_id, stream)

    def _weigh(self, model: StreamModel, stream_id: str, stream: RunningStream) -> bool:
        """One step of the stream's filter: weight of the block, then where the wander is after it."""
        healthy, collapsed = model.block(stream.accepted, stream.rejected)
        belief = np.frombuffer(stream.belief, _STORED) * healthy
        likelihood = float(belief.sum())
        stream.belief = (belief.dot(_TRANSITION) / likelihood).astype(_STORED, copy=False).tobytes()
        steps, stream.block_steps, stream.accepted, stream.rejected = stream.block_steps, 0, 0, 0
        if stream.explained:
            odds = sum(_odds(COLLAPSE_SHARES, collapsed, math.log(likelihood)))
            stream.explained = math.log(odds) > -HEALTHY_BLOCK_NATS
            return False
        self.run_steps += steps
        was_zero = self.nats == 0.0
        alarm = self._add(collapsed, math.log(likelihood))
        if was_zero and (alarm or self.nats > 0.0):
            self.onset_stream, self.onset_step = stream_id, stream.block_start
        return alarm

    def _add(self, collapsed: Sequence[float], healthy: float) -> bool:
        """The CUSUM, whose collapsed law is a filter over the levels; where it falls to zero, both begin again."""
        odds = _odds(self.levels, collapsed, healthy)
        total = sum(odds)
        gain = math.log(total)
        self.run_nats = min(COLLAPSE_NATS, self.run_nats + gain)
        self.run_peak = max(self.run_peak, self.run_nats)
        self.nats += gain
        alarm = self.nats >= self.alarm_nats
        if alarm or self.nats <= 0.0:
            self.nats, self.levels = 0.0, COLLAPSE_SHARES
        else:
            keep = (1 - LEVEL_CHANGE_SHARE) / total
            self.levels = tuple([keep * one + fresh for one, fresh in zip(odds, _FRESH_LEVELS, strict=True)])
        if self.run_nats <= 0.0:
            self._end_run()
        return alarm

    def _end_run(self) -> None:
        if self.run_peak < COLLAPSE_NATS:
            moved = self.healthy.learn(self.run_peak, self.run_steps)
            self.alarm_nats = self.healthy.alarm_nats() if moved else self.alarm_nats
        self._forget_run()

    def _forget_run(self) -> None:
        self.nats = self.run_nats = self.run_peak = 0.0
        self.run_steps = 0
        self.levels = COLLAPSE_SHARES


def _odds(levels: Sequence[float], collapsed: Sequence[float], healthy: float) -> list[float]:
    """Likelihood ratio of a block, collapsed against healthy, for each collapsed level by its weight."""
    return [weight * math.exp(log - healthy) for weight, log in zip(levels, collapsed, strict=True)]
