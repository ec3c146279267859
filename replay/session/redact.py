"""What of a request may reach the disk: lengths, keyed hashes or text, by the session's content mode."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any
from urllib.parse import urlsplit

import msgspec

from replay.session.schema import Backend, ContentMode, Prompt, PromptPart

BLOCK_CHARACTERS = 64
"""Length of a hashed block: about 16 tokens, the block size of vLLM's KV cache."""

PARAMETERS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", "stream", "echo", "use_beam_search"),
        *(
            "max_tokens",
            "max_completion_tokens",
            "max_output_tokens",
            "min_tokens",
            "ignore_eos",
            "truncate_prompt_tokens",
        ),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty"),
        *("logprobs", "top_logprobs", "prompt_logprobs", "parallel_tool_calls", "add_generation_prompt"),
    }
)
"""Body keys whose numbers and truth values are stored in every content mode."""

ROLES = frozenset(
    {
        *("system", "developer", "user", "assistant", "tool", "function"),
        *("message", "reasoning", "function_call", "function_call_output"),
    }
)
"""Roles (and item types of ``/v1/responses``) that are stored as they are; any other is stored as ``other``."""


class Redactor:
    """Turns bodies and URLs into what a session file may hold.

    The key of the hashes lives in this object only, so nobody can test a guessed prompt or host against a file.
    """

    def __init__(self, mode: ContentMode = ContentMode.NONE) -> None:
        self.mode = mode
        self._key = secrets.token_bytes(32)

    def backend(self, name: str, url: str, engine_version: str | None = None) -> Backend:
        """Return a header's entry for the backend at ``url``. Raises ValueError if its port is not a number."""
        parts = urlsplit(url)
        host = f"{parts.hostname}:{parts.port}".encode()
        return Backend(name=name, host_hash=self._hash(host), engine_version=engine_version)

    def prompt(self, body: bytes) -> Prompt | None:
        """Return what may be stored of a request's body; None if it is not a JSON object. Raises nothing."""
        try:
            tree = msgspec.json.decode(body)
            texts = _texts(tree) if isinstance(tree, dict) else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if texts is None:
            return None
        return Prompt(
            parts=tuple(PromptPart(role, len(text)) for role, text in texts),
            parameters={
                name: value for name, value in tree.items() if name in PARAMETERS and isinstance(value, int | float)
            },
            block_hashes=self._block_hashes(texts) if self.mode is ContentMode.HASH else None,
            body=body.decode() if self.mode is ContentMode.TEXT else None,
        )

    def _block_hashes(self, texts: list[tuple[str, str]]) -> tuple[str, ...]:
        whole = "".join(f"{role}\x00{text}\x00" for role, text in texts)
        hashes: list[str] = []
        for start in range(0, len(whole) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
            block = whole[start : start + BLOCK_CHARACTERS].encode(errors="surrogatepass")
            hashes.append(self._hash((hashes[-1].encode() if hashes else b"") + block))
        return tuple(hashes)

    def _hash(self, data: bytes) -> str:
        return hashlib.blake2b(data, key=self._key, digest_size=8).hexdigest()


def _texts(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (role, text) of everything that becomes prompt, in the order of a chat template."""
    texts = [(role, _text(body[role])) for role in ("tools", "system", "instructions") if body.get(role)]
    for key in ("messages", "input", "prompt"):
        value = body.get(key)
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            texts.extend(_message(item) for item in value)
        elif value is not None:
            texts.append((key, _text(value)))
    return texts


def _message(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict):
        return "other", _text(item)
    role = item.get("role") or item.get("type")
    rest = {name: value for name, value in item.items() if name not in ("role", "content")}
    text = _text(item["content"]) if item.get("content") is not None else ""
    known_role = role if isinstance(role, str) and role in ROLES else "other"
    return known_role, text + (_json(rest) if rest else "")


def _text(value: Any) -> str:
    """Return a content value as text: strings as they are, parts joined, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], str | dict):
        return "".join(_text(item) for item in value)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    return _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
