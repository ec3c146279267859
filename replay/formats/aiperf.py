"""aiperf's raw export (``--export-level raw``, ``profile_export_raw.jsonl``): every request, every event of its answer.

The events go through the meter that measures live traffic, so that an answer means here what it means there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from detector.observation import Ending
from detector.tap.meter import Meter
from detector.tap.request import read_request
from replay.formats.base import Carries, Format, FormatError, count, first_object, json_lines
from replay.recorded import Exchange, Recorded, exchange_of
from replay.session.schema import Prompt

NS = 1e-9
BACKEND = "aiperf"


def _recognise(_path: Path, head: bytes) -> bool:
    # A line with a whole answer may be longer than what is looked at.
    start = head[:4096]
    return {"metadata", "responses"} <= first_object(head).keys() or (
        start.startswith(b'{"metadata"') and b'"request_start_ns"' in start and b'"start_perf_ns"' in head
    )


def _read(path: Path) -> Recorded:
    exchanges: list[Exchange] = []
    warm_ups = 0
    for number, entry in json_lines(path):
        metadata, responses = entry.get("metadata"), entry.get("responses")
        if not isinstance(metadata, dict) or not isinstance(responses, list):
            raise FormatError(f"{path}: line {number}: has no metadata and responses of aiperf: remove the line")
        if metadata.get("benchmark_phase") == "warmup":
            warm_ups += 1
            continue
        try:
            exchanges.append(_exchange(entry, metadata, responses, len(exchanges)))
        except (TypeError, ValueError, KeyError) as error:
            raise FormatError(f"{path}: line {number}: {error!r}: correct or remove the line") from error
    notes = (f"{path}: {warm_ups} warm-up requests are left out",) if warm_ups else ()
    return Recorded(exchanges=sorted(exchanges, key=lambda one: one.request.at), notes=notes)


def _exchange(entry: dict[str, Any], metadata: dict[str, Any], responses: list[Any], seq: int) -> Exchange:
    body = entry.get("payload")
    text = msgspec.json.encode(body if isinstance(body, dict) else {})
    path = "/v1/completions" if isinstance(body, dict) and "prompt" in body else "/v1/chat/completions"
    unix, perf = int(metadata["request_start_ns"]) * NS, int(entry["start_perf_ns"])
    request_id = str(metadata.get("x_request_id") or seq)
    meter = Meter(
        read_request(path, text),
        request_id=request_id,
        backend=BACKEND,
        generation=0,
        started=unix,
        started_unix=unix,
    )
    streamed = any(isinstance(one, dict) and "packets" in one for one in responses)
    status = count(entry.get("status"))
    meter.head(unix, 200 if status is None else status, "text/event-stream" if streamed else "application/json")
    steps, size = [], 0
    for one in responses:
        payload = _payload(one)
        size += len(payload)
        meter.feed(unix + (int(one["perf_ns"]) - perf) * NS, payload)
        steps += meter.drain_steps()
    ended = int(metadata["request_end_ns"]) * NS if "request_end_ns" in metadata else unix
    meter.end()
    steps += meter.drain_steps()
    observation = meter.finish(ended, _ending(entry, metadata))
    made = exchange_of(observation, seq, steps, text.decode() if isinstance(body, dict) else None)
    request = msgspec.structs.replace(made.request, path=path, prompt=made.request.prompt or Prompt())
    response = made.response
    assert response is not None
    return Exchange(request=request, response=msgspec.structs.replace(response, response_bytes=size))


def _payload(response: dict[str, Any]) -> bytes:
    """The bytes of one message as they came: an event's fields, or a whole body."""
    if "packets" in response:
        fields = [f"{packet['name']}: {packet.get('value') or ''}\n" for packet in response["packets"]]
        return ("".join(fields) + "\n").encode()
    return str(response.get("text", "")).encode()


def _ending(entry: dict[str, Any], metadata: dict[str, Any]) -> Ending:
    if metadata.get("was_cancelled"):
        return Ending.CLIENT_GONE
    return Ending.COMPLETE if entry.get("error") is None else Ending.UPSTREAM_CLOSED


FORMAT = Format(
    name="aiperf",
    description="aiperf raw export, profile_export_raw.jsonl",
    carries=Carries(text=True, arrival=True, lengths=True, rates=True, events=True, acceptance=True),
    recognise=_recognise,
    read=_read,
)
