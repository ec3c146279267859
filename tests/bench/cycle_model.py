"""A pure simulator of policy x cycle: the engine's published physics, the real policy, a modelled detector, no sockets.

usage: cycle_model.py [--requests N] [--answer-tokens N] [--fallback TOK_S] [--seeds N]

It exists to compare policies on every clock in seconds. The detector is a model: it judges an answer at its end (or,
with ``in_stream``, some steps after the onset inside it) by the share of its steps that were slow, and may forecast as
well as anyone could who knows the law of the cycle (``forecast_after`` episodes). ``tests/bench/cycle.py`` runs the
same cycles against the real proxy over sockets.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from detector.policy import Event, Mode, PolicyConfig, PolicyState, SendCanary, Signal, decide, serving
from detector.policy.machine import AT_RISK_PROBABILITY
from detector.stats.clocks import Advance, ClockReading
from detector.stats.regime import Regime
from detector.stats.runs import RunRecorder
from detector.verdict import Forecast

CLOCKS = ("requests", "tokens", "steps", "seconds")
HEALTHY_TOK_S, COLLAPSED_TOK_S = 3.6 / 0.0164, 1.0005 / 0.0164
STEP_SECONDS = 0.0164
TTFT_SECONDS = 0.02
SLOW_TOK_S = 110.0
"""The harness of the peers calls an answer below this slow."""
JITTER = ((-1, 0.2), (0, 0.6), (1, 0.2))
"""Healthy runs are this many requests longer or shorter, with these chances."""


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Healthy and collapsed time in turns, in units of a clock. ``healthy`` infinite: there is no cycle."""

    clock: str
    healthy: float
    collapsed: float
    first_healthy: float | None = None
    """Length of the first healthy time, where the engine starts in the middle of one."""
    jitter_unit: float = 0.0
    """What one request is worth on this clock; 0: no jitter."""


def published(clock: str, *, jitter: bool = False) -> Cycle:
    """The published cycle of ten requests of 2000 tokens, on one of the clocks, as the emulator's scenarios have it."""
    unit = {"requests": 1.0, "tokens": 2000.0, "steps": 2000 / 3.6, "seconds": 2000 / HEALTHY_TOK_S}[clock]
    lengths = {"requests": (6.548, 3.452), "tokens": (11126, 6904), "steps": (3090, 6900), "seconds": (51, 113)}
    healthy, collapsed = lengths[clock]
    return Cycle(
        clock=clock,
        healthy=healthy,
        collapsed=collapsed,
        first_healthy=5.563 if clock == "requests" else None,
        jitter_unit=unit if jitter else 0.0,
    )


@dataclass(kw_only=True, eq=False)
class Job:
    """One answer that the primary makes."""

    index: int
    tokens: int
    ready_at: float
    pace: float = 1.0
    """Healthy speed of its content, relative."""
    canary: bool = False
    started: float = 0.0
    done: float = 0.0
    steps: float = 0.0
    slow_steps: float = 0.0
    told: bool = False
    """The detector has spoken while it ran."""


