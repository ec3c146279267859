"""Chunk logs: streams recorded as times and token counts, one request a line, as in the H200 captures.

A log is JSON lines. The header (``kind: "header"``) has the command that served; a request has ``chunks``, a list of
``[seconds since the request was sent, completion tokens so far]`` per received event, and may have ``counters_delta``,
the change of the engine's counters over the request.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any, TypeGuard

from detector.observation import Ending, Observation, RequestFacts, SpeculationCounts, Step
from detector.tap.dialects import Event, Kind
from detector.tap.engine_figures import count, members
from detector.tap.meter import Meter

_PER_POSITION = "spec_decode_num_accepted_tokens_per_pos_total[{}]"


def observe_chunk_log_request(
    record: dict[str, Any],
    header: dict[str, Any],
    *,
    request_id: str = "",
    backend: str = "",
    started: float | None = None,
) -> tuple[Observation, list[Step]]:
    """The Observation that a proxy would have made of the recorded stream, and its content events.

    ``started`` is the monotonic second at which the request was sent; without it the record's ``unix_time``, the time
    at which the record was written, gives it, or it is 0. Entries that do not raise the token count are not steps:
    the role chunk at the beginning, the usage chunk at the end.

    Raises ValueError, naming the entry, if ``chunks`` is missing or is not what it should be.
    """
    chunks = _chunks(record)
    unix_time = record.get("unix_time")
    sent_unix = float(unix_time) - (chunks[-1][0] if chunks else 0.0) if _is_number(unix_time) else 0.0
    begin = sent_unix if started is None else started
    meter = Meter(
        RequestFacts(route="chat", stream=True, usage_asked=True, token_counts_asked=True),
        request_id=request_id or str(record.get("index", "")),
        backend=backend,
        generation=0,
        started=begin,
        started_unix=sent_unix,
    )
    meter.sent(begin)
    meter.head(begin, 200, "text/event-stream")
    steps: list[Step] = []
    at, tokens_before = begin, 0
    for seconds, tokens in chunks:
        at = max(at, begin + seconds)
        kind: Kind = "content" if tokens > tokens_before else "usage" if tokens_before else "role"
        meter.event(at, Event(kind=kind, completion_tokens=max(tokens, tokens_before)))
        tokens_before = max(tokens, tokens_before)
        steps += meter.drain_steps()
    meter.event(at, Event(kind="done", choices=()))
    counters = members(record.get("counters_delta"))
    alone = counters.get("generation_tokens_total") == tokens_before
    observation = meter.finish(
        at,
        Ending.COMPLETE,
        counters=_speculation(counters) if alone else None,
        num_speculative_tokens=_served_draft_length(header),
        counted_decode_seconds=_number(counters, "request_decode_time_seconds_sum") if alone else None,
    )
    return observation, steps


def _chunks(record: dict[str, Any]) -> list[tuple[float, int]]:
    entries = record.get("chunks")
    if not isinstance(entries, list):
        raise ValueError("chunk log: a request needs a list 'chunks' of [seconds, tokens]")
    chunks = []
    for number, entry in enumerate(entries):
        pair = entry if isinstance(entry, list) and len(entry) == 2 else [None, None]
        seconds, tokens = pair[0], count(pair[1])
        if not _is_number(seconds) or tokens is None:
            raise ValueError(f"chunk log: chunks[{number}] is {entry!r}, not [seconds, tokens]")
        chunks.append((float(seconds), tokens))
    return chunks


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(changes: dict[str, Any], name: str) -> float | None:
    value = changes.get(name)
    return value if _is_number(value) else None


def _speculation(changes: dict[str, Any]) -> SpeculationCounts | None:
    """The counters' account of the request."""
    drafts = _number(changes, "spec_decode_num_drafts_total")
    accepted = _number(changes, "spec_decode_num_accepted_tokens_total")
    drafted = _number(changes, "spec_decode_num_draft_tokens_total")
    if drafts is None or accepted is None:
        return None
    per_position: list[int] = []
    while (accepted_here := _number(changes, _PER_POSITION.format(len(per_position)))) is not None:
        per_position.append(int(accepted_here))
    return SpeculationCounts(
        verify_steps=int(drafts),
        accepted_tokens=int(accepted),
        drafted_tokens=None if drafted is None else int(drafted),
        num_speculative_tokens=len(per_position) or None,
        accepted_per_position=tuple(per_position) or None,
    )


def speculative_config(header: dict[str, Any]) -> dict[str, Any]:
    """The speculative config in the command that served; empty where there is none, or none that can be read."""
    command = header.get("served_with")
    if not isinstance(command, list):
        return {}
    words = [word for argument in command for word in str(argument).split("=", 1)]
    for name, value in pairwise(words):
        if name in ("--speculative-config", "-sc"):
            try:
                return members(json.loads(value))
            except (ValueError, RecursionError):
                return {}
    return {}


def _served_draft_length(header: dict[str, Any]) -> int | None:
    """K in the command that served; 0 where it has no speculative config, None where there is no command."""
    command = header.get("served_with")
    if not isinstance(command, list):
        return None
    if not any(str(argument).split("=", 1)[0] in ("--speculative-config", "-sc") for argument in command):
        return 0
    return count(speculative_config(header).get("num_speculative_tokens"))
