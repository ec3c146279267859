"""A running answer goes on elsewhere: when its engine dies or hangs in the middle, or when the policy says so.

What is faithful and how it is asked for is decided in ``detector.continuation``; here are the waiting, the other
engine's connection, and the books. Nothing runs and nothing is kept where continuation is off or there is no other
backend.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from detector.continuation.ask import ask_token_ids, client_asks_token_ids
from detector.continuation.handover import Handover, Refused, Way, hand_over, keeps_text
from detector.continuation.keeper import Keeper
from detector.continuation.stitch import Stitcher
from detector.observation import Ending, RequestFacts
from proxy import config
from proxy.metrics import Metrics
from proxy.recording import Recording

if TYPE_CHECKING:
    from proxy.answer import EventFilter
    from proxy.forward import Exchange
    from proxy.upstream import Backend, UpstreamConnection

REFUSED_CODE: Final = "continuation_refused"
FAILED_CODE: Final = "continuation_failed"
_UNUSABLE: Final = (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError)

log = logging.getLogger("specbreaker.continuation")


class Broken(msgspec.Struct, frozen=True):
    """How an answer broke off, in the words of the error that the client gets unless it goes on."""

    status: int
    message: str
    kind: str
    ending: Ending
    code: str | None = None
    retry_after_seconds: int | None = None

    def because(self, refused: Refused, code: str) -> Broken:
        """The same, with why it does not go on."""
        return msgspec.structs.replace(self, message=f"{self.message}; not continued: {refused.message}", code=code)


class Prepared(msgspec.Struct, frozen=True):
    """All that is needed to go on: nothing more has to be waited for."""

    backend: Backend
    connection: UpstreamConnection
    handover: Handover


class Continuations:
    """What all exchanges share."""

    def __init__(
        self, settings: config.Config, session: aiohttp.ClientSession, metrics: Metrics, recording: Recording
    ) -> None:
        self.settings = settings.continuation
        self.count_steps = settings.measure.ask_token_counts or settings.continuation.on_collapse
        """The measurement gets the token ids: they count the tokens of each event."""
        self.session = session
        self._metrics = metrics
        self._recording = recording

    def begin(self, facts: RequestFacts, body: bytes, sent_body: bytes) -> RunningAnswer | None:
        """Called by the hot path for a measurable request that another backend could take over. None: not this one.

        ``sent_body`` is the request with what the proxy asks for already.
        """
        if not self.settings.enabled or not facts.stream or facts.route not in ("chat", "completions"):
            return None
        return RunningAnswer(self, facts, body, sent_body)

    def book_sent_again(self, source: str, reason: str, target: str) -> None:
        """A whole request went to another backend."""
        self.book(source, target, reason, "sent_again", {"way": Way.AGAIN.value})

    def book(self, source: str, target: str, reason: str, result: str, fields: dict[str, Any]) -> None:
        """Count and record how a continuation ended."""
        self._metrics.continuation(source, target, reason, result)
        self._recording.event("continuation", source, {"to": target, "reason": reason, "result": result} | fields)


class RunningAnswer:
    """One answer that may go on elsewhere."""

    def __init__(self, shared: Continuations, facts: RequestFacts, body: bytes, sent_body: bytes) -> None:
        asking = ask_token_ids(sent_body, facts)
        self.sent_body = sent_body if asking is None else asking
        """The request as the engine gets it."""
        self.facts = facts
        self.times = 0
        """How often it went on elsewhere."""
        self._shared = shared
        self._client_wants_ids = client_asks_token_ids(body)
        self.asks_token_ids = asking is not None
        """The request holds a member that the client's own did not."""
        self._keeps_text = keeps_text(sent_body)
        self.keeper = self._new_keeper()
        self._under_way: tuple[str, str, str, Handover] | None = None

    def _new_keeper(self) -> Keeper:
        return Keeper(
            asked=self.asks_token_ids,
            keep_text=self._keeps_text,
            max_tokens=self._shared.settings.max_kept_tokens,
            measured_unfiltered=self._shared.count_steps,
        )

    def take_over(self, exchange: Exchange, broken: Broken) -> None:
        """The engine failed this answer in the middle: continue it elsewhere, or end it with an error that says why."""
        self.ended(broken.ending)
        exchange.leave_backend(broken.ending)
        if self.times >= self._shared.settings.max_per_answer:
            code = FAILED_CODE if self.times else REFUSED_CODE
            self._refuse(exchange, broken, Refused("budget"), code)
            return
        exchange.wait_for(self._go_on(exchange, broken))

    async def _go_on(self, exchange: Exchange, broken: Broken) -> None:
        try:
            prepared = await self.prepare(exchange)
            if not isinstance(prepared, Refused):
                self.begin_again(exchange, prepared, broken.ending.value)
                return
        except Exception:
            log.exception("request %s could not go on elsewhere", exchange.request.request_id)
            prepared = Refused("failed")
        self._refuse(exchange, broken, prepared, REFUSED_CODE)

    async def move(self, exchange: Exchange, reason: str) -> None:
        """Leave a backend that still answers. Where that cannot be done, the answer goes on where it is."""
        exchange.hold(True)
        try:
            prepared = await self.prepare(exchange)
        except Exception:
            log.exception("request %s could not be moved", exchange.request.request_id)
            prepared = Refused("failed")
        if isinstance(prepared, Refused):
            self._book_refusal(exchange, prepared, reason)
            exchange.hold(False)
            return
        exchange.leave_backend(Ending.CLIENT_GONE)
        self.begin_again(exchange, prepared, reason)

    def may_move(self) -> bool:
        """The policy may ask for a move: this answer has begun, and was not moved too often."""
        return self.keeper.passed_any and not self.keeper.finished and self.times < self._shared.settings.max_per_answer

    def begin_again(self, exchange: Exchange, prepared: Prepared, reason: str) -> None:
        """Send the request of the continuation."""
        self.times += 1
        handover, source = prepared.handover, exchange.backend.name if exchange.backend is not None else "none"
        self._under_way = (source, prepared.backend.name, reason, handover)
        log.info("request %s goes on on %s: %s", exchange.request.request_id, prepared.backend.name, reason)
        exchange.go_on(
            prepared, handover.path(exchange.request.target), handover.request_body(), self._events(handover)
        )

    def _events(self, handover: Handover) -> EventFilter:
        if handover.way is Way.AGAIN:
            self.keeper = self._new_keeper()
            return self.keeper
        return Stitcher(handover, client_wants_ids=self._client_wants_ids)

    def ended(self, ending: Ending) -> None:
        """The answer, or its part on one backend, is over."""
        if self._under_way is None:
            return
        (source, target, reason, handover), self._under_way = self._under_way, None
        result = {Ending.COMPLETE: "completed", Ending.CLIENT_GONE: "client_gone"}.get(ending, "failed")
        fields = {"way": handover.way.value, "tokens": handover.kept_tokens, "ending": ending.value}
        self._shared.book(source, target, reason, result, fields)

    def _refuse(self, exchange: Exchange, broken: Broken, refused: Refused, code: str) -> None:
        self._book_refusal(exchange, refused, broken.ending.value)
        exchange.end_with(broken.because(refused, code))

    def _book_refusal(self, exchange: Exchange, refused: Refused, reason: str) -> None:
        source = exchange.backend.name if exchange.backend is not None else "none"
        log.info("request %s does not go on elsewhere: %s", exchange.request.request_id, refused.reason)
        self._shared.book(source, "none", reason, "refused", {"why": refused.reason})

    # ---- what has to be waited for -----------------------------------------------------------------------------------

    async def prepare(self, exchange: Exchange) -> Prepared | Refused:
        """Ask the next backend what has to be known, and connect to it."""
        outcome: Prepared | Refused = Refused("no_backend")
        for backend in exchange.gateway.candidates(self.facts, None):
            if backend is exchange.backend or backend.away is not None:
                continue
            handover = hand_over(self.facts.route, self.sent_body, self.keeper)
            if isinstance(handover, Refused):
                return handover
            try:
                refused = await self._settle(handover, backend, exchange)
                outcome = refused or Prepared(backend, await backend.connect(), handover)
            except _UNUSABLE as error:
                log.info("backend %s cannot take an answer over: %s", backend.name, error or type(error).__name__)
                outcome = Refused("no_backend", f"{backend.name} cannot be asked")
            if isinstance(outcome, Prepared):
                break
        return outcome

    async def _settle(self, handover: Handover, backend: Backend, exchange: Exchange) -> Refused | None:
        while (question := handover.question) is not None:
            asked = question | {"model": backend.own_name(self.facts.model)} if "model" in question else question
            answer = await self._ask(backend, exchange, "POST", "/detokenize", asked)
            refused = handover.learn(str(answer["prompt"]))
            if refused is not None:
                return refused
        if handover.shows_tokens_twice:
            return Refused("half_character")
        if handover.needs_context_length:
            models = (await self._ask(backend, exchange, "GET", "/v1/models", None))["data"]
            named = [one for one in models if backend.own_name(self.facts.model) in (None, one["id"])]
            return handover.learn_context_length(named[0].get("max_model_len"))
        return None

    async def _ask(self, backend: Backend, exchange: Exchange, method: str, path: str, body: Any) -> Any:
        """A small question to the other engine. Raises what ``_UNUSABLE`` lists."""
        key = exchange.authorization_for(backend)
        headers = {"authorization": key.decode("latin-1")} if key is not None else {}
        limit = aiohttp.ClientTimeout(total=backend.settings.connect_timeout_seconds)
        url = backend.base_url + path
        async with self._shared.session.request(method, url, json=body, headers=headers, timeout=limit) as response:
            response.raise_for_status()
            return await response.json()


def forget_errors(task: asyncio.Task[None]) -> None:
    """Log what a task of an exchange ended with, once, instead of at its garbage collection."""
    if not task.cancelled() and task.exception() is not None:
        log.error("a continuation could not be carried out", exc_info=task.exception())
