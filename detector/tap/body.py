"""A whole (not streamed) JSON body, kept in bounded memory."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from detector.tap.dialects import Event, read_body

MAX_BODY_BYTES: Final = 1 << 20
"""A body up to this length is read whole."""
TAIL_BYTES: Final = 1 << 18
"""Of a longer body only the end is kept: engines write the counts after the text."""

_MEMBER: Final = re.compile(r'"(usage|metrics|timings|meta_info)"\s*:\s*(?=\{)')
_FINISH_REASON: Final = re.compile(r'"finish_reason"\s*:\s*"(\w{1,40})"')


class BodyReader:
    """Collects a body and reads it once at the end."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._cut = False

    def feed(self, payload: bytes) -> None:
        """The next bytes of the body."""
        self._kept += payload
        if len(self._kept) > MAX_BODY_BYTES:
            self._cut = True
            del self._kept[:-TAIL_BYTES]

    def read(self) -> Event:
        """What the body says. Of a body that was cut: its counts and why it finished."""
        return read_body(_from_tail(bytes(self._kept)) if self._cut else bytes(self._kept))


def _from_tail(tail: bytes) -> bytes:
    """A small body made of those members of the tail that are whole; of namesakes the last one counts."""
    text = tail.decode("utf-8", "replace")
    decoder, found = json.JSONDecoder(), dict[str, Any]()
    for member in _MEMBER.finditer(text):
        try:
            found[member[1]] = decoder.raw_decode(text, member.end())[0]
        except (ValueError, RecursionError):
            continue
    reasons = _FINISH_REASON.findall(text)
    found["choices"] = [{"index": 0, "finish_reason": reasons[-1]}] if reasons else []
    return msgspec.json.encode(found)
