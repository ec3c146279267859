"""Routes that generate: chat, completions, responses, messages."""

from __future__ import annotations

from aiohttp import web

from . import wire_messages, wire_responses
from .answer import check_model, respond_stream, respond_whole, submit
from .body import Body, parse_json
from .errors import ApiError, wrong_content_type
from .host import EngineHost
from .request import parse_chat, parse_completion
from .wire_chat import ChatStream, chat_response
from .wire_completions import CompletionStream, completion_response

SCALE_OUT_ROUTES = ("/inference/v1/generate", "/v1/chat/completions/render", "/v1/completions/render")


def add_routes(app: web.Application, host: EngineHost) -> None:
    """Add them to the application."""

    async def chat(http_request: web.Request) -> web.StreamResponse:
        body = await read_json(http_request)
        request = parse_chat(body, tool_parser=host.profile.tool_parser)
        job = submit(host, http_request, request, "chatcmpl-")
        if request.stream:
            return await respond_stream(host, http_request, job, ChatStream(job))
        return await respond_whole(host, job, chat_response)

    async def complete(http_request: web.Request) -> web.StreamResponse:
        request = parse_completion(await read_json(http_request))
        job = submit(host, http_request, request, "cmpl-")
        if request.stream:
            return await respond_stream(host, http_request, job, CompletionStream(job))
        return await respond_whole(host, job, completion_response)

    async def invocations(http_request: web.Request) -> web.StreamResponse:
        """SageMaker's route: chat or completions by what the body holds."""
        return await (chat if "messages" in await read_json(http_request) else complete)(http_request)

    for path in SCALE_OUT_ROUTES:
        app.router.add_route("POST", path, _scale_out_disabled)
    _add_responses(app, host)
    _add_messages(app, host)
    app.router.add_route("POST", "/v1/chat/completions", chat)
    app.router.add_route("POST", "/v1/completions", complete)
    app.router.add_route("POST", "/invocations", invocations)


def _add_responses(app: web.Application, host: EngineHost) -> None:
    async def respond(http_request: web.Request) -> web.StreamResponse:
        body = wire_responses.chat_body(await read_json(http_request))
        request = parse_chat(body, tool_parser=False)
        job = submit(host, http_request, request, "resp_")
        if not request.stream:
            return await respond_whole(host, job, wire_responses.response_body)
        stream = wire_responses.ResponsesStream(job)
        return await respond_stream(host, http_request, job, stream, end=b"", error_event=wire_responses.error_event)

    app.router.add_route("POST", "/v1/responses", respond)


def _add_messages(app: web.Application, host: EngineHost) -> None:
    async def messages(http_request: web.Request) -> web.StreamResponse:
        body = wire_messages.chat_body(await read_json(http_request))
        try:
            request = parse_chat(body, tool_parser=False)
            job = submit(host, http_request, request, "chatcmpl-")
            if not request.stream:
                return await respond_whole(host, job, wire_messages.message_response)
        except ApiError as error:
            body_bytes = wire_messages.error_body(error)
            return web.Response(body=body_bytes, status=error.status, content_type="application/json")
        stream = wire_messages.MessagesStream(job)
        return await respond_stream(host, http_request, job, stream, end=b"", error_event=wire_messages.error_event)

    async def count_tokens(http_request: web.Request) -> web.StreamResponse:
        body = await read_json(http_request)
        request = parse_chat(wire_messages.chat_body(body | {"max_tokens": 1}), tool_parser=False)
        check_model(host, request.model)
        return web.Response(body=wire_messages.counted(request), content_type="application/json")

    app.router.add_route("POST", "/v1/messages", messages)
    app.router.add_route("POST", "/v1/messages/count_tokens", count_tokens)


async def _scale_out_disabled(_request: web.Request) -> web.StreamResponse:
    message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
    raise ApiError(message, status=403, kind="PermissionDeniedError")


async def read_json(http_request: web.Request) -> Body:
    """The JSON object of the request's body. Raises ApiError."""
    if http_request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise wrong_content_type()
    return parse_json(await http_request.read())
