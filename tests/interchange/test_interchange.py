"""Real tools replay what we write, and we read what they write: the same requests, the same counts.

No times are asserted: ``python -m tests.interchange.page`` measures them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from replay.formats import read_recording
from replay.recorded import Exchange
from tests.interchange import tools
from tests.interchange.tools import Run, body, convert

pytestmark = [pytest.mark.interchange, pytest.mark.timeout(300)]


def as_sent(exchange: Exchange) -> bytes:
    """The body with its fields in their order, without white space, which some clients write and some do not."""
    return msgspec.json.encode(body(exchange))


def by_max_tokens(exchange: Exchange) -> int:
    """What tells the requests of the recording apart."""
    asked = body(exchange)
    found = asked.get("max_tokens", asked.get("max_completion_tokens"))
    assert isinstance(found, int)
    return found


def sizes(exchange: Exchange) -> tuple[int | None, int | None]:
    assert exchange.observation is not None
    return exchange.observation.prompt_tokens, exchange.observation.completion_tokens


@pytest.fixture(scope="module")
def by_aiperf(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = tmp_path_factory.mktemp("aiperf")
    return tools.aiperf(work, convert(source, work / "trace.jsonl", "mooncake"))


def test_aiperf_sends_our_trace_and_its_export_says_so(source: Path, by_aiperf: Run) -> None:
    run = by_aiperf
    recorded = read_recording(source).exchanges
    assert len(recorded) == len(run.seen) == len(run.told) == tools.TALKS + 2
    expected = [as_sent(one) for one in sorted(recorded, key=by_max_tokens)]
    assert [as_sent(one) for one in sorted(run.seen, key=by_max_tokens)] == expected
    assert [as_sent(one) for one in sorted(run.told, key=by_max_tokens)] == expected
    seen = {one.request.request_id: one for one in run.seen}
    for one in run.told:
        other = seen[one.request.request_id]
        assert as_sent(one) == as_sent(other)
        assert one.observation is not None
        assert other.observation is not None
        assert one.observation.content_events == other.observation.content_events
        if one.observation.completion_tokens is not None:  # aiperf gets what its server sends: no usage unasked
            assert sizes(one) == sizes(other)
    asked = [one for one in run.told if "stream_options" in body(one)]
    assert all(one.observation and one.observation.completion_tokens for one in asked)


def test_aiperf_sends_a_turn_after_the_turn_before(by_aiperf: Run) -> None:
    first, second = sorted(by_aiperf.seen, key=by_max_tokens)[-2:]
    assert first.ended is not None
    assert second.request.at > first.ended


@pytest.mark.parametrize("route", tools.ROUTES)
def test_vllm_bench_counts_what_the_proxy_counted(tmp_path: Path, route: str) -> None:
    run = tools.vllm_bench(tmp_path, route)
    assert len(run.told) == 8
    assert sorted(map(sizes, run.told)) == sorted(map(sizes, run.seen))
    assert sorted(map(steps_told, run.told)) == sorted(map(steps_seen, run.seen))


def steps_seen(exchange: Exchange) -> int:
    assert exchange.observation is not None
    assert exchange.observation.content_events is not None
    return exchange.observation.content_events - 1


def steps_told(exchange: Exchange) -> int:
    return len(exchange.steps) - 1


def test_vllm_replays_a_timed_trace(source: Path, tmp_path: Path) -> None:
    run = tools.vllm_timed_trace(tmp_path, convert(source, tmp_path / "trace.jsonl", "timed-trace"))
    recorded = read_recording(source).exchanges
    assert [sizes(one) for one in run.seen] == [sizes(one) for one in recorded]
    assert [sizes(one) for one in run.told] == [sizes(one) for one in recorded]


def test_a_report_of_guidellm_has_the_requests_and_the_acceptance(tmp_path: Path) -> None:
    run = tools.guidellm_synthetic(tmp_path)
    seen = {as_sent(one): one for one in run.seen}
    assert len(seen) == 8
    assert len(run.told) in (7, 8), "guidellm 0.8.1 leaves one out of its own counts, too, where the machine is busy"
    for one in run.told:
        other = seen[as_sent(one)]
        assert sizes(one) == sizes(other)
        assert one.observation is not None
        assert other.observation is not None
        assert one.observation.acceptance_length == other.observation.acceptance_length
        assert one.observation.acceptance_source is other.observation.acceptance_source


def test_guidellm_replays_our_spans(source: Path, tmp_path: Path) -> None:
    run = tools.guidellm_spans(tmp_path, convert(source, tmp_path / "spans.jsonl", "otel-spans"))
    recorded = sorted(read_recording(source).exchanges, key=by_max_tokens)
    seen = sorted(run.seen, key=by_max_tokens)
    assert [by_max_tokens(one) for one in seen] == [by_max_tokens(one) for one in recorded]
    assert [body(one)["messages"] for one in seen] == [body(one)["messages"] for one in recorded]


def test_the_recording_has_the_text_and_the_counts_that_the_others_are_held_against(source: Path) -> None:
    assert [sizes(one)[1] for one in read_recording(source).exchanges] == [
        by_max_tokens(one) for one in read_recording(source).exchanges
    ]
