"""What the proxy refuses before it chooses a backend."""

from __future__ import annotations

import hmac
import json
from pathlib import Path

import pytest
from upstreams import BODY, Client, Seen, answering, connected, proxy_to

from proxy.config import ConfigError
from proxy.gate import CONTROL_ROUTES, Gate, control_route, normalised
from proxy.messages import Request

ROUTES = sorted(CONTROL_ROUTES)


async def ask(client: Client, target: str, *fields: str, method: str = "POST") -> tuple[int, bytes]:
    lines = "".join(f"{field}\r\n" for field in fields)
    await client.send(f"{method} {target} HTTP/1.1\r\nHost: p\r\n{lines}Content-Length: 0\r\n\r\n".encode())
    status, _, body = await client.answer()
    return status, body


def error_of(body: bytes) -> dict[str, object]:
    error: dict[str, object] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- control routes --------------------------------------------------------------------------------------------------


async def test_every_control_route_is_refused_in_openais_shape_and_never_reaches_the_engine() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        for route in ROUTES:
            for method in ("POST", "GET"):
                status, body = await ask(client, route, method=method)
                error = error_of(body)
                assert (status, error["code"], error["type"]) == (403, 403, "PermissionDeniedError"), route
                assert route in str(error["message"])
                assert "server.allow_control_routes" in str(error["message"])
    assert seen == []


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/sl%65ep", id="percent-encoded letter"),
        pytest.param("/%73%6c%65%65%70", id="percent-encoded word"),
        pytest.param("/%73%6C%65%65%70", id="upper-case escapes"),
        pytest.param("//sleep", id="double slash"),
        pytest.param("/v1//load_lora_adapter", id="double slash inside"),
        pytest.param("/v1%2Fload_lora_adapter", id="encoded slash"),
        pytest.param("/./sleep", id="dot segment"),
        pytest.param("/v1/../sleep", id="dot-dot segment"),
        pytest.param("/v1/%2e%2e/sleep", id="encoded dot-dot segment"),
        pytest.param("/..%2f../sleep", id="dot-dots above the root"),
        pytest.param("/v1/x/..\\..\\sleep", id="backslashes"),
        pytest.param("/sleep/", id="trailing slash"),
        pytest.param("/sleep/.", id="trailing dot"),
        pytest.param("/sleep//", id="trailing slashes"),
        pytest.param("/SLEEP", id="upper case"),
        pytest.param("/V1/Load_LoRA_Adapter", id="mixed case"),
        pytest.param("/engine/a/sleep", id="below a prefix"),
        pytest.param("/inference/v1/abort_requests", id="below vLLM's own prefix"),
        pytest.param("/sleep?level=1", id="query"),
        pytest.param("/sleep?", id="empty query"),
        pytest.param("/sleep#x", id="fragment"),
        pytest.param("/sleep#x?y", id="fragment with a query"),
        pytest.param("/sleep?x=/v1/models", id="query with a path"),
        pytest.param("http://engine/sleep", id="absolute form"),
        pytest.param("http://engine:8000/v1/../sleep?level=2", id="absolute form with dots"),
    ],
)
async def test_tricks_do_not_get_a_control_route_past_the_gate(target: str) -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        status, _ = await ask(client, target)
    assert status == 403
    assert seen == []


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models",
        "/v1/sleep_stories",
        "/v1/responses/resp_1/cancel",
        "/v1/chat/completions?mode=sleep",
        "/tokenize",
        "/asleep",
        "/v1/files/sleep.txt",
        "/v1/%E2%82%AC",
        "/",
    ],
)
async def test_other_routes_pass_with_their_target_as_it_was_written(target: str) -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        status, _ = await ask(client, target)
    assert status == 200
    assert [one.target.decode() for one in seen] == [target]


async def test_an_allowed_control_route_passes_and_only_that_one() -> None:
    seen: list[Seen] = []
    allowed = ("/reset_prefix_cache",)
    async with proxy_to(answering(seen), server__allow_control_routes=allowed) as proxy, connected(proxy) as client:
        assert (await ask(client, "/reset_prefix_cache?x=1"))[0] == 200
        assert (await ask(client, "/reset_mm_cache"))[0] == 403
    assert [one.target for one in seen] == [b"/reset_prefix_cache?x=1"]


