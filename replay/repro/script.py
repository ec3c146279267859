#!/usr/bin/env python3
"""Does this server's speculative decoding collapse as it was recorded? Needs Python 3.9 and nothing else.

    python3 repro.py http://localhost:8000          # send the requests, print a row each, a table and a verdict
    python3 repro.py --show                         # what would be sent, how the server was started, what is expected

Start the server anew before: a collapse may depend on all that was served since the start. The key of the server, if it
wants one, comes from the environment variable OPENAI_API_KEY. Nothing is sent anywhere but to that server.

How it measures. A streamed answer has one event for each verify step of the engine, with as many tokens as the step
gave: A, the acceptance length, is tokens per step, and tok/s = A x steps per second. The first event belongs to the
prefill and is left out. Answers are cut into segments of 32 steps.

The rule. A segment is slow if the factor that collapsed in the recording (A, or the time of a step) is nearer to its
slow value than to its healthy one: two thirds of the way, in logarithms. The phase changes with the first of two such
segments in a row, and slow phases count if they have less than the square root of the recorded ratio of tok/s.

REPRODUCED      collapses that come after healthy stretches as long as the recorded ones (to a factor of 1.3), on one
                clock: requests, tokens, verify steps or seconds. Where three or more collapses were recorded, that must
                be 20 times as likely as collapses by chance (an e-value, the mean over the clocks); where fewer were,
                as many are enough, each after such a stretch, and chance may do the same
NOT_REPRODUCED  three times the longest healthy stretch of the recording without a collapse, on every clock
INCONCLUSIVE    anything else; the reason is printed

Exit status: 0 REPRODUCED, 1 another verdict, 2 bad usage or the server refuses, 3 the server cannot be reached.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

# ---- the data: begin
DATA: dict[str, Any] = {}
# ---- the data: end

CLOCKS = ("requests", "tokens", "steps", "seconds")
SEGMENT_STEPS = 32
NEARER = 2 / 3
"""So far from healthy to slow, in logarithms, a segment must be to count as slow."""
SAME_LENGTH = 1.3
"""Two healthy stretches whose lengths differ by no more than this factor count as equal."""
MANY_COLLAPSES = 3
"""From so many recorded collapses on, collapses by chance are told from recorded ones."""
CYCLIC = 20.0
BY_CHANCE_SHARE = 0.1
"""Stake on chance, so that one stretch of another length does not lose everything."""
WAITED_STRETCHES = 3.0
MAX_FAILED_SHARE = 0.1
PATIENCE = 4
"""Times the usual number of rounds while no collapse was seen."""
FIGURES = (("tok_s", "tok/s", 1.0), ("acceptance_length", "tokens per step", 1.0), ("step_seconds", "ms a step", 1e3))
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "REPRODUCED", "NOT_REPRODUCED", "INCONCLUSIVE"
EXIT_REFUSED, EXIT_UNREACHABLE = 2, 3

Event = tuple[float, float]
"""(seconds on any one clock, tokens)"""


class Refused(Exception):
    """The server answers, but not what is needed: one line."""


class Unreachable(Exception):
    """Nothing answers: one line."""


# ---- measuring -------------------------------------------------------------------------------------------------------


def segments(started: float, events: Sequence[Event]) -> list[dict[str, float]]:
    """An answer's events cut into segments of 32 steps; the first event is where the first segment begins."""
    cuts = list(range(0, len(events) - 1, SEGMENT_STEPS))
    if len(cuts) > 1 and len(events) - 1 - cuts[-1] < SEGMENT_STEPS / 2:
        cuts.pop()
    total = sum(tokens for _, tokens in events)
    found = []
    for begin, end in zip(cuts, [*cuts[1:], len(events) - 1]):  # noqa: B905 - not in Python 3.9
        tokens = sum(tokens for _, tokens in events[begin + 1 : end + 1])
        seconds = events[end][0] - events[begin][0]
        made = tokens + (events[0][1] if begin == 0 else 0)
        if total > 0:  # seconds are 0 where a busy machine took in many events at once
            found.append(
                {
                    "arrived": started,
                    "started": started if begin == 0 else events[begin][0],
                    "ended": events[end][0],
                    "requests": made / total,
                    "tokens": made,
                    "decoded": tokens,
                    "steps": end - begin,
                    "seconds": seconds,
                }
            )
    return found


