"""Which backend served a conversation last, so that it can stay where its prefix is cached. In memory only.

Conversations are told apart by salted hashes: nothing of a prompt, a user or a key is kept.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from typing import Final

import msgspec

MIN_BODY_BYTES: Final = 8192
"""A shorter prompt is read again in no time."""
LEADING_MESSAGES: Final = 2
"""Enough to tell conversations apart, and the same in each of their requests: later messages are added behind."""
LEADING_BYTES: Final = 4096
_EMPTY: Final = msgspec.Raw(b"")


class _Body(msgspec.Struct):
    prompt_cache_key: msgspec.Raw = _EMPTY
    user: msgspec.Raw = _EMPTY
    system: msgspec.Raw = _EMPTY
    instructions: msgspec.Raw = _EMPTY
    messages: msgspec.Raw = _EMPTY
    input: msgspec.Raw = _EMPTY
    prompt: msgspec.Raw = _EMPTY


_BODY: Final = msgspec.json.Decoder(_Body)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Sessions:
    """The last backend of each conversation; the oldest are forgotten first."""

    def __init__(self, size: int) -> None:
        """size: conversations remembered; 0: none."""
        self._size = size
        self._salt = secrets.token_bytes(16)
        self._last: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def key(self, header: bytes | None, body: bytes) -> bytes | None:
        """The key of a request's conversation; None where it has none worth remembering. Never raises.

        header: what the client says that its conversation is called.
        """
        if not self._size or len(body) < MIN_BODY_BYTES:
            return None
        named = header or _named(body)
        return hashlib.blake2b(named, digest_size=16, key=self._salt).digest() if named else None

    def last(self, key: bytes) -> str | None:
        """Name of the backend that served the conversation before."""
        return self._last.get(key)

    def served(self, key: bytes, backend: str) -> None:
        """A backend took a request of the conversation."""
        self._last[key] = backend
        self._last.move_to_end(key)
        if len(self._last) > self._size:
            self._last.popitem(last=False)


def _named(body: bytes) -> bytes:
    """What stays the same in a conversation: its cache key, or its user and its first messages."""
    try:
        fields = _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    if bytes(fields.prompt_cache_key) not in (b"", b"null"):
        return bytes(fields.prompt_cache_key)
    first = b""
    for raw in (fields.messages, fields.input, fields.prompt):
        first = first or _leading(bytes(raw))
    parts = (bytes(fields.system)[:LEADING_BYTES], bytes(fields.instructions)[:LEADING_BYTES], first)
    return b"\0".join((bytes(fields.user), *parts)) if any(parts) else b""


def _leading(value: bytes) -> bytes:
    if not value.startswith(b"["):
        return value[:LEADING_BYTES]
    try:
        items = _LIST.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return b""
    return b"\0".join(bytes(item)[:LEADING_BYTES] for item in items[:LEADING_MESSAGES])
