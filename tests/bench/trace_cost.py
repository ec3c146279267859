"""What spans cost: run it with ``python -m tests.bench.trace_cost`` (needs the extra opentelemetry).

Makes spans as control does, 500 a second for 10 s, to a receiver in a process of its own, and prints what one costs
the event loop's thread, what the SDK's thread spends on it, and how many were sent and dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection

from detector.observation import Observation, RequestFacts, Source
from proxy import config
from proxy.control import Watched
from proxy.tracing import TraceContext, Tracing
from proxy.upstream import Backend

FACTS = RequestFacts(route="chat", model="m", stream=True, max_tokens=512, body_bytes=2000)
TRACE = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def receive(ready: Connection) -> None:
    """Take everything that is posted."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_address[1])
    server.serve_forever()


def observation(number: int) -> Observation:
    """An answer of 512 tokens."""
    return Observation(
        request_id=f"req-{number}",
        backend="primary",
        facts=FACTS,
        started_unix=time.time(),
        started=0.0,
        ended=3.0,
        status=200,
        ttft_seconds=0.05,
        decode_seconds=2.9,
        prompt_tokens=300,
        completion_tokens=512,
        finish_reason="length",
        verify_steps=140,
        acceptance_length=3.65,
        acceptance_source=Source.ENGINE,
        step_seconds=0.0207,
        decode_tokens_per_second=176.0,
        num_speculative_tokens=8,
    )


def run(port: int, per_second: int, seconds: float) -> None:
    """Make spans and print one line."""
    tracing = Tracing(config.Tracing(endpoint=f"http://127.0.0.1:{port}/v1/traces"))
    watched = Watched(Backend(config.Backend(name="primary", url="http://127.0.0.1:8000")))
    count = int(per_second * seconds)
    answers = [observation(number) for number in range(count)]
    began, cpu_began, own_began = time.perf_counter(), time.process_time(), time.thread_time()
    for number, answer in enumerate(answers):
        if number % 20 == 0:
            time.sleep(max(0.0, began + number / per_second - time.perf_counter()))
        tracing.span(answer, TRACE, watched)
    own = time.thread_time() - own_began
    asyncio.run(tracing.close())
    others = time.process_time() - cpu_began - own
    print(
        f"{count} spans at {per_second}/s: {own / count * 1e6:.0f} us each on the loop's thread, "
        f"{others / count * 1e6:.0f} us on the SDK's; sent {tracing.sent}, dropped {tracing.dropped}"
    )


def main() -> None:
    """Start the receiver, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(theirs,), daemon=True)
    process.start()
    run(ours.recv(), arguments.per_second, arguments.seconds)
    process.terminate()


if __name__ == "__main__":
    main()
