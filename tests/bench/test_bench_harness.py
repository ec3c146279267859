"""The benchmark's own parts: a wrong stub, client or table would give figures that nobody could check."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import load
import pytest
import stub
import table
from hypothesis import given, settings
from hypothesis import strategies as st
from phases import Load, Target
from results import Alone, Distribution, HeldRate, Memory, Paced, Run, TargetResult, quantile
from stream_client import Answer, Connection, TargetFailed, chat_request

EVENTS = 6


@pytest.fixture
async def stub_port() -> AsyncIterator[int]:
    counters = stub.Counters(gap_seconds=0.0, default_events=EVENTS)
    server = await asyncio.get_running_loop().create_server(lambda: stub.StubConnection(counters), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def ask(port: int, body: bytes, path: str = "/v1/chat/completions") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
    received = await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return received


def whole_answer(stamps: list[int], cuts: list[int]) -> bytes:
    """A chunked answer with those stamps, its body cut into chunks at `cuts`: also inside an event."""
    body = b"".join(b'data: {"content":"@%019d"}\n\n' % stamp for stamp in stamps) + b"data: [DONE]\n\n"
    edges = [0, *sorted({cut % len(body) for cut in cuts} - {0}), len(body)]
    chunks = b"".join(stub.chunk(body[start:end]) for start, end in pairwise(edges))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks + b"0\r\n\r\n"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 10**18), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_client_finds_every_stamp_however_chunks_and_reads_are_cut(
    stamps: list[int], chunk_cuts: list[int], read_cuts: list[int]
) -> None:
    wire = whole_answer(stamps, chunk_cuts)
    edges = [0, *sorted({cut % len(wire) for cut in read_cuts} - {0}), len(wire)]
    reads = [wire[start:end] for start, end in pairwise(edges)]
    answer = Answer(started_ns=0)
    ended = [answer.feed(data, now_ns=number + 1) for number, data in enumerate(reads)]
    assert ended == [False] * (len(reads) - 1) + [True]
    assert answer.sent_ns == stamps
    assert len(answer.arrived_ns) == len(stamps)
    assert (answer.status, answer.complete, answer.connection_closes) == (200, True, True)


async def test_stub_streams_one_chunk_per_event_and_usage_only_where_asked(stub_port: int) -> None:
    plain = await ask(stub_port, b'{"stream":true}')
    asked = await ask(stub_port, b'{"stream":true,"max_tokens":8,"stream_options":{"include_usage":true}}')
    payloads = [line for line in plain.split(b"\r\n") if line.startswith(b"data: ")]
    assert len(payloads) == 1 + EVENTS + 1
    assert b'"role":"assistant"' in payloads[0]
    assert b'"finish_reason":"length"' in payloads[-2]
    assert payloads[-1] == b"data: [DONE]\n\n"
    assert b'"usage"' not in plain
    assert asked.count(b" token @") == 2
    assert b'"choices":[],"usage":{"prompt_tokens":' in asked
    assert b'"completion_tokens":8}}' in asked


def test_stub_takes_requests_with_a_length_and_with_chunks() -> None:
    received = bytearray(b"POST /a?b HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /health HTTP/1.1\r\n\r\n")
    assert stub.take_request(received) == ("POST", "/a", b"{}")
    assert stub.take_request(received) == ("GET", "/health", b"")
    received += b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    assert stub.take_request(received) is None
    received += b"1;x=y\r\nd\r\n0\r\n\r\n"
    assert stub.take_request(received) == ("POST", "/c", b"abcd")
    assert received == b""


async def test_client_measures_an_answer_of_the_stub(stub_port: int) -> None:
    async with Connection(stub_port) as connection:
        first = await connection.stream(chat_request(EVENTS, 100), EVENTS)
        second = await connection.stream(chat_request(2, 100), 2)
    assert len(first.delays_seconds()) == EVENTS
    assert min(first.delays_seconds()) > 0
    assert 0 < first.ttft_seconds <= first.total_seconds
    assert len(second.sent_ns) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (whole_answer([1, 2], []), "status 200, 2 of 6 events, a whole answer"),
        (whole_answer([1] * EVENTS, [-14])[:-9], "status 200, 6 of 6 events, an unfinished answer"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nno\r\n", "status 503, not a chunked stream"),
    ],
)
async def test_client_refuses_an_answer_that_is_not_what_the_stub_sent(answer: bytes, message: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        Connection(server.sockets[0].getsockname()[1]) as connection,
    ):
        with pytest.raises(TargetFailed, match=message):
            await connection.stream(chat_request(EVENTS, 10), EVENTS)


async def test_a_target_that_fails_is_a_row_that_says_why(stub_port: int, unused_tcp_port: int) -> None:
    tiny = Load(rounds=1, alone_streams=1, short_streams=2, streams=2, events=4, paced_seconds=0.01)
    absent = Target(name="absent", port=unused_tcp_port, pid=None, version="1")
    direct, failed = await load.Bench(stub_port, [absent], tiny).run(["alone", "paced"])
    assert direct.alone is not None
    assert direct.alone.ttft.samples == 2
    assert direct.paced is not None
    assert direct.paced.events >= 2 * 4
    assert failed.failed is not None
    assert failed.failed.startswith("warm-up: no connection")


def test_missing_targets_are_read_as_rows(tmp_path: Path) -> None:
    file = tmp_path / "targets.tsv"
    file.write_text("nginx\t28701\t7\t1.22.1\nlitellm\t-\t-\tnot installed\n")
    running, missing = load.read_targets(file)
    assert running == [Target(name="nginx", port=28701, pid=7, version="1.22.1")]
    assert [(row.name, row.failed) for row in missing] == [("litellm", "missing: not installed")]


def test_quantile_is_the_nearest_rank() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0.0, 0.25, 0.5, 0.75, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def result(name: str, ttft_ms: float, cpu_us: float, rss_megabytes: float, streams: int = 10_000) -> TargetResult:
    times = Distribution(samples=1, p50_ms=ttft_ms, p99_ms=2 * ttft_ms, round_p50_ms=[ttft_ms])
    return TargetResult(
        name=name,
        version="1",
        alone=Alone(ttft=times, total=times),
        paced=Paced(ttft=times, event_delay=times, events=1_000_000, cpu_seconds=cpu_us),
        memory=Memory(streams=streams, rss_before_bytes=1, rss_after_bytes=int(rss_megabytes * 1e6)),
        held_rate=HeldRate(events_per_second=12_345, event_delay_p99_ms=1.0, limited_by_harness=True),
    )


def run_of(*targets: TargetResult) -> Run:
    settings_of_load = {"events": 200.0, "streams": 16.0, "gap_seconds": 0.004, "memory_streams": 10_000.0}
    return Run(
        date_utc="",
        command="",
        machine={},
        settings=settings_of_load,
        wall_seconds=1,
        targets=[result("direct", 0.1, 0, 0), *targets],
    )


def test_bars_are_computed_from_the_run() -> None:
    peers = (result("nginx", 0.2, 10, 10), result("vllm-router", 0.9, 12, 80))
    good = table.bars(run_of(result("specbreaker", 0.3, 11.9, 79), *peers))
    bad = table.bars(run_of(result("specbreaker", 1.2, 12.6, 81), *peers))
    short = table.bars(run_of(result("specbreaker", 0.3, 12.0, 10, streams=9_999), *peers))
    assert [bar.verdict for bar in good] == ["pass"] * 5
    assert [bar.verdict for bar in bad] == ["FAIL"] * 5
    assert [bar.verdict for bar in short] == ["pass", "pass", "pass", "FAIL", "not measured"]
    assert [bar.verdict for bar in table.bars(run_of(*peers))] == ["not measured"] * 5


def test_a_difference_from_a_noisy_direct_is_no_pass() -> None:
    run = run_of(result("specbreaker", 0.4, 10, 10))
    run.targets[0] = result("direct", 0.5, 0, 0)
    assert table.bars(run)[0].verdict == "too noisy: `direct` itself has 0.50 ms"
    assert table.bars(run)[1].verdict == "pass"


def test_report_has_a_line_for_each_target_and_its_reason() -> None:
    broken = TargetResult(name="litellm", version="", failed="missing: not installed")
    page = table.report(run_of(result("nginx", 0.2, 10, 10), broken))
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert "| +0.10 | +0.20 | +0.10 | +0.10 | +0.10 / +0.20 | 10.0 | ≥ 12,300 | 0 -> 10 |" in lines["nginx 1"]
    assert "missing: not installed" in lines["litellm"]
    assert "| 0.10 | 0.20 |" in lines["direct 1 (absolute)"]
