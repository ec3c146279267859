"""The truth about what the emulator served, for tests to compare measurements against."""

from __future__ import annotations

from collections import deque

import msgspec

from detector.verdict import Phase

from .engine import EngineRequest, FinishReason

KEPT_REQUESTS = 10_000


class ServedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request (one choice, if it asked for several) that ended. Times are engine seconds."""

    index: int
    """Place in the order of arrival at the engine, from 0."""
    request_id: str
    content: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    verify_steps: int
    accepted_tokens: int
    drafted_tokens: int
    accepted_per_step: tuple[int, ...]
    phases: tuple[Phase, ...]
    """Phases it decoded in, in order of appearance; more than one: the engine changed while it ran."""
    first_collapsed_step: int | None
    """Its verify step at which the engine was first collapsed."""
    finish_reason: FinishReason | None
    queued_at: float
    first_token_at: float | None
    last_token_at: float | None
    ended_at: float

    @property
    def acceptance_length(self) -> float | None:
        """A: mean tokens per verify step, before the last step is cut at max_tokens; None without speculation."""
        return 1.0 + self.accepted_tokens / self.verify_steps if self.verify_steps else None

    @property
    def decode_seconds(self) -> float | None:
        """From the first token to the last."""
        if self.first_token_at is None or self.last_token_at is None:
            return None
        return self.last_token_at - self.first_token_at

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens after the first, per second after the first."""
        seconds = self.decode_seconds
        return (self.completion_tokens - 1) / seconds if seconds else None


class EngineLog:
    """The last KEPT_REQUESTS served requests, oldest first."""

    def __init__(self) -> None:
        self.served: deque[ServedRequest] = deque(maxlen=KEPT_REQUESTS)

    def add(self, request: EngineRequest, now: float) -> None:
        """Note a request that ended now."""
        self.served.append(
            ServedRequest(
                index=request.index,
                request_id=request.request_id,
                content=request.content,
                prompt_tokens=len(request.prompt),
                cached_tokens=request.cached_tokens,
                completion_tokens=len(request.tokens),
                verify_steps=len(request.accepted_per_step),
                accepted_tokens=sum(request.accepted_per_step),
                drafted_tokens=sum(request.drafted_per_step),
                accepted_per_step=tuple(request.accepted_per_step),
                phases=tuple(request.phases),
                first_collapsed_step=request.first_collapsed_step,
                finish_reason=request.finish_reason,
                queued_at=request.queued_at,
                first_token_at=request.first_token_at,
                last_token_at=request.last_token_at,
                ended_at=now,
            )
        )
