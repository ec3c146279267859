"""The healthy state of one backend: the laws of its acceptance, step time and rate, learned from healthy answers."""

from __future__ import annotations

import math
from statistics import median

import msgspec

from detector.stats import pace
from detector.stats.acceptance import Acceptance, AcceptanceLaw
from detector.stats.sample import Sample, chain_acceptance
from detector.stats.timing import RATE, STEP, TRUSTED_ANSWERS, Compared, Timed, TimeLaw

WINDOW = 50
"""Healthy answers that a median is taken over."""
MIN_ANSWERS = 3
"""Fewer say nothing yet."""
MIN_LINE_ANSWERS = 10
"""Fewer say nothing yet of how load and context move a rate."""
BATCH = 16
"""Healthy answers whose acceptance is learned at once, which costs little more than one."""
BATCH_SHARE = 0.06
"""They are at most this share of all that were learned: each of the first ones counts for much."""
COLLAPSED_BATCH, COLLAPSED_BATCH_SHARE = 8, 0.1
"""The same for answers of collapses."""
USUAL_RATES = 8
"""Of answers whose rate judges nothing, every so many'th is learned."""
EARLY = 40
"""First answers that are kept whole, to tell a start in the middle of a collapse."""
ASSUMED_TOKENS = 200.0
"""Length of an answer whose length is unknown, for the weight of its acceptance."""
LOW_SHARE = 0.1
"""The worst class of content is taken to make up twice this share of the answers: its middle is at this quantile."""
HIGHEST_FLOOR = 0.70
"""The step test expects healthy content no better than this, which is prose: 2.2 accepted of 8. It may come yet."""
ACCEPTANCE_SPLIT = 0.6
"""Nats between two groups of first answers, from which on the lower group is taken for a collapse (on log A)."""
MAX_SPLIT_ACCEPTANCE = 0.45
"""And its median conditional acceptance is below this: content alone separates answers as far, but not as low."""
SPEED_SPLIT = 0.8
"""The same on step time and on rate, which content and load also move."""


class Medians(msgspec.Struct, frozen=True):
    """Middle of the last healthy answers; None while there are too few."""

    conditional_acceptance: float | None = None
    acceptance_length: float | None = None
    in_flight: int = 1
    context_tokens: float = 0.0
    step_seconds: float | None = None
    """Of this load and context, like the rate."""
    decode_tokens_per_second: float | None = None
    longest_ttft_seconds: float | None = None
    """Of the same answers; not a median."""