class Primary:
    """The engine: what runs on it, where its clock stands, and how far the jobs get."""

    def __init__(self, cycle: Cycle, draw: random.Random) -> None:
        self.cycle = cycle
        self.now = 0.0
        self.jobs: list[Job] = []
        self.episodes = 0
        self._draw = draw
        self._requests = 0
        self._counted = 0.0
        """Tokens or steps so far."""
        self._edges: list[float] = []
        """Ends of the phases, healthy and collapsed in turns."""

    def start(self, tokens: int, *, canary: bool = False, pace: float = 1.0) -> Job:
        """Take a request."""
        job = Job(
            index=self._requests,
            tokens=tokens,
            ready_at=self.now + TTFT_SECONDS,
            canary=canary,
            pace=pace,
            started=self.now,
        )
        self._requests += 1
        self.jobs.append(job)
        return job

    def position(self, job: Job | None = None) -> float:
        """Where the clock stands (for a job, on the clock of requests)."""
        match self.cycle.clock:
            case "requests":
                return job.index + job.done / job.tokens if job is not None else float(self._requests)
            case "seconds":
                return self.now
            case _:
                return self._counted

    def phase(self, position: float) -> tuple[bool, float, float]:
        """(collapsed, where this phase began, where it ends) at a position."""
        while not self._edges or self._edges[-1] <= position + 1e-9:
            self._edges.append((self._edges[-1] if self._edges else 0.0) + self._next_length())
        number = next(number for number, edge in enumerate(self._edges) if edge > position + 1e-9)
        begin = self._edges[number - 1] if number else 0.0
        return number % 2 == 1, begin, self._edges[number]

    def _next_length(self) -> float:
        if len(self._edges) % 2:
            return self.cycle.collapsed
        if not self._edges and self.cycle.first_healthy is not None:
            return self.cycle.first_healthy
        chances = [chance for _, chance in JITTER]
        extra = self._draw.choices([steps for steps, _ in JITTER], chances)[0] if self.cycle.jitter_unit else 0
        return self.cycle.healthy + extra * self.cycle.jitter_unit

    def advance(self, until: float) -> list[Job]:
        """Run until a time, or until a job ends; the jobs that ended."""
        while True:
            step, ended = self._piece(until)
            if ended or self.now >= until - 1e-9:
                return ended
            assert step >= 0

    def _piece(self, until: float) -> tuple[float, list[Job]]:
        """Run while no phase changes and no job begins or ends."""
        running = [job for job in self.jobs if job.ready_at <= self.now + 1e-9]
        waiting = [job.ready_at for job in self.jobs if job.ready_at > self.now + 1e-9]
        seconds = min([until, *waiting]) - self.now
        rates: dict[int, tuple[float, bool]] = {}
        for job in running:
            position = self.position(job)
            collapsed, _, edge = self.phase(position)
            rate = COLLAPSED_TOK_S if collapsed else max(COLLAPSED_TOK_S, HEALTHY_TOK_S * job.pace)
            rates[id(job)] = rate, collapsed
            seconds = min(seconds, (job.tokens - job.done) / rate)
            if self.cycle.clock == "requests":
                seconds = min(seconds, (edge - position) * job.tokens / rate)
        if self.cycle.clock != "requests":
            position = self.position()
            _, _, edge = self.phase(position)
            total = sum(rate for rate, _ in rates.values())
            speed = {"tokens": total, "steps": 1 / STEP_SECONDS if running else 0.0, "seconds": 1.0}[self.cycle.clock]
            if speed:
                seconds = min(seconds, (edge - position) / speed)
        seconds = max(seconds, 1e-7)
        self._run(running, rates, seconds)
        ended = [job for job in running if job.done >= job.tokens - 1e-3]
        self.jobs = [job for job in self.jobs if job not in ended]
        return seconds, ended

    def _run(self, running: list[Job], rates: dict[int, tuple[float, bool]], seconds: float) -> None:
        self.now += seconds
        if self.cycle.clock == "steps" and running:
            self._counted += seconds / STEP_SECONDS
        for job in running:
            rate, collapsed = rates[id(job)]
            job.done += rate * seconds
            job.steps += seconds / STEP_SECONDS
            job.slow_steps += seconds / STEP_SECONDS if collapsed else 0.0
            if self.cycle.clock == "tokens":
                self._counted += rate * seconds

    def hit_probability(self, tokens: int) -> float:
        """That a request begun now is hit, for one who knows the law of the cycle and where it stands."""
        if math.isinf(self.cycle.healthy):
            return 0.0
        position = self.position()
        collapsed, begin, _ = self.phase(position)
        if collapsed:
            return 1.0
        unit = {"requests": 1.0, "tokens": float(tokens), "steps": tokens / 3.6, "seconds": tokens / HEALTHY_TOK_S}
        law = JITTER if self.cycle.jitter_unit else ((0, 1.0),)
        elapsed, reach = position - begin, unit[self.cycle.clock]
        ends = [(self.cycle.healthy + extra * self.cycle.jitter_unit, chance) for extra, chance in law]
        alive = sum(chance for end, chance in ends if end > elapsed)
        return sum(chance for end, chance in ends if elapsed < end < elapsed + reach) / alive if alive else 1.0


