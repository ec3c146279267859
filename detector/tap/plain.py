"""Text events that differ from one already read in nothing but their text, seen without reading them again.

Nearly every event of a stream repeats the one before: the same id, model and members around another piece of text. Once
one was read, the bytes before and after its text tell the next ones at a tenth of the cost of parsing JSON.
"""

from __future__ import annotations

import re
from typing import Final

from detector.tap.dialects import PARSED_TEXT, TEXT, Event, read_event

MAX_PLAIN_EVENT_BYTES: Final = 1 << 14
"""A longer event is read."""
MAX_ATTEMPTS: Final = 8
"""Shapes learned in a row without one event of that shape following; then this stream is read event by event."""

_PREFIX: Final = b"data: "
_TEXT_MEMBER: Final = re.compile(rb'"(?:content|reasoning|reasoning_content|text)"\s*:\s*"(?=[^"])')
_STRING: Final = re.compile(rb'(?:[ !#-\[\]-~]|\\["\\/bfnrt])+')
"""What a JSON string may hold without a closer look: ASCII, and escapes of one character."""


class PlainEvents:
    """The shape of the last text event of one stream."""

    __slots__ = ("_attempts", "_begin", "_end", "event")

    def __init__(self) -> None:
        self._begin = self._end = b""
        self._attempts = 0
        self.event: Event = TEXT
        """What an event of this shape says: a text without counts."""

    def matches(self, payload: bytes) -> bool:
        """True where ``payload`` is exactly one event of the shape learned last."""
        begin, end = self._begin, self._end
        if begin and payload.startswith(begin) and payload.endswith(end) and len(payload) <= MAX_PLAIN_EVENT_BYTES:
            self._attempts = 0
            return _STRING.fullmatch(payload, len(begin), len(payload) - len(end)) is not None
        return False

    def learn(self, payload: bytes, data: bytes, event: Event) -> None:
        """Take the shape of an event that was read: ``data`` is the data of the one event that ``payload`` is."""
        if (event is not TEXT and event is not PARSED_TEXT) or self._attempts >= MAX_ATTEMPTS:
            return
        self._attempts += 1
        self._begin = b""
        member = _TEXT_MEMBER.search(data)
        text = _STRING.match(data, member.end()) if member is not None else None
        if text is None or payload != _PREFIX + data + b"\n\n":
            return
        before, after = data[: text.start()], data[text.end() :]
        # It must be this text, and no other member, that makes the event what it is.
        same = read_event(before + b"x" + after) is event and read_event(before + after) is not event
        if same and after.startswith(b'"'):
            self._begin, self._end, self.event = _PREFIX + before, after + b"\n\n", event
