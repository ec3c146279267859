"""Spans of answers, as a real OTLP receiver gets them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from upstreams import answering, connected, proxy_to, settings, until

from proxy.cli import main
from proxy.config import ConfigError, load
from proxy.messages import Request
from proxy.serve import Proxy, running
from proxy.tracing import TraceContext, Tracing, trace_context
from replay.emulator import Emulator, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "swordfish"


class Receiver:
    """An OTLP/HTTP collector: keeps what it was sent, answers when it may."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.may_answer.wait()
                receiver.paths.append(self.path)
                receiver.bodies.append(body)
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def requests(self) -> list[Any]:
        """What was sent, decoded."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests()
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra opentelemetry")
    its = Receiver()
    yield its
    its.may_answer.set()
    its.server.shutdown()
    its.server.server_close()


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    """Tracing quietens the SDK's loggers in this process."""
    yield
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes of a span or a resource as Python values."""

    def value(one: Any) -> Any:
        kind = one.WhichOneof("value")
        return [value(its) for its in one.array_value.values] if kind == "array_value" else getattr(one, kind)

    return {one.key: value(one.value) for one in attributes}


def traced(url: str, **flags: Any) -> dict[str, Any]:
    return {"tracing__endpoint": url, "tracing__export_seconds": 0.02, **flags}


@contextlib.asynccontextmanager
async def proxied(receiver: Receiver, **flags: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of an emulated engine, with spans to the receiver."""
    async with (
        serving(Emulator("healthy", model="m", time_scale=0)) as url,
        running(settings(url, **traced(receiver.url, **flags))) as proxy,
    ):
        yield proxy


async def ask(proxy: Proxy, *fields: str, model: str = "m", status: int = 200, **more: Any) -> None:
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": SECRET}], **more}
    async with connected(proxy) as client:
        await client.post(msgspec.json.encode(body), *fields)
        assert (await client.answer())[0] == status


def tracing_of(proxy: Proxy) -> Tracing:
    return proxy.control._tracing


# ---- what a span says ------------------------------------------------------------------------------------------------


