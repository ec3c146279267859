"""Routes that generate nothing: status, headers, bodies."""

import re

import pytest
from contract_wire import read_response


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_liveness_is_an_empty_200(engine, path):
    response = await engine.get(path)
    assert (response.status, response.body) == (200, b"")
    assert response.header_names == ["date", "server", "content-length", "vary", "connection"]
    assert response.header("server") == "uvicorn"


async def test_version_and_load(engine):
    version = await engine.get("/version")
    assert version.header_names == ["date", "server", "content-length", "content-type", "vary", "connection"]
    assert version.header("content-type") == "application/json"
    assert re.fullmatch(rb'\{"version":"0\.32\.0[^"]*"\}', version.body)
    assert (await engine.get("/load")).body == b'{"server_load":0}'


async def test_models_lists_the_served_model(engine):
    listing = (await engine.get("/v1/models")).json
    assert list(listing) == ["object", "data"]
    (card,) = listing["data"]
    assert list(card) == [
        *("id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"),
    ]
    assert (card["id"], card["object"], card["owned_by"]) == (engine.model, "model", "vllm")
    assert card["max_model_len"] == engine.max_model_len
    assert list(card["permission"][0]) == [
        *("id", "object", "created", "allow_create_engine", "allow_sampling", "allow_logprobs"),
        *("allow_search_indices", "allow_view", "allow_fine_tuning", "organization", "group", "is_blocking"),
    ]


async def test_openapi_names_the_generating_routes(engine):
    paths = (await engine.get("/openapi.json")).json["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"} <= set(paths)


@pytest.mark.parametrize("path", ["/nope", "/v1/embeddings", "/sleep", "/server_info", "/is_sleeping"])
async def test_unknown_and_unserved_routes_are_404(engine, path):
    response = await engine.get(path)
    assert (response.status, response.body) == (404, b'{"detail":"Not Found"}')


async def test_wrong_method_is_405(engine):
    response = await engine.get("/v1/chat/completions")
    assert (response.status, response.body) == (405, b'{"detail":"Method Not Allowed"}')
    assert response.header("allow") == "POST"


async def test_tokenize_and_detokenize_invert_each_other(engine):
    text = "def add(a, b):\n    return a + b  # naïve"
    tokens = (await engine.post("/tokenize", model=engine.model, prompt=text)).json
    assert list(tokens) == ["count", "max_model_len", "tokens", "token_strs"]
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == engine.max_model_len
    assert tokens["token_strs"] is None
    back = await engine.post("/detokenize", model=engine.model, tokens=tokens["tokens"])
    assert back.json == {"prompt": text}


async def test_an_idle_connection_serves_again(engine):
    reader, writer = await engine.connect()
    try:
        for _ in range(2):
            writer.write(engine.request_bytes("GET", "/health", headers={"connection": "keep-alive"}))
            response = await read_response(reader)
            assert response.status == 200
            assert "connection" not in response.header_names
    finally:
        writer.close()
        await writer.wait_closed()
