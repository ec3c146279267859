"""guidellm's JSON report (0.8): requests with their bodies, first and last token, and vLLM's counts where it sent them.

It keeps how many events an answer had, not when each came.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from detector.observation import Ending, Step
from replay.formats.base import Carries, Format, FormatError, count, json_document, number
from replay.formats.events import most_in_flight, observe
from replay.recorded import Exchange, Recorded, exchange_of

_ENDINGS = {"successful": Ending.COMPLETE, "incomplete": Ending.CLIENT_GONE, "errored": Ending.UPSTREAM_CLOSED}


def _recognise(_path: Path, head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and b"guidellm" in head[:4096]


def _read(path: Path) -> Recorded:
    benchmarks = json_document(path).get("benchmarks")
    if not isinstance(benchmarks, list) or not benchmarks:
        raise FormatError(f"{path}: has no benchmarks: not a whole report of guidellm")
    timed = [(ending, request, *_times(request)) for ending, request in _requests(benchmarks)]
    whole = [one for one in timed if one[2] is not None and one[3] is not None]
    loads = most_in_flight([(start or 0.0, end or 0.0) for _, _, start, end in whole])
    exchanges = [
        _exchange(request, ending, index, start or 0.0, end or 0.0, loads[index])
        for index, (ending, request, start, end) in enumerate(whole)
    ]
    notes = (
        [f"{path}: {len(timed) - len(whole)} requests without times are left out"] if len(timed) > len(whole) else []
    )
    if len(benchmarks) > 1:
        notes.append(f"{path}: holds {len(benchmarks)} benchmarks, which are read as one series")
    return Recorded(exchanges=sorted(exchanges, key=lambda one: one.request.at), notes=tuple(notes))


def _requests(benchmarks: list[Any]) -> Iterator[tuple[Ending, dict[str, Any]]]:
    for benchmark in benchmarks:
        requests = benchmark.get("requests") if isinstance(benchmark, dict) else None
        for name, ending in _ENDINGS.items():
            for request in (requests or {}).get(name) or ():
                yield ending, request


def _times(request: dict[str, Any]) -> tuple[float | None, float | None]:
    timings = _timings(request)
    return number(timings.get("request_start")), number(timings.get("request_end"))


def _timings(request: dict[str, Any]) -> dict[str, Any]:
    info = request.get("info")
    timings = info.get("timings") if isinstance(info, dict) else None
    return timings if isinstance(timings, dict) else {}


def _exchange(
    request: dict[str, Any], ending: Ending, seq: int, started: float, ended: float, in_flight: int
) -> Exchange:
    body = _body(request.get("request_args"))
    model = None if body is None else body.get("model")
    metrics = request.get("response_metrics")
    observation = observe(
        request_id=str(request.get("request_id", seq)),
        backend="guidellm",
        route="completions" if body is not None and "prompt" in body else "chat",
        model=model if isinstance(model, str) else None,
        started=started,
        ended=ended,
        steps=_steps(_timings(request)),
        prompt_tokens=_usage(request, "input_metrics", "text_tokens"),
        completion_tokens=_usage(request, "output_metrics", "text_tokens"),
        cached_tokens=_usage(request, "input_metrics", "cached_tokens"),
        ending=ending,
        metrics=metrics if isinstance(metrics, dict) else None,
        in_flight=in_flight,
    )
    return exchange_of(observation, seq, body=None if body is None else msgspec.json.encode(body).decode())


def _steps(timings: dict[str, Any]) -> list[Step]:
    """As many events as were counted, evenly between first and last: their rate is known, their times are not."""
    first, last = number(timings.get("first_token_iteration")), number(timings.get("last_token_iteration"))
    events = count(timings.get("token_iterations")) or 0
    if first is None or last is None or events < 2:
        return [] if first is None else [Step(first, None)]
    return [Step(first + (last - first) * event / (events - 1), None) for event in range(events)]


def _body(arguments: object) -> dict[str, Any] | None:
    """The request's body out of the arguments of guidellm's backend, which are JSON text."""
    if not isinstance(arguments, str):
        return None
    try:
        found = msgspec.json.decode(arguments, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
    body = found.get("body", found)
    return body if isinstance(body, dict) and ("messages" in body or "prompt" in body) else None


def _usage(request: dict[str, Any], part: str, name: str) -> int | None:
    values = request.get(part)
    return count(values.get(name)) if isinstance(values, dict) else None


FORMAT = Format(
    name="guidellm",
    description="guidellm JSON report",
    carries=Carries(text=True, arrival=True, lengths=True, rates=True, acceptance=True),
    recognise=_recognise,
    read=_read,
)
