"""The one task that changes state: facts come in from the queue, verdicts and decisions follow, snapshots go out."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
import msgspec

from detector.observation import Ending, EngineSample, Observation
from detector.policy import (
    Action,
    Mode,
    Notice,
    PolicyState,
    Restart,
    RouteTo,
    SendCanary,
    Signal,
    decide,
    serving,
    signal_of,
)
from detector.policy import Event as PolicyEvent
from detector.policy.cost import options, stay_prompt_tokens
from detector.policy.explanation import Explanation, explain
from detector.verdict import Episode, Phase, Verdict
from detector.watch import Watch, WatchConfig
from proxy.avoided import Avoided
from proxy.canary import Canary
from proxy.config import Config
from proxy.effects import protocol as effects
from proxy.effects.protocol import EffectError, Notify, Outcome
from proxy.events import Event, Events, Left, Measured, Returned, Sampled, Stepped, Unreachable
from proxy.gateway import Gateway
from proxy.logs import request_fields, rounded
from proxy.metrics import Metrics, cycle_series
from proxy.policy_settings import policy_config
from proxy.recording import Recording
from proxy.routing import Routing
from proxy.tracing import Tracing
from proxy.upstream import Away, Backend

FAILURES_TO_LEAVE: Final = 2
"""Answers in a row that the engine failed before traffic leaves it. One may be an accident of that request."""

DECISIONS_KEPT: Final = 50
BYTES_PER_TOKEN: Final = 4
"""Of a prompt, roughly: it only has to tell long conversations from short ones."""

log = logging.getLogger("specbreaker.control")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the policy decided, and the numbers at that moment."""

    at_unix: float
    text: str
    explanation: Explanation