async def test_a_refusal_leaves_the_connection_usable() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        assert (await ask(client, "/sleep"))[0] == 403
        assert (await ask(client, "/v1/models", method="GET"))[0] == 200


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_methods_that_a_proxy_must_not_forward(method: str) -> None:
    seen: list[Seen] = []
    target = "engine:8000" if method == "CONNECT" else "/v1/models"
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        status, body = await ask(client, target, method=method)
    assert (status, error_of(body)["type"]) == (405, "MethodNotAllowedError")
    assert method in str(error_of(body)["message"])
    assert seen == []


def test_normalised_paths() -> None:
    cases = {
        "/v1/models": "/v1/models",
        "/v1/a.b-c_d": "/v1/a.b-c_d",
        "": "/",
        "/": "/",
        "//": "/",
        "/a/./b/../c/": "/a/c",
        "/../../a": "/a",
        "/%2561": "/%61",
        "/a\\b": "/a/b",
    }
    assert {path: normalised(path) for path in cases} == cases


def test_control_route_names_the_route_that_was_hit() -> None:
    assert control_route("/root/V1/LOAD_LORA_ADAPTER") == "/v1/load_lora_adapter"
    assert control_route("/load_lora_adapter") is None
    assert control_route("/v1/models") is None


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text("# of the agents\nsk-first\n\n  sk-second  \n")
    return str(path)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param((), 401, id="missing"),
        pytest.param(("Authorization: Bearer sk-wrong",), 401, id="wrong"),
        pytest.param(("Authorization: Bearer ",), 401, id="empty"),
        pytest.param(("Authorization: Bearer sk-first2",), 401, id="longer"),
        pytest.param(("Authorization: Bearer sk-firs",), 401, id="shorter"),
        pytest.param(("Authorization: Basic sk-first",), 401, id="wrong scheme"),
        pytest.param(("Authorization: sk-first",), 401, id="no scheme"),
        pytest.param(("Authorization: Bearer # of the agents",), 401, id="a comment is no key"),
        pytest.param(("Authorization: Bearer sk-first",), 200, id="first"),
        pytest.param(("authorization: bearer sk-second",), 200, id="second, lower case"),
    ],
)
async def test_keys(key_file: str, fields: tuple[str, ...], status: int) -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen), server__api_key_file=key_file) as proxy, connected(proxy) as client:
        got, body = await ask(client, "/v1/models", *fields, method="GET")
    assert got == status
    if status == 401:
        assert error_of(body)["type"] == "AuthenticationError"
        assert seen == []
        assert b"sk-" not in body
    else:
        assert [one.field("authorization") for one in seen] == [None]


async def test_without_a_key_only_health_and_preflight_requests_pass(key_file: str) -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen), server__api_key_file=key_file) as proxy, connected(proxy) as client:
        for method, target, status in (
            ("GET", "/health", 200),
            ("GET", "/ping", 200),
            ("OPTIONS", "/v1/chat/completions", 200),
            ("GET", "/metrics", 401),
            ("GET", "/version", 401),
            ("GET", "/health/../v1/models", 401),
            ("POST", "/tokenize", 401),
        ):
            assert (await ask(client, target, method=method))[0] == status, target


async def test_a_control_route_is_refused_whatever_the_key(key_file: str) -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen), server__api_key_file=key_file) as proxy, connected(proxy) as client:
        assert (await ask(client, "/sleep", "Authorization: Bearer sk-first"))[0] == 403
        assert (await ask(client, "/sleep", method="OPTIONS"))[0] == 403


async def test_a_request_with_a_body_and_a_wrong_key_is_told_so(key_file: str) -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen), server__api_key_file=key_file) as proxy, connected(proxy) as client:
        await client.post(BODY, "Authorization: Bearer sk-wrong")
        assert (await client.answer())[0] == 401
    assert seen == []


def test_every_key_is_compared_in_constant_time(key_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare_digest = hmac.compare_digest

    def compare(key: bytes, given: bytes) -> bool:
        compared.append(key)
        return compare_digest(key, given)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    request = Request()
    request.path = "/v1/models"
    request.fields.append((b"authorization", b"Authorization", b"Bearer sk-first"))
    assert Gate((), key_file).refusal(request) is None
    assert compared == [b"sk-first", b"sk-second"]


@pytest.mark.parametrize(("text", "reason"), [(None, "No such file or directory"), ("# none\n\n", "no key in it")])
def test_a_key_file_that_holds_no_key_is_one_clear_line(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        Gate((), str(path))
    assert str(error.value).startswith(f"server.api_key_file: {path}: {reason}")
