"""Removing from an event stream the usage that the proxy asked for and the client did not.

What is removed: the usage chunk (an event with ``choices: []`` and ``usage``), and, in the per-event mode, the
``usage`` member of every event with choices. Everything else passes byte for byte.

What is put back: some members stand on the event with the ``finish_reason`` unless there is a usage chunk, which then
has them instead: ``system_fingerprint`` (vLLM >= 0.22) and ``timings`` (llama.cpp). An event with a ``finish_reason``
is therefore held until the next event is there, which these engines send in the same breath, and gets them back if that
next event is the usage chunk. With several choices only the last one to finish does: on the others the client misses
the fingerprint.

What is not removed: ``"usage":null`` members (some engines send them to everyone), and usage that an engine was told to
send to everyone: where event usage shows up although nobody asked for it, the usage chunk is left in place too.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from detector.tap.sse import BYTE_ORDER_MARK, EVENT_END, OVERLAP_BYTES, event_data

MAX_CONTENT_EVENT_BYTES: Final = 1 << 16
"""An event with content that is longer than this passes as it is, and streams through while it arrives."""
MAX_USAGE_CHUNK_BYTES: Final = 1 << 20
"""Any other event that is longer than this passes as it is. (Detailed metrics take some 5 bytes a verify step.)"""

_SOME_CHOICE: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')
_NO_CHOICE: Final = re.compile(rb"\[\s*\]")
_USAGE_MEMBER: Final = re.compile(rb'(?P<comma>,?\s*)"usage"\s*:\s*(?=\{)')
_COMMENT: Final = re.compile(rb"(?:\A|(?<=[\r\n])):[^\r\n]*(?:\r\n|\n|\r)")
_COMMA_AFTER: Final = re.compile(rb"\s*,")
_CLOSING_BRACE: Final = re.compile(rb"\}[ \t\r\n]*\Z")
_FINISHED: Final = b'"finish_reason":"'
_EMPTY: Final = msgspec.Raw(b"")


class _Event(msgspec.Struct):
    choices: msgspec.Raw = _EMPTY
    usage: msgspec.Raw = _EMPTY
    system_fingerprint: msgspec.Raw = _EMPTY
    timings: msgspec.Raw = _EMPTY


_EVENT: Final = msgspec.json.Decoder(_Event)


def _decode(block: bytes) -> _Event | None:
    data = event_data(block.removeprefix(BYTE_ORDER_MARK))
    if data is None:
        return None
    try:
        return _EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class UsageRemover:
    """A streaming filter over payload bytes (transfer coding removed) of one answer. How they are cut does not matter.

    It holds back one event at a time: the one that is not yet whole, and one that waits for its fingerprint.
    """

    def __init__(self, remove_usage_chunk: bool, remove_event_usage: bool) -> None:
        self._remove_usage_chunk = remove_usage_chunk
        self._remove_event_usage = remove_event_usage
        self._pending = bytearray()
        """The beginning of an event; while ``_streaming``, only its last bytes, which have gone out already."""
        self._streaming = False
        """Inside an event that passes as it is."""
        self._finished = b""
        """A whole event with a ``finish_reason``, held for its fingerprint."""
        self._drop_line_feed = False
        """The event just removed ended in CR; a LF that follows belongs to it."""

    def clean(self, payload: bytes) -> bool:
        """True where ``payload`` may be forwarded as it is, without ``feed``.

        True only if nothing is held, the payload ends where an event ends, and no event in it is of interest.
        """
        if self._pending or self._finished or self._drop_line_feed or not payload.endswith(b"\n\n"):
            return False
        if not (self._remove_usage_chunk or self._remove_event_usage):
            return True
        return b'"usage"' not in payload and _FINISHED not in payload

    def feed(self, payload: bytes) -> bytes:
        """What may go to the client now."""
        if self.clean(payload):
            return payload
        if not self._pending and payload.startswith(b"data:") and _is_one_event(payload):
            self._drop_line_feed = False
            return self._filtered(payload)
        out: list[bytes] = []
        scan_from = max(0, len(self._pending) - OVERLAP_BYTES)
        sent = len(self._pending) if self._streaming else 0
        pending = self._pending
        pending += payload
        while True:
            if not self._streaming:
                self._pass_line_ends(out)
            found = EVENT_END.search(pending, scan_from)
            if found is None:
                break
            block = bytes(pending[sent : found.end()])
            out.append(block if self._streaming else self._filtered(block))
            self._streaming = False
            del pending[: found.end()]
            scan_from = sent = 0
        if self._streaming or self._too_long(pending):
            out += (self._release(), bytes(pending[sent:]))
            self._streaming = True
            del pending[:-OVERLAP_BYTES]
        return b"".join(out)

    def end(self) -> bytes:
        """What was held when the stream ended, unchanged."""
        rest = self._release() + (b"" if self._streaming else bytes(self._pending))
        self._pending.clear()
        self._streaming = False
        return rest

    def _pass_line_ends(self, out: list[bytes]) -> None:
        """Pass on the line ends before the next event: blank lines, or a LF whose CR ended the last event."""
        pending = self._pending
        if self._drop_line_feed and pending:
            self._drop_line_feed = False
            if pending.startswith(b"\n"):
                del pending[:1]
        count = len(pending) - len(pending.lstrip(b"\r\n"))
        if count:
            line_ends = bytes(pending[:count])
            del pending[:count]
            if self._finished:
                self._finished += line_ends
            else:
                out.append(line_ends)

    def _release(self) -> bytes:
        held, self._finished = self._finished, b""
        return held

    @staticmethod
    def _too_long(block: bytes | bytearray) -> bool:
        """An event of this length, whole or not, is not looked into."""
        length = len(block) - len(block[-4:]) + len(block[-4:].rstrip(b"\r\n"))
        if length <= MAX_CONTENT_EVENT_BYTES:
            return False
        has_content = _SOME_CHOICE.search(block, 0, MAX_CONTENT_EVENT_BYTES) is not None
        return has_content or length > MAX_USAGE_CHUNK_BYTES

    def _filtered(self, block: bytes) -> bytes:
        """What goes out now that this whole event is there: what was held, and the event without its usage."""
        if self._too_long(block):
            return self._release() + block
        if b'"usage"' in block:
            event = _decode(block)
            if event is not None and bytes(event.usage).startswith(b"{"):
                choices = bytes(event.choices)
                if _NO_CHOICE.fullmatch(choices):
                    if self._remove_usage_chunk:
                        return self._without_chunk(block, event)
                elif self._remove_event_usage:
                    block = _without_usage(block, event) if choices.startswith(b"[") else block
                elif choices.startswith(b"["):
                    self._remove_usage_chunk = False
        before = self._release()
        if self._remove_usage_chunk and _FINISHED in block:
            self._finished = block
            return before
        return before + block

    def _without_chunk(self, block: bytes, chunk: _Event) -> bytes:
        """The usage chunk leaves its comment lines, and on the event before it what that event lacked for its sake."""
        held = self._release()
        if held:
            held = _with_member(held, "system_fingerprint", chunk)
            held = _with_member(held, "timings", chunk)
        self._drop_line_feed = block.endswith(b"\r")
        return held + b"".join(_COMMENT.findall(block))


def _is_one_event(payload: bytes) -> bool:
    return payload.find(b"\n\n") == len(payload) - 2 and b"\r" not in payload


def _without_usage(block: bytes, event: _Event) -> bytes:
    """The event without its ``usage`` member and one comma; unchanged where that is not plain to do."""
    usage = bytes(event.usage)
    tail = b',"usage":' + usage + b"}\n\n"
    if block.endswith(tail) and b'"usage"' not in block[: -len(tail)]:
        return block[: -len(tail)] + b"}\n\n"
    for member in _USAGE_MEMBER.finditer(block):
        begin, end = member.start(), member.end() + len(usage)
        if not block.startswith(usage, member.end()):
            continue
        if not member["comma"].startswith(b","):
            comma = _COMMA_AFTER.match(block, end)
            if comma is None:
                continue
            begin, end = member.end("comma"), comma.end()
        edited = block[:begin] + block[end:]
        rest = _decode(edited)
        if rest is not None and not rest.usage:
            return edited
    return block


def _with_member(block: bytes, name: str, chunk: _Event) -> bytes:
    """The event with the chunk's member as its last; unchanged where it has its own, or is not plain to edit."""
    event, value, close = _decode(block), bytes(getattr(chunk, name)), _CLOSING_BRACE.search(block)
    if value in (b"", b"null") or event is None or getattr(event, name) or close is None:
        return block
    edited = block[: close.start()] + b',"%b":%b' % (name.encode(), value) + block[close.start() :]
    again = _decode(edited)
    return edited if again is not None and bytes(getattr(again, name)) == value else block
