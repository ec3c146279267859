"""llama-server's log: the timings and the draft acceptance that it prints after each request.

Both the older form, with timings on lines of their own after ``slot print_timing``, and the newer one, with that prefix
on every line, are read. Lines have times since the start of the server, if they have any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from detector.observation import Observation, Quality, RequestFacts, Source
from replay.formats.base import Carries, Format, FormatError, recorded_of
from replay.recorded import Recorded

_SLOT = re.compile(r"slot print_timing: id +\d+ \| task (?P<task>-?\d+) \|")
_PROMPT = re.compile(r"prompt eval time = +(?P<ms>[\d.]+) ms / +(?P<tokens>\d+) tokens")
_DECODE = re.compile(r"(?<!prompt )\beval time = +(?P<ms>[\d.]+) ms / +(?P<tokens>\d+) tokens")
_DRAFT = re.compile(
    r"draft acceptance(?: rate)? = +[\d.]+ \( *(?P<accepted>\d+) accepted / *(?P<drafted>\d+) generated\)"
    r"(?:, mean (?:acceptance length|len) = +(?P<length>[\d.]+))?"
)
_TIME = re.compile(r"^(?:\[\d+\] )?(?P<minutes>\d+)\.(?P<seconds>\d\d)\.(?P<ms>\d{3})\.(?P<us>\d{3}) ")


class _Request(msgspec.Struct):
    task: str
    ended: float | None = None
    prompt_tokens: int | None = None
    prompt_seconds: float = 0.0
    tokens: int | None = None
    seconds: float | None = None
    accepted: int | None = None
    drafted: int | None = None
    mean_length: float | None = None


def _recognise(_path: Path, head: bytes) -> bool:
    return b"print_timing: id" in head or (b"prompt eval time =" in head and b"tokens per second" in head)


def _read(path: Path) -> Recorded:
    observations: list[Observation] = []
    now = 0.0
    with path.open(encoding="utf-8", errors="replace") as file:
        for request in _requests(file):
            if request.tokens is None or request.seconds is None:
                continue
            now = request.ended if request.ended is not None else now + request.prompt_seconds + request.seconds
            observations.append(_observe(request, len(observations), now))
    if not observations:
        raise FormatError(f"{path}: no request's timings ('eval time = ...') in it: is it a log of llama-server?")
    return recorded_of(observations)


def _requests(lines: Iterator[str]) -> Iterator[_Request]:
    """One for each task whose timings are printed; a draft's line comes last."""
    current = _Request("")
    for line in lines:
        slot = _SLOT.search(line)
        task = slot["task"] if slot else current.task
        if task != current.task or (_PROMPT.search(line) and current.tokens is not None):
            yield current
            current = _Request(task)
        _note(current, line)
    yield current


def _note(request: _Request, line: str) -> None:
    if clock := _TIME.match(line):
        at = int(clock["minutes"]) * 60 + int(clock["seconds"]) + int(clock["ms"]) / 1e3 + int(clock["us"]) / 1e6
        request.ended = at if _SLOT.search(line) else request.ended
    if prompt := _PROMPT.search(line):
        request.prompt_tokens, request.prompt_seconds = int(prompt["tokens"]), float(prompt["ms"]) / 1000
    elif decode := _DECODE.search(line):
        request.tokens, request.seconds = int(decode["tokens"]), float(decode["ms"]) / 1000
    elif draft := _DRAFT.search(line):
        request.accepted, request.drafted = int(draft["accepted"]), int(draft["drafted"])
        request.mean_length = float(draft["length"]) if draft["length"] else None


def _observe(one: _Request, index: int, ended: float) -> Observation:
    assert one.tokens is not None
    assert one.seconds is not None
    started = ended - one.prompt_seconds - one.seconds
    # Each token after the first is an accepted draft or the one token that its verify step adds.
    steps = None if one.accepted is None else max(0, one.tokens - 1 - one.accepted) or None
    length = None if steps is None or one.accepted is None else 1 + one.accepted / steps
    if one.mean_length is not None and one.accepted is not None and one.mean_length > 1:
        steps, length = round(one.accepted / (one.mean_length - 1)), one.mean_length
    rate = (one.tokens - 1) / one.seconds if one.seconds > 0 and one.tokens > 1 else None
    return Observation(
        request_id=f"task-{one.task}" if one.task else f"request-{index}",
        backend="llama-server",
        facts=RequestFacts(route="other"),
        started_unix=started,
        started=started,
        ended=ended,
        ttft_seconds=one.prompt_seconds,
        decode_seconds=one.seconds or None,
        prompt_tokens=one.prompt_tokens,
        completion_tokens=one.tokens,
        verify_steps=steps,
        acceptance_length=length,
        acceptance_source=None if length is None else Source.ENGINE,
        acceptance_quality=None if length is None else Quality.TRIMMED,
        step_seconds=one.seconds / steps if steps else None,
        decode_tokens_per_second=rate,
        rate_source=None if rate is None else Source.ENGINE,
    )


FORMAT = Format(
    name="llama-log",
    description="llama-server log",
    carries=Carries(lengths=True, rates=True, acceptance=True),
    recognise=_recognise,
    read=_read,
)
