"""Asking for token ids without re-serialising a client's JSON."""

from __future__ import annotations

from detector.observation import RequestFacts

_MEMBER = b'"return_token_ids":true,'


def ask_token_ids(body: bytes, facts: RequestFacts) -> bytes | None:
    """``body`` with ``return_token_ids``; None where there is nothing to ask.

    That is: no stream of one chat or completion; the client sets it itself; or it asks for ``echo``, which vLLM shows
    without the prompt's text then.
    """
    if not facts.stream or facts.n != 1 or facts.route not in ("chat", "completions"):
        return None
    if b'"return_token_ids"' in body or b'"echo"' in body:
        return None
    begin = body.find(b"{") + 1
    return body[:begin] + _MEMBER + body[begin:] if begin else None


def client_asks_token_ids(body: bytes) -> bool:
    """Whether the client may have asked for token ids itself: then they are passed on."""
    return b'"return_token_ids"' in body
