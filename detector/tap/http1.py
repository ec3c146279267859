"""HTTP/1.1 responses as they cross the proxy: the head, and where a chunked body ends.

Nothing here decodes a body for the client. The head is read so that hop-by-hop fields can be dropped, the chunk framing
is followed so that the end of the message is known; both see exactly the bytes that the engine sent (RFC 9112).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

MAX_HEAD_BYTES: Final = 65536
"""A response head longer than this is refused."""
MAX_CHUNK_LINE_BYTES: Final = 4096
"""A chunk-size line (with extensions) or a trailer line longer than this is refused."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that belong to one connection and are never passed on (RFC 9110 section 7.6.1)."""

_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Bytes that no field value holds (RFC 9110 section 5.5)."""
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class InvalidHTTP(ValueError):
    """The peer sent something that is not an HTTP/1.1 response."""


class BodyFraming(Enum):
    """What ends the body (RFC 9112 section 6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseHead:
    """The status line and fields of one response, in the order and spelling in which they came."""

    __slots__ = (
        "content_encoding",
        "content_length",
        "content_type",
        "fields",
        "framing",
        "keep_alive",
        "named_by_connection",
        "reason",
        "status",
    )

    def __init__(self, status: int, reason: bytes, fields: list[tuple[bytes, bytes, bytes]]) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields
        """(lower-case name, name as sent, value)"""
        self.framing = BodyFraming.CLOSE
        self.content_length: int | None = None
        self.keep_alive = True
        self.named_by_connection: frozenset[bytes] = frozenset()
        """Options of ``Connection``: fields of these names belong to one connection, too."""
        self.content_type = b""
        self.content_encoding = b""

    @property
    def event_stream(self) -> bool:
        """True where the body is a stream of server-sent events that can be read as it is."""
        return self.content_type.startswith(b"text/event-stream") and self.content_encoding in (b"", b"identity")


def parse_response_head(raw: bytes, request_method: bytes) -> ResponseHead:
    """Read a head without its final empty line.

    Raises InvalidHTTP for anything whose end could be read in two ways: folded lines, bad field names, conflicting
    lengths, a length beside a transfer coding, or a coding other than chunked.
    """
    lines = raw.split(b"\r\n")
    version, status, reason = _status_line(lines[0])
    fields = [_field(line) for line in lines[1:]]
    head = ResponseHead(status, reason, fields)
    head.keep_alive = version == b"HTTP/1.1"
    transfer_coding = b""
    for name, _, value in fields:
        if name == b"content-length":
            head.content_length = _content_length(value, head.content_length)
        elif name == b"transfer-encoding":
            transfer_coding = transfer_coding + b"," + value.lower() if transfer_coding else value.lower()
        elif name == b"connection":
            options = frozenset(option.strip() for option in value.lower().split(b","))
            head.named_by_connection |= options
            head.keep_alive = b"keep-alive" in options or (head.keep_alive and b"close" not in options)
        elif name == b"content-type":
            head.content_type = value.lower()
        elif name == b"content-encoding":
            head.content_encoding = value.lower()
    head.framing = _framing(head, transfer_coding, request_method)
    if head.framing is BodyFraming.CLOSE:
        head.keep_alive = False
    return head


def _status_line(line: bytes) -> tuple[bytes, int, bytes]:
    version, _, rest = line.partition(b" ")
    status, _, reason = rest.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3 or not status.isdigit():
        raise InvalidHTTP(f"not an HTTP/1.1 status line: {line[:80]!r}")
    return version, int(status), reason


def _field(line: bytes) -> tuple[bytes, bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not name or not _TOKEN.issuperset(name) or _CONTROL.search(value):
        raise InvalidHTTP(f"not a header line: {line[:80]!r}")
    return name.lower(), name, value.strip(b" \t")


def _content_length(value: bytes, before: int | None) -> int:
    if not value.isdigit():
        raise InvalidHTTP(f"Content-Length is not a number: {value[:80]!r}")
    length = int(value)
    if before is not None and before != length:
        raise InvalidHTTP(f"two Content-Lengths: {before} and {length}")
    return length


def _framing(head: ResponseHead, transfer_coding: bytes, request_method: bytes) -> BodyFraming:
    if request_method == b"HEAD" or head.status in (204, 304) or head.status < 200:
        return BodyFraming.NONE
    if transfer_coding:
        if transfer_coding != b"chunked":
            raise InvalidHTTP(f"transfer coding {transfer_coding[:80]!r}: only chunked is understood")
        if head.content_length is not None:
            raise InvalidHTTP("both Content-Length and Transfer-Encoding")
        return BodyFraming.CHUNKED
    if head.content_length is not None:
        return BodyFraming.LENGTH
    return BodyFraming.CLOSE


class _Reading(Enum):
    SIZE = 0
    DATA = 1
    DATA_END = 2
    TRAILER = 3
    DONE = 4


class ChunkedFraming:
    """Follows the chunk framing of one body and hands out its payload; the bytes themselves stay as they are.

    Feeding one byte at a time gives the same payload and the same end as feeding everything at once.
    """

    __slots__ = ("_left", "_line", "_reading")

    def __init__(self) -> None:
        self._reading = _Reading.SIZE
        self._left = 0
        self._line = b""

    @property
    def at_boundary(self) -> bool:
        """True between two chunks (and at the end): a new chunk may start here."""
        return (self._reading is _Reading.SIZE and not self._line) or self._reading is _Reading.DONE

    def feed(self, data: bytes, payloads: list[bytes]) -> int:
        """Append the payload pieces of data to payloads.

        Returns the index just after the end of the message, or -1 where it goes on. Raises InvalidHTTP where the
        framing is broken.
        """
        payload = self.whole(data)
        if payload is None:
            return self._walk(data, payloads)
        payloads.append(payload)
        return -1

    def whole(self, data: bytes) -> bytes | None:
        """The payload, where data is one whole chunk and not the last; None, with nothing done, where it is not.

        An engine writes one event as one chunk, and it mostly arrives as one piece.
        """
        if self._reading is _Reading.SIZE and not self._line:
            line_end = data.find(b"\r\n", 0, 18)
            size = data[:line_end]
            if line_end > 0 and _HEX.issuperset(size):
                begin = line_end + 2
                end = begin + int(size, 16)
                if len(data) == end + 2 and end > begin and data.endswith(b"\r\n"):
                    return data[begin:end]
        return None

    def _walk(self, data: bytes, payloads: list[bytes]) -> int:
        position, length = 0, len(data)
        while position < length:
            if self._reading is _Reading.DATA:
                piece = data[position : position + self._left]
                payloads.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._reading = _Reading.DATA_END
                continue
            line_end = data.find(b"\n", position)
            taken = length if line_end < 0 else line_end + 1
            self._line += data[position:taken]
            position = taken
            if len(self._line) > MAX_CHUNK_LINE_BYTES:
                raise InvalidHTTP("a chunk line without an end")
            if line_end >= 0:
                self._end_of_line()
                if self._reading is _Reading.DONE:
                    return position
        return -1

    def _end_of_line(self) -> None:
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise InvalidHTTP(f"a chunk line that does not end in CRLF: {line[:40]!r}")
        line = line[:-2]
        if self._reading is _Reading.DATA_END:
            if line:
                raise InvalidHTTP(f"a chunk longer than its size says: {line[:40]!r}")
            self._reading = _Reading.SIZE
        elif self._reading is _Reading.TRAILER:
            if not line:
                self._reading = _Reading.DONE
        else:
            size = line.split(b";", 1)[0].rstrip(b" \t")
            if not size or len(size) > 16 or not _HEX.issuperset(size):
                raise InvalidHTTP(f"not a chunk size: {line[:40]!r}")
            self._left = int(size, 16)
            self._reading = _Reading.DATA if self._left else _Reading.TRAILER


def chunk(payload: bytes) -> bytes:
    """One chunk of a chunked body; nothing for an empty payload, which would end the body."""
    return b"%x\r\n%s\r\n" % (len(payload), payload) if payload else b""


LAST_CHUNK: Final = b"0\r\n\r\n"
