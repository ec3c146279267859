"""Routes that do not generate: models, tokenizer, health, load, version, metrics, uploads, realtime."""

from __future__ import annotations

import time
from uuid import uuid4

from aiohttp import BodyPartReader, WSMsgType, web

from .answer import check_model
from .body import check_integers
from .errors import ApiError, invalid_body, missing_field, schema_mismatch
from .host import EngineHost
from .job import encode_json
from .metrics import CONTENT_TYPE
from .request import chat_prompt
from .routes_generate import read_json
from .runner import EngineState
from .text import VOCABULARY_SIZE, decode, encode, token_text


def add_routes(app: web.Application, host: EngineHost) -> None:
    """Add them to the application."""
    add = app.router.add_route

    async def health(_request: web.Request) -> web.Response:
        return web.Response(status=503 if host.runner.state is EngineState.DEAD else 200)

    async def ping(_request: web.Request) -> web.Response:
        return web.Response(status=503 if host.runner.state is EngineState.DEAD else 200)

    async def metrics(_request: web.Request) -> web.Response:
        body = host.metrics.render(host.runner.sleep_level)
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE})

    async def load(_request: web.Request) -> web.Response:
        return json_response({"server_load": 0})

    async def version(_request: web.Request) -> web.Response:
        return json_response({"version": host.profile.version})

    async def models(_request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [_model_card(host)]})

    async def openapi(_request: web.Request) -> web.Response:
        return json_response(_openapi(app))

    add("GET", "/health", health)
    add("GET", "/ping", ping)
    add("POST", "/ping", ping)
    add("GET", "/metrics", metrics)
    add("GET", "/metrics/", metrics)
    add("GET", "/load", load)
    add("GET", "/version", version)
    add("GET", "/v1/models", models)
    add("GET", "/openapi.json", openapi)
    _add_tokenizer(app, host)
    add("POST", "/v1/audio/transcriptions", _transcribe)
    add("GET", "/v1/realtime", _realtime)


def json_response(content: object) -> web.Response:
    """A 200 with a JSON body."""
    return web.Response(body=encode_json(content), content_type="application/json")


def _model_card(host: EngineHost) -> dict[str, object]:
    now = int(time.time())
    permission = {
        "id": f"modelperm-{uuid4().hex[:16]}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": host.profile.model,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": host.profile.model,
        "parent": None,
        "max_model_len": host.scenario.max_model_len,
        "permission": [permission],
    }


def _openapi(app: web.Application) -> dict[str, object]:
    paths: dict[str, dict[str, object]] = {}
    for route in app.router.routes():
        if route.resource is not None:
            operation = {"responses": {"200": {"description": "Successful Response"}}}
            paths.setdefault(route.resource.canonical, {})[route.method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}, "paths": paths}


def _add_tokenizer(app: web.Application, host: EngineHost) -> None:
    async def tokenize(http_request: web.Request) -> web.Response:
        body = await read_json(http_request)
        check_model(host, body.get("model"))
        if "messages" not in body and not isinstance(body.get("prompt"), str):
            raise invalid_body("body.prompt", missing_field("prompt", body), missing_field("messages", body))
        ids = encode(chat_prompt(body["messages"], body) if "messages" in body else body["prompt"])
        shown = [token_text(token) for token in ids] if body.get("return_token_strs") else None
        longest = host.scenario.max_model_len
        return json_response({"count": len(ids), "max_model_len": longest, "tokens": ids, "token_strs": shown})

    async def detokenize(http_request: web.Request) -> web.Response:
        body = await read_json(http_request)
        check_model(host, body.get("model"))
        if "tokens" not in body:
            raise invalid_body("body.tokens", missing_field("tokens", body))
        tokens = body["tokens"]
        if not isinstance(tokens, list):
            mismatch = schema_mismatch("list_type", "body.tokens", "Input should be a valid list", tokens)
            raise invalid_body("body.tokens", mismatch)
        check_integers(tokens, "tokens")
        return json_response({"prompt": decode([token for token in tokens if 0 <= token < VOCABULARY_SIZE])})

    app.router.add_route("POST", "/tokenize", tokenize)
    app.router.add_route("POST", "/detokenize", detokenize)


async def _transcribe(http_request: web.Request) -> web.Response:
    """Take an upload of any size without holding it, and say how large it was."""
    if not http_request.content_type.startswith("multipart/"):
        raise ApiError("1 validation error:\n  audio must be uploaded as multipart/form-data", kind="Bad Request")
    received = 0
    reader = await http_request.multipart()
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise ApiError("1 validation error: nested multipart bodies are not read", kind="Bad Request")
        while chunk := await part.read_chunk(65536):
            received += len(chunk)
    return json_response({"text": f"heard {received} bytes", "usage": None})


async def _realtime(http_request: web.Request) -> web.WebSocketResponse:
    """A session that confirms updates; it is there to be proxied."""
    socket = web.WebSocketResponse()
    await socket.prepare(http_request)
    session = {"id": f"sess-{uuid4().hex[:16]}", "object": "realtime.session"}
    await socket.send_str(encode_json({"type": "session.created", **session}).decode())
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            asked = message.json()
            known = asked.get("type") == "session.update"
            answer = {"type": "session.updated", "session": asked.get("session")} if known else {"type": "error"}
            await socket.send_str(encode_json(answer).decode())
    return socket
