"""The proxy's own metrics. Base units; labels are closed sets, never a request or a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from detector.observation import Ending, EngineSample, Observation
from detector.stats.cycle import CycleVerdict
from detector.verdict import Cause, Episode, Forecast, Phase, Verdict
from proxy.effects.protocol import Outcome, Restart
from proxy.version import VERSION

RATES = (5, 10, 20, 30, 40, 60, 80, 100, 130, 160, 200, 250, 300, 400, 600, 800, 1200, 2000, 4000)
TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STEPS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
RESTARTS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 1200)
LENGTHS = (1.05, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 16)


MAX_EXEMPLAR_ID = 128 - len("request_id")


class Metrics:
    """All series, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.control_failures = self._counter("control_failures", "Facts that the control task could not handle.")
        self._requests = self._counter("requests", "Requests, by how they ended.", "backend", "status", "result")
        self._refused = self._counter("refused", "Requests refused before any backend was chosen.", "status")
        self._connect_failures = self._counter("connect_failures", "Connections that failed.", "backend")
        self._rate = self._histogram("decode_tokens_per_second", "Decode rate of one answer.", RATES)
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival of the request to its first token.", TTFT)
        self._step = self._histogram("step_seconds", "Seconds per verify step of one answer.", STEPS)
        self._length = self._histogram("acceptance_length", "Tokens per verify step of one answer.", LENGTHS)
        self._generated = self._counter("generated_tokens", "Tokens of measured answers.", "backend")
        self._decode_tokens = self._counter("decode_tokens", "Tokens of answers with a known decode rate.", "backend")
        self._decode = self._counter("decode_seconds", "Decode time of the same answers.", "backend")
        self._steps = self._counter("verify_steps", "Verify steps of measured answers.", "backend")
        self._observations = self._counter("observations", "Measured answers, by source of A.", "backend", "source")
        self._last = self._gauge("detector_last_observation_timestamp_seconds", "Unix time of the last one.", "backend")
        self._phase = self._gauge("backend_phase", "1 for the phase the backend is in.", "backend", "phase")
        self._degraded = self._gauge("backend_degraded", "1 while the backend should get no new request.", "backend")
        self._reachable = self._gauge("backend_reachable", "0 while no connection can be made.", "backend")
        self._depth = self._gauge("num_speculative_tokens", "K of the backend's level, where known.", "backend")
        self._episodes = self._counter("episodes", "Collapses that were seen.", "backend", "cause")
        self._collapse = self._counter("collapse_seconds", "Decode time spent in degraded phases.", "backend")
        self._lost = self._counter("tokens_lost", "Tokens that the healthy rate would have added.", "backend")
        self._next_degraded = self._gauge(
            "next_degraded_probability", "That the next request to the backend is degraded; NaN: unknown.", "backend"
        )
        self._switches = self._counter("switches", "Changes of route.", "from", "to", "reason")
        self._continuations = self._counter(
            "continuations", "Answers that broke off: went on elsewhere, or why not.", "from", "to", "reason", "result"
        )
        self._canaries = self._counter("canaries", "Canaries, by how they ended.", "backend", "result")
        self._canary_tokens = self._counter("canary_tokens", "Tokens that canaries had generated.", "backend")
        self._restarts = self._counter("restarts", "Restarts of engines, by how they ended.", "result")
        self._restart_seconds = Histogram(
            "specbreaker_restart_seconds",
            "Parts of a restart.",
            ["phase"],
            buckets=RESTARTS,
            registry=self.registry,
        )
        self._level = self._gauge("backend_level", "1 for the level that the backend runs at.", "backend", "level")
        self._effects = self._counter("effects", "Actions, by how they ended.", "effect", "result")
        for result in ("succeeded", "failed"):
            self._restarts.labels(result)
        self._upstream_failures = self._counter(
            "upstream_scrape_failures", "Scrapes without the engine's own metrics.", "backend"
        )
        self._levels: dict[str, str] = {}
        self._reload = self._gauge("config_last_reload_successful", "0 after a configuration that was refused.")
        self._reload.set(1)
        self._judged: dict[str, tuple[Phase, bool]] = {}
        self._seen_episodes: dict[str, tuple[int, float]] = {}
        self._info = Info("specbreaker_build", "Version.", registry=self.registry)
        self._info.info({"version": VERSION})

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"specbreaker_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"specbreaker_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"specbreaker_{name}", text, ["backend"], buckets=buckets, registry=self.registry)

    def add_collector(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Also export what a function reads when it is asked."""
        self.registry.register(_Function(collect))

    def backend(self, name: str) -> None:
        """Begin the series of a backend, so that they exist before the first request."""
        for phase in Phase:
            self._phase.labels(name, phase).set(phase is Phase.HEALTHY)
        for cause in Cause:
            self._episodes.labels(name, cause)
        self._degraded.labels(name).set(0)
        self._reachable.labels(name).set(1)
        self._next_degraded.labels(name).set(math.nan)
        for ending in Ending:
            # A series that is born with its first failure shows no increase of it to Prometheus.
            self._requests.labels(name, "200", ending)
        for counter in (
            self._collapse,
            self._lost,
            self._generated,
            self._decode_tokens,
            self._decode,
            self._steps,
        ):
            counter.labels(name)

    def request(self, backend: str, status: int | None, ending: Ending) -> None:
        """A request was forwarded, or could not be."""
        self._requests.labels(backend, str(status) if status is not None else "none", ending).inc()

    def refused(self, status: int) -> None:
        """A request was refused."""
        self._refused.labels(str(status)).inc()

    def connect_failed(self, backend: str) -> None:
        """A connection failed."""
        self._connect_failures.labels(backend).inc()

    def reachable(self, backend: str, reachable: bool) -> None:
        """Connections can or cannot be made."""
        self._reachable.labels(backend).set(reachable)

    def observed(self, observation: Observation) -> None:
        """An answer was measured."""
        name = observation.backend
        exemplar = _exemplar(observation)
        for histogram, value in (
            (self._rate, observation.decode_tokens_per_second),
            (self._ttft, observation.ttft_seconds),
            (self._step, observation.step_seconds),
            (self._length, observation.acceptance_length),
        ):
            if value is not None:
                histogram.labels(name).observe(value, exemplar)
        self._observations.labels(name, observation.acceptance_source or "none").inc()
        self._last.labels(name).set(observation.started_unix + observation.ended - observation.started)
        tokens, seconds = _decoded(observation)
        for counter, amount in (
            (self._generated, observation.completion_tokens),
            (self._decode_tokens, tokens),
            (self._decode, seconds),
            (self._steps, observation.verify_steps),
        ):
            if amount is not None:
                counter.labels(name).inc(amount)

    def sampled(self, backend: str, sample: EngineSample) -> None:
        """An engine's counters were read."""
        if sample.num_speculative_tokens is not None:
            self._depth.labels(backend).set(sample.num_speculative_tokens)

    def verdict(self, backend: str, verdict: Verdict, degraded_seconds: float, episodes: Sequence[Episode]) -> None:
        """The detector judged; degraded_seconds: decode time of the judged answer, where it was a degraded one."""
        if self._judged.get(backend) != (verdict.phase, verdict.degraded):
            self._judged[backend] = (verdict.phase, verdict.degraded)
            for phase in Phase:
                self._phase.labels(backend, phase).set(phase is verdict.phase)
            self._degraded.labels(backend).set(verdict.degraded)
        if degraded_seconds:
            self._collapse.labels(backend).inc(degraded_seconds)
        if episodes:
            self._count_episodes(backend, episodes)

    def _count_episodes(self, backend: str, episodes: Sequence[Episode]) -> None:
        seen, lost_before = self._seen_episodes.get(backend, (-1, 0.0))
        for episode in episodes:
            lost = episode.tokens_lost or 0.0
            if episode.detected_request > seen:
                self._episodes.labels(backend, episode.cause).inc()
                self._lost.labels(backend).inc(max(0.0, lost))
                seen, lost_before = episode.detected_request, lost
            elif episode.detected_request == seen and lost > lost_before:
                self._lost.labels(backend).inc(lost - lost_before)
                lost_before = lost
        self._seen_episodes[backend] = (seen, lost_before)

    def forecast(self, backend: str, forecast: Forecast | None) -> None:
        """What is expected of the backend."""
        probability = forecast.next_request_probability if forecast is not None else None
        self._next_degraded.labels(backend).set(math.nan if probability is None else probability)

    def reloaded(self, *, accepted: bool) -> None:
        """The configuration was read again."""
        self._reload.set(accepted)

    def switched(self, source: str, target: str, reason: str) -> None:
        """Traffic moved."""
        self._switches.labels(source, target, reason).inc()

    def continuation(self, source: str, target: str, reason: str, result: str) -> None:
        """A broken answer went on elsewhere, and how that ended; or it did not."""
        self._continuations.labels(source, target, reason, result).inc()

    def canary(self, backend: str, observation: Observation) -> None:
        """A canary came back."""
        self._canaries.labels(backend, observation.ending).inc()
        self._canary_tokens.labels(backend).inc(observation.completion_tokens or 0)

    def returned(self, backend: str, level: str | None) -> None:
        """A backend runs at this level now."""
        before = self._levels.get(backend)
        if before is not None and before != level:
            self._level.labels(backend, before).set(0)
        if level is not None:
            self._levels[backend] = level
            self._level.labels(backend, level).set(1)

    def outcome(self, outcome: Outcome) -> None:
        """An action was carried out, or was not."""
        result = "succeeded" if outcome.succeeded else "failed"
        self._effects.labels(outcome.effect, "dry_run" if outcome.dry_run else result).inc()
        if isinstance(outcome.action, Restart) and not outcome.dry_run:
            self._restarts.labels(result).inc()
            for phase, seconds in outcome.phases.items():
                self._restart_seconds.labels(phase).observe(seconds)

    def upstream_scrape(self, backend: str, *, failed: bool = False) -> None:
        """An engine's own metrics were asked for; the first call begins the series."""
        self._upstream_failures.labels(backend).inc(failed)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All series, and the content type: OpenMetrics, with exemplars, where the Accept header asks for it, else text
        format 0.0.4."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _exemplar(observation: Observation) -> dict[str, str] | None:
    """The id of the request, where it fits: names and values of an exemplar have at most 128 characters."""
    request_id = observation.request_id
    return {"request_id": request_id} if len(request_id) <= MAX_EXEMPLAR_ID and request_id.isprintable() else None


def _decoded(observation: Observation) -> tuple[float | None, float | None]:
    """Tokens and seconds whose quotient is the rate of this answer; None where the rate is unknown.

    The first token belongs to the prefill. The seconds are those of the clock that gave the rate: the engine's own
    where it says them.
    """
    rate, tokens = observation.decode_tokens_per_second, observation.completion_tokens
    if not rate or tokens is None or tokens < 2:
        return None, None
    return tokens - 1, (tokens - 1) / rate


class _Function(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """A counter whose value is kept elsewhere."""
    return CounterMetricFamily(f"specbreaker_{name}", text, value=value)


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge whose value is kept elsewhere."""
    return GaugeMetricFamily(f"specbreaker_{name}", text, value=value)


def cycle_series(cycles: Mapping[str, CycleVerdict]) -> Iterable[Metric]:
    """What is known of the cycle of each backend."""
    evidence = GaugeMetricFamily(
        "specbreaker_cycle_evalue", "Evidence that collapses come in a cycle.", labels=["backend"]
    )
    periods = GaugeMetricFamily(
        "specbreaker_cycle_period",
        "Mean length of the cycle on each clock, while one is certified.",
        labels=["backend", "clock"],
    )
    for backend, cycle in cycles.items():
        evidence.add_metric([backend], cycle.e_value)
        for clock, period in cycle.periods.items():
            periods.add_metric([backend, clock], period.estimate)
    return evidence, periods
