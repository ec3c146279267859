"""One answer on its way from the engine's framing to the client's, without waiting for anything.

After the response head nothing is decoded and encoded again, except where a chunk that the client had not asked for is
taken out. An Answer writes nothing itself: bytes in, bytes out, so that whoever drives it decides where they go.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from detector.continuation.keeper import Failure
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


class EventFilter(Protocol):
    """Stands between the engine's events and the client's: a Keeper, or a Stitcher."""

    failure: Failure | None
    """The engine gave up; nothing is let through any more."""
    whole: bool
    """The answer ended before the engine's did."""
    measured_unfiltered: bool
    """The measurement gets the engine's bytes, else what the filter lets through."""

    def feed(self, payload: bytes) -> bytes:
        """What the client gets for a piece of the engine's payload."""

    def end(self) -> bytes:
        """The same for the end of the payload."""


class Answer:
    """One answer after its head.

    Parameters:
        head: the engine's final response head.
        splice: what the proxy had asked for beyond the client's request; None: nothing.
        http_1_0: the client speaks HTTP/1.0, so chunks would mean nothing to it.
        events: a filter that an event stream passes first; other answers do not.
    """

    __slots__ = (
        "_as_it_is",
        "_chunks",
        "_ends_with_blank_line",
        "_left",
        "_remover",
        "chunked_out",
        "events",
        "head",
        "until_close",
    )

    def __init__(
        self, head: ResponseHead, splice: SplicedBody | None, *, http_1_0: bool, events: EventFilter | None = None
    ) -> None:
        self.head = head
        self.events = events if head.status == 200 and head.event_stream else None
        self._remover: UsageRemover | None = None
        if splice is not None and head.status == 200 and head.event_stream:
            self._remover = UsageRemover(splice.remove_usage_chunk, splice.remove_event_usage)
        self._left = head.content_length or 0
        self._ends_with_blank_line = True
        has_body = head.framing is not BodyFraming.NONE
        edited = self._remover is not None or self.events is not None
        reframed = has_body and (edited or head.framing is not BodyFraming.LENGTH)
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
        if self._as_it_is is None or self.events is not None:
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
            part = self._part(payload, ended, excess=len(data) > len(payload))
        else:
            part = self._part(data, ended=False, excess=False)
        if part.payload:
            self._ends_with_blank_line = part.payload.endswith(_BLANK_LINE)
        return part

    def go_on(self, head: ResponseHead, events: EventFilter) -> None:
        """What comes from here on is the body of another engine's response; for the client it is the same answer."""
        self.head = head
        self.events = events
        self._left = head.content_length or 0
        self._chunks = ChunkedFraming() if head.framing is BodyFraming.CHUNKED else None

    def end_of_connection(self) -> bytes | None:
        """What still goes to the client where the engine ended the answer by closing; None: it was not whole."""
        return self._part(b"", ended=True, excess=False).out if self.head.framing is BodyFraming.CLOSE else None

    def broken_off(self, event: bytes) -> bytes | None:
        """What ends an unfinished event stream with this error event; None: nothing can be added."""
        edited = self._remover is not None or self.events is not None
        at_boundary = edited or self._chunks is None or self._chunks.at_boundary
        if not self.head.event_stream or not (at_boundary if self.chunked_out else self.until_close):
            return None
        held = self._remover.end() if self._remover is not None else b""
        between_events = self._ends_with_blank_line or self.events is not None
        last = held + (b"" if between_events else _BLANK_LINE) + event
        return chunk(last) + LAST_CHUNK if self.chunked_out else last

    def _feed_chunks(self, chunks: ChunkedFraming, data: bytes) -> Part:
        if self.events is not None and (one := chunks.whole(data)) is not None:
            return self._part(one, ended=False, excess=False)
        whole_before = chunks.at_boundary
        payloads: list[bytes] = []
        end = chunks.feed(data, payloads)
        payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        ended = end >= 0
        excess = ended and end < len(data)
        as_it_is = self.chunked_out and self._remover is None and self.events is None
        clean_cut = self.chunked_out and whole_before and chunks.at_boundary
        if self._remover is not None and self.events is None and clean_cut:
            as_it_is = not ended and self._remover.clean(payload)
        if not as_it_is:
            return self._part(payload, ended, excess)
        return Part(payload, data[:end] if excess else data, ended, excess)

    def _part(self, payload: bytes, ended: bool, excess: bool) -> Part:
        events = self.events
        if events is None:
            return Part(payload, self._framed(payload, ended), ended, excess)
        shown = events.feed(payload)
        if ended:
            shown += events.end()
        whole = (ended or events.whole) and events.failure is None
        out = self._framed(shown, whole) if shown or whole else b""
        return Part(payload if events.measured_unfiltered else shown, out, ended, excess)

    def _framed(self, payload: bytes, ended: bool) -> bytes:
        if self._remover is not None:
            payload = self._remover.feed(payload) + (self._remover.end() if ended else b"")
        if self.chunked_out:
            payload = chunk(payload) + (LAST_CHUNK if ended else b"")
        return payload