@dataclass(kw_only=True)
class Outcome:
    """What clients got."""

    tokens: int = 0
    seconds: float = 0.0
    slow: int = 0
    on_primary: int = 0
    requests: int = 0
    canaries: int = 0
    canary_tokens: int = 0
    switches: int = 0
    rates: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Tokens over time, so the harmonic mean where answers are equally long."""
        return self.tokens / self.seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """The same without the time to the first tokens."""
        return self.tokens / (self.seconds - TTFT_SECONDS * self.requests)

    def slow_share(self, after: int = 0) -> float:
        """Share of slow answers from an index on."""
        rates = self.rates[after:]
        return sum(rate < SLOW_TOK_S for rate in rates) / len(rates) if rates else 0.0

    def add(self, tokens: int, seconds: float, *, primary: bool) -> None:
        """One answer."""
        self.requests += 1
        self.tokens += tokens
        self.seconds += seconds
        self.on_primary += primary
        self.rates.append(tokens / (seconds - TTFT_SECONDS))


class Learned:
    """The detector's own filter and duration laws (``stats.regime``), told of every answer, canaries included."""

    def __init__(self) -> None:
        self._regime, self._runs = Regime(), RunRecorder()
        self._answers = 0
        self._last_ended = 0.0
        self._degraded = False
        self._recovered_at = 0.0
        """Time of the last change of phase."""

    def ended(self, job: Job, now: float, *, slow: bool) -> None:
        """Take one answer in; slow is a memoryless verdict on it alone."""
        clocks = ClockReading(
            requests=1.0,
            tokens=job.tokens,
            steps=job.steps,
            kv_blocks=job.tokens / 16,
            seconds=max(0.0, now - self._last_ended),
        )
        idle = min(clocks.seconds or 0.0, max(0.0, job.started - self._last_ended))
        self._last_ended = max(now, self._last_ended)
        self._runs.add(self._answers, Advance(clocks=clocks, idle_seconds=idle))
        if slow and not self._degraded and job.started < self._recovered_at:
            # It began in the last collapse, which explains it: it says nothing of the phase under way.
            self._regime.update(0.0, clocks)
            self._answers += 1
            return
        self._regime.update(6.0 if slow else -6.0, clocks)
        if slow != self._degraded:
            self._recovered_at = now
            run = self._runs.turn(self._answers)
            if run is not None:
                self._regime.learn(run, degraded=self._degraded)
            self._degraded = slow
        self._answers += 1

    def risk(self, now: float, tokens: int) -> float:
        """That a client's request is hit which begins now."""
        seconds = now - self._last_ended + tokens / HEALTHY_TOK_S
        advance = ClockReading(requests=1.0, tokens=tokens, steps=tokens / 3.6, kv_blocks=tokens / 16, seconds=seconds)
        return self._regime.next_degraded_probability(advance)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """How good the modelled detector is."""

    in_stream: bool = False
    onset_steps: float = 65.0
    """Slow steps after which it speaks, in the stream or at the end of the answer."""
    forecast_after: int | None = None
    """Episodes after which it forecasts; None: never."""
    learned: bool = False
    """It forecasts what its own filter has learned, not what is true."""
    false_alarm_every: int | None = None
    """Healthy answers between false alarms; None: none."""