def figures(parts: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Totals divided, never means of rates: tok/s, A, and seconds of a step."""
    tokens, steps, seconds = (sum(part[name] for part in parts) for name in ("decoded", "steps", "seconds"))
    if not steps or not seconds:
        return {"tok_s": None, "acceptance_length": None, "step_seconds": None}
    return {"tok_s": tokens / seconds, "acceptance_length": tokens / steps, "step_seconds": seconds / steps}


def phases(slow: Sequence[bool]) -> list[bool]:
    """True where slow: the phase changes with the first of two segments in a row that say so."""
    found, phase = [], False
    for index, one in enumerate(slow):
        following = slow[index + 1] if index + 1 < len(slow) else not one
        if one != phase and following == one:
            phase = one
        found.append(phase)
    return found


def in_order(parts: Sequence[dict[str, float]], slow: Sequence[bool]) -> tuple[list[dict[str, float]], list[bool]]:
    """The segments and their phases in the order of time, or of arrival where the phases change less often so.

    A collapse is of the engine: all that runs side by side slows down at once. Else each request has its own phase.
    """
    by_time = sorted(range(len(parts)), key=lambda index: parts[index]["ended"])
    by_arrival = sorted(by_time, key=lambda index: (parts[index]["arrived"], parts[index]["ended"]))
    found = []
    for order in (by_time, by_arrival):
        its = phases([slow[index] for index in order])
        changes = sum(1 for index in range(1, len(its)) if its[index] != its[index - 1])
        found.append((changes, [parts[index] for index in order], its))
    _, ordered, its = min(found, key=lambda one: one[0])
    return ordered, its


def stretches(parts: Sequence[dict[str, float]], slow: Sequence[bool]) -> list[tuple[bool, dict[str, float]]]:
    """(slow, length on each clock) of each run of segments of one phase, in their order."""
    found: list[tuple[bool, dict[str, float]]] = []
    begin = 0
    for index in range(1, len(parts) + 1):
        if index == len(parts) or slow[index] != slow[begin]:
            its = parts[begin:index]
            lengths = {name: sum(part[name] for part in its) for name in ("requests", "tokens", "steps")}
            lengths["seconds"] = its[-1]["ended"] - its[0]["started"]
            found.append((slow[begin], lengths))
            begin = index
    return found


def slow_segments(parts: Sequence[dict[str, float]], expected: dict[str, Any]) -> list[bool]:
    """Which segments are slow by the factor that collapsed in the recording."""
    healthy, slow, factor = expected["healthy"], expected["slow"], expected["factor"]
    if factor == "acceptance_length":
        limit = healthy[factor] ** (1 - NEARER) * slow[factor] ** NEARER
        return [part["decoded"] / part["steps"] < limit for part in parts]
    # Machines differ in the time of a step, so healthy is here what the fastest quarter of the segments is.
    times = sorted(part["seconds"] / part["steps"] for part in parts if part["seconds"] > 0)
    limit = times[len(times) // 8] * (slow[factor] / healthy[factor]) ** NEARER if times else math.inf
    return [part["seconds"] / part["steps"] > limit for part in parts]


# ---- the verdict -----------------------------------------------------------------------------------------------------


def judge(parts: Sequence[dict[str, float]], failed: int, sent: int, expected: dict[str, Any]) -> dict[str, Any]:
    """The verdict with its reason, the figures of either phase and the stretches."""
    parts, slow = in_order(parts, slow_segments(parts, expected))
    found: dict[str, Any] = {
        "healthy": figures([part for part, is_slow in zip(parts, slow) if not is_slow]),  # noqa: B905
        "slow": figures([part for part, is_slow in zip(parts, slow) if is_slow]),  # noqa: B905
        "stretches": stretches(parts, slow),
    }
    found["verdict"], found["reason"] = _decide(found, failed, sent, expected)
    return found


def _decide(found: dict[str, Any], failed: int, sent: int, expected: dict[str, Any]) -> tuple[str, str]:
    runs = found["stretches"]
    if not runs:
        return INCONCLUSIVE, "no answer told its tokens"
    if failed > MAX_FAILED_SHARE * sent:
        return INCONCLUSIVE, f"{failed} of {sent} requests failed"
    if runs[0][0]:
        return INCONCLUSIVE, "slow from the first step on: start the server anew, and run this again"
    healthy = [lengths for is_slow, lengths in runs if not is_slow]
    collapses = [lengths for is_slow, lengths in runs[:-1] if not is_slow]
    if not collapses:
        return _without_collapse(healthy[-1], expected)
    rates, recorded = (found["slow"]["tok_s"], found["healthy"]["tok_s"]), _ratio(expected)
    ratio = rates[0] / rates[1] if all(rates) else 0.0  # not known where all events came at once
    if ratio > math.sqrt(recorded):
        return INCONCLUSIVE, f"slow phases have {ratio:.0%} of the healthy tok/s, in the recording {recorded:.0%}"
    said = f"{len(collapses)} collapse(s)"
    if expected["collapses"] >= MANY_COLLAPSES:
        evidence = sum(_evidence([run[clock] for run in collapses], clock, expected) for clock in CLOCKS) / len(CLOCKS)
        said += f", {evidence:.3g} times as likely in the recorded cycle as by chance"
        if evidence >= CYCLIC:
            return REPRODUCED, said
        return INCONCLUSIVE, f"{said}, {CYCLIC:g} are needed: more --rounds, or they come by chance"
    fitting = {clock: sum(1 for run in collapses if _fits(run[clock], clock, expected)) for clock in CLOCKS}
    clocks = [clock for clock in CLOCKS if fitting[clock] == max(fitting.values())]
    said += f", {fitting[clocks[0]]} of them after a healthy stretch as in the recording"
    if fitting[clocks[0]] == len(collapses) >= expected["collapses"]:
        again = "; once may be chance: start the server anew and run this again" if len(collapses) == 1 else ""
        return REPRODUCED, f"{said} ({', '.join(clocks)}){again}"
    return INCONCLUSIVE, f"{said}: more --rounds, or it is another collapse, or the server had served before"


def _without_collapse(healthy: dict[str, float], expected: dict[str, Any]) -> tuple[str, str]:
    longest = expected["longest_healthy"]
    waited = min(healthy[clock] / longest[clock] for clock in CLOCKS if longest[clock] > 0)
    said = f"{waited:.1f} of the recording's longest healthy stretches without a collapse"
    if waited >= WAITED_STRETCHES:
        return NOT_REPRODUCED, said
    return INCONCLUSIVE, f"{said}, {WAITED_STRETCHES:g} are needed: more --rounds"


def _ratio(expected: dict[str, Any]) -> float:
    return float(expected["slow"]["tok_s"] / expected["healthy"]["tok_s"])


def _window(clock: str, expected: dict[str, Any]) -> tuple[float, float]:
    recorded = [run[clock] for run in expected["healthy_stretches"]]
    return min(recorded) / SAME_LENGTH, max(recorded) * SAME_LENGTH


def _fits(length: float, clock: str, expected: dict[str, Any]) -> bool:
    low, high = _window(clock, expected)
    return low <= length <= high


def _evidence(lengths: Sequence[float], clock: str, expected: dict[str, Any]) -> float:
    """How much likelier these lengths are if they are as recorded than under the best law without a memory."""
    low, high = _window(clock, expected)
    mean = sum(lengths) / len(lengths)
    nats = 0.0
    for length in lengths:
        by_chance = math.exp(-length / mean) / mean
        as_recorded = 1 / (high - low) if low <= length <= high else 0.0
        nats += math.log((1 - BY_CHANCE_SHARE) * as_recorded / by_chance + BY_CHANCE_SHARE)
    return math.exp(min(nats, 700.0))


# ---- the server ------------------------------------------------------------------------------------------------------


class Server:
    """Where the requests go."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None  # a port that is no number
        if not host or parts.scheme not in ("http", "https"):
            raise Refused(f"not a URL: {url!r}; expected http://HOST:PORT")
        self._secure, self._host, self._port = parts.scheme == "https", host, port
        self._prefix = parts.path.rstrip("/")
        if self._prefix.endswith("/v1"):
            self._prefix = self._prefix[: -len("/v1")]
        self._timeout = timeout_seconds
        self._headers = {"content-type": "application/json", "connection": "close"}
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def open(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """The answer's head has been read. Raises Unreachable."""
        if self._secure:
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(f"{self._host}: cannot be reached: {error}") from error
        connection.request(
            method, self._prefix + path, None if body is None else json.dumps(body).encode(), self._headers
        )
        return connection.getresponse()

    def fetch(self, path: str) -> Any:
        """The JSON of a small answer, None where there is none. Raises Unreachable."""
        try:
            answer = self.open("GET", path)
            return json.loads(answer.read()) if answer.status == 200 else None
        except (OSError, ValueError, http.client.HTTPException):
            return None


def ask(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one request and read its stream: when its events came, with how many tokens each."""
    started = time.monotonic()
    told: dict[str, Any] = {"started": started, "events": [], "error": None, "usage": {}, "counted": True}
    try:
        answer = server.open("POST", path, body)
        options = body["stream_options"]
        if answer.status in (400, 422) and "continuous_usage_stats" in options:
            # A server that counts no tokens by event; what it refused it has not served.
            answer = server.open("POST", path, {**body, "stream_options": _without_counts(options)})
        if answer.status != 200:
            told["error"] = f"HTTP {answer.status}: {answer.read(300).decode(errors='replace')}"
            return told
        _read_events(answer, told)
    except (OSError, http.client.HTTPException, ValueError) as error:
        told["error"] = f"{type(error).__name__}: {error}"
    _spread_tokens(told)
    return told


def _without_counts(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "continuous_usage_stats"}


def _read_events(answer: http.client.HTTPResponse, told: dict[str, Any]) -> None:
    tokens_so_far, ended = 0, False
    for line in iter(answer.readline, b""):
        at = time.monotonic()
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            ended = True
            continue
        event = json.loads(data)
        if event.get("error"):
            told["error"] = str(event["error"])[:300]
            return
        usage, choices = event.get("usage") or {}, event.get("choices") or []
        told["usage"] = usage or told["usage"]
        if not choices:
            continue
        if choices[0].get("finish_reason") == "abort":
            told["error"] = "the engine gave the request up (finish_reason: abort)"
        count = usage.get("completion_tokens")
        if count is not None:
            if count > tokens_so_far:
                told["events"].append((at, count - tokens_so_far))
            tokens_so_far = count
        elif _says_something(choices[0]):
            told["counted"] = False
            told["events"].append((at, 1))
    if not ended and told["error"] is None:
        told["error"] = "the stream was cut"


def _says_something(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or choice
    return any(delta.get(name) for name in ("content", "text", "reasoning_content", "reasoning", "tool_calls"))


def _spread_tokens(told: dict[str, Any]) -> None:
    """Where events came without counts, each has the mean: right for A of the answer, not for its segments."""
    total, events = told["usage"].get("completion_tokens"), told["events"]
    if told["counted"] or len(events) < 2:
        return
    if total is None:
        told["events"] = []
        return
    mean = (total - 1) / (len(events) - 1)
    told["events"] = [(at, 1.0 if index == 0 else mean) for index, (at, _) in enumerate(events)]


# ---- sending ---------------------------------------------------------------------------------------------------------


def filled(value: Any, texts: Sequence[str]) -> Any:
    """A body with its texts in their places."""
    if isinstance(value, dict):
        if set(value) == {"$text"}:
            return texts[value["$text"]]
        return {name: filled(item, texts) for name, item in value.items()}
    return [filled(item, texts) for item in value] if isinstance(value, list) else value


def send_round(server: Server, requests: Sequence[dict[str, Any]], told: Any) -> list[dict[str, Any]]:
    """Send the whole sequence once; ``told`` is called with each request's number and answer."""
    answers: list[dict[str, Any] | None] = [None] * len(requests)
    if all(request["at"] is None for request in requests):
        for number, request in enumerate(requests):
            answers[number] = ask(server, request["path"], request["body"])
            told(number, answers[number])
        return [answer for answer in answers if answer is not None]
    ends = [threading.Event() for _ in requests]
    begin = time.monotonic()
    failures: list[Unreachable] = []

    def work(number: int) -> None:
        request = requests[number]
        due = begin + (request["at"] or 0.0)
        if request["after"] is not None:
            ends[request["after"]].wait()
            due = time.monotonic() + request["pause"]
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            answers[number] = ask(server, request["path"], request["body"])
            told(number, answers[number])
        except Unreachable as error:
            failures.append(error)
        finally:
            ends[number].set()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [answer for answer in answers if answer is not None]


def check_server(server: Server, data: dict[str, Any], model: str | None) -> list[dict[str, Any]]:
    """The requests, with a model that the server has. Raises Refused and Unreachable."""
    listed = server.fetch("/v1/models") or {}
    served = [str(one.get("id")) for one in listed.get("data") or []]
    requests = []
    for request in data["requests"]:
        body = filled(request["body"], data["texts"])
        if model is not None:
            body["model"] = model
        elif served and body.get("model") not in served:
            if len(served) > 1:
                raise Refused(f"the server has {', '.join(served[:8])}, not {body.get('model')}: choose with --model")
            body["model"] = served[0]
        requests.append({**request, "body": body})
    return requests


# ---- the report ------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(data: dict[str, Any]) -> None:
    """What is in this file."""
    say(f"recorded by specbreaker {data['tool_version']}, session {data['session']}")
    say(f"how the server was started: {data['serve_command'] or 'not known'}")
    for name, value in data["environment"].items():
        say(f"  {name}: {value}")
    say("prompts: " + ("as they were recorded" if data["text"] else "made up, as long as the recorded ones"))
    for number, request in enumerate(data["requests"]):
        when = "after the one before" if request["at"] is None else f"at {request['at']:.3f} s"
        if request["after"] is not None:
            when = f"{request['pause']:.3f} s after the end of {request['after']}"
        body = request["body"]
        limit = next((body[name] for name in ("max_tokens", "max_completion_tokens") if name in body), "no limit")
        say(f"  {number}: {request['path']}, {when}, {request['prompt_tokens'] or '?'} prompt tokens, answer {limit}")
    show_table(data["expected"], None)


def show_table(expected: dict[str, Any], found: dict[str, Any] | None) -> None:
    """Recorded and measured figures side by side."""
    say("")
    say(f"{'':<26}{'recorded':>12}{'measured' if found else '':>12}")
    for phase in ("healthy", "slow"):
        for name, unit in (("tok_s", "tok/s"), ("acceptance_length", "A, tokens per step"), ("step_seconds", "ms")):
            scale = 1000.0 if name == "step_seconds" else 1.0
            cells = [_cell(side[phase][name], scale) for side in (expected, found) if side is not None]
            say(
                f"{phase + ', ' + (unit if scale == 1 else 'ms a step'):<26}" + "".join(f"{cell:>12}" for cell in cells)
            )
    healthy = [lengths for is_slow, lengths in found["stretches"] if not is_slow] if found else []
    for clock in CLOCKS:
        recorded = ", ".join(f"{run[clock]:.4g}" for run in expected["healthy_stretches"][:4])
        here = ", ".join(f"{run[clock]:.4g}" for run in healthy[:4])
        say(f"healthy stretch, {clock}: recorded {recorded}" + (f"; measured {here}" if found else ""))


def _cell(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{value * scale:.2f}"


def row(number: int, request: dict[str, Any], answer: dict[str, Any]) -> str:
    """One request in a line."""
    if answer["error"]:
        return f"{number:>5}  failed: {answer['error']}"
    events, usage = answer["events"], answer["usage"]
    its = figures(segments(answer["started"], events))
    first = f"{(events[0][0] - answer['started']) * 1000:.0f}" if events else "-"
    cells = [
        f"{number:>5}",
        f"{usage.get('prompt_tokens') or '-':>8}",
        f"{usage.get('completion_tokens') or '-':>8}",
        f"{len(events):>8}",
        f"{first:>8}",
        f"{_cell(its['tok_s'], 1.0):>9}",
        f"{_cell(its['acceptance_length'], 1.0):>7}",
        f"{_cell(request['recorded_tok_s'], 1.0):>10}",
    ]
    return "".join(cells)


def run(url: str, data: dict[str, Any], model: str | None, rounds: int | None, timeout_seconds: float) -> int:
    """Send, measure, print; the exit status. Raises Refused and Unreachable."""
    server, expected = Server(url, timeout_seconds), data["expected"]
    requests = check_server(server, data, model)
    version = (server.fetch("/version") or {}).get("version", "unknown")
    say(f"server {url}, version {version}; recorded with {data['environment'].get('engine_version', 'unknown')}")
    say(f"{'':>5}{'prompt':>8}{'answer':>8}{'events':>8}{'first ms':>8}{'tok/s':>9}{'A':>7}{'recorded':>10}")
    answers, found = _send_rounds(server, requests, expected, rounds)
    show_table(expected, found)
    for note in _notes(answers, data):
        say(f"note: {note}")
    say("")
    say(f"{found['verdict']}: {found['reason']}")
    return 0 if found["verdict"] == REPRODUCED else 1


def _send_rounds(
    server: Server, requests: Sequence[dict[str, Any]], expected: dict[str, Any], rounds: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Send the sequence until that decides, or would not; the answers and what was found."""
    answers: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    round_number, limit = 0, 1
    while round_number < limit:
        offset = round_number * len(requests)
        told = lambda number, answer: say(row(offset + number, requests[number], answer))  # noqa: E731, B023
        answers += send_round(server, requests, told)
        if round_number == 0 and all(answer["error"] for answer in answers):
            raise Refused(f"no request was answered: {answers[0]['error']}")
        found = _judged(answers, expected)
        slow = [is_slow for is_slow, _ in found["stretches"]]
        if found["verdict"] != INCONCLUSIVE or slow[:1] == [True]:
            break
        # A faster server needs more rounds until as many seconds have passed.
        limit = rounds or expected["rounds"] * (1 if any(slow) else PATIENCE)
        round_number += 1
    return answers, found


def _judged(answers: Sequence[dict[str, Any]], expected: dict[str, Any]) -> dict[str, Any]:
    whole = [answer for answer in answers if not answer["error"]]
    parts = [part for answer in whole for part in segments(answer["started"], answer["events"])]
    return judge(parts, len(answers) - len(whole), len(answers), expected)


def _notes(answers: Sequence[dict[str, Any]], data: dict[str, Any]) -> list[str]:
    notes = []
    if any(not answer["counted"] for answer in answers if not answer["error"]):
        notes.append("the server counts no tokens by event: a collapse has no place inside an answer")
    wanted = [request["prompt_tokens"] for request in data["requests"]]
    off = [
        answer["usage"]["prompt_tokens"] / wanted[number % len(wanted)]
        for number, answer in enumerate(answers)
        if answer["usage"].get("prompt_tokens") and wanted[number % len(wanted)]
    ]
    if off and not 0.9 <= sorted(off)[len(off) // 2] <= 1.1:
        notes.append(f"prompts have {sorted(off)[len(off) // 2]:.2f} times the recorded tokens: another tokenizer")
    return notes


def main(arguments: Sequence[str] | None = None, data: dict[str, Any] | None = None) -> int:
    """The exit status."""
    data = DATA if data is None else data
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", nargs="?", help="the server, http://HOST:PORT")
    parser.add_argument("--model", help="default: the recorded one, or the only one that the server has")
    parser.add_argument("--rounds", type=int, help="most times the sequence is sent")
    parser.add_argument("--timeout-seconds", type=float, default=600.0, help="longest silence (default 600)")
    parser.add_argument("--show", action="store_true", help="say what is in this file, and send nothing")
    given = parser.parse_args(arguments)
    if not data:
        parser.error("this file holds no session: `specbreaker replay pack` puts one in")
    if given.show:
        show(data)
        return 0
    if given.url is None or (given.rounds is not None and given.rounds < 1):
        parser.error("--rounds: at least 1" if given.url else "which server? python3 repro.py http://localhost:8000")
    try:
        return run(given.url, data, given.model, given.rounds, given.timeout_seconds)
    except Refused as error:
        sys.stderr.write(f"repro: {error}\n")
        return EXIT_REFUSED
    except Unreachable as error:
        sys.stderr.write(f"repro: {error}\n")
        return EXIT_UNREACHABLE
    except KeyboardInterrupt:
        sys.stderr.write("repro: interrupted\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
