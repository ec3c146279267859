"""Server-sent events: from the payload bytes of a response to the data of each event.

Framing follows the WHATWG HTML standard, section "Parsing an event stream": lines end in LF, CRLF or CR, a blank line
ends an event, ``data`` lines of one event are joined with LF, comments and every other field are skipped. Event names
are parsed over but not returned: each dialect that uses them repeats the name in the ``type`` of its JSON.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT_BYTES: Final = 1 << 20
"""Default bound on one event, the blank line at its end not included. A longer one is counted, not read."""

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
"""Two line ends in a row. Atomic, so that one CRLF is never taken for two line ends."""

OVERLAP_BYTES: Final = 3
"""How many bytes before a cut may belong to an EVENT_END that the cut divides."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


def event_data(block: bytes) -> bytes | None:
    """The data of one event, given its lines with or without the blank line at their end; None where it has no data."""
    text = block.rstrip(b"\r\n")
    if text.startswith(b"data: ") and b"\n" not in text and b"\r" not in text:
        return text[6:]
    lines = []
    for line in _LINE_END.split(block):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None


class EventFramer:
    """Cuts a stream of payload bytes (transfer coding removed) into the data of its events, however the bytes were cut.

    Memory is bounded by ``max_event_bytes``. ``oversized_events`` counts the events that were longer and left out.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.oversized_events = 0
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()
        self._started = False
        """False until it is known whether the stream begins with a byte order mark."""
        self._skipping = False
        """True inside an event that has outgrown the bound."""

    @property
    def idle(self) -> bool:
        """Between two events: the next byte begins one."""
        return self._started and not self._pending

    def feed(self, payload: bytes) -> list[bytes]:
        """The data of each event that ``payload`` completes, in order."""
        if self._started and not self._pending and payload.endswith(b"\n\n") and b"\r" not in payload:
            length = len(payload) - 2
            if payload.find(b"\n") == length <= self._max_event_bytes and payload.startswith(b"data: "):
                return [payload[6:-2]]
            return self._whole(payload)
        scan_from = max(0, len(self._pending) - OVERLAP_BYTES)
        self._pending += payload
        if not self._started and not self._start():
            return []
        return self._cut(scan_from)

    def end(self) -> list[bytes]:
        """The data of an event that the end of the stream left without its blank line, if there is one."""
        block, self._pending = bytes(self._pending), bytearray()
        if self._skipping:
            self.oversized_events += 1
            self._skipping = False
            return []
        data = event_data(block)
        return [] if data is None else [data]

    def _whole(self, payload: bytes) -> list[bytes]:
        """Fast path: nothing pending, and the payload ends where an event ends."""
        events = []
        for block in payload.split(b"\n\n"):
            block = block.lstrip(b"\n")
            if len(block) > self._max_event_bytes:
                self.oversized_events += 1
            elif block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])
            elif (data := event_data(block)) is not None:
                events.append(data)
        return events

    def _start(self) -> bool:
        """Drop a byte order mark; False while there is too little to tell."""
        if self._pending.startswith(BYTE_ORDER_MARK):
            del self._pending[: len(BYTE_ORDER_MARK)]
        elif BYTE_ORDER_MARK.startswith(self._pending):
            return False
        self._started = True
        return True

    def _cut(self, scan_from: int) -> list[bytes]:
        pending, events, begin = self._pending, [], 0
        while True:
            if not self._skipping:
                while begin < len(pending) and pending[begin] in b"\r\n":
                    begin += 1
            found = EVENT_END.search(pending, max(begin, scan_from))
            if found is None:
                break
            if self._skipping or found.start() - begin > self._max_event_bytes:
                self.oversized_events += 1
                self._skipping = False
            elif (data := event_data(bytes(pending[begin : found.start()]))) is not None:
                events.append(data)
            begin = scan_from = found.end()
        del pending[:begin]
        if self._skipping or len(pending) >= self._max_event_bytes + OVERLAP_BYTES:
            self._skipping = True
            del pending[:-OVERLAP_BYTES]
        return events
