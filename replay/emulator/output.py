"""From an engine's tokens to what a consumer picks up: text, stop strings, stream_interval, merging when it lags."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from .engine import EngineRequest, FinishReason
from .text import SPECIAL_TOKENS, TURN_END, VOCABULARY, decode

_LONGEST_CHARACTER = 4


class EngineUnavailableError(Exception):
    """The engine takes no request; the message is what the client is told."""


class EngineDeadError(EngineUnavailableError):
    """The engine behind the server died."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


@dataclass(kw_only=True)
class ChoiceOutput:
    """News of one choice since its last news; several steps, if the consumer lagged."""

    choice: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    first_position: int
    """Place of the first token among the tokens of the prompt and the answer."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def merge(self, later: ChoiceOutput) -> None:
        """Append what came after."""
        self.text += later.text
        self.tokens += later.tokens
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason


class Detokenizer:
    """Text of one choice, piece by piece, with stop strings cut out and held back while they may still be forming.

    A prompt that ends inside a character comes out again with that character, as tokenizers' ``DecodeStream`` has it.
    """

    def __init__(
        self, stop: Sequence[str], *, include_stop: bool = False, min_tokens: int = 0, prompt: Sequence[int] = ()
    ) -> None:
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._held_back = 0 if include_stop or not stop else max(map(len, stop)) - 1
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._repeated = ""
        if prompt and decode(prompt[-_LONGEST_CHARACTER:]).endswith("\ufffd"):
            shown = [VOCABULARY[token] for token in prompt if token >= len(SPECIAL_TOKENS)]
            self._repeated = self._decoder.decode(b"".join(shown))
        self._text = ""
        self._sent = 0
        self._tokens = 0

    def update(self, tokens: Sequence[int], *, finished: bool) -> tuple[str, str | None]:
        """New text to send for these tokens, and the stop string they completed, if any."""
        self._tokens += len(tokens)
        shown = [VOCABULARY[token] for token in tokens if token >= len(SPECIAL_TOKENS)]
        before = len(self._text)
        piece = self._decoder.decode(b"".join(shown), final=finished)
        if self._repeated and piece:
            piece, self._repeated = self._repeated + piece, ""
        self._text += piece
        stopped = self._find_stop(before) if self._tokens > self._min_tokens else None
        end = len(self._text) if finished or stopped else len(self._text) - self._held_back
        delta = self._text[self._sent : max(end, self._sent)]
        self._sent = max(end, self._sent)
        return delta, stopped

    def _find_stop(self, before: int) -> str | None:
        found = [
            (at, stop) for stop in self._stop if (at := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        at, stop = min(found)
        self._text = self._text[: at + len(stop) if self._include_stop else at]
        return stop


class OutputCollector:
    """What the engine has for the consumer of one API request and the consumer has not taken yet.

    It holds one piece of news per choice: the news of later steps is merged into it, as vLLM does, so that a slow
    reader sees fewer, larger events.
    """

    def __init__(self, choices: int, *, final_only: bool) -> None:
        self._final_only = final_only
        self._unfinished = choices
        self._pending: dict[int, ChoiceOutput] = {}
        self._error: EngineDeadError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False
        self.writing = False
        """The consumer is inside a write. Seen from another task, that means its client does not read."""

    @property
    def untaken(self) -> bool:
        """Whether the consumer could take something and is not held up by its client."""
        return self._ready() and not self.closed and not self.writing

    def _ready(self) -> bool:
        if self._error is not None:
            return True
        return bool(self._pending) and not (self._final_only and self._unfinished)

    def put(self, output: ChoiceOutput) -> None:
        """Add news; never waits."""
        known = self._pending.get(output.choice)
        if known is None:
            self._pending[output.choice] = output
        else:
            known.merge(output)
        if output.finish_reason is not None:
            self._unfinished -= 1
        self._wake()

    def fail(self, error: EngineDeadError) -> None:
        """Tell the consumer that no more will come."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done() and self._ready():
            self._waiter.set_result(None)

    async def get(self) -> list[ChoiceOutput]:
        """All news since the last call; empty when every choice has finished. Raises EngineDeadError."""
        if not self._unfinished and not self._pending:
            return []
        while not self._ready():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        news = list(self._pending.values())
        self._pending = {}
        return news


class ChoiceStream:
    """One choice on its way from the engine to its collector."""

    def __init__(
        self, request: EngineRequest, choice: int, collector: OutputCollector, detokenizer: Detokenizer, interval: int
    ) -> None:
        self.request = request
        self.collector = collector
        self._choice = choice
        self._detokenizer = detokenizer
        self._interval = interval
        self._held: ChoiceOutput | None = None
        self._sent_any = False

    def deliver(self, tokens: list[int]) -> str | None:
        """Hand over a step's tokens. Returns the stop string they completed: the engine should then end the request."""
        request = self.request
        ended_by_token = request.finish_reason is FinishReason.STOP and tokens and tokens[-1] != TURN_END
        shown = tokens[:-1] if ended_by_token else tokens
        text, stop = self._detokenizer.update(shown, finished=request.finish_reason is not None)
        output = ChoiceOutput(
            choice=self._choice,
            text=text,
            tokens=tokens,
            first_position=request.context_tokens - len(tokens),
            finish_reason=FinishReason.STOP if stop is not None else request.finish_reason,
            stop_reason=stop if stop is not None else request.stop_reason,
        )
        self._put(output)
        return stop

    def abort(self) -> None:
        """End the choice with ``finish_reason: "abort"``, as a dying engine does."""
        held_back, _ = self._detokenizer.update((), finished=True)
        output = ChoiceOutput(
            choice=self._choice,
            text=held_back,
            first_position=self.request.context_tokens,
            finish_reason=FinishReason.ABORT,
        )
        self._put(output)

    def _put(self, output: ChoiceOutput) -> None:
        if self._held is not None:
            self._held.merge(output)
            output = self._held
        due = output.finish_reason is not None or not self._sent_any or len(output.tokens) >= self._interval
        self._held = None if due else output
        if due:
            self._sent_any = True
            self.collector.put(output)
