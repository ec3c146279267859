"""How far a replay is, on standard error: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
from typing import TextIO

from replay.tally import Tally, percentile

TERMINAL_SECONDS = 0.25
PLAIN_SECONDS = 10.0
_CLEAR_LINE = "\r\x1b[K"


def line(tally: Tally) -> str:
    """The state of a run in one line."""
    parts = [f"replay: {tally.answered}/{tally.total} answered", f"{tally.sent} sent"]
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.tokens_per_second is not None:
        parts.append(f"{tally.tokens_per_second:.1f} tok/s")
    late = percentile(tally.lateness_seconds, 0.99)
    if late is not None:
        parts.append(f"late p99 {late * 1000:.1f} ms")
    return ", ".join(parts)


async def report(tally: Tally, out: TextIO) -> None:
    """Write progress until cancelled."""
    terminal = out.isatty()
    try:
        while True:
            await asyncio.sleep(TERMINAL_SECONDS if terminal else PLAIN_SECONDS)
            out.write(f"{_CLEAR_LINE}{line(tally)}" if terminal else f"{line(tally)}\n")
            out.flush()
    finally:
        if terminal:
            out.write(_CLEAR_LINE)
            out.flush()
