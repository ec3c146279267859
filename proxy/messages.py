"""Heads of requests and responses as the proxy writes them, and its own errors in OpenAI's shape."""

from __future__ import annotations

import itertools
import re
import secrets
from http import HTTPStatus
from typing import Final

import msgspec

from detector.tap.http1 import HOP_BY_HOP, BodyFraming, ResponseHead

_REPLACED: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-forwarded-for"}
_DROPPED_FROM_RESPONSES: Final = HOP_BY_HOP | {b"content-length"}

_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class Request:
    """A request head as the client sent it, and what has arrived of its body."""

    __slots__ = (
        "complete",
        "content_length",
        "expects_continue",
        "fields",
        "http_1_0",
        "keep_alive",
        "method",
        "named_by_connection",
        "parts",
        "path",
        "request_id",
        "size",
        "target",
        "transfer_encoded",
        "upgrade",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.path = ""
        """Path without query and fragment, still percent-encoded."""
        self.fields: list[tuple[bytes, bytes, bytes]] = []
        """(lower-case name, name as sent, value)"""
        self.http_1_0 = False
        self.keep_alive = True
        self.upgrade = False
        self.expects_continue = False
        self.content_length: int | None = None
        self.transfer_encoded = False
        self.named_by_connection: frozenset[bytes] = frozenset()
        self.request_id = ""
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = False

    @property
    def has_body(self) -> bool:
        """A body was announced."""
        return self.transfer_encoded or bool(self.content_length)

    def field(self, name: bytes) -> bytes | None:
        """The first field of that (lower-case) name."""
        for lower, _, value in self.fields:
            if lower == name:
                return value
        return None

    def finish_head(self) -> None:
        """Read what the head says of the connection and the body; give the request an id if it has none."""
        # An engine's server ignores a fragment, so it must not hide a route from the gate.
        self.path = re.split(rb"[?#]", self.target, maxsplit=1)[0].decode("latin-1")
        for lower, _, value in self.fields:
            if lower == b"content-length":
                self.content_length = int(value)
            elif lower == b"transfer-encoding":
                self.transfer_encoded = True
            elif lower == b"connection":
                self.named_by_connection |= {option.strip().lower() for option in value.split(b",")}
            elif lower == b"expect":
                self.expects_continue = value.lower() == b"100-continue"
            elif lower == b"x-request-id" and not self.request_id:
                self.request_id = value.decode("latin-1")
        if not self.request_id:
            self.request_id = f"{_process}{next(_numbers):08x}"


def part_of(request: Request, target: bytes, request_id: str) -> Request:
    """The request for the rest of an answer, as measurements and session files know it."""
    part = Request()
    part.method, part.target, part.fields = request.method, target, request.fields
    part.finish_head()
    part.request_id = request_id
    return part


def request_head(
    request: Request,
    *,
    target: bytes | None = None,
    netloc: bytes,
    authorization: bytes | None,
    keep_authorization: bool,
    client_host: str,
    scheme: bytes,
    body_length: int | None,
) -> bytes:
    """The head for the engine: the client's fields in order, without those of its connection.

    target: instead of the client's own.
    body_length None: the body follows as the client framed it, its length or chunked.
    """
    lines = [b"%s %s HTTP/1.1\r\nhost: %s\r\n" % (request.method, target or request.target, netloc)]
    seen: set[bytes] = set()
    forwarded_for: list[bytes] = []
    original_host = b""
    dropped = _REPLACED | request.named_by_connection
    if authorization is not None or not keep_authorization:
        dropped |= {b"authorization"}
    for lower, name, value in request.fields:
        if lower == b"x-request-id" and not value:
            continue
        seen.add(lower)
        if lower == b"x-forwarded-for":
            forwarded_for.append(value)
        elif lower == b"host":
            original_host = value
        elif lower not in dropped:
            lines.append(b"%s: %s\r\n" % (name, value))
    forwarded_for.append(client_host.encode("latin-1"))
    lines.append(b"x-forwarded-for: %s\r\n" % b", ".join(forwarded_for))
    if b"x-forwarded-proto" not in seen:
        lines.append(b"x-forwarded-proto: %s\r\n" % scheme)
    if b"x-forwarded-host" not in seen and original_host:
        lines.append(b"x-forwarded-host: %s\r\n" % original_host)
    if b"x-request-id" not in seen:
        lines.append(b"x-request-id: %s\r\n" % request.request_id.encode("latin-1"))
    if authorization is not None:
        lines.append(b"authorization: %s\r\n" % authorization)
    lines.append(_request_framing(request, body_length))
    return b"".join(lines)


def head_without_upgrade(request: Request) -> bytes:
    """The head as the client sent it, without its offer to switch to another protocol."""
    version = b"1.0" if request.http_1_0 else b"1.1"
    fields = b"".join(b"%s: %s\r\n" % (name, value) for lower, name, value in request.fields if lower != b"upgrade")
    return b"%s %s HTTP/%s\r\n%s\r\n" % (request.method, request.target, version, fields)


def _request_framing(request: Request, body_length: int | None) -> bytes:
    if request.upgrade:
        upgrade = request.field(b"upgrade") or b"websocket"
        return b"connection: Upgrade\r\nupgrade: %s\r\n\r\n" % upgrade
    if body_length is not None:
        return b"content-length: %d\r\n\r\n" % body_length
    if request.content_length is not None:
        return b"content-length: %d\r\n\r\n" % request.content_length
    if request.transfer_encoded:
        return b"transfer-encoding: chunked\r\n\r\n"
    return b"\r\n"


def response_head(
    head: ResponseHead, *, backend: str, phase: str, request_id: str, chunked: bool, close: bool
) -> bytes:
    """The engine's head for the client: its fields in order, then ours.

    chunked: the body is sent in chunks; otherwise with the engine's Content-Length, or to the end of the connection.
    """
    lines = [b"HTTP/1.1 %d %s\r\n" % (head.status, head.reason)]
    echoed = False
    for lower, name, value in head.fields:
        if lower in _DROPPED_FROM_RESPONSES or lower in head.named_by_connection:
            continue
        echoed = echoed or lower == b"x-request-id"
        lines.append(b"%s: %s\r\n" % (name, value))
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif head.content_length is not None and head.framing in (BodyFraming.LENGTH, BodyFraming.NONE):
        lines.append(b"content-length: %d\r\n" % head.content_length)
    if not echoed:
        lines.append(b"x-request-id: %s\r\n" % request_id.encode("latin-1"))
    lines.append(b"x-specbreaker-backend: %s\r\nx-specbreaker-phase: %s\r\n" % (backend.encode(), phase.encode()))
    lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(lines)


def switching_head(head: ResponseHead) -> bytes:
    """The engine's 101, whole: from here on the connection belongs to the two ends."""
    fields = b"".join(b"%s: %s\r\n" % (name, value) for _, name, value in head.fields)
    return b"HTTP/1.1 101 %s\r\n%s\r\n" % (head.reason, fields)


def error_json(status: int, message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """An error body as OpenAI's clients read it; ``code`` instead of the status where the status says too little."""
    error = {"message": message, "type": kind, "param": param, "code": code or status}
    return msgspec.json.encode({"error": error})


def error_response(
    status: int,
    message: str,
    kind: str,
    *,
    request_id: str = "",
    close: bool = False,
    retry_after_seconds: int | None = None,
) -> bytes:
    """A whole response with an error body."""
    body = error_json(status, message, kind)
    identity = b"x-request-id: %s\r\n" % request_id.encode("latin-1") if request_id else b""
    retry_after = b"retry-after: %d\r\n" % retry_after_seconds if retry_after_seconds is not None else b""
    return b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s%s%s\r\n%s" % (
        status,
        HTTPStatus(status).phrase.encode(),
        len(body),
        identity,
        retry_after,
        b"connection: close\r\n" if close else b"",
        body,
    )


def error_event(status: int, message: str, kind: str, *, code: str | None = None) -> bytes:
    """An error event for a stream whose status has been sent already."""
    return b"data: " + error_json(status, message, kind, code=code) + b"\n\n"
