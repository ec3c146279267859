"""vLLM's server log: a line of speculation and one of throughput every ten seconds or so.

A line stands for all answers of its interval. Each interval becomes one observation of backend ``vllm-log``: enough to
see a collapse and its episodes in time, not in requests.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from detector.observation import Observation, Quality, RequestFacts, Source
from replay.formats.base import Carries, Format, FormatError, recorded_of
from replay.recorded import Recorded

INTERVAL_SECONDS = 10.0
"""VLLM_LOG_STATS_INTERVAL where the log itself does not tell."""
_SPECULATION = re.compile(
    r"SpecDecoding metrics: Mean acceptance length: (?P<length>[\d.]+), .*?Drafted throughput: (?P<drafted_rate>[\d.]+)"
    r".*?Accepted: (?P<accepted>\d+) tokens, Drafted: (?P<drafted>\d+) tokens, "
    r"Per-position acceptance rate: (?P<positions>[\d., ]+)"
)
_THROUGHPUT = re.compile(r"Avg generation throughput: (?P<rate>[\d.]+) tokens/s, Running: (?P<running>\d+) reqs")
_TIME = re.compile(r"\b(?P<month>\d\d)-(?P<day>\d\d) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\b")


class _Interval(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    accepted: int
    drafted: int
    drafted_per_second: float
    length: float
    positions: tuple[float, ...]
    generated_per_second: float | None
    running: int


def _recognise(_path: Path, head: bytes) -> bool:
    return b"SpecDecoding metrics: Mean acceptance length" in head or b"Avg generation throughput: " in head


def _read(path: Path) -> Recorded:
    intervals: list[_Interval] = []
    rate: float | None = None
    running, at = 1, 0.0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            at = _seconds(line, at)
            if throughput := _THROUGHPUT.search(line):
                rate, running = float(throughput["rate"]), int(throughput["running"])
            elif speculation := _SPECULATION.search(line):
                intervals.append(_interval(speculation, at, rate, running))
                rate = None
    if not intervals:
        raise FormatError(
            f"{path}: no line of 'SpecDecoding metrics': was the engine started with a speculative config, "
            "and without --disable-log-stats?"
        )
    notes = (f"{path}: each line of the log stands for all answers of its interval, not for one",)
    return recorded_of([_observe(one, index) for index, one in enumerate(intervals)], notes)


def _seconds(line: str, before: float) -> float:
    """Seconds since 1970 of a line in the year 2000, since a log has none; without a time, that of the line before."""
    found = _TIME.search(line)
    if found is None:
        return before
    parts = {name: int(value) for name, value in found.groupdict().items()}
    try:
        return datetime(2000, tzinfo=UTC, **parts).timestamp()
    except ValueError:
        return before


def _interval(found: re.Match[str], at: float, rate: float | None, running: int) -> _Interval:
    positions = tuple(float(value) for value in re.findall(r"\d+(?:\.\d+)?", found["positions"]))
    return _Interval(
        at=at,
        accepted=int(found["accepted"]),
        drafted=int(found["drafted"]),
        drafted_per_second=float(found["drafted_rate"]),
        length=float(found["length"]),
        positions=positions,
        generated_per_second=rate or None,
        running=max(1, running),
    )


def _observe(one: _Interval, index: int) -> Observation:
    """The interval's rate is that of one stream: the engine's, divided by the requests that ran when it was logged."""
    depth = len(one.positions) or None
    steps = round(one.drafted / depth) if depth else round(one.accepted / (one.length - 1)) if one.length > 1 else None
    # Logged late after a lull, an interval is longer than usual; its own throughput tells how long it was.
    seconds = one.drafted / one.drafted_per_second if one.drafted_per_second else INTERVAL_SECONDS
    rate = None if one.generated_per_second is None else one.generated_per_second / one.running
    return Observation(
        request_id=f"line-{index}",
        backend="vllm-log",
        facts=RequestFacts(route="other"),
        started_unix=one.at - seconds,
        started=one.at - seconds,
        ended=one.at,
        completion_tokens=None if steps is None else steps + one.accepted,
        verify_steps=steps,
        acceptance_length=one.length,
        acceptance_source=Source.COUNTERS,
        acceptance_quality=Quality.EXACT,
        position_acceptance=one.positions or None,
        num_speculative_tokens=depth,
        step_seconds=None if rate is None else one.length / rate,
        decode_tokens_per_second=rate,
        rate_source=None if rate is None else Source.COUNTERS,
        in_flight=one.running,
    )


FORMAT = Format(
    name="vllm-log",
    description="vLLM server log with 'SpecDecoding metrics' lines",
    carries=Carries(rates=True, acceptance=True),
    recognise=_recognise,
    read=_read,
)