async def test_a_span_is_the_clients_child_and_says_what_was_measured(receiver: Receiver) -> None:
    async with proxied(receiver, tracing__service_name="mine") as proxy:
        before = time.time_ns()
        await ask(proxy, f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: vendor=x", stream=True)
        await until(lambda: tracing_of(proxy).sent == 1)
        backend = proxy.gateway.backends[0]
    (span,) = receiver.spans()
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "vendor=x")
    assert (span.name, span.kind) == ("chat m", 3)
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()
    told = plain(span.attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "m"
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.stream"]) == (20, True)
    assert told["gen_ai.usage.output_tokens"] == 20
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert 0 <= told["gen_ai.response.time_to_first_chunk"] < 60
    assert (told["server.address"], told["server.port"]) == (backend.host, backend.port)
    assert (told["specbreaker.backend"], told["specbreaker.phase"]) == ("primary", "healthy")
    assert told["specbreaker.acceptance_length"] >= 1
    assert told["http.response.status_code"] == 200
    assert "error.type" not in told
    assert span.status.code == 0
    (resource,) = {
        plain(one.resource.attributes)["service.name"] for all_ in receiver.requests() for one in all_.resource_spans
    }
    assert resource == "mine"
    assert receiver.paths == ["/v1/traces"]


async def test_no_text_is_in_a_span(receiver: Receiver) -> None:
    async with proxied(receiver) as proxy:
        await ask(proxy, f"authorization: Bearer {SECRET}")
        await until(lambda: tracing_of(proxy).sent == 1)
    assert SECRET.encode() not in b"".join(receiver.bodies)


async def test_without_a_parent_a_trace_begins_here(receiver: Receiver) -> None:
    async with proxied(receiver) as proxy:
        await ask(proxy)
        await ask(proxy, "traceparent: nonsense")
        await until(lambda: tracing_of(proxy).sent == 2)
    spans = receiver.spans()
    assert all(span.parent_span_id == b"" for span in spans)
    assert len({span.trace_id for span in spans}) == 2


async def test_a_caller_that_does_not_sample_gets_no_span(receiver: Receiver) -> None:
    async with proxied(receiver) as proxy:
        await ask(proxy, f"traceparent: 00-{TRACE}-{PARENT}-00")
        await ask(proxy, f"traceparent: 00-{TRACE}-{PARENT}-01")
        await until(lambda: tracing_of(proxy).sent == 1)
        assert tracing_of(proxy).dropped == 0
    assert len(receiver.spans()) == 1


async def test_of_traces_begun_here_a_share_is_sent(receiver: Receiver) -> None:
    async with proxied(receiver, tracing__sample_share=0) as proxy:
        await ask(proxy)
        await ask(proxy, f"traceparent: 00-{TRACE}-{PARENT}-01")
        await until(lambda: tracing_of(proxy).sent == 1)
    (span,) = receiver.spans()
    assert span.trace_id.hex() == TRACE


async def test_a_refusal_of_the_engine_is_an_error(receiver: Receiver) -> None:
    async with proxied(receiver) as proxy:
        await ask(proxy, model="absent", status=404)
        await until(lambda: tracing_of(proxy).sent == 1)
    (span,) = receiver.spans()
    assert span.status.code == 2
    assert plain(span.attributes)["error.type"] == "404"


async def test_a_broken_answer_is_an_error_with_its_ending(receiver: Receiver) -> None:
    async def breaking(peer: Any) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")

    async with proxy_to(breaking, **traced(receiver.url)) as proxy:
        async with connected(proxy) as client:
            await client.post(b'{"model": "m", "messages": []}')
            await client.rest()
        await until(lambda: tracing_of(proxy).sent == 1)
    (span,) = receiver.spans()
    assert plain(span.attributes)["specbreaker.ending"] == "upstream_closed"
    assert span.status.message == "upstream_closed"


async def test_spans_that_wait_are_sent_when_the_proxy_ends(receiver: Receiver) -> None:
    async with proxied(receiver, tracing__export_seconds=3600) as proxy:
        await ask(proxy)
        await until(lambda: tracing_of(proxy)._made == 1)
        assert receiver.bodies == []
    assert len(receiver.spans()) == 1


# ---- when the collector is in trouble --------------------------------------------------------------------------------


async def test_a_collector_that_refuses_costs_spans_and_nothing_else(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 400
    async with proxied(receiver) as proxy:
        for number in range(3):
            await ask(proxy)
            await until(lambda number=number: tracing_of(proxy).dropped == number + 1)
        assert tracing_of(proxy).sent == 0
    said = [record for record in caplog.records if "spans were not taken" in record.getMessage()]
    assert len(said) == 1, "it is said once"
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_too_many_waiting_spans_are_dropped_and_counted(receiver: Receiver) -> None:
    receiver.may_answer.clear()
    flags = {"tracing__max_queued_spans": 2, "tracing__timeout_seconds": 60}
    async with proxied(receiver, **flags) as proxy:
        for _ in range(5):
            await ask(proxy)
        await until(lambda: tracing_of(proxy).dropped == 3)
        receiver.may_answer.set()
        await until(lambda: tracing_of(proxy).sent == 2)
    assert len(receiver.spans()) == 2


async def test_counts_are_exported(receiver: Receiver) -> None:
    import urllib.request

    async with proxied(receiver) as proxy:
        await ask(proxy)
        await until(lambda: tracing_of(proxy).sent == 1)
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{proxy.admin_url}/metrics").read().decode())
    assert "specbreaker_spans_sent_total 1.0" in text
    assert "specbreaker_spans_dropped_total 0.0" in text


# ---- off, and without the extra --------------------------------------------------------------------------------------


async def test_off_nothing_is_kept_of_the_trace_and_the_engine_still_gets_it() -> None:
    seen: list[Any] = []
    traces = []
    async with proxy_to(answering(seen, b"{}")) as proxy:
        measured = proxy.control.handle
        proxy.control.handle = lambda event: (traces.append(getattr(event, "trace", None)), measured(event))
        await_state = f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=b"
        async with connected(proxy) as client:
            await client.post(b'{"model": "m", "messages": []}', *await_state)
            await client.answer()
        await until(lambda: len(traces) == 1)
        assert not tracing_of(proxy).on
    assert traces == [None]
    assert seen[0].field("traceparent") == f"00-{TRACE}-{PARENT}-01"
    assert seen[0].field("tracestate") == "a=b"


def test_the_sdk_is_not_imported_where_it_is_off() -> None:
    code = "import sys, proxy.cli, proxy.serve; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.setitem(sys.modules, name, None)
    flags = {"tracing.endpoint": "http://127.0.0.1:4318/v1/traces"}
    with pytest.raises(ConfigError, match=r"pip install 'specbreaker\[opentelemetry\]'") as caught:
        Tracing(load(None, environment={}, flags=flags).tracing)
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    environment = {"SPECBREAKER_TRACING__ENDPOINT": "collector:4318"}
    result = CliRunner().invoke(main, ["config", "show"], env=environment)
    assert result.exit_code == 2
    assert 'tracing.endpoint: not a URL: "collector:4318" (write http://HOST:4318/v1/traces)' in result.stderr


def test_two_parents_are_none() -> None:
    request = Request()
    parent = (b"traceparent", b"Traceparent", b"00-a-b-01")
    states = [(b"tracestate", b"tracestate", value) for value in (b"a=1", b"b=2")]
    request.fields = [parent, *states]
    assert trace_context(request) == TraceContext("00-a-b-01", "a=1,b=2")
    request.fields = [parent, parent]
    assert trace_context(request) is None
    request.fields = states
    assert trace_context(request) is None
