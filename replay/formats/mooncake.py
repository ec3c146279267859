"""Traces in Mooncake's shape with whole payloads, as aiperf replays them (``mooncake_trace``, aiperf 0.13).

Each line has the request's body, sent as it is, when it is due in milliseconds, the conversation it belongs to and the
length of its answer. Later turns of a conversation have a delay after the turn before in place of a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replay.conversations import predecessors, prompts_of
from replay.formats.base import Carries, Format, bodies, line
from replay.recorded import Exchange, Recorded


def _write(recorded: Recorded) -> Iterator[bytes]:
    found = bodies(recorded, "mooncake")
    exchanges = [exchange for exchange, _ in found]
    turns = predecessors(exchanges, prompts_of(exchanges))
    conversations: list[int] = []
    for index, before in enumerate(turns):
        conversations.append(index if before is None else conversations[before])
    for index, (exchange, body) in enumerate(found):
        before = turns[index]
        whole: dict[str, Any] = {"session_id": f"c{conversations[index]}", "payload": body}
        whole |= _due(exchanges, index, before)
        if exchange.completion_tokens is not None:
            whole["output_length"] = exchange.completion_tokens
        yield line(whole)


def _due(exchanges: list[Exchange], index: int, before: int | None) -> dict[str, float]:
    at = exchanges[index].request.at
    ended = None if before is None else exchanges[before].ended
    if ended is not None:
        return {"delay": round(max(0.0, at - ended) * 1000, 3)}
    return {"timestamp": round((at - exchanges[0].request.at) * 1000, 3)}


FORMAT = Format(
    name="mooncake",
    description="Mooncake trace with payloads, for aiperf --custom-dataset-type mooncake_trace",
    carries=Carries(text=True, arrival=True, lengths=True),
    write=_write,
)