class Simulation:
    """One client that asks one request after the other, through the policy."""

    def __init__(
        self,
        cycle: Cycle,
        config: PolicyConfig,
        detector: Detector,
        *,
        fallback_tok_s: float = 130.0,
        answer_tokens: int = 2000,
        idle_seconds: float = 0.0,
        wander: bool = False,
        seed: int = 0,
    ) -> None:
        self.primary = Primary(cycle, random.Random(seed))
        self.config = config
        self.detector = detector
        self.state = PolicyState()
        self.outcome = Outcome()
        self._fallback_tok_s = fallback_tok_s
        self._answer_tokens = answer_tokens
        self._idle_seconds = idle_seconds
        self._wander = wander
        self._draw = random.Random(seed + 1)
        self._degraded = False
        self._episodes = 0
        self._learned = Learned() if detector.learned else None

    def run(self, requests: int) -> Outcome:
        """Ask that many requests."""
        for _ in range(requests):
            begun = self.primary.now
            on_primary = serving(self.state, self.config) == self.config.primary
            if on_primary:
                self._on_primary()
            else:
                self._until(begun + TTFT_SECONDS + self._answer_tokens / self._fallback_tok_s)
            self.outcome.add(self._answer_tokens, self.primary.now - begun, primary=on_primary)
            if not on_primary:
                self._signal(self._answer(Event.FALLBACK_HEALTHY, self._fallback_tok_s, begun))
            if self._idle_seconds:
                self._until(self.primary.now + self._idle_seconds)
        return self.outcome

    def _on_primary(self) -> None:
        pace = self._draw.choice((0.45, 0.6, 0.8, 1.0, 1.2)) if self._wander else 1.0
        job = self.primary.start(self._answer_tokens, pace=pace)
        while job in self.primary.jobs:
            self._step(math.inf, job)

    def _until(self, end: float) -> None:
        while self.primary.now < end - 1e-9:
            self._step(end, None)

    def _step(self, end: float, watched: Job | None) -> None:
        """Let time pass until something happens."""
        wake = self.state.wake_at
        until = min(end, max(wake, self.primary.now) if wake is not None else math.inf)
        if watched is not None and self.detector.in_stream and not watched.told:
            until = min(until, self.primary.now + 0.25)
        if math.isinf(until):
            until = self.primary.now + 3600.0
        for job in self.primary.advance(until):
            self._ended(job)
        if watched is not None and self.detector.in_stream and not watched.told:
            self._look_inside(watched)
        if self.state.wake_at is not None and self.primary.now >= self.state.wake_at - 1e-9:
            self._signal(Signal(event=Event.DWELL_ELAPSED))

    def _look_inside(self, job: Job) -> None:
        if job.slow_steps >= self.detector.onset_steps:
            job.told = True
            self._alarm()
            self._signal(Signal(event=Event.PRIMARY_DEGRADED, answer_started=job.started))

    def _alarm(self) -> None:
        self._episodes += not self._degraded
        self._degraded = True

    def _ended(self, job: Job) -> None:
        share = job.slow_steps / max(job.steps, 1e-9)
        rate = job.tokens / (self.primary.now - job.ready_at)
        if self._degraded:
            self._degraded = share > 0.2
        elif job.slow_steps >= self.detector.onset_steps or self._false_alarm():
            self._alarm()
        if self._learned is not None:
            self._learned.ended(job, self.primary.now, slow=share > 0.2)
        if job.canary:
            event = Event.CANARY_DEGRADED if self._degraded or share > 0.2 else Event.CANARY_HEALTHY
        else:
            event = Event.PRIMARY_DEGRADED if self._degraded else Event.PRIMARY_HEALTHY
        self._signal(self._answer(event, rate, job.started, job.tokens))

    def _false_alarm(self) -> bool:
        every = self.detector.false_alarm_every
        return every is not None and self._draw.random() < 1 / every

    def _answer(self, event: Event, rate: float, started: float, tokens: int | None = None) -> Signal:
        forecast = None
        risk = self._risk()
        if risk is not None:
            forecast = Forecast(next_request_probability=risk, clock=self.primary.cycle.clock)
            if event is Event.PRIMARY_HEALTHY and risk >= AT_RISK_PROBABILITY:
                event = Event.PRIMARY_AT_RISK
        return Signal(
            event=event,
            answer_started=started,
            decode_tokens_per_second=rate,
            completion_tokens=tokens or self._answer_tokens,
            forecast=forecast,
        )

    def _risk(self) -> float | None:
        if self._learned is not None:
            return self._learned.risk(self.primary.now, self._answer_tokens)
        if self.detector.forecast_after is not None and self._episodes >= self.detector.forecast_after:
            return 0.95 * self.primary.hit_probability(self._answer_tokens)
        return None

    def _signal(self, signal: Signal) -> None:
        before = self.state.fallback
        self.state, actions = decide(self.state, signal, self.primary.now, self.config)
        self.outcome.switches += self.state.fallback != before
        for action in actions:
            if isinstance(action, SendCanary):
                self.outcome.canaries += 1
                self.outcome.canary_tokens += action.max_tokens
                self.primary.start(action.max_tokens, canary=True)


