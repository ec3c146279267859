"""Write docs/results/overhead.md from the JSON of load.py: every figure and every verdict is computed from it.

usage: table.py RESULT.json OUT.md

The JSON itself goes beside OUT.md, with the ending .json.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from results import DIRECT, Run, TargetResult

SUBJECT = "specbreaker"
MEGABYTE = 1e6
MEMORY_BAR_STREAMS = 10_000
COLUMNS = (
    "",
    "added TTFT p50, ms",
    "added TTFT p99, ms",
    "added TTFT alone, ms",
    "added total alone, ms",
    "added event delay p50 / p99, ms",
    "CPU per event, µs",
    "events/s held",
    "RSS before -> after, MB",
)
Figure = Callable[[TargetResult], float | None]


class Bar(msgspec.Struct, frozen=True):
    """A limit that `SUBJECT` must keep. None: it, or what it is compared with, was not measured."""

    name: str
    unit: str
    measured: float | None
    limit: float | None
    strictly: bool = False
    of_direct: float | None = None
    """The figure of `direct` itself where `measured` is a difference from it."""

    @property
    def verdict(self) -> str:
        """``pass``, ``FAIL``, ``not measured`` or ``too noisy``: `direct` alone is over the limit."""
        if self.measured is None or self.limit is None:
            return "not measured"
        if self.of_direct is not None and self.of_direct > self.limit:
            return f"too noisy: `direct` itself has {decimals(self.of_direct)} {self.unit}"
        kept = self.measured < self.limit if self.strictly else self.measured <= self.limit
        return "pass" if kept else "FAIL"


def ttft_p50_ms(row: TargetResult) -> float | None:
    """Median TTFT beside other streams."""
    return row.paced.ttft.p50_ms if row.paced else None


def ttft_p99_ms(row: TargetResult) -> float | None:
    """99th percentile of TTFT beside other streams."""
    return row.paced.ttft.p99_ms if row.paced else None


def delay_p50_ms(row: TargetResult) -> float | None:
    """Median one-way delay of an event beside other streams."""
    return row.paced.event_delay.p50_ms if row.paced else None


def delay_p99_ms(row: TargetResult) -> float | None:
    """99th percentile of the one-way delay of an event beside other streams."""
    return row.paced.event_delay.p99_ms if row.paced else None


def ttft_alone_ms(row: TargetResult) -> float | None:
    """Median TTFT of one stream at a time."""
    return row.alone.ttft.p50_ms if row.alone else None


def total_alone_ms(row: TargetResult) -> float | None:
    """Median total time of one stream at a time."""
    return row.alone.total.p50_ms if row.alone else None


def cpu_us(row: TargetResult | None) -> float | None:
    """CPU per event."""
    return row.paced.cpu_us_per_event if row and row.paced else None


def added(row: TargetResult | None, direct: TargetResult, figure: Figure) -> float | None:
    """The row's figure minus that of `direct`."""
    of_row, of_direct = figure(row) if row else None, figure(direct)
    return None if of_row is None or of_direct is None else of_row - of_direct


def decimals(value: float | None, places: int = 2, sign: str = "") -> str:
    """`value` with that many decimals; a dash where it is None."""
    return "-" if value is None else f"{value:{sign}.{places}f}"


def held_rate_text(row: TargetResult) -> str:
    """Events per second to three figures, with ``≥`` where the stub was the limit."""
    if row.held_rate is None:
        return "-"
    return (
        "≥ " if row.held_rate.limited_by_harness else ""
    ) + f"{float(f'{row.held_rate.events_per_second:.3g}'):,.0f}"


def memory_text(row: TargetResult, streams_wanted: float) -> str:
    """Resident memory before and after, and after how many streams where the time ended first."""
    if row.memory is None:
        return "-"
    text = f"{row.memory.rss_before_bytes / MEGABYTE:.0f} -> {row.memory.rss_after_bytes / MEGABYTE:.0f}"
    return text if row.memory.streams >= streams_wanted else f"{text} ({row.memory.streams:,} streams)"


