"""Results of ``vllm bench serve --save-result --save-detailed``: lengths, first tokens and the gaps between events."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

from detector.observation import Ending, Observation, Route, Step
from replay.formats.base import Carries, Format, FormatError, count, json_document, number
from replay.formats.events import most_in_flight, observe
from replay.recorded import Recorded, exchange_of

_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")


def _recognise(_path: Path, head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and b'"request_throughput"' in head and b'"endpoint_type"' in head


def _read(path: Path) -> Recorded:
    result = json_document(path)
    lists = {name: result.get(name) for name in _LISTS}
    missing = [name for name, values in lists.items() if not isinstance(values, list)]
    if missing:
        raise FormatError(f"{path}: has no {', '.join(missing)}: run vllm bench serve with --save-detailed")
    rows = list(zip(*(lists[name] or [] for name in _LISTS), strict=False))
    errors = result.get("errors")
    spans = [(row[4], row[4] + _duration(row)) for row in rows if number(row[4]) is not None]
    if len(spans) != len(rows):
        raise FormatError(f"{path}: start_times holds something that is no time")
    loads = most_in_flight(spans)
    exchanges = []
    for index, row in enumerate(rows):
        error = errors[index] if isinstance(errors, list) and index < len(errors) else ""
        observation, steps = _observe(result, row, index, loads[index], failed=bool(error))
        exchanges.append(exchange_of(observation, index, steps))
    exchanges.sort(key=lambda one: one.request.at)
    return Recorded(exchanges=exchanges, notes=("times are seconds on the benchmark's own clock",))


def _observe(
    result: dict[str, Any], row: tuple[Any, ...], index: int, load: int, *, failed: bool
) -> tuple[Observation, list[Step]]:
    prompt_tokens, completion_tokens, ttft, gaps, started = row
    times = list(accumulate(gaps, initial=ttft)) if ttft else []
    route: Route = "chat" if "chat" in str(result.get("endpoint_type")) else "completions"
    if route == "chat" and len(times) > 1:
        del times[0]  # the benchmark counts the first event of a chat, which has a role and no token
    steps = [Step(started + at, None) for at in times]
    model = result.get("model_id")
    observation = observe(
        request_id=str(index),
        backend="vllm-bench",
        route=route,
        model=model if isinstance(model, str) else None,
        started=started,
        ended=started + _duration(row),
        steps=steps,
        prompt_tokens=count(prompt_tokens),
        completion_tokens=count(completion_tokens),
        ending=Ending.UPSTREAM_CLOSED if failed else Ending.COMPLETE,
        in_flight=load,
    )
    return observation, steps


def _duration(row: tuple[Any, ...]) -> float:
    return float((row[2] or 0.0) + sum(row[3] or ()))


FORMAT = Format(
    name="vllm-bench",
    description="vllm bench serve --save-result --save-detailed",
    carries=Carries(arrival=True, lengths=True, rates=True, events=True, acceptance=True),
    recognise=_recognise,
    read=_read,
)
