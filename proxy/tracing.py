"""Spans of measured answers for OpenTelemetry, by the semantic conventions for generative AI. Off by default.

A span is made of the Observation when the answer is over, by control, so a request waits for nothing. The SDK's thread
sends spans in batches; when too many wait, new ones are dropped and counted. The client's ``traceparent`` goes to the
engine as it is (everything does) and is the parent of our span.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from detector.observation import Observation
from proxy.config_base import ConfigError
from proxy.version import VERSION
from replay import genai

if TYPE_CHECKING:
    from proxy import config
    from proxy.control import Watched
    from proxy.messages import Request

MAX_BATCH: Final = 128
"""Spans in one delivery: encoding more at once would hold the interpreter for longer than an event may wait."""

log = logging.getLogger("specbreaker.tracing")


class TraceContext(msgspec.Struct, frozen=True):
    """What a client said of the trace that its request belongs to (W3C Trace Context)."""

    traceparent: str
    tracestate: str = ""


def trace_context(request: Request) -> TraceContext | None:
    """The trace of a request; None without exactly one ``traceparent``, as the recommendation has it."""
    parents = [value for lower, _, value in request.fields if lower == b"traceparent"]
    if len(parents) != 1:
        return None
    states = [value for lower, _, value in request.fields if lower == b"tracestate"]
    return TraceContext(parents[0].decode("latin-1"), b",".join(states).decode("latin-1"))


class Tracing:
    """Makes spans and has them sent, or does nothing."""

    def __init__(self, settings: config.Tracing) -> None:
        """Raises ConfigError where spans are asked for and the extra is not installed."""
        self.on = settings.endpoint is not None
        self.refused = 0
        """Spans that were not made, because too many waited."""
        self._made = 0
        self._delivery: _Delivery | None = None
        self._limit = settings.max_queued_spans
        self._sdk: _Sdk | None = None
        if settings.endpoint is not None:
            self._delivery = _Delivery(settings.endpoint)
            self._sdk = _Sdk(settings, self._delivery)

    @property
    def sent(self) -> int:
        """Spans that the collector took."""
        return 0 if self._delivery is None else self._delivery.sent

    @property
    def dropped(self) -> int:
        """Spans that it did not get: too many waited, or it could not be reached."""
        return self.refused + (0 if self._delivery is None else self._delivery.failed)

    def span(self, observation: Observation, trace: TraceContext | None, watched: Watched) -> None:
        """Make the span of one answer. A fault in it is counted as a dropped span and logged once."""
        if self._sdk is None or self._delivery is None:
            return
        if self._made - self._delivery.handled >= self._limit:
            self.refused += 1
            return
        try:
            self._made += self._sdk.span(observation, trace, attributes(observation, watched))
        except Exception as error:  # noqa: BLE001 - tracing must not disturb the detector
            self.refused += 1
            self._delivery.trouble(f"a span could not be made: {error!r}")

    async def close(self) -> None:
        """Send what waits, for about as long as one delivery may take."""
        if self._sdk is not None:
            await asyncio.to_thread(self._sdk.close)


def attributes(observation: Observation, watched: Watched) -> dict[str, Any]:
    """All attributes of a span that are known."""
    facts, backend, status = observation.facts, watched.backend, observation.status
    source = observation.acceptance_source
    found = {
        "gen_ai.operation.name": genai.operation_of(observation),
        "gen_ai.provider.name": "openai",  # whose interface it is; the engine behind it may be any
        "gen_ai.request.model": facts.model,
        "gen_ai.request.max_tokens": facts.max_tokens,
        "gen_ai.request.stream": facts.stream,
        "gen_ai.request.choice.count": facts.n if facts.n != 1 else None,
        "server.address": backend.host,
        "server.port": backend.port,
        "http.response.status_code": status,
        **genai.response_attributes(observation),
        **genai.speculation_attributes(observation),
        "specbreaker.backend": observation.backend,
        "specbreaker.phase": watched.watch.verdict.phase.value,
        "specbreaker.ending": observation.ending.value,
        "specbreaker.acceptance_source": None if source is None else source.value,
        "specbreaker.request_id": observation.request_id,
    }
    if status is not None and status >= 400:
        found["error.type"] = found["error.type"] or str(status)
    return {name: value for name, value in found.items() if value is not None}


class _Delivery:
    """What becomes of spans: the SDK calls it in a thread of its own, the proxy reads its counts."""

    def __init__(self, endpoint: str) -> None:
        self.sent = 0
        self.failed = 0
        self.exporter: Any = None
        self.until = math.inf
        """Monotonic seconds after which nothing more is sent: the proxy ends."""
        self._endpoint = endpoint
        self._told = False

    @property
    def handled(self) -> int:
        """Spans that wait no longer."""
        return self.sent + self.failed

    def export(self, spans: Sequence[Any]) -> Any:
        """Send a batch; raises nothing."""
        if time.monotonic() > self.until:
            self.failed += len(spans)
            return None
        try:
            result = self.exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - the SDK would log each with its traceback
            self.failed += len(spans)
            self.trouble(f"{self._endpoint}: {error!r}")
            return None
        if result.name == "SUCCESS":
            self.sent += len(spans)
        else:
            self.failed += len(spans)
            self.trouble(f"{self._endpoint}: spans were not taken")
        return result

    def shutdown(self) -> None:
        """End the exporter."""
        self.exporter.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits here."""
        del timeout_millis
        return True

    def trouble(self, text: str) -> None:
        """Say it once; the counter tells the rest."""
        if not self._told:
            self._told = True
            log.warning("tracing: %s (said once; specbreaker_spans_dropped_total counts)", text)


class _Sdk:
    """The OpenTelemetry SDK, imported only where it is used."""

    def __init__(self, settings: config.Tracing, delivery: _Delivery) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"tracing.endpoint: needs the extra opentelemetry: pip install 'specbreaker[opentelemetry]' ({error})"
            ) from None
        # Failures are counted and said once by _Delivery; the SDK would log every one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._client, self._error = SpanKind.CLIENT, StatusCode.ERROR
        self._propagator = TraceContextTextMapPropagator()
        self._delivery, self._timeout_seconds = delivery, settings.timeout_seconds
        delivery.exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=settings.timeout_seconds)
        exporter: Any = delivery
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=settings.max_queued_spans,
            schedule_delay_millis=settings.export_seconds * 1000,
            max_export_batch_size=min(MAX_BATCH, settings.max_queued_spans),
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_share)),
            resource=Resource.create({"service.name": settings.service_name, "service.version": VERSION}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("specbreaker", VERSION)

    def span(self, observation: Observation, trace: TraceContext | None, values: dict[str, Any]) -> bool:
        """Make and end a span; False where it is not sampled."""
        carrier = {} if trace is None else {"traceparent": trace.traceparent, "tracestate": trace.tracestate}
        begun = observation.started_unix
        span = self._tracer.start_span(
            genai.span_name(observation),
            context=self._propagator.extract(carrier),
            kind=self._client,
            attributes=values,
            start_time=round(begun * 1e9),
        )
        recorded = bool(span.is_recording())
        if "error.type" in values:
            span.set_status(self._error, str(values["error.type"]))
        span.end(end_time=round((begun + observation.ended - observation.started) * 1e9))
        return recorded

    def close(self) -> None:
        """Send what waits; blocks until then, or until no more deliveries may begin and the last one is over."""
        self._delivery.until = time.monotonic() + self._timeout_seconds
        self._provider.shutdown()
