"""How an answer leaves: one chunk per event, or one body; and what happens when the client or the engine goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from aiohttp import web

from .errors import ApiError, server_error, unknown_model
from .host import EngineHost, new_request_id
from .job import Job
from .limits import check_limits
from .output import ChoiceOutput, EngineDeadError, EngineUnavailableError
from .request import GenerationRequest

DONE = b"data: [DONE]\n\n"


class AnswerStream(Protocol):
    """The bytes of one streamed answer."""

    def events(self, outputs: list[ChoiceOutput]) -> Iterator[bytes]:
        """Events for what the engine has."""

    def tail(self) -> Iterator[bytes]:
        """What follows the last content, before the end mark."""


def check_model(host: EngineHost, model: str | None) -> None:
    """Raise ApiError if another model was asked for; none at all means the one that is served."""
    profile = host.profile
    if model and model != profile.model:
        raise unknown_model(model, profile.model, aliases=profile.modern)


def submit(host: EngineHost, http_request: web.Request, request: GenerationRequest, prefix: str) -> Job:
    """Give the request to the engine. Raises ApiError."""
    check_model(host, request.model)
    check_limits(request, host.scenario)
    try:
        return host.submit(request, new_request_id(prefix, http_request.headers.get("X-Request-Id")))
    except EngineUnavailableError as error:
        raise server_error(str(error)) from error


async def respond_whole(
    host: EngineHost, job: Job, render: Callable[[Job, list[ChoiceOutput]], bytes]
) -> web.StreamResponse:
    """Wait for the answer and send it as one body; a client that goes meanwhile cancels it. Raises ApiError."""
    try:
        outputs = await job.collector.get()
    except EngineDeadError as error:
        raise server_error(str(error)) from error
    finally:
        host.runner.cancel(job.streams)
    return web.Response(body=render(job, outputs), content_type="application/json")


async def respond_stream(
    host: EngineHost,
    http_request: web.Request,
    job: Job,
    stream: AnswerStream,
    *,
    end: bytes = DONE,
    error_event: Callable[[ApiError], bytes] = lambda error: error.event,
) -> web.StreamResponse:
    """Send events as the engine makes them. The response begins at once and stays 200, whatever comes."""
    response = web.StreamResponse()
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    collector = job.collector

    async def send(event: bytes) -> None:
        collector.writing = True
        await response.write(event)
        collector.writing = False

    try:
        await response.prepare(http_request)
        try:
            while outputs := await collector.get():
                for event in stream.events(outputs):
                    await send(event)
            for event in stream.tail():
                await send(event)
        except EngineDeadError as error:
            await send(error_event(server_error(str(error))))
        if end:
            await send(end)
        await response.write_eof()
    except ConnectionResetError:
        return response  # the client is gone: nobody is left to tell
    finally:
        host.runner.cancel(job.streams)
    return response