def cells(row: TargetResult, direct: TargetResult, run: Run) -> list[str]:
    """One line of the table. The line of `direct` itself has absolute figures."""
    name = f"{row.name} {row.version}".strip()
    if row.failed:
        return [name, row.failed.replace("|", "/"), *[""] * (len(COLUMNS) - 2)]
    if row is direct:
        times = [decimals(figure(row)) for figure in (ttft_p50_ms, ttft_p99_ms, ttft_alone_ms, total_alone_ms)]
        delays = [decimals(figure(row)) for figure in (delay_p50_ms, delay_p99_ms)]
        name += " (absolute)"
    else:
        figures = (ttft_p50_ms, ttft_p99_ms, ttft_alone_ms, total_alone_ms)
        times = [decimals(added(row, direct, figure), sign="+") for figure in figures]
        delays = [decimals(added(row, direct, figure), sign="+") for figure in (delay_p50_ms, delay_p99_ms)]
    memory = memory_text(row, run.settings["memory_streams"])
    return [name, *times, " / ".join(delays), decimals(cpu_us(row), 1), held_rate_text(row), memory]


def markdown_table(lines: Iterable[Iterable[str]]) -> str:
    """A table whose first line is the header."""
    header, *body = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "|" + "---|" * (header.count("|") - 1)
    return "\n".join([header, rule, *body])


def figures(run: Run) -> str:
    """The table of all targets."""
    direct = next(row for row in run.targets if row.name == DIRECT)
    return markdown_table([COLUMNS, *(cells(row, direct, run) for row in run.targets)])


def bars(run: Run) -> list[Bar]:
    """The limits that DESIGN sets to the subject, with what this run measured."""
    rows = {row.name: row for row in run.targets}
    subject, direct = rows.get(SUBJECT), rows[DIRECT]
    if subject and subject.failed:
        subject = None
    nginx_us, router_us = cpu_us(rows.get("nginx")), cpu_us(rows.get("vllm-router"))
    memory = subject.memory if subject else None
    whole = memory is not None and memory.streams >= MEMORY_BAR_STREAMS
    rss_megabytes = memory.rss_after_bytes / MEGABYTE if memory and whole else None
    return [
        Bar("added TTFT p50", "ms", added(subject, direct, ttft_p50_ms), 0.3, of_direct=ttft_p50_ms(direct)),
        Bar("added TTFT p99", "ms", added(subject, direct, ttft_p99_ms), 2.0, of_direct=ttft_p99_ms(direct)),
        Bar("CPU per event, 1.25 x nginx's", "µs", cpu_us(subject), nginx_us and 1.25 * nginx_us),
        Bar("CPU per event, below vllm-router's", "µs", cpu_us(subject), router_us, strictly=True),
        Bar("RSS after 10,000 streams", "MB", rss_megabytes, 80.0),
    ]


def drift(run: Run) -> str:
    """How far the rounds of `direct` lie apart: a difference below it is noise."""
    direct = next(row for row in run.targets if row.name == DIRECT)
    if direct.paced is None:
        return "Noise: not measured."
    rounds = direct.paced.ttft.round_p50_ms
    lowest, highest = min(rounds), max(rounds)
    return f"Noise: `direct`'s median TTFT lay between {lowest:.2f} and {highest:.2f} ms in its {len(rounds)} rounds."


def report(run: Run) -> str:
    """The whole page."""
    facts = "; ".join(f"{name} {value}" for name, value in run.machine.items())
    events, streams, gap_ms = run.settings["events"], run.settings["streams"], run.settings["gap_seconds"] * 1e3
    lines = [("bar", "measured", "limit", "")]
    for bar in bars(run):
        limit = f"{'<' if bar.strictly else '≤'} {decimals(bar.limit)} {bar.unit}"
        lines.append((bar.name, f"{decimals(bar.measured)} {bar.unit}", limit, bar.verdict))
    return f"""# Overhead beside the peers

Written by `make bench` ({run.date_utc} UTC, {run.wall_seconds:.0f} s): do not edit. How each column is measured, and
the traps: [tests/bench/README.md](../../tests/bench/README.md).

Machine: {facts}. Command: `{run.command}`.

{figures(run)}

Load: {streams:.0f} streams of {events:.0f} events, one event per {gap_ms:g} ms each. Alone: one stream at a time,
no pauses; "added total" is that of {events:.0f} events. RSS: around {run.settings["memory_streams"]:,.0f} streams.
{drift(run)}

{markdown_table(lines)}
"""


def main() -> None:
    """Read the result, write the page and the copy of the result."""
    if len(sys.argv) != 3:
        sys.exit("usage: table.py RESULT.json OUT.md")
    source, page = Path(sys.argv[1]), Path(sys.argv[2])
    run = msgspec.json.decode(source.read_bytes(), type=Run)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report(run))
    shutil.copyfile(source, page.with_suffix(".json"))
    print(f"{page} and {page.with_suffix('.json').name} written")


if __name__ == "__main__":
    main()