class Watched:
    """What control knows of one backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.watch = Watch(WatchConfig())
        self.sample: EngineSample | None = None
        self.version: str | None = None
        self.reachable = True
        self.model: str | None = None
        """Model name of the last answer, for canaries."""
        self.last: Observation | None = None
        self.level: str | None = None
        """The level of the ladder that it was last started at; None: not started by us."""
        self.failures_in_a_row = 0
        self.episodes_counted = 0


class Control:
    """Runs the detector and the policy."""

    def __init__(
        self,
        config: Config,
        backends: Mapping[str, Backend],
        events: Events,
        gateway: Gateway,
        metrics: Metrics,
        recording: Recording,
        session: aiohttp.ClientSession,
        tracing: Tracing,
    ) -> None:
        self.config = config
        self.watched = {name: Watched(backend) for name, backend in backends.items()}
        self.policy = policy_config(config)
        self.state = PolicyState()
        self.begin: Callable[[effects.Action], object] = _nobody_can
        """Begins an action, or raises EffectError; whoever puts the parts together sets it."""
        self.tell: Callable[[Notify], None] = lambda _: None
        """Tells somebody outside; whoever puts the parts together sets it."""
        self.failed: Callable[[str, Ending], object] = lambda *_: None
        """Told of a backend that was silent or took no connection; whoever puts the parts together sets it."""
        self.outcomes: deque[Outcome] = deque(maxlen=20)
        """What came of the last actions, the oldest first."""
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        """The last ones, the oldest first."""
        self._events = events
        self._gateway = gateway
        self._metrics = metrics
        self._recording = recording
        self._session = session
        self._tracing = tracing
        self._canary = Canary(session, self._canary_ended, self._canary_failed)
        self._avoided = Avoided()
        metrics.add_collector(lambda: cycle_series({name: one.watch.cycle for name, one in self.watched.items()}))
        self.publish()

    async def run(self) -> None:
        """Handle facts until cancelled."""
        while True:
            wakes = [at for at in (self.state.wake_at, self._avoided.wake_at) if at is not None]
            event = await self._events.get(min(wakes, default=None))
            try:
                if event is not None:
                    self.handle(event)
                if self.state.wake_at is not None and time.monotonic() >= self.state.wake_at:
                    self._decide(Signal(event=PolicyEvent.DWELL_ELAPSED))
                self._ask_if_avoided()
            except Exception:
                # A fault in the detector must not end the watching; the answers do not depend on it.
                self._metrics.control_failures.inc()
                log.exception("a fact could not be handled: %s", type(event).__name__)

    def handle(self, event: Event) -> None:
        """Take one fact in."""
        match event:
            case Measured(observation, trace):
                self._tracing.span(observation, trace, self.watched[observation.backend])
                self._measured(observation)
            case Stepped():
                self._stepped(event)
            case Sampled(backend, sample, version):
                self._sampled(backend, sample, version)
            case Unreachable(backend, reason):
                self._reachability(backend, False, reason)
                self.failed(backend, Ending.CONNECT_FAILED)
            case Left(backend, reason, back_at):
                self._left(backend, Away(reason, back_at))
            case Returned(backend, level, relaunched):
                self._returned(backend, level, relaunched)
            case Outcome():
                self._outcome(event)

    def _measured(self, observation: Observation) -> None:
        watched = self.watched[observation.backend]
        watched.last = observation
        watched.model = observation.facts.model or watched.model
        self._metrics.observed(observation)
        if observation.backend == self.policy.primary:
            self._avoided.answered(observation, time.monotonic(), self.policy, random.random())
        if not watched.reachable and observation.status is not None:
            self._reachability(observation.backend, True, "answers again")
        before, judgement, rebases = watched.watch.verdict, watched.watch.cycle_judgement, watched.watch.rebases
        verdict = watched.watch.update(observation)
        self._metrics.forecast(observation.backend, verdict.forecast)
        if watched.watch.cycle_judgement != judgement:
            self._cycle_judged(watched)
        if watched.watch.rebases > rebases:
            self._notice(observation.backend, "was degraded for so long that this is its new reference")
        degraded_seconds = (observation.rate_seconds or 0.0) if verdict.degraded else 0.0
        self._verdict(watched, before, verdict, degraded_seconds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request %s", observation.request_id, extra={"fields": request_fields(observation)})
        signal = signal_of(observation, verdict, self.policy)
        if signal is not None:
            self._decide(signal)
        self._count_failures(watched, observation)
        if observation.ending is Ending.UPSTREAM_TIMEOUT:
            self.failed(observation.backend, observation.ending)

    def _cycle_judged(self, watched: Watched) -> None:
        cycle, name = watched.watch.cycle, watched.backend.name
        fields: dict[str, object] = {"e_value": round(cycle.e_value, 3), "clock": cycle.clock}
        fields |= {f"period_{clock}": round(period.estimate, 3) for clock, period in cycle.periods.items()}
        log.warning("backend %s: its collapses are %s", name, cycle.verdict.replace("_", " "), extra={"fields": fields})
        self._recording.event("cycle", name, {"verdict": cycle.verdict, **fields})
        self.tell(Notify(f"backend {name}: collapses are {cycle.verdict}", "cycle", name, fields))

    def _notice(self, name: str, text: str) -> None:
        log.warning("backend %s %s", name, text)
        self._recording.event("notice", name, {"text": text})
        self.tell(Notify(f"backend {name} {text}", "notice", name))

    def _count_failures(self, watched: Watched, observation: Observation) -> None:
        """An engine that fails answer after answer is left like a collapsed one: a canary finds out when it is back."""
        failed = observation.ending.failed or (observation.status or 0) >= 500
        watched.failures_in_a_row = watched.failures_in_a_row + 1 if failed else 0
        if watched.failures_in_a_row >= FAILURES_TO_LEAVE:
            event, name = self._event(watched.backend.name, "DEGRADED"), watched.backend.name
            self._decide(Signal(event=event, backend=name, answer_started=observation.started))

    def _stepped(self, event: Stepped) -> None:
        watched = self.watched[event.backend]
        if event.generation != watched.backend.generation:
            return  # of an older process
        before = watched.watch.verdict
        for step in event.steps:
            verdict = watched.watch.update_step(event.request_id, step)
            if verdict is not None and verdict.degraded and not before.degraded:
                self._verdict(watched, before, verdict)
                before = verdict
                signal = Signal(
                    event=self._event(event.backend, "DEGRADED"),
                    backend=event.backend,
                    cause=verdict.cause,
                    answer_started=event.started,
                )
                self._decide(signal)

    def _sampled(self, name: str, sample: EngineSample, version: str | None) -> None:
        watched = self.watched[name]
        before = watched.sample
        if version and version != watched.version:
            self._recording.event("engine_version", name, {"version": version})
        watched.sample, watched.version = sample, version
        watched.watch.update_engine(sample)
        self._metrics.sampled(name, sample)
        if sample.awake is False:
            self._reachability(name, False, "sleeps")
        elif not watched.reachable:
            self._reachability(name, True, "answers again")
        self._recording.engine(name, watched.backend.generation, sample)
        restarted = (
            before is not None
            and before.process_started_unix is not None
            and sample.process_started_unix is not None
            and before.process_started_unix != sample.process_started_unix
            # While we restart it ourselves, Returned says when the new one counts.
            and watched.backend.away is None
        )
        if restarted:
            self._relaunched(watched)

    def _relaunched(self, watched: Watched) -> None:
        """What was seen of the old process says nothing about the new one."""
        name = watched.backend.name
        watched.backend.generation += 1
        watched.watch.restart(watched.backend.generation)
        log.warning("backend %s was restarted (launch %d)", name, watched.backend.generation)
        self._recording.event("engine_restart", name, {"generation": watched.backend.generation})
        self.publish()
        if name == self.policy.primary:
            self._decide(Signal(event=PolicyEvent.PRIMARY_RESTARTED))

    def _left(self, name: str, away: Away) -> None:
        backend = self.watched[name].backend
        if backend.away is None:
            log.warning("backend %s gets no new request: %s", name, away.reason)
            self._recording.event("notice", name, {"text": away.reason})
        backend.away = away

    def _returned(self, name: str, level: str | None, relaunched: bool) -> None:
        watched = self.watched[name]
        watched.level = level or watched.level
        if name == self.policy.primary and level is not None:
            # Also where it was restarted by hand, or by nobody.
            self.state = msgspec.structs.replace(self.state, level=level)
        if relaunched:
            # The next reading is of the new process: it must not count as one more restart.
            watched.sample = None
            self._relaunched(watched)
        watched.backend.away = None
        self._metrics.returned(name, watched.level)
        if not watched.reachable:
            self._reachability(name, True, "answers again")
        self._gateway.holding.release()

    def _outcome(self, outcome: Outcome) -> None:
        level = logging.INFO if outcome.succeeded else logging.ERROR
        self._metrics.outcome(outcome)
        if isinstance(outcome.action, Notify) and outcome.succeeded:
            return
        log.log(level, "%s: %s", outcome.effect, outcome.detail, extra={"fields": rounded(outcome.phases)})
        if not isinstance(outcome.action, Notify):
            result = "succeeded" if outcome.succeeded else "failed"
            # The first line is ours; an engine's last lines may follow, and they may hold a prompt.
            text = f"{outcome.effect}: {outcome.detail.partition(chr(10))[0]}"
            self.tell(Notify(text, f"action_{result}", outcome.action.backend, {"seconds": round(outcome.seconds, 3)}))
        self.outcomes.append(outcome)
        restart = isinstance(outcome.action, effects.Restart) and outcome.action.backend == self.policy.primary
        if restart and self.state.restart_began is not None:
            done = outcome.succeeded and not outcome.dry_run
            event = PolicyEvent.RESTART_SUCCEEDED if done else PolicyEvent.RESTART_FAILED
            self._decide(Signal(event=event, seconds=outcome.seconds))
        backend = outcome.action.backend
        fields = {
            "effect": outcome.effect,
            "succeeded": outcome.succeeded,
            "level": getattr(outcome.action, "level", None),
        }
        self._recording.event("action", backend, fields | rounded(outcome.phases))

    def _reachability(self, name: str, reachable: bool, reason: str) -> None:
        watched = self.watched[name]
        if watched.reachable != reachable:
            watched.reachable = reachable
            log.warning("backend %s: %s", name, reason)
            self._recording.event("notice", name, {"text": reason})
            self._metrics.reachable(name, reachable)
        self._decide(Signal(event=self._event(name, "REACHABLE" if reachable else "UNREACHABLE"), backend=name))

    def _event(self, name: str, what: str) -> PolicyEvent:
        return PolicyEvent[f"{'PRIMARY' if name == self.policy.primary else 'FALLBACK'}_{what}"]

    def _verdict(self, watched: Watched, before: Verdict, verdict: Verdict, degraded_seconds: float = 0.0) -> None:
        name = watched.backend.name
        if verdict.phase is not before.phase:
            level = logging.WARNING if verdict.degraded else logging.INFO
            evidence = {key: round(value, 4) for key, value in verdict.evidence.items()}
            log.log(
                level,
                "backend %s is %s%s",
                name,
                verdict.phase,
                f" ({verdict.cause})" if verdict.cause else "",
                extra={"fields": evidence},
            )
            fields: dict[str, object] = {"phase": verdict.phase, "cause": verdict.cause, **evidence}
            self._recording.event("phase", name, fields)
            self.tell(Notify(f"backend {name} is {verdict.phase}", "phase", name, fields))
            self.publish()
        self._metrics.verdict(name, verdict, degraded_seconds, self.episodes(name))

    def _decide(self, signal: Signal) -> None:
        # Jitter spreads the canaries of many proxies; it is not a secret.
        self.state, actions = decide(self.state, signal, time.monotonic(), self.policy, random.random())
        for action in actions:
            self._carry_out(action, signal)

    def _carry_out(self, action: Action, signal: Signal) -> None:
        match action:
            case Notice(text, level):
                log.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
                self._recording.event("notice", None, {"text": text, "level": level})
                explanation = explain(self.state, time.monotonic(), self.policy)
                self.decisions.append(Decision(at_unix=time.time(), text=text, explanation=explanation))
            case RouteTo(backend, reason):
                self._metrics.switched(self._gateway.routing.order[0].name, backend, reason)
                self._recording.event("switch", backend, {"reason": reason, "cause": signal.cause})
                self.tell(Notify(f"new requests go to {backend}", "switch", backend, {"reason": reason}))
                self.publish()
                if self.config.continuation.on_collapse and reason is PolicyEvent.PRIMARY_DEGRADED:
                    self._gateway.move_running(self.policy.primary)
            case SendCanary(backend, tokens):
                self._begin_canary(backend, tokens)
            case Restart(backend, level):
                try:
                    self.begin(effects.Restart(backend, level, "decided by the policy"))
                except EffectError as error:
                    log.error("backend %s is not restarted at level %s: %s", backend, level, error)
                    self._decide(Signal(event=PolicyEvent.RESTART_FAILED))

    def _ask_if_avoided(self) -> None:
        """Where a balancer may leave a degraded engine altogether, find out by a canary when it is well again."""
        watched = self.watched[self.policy.primary]
        backend = watched.backend
        wanted = self.config.policy.canaries_without_traffic and self._gateway.routing.order[0] is backend
        degraded = wanted and watched.watch.verdict.degraded and watched.reachable and backend.away is None
        out = self._canary.is_out
        tokens = self._avoided.due(time.monotonic(), self.policy, degraded=degraded, begun=backend.begun, out=out)
        if tokens is not None:
            self._begin_canary(backend.name, tokens)

    def _begin_canary(self, name: str, tokens: int) -> None:
        watched = self.watched[name]
        depth = watched.sample.num_speculative_tokens if watched.sample is not None else None
        self._canary.begin(watched.backend, self.config.policy, watched.model, tokens, depth)

    def _canary_ended(self, observation: Observation) -> None:
        name = observation.backend
        self._metrics.canary(name, observation)
        self._recording.event("canary", name, request_fields(observation))
        self._recording.response(observation, (), 0, 0)
        # The policy waits for exactly this: it must not be dropped.
        self._events.put(Measured(observation), must=True)

    def _canary_failed(self, error: BaseException) -> None:
        self._metrics.control_failures.inc()
        log.error("a canary could not be sent", exc_info=error)
        self._decide(Signal(event=PolicyEvent.CANARY_FAILED))

    def publish(self) -> None:
        """Give the hot path a new routing table."""
        first, names = serving(self.state, self.policy), list[str]()
        stay_bytes: dict[str, float] = {}
        if self.policy.mode is Mode.ACT:
            now, prefill = time.monotonic(), self.config.policy.prefill_tokens_per_second
            costs = {one.backend: one.expected_seconds for one in options(self.state, now, self.policy)}
            names = sorted((name for name in costs if name != first), key=lambda name: costs[name])
            stay_bytes = {
                name: BYTES_PER_TOKEN * stay_prompt_tokens(self.state, name, now, self.policy, prefill)
                for name in names
            }
        order = tuple(self.watched[name].backend for name in (first, *names))
        phases = {name: watched.watch.verdict.phase for name, watched in self.watched.items()}
        self._gateway.routing = Routing(order, phases, stay_bytes)

    def phase(self, name: str) -> Phase:
        """Phase of a backend."""
        return self.watched[name].watch.verdict.phase

    def episodes(self, name: str) -> list[Episode]:
        """Episodes of a backend, the oldest first."""
        return self.watched[name].watch.episodes

    async def close(self) -> None:
        """Stop a canary that is out."""
        await self._canary.close()


def _nobody_can(action: effects.Action) -> object:
    raise EffectError(f"nothing can carry out {action}")
