"""When each request of a replay is due: pure planning, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from replay.recorded import Exchange

Schedule = Literal["open", "closed", "dependent"]


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """When one request goes out."""

    index: int
    due: float | None = None
    """Seconds after the replay's first request; None: as soon as there is room (closed), or after another one."""
    after: int | None = None
    """Index of the request whose end it waits for."""
    think_seconds: float = 0.0
    """Pause before this request: after that end, or, in the closed schedule, after its client's last answer."""


def plan(
    exchanges: Sequence[Exchange],
    schedule: Schedule,
    *,
    time_scale: float,
    predecessors: Sequence[int | None] = (),
    pauses: bool = False,
) -> list[Send]:
    """The sends of a replay, in the order of arrival.

    open: at the recorded times. closed: one after the other, the caller bounds how many run; with ``pauses`` each
    after the recorded pause. dependent: first turns at the recorded times, later turns after the end of the turn before
    and the recorded pause. Recorded times and pauses are divided by ``time_scale``.
    """
    if not exchanges:
        return []
    first = exchanges[0].request.at
    recorded = client_pauses(exchanges) if pauses else [0.0] * len(exchanges)
    sends = []
    for index, exchange in enumerate(exchanges):
        after = predecessors[index] if schedule == "dependent" else None
        ended = None if after is None else exchanges[after].ended
        if schedule == "closed":
            sends.append(Send(index=index, think_seconds=recorded[index] / time_scale))
        elif after is not None and ended is not None:
            pause = max(0.0, exchange.request.at - ended) / time_scale
            sends.append(Send(index=index, after=after, think_seconds=pause))
        else:
            sends.append(Send(index=index, due=(exchange.request.at - first) / time_scale))
    return sends


def client_pauses(exchanges: Sequence[Exchange]) -> list[float]:
    """Seconds that the client of each request paused before it: since the latest end that had no successor yet.

    As few clients as possible; the first request of each has no pause.
    """
    free: list[float] = []
    pauses = []
    for exchange in exchanges:
        ended = [end for end in free if end <= exchange.request.at]
        pauses.append(exchange.request.at - max(ended) if ended else 0.0)
        if ended:
            free.remove(max(ended))
        free.append(exchange.request.at if exchange.ended is None else exchange.ended)
    return pauses


def remaining(sends: Sequence[Send], done: set[int]) -> list[Send]:
    """The sends that are left when those of ``done`` were answered before; the first of them is due at once."""
    left = [send for send in sends if send.index not in done]
    begin = min((send.due for send in left if send.due is not None), default=0.0)
    return [_restarted(send, begin, done) for send in left]


def _restarted(send: Send, begin: float, done: set[int]) -> Send:
    if send.after in done:
        return Send(index=send.index, due=send.think_seconds)
    return send if send.due is None else msgspec.structs.replace(send, due=send.due - begin)


def recorded_concurrency(exchanges: Sequence[Exchange]) -> int:
    """Most requests that were under way at once, at least 1. One without a recorded end counts at its arrival only."""
    moments = []
    for exchange in exchanges:
        moments.append((exchange.request.at, 1))
        moments.append((exchange.ended if exchange.ended is not None else exchange.request.at, -1))
    most = running = 0
    for _, change in sorted(moments):  # an end sorts before an arrival of the same moment
        running += change
        most = max(most, running)
    return max(1, most)
