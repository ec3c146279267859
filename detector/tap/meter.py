"""The meter: from the bytes of one answer and their times to its Observation.

Where A and the rates come from, and what makes them None, is in ``acceptance``. The first content event is the token of
the prefill; every other one is a verify step, unless the stream says that it brought no token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from detector.observation import Ending, Observation, Quality, RequestFacts, SpeculationCounts, Step
from detector.tap.acceptance import Answer, acceptance, figures
from detector.tap.body import BodyReader
from detector.tap.dialects import Event, read_event
from detector.tap.plain import PlainEvents
from detector.tap.sse import EventFramer
from detector.tap.tally import StreamTally

MAX_UNDRAINED_STEPS: Final = 4096
"""Steps kept for ``drain_steps``; of more the oldest are lost."""
_ENDS_WITH_A_REASON: Final = ("chat", "completions", "responses", "messages")


class Meter:
    """Measures one answer: feed it in the order of arrival, with the time at which each piece arrived, then ``finish``.

    ``num_speculative_tokens`` is K of the backend, if it is known when the request begins: only with it can an event be
    seen to hold more than one step.
    Memory is constant: a bounded event, a bounded body, bounded undrained steps. Nothing that an engine sends raises.
    """

    def __init__(
        self,
        facts: RequestFacts,
        *,
        request_id: str,
        backend: str,
        generation: int,
        started: float,
        started_unix: float,
        canary: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> None:
        self._facts = facts
        self._request_id = request_id
        self._backend = backend
        self._generation = generation
        self._started = started
        self._started_unix = started_unix
        self._canary = canary
        self._sent: float | None = None
        self._status: int | None = None
        self._in_flight = 1
        self._framer: EventFramer | None = None
        self._plain = PlainEvents()
        self._body: BodyReader | None = None
        self._last_piece_at = started
        self._tally = StreamTally()
        self._steps: deque[Step] = deque(maxlen=MAX_UNDRAINED_STEPS)
        self._answer = Answer(
            facts=facts,
            tally=self._tally,
            several_choices=facts.n > 1,
            num_speculative_tokens=num_speculative_tokens,
        )
        self._prompt_tokens: int | None = None
        self._cached_tokens: int | None = None
        self._finish_reason: str | None = None
        self._error = False
        self._done = False

    # ---- what happens to the answer ----------------------------------------------------------------------------------

    def sent(self, at: float) -> None:
        """The request went to the backend."""
        self._sent = at

    def head(self, at: float, status: int, content_type: str, content_encoding: str = "") -> None:
        """The response head is there. A body in a content coding is not read: of it nothing is known but its times."""
        self._status = status
        self._last_piece_at = at
        if content_encoding.strip().lower() not in ("", "identity"):
            return
        if content_type.strip().lower().startswith("text/event-stream"):
            self._framer = EventFramer()
        else:
            self._body = BodyReader()

    def feed(self, at: float, payload: bytes) -> None:
        """A piece of the body as the engine sent it, transfer coding removed, and when it arrived."""
        self.feed_pieces(((at, payload),))

    def feed_pieces(self, pieces: Iterable[tuple[float, bytes]]) -> None:
        """Several pieces in their order, each with the time at which it arrived."""
        framer, plain = self._framer, self._plain
        for at, payload in pieces:
            self._last_piece_at = at
            if framer is None:
                if self._body is not None:
                    self._body.feed(payload)
            elif framer.idle and plain.matches(payload):
                self._step(Step(at, None))
                self._answer.completion_tokens = None
                self._answer.parsed = self._answer.parsed or plain.event.parsed
            else:
                for data in framer.feed(payload):
                    event = read_event(data)
                    self.event(at, event)
                    plain.learn(payload, data, event)

    def event(self, at: float, event: Event) -> None:
        """One event of the stream."""
        tokens = self._count(event)
        if (event.kind == "content" and tokens != 0) or (tokens and event.kind in ("role", "other")):
            self._step(Step(at, tokens))
        if event.parsed:
            self._answer.parsed = True
        if not event.plain:
            self._note(event)

    def paused(self, start: float, end: float) -> None:
        """Reading from the engine was stopped, because the client did not read."""
        self._answer.paused_seconds += max(0.0, end - start)

    def concurrency(self, n: int) -> None:
        """So many requests are in flight on this backend now, this one included."""
        self._in_flight = max(self._in_flight, n)

    def end(self) -> None:
        """No more of the body will come: read what is left of it. ``finish`` does it too."""
        if self._framer is not None:
            for data in self._framer.end():
                self.event(self._last_piece_at, read_event(data))
            self._answer.oversized_events = self._framer.oversized_events
        elif self._body is not None:
            self._note(self._body.read())
            self._body = None

    # ---- what is known of it -----------------------------------------------------------------------------------------

    @property
    def completion_tokens(self) -> int | None:
        """Tokens generated so far, as the answer tells."""
        return self._answer.completion_tokens

    @property
    def needs_counters(self) -> bool:
        """A difference of the engine's counters would tell more than the answer does. Ask after ``end``."""
        if not self._answer.completion_tokens:
            return False
        measured = acceptance(self._answer)
        return measured is None or measured.quality is Quality.UPPER_BOUND

    def drain_steps(self) -> list[Step]:
        """The content events since the last call, the prefill's first event included."""
        steps = list(self._steps)
        self._steps.clear()
        return steps

    def finish(
        self,
        at: float,
        ending: Ending,
        *,
        counters: SpeculationCounts | None = None,
        num_speculative_tokens: int | None = None,
        counted_decode_seconds: float | None = None,
    ) -> Observation:
        """The answer has ended as the transport tells; what it turned out to be.

        ``counters`` and ``counted_decode_seconds`` are differences of ``/metrics`` over a request that ran alone,
        ``num_speculative_tokens`` is K of the backend where it became known since the request began.
        """
        self.end()
        answer = self._answer
        answer.counters = counters
        answer.counted_decode_seconds = counted_decode_seconds
        if num_speculative_tokens is not None:
            answer.num_speculative_tokens = num_speculative_tokens
        return self._observation(at, self._ending(ending))

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        self._tally.add(step)
        self._steps.append(step)

    def _count(self, event: Event) -> int | None:
        """Tokens of this event, where the stream tells them for every event so far."""
        answer, total, listed = self._answer, event.completion_tokens, event.token_ids
        if listed is not None and event.kind == "content":
            self._tally.listed_events += 1
        if total is None:
            if listed is not None and not self._tally.uncounted_events:
                answer.completion_tokens = (answer.completion_tokens or 0) + listed
            elif event.kind == "content":
                answer.completion_tokens = None
            return listed
        before, answer.completion_tokens = answer.completion_tokens or 0, total
        if self._tally.uncounted_events or total < before:
            return None
        return total - before

    def _note(self, event: Event) -> None:
        """Everything that is not a step."""
        answer = self._answer
        if event.choices not in ((), (0,)):
            answer.several_choices = True
        if event.finish_reason is not None and self._finish_reason != "abort":
            self._finish_reason = event.finish_reason
        if event.completion_tokens is not None:
            answer.completion_tokens = event.completion_tokens
        if event.prompt_tokens is not None:
            self._prompt_tokens = event.prompt_tokens
        if event.cached_tokens is not None:
            self._cached_tokens = event.cached_tokens
        if event.speculation is not None:
            answer.speculation, answer.speculation_trimmed = event.speculation, event.speculation_trimmed
        if event.generation_seconds is not None:
            answer.generation_seconds = event.generation_seconds
        self._error = self._error or event.kind == "error"
        self._done = self._done or event.kind == "done"

    def _ending(self, ending: Ending) -> Ending:
        """What the answer itself says of its end: HTTP may call complete what the engine gave up."""
        if ending is not Ending.COMPLETE or self._status is None or not 200 <= self._status < 300:
            return ending
        if self._error:
            return Ending.ENGINE_ERROR
        if self._finish_reason == "abort":
            return Ending.ENGINE_ABORT
        ended = self._finish_reason is not None or self._done
        if self._framer is not None and not ended and self._facts.route in _ENDS_WITH_A_REASON:
            return Ending.UPSTREAM_CLOSED
        return ending

    def _observation(self, at: float, ending: Ending) -> Observation:
        answer, tally = self._answer, self._tally
        streamed = tally.events > 0
        return Observation(
            request_id=self._request_id,
            backend=self._backend,
            generation=self._generation,
            facts=self._facts,
            started_unix=self._started_unix,
            started=self._started,
            sent=self._sent,
            ended=at,
            status=self._status,
            ending=ending,
            canary=self._canary,
            ttft_seconds=tally.first_at - self._started if streamed else None,
            decode_seconds=tally.last_at - tally.first_at if streamed else None,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            finish_reason=self._finish_reason,
            content_events=tally.events if self._framer is not None else None,
            client_paced=answer.client_paced,
            in_flight=self._in_flight,
            **figures(answer),
        )
