"""What recording costs: run it with ``python -m tests.bench.record_cost``; ``--page`` writes docs/results/recording.md.

Puts a request with its body and a response with its chunk times, 2,000 times a second for 5 s, and tells what one
``put`` costs the event loop, what the thread spends on a record, and how many records were dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from detector.observation import Observation, RequestFacts, Step
from replay.session.recorder import BackgroundRecorder
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, RequestRecord, ResponseRecord, SessionHeader, chunks_of

RESULT = Path(__file__).parents[2] / "docs" / "results" / "recording.md"
FACTS = RequestFacts(route="chat", model="m", stream=True, max_tokens=512, body_bytes=2000)
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 400}]}).encode()


def response(seq: int, chunks: int) -> ResponseRecord:
    """An answer of so many content events."""
    at, steps = 0.0, []
    for _ in range(chunks):
        at += random.uniform(0.006, 0.007)
        steps.append(Step(at, random.randrange(1, 9)))
    chunk_us, chunk_tokens = chunks_of(0.0, steps)
    observation = Observation(
        request_id=f"req-{seq}", backend="primary", facts=FACTS, started_unix=time.time(), started=0.0, ended=at
    )
    return ResponseRecord(
        request_id=f"req-{seq}", observation=observation, chunk_us=chunk_us, chunk_tokens=chunk_tokens
    )


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    mode: ContentMode
    chunks: int
    per_second: float
    """Requests that were written, each with its answer."""
    put_us: float
    """Median of what one ``put`` takes, on the event loop."""
    put_p99_us: float
    thread_us: float
    """CPU of the recorder's thread for one record."""
    record_bytes: float
    dropped: dict[str, int]


def run(per_second: int, seconds: float, chunks: int, mode: ContentMode) -> Cost:
    """Record, and measure."""
    responses = [response(seq, chunks) for seq in range(1000)]
    header = SessionHeader(tool_version="bench", session_id="bench")
    put_us: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        recorder = BackgroundRecorder(Path(directory), header, Redactor(mode))
        began, cpu_began, put_cpu = time.perf_counter(), time.process_time(), time.thread_time()
        for seq in range(int(per_second * seconds)):
            if seq % 20 == 0:
                time.sleep(max(0.0, began + seq / per_second - time.perf_counter()))
            request = RequestRecord(
                seq=seq, request_id=f"req-{seq}", at=time.monotonic(), path="/v1/chat/completions", facts=FACTS
            )
            before = time.perf_counter()
            recorder.put(request, BODY)
            recorder.put(responses[seq % 1000])
            put_us.append((time.perf_counter() - before) * 1e6 / 2)
        took, put_cpu = time.perf_counter() - began, time.thread_time() - put_cpu
        live = recorder.counts()
        thread_cpu = time.process_time() - cpu_began - put_cpu
        recorder.close(60)
        counts = recorder.counts()
    written = sum(counts.written.values())
    return Cost(
        mode=mode,
        chunks=chunks,
        per_second=written / (2 * max(seconds, took)),
        put_us=statistics.median(put_us),
        put_p99_us=sorted(put_us)[len(put_us) * 99 // 100],
        thread_us=thread_cpu * 1e6 / max(1, sum(live.written.values())),
        record_bytes=counts.bytes_written / max(1, written),
        dropped=counts.dropped,
    )


def page(costs: list[Cost], load: float, command: str) -> str:
    """The page of results."""
    lines = [
        "# What recording costs",
        "",
        f"Written by `{command}` ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC). A request of {len(BODY)} bytes",
        "is recorded as the content mode has it, and its answer: two records, two `put` on the event loop, a thread",
        "that writes them.",
        "",
        f"Machine: {machine()}; niceness {os.nice(0)}; load average at the start {load:.1f}, so that",
        "a p99 says more of the neighbours.",
        "",
        "| content | events of an answer | requests/s | `put`, us | `put` p99, us | thread, us a record "
        "| CPU of a request, us | bytes a record | dropped |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        cells = [
            f"`{cost.mode.value}`",
            str(cost.chunks),
            f"{cost.per_second:.0f}",
            f"{cost.put_us:.2f}",
            f"{cost.put_p99_us:.1f}",
            f"{cost.thread_us:.1f}",
            f"{2 * (cost.put_us + cost.thread_us):.0f}",
            f"{cost.record_bytes:.0f}",
            ", ".join(f"{count} {name}" for name, count in cost.dropped.items()) or "0",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """CPU, cores, kernel, Python."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return f"CPU {cpu}; cores {os.cpu_count()}; kernel {platform.release()}; Python {platform.python_version()}"


def main() -> None:
    """Read the options and run each content mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=2000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--chunks", type=int, nargs="+", default=[8, 100], help="content events of an answer")
    parser.add_argument("--page", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    costs = []
    for chunks in options.chunks:
        for mode in ContentMode:
            cost = run(options.per_second, options.seconds, chunks, mode)
            costs.append(cost)
            print(
                f"content {mode.value}, {chunks} chunks: {cost.per_second:.0f} requests/s, "
                f"put {cost.put_us:.2f} us (p99 {cost.put_p99_us:.1f}), thread {cost.thread_us:.1f} us a record, "
                f"{cost.record_bytes:.0f} bytes a record, dropped {cost.dropped or 0}"
            )
    if options.page:
        command = " ".join(["python -m tests.bench.record_cost", *sys.argv[1:]])
        RESULT.write_text(page(costs, load, command), encoding="utf-8")


if __name__ == "__main__":
    main()
