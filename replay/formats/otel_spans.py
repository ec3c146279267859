"""OpenTelemetry GenAI spans as plain objects, one a line, as published traces have them: guidellm (0.8) replays these.

The same spans as in ``otlp``, with attributes as a JSON object and times in ISO 8601.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from replay.formats.base import Carries, Format, line
from replay.formats.otlp import ERROR, spans
from replay.recorded import Recorded


def _write(recorded: Recorded) -> Iterator[bytes]:
    for span in spans(recorded, "otel-spans"):
        plain: dict[str, Any] = {
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "name": span.name,
            "start_time": _iso(span.started_unix),
            "end_time": _iso(span.ended_unix),
            "attributes": span.attributes,
        }
        if span.error is not None:
            plain["status"] = {"code": ERROR, "message": span.error}
        yield line(plain)


def _iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds")


FORMAT = Format(
    name="otel-spans",
    description="OpenTelemetry GenAI spans, plain JSON lines, for guidellm --data kind=otel",
    carries=Carries(text=True, arrival=True, lengths=True, rates=True, acceptance=True),
    write=_write,
)
