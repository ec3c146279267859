"""One answer on its way from the engine's framing to the client's, without waiting for anything.

After the response head nothing is decoded and encoded again, except where a chunk that the client had not asked for is
taken out. An Answer writes nothing itself: bytes in, bytes out, so that whoever drives it decides where they go.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from detector.tap.http1 import LAST_CHUNK, BodyFraming, ChunkedFraming, ResponseHead, chunk
from detector.tap.removal import UsageRemover
from detector.tap.request import SplicedBody

_BLANK_LINE: Final = b"\n\n"


class Part(NamedTuple):
    """What some bytes of the engine turned out to be."""

    payload: bytes
    """The engine's payload in them, for the measurement."""
    out: bytes
    """What goes to the client for them; may be empty."""
    ended: bool
    """The answer is whole."""
    excess: bool
    """Bytes follow that belong to no answer: the engine's connection is not used again."""


class Answer:
    """One answer after its head.

    Parameters:
        head: the engine's final response head.
        splice: what the proxy had asked for beyond the client's request; None: nothing.
        http_1_0: the client speaks HTTP/1.0, so chunks would mean nothing to it.
    """

    __slots__ = (
        "_as_it_is",
        "_chunks",
        "_ends_with_blank_line",
        "_left",
        "_remover",
        "chunked_out",
        "head",
        "until_close",
    )

    def __init__(self, head: ResponseHead, splice: SplicedBody | None, *, http_1_0: bool) -> None:
        self.head = head
        self._remover: UsageRemover | None = None
        if splice is not None and head.status == 200 and head.event_stream:
            self._remover = UsageRemover(splice.remove_usage_chunk, splice.remove_event_usage)
        self._left = head.content_length or 0
        self._ends_with_blank_line = True
        has_body = head.framing is not BodyFraming.NONE
        reframed = has_body and (self._remover is not None or head.framing is not BodyFraming.LENGTH)
        self.chunked_out = reframed and not http_1_0
        """The client gets chunks: the engine's, or ours."""
        self.until_close = reframed and http_1_0
        """The client knows the end by the end of its connection."""
        self._chunks = ChunkedFraming() if head.framing is BodyFraming.CHUNKED else None
        self._as_it_is = self._chunks if self.chunked_out else None
        """The same, where the client gets the engine's chunks."""

    @property
    def empty(self) -> bool:
        """The head was all."""
        return self.head.framing is BodyFraming.NONE or (self.head.framing is BodyFraming.LENGTH and not self._left)

    def unchanged(self, data: bytes) -> bytes | None:
        """The payload of data, where data may go to the client as it is; else None, with nothing done.

        Nearly every call of a stream: one event in one chunk. ``feed`` takes all the others.
        """
        if self._as_it_is is None:
            return None
        payload = self._as_it_is.whole(data)
        if payload is None or not (self._remover is None or self._remover.clean(payload)):
            return None
        self._ends_with_blank_line = payload.endswith(_BLANK_LINE)
        return payload

    def feed(self, data: bytes) -> Part:
        """What data is and becomes. Raises InvalidHTTP where the framing is broken."""
        if self._chunks is not None:
            part = self._feed_chunks(self._chunks, data)
        elif self.head.framing is BodyFraming.LENGTH:
            payload = data[: self._left]
            self._left -= len(payload)
            ended = not self._left
            part = Part(payload, self._framed(payload, ended), ended, len(data) > len(payload))
        else:
            part = Part(data, self._framed(data, ended=False), ended=False, excess=False)
        if part.payload:
            self._ends_with_blank_line = part.payload.endswith(_BLANK_LINE)
        return part

    def end_of_connection(self) -> bytes | None:
        """What still goes to the client where the engine ended the answer by closing; None: it was not whole."""
        return self._framed(b"", ended=True) if self.head.framing is BodyFraming.CLOSE else None

    def broken_off(self, event: bytes) -> bytes | None:
        """What ends an unfinished event stream with this error event; None: nothing can be added."""
        at_boundary = self._remover is not None or self._chunks is None or self._chunks.at_boundary
        if not self.head.event_stream or not (at_boundary if self.chunked_out else self.until_close):
            return None
        held = self._remover.end() if self._remover is not None else b""
        last = held + (b"" if self._ends_with_blank_line else _BLANK_LINE) + event
        return chunk(last) + LAST_CHUNK if self.chunked_out else last

    def _feed_chunks(self, chunks: ChunkedFraming, data: bytes) -> Part:
        whole_before = chunks.at_boundary
        payloads: list[bytes] = []
        end = chunks.feed(data, payloads)
        payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        ended = end >= 0
        excess = ended and end < len(data)
        as_it_is = self.chunked_out and self._remover is None
        if self._remover is not None and self.chunked_out and whole_before and chunks.at_boundary:
            as_it_is = not ended and self._remover.clean(payload)
        if not as_it_is:
            return Part(payload, self._framed(payload, ended), ended, excess)
        return Part(payload, data[:end] if excess else data, ended, excess)

    def _framed(self, payload: bytes, ended: bool) -> bytes:
        if self._remover is not None:
            payload = self._remover.feed(payload) + (self._remover.end() if ended else b"")
        if self.chunked_out:
            payload = chunk(payload) + (LAST_CHUNK if ended else b"")
        return payload
