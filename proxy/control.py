"""The one task that changes state: facts come in from the queue, verdicts and decisions follow, snapshots go out."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Final

import aiohttp

from detector.observation import EngineSample, Observation
from detector.policy import Notice, PolicyState, RouteTo, SendCanary, Signal, decide, serving, signal_of
from detector.policy_config import Mode, PolicyConfig
from detector.transitions import Event as PolicyEvent
from detector.verdict import Episode, Phase, Verdict
from detector.watch import Watch, WatchConfig
from proxy.canary import send_canary
from proxy.config import Config
from proxy.events import Event, Events, Measured, Sampled, Stepped, Unreachable
from proxy.gateway import Gateway
from proxy.metrics import Metrics
from proxy.recording import Recording
from proxy.routing import Routing
from proxy.upstream import Backend

FAILURES_TO_LEAVE: Final = 2
"""Answers in a row that the engine failed before traffic leaves it. One may be an accident of that request."""

log = logging.getLogger("specbreaker.control")


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
    ) -> None:
        self.config = config
        self.watched = {name: Watched(backend) for name, backend in backends.items()}
        fallbacks = [backend.name for backend in config.backends if backend.role == "fallback"]
        primary = next(backend.name for backend in config.backends if backend.role == "primary")
        self.policy = PolicyConfig(
            mode=Mode(config.policy.mode),
            primary=primary,
            fallback=fallbacks[0] if fallbacks else None,
            dwell_seconds=config.policy.dwell_seconds,
            dwell_max_seconds=max(config.policy.max_backoff_seconds, config.policy.dwell_seconds),
        )
        self._others = tuple(backends[name] for name in fallbacks[1:])
        self.state = PolicyState()
        self.last_decision = "nothing has been decided yet"
        self.last_decision_at: float | None = None
        self._events = events
        self._gateway = gateway
        self._metrics = metrics
        self._recording = recording
        self._session = session
        self._canary: asyncio.Task[None] | None = None
        self.publish()

    async def run(self) -> None:
        """Handle facts until cancelled."""
        while True:
            event = await self._events.get(self.state.wake_at)
            try:
                if event is not None:
                    self.handle(event)
                if self.state.wake_at is not None and time.monotonic() >= self.state.wake_at:
                    self._decide(Signal(event=PolicyEvent.DWELL_ELAPSED))
            except Exception:
                # A fault in the detector must not end the watching; the answers do not depend on it.
                self._metrics.control_failures.inc()
                log.exception("a fact could not be handled: %s", type(event).__name__)

    def handle(self, event: Event) -> None:
        """Take one fact in."""
        match event:
            case Measured(observation):
                self._measured(observation)
            case Stepped():
                self._stepped(event)
            case Sampled(backend, sample, version):
                self._sampled(backend, sample, version)
            case Unreachable(backend, reason):
                self._reachability(backend, False, reason)

    def _measured(self, observation: Observation) -> None:
        watched = self.watched[observation.backend]
        watched.last = observation
        watched.model = observation.facts.model or watched.model
        self._metrics.observed(observation)
        if not watched.reachable and observation.status is not None:
            self._reachability(observation.backend, True, "answers again")
        before = watched.watch.verdict
        verdict = watched.watch.update(observation)
        degraded_seconds = (observation.decode_seconds or 0.0) if verdict.degraded else 0.0
        self._verdict(watched, before, verdict, degraded_seconds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request %s", observation.request_id, extra={"fields": request_fields(observation)})
        signal = signal_of(observation, verdict, self.policy)
        if signal is not None:
            self._decide(signal)
        self._count_failures(watched, observation)

    def _count_failures(self, watched: Watched, observation: Observation) -> None:
        """An engine that fails answer after answer is left like a collapsed one: a canary finds out when it is back."""
        failed = observation.ending.failed or (observation.status or 0) >= 500
        watched.failures_in_a_row = watched.failures_in_a_row + 1 if failed else 0
        name = watched.backend.name
        if watched.failures_in_a_row >= FAILURES_TO_LEAVE and name in (self.policy.primary, self.policy.fallback):
            primary = name == self.policy.primary
            event = PolicyEvent.PRIMARY_DEGRADED if primary else PolicyEvent.FALLBACK_DEGRADED
            self._decide(Signal(event=event, answer_started=observation.started))

    def _stepped(self, event: Stepped) -> None:
        watched = self.watched[event.backend]
        if event.generation != watched.backend.generation:
            return
        before = watched.watch.verdict
        for step in event.steps:
            verdict = watched.watch.update_step(event.request_id, step)
            if verdict is not None and verdict.degraded and not before.degraded:
                self._verdict(watched, before, verdict)
                before = verdict
                primary = event.backend == self.policy.primary
                degraded = PolicyEvent.PRIMARY_DEGRADED if primary else PolicyEvent.FALLBACK_DEGRADED
                self._decide(Signal(event=degraded, cause=verdict.cause, answer_started=event.started))

    def _sampled(self, name: str, sample: EngineSample, version: str | None) -> None:
        watched = self.watched[name]
        before = watched.sample
        watched.sample, watched.version = sample, version
        self._metrics.sampled(name, sample)
        if not watched.reachable:
            self._reachability(name, True, "answers again")
        self._recording.engine(name, watched.backend.generation, sample)
        restarted = (
            before is not None
            and before.process_started_unix is not None
            and sample.process_started_unix is not None
            and before.process_started_unix != sample.process_started_unix
        )
        if restarted:
            watched.backend.generation += 1
            watched.watch.restart(watched.backend.generation)
            log.warning("backend %s was restarted (launch %d)", name, watched.backend.generation)
            self._recording.event("engine_restart", name, {"generation": watched.backend.generation})
            self.publish()
            if name == self.policy.primary:
                self._decide(Signal(event=PolicyEvent.PRIMARY_RESTARTED))

    def _reachability(self, name: str, reachable: bool, reason: str) -> None:
        watched = self.watched[name]
        if watched.reachable != reachable:
            watched.reachable = reachable
            log.warning("backend %s: %s", name, reason)
            self._recording.event("notice", name, {"text": reason})
            self._metrics.reachable(name, reachable)
        role = "PRIMARY" if name == self.policy.primary else "FALLBACK"
        if name in (self.policy.primary, self.policy.fallback):
            self._decide(Signal(event=PolicyEvent[f"{role}_{'REACHABLE' if reachable else 'UNREACHABLE'}"]))

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
            self._recording.event("phase", name, {"phase": verdict.phase, "cause": verdict.cause} | evidence)
            self.publish()
        self._metrics.verdict(name, verdict, degraded_seconds, self.episodes(name))

    def _decide(self, signal: Signal) -> None:
        # Jitter spreads the canaries of many proxies; it is not a secret.
        self.state, actions = decide(self.state, signal, time.monotonic(), self.policy, random.random())
        for action in actions:
            match action:
                case Notice(text, level):
                    log.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
                    self._recording.event("notice", None, {"text": text, "level": level})
                    self.last_decision, self.last_decision_at = text, time.time()
                case RouteTo(backend, reason):
                    self._metrics.switched(self._gateway.routing.order[0].name, backend, reason)
                    self._recording.event("switch", backend, {"reason": reason, "cause": signal.cause})
                    self.publish()
                    if self.config.continuation.on_collapse and reason == PolicyEvent.PRIMARY_DEGRADED:
                        self._gateway.move_running(self.policy.primary)
                case SendCanary(backend):
                    self._canary = asyncio.get_running_loop().create_task(self._send_canary(backend))
                    self._canary.add_done_callback(self._canary_done)

    async def _send_canary(self, name: str) -> None:
        watched = self.watched[name]
        model = watched.model or await self._first_model(watched.backend)
        depth = watched.sample.num_speculative_tokens if watched.sample is not None else None
        observation = await send_canary(watched.backend, self._session, self.config.policy, model, depth)
        self._metrics.canary(name, observation)
        self._recording.event("canary", name, request_fields(observation))
        self._recording.response(observation, (), 0, 0)
        # The policy waits for exactly this: it must not be dropped.
        self._events.put(Measured(observation), must=True)

    def _canary_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._metrics.control_failures.inc()
            log.error("a canary could not be sent", exc_info=task.exception())
            self._decide(Signal(event=PolicyEvent.CANARY_FAILED))

    async def _first_model(self, backend: Backend) -> str:
        """The engine's own first model, where no client has named one yet."""
        headers = {"authorization": backend.authorization.decode()} if backend.authorization else {}
        try:
            async with self._session.get(f"{backend.settings.url.rstrip('/')}/v1/models", headers=headers) as answer:
                return str((await answer.json())["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError):
            return ""

    def publish(self) -> None:
        """Give the hot path a new routing table."""
        first = serving(self.state, self.policy)
        names = [first]
        if self.policy.mode is Mode.ACT:
            names += [name for name in (self.policy.primary, self.policy.fallback) if name and name != first]
        order = tuple(self.watched[name].backend for name in names)
        if self.policy.mode is Mode.ACT:
            order += self._others
        phases = {name: watched.watch.verdict.phase for name, watched in self.watched.items()}
        self._gateway.routing = Routing(order, phases)

    def phase(self, name: str) -> Phase:
        """Phase of a backend."""
        return self.watched[name].watch.verdict.phase

    def episodes(self, name: str) -> list[Episode]:
        """Episodes of a backend, the oldest first."""
        return self.watched[name].watch.episodes

    async def close(self) -> None:
        """Stop a canary that is out."""
        if self._canary is not None:
            self._canary.cancel()
            await asyncio.gather(self._canary, return_exceptions=True)


def request_fields(observation: Observation) -> dict[str, object]:
    """The numbers of an answer that people read in a log line."""
    names = (
        "request_id",
        "backend",
        "status",
        "ending",
        "ttft_seconds",
        "completion_tokens",
        "decode_tokens_per_second",
        "acceptance_length",
        "acceptance_source",
        "step_seconds",
        "in_flight",
    )
    values = {name: getattr(observation, name) for name in names}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