class Baseline(msgspec.Struct, kw_only=True):
    """Reference of the healthy state; grows only by answers that were judged healthy."""

    acceptance_lengths: list[float] = []
    conditional_acceptances: list[float] = []
    loads: list[float] = []
    """Requests in flight of the last healthy answers."""
    contexts: list[float] = []
    medians: Medians = Medians()
    step_floor: float | None = None
    """Conditional acceptance at the middle of the worst healthy content; None while it is unknown."""
    ttft_seconds: list[float] = []
    first_position: AcceptanceLaw = msgspec.field(default_factory=AcceptanceLaw)
    """Of p_0."""
    chain: AcceptanceLaw = msgspec.field(default_factory=AcceptanceLaw)
    """Of the conditional acceptance over all positions, of every answer."""
    paced: AcceptanceLaw = msgspec.field(default_factory=AcceptanceLaw)
    """Of the acceptance that rates tell (``pace.by_rate``) of answers that tell no other."""
    step_seconds: TimeLaw = msgspec.field(default_factory=TimeLaw)
    token_seconds: TimeLaw = msgspec.field(default_factory=TimeLaw)
    """1 / rate."""
    early: list[Sample] = []
    """The first answers, whatever they were judged; empty once there were ``EARLY`` of them."""
    settled: bool = False
    waiting: list[Sample] = []
    """Healthy answers of which only the step time is learned yet."""
    answers: int = 0
    """All that were taken in."""
    waiting_collapsed: list[Sample] = []
    """Answers of collapses that are not learned yet."""
    collapsed_answers: int = 0
    """All of them that were taken in."""

    def learn(self, sample: Sample) -> None:
        """Take one healthy answer into the reference: its step time at once, the rest ``BATCH`` answers at a time."""
        step = step_time_of(sample)
        if step is not None:
            self.step_seconds.learn(step, STEP)
        self.answers += 1
        self.waiting.append(sample)
        if self.answers <= EARLY or len(self.waiting) >= min(BATCH, BATCH_SHARE * self.answers):
            samples, self.waiting = self.waiting, []
            self._learn_batch(samples)

    def _learn_batch(self, samples: list[Sample]) -> None:
        self._learn_acceptance([sample for sample in samples if not sample.upper_bound])
        self._learn_rates(samples)
        for sample in samples:
            _push(self.loads, float(sample.in_flight))
            _push(self.contexts, sample.context_tokens)
            if sample.ttft_seconds is not None:
                _push(self.ttft_seconds, sample.ttft_seconds)
        load, context = round(_middle(self.loads)), _middle(self.contexts)
        self.medians = Medians(
            _median(self.conditional_acceptances),
            _median(self.acceptance_lengths),
            load,
            context,
            self.expected_step_seconds(load, context),
            self.expected_rate(load, context),
            max(self.ttft_seconds, default=None),
        )
        if self.chain.answers >= MIN_ANSWERS:
            self.step_floor = min(HIGHEST_FLOOR, self.chain.quantile(LOW_SHARE))

    def _learn_acceptance(self, samples: list[Sample]) -> None:
        first_positions: list[Acceptance] = []
        chains: list[Acceptance] = []
        for sample in samples:
            acceptance = acceptance_of(sample)
            if acceptance is None:
                continue
            chain: Acceptance | None = acceptance
            if acceptance.positions == 1:
                first_positions.append(acceptance)
                chain = chain_of(sample)
            if chain is not None:
                chains.append(chain)
            _push(self.conditional_acceptances, acceptance.share)
            if sample.acceptance_length is not None:
                _push(self.acceptance_lengths, sample.acceptance_length)
        if first_positions:
            self.first_position.learn(*first_positions)
        if chains:
            self.chain.learn(*chains)

    def _learn_rates(self, samples: list[Sample]) -> None:
        if self.token_seconds.answers >= MIN_LINE_ANSWERS:
            paced = [
                paced_acceptance(sample, self.token_seconds.compare(token))
                for sample in samples
                if not _tells_acceptance(sample) and (token := token_time_of(sample)) is not None
            ]
            if paced:
                self.paced.learn(*paced)
        judged_by_rate = [sample for sample in samples if not _tells_both_factors(sample)]
        # Of the others a few tell what is usual.
        for sample in [*judged_by_rate, *filter(_tells_both_factors, samples[::USUAL_RATES])]:
            token = token_time_of(sample)
            if token is not None:
                self.token_seconds.learn(token, RATE)

    def learn_collapsed(self, sample: Sample) -> None:
        """Take one answer of a collapse of acceptance in: its step time at once, its acceptance with some more."""
        step = step_time_of(sample)
        if step is not None and self.step_seconds.answers >= MIN_ANSWERS:
            self.step_seconds.learn_drag(step)
        self.collapsed_answers += 1
        self.waiting_collapsed.append(sample)
        if len(self.waiting_collapsed) < min(COLLAPSED_BATCH, COLLAPSED_BATCH_SHARE * self.collapsed_answers):
            return
        samples, self.waiting_collapsed = self.waiting_collapsed, []
        told = [acceptance for one in samples if not one.upper_bound and (acceptance := acceptance_of(one)) is not None]
        for law in (self.first_position, self.chain):
            its = [acceptance for acceptance in told if self.law_of(acceptance) is law]
            if its:
                law.learn_collapsed(*its)

    def rebuild(self, samples: list[Sample]) -> None:
        """Forget the reference and learn it from these answers."""
        empty = Baseline()
        self.acceptance_lengths, self.conditional_acceptances = [], []
        self.loads, self.contexts, self.ttft_seconds, self.medians = [], [], [], Medians()
        self.waiting, self.answers, self.step_floor = [], 0, None
        self.waiting_collapsed, self.collapsed_answers = [], 0
        self.first_position, self.chain, self.paced = empty.first_position, empty.chain, empty.paced
        self.step_seconds, self.token_seconds = empty.step_seconds, empty.token_seconds
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

    def law_of(self, acceptance: Acceptance) -> AcceptanceLaw:
        """The law that an acceptance follows: p_0 hardly depends on content, later positions do."""
        return self.first_position if acceptance.positions == 1 else self.chain

    def acceptance_by_step_time(self, sample: Sample, token: Timed) -> Acceptance | None:
        """The acceptance that a time per token tells, if the law of the step time is settled; its law is ``chain``."""
        law, depth = self.step_seconds, self.chain.depth
        if depth is None or law.answers < TRUSTED_ANSWERS or self.chain.answers < TRUSTED_ANSWERS:
            return None
        return pace.by_step_time(law.compare(token), _tokens(sample), depth)

    def usual_first_position(self) -> float | None:
        """Median p_0; None while too few answers told it."""
        return self.medians.conditional_acceptance if self.first_position.answers >= MIN_ANSWERS else None

    def expected_step_seconds(self, in_flight: int, context_tokens: float = 0.0) -> float | None:
        """Seconds per verify step of a healthy answer at this load and context."""
        law = self.step_seconds
        return math.exp(law.predict(in_flight, context_tokens)) if law.answers >= MIN_ANSWERS else None

    def expected_rate(self, in_flight: int, context_tokens: float = 0.0) -> float | None:
        """Tokens per second of one healthy stream at this load and context."""
        law = self.token_seconds
        return math.exp(-law.predict(in_flight, context_tokens)) if law.answers >= MIN_ANSWERS else None