def oracle(cycle: Cycle, requests: int, *, fallback_tok_s: float, answer_tokens: int = 2000, seed: int = 0) -> Outcome:
    """A client with perfect foresight and the same tools: each request goes where it ends first, and while the primary
    would be slow, canaries of 16 tokens run on it back to back."""
    primary, outcome = Primary(cycle, random.Random(seed)), Outcome()
    on_fallback = TTFT_SECONDS + answer_tokens / fallback_tok_s
    for _ in range(requests):
        fork = copy.deepcopy(primary)
        trial = fork.start(answer_tokens)
        while trial in fork.jobs:
            fork.advance(math.inf)
        begun = primary.now
        if fork.now - begun <= on_fallback:
            outcome.add(answer_tokens, fork.now - begun, primary=True)
            primary = fork
            continue
        while primary.now < begun + on_fallback - 1e-9:
            if not primary.jobs and _slow_ahead(primary, answer_tokens, on_fallback):
                primary.start(16, canary=True)
                outcome.canaries, outcome.canary_tokens = outcome.canaries + 1, outcome.canary_tokens + 16
            primary.advance(begun + on_fallback)
        outcome.add(answer_tokens, on_fallback, primary=False)
    return outcome


def _slow_ahead(primary: Primary, answer_tokens: int, on_fallback: float) -> bool:
    fork = copy.deepcopy(primary)
    trial, begun = fork.start(answer_tokens), fork.now
    while trial in fork.jobs:
        fork.advance(math.inf)
    return fork.now - begun > on_fallback


def alone(cycle: Cycle, requests: int, *, answer_tokens: int = 2000, seed: int = 0, wander: bool = False) -> Outcome:
    """The primary without a proxy."""
    config = PolicyConfig(mode=Mode.OBSERVE)
    run = Simulation(cycle, config, Detector(), answer_tokens=answer_tokens, seed=seed, wander=wander)
    return run.run(requests)


DETECTORS = {
    "end of answer": Detector(),
    "in stream": Detector(in_stream=True),
    "in stream, true forecast": Detector(in_stream=True, forecast_after=4),
    "in stream, learned forecast": Detector(in_stream=True, learned=True),
}


def rows(requests: int, fallback_tok_s: float, answer_tokens: int, seeds: int) -> Iterator[list[str]]:
    """The table: a line for each clock, with and without jitter."""
    config = PolicyConfig(mode=Mode.ACT, primary="primary", fallbacks=("fallback",))
    cycles = {clock: published(clock) for clock in CLOCKS}
    cycles |= {f"{clock}, jitter": published(clock, jitter=True) for clock in CLOCKS}
    cycles["none"] = Cycle(clock="requests", healthy=math.inf, collapsed=1.0)
    for name, cycle in cycles.items():
        direct = alone(cycle, requests, answer_tokens=answer_tokens).tokens_per_second
        best = oracle(cycle, requests, fallback_tok_s=fallback_tok_s, answer_tokens=answer_tokens).tokens_per_second
        line = [name, f"{direct:.1f}", f"{best:.1f}"]
        for detector in DETECTORS.values():
            runs = [
                Simulation(
                    cycle, config, detector, fallback_tok_s=fallback_tok_s, answer_tokens=answer_tokens, seed=seed
                ).run(requests)
                for seed in range(seeds)
            ]
            rate = sum(run.tokens for run in runs) / sum(run.seconds for run in runs)
            slow = sum(run.slow_share(requests // 2) for run in runs) / seeds
            spent = sum(run.canary_tokens for run in runs) / sum(run.tokens for run in runs)
            line.append(f"{rate:.1f} / {100 * slow:.0f} % / {100 * spent:.1f} %")
        yield line


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--answer-tokens", type=int, default=2000)
    parser.add_argument("--fallback", type=float, default=130.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| cycle | primary alone | oracle | " + " | ".join(DETECTORS) + " |")
    print("|---|---|---|" + "---|" * len(DETECTORS))
    for line in rows(options.requests, options.fallback, options.answer_tokens, options.seeds):
        print("| " + " | ".join(line) + " |", flush=True)
    print("tok/s as tokens / time; share of slow answers in the second half; canary tokens per client token.")


if __name__ == "__main__":
    main()
