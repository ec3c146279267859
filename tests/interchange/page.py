"""Measure what the tests of this folder assert, and the times that they do not.

Usage: python -m tests.interchange.page [--output docs/results/interchange.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import msgspec

from replay.formats import read_recording
from replay.recorded import Exchange
from tests.interchange import tools
from tests.interchange.tools import Run, body, convert

PAGE = """# Interchange with real tools

Written by `python -m tests.interchange.page`, after `make interchange`, which asserts the counts. {date}, {machine},
load {load} at the start. aiperf 0.13.0, guidellm 0.8.1, `vllm bench serve` of vLLM 0.32.0; the proxy in front of the
emulated engine; {requests} requests with text.

## What we write, replayed

| format | tool | requests that arrived | equal to the recording | arrival off by, median | at most |
|---|---|---|---|---|---|
{replayed}

Arrival: at the proxy, against the recording, from the median on. Wanted of aiperf are 10 ms on a quiet machine; the
load above says how quiet it was.

## What they write, read

| file | requests in it | equal to what the proxy saw | arrival off by, median | at most | TTFT off by, median |
|---|---|---|---|---|---|
{read}

- Bodies are equal as JSON with the order of their fields; white space is the client's.
- guidellm made one request less than arrived in some runs, by its own counts too.
- guidellm's replay sends what is late at its start at once.
"""


class Row(msgspec.Struct):
    """One line of a table."""

    name: str
    requests: int
    equal: str
    off_seconds: list[float]
    ttft_off_seconds: list[float] = []

    def cells(self) -> list[str]:
        """As Markdown."""
        cells = [self.name, str(self.requests), self.equal, *_spread(self.off_seconds)]
        return [*cells, _milliseconds(median(self.ttft_off_seconds))] if self.ttft_off_seconds else cells


def replayed(name: str, source: Sequence[Exchange], seen: Sequence[Exchange], equal: str) -> Row:
    """How far the arrivals of a replay are from those of the recording; both in the recording's order."""
    return Row(name, len(seen), equal, _offsets(source, seen))


def read(name: str, run: Run, pairs: list[tuple[Exchange, Exchange]], equal: str) -> Row:
    """How far what a tool says of its requests is from what the proxy saw; pairs: (told, seen)."""
    told, seen = [one for one, _ in pairs], [other for _, other in pairs]
    first_tokens = [
        one.observation.ttft_seconds - other.observation.ttft_seconds
        for one, other in pairs
        if one.observation and other.observation and one.observation.ttft_seconds and other.observation.ttft_seconds
    ]
    return Row(name, len(run.told), equal, _offsets(told, seen), first_tokens)


def _offsets(first: Sequence[Exchange], second: Sequence[Exchange]) -> list[float]:
    found = [one.request.at - other.request.at for one, other in zip(first, second, strict=True)]
    middle = median(found)
    return [abs(one - middle) for one in found]


def _spread(seconds: Sequence[float]) -> tuple[str, str]:
    return _milliseconds(median(seconds)), _milliseconds(max(seconds))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _same(pairs: Sequence[tuple[object, object]]) -> str:
    return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"


def _order(exchange: Exchange) -> int:
    asked = body(exchange)
    return int(str(asked.get("max_tokens") or asked["max_completion_tokens"]))


def _sent(exchange: Exchange) -> bytes:
    return msgspec.json.encode(body(exchange))


def _counts(exchange: Exchange) -> tuple[int | None, ...]:
    found = exchange.observation
    assert found is not None
    return found.prompt_tokens, found.completion_tokens


def measure(work: Path) -> tuple[list[Row], list[Row], int]:
    """Rows of both tables, and the requests of the recording."""
    session = tools.record(work)
    source = sorted(read_recording(session).exchanges, key=_order)
    run = tools.aiperf(work, convert(session, work / "mooncake.jsonl", "mooncake"))
    written = [of_aiperf(source, run)]
    told = [of_aiperf_export(run)]
    run = tools.vllm_timed_trace(work, convert(session, work / "timed.jsonl", "timed-trace"))
    written.append(of_timed_trace(source, run))
    run = tools.guidellm_spans(work, convert(session, work / "spans.jsonl", "otel-spans"))
    written.append(of_guidellm_spans(source, run))
    told += [of_vllm_bench(route, tools.vllm_bench(work, route)) for route in tools.ROUTES]
    told.append(of_guidellm_report(tools.guidellm_synthetic(work)))
    return written, told, len(source)


def of_aiperf(source: Sequence[Exchange], run: Run) -> Row:
    """The trace with payloads as aiperf sent it."""
    seen = sorted(run.seen, key=_order)
    bodies = _same([(_sent(one), _sent(other)) for one, other in zip(source, seen, strict=True)])
    return replayed("mooncake | aiperf", source, seen, f"{bodies} bodies")


def of_aiperf_export(run: Run) -> Row:
    """aiperf's own export of that."""
    by_id = {one.request.request_id: one for one in run.seen}
    pairs = [(one, by_id[one.request.request_id]) for one in run.told]
    return read("aiperf raw export", run, pairs, f"{_same([(_sent(a), _sent(b)) for a, b in pairs])} bodies")


def of_timed_trace(source: Sequence[Exchange], run: Run) -> Row:
    """The timed trace as vLLM's benchmark sent it."""
    sizes = _same([(_counts(one), _counts(other)) for one, other in zip(source, run.seen, strict=True)])
    return replayed("timed-trace | vllm bench serve", source, run.seen, f"{sizes} lengths")


def of_guidellm_spans(source: Sequence[Exchange], run: Run) -> Row:
    """The spans as guidellm sent them."""
    seen = sorted(run.seen, key=_order)
    asked = [
        ((body(one)["messages"], _order(one)), (body(other)["messages"], _order(other)))
        for one, other in zip(source, seen, strict=True)
    ]
    return replayed("otel-spans | guidellm", source, seen, f"{_same(asked)} messages and lengths")


def of_vllm_bench(route: str, run: Run) -> Row:
    """A detailed result of vLLM's benchmark."""
    pairs = list(zip(run.told, run.seen, strict=True))
    return read(f"vllm bench, `{route}`", run, pairs, f"{_same([(_counts(a), _counts(b)) for a, b in pairs])} lengths")


def of_guidellm_report(run: Run) -> Row:
    """A report of guidellm."""
    by_body = {_sent(one): one for one in run.seen}
    pairs = [(one, by_body[_sent(one)]) for one in run.told]
    lengths = [(_acceptance(one), _acceptance(other)) for one, other in pairs]
    return read("guidellm report", run, pairs, f"{len(pairs)} of {len(run.told)} bodies, {_same(lengths)} A")


def _acceptance(exchange: Exchange) -> float | None:
    assert exchange.observation is not None
    return exchange.observation.acceptance_length


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/interchange.md"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="specbreaker-interchange-") as work:
        written, told, requests = measure(Path(work))
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    text = PAGE.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        load=f"{load:.1f}",
        requests=requests,
        replayed="\n".join(f"| {' | '.join(row.cells())} |" for row in written),
        read="\n".join(f"| {' | '.join(row.cells())} |" for row in told),
    )
    options.output.write_text(text)


if __name__ == "__main__":
    main()
