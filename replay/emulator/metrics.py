"""The emulated engine's ``/metrics``: vLLM's series with its names, labels, buckets and ``_created`` companions."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    generate_latest,
)

from .engine import Engine, EngineRequest, RequestStep, StepPlan
from .metric_names import (
    COUNTERS,
    COUNTERS_SINCE_0_29,
    HISTOGRAMS,
    HTTP_DURATION_BUCKETS,
    HTTP_DURATION_HIGH_RESOLUTION_BUCKETS,
    SPECULATION_COUNTERS,
    length_buckets,
)

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
LABELS = ("model_name", "engine")


class EngineMetrics:
    """All series of one engine, in a registry of their own."""

    def __init__(self, engine: Engine, *, model: str, detailed_sources: bool) -> None:
        """detailed_sources: export what vLLM 0.29 and later have in addition."""
        self._engine = engine
        self._labels = (model, "0")
        self._registry = CollectorRegistry()
        self._detailed_sources = detailed_sources
        self._exported: dict[tuple[str, str], float] = {}
        self._add_process_series()
        self._add_counters()
        self._add_gauges()
        self._add_histograms()
        self._add_http_series()

    def _add_process_series(self) -> None:
        GCCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        started = Gauge("process_start_time_seconds", "Start time of the process.", registry=self._registry)
        started.set(time.time())

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = LABELS) -> Counter:
        return Counter(f"vllm:{name}", documentation, labels, registry=self._registry)

    def _add_counters(self) -> None:
        k = self._engine.scenario.num_speculative_tokens
        families = {**(SPECULATION_COUNTERS if k else {}), **COUNTERS}
        if self._detailed_sources:
            families |= COUNTERS_SINCE_0_29
        self._counters: dict[tuple[str, str], Counter] = {}
        for name, (documentation, label, values) in families.items():
            if name == "spec_decode_num_accepted_tokens_per_pos":
                values = tuple(map(str, range(k)))
            family = self._counter(name, documentation, (*LABELS, label) if label else LABELS)
            for value in values or ("",):
                self._counters[name, value] = family.labels(*self._labels, *((value,) if label else ()))
        if self._detailed_sources:
            rejections = self._counter(
                "admission_rejections",
                "Number of admission attempts rejected by a queue limit, by reason.",
                ("model_name", "reason"),
            )
            for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
                rejections.labels(self._labels[0], reason)

    def _add_gauges(self) -> None:
        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"vllm:{name}", documentation, (*LABELS, *labels), registry=self._registry)

        self._running = gauge("num_requests_running", "Number of requests in model execution batches.").labels(
            *self._labels
        )
        self._waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.").labels(
            *self._labels
        )
        by_reason = gauge("num_requests_waiting_by_reason", "Number of waiting requests by reason.", "reason")
        self._waiting_for_capacity = by_reason.labels(*self._labels, "capacity")
        by_reason.labels(*self._labels, "deferred")
        self._sleep_state = gauge("engine_sleep_state", "Engine sleep state; awake = 0: sleeping.", "sleep_state")
        self._kv_usage = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.").labels(
            *self._labels
        )
        scenario = self._engine.scenario
        info = {
            "block_size": scenario.block_size,
            "cache_dtype": "auto",
            "enable_prefix_caching": scenario.prefix_caching,
            "engine": "0",
            "gpu_memory_utilization": 0.92,
            "kv_cache_size_tokens": scenario.num_gpu_blocks * scenario.block_size,
            "num_gpu_blocks": scenario.num_gpu_blocks,
        }
        config = Gauge(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", tuple(info), registry=self._registry
        )
        config.labels(*map(str, info.values())).set(1)

    def _add_histograms(self) -> None:
        lengths = length_buckets(self._engine.scenario.max_model_len)
        self._histograms: dict[str, Histogram] = {}
        for name, (documentation, buckets) in HISTOGRAMS.items():
            if name == "request_num_preemptions" and not self._detailed_sources:
                continue
            family = Histogram(
                f"vllm:{name}", documentation, LABELS, buckets=buckets or lengths, registry=self._registry
            )
            self._histograms[name] = family.labels(*self._labels)

    def _add_http_series(self) -> None:
        self._http_requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("method", "status", "handler"),
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler.",
            ("handler", "method"),
            buckets=HTTP_DURATION_BUCKETS,
            registry=self._registry,
        )
        self._http_seconds_finer = Histogram(
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels.",
            buckets=HTTP_DURATION_HIGH_RESOLUTION_BUCKETS,
            registry=self._registry,
        )

    def observe_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one HTTP request that ended."""
        self._http_requests.labels(method, f"{status // 100}xx", handler).inc()
        self._http_seconds.labels(handler, method).observe(seconds)
        self._http_seconds_finer.observe(seconds)

    def observe_step(self, plan: StepPlan, steps: Sequence[RequestStep]) -> None:
        """Count one engine step that produced something."""
        if not steps:
            return
        tokens = sum(len(step.tokens) for step in steps)
        read = sum(len(request.prompt) - request.cached_tokens for request in plan.prefills)
        self._histograms["iteration_tokens_total"].observe(tokens + read)
        for step in steps:
            name = "time_to_first_token_seconds" if step.first else "inter_token_latency_seconds"
            self._histograms[name].observe(step.seconds)

    def observe_finished(self, request: EngineRequest, now: float) -> None:
        """Count one request that came to its end; one that was dropped is not counted, as in vLLM."""
        self._counters["request_success", str(request.finish_reason)].inc()
        queued, scheduled = request.queued_at, request.scheduled_at or now
        first, last = request.first_token_at or now, request.last_token_at or now
        generated = len(request.tokens)
        values: dict[str, float] = {
            "e2e_request_latency_seconds": now - queued,
            "request_queue_time_seconds": scheduled - queued,
            "request_inference_time_seconds": last - scheduled,
            "request_prefill_time_seconds": first - scheduled,
            "request_decode_time_seconds": last - first,
            "request_time_per_output_token_seconds": (last - first) / (generated - 1) if generated > 1 else 0.0,
            "request_prompt_tokens": len(request.prompt),
            "request_generation_tokens": generated,
            "request_params_max_tokens": request.max_tokens,
            "request_prefill_kv_computed_tokens": len(request.prompt) - request.cached_tokens,
        }
        if self._detailed_sources:
            values["request_num_preemptions"] = 0
        if request.n is not None:
            values |= {"request_params_n": request.n, "request_max_num_generation_tokens": generated}
        for name, value in values.items():
            self._histograms[name].observe(value)

    def render(self, sleep_level: int | None) -> bytes:
        """The exposition as it is now."""
        self._export_counts()
        self._running.set(len(self._engine.running))
        self._waiting.set(len(self._engine.waiting))
        self._waiting_for_capacity.set(len(self._engine.waiting))
        self._kv_usage.set(self._engine.kv_cache_usage)
        for state, level in (("awake", None), ("weights_offloaded", 1), ("discard_all", 2)):
            self._sleep_state.labels(*self._labels, state).set(float(sleep_level == level))
        return generate_latest(self._registry)

    def _export_counts(self) -> None:
        """Bring the counters up to date: once a scrape, which costs less than at each step."""
        counts = self._engine.counts
        now: dict[tuple[str, str], float] = {
            ("prompt_tokens", ""): counts.prompt_tokens,
            ("prompt_tokens_by_source", "local_compute"): counts.prompt_tokens - counts.cached_tokens,
            ("prompt_tokens_by_source", "local_cache_hit"): counts.cached_tokens,
            ("prompt_tokens_cached", ""): counts.cached_tokens,
            ("prefix_cache_queries", ""): counts.queried_tokens,
            ("prefix_cache_hits", ""): counts.cached_tokens,
            ("generation_tokens", ""): counts.generated_tokens,
            ("prompt_tokens_cached_by_source", "device"): counts.cached_tokens,
            ("spec_decode_num_drafts", ""): counts.drafts,
            ("spec_decode_num_draft_tokens", ""): counts.draft_tokens,
            ("spec_decode_num_accepted_tokens", ""): counts.accepted_tokens,
        }
        for position, accepted in enumerate(counts.accepted_per_position):
            now["spec_decode_num_accepted_tokens_per_pos", str(position)] = accepted
        for key, value in now.items():
            if key in self._counters:
                self._counters[key].inc(value - self._exported.get(key, 0.0))
                self._exported[key] = value
