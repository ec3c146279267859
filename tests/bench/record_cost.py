"""What recording costs: run it with ``python tests/bench/record_cost.py``.

Puts a request with its body and a response with its chunk times, 2,000 times a second for 5 s, and prints what one
``put`` costs the event loop, what the thread spends on a record, and how many records were dropped.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from detector.observation import Observation, RequestFacts, Step
from replay.session.recorder import BackgroundRecorder
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, RequestRecord, ResponseRecord, SessionHeader, chunks_of

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


def run(per_second: int, seconds: float, chunks: int, mode: ContentMode) -> None:
    """Record and print one line."""
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
        put_cpu = time.thread_time() - put_cpu
        live = recorder.counts()
        thread_cpu = time.process_time() - cpu_began - put_cpu
        recorder.close(60)
        counts = recorder.counts()
    written = sum(counts.written.values())
    print(
        f"content {mode.value}, {chunks} chunks: {written / (2 * seconds):.0f} requests/s, "
        f"put {statistics.median(put_us):.2f} us (p99 {sorted(put_us)[len(put_us) * 99 // 100]:.1f}), "
        f"thread {thread_cpu * 1e6 / max(1, sum(live.written.values())):.1f} us a record, "
        f"{counts.bytes_written / max(1, written):.0f} bytes a record, dropped {counts.dropped or 0}"
    )


def main() -> None:
    """Read the options and run each content mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=2000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--chunks", type=int, default=100, help="content events of an answer")
    options = parser.parse_args()
    for mode in ContentMode:
        run(options.per_second, options.seconds, options.chunks, mode)


if __name__ == "__main__":
    main()