def acceptance_of(sample: Sample) -> Acceptance | None:
    """The acceptance of an answer as its law takes it."""
    if sample.conditional_acceptance is None:
        return None
    depth = sample.num_speculative_tokens or None
    return Acceptance(sample.conditional_acceptance, sample.chain_length, _tokens(sample), depth)


def chain_of(sample: Sample) -> Acceptance | None:
    """The acceptance of an answer over all positions, p_0 known or not."""
    if sample.acceptance_length is None:
        return None
    depth = sample.num_speculative_tokens or None
    share = chain_acceptance(sample.acceptance_length - 1, depth)
    return Acceptance(share, depth, _tokens(sample), depth)


def paced_acceptance(sample: Sample, token: Compared) -> Acceptance:
    """The acceptance that the rate alone tells; ``Baseline.paced`` is its law. token: its time beside that of rates."""
    return pace.by_rate(token, _tokens(sample))


def step_time_of(sample: Sample) -> Timed | None:
    """The step time of an answer as its law takes it."""
    if sample.step_seconds is None:
        return None
    return _timed(sample, math.log(sample.step_seconds), sample.verify_steps)


def token_time_of(sample: Sample) -> Timed | None:
    """The time per token of an answer as its law takes it."""
    if sample.decode_tokens_per_second is None:
        return None
    return _timed(sample, -math.log(sample.decode_tokens_per_second), sample.tokens)


def _tells_acceptance(sample: Sample) -> bool:
    return sample.conditional_acceptance is not None and not sample.upper_bound


def _tells_both_factors(sample: Sample) -> bool:
    return sample.step_seconds is not None and sample.conditional_acceptance is not None


def _tokens(sample: Sample) -> float:
    tokens = sample.tokens
    if tokens is None and sample.verify_steps is not None and sample.acceptance_length is not None:
        tokens = sample.verify_steps * sample.acceptance_length
    return tokens or ASSUMED_TOKENS


def _timed(sample: Sample, log_seconds: float, units: float | None) -> Timed:
    return Timed(log_seconds, sample.in_flight, sample.context_tokens, sample.tokens, units)


def _median(values: list[float]) -> float | None:
    return _middle(values) if len(values) >= MIN_ANSWERS else None


def _middle(values: list[float]) -> float:
    """Upper median; several times as fast as the one of ``statistics``."""
    return sorted(values)[len(values) // 2]


def _push(window: list[float], value: float) -> None:
    window.append(value)
    if len(window) > WINDOW:
        del window[0]


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
