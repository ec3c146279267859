"""The meter: captures of real engines, and made-up streams that hide their steps."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_captures import Capture, capture, names

from detector.observation import (
    Ending,
    Observation,
    Quality,
    RequestFacts,
    Route,
    Source,
    SpeculationCounts,
)
from detector.tap.meter import MAX_UNDRAINED_STEPS, Meter

DONE = b"data: [DONE]\n\n"
STEP_SECONDS = 0.02


def meter(route: Route = "chat", **facts: Any) -> Meter:
    return Meter(
        RequestFacts(route=route, stream=True, **facts),
        request_id="r1",
        backend="b1",
        generation=3,
        started=100.0,
        started_unix=1.8e9,
    )


def replay(
    answer: Capture, spacing: float = STEP_SECONDS, finish: dict[str, Any] | None = None, **facts: Any
) -> Observation:
    """The capture, one HTTP chunk every ``spacing`` seconds."""
    route: Route = "chat" if "chat" in answer.name else "completions"
    measuring = meter(route, **facts)
    at = 100.0
    measuring.sent(at)
    measuring.head(at, answer.status, answer.content_type)
    for payload in answer.payloads:
        at += spacing
        measuring.feed(at, payload)
    return measuring.finish(at, Ending.COMPLETE if answer.whole else Ending.UPSTREAM_CLOSED, **(finish or {}))


def stream(
    sizes: list[int],
    *,
    counted: bool = True,
    usage: bool = True,
    spacing: list[float] | float = STEP_SECONDS,
    measuring: Meter | None = None,
    delta: str = "content",
    finish: dict[str, Any] | None = None,
    before_finish: Any = None,
) -> Observation:
    """An answer of vLLM: a role event, then one event of so many tokens each, the first being the prefill's."""
    measuring = measuring or meter()
    at, total = 100.5, 0
    measuring.head(at, 200, "text/event-stream; charset=utf-8")
    measuring.feed(at, event({"role": "assistant", "content": ""}, 0 if counted else None))
    for number, size in enumerate(sizes):
        if number:
            at += spacing[number - 1] if isinstance(spacing, list) else spacing
        total += size
        last = number == len(sizes) - 1
        measuring.feed(at, event({delta: "x" * size}, total if counted else None, "length" if last else None))
    if usage:
        body = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": total}}
        measuring.feed(at, b"data: " + json.dumps(body).encode() + b"\n\n")
    measuring.feed(at, DONE)
    if before_finish is not None:
        before_finish(measuring)
    return measuring.finish(at, Ending.COMPLETE, **(finish or {}))


def event(delta: dict[str, Any], total: int | None, reason: str | None = None) -> bytes:
    body: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    if reason is not None:
        body["choices"][0]["stop_reason"] = None
    if total is not None:
        body["usage"] = {"completion_tokens": total}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


# ---- captures --------------------------------------------------------------------------------------------------------

WITH_COUNTS = [name for name in names("dflash_trained_*.raw") if "plain" not in name and "nonstream" not in name]
WITHOUT_COUNTS = [*names("ngram_*.raw"), *names("draft_*.raw"), *names("plain_*.raw")]


def engine_figures(answer: Capture) -> dict[str, Any]:
    found = re.search(rb'"metrics":(\{.*\})\}', answer.payload)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


@pytest.mark.parametrize("name", [*WITH_COUNTS, *names("dflash_trained_*_nonstream.raw")])
def test_a_of_the_engine(name: str) -> None:
    answer = capture(name)
    seen, figures = replay(answer), engine_figures(answer)
    counts = figures["speculative_decoding"]
    assert seen.acceptance_length == counts["mean_acceptance_length"]
    assert (seen.acceptance_source, seen.acceptance_quality) == (Source.ENGINE, Quality.EXACT)
    assert (seen.verify_steps, seen.num_speculative_tokens) == (counts["num_spec_steps"], counts["num_spec_tokens"])
    per_step = counts["per_step_accepted"]
    assert seen.position_acceptance == tuple(
        sum(accepted > position for accepted in per_step) / len(per_step) for position in range(7)
    )
    assert seen.rate_source is Source.ENGINE
    assert seen.step_seconds == pytest.approx(figures["generation_time_ms"] / 1000 / counts["num_spec_steps"])
    assert seen.decode_tokens_per_second == pytest.approx(119 / (figures["generation_time_ms"] / 1000))
    assert (seen.completion_tokens, seen.finish_reason, seen.ending) == (120, "length", Ending.COMPLETE)


def without_metrics(answer: Capture) -> Capture:
    """The capture as an engine without per-request metrics would have sent it."""
    payloads = [re.sub(rb',"metrics":\{.*\}\}', b"}", payload) for payload in answer.payloads]
    return Capture(answer.name, answer.status, answer.content_type, payloads, answer.whole)


@pytest.mark.parametrize("name", [name for name in WITH_COUNTS if name != "dflash_trained_chat_stream.raw"])
def test_cadence_of_the_same_streams_agrees_with_the_engine(name: str) -> None:
    answer = capture(name)
    counts = engine_figures(answer)["speculative_decoding"]
    seen = replay(without_metrics(answer))
    assert (seen.acceptance_source, seen.acceptance_quality) == (Source.CADENCE, Quality.TRIMMED)
    assert seen.verify_steps == counts["num_spec_steps"]
    assert seen.acceptance_length == pytest.approx(counts["mean_acceptance_length"], abs=7 / counts["num_spec_steps"])
    assert seen.step_seconds == pytest.approx(STEP_SECONDS)
    assert seen.decode_tokens_per_second == pytest.approx(seen.acceptance_length / seen.step_seconds)


def test_cadence_of_a_capture_with_merged_steps_is_above_the_truth() -> None:
    """Twelve of its events hold two steps, and one of them more tokens than one step can yield."""
    answer = capture("dflash_trained_chat_stream.raw")
    counts = engine_figures(answer)["speculative_decoding"]
    seen = replay(without_metrics(answer), finish={"num_speculative_tokens": 7})
    assert (seen.verify_steps, counts["num_spec_steps"]) == (57, 69)
    assert seen.acceptance_length == 119 / 57 > counts["mean_acceptance_length"]
    assert (seen.merged_events, seen.acceptance_quality) == (1, Quality.UPPER_BOUND)


@pytest.mark.parametrize("name", WITHOUT_COUNTS)
def test_cadence_of_other_drafters(name: str) -> None:
    answer = capture(name)
    seen = replay(answer)
    ids = [len(found.split(b",")) for found in re.findall(rb'"token_ids":\[([^\]]+)\]\}\]', answer.payload)]
    assert (seen.content_events, seen.verify_steps) == (len(ids), len(ids) - 1)
    assert seen.acceptance_length == (sum(ids) - ids[0]) / (len(ids) - 1)
    assert seen.acceptance_source is Source.CADENCE
    if name.startswith("plain"):
        assert seen.acceptance_length == 1.0


@pytest.mark.parametrize("name", names("dflash_trained_*_plain.raw"))
def test_a_stream_without_usage_says_nothing_of_a(name: str) -> None:
    seen = replay(capture(name))
    assert (seen.acceptance_length, seen.verify_steps, seen.decode_tokens_per_second) == (None, None, None)
    assert (seen.content_events, seen.finish_reason) == (70 if "chat" in name else 20, "length")
    assert seen.ttft_seconds is not None


KILLED = {
    "kill_api_INT_st0_stream.raw": Ending.UPSTREAM_CLOSED,
    "kill_api_KILL_st0_stream.raw": Ending.UPSTREAM_CLOSED,
    "kill_api_TERM_st0_stream.raw": Ending.UPSTREAM_CLOSED,
    "kill_api_TERM_st20_stream.raw": Ending.COMPLETE,
    "kill_api_TERM_st20_nonstream.raw": Ending.COMPLETE,
    "kill_engine_KILL_st0_stream.raw": Ending.ENGINE_ERROR,
    "kill_engine_KILL_st0_nonstream.raw": Ending.COMPLETE,
    "kill_engine_TERM_st0_stream.raw": Ending.ENGINE_ABORT,
    "kill_engine_TERM_st0_nonstream.raw": Ending.ENGINE_ABORT,
    "kill_worker_KILL_st0_stream.raw": Ending.ENGINE_ERROR,
    "kill_worker_KILL_st0_nonstream.raw": Ending.COMPLETE,
}


def test_every_kill_capture_is_looked_at() -> None:
    assert names("kill_*.raw") == sorted(KILLED)


@pytest.mark.parametrize("name", sorted(KILLED))
def test_how_an_engine_died(name: str) -> None:
    answer = capture(name)
    seen = replay(answer)
    assert seen.ending is KILLED[name]
    assert seen.status == answer.status
    if "nonstream" not in name:
        assert seen.acceptance_length is not None
        assert seen.completion_tokens is not None
        assert seen.content_events is not None
        assert seen.verify_steps == seen.content_events - 1


def test_a_truncated_capture_that_the_transport_calls_complete() -> None:
    answer = capture("kill_api_KILL_st0_stream.raw")
    seen = replay(Capture(answer.name, 200, answer.content_type, answer.payloads, whole=True))
    assert seen.ending is Ending.UPSTREAM_CLOSED


@pytest.mark.parametrize("name", ["dflash_trained_chat_stream.raw", "ngram_completion_stream.raw"])
@settings(max_examples=25, deadline=None)
@given(places=st.lists(st.integers(0, 25_000), max_size=12))
def test_cuts_do_not_matter(name: str, places: list[int]) -> None:
    answer = capture(name)
    whole = replay(answer, spacing=0.0)
    edges = [0, *sorted(min(place, len(answer.payload)) for place in places), len(answer.payload)]
    pieces = [answer.payload[a:b] for a, b in pairwise(edges)]
    assert replay(Capture(name, 200, answer.content_type, pieces, True), spacing=0.0) == whole
    bytewise = [answer.payload[i : i + 1] for i in range(len(answer.payload))]
    if not places:
        assert replay(Capture(name, 200, answer.content_type, bytewise, True), spacing=0.0) == whole


# ---- made-up streams -------------------------------------------------------------------------------------------------


def test_the_first_event_is_no_step() -> None:
    seen = stream([1, 4, 2, 3])
    assert (seen.verify_steps, seen.acceptance_length) == (3, 3.0)
    assert (seen.acceptance_source, seen.acceptance_quality) == (Source.CADENCE, Quality.TRIMMED)
    assert seen.step_seconds == pytest.approx(STEP_SECONDS)
    assert seen.decode_tokens_per_second == pytest.approx(3.0 / STEP_SECONDS)
    assert seen.rate_source is Source.CADENCE
    assert seen.ttft_seconds == pytest.approx(0.5)
    assert seen.decode_seconds == pytest.approx(3 * STEP_SECONDS)
    assert (seen.prompt_tokens, seen.completion_tokens, seen.content_events) == (11, 10, 4)
    assert (seen.request_id, seen.backend, seen.generation, seen.in_flight) == ("r1", "b1", 3, 1)


def test_usage_alone_is_enough() -> None:
    seen = stream([1, 4, 2, 3], counted=False)
    assert (seen.verify_steps, seen.acceptance_length, seen.acceptance_quality) == (3, 3.0, Quality.TRIMMED)


def test_event_counts_alone_are_enough_when_the_client_leaves() -> None:
    seen = stream([1, 4, 2, 3], usage=False)
    assert (seen.completion_tokens, seen.acceptance_length) == (10, 3.0)


@pytest.mark.parametrize(
    ("sizes", "finish", "quality", "merged"),
    [
        ([1, 3, 3, 2, 1], {"num_speculative_tokens": 2}, Quality.TRIMMED, 0),
        ([1, 3, 4, 2, 1], {"num_speculative_tokens": 2}, Quality.UPPER_BOUND, 1),
        ([1, 300, 400, 2], {"num_speculative_tokens": 2}, Quality.UPPER_BOUND, 2),
        ([1, 3, 4, 2, 1], {}, Quality.TRIMMED, 0),
        ([2, 3, 3, 2, 1], {}, Quality.UPPER_BOUND, 1),
        ([1] * 9, {"num_speculative_tokens": 0}, Quality.EXACT, 0),
        ([1, 1, 2, 1], {"num_speculative_tokens": 0}, Quality.UPPER_BOUND, 1),
        ([1, *[4] * 20, 2], {}, Quality.UPPER_BOUND, 0),
        ([1, *[4] * 20, 2], {"num_speculative_tokens": 3}, Quality.TRIMMED, 0),
        ([1, *[4] * 20, 2], {"num_speculative_tokens": 7}, Quality.UPPER_BOUND, 0),
        ([1, *[4] * 5, 2], {}, Quality.TRIMMED, 0),
        ([1, *[4, 3] * 10], {}, Quality.TRIMMED, 0),
    ],
)
def test_merged_steps(sizes: list[int], finish: dict[str, Any], quality: Quality, merged: int) -> None:
    seen = stream(sizes, finish=finish)
    assert (seen.acceptance_quality, seen.merged_events) == (quality, merged)


def test_a_beyond_what_can_be_drafted_proves_a_merge_without_event_counts() -> None:
    assert (
        stream([1, 5, 4, 5], counted=False, finish={"num_speculative_tokens": 2}).acceptance_quality
        is Quality.UPPER_BOUND
    )


@pytest.mark.parametrize(
    "refused",
    [
        {"sizes": [1, 4], "measuring": meter()},
        {"sizes": [1, 4, 3, 2], "measuring": meter(n=2)},
        {"sizes": [1, 4, 3, 2], "measuring": meter(), "counted": False, "usage": False},
    ],
)
def test_cadence_is_refused(refused: dict[str, Any]) -> None:
    seen = stream(**refused)
    assert (seen.acceptance_length, seen.acceptance_source, seen.acceptance_quality) == (None, None, None)
    assert (seen.verify_steps, seen.step_seconds) == (None, None)


def test_more_events_than_tokens_are_not_steps() -> None:
    measuring = meter()
    measuring.head(100.0, 200, "text/event-stream")
    for number in range(6):
        measuring.feed(101.0 + number, event({"content": "x"}, None))
    measuring.feed(107.0, b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n' + DONE)
    assert measuring.finish(108.0, Ending.COMPLETE).acceptance_length is None


def test_an_event_without_new_tokens_is_no_step() -> None:
    measuring = meter()
    measuring.head(100.0, 200, "text/event-stream")
    for number, total in enumerate([1, 3, 3, 6]):
        measuring.feed(101.0 + number, event({"content": "x"}, total))
    seen = measuring.finish(108.0, Ending.CLIENT_GONE)
    assert (seen.content_events, seen.acceptance_length, seen.ending) == (3, 2.5, Ending.CLIENT_GONE)


def test_several_choices_are_noticed_in_the_stream_too() -> None:
    measuring = meter("completions")
    measuring.head(100.0, 200, "text/event-stream")
    for number in range(6):
        body = {"choices": [{"index": number % 2, "text": "x"}], "usage": {"completion_tokens": number // 2 + 1}}
        measuring.feed(101.0 + number, b"data: " + json.dumps(body).encode() + b"\n\n")
    seen = measuring.finish(108.0, Ending.COMPLETE)
    assert (seen.acceptance_length, seen.decode_tokens_per_second) == (None, None)


def test_token_ids_give_counts_where_usage_does_not() -> None:
    measuring = meter("generate")
    measuring.head(100.0, 200, "text/event-stream")
    for number, size in enumerate([1, 4, 2, 3]):
        body = {"choices": [{"index": 0, "token_ids": list(range(size)), "finish_reason": None}]}
        measuring.feed(101.0 + number, b"data: " + json.dumps(body).encode() + b"\n\n")
    seen = measuring.finish(108.0, Ending.COMPLETE)
    assert (seen.completion_tokens, seen.acceptance_length) == (10, 3.0)


def test_token_ids_that_stop_in_the_middle_count_nothing() -> None:
    measuring = meter()
    measuring.head(100.0, 200, "text/event-stream")
    for number, size in enumerate([1, 4, 0, 3]):
        body = {"choices": [{"index": 0, "delta": {"content": "x"}, "token_ids": list(range(size)) or None}]}
        measuring.feed(101.0 + number, b"data: " + json.dumps(body).encode() + b"\n\n")
    seen = measuring.finish(108.0, Ending.CLIENT_GONE)
    assert (seen.content_events, seen.completion_tokens, seen.acceptance_length) == (4, None, None)


@pytest.mark.parametrize(
    ("measuring", "delta", "quality"),
    [
        (meter(parsers_possible=True), "content", Quality.UPPER_BOUND),
        (meter(), "reasoning", Quality.UPPER_BOUND),
        (meter("messages"), "content", Quality.UPPER_BOUND),
    ],
)
def test_parsers_may_swallow_steps(measuring: Meter, delta: str, quality: Quality) -> None:
    assert stream([1, 4, 2, 3], measuring=measuring, delta=delta).acceptance_quality is quality


def test_parsers_cannot_swallow_steps_that_list_their_tokens() -> None:
    measuring = meter(parsers_possible=True)
    measuring.head(100.0, 200, "text/event-stream")
    for number, size in enumerate([1, 4, 2, 3]):
        body = {"choices": [{"index": 0, "delta": {"reasoning": "x"}, "token_ids": list(range(size))}]}
        measuring.feed(101.0 + number, b"data: " + json.dumps(body).encode() + b"\n\n")
    assert measuring.finish(108.0, Ending.COMPLETE).acceptance_quality is Quality.TRIMMED


# ---- times -----------------------------------------------------------------------------------------------------------


def test_bunched_arrivals_give_no_rates() -> None:
    sizes = [1] + [3, 2] * 10
    spacing = [0.08 if number % 4 == 3 else 0.0 for number in range(20)]
    seen = stream(sizes, spacing=spacing)
    assert (seen.step_seconds, seen.decode_tokens_per_second, seen.rate_source) == (None, None, None)
    assert (seen.acceptance_length, seen.acceptance_quality) == (2.5, Quality.TRIMMED)
    uncounted = stream(sizes, spacing=spacing, counted=False)
    assert uncounted.acceptance_quality is Quality.UPPER_BOUND


def test_all_at_once() -> None:
    seen = stream([1, 3, 2, 3], spacing=0.0)
    assert (seen.step_seconds, seen.decode_seconds, seen.acceptance_length) == (None, 0.0, pytest.approx(8 / 3))


def test_a_first_arrival_of_several_events_does_not_make_the_engine_faster() -> None:
    sizes = [1] + [2] * 4 + [2, 3] * 8
    seen = stream(sizes, spacing=[0.0] * 4 + [STEP_SECONDS] * 16)
    assert seen.step_seconds == pytest.approx(STEP_SECONDS)
    assert seen.decode_tokens_per_second == pytest.approx(seen.acceptance_length / STEP_SECONDS)


@pytest.mark.parametrize(
    ("pauses", "paced", "quality"),
    [([(100.5, 100.5001)], False, Quality.TRIMMED), ([(100.5, 100.51), (100.52, 100.54)], True, Quality.UPPER_BOUND)],
)
def test_a_slow_client_is_no_slow_engine(pauses: list[tuple[float, float]], paced: bool, quality: Quality) -> None:
    measuring = meter()
    for start, end in pauses:
        measuring.paused(start, end)
    seen = stream([1, 4, 2, 3] * 3, measuring=measuring)
    assert (seen.client_paced, seen.step_seconds is None) == (paced, paced)
    assert seen.acceptance_quality in (quality, Quality.UPPER_BOUND if paced else quality)


@pytest.mark.parametrize(("late", "quality"), [(1, Quality.TRIMMED), (6, Quality.UPPER_BOUND)])
def test_many_gaps_of_two_steps_may_be_merges(late: int, quality: Quality) -> None:
    spacing = [2 * STEP_SECONDS] * late + [STEP_SECONDS] * (24 - late)
    assert stream([1] + [3, 2] * 12, spacing=spacing).acceptance_quality is quality


def test_longest_gap_and_concurrency() -> None:
    measuring = meter()
    for n in (2, 5, 3):
        measuring.concurrency(n)
    seen = stream([1, 2, 3, 2], spacing=[0.02, 0.5, 0.02], measuring=measuring)
    assert seen.longest_gap_seconds == pytest.approx(0.5)
    assert seen.in_flight == 5


# ---- counters and the engine's own figures ---------------------------------------------------------------------------

COUNTERS = SpeculationCounts(verify_steps=4, accepted_tokens=5, num_speculative_tokens=2, accepted_per_position=(3, 2))


def test_counters_help_where_steps_were_merged() -> None:
    needed: list[bool] = []
    seen = stream(
        [2, 5, 3],
        finish={"counters": COUNTERS},
        before_finish=lambda measuring: needed.append(measuring.needs_counters),
    )
    assert needed == [True]
    assert (seen.acceptance_source, seen.acceptance_quality) == (Source.COUNTERS, Quality.EXACT)
    assert (seen.verify_steps, seen.acceptance_length, seen.position_acceptance) == (4, 2.25, (0.75, 0.5))
    assert seen.num_speculative_tokens == 2


def test_a_clean_cadence_needs_no_counters_and_keeps_its_source() -> None:
    needed: list[bool] = []
    seen = stream(
        [1, 3, 3, 2, 1],
        finish={"counters": COUNTERS},
        before_finish=lambda measuring: needed.append(measuring.needs_counters),
    )
    assert needed == [False]
    assert (seen.acceptance_source, seen.acceptance_length) == (Source.CADENCE, 2.25)
    assert seen.position_acceptance == (0.75, 0.5)


def test_a_known_draft_length_tells_during_the_stream_that_counters_are_needed() -> None:
    needed: list[bool] = []
    measuring = Meter(
        RequestFacts(route="chat", stream=True),
        request_id="r1",
        backend="b1",
        generation=0,
        started=100.0,
        started_unix=0.0,
        num_speculative_tokens=2,
    )
    seen = stream([1, 3, 5, 2], measuring=measuring, before_finish=lambda meter: needed.append(meter.needs_counters))
    assert needed == [True]
    assert (seen.num_speculative_tokens, seen.merged_events) == (2, 1)


def test_counters_of_an_answer_that_was_not_streamed() -> None:
    measuring = meter(n=1)
    measuring.head(100.1, 200, "application/json")
    measuring.feed(101.0, b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}],')
    measuring.feed(101.0, b'"usage":{"completion_tokens":10,"prompt_tokens":3}}')
    seen = measuring.finish(101.0, Ending.COMPLETE, counters=COUNTERS, counted_decode_seconds=0.08)
    assert (seen.acceptance_source, seen.acceptance_length) == (Source.COUNTERS, 2.25)
    assert (seen.rate_source, seen.step_seconds, seen.decode_tokens_per_second) == (
        Source.COUNTERS,
        pytest.approx(0.02),
        pytest.approx(9 / 0.08),
    )
    assert (seen.ttft_seconds, seen.decode_seconds, seen.content_events) == (None, None, None)
    assert (seen.finish_reason, seen.prompt_tokens) == ("stop", 3)


def test_steps_without_a_draft_take_time_too() -> None:
    """An ngram drafter that found nothing for three of seven steps: 10 tokens = 1 + 4 steps + 2 accepted + 3 steps."""
    measuring = meter()
    measuring.head(100.1, 200, "application/json")
    counts = {"num_spec_steps": 4, "num_accepted_draft_tokens": 2, "num_spec_tokens": 5}
    metrics = {"generation_time_ms": 70.0, "speculative_decoding": counts}
    body = {"choices": [{"index": 0, "message": {}}], "usage": {"completion_tokens": 10}, "metrics": metrics}
    measuring.feed(101.0, json.dumps(body).encode())
    assert not measuring.needs_counters
    seen = measuring.finish(101.0, Ending.COMPLETE)
    assert (seen.verify_steps, seen.acceptance_length) == (4, 1.5)
    assert seen.step_seconds == pytest.approx(0.01)


def test_llama_cpp_timings() -> None:
    measuring = meter()
    measuring.head(100.1, 200, "text/event-stream")
    for number in range(4):
        measuring.feed(
            101.0 + number, b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"x"}}]}\n\n'
        )
    timings = {"predicted_n": 16, "predicted_ms": 60.0, "draft_n": 12, "draft_n_accepted": 9}
    body = {"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}], "timings": timings}
    measuring.feed(106.0, b"data: " + json.dumps(body).encode() + b"\n\n" + DONE)
    seen = measuring.finish(106.0, Ending.COMPLETE)
    assert (seen.verify_steps, seen.acceptance_length) == (6, 2.5)
    assert (seen.acceptance_source, seen.acceptance_quality) == (Source.ENGINE, Quality.TRIMMED)
    assert (seen.step_seconds, seen.rate_source) == (pytest.approx(0.01), Source.ENGINE)
    assert (seen.content_events, seen.completion_tokens) == (4, 16)


def test_sglang_generate() -> None:
    measuring = meter("generate")
    measuring.head(100.1, 200, "text/event-stream")
    for number, total in enumerate([1, 4, 6, 9]):
        meta_info: dict[str, Any] = {"completion_tokens": total, "prompt_tokens": 3, "finish_reason": None}
        if total == 9:
            meta_info |= {"finish_reason": {"type": "stop"}, "spec_verify_ct": 3, "spec_num_correct_drafts": 5}
        body = {"text": "x" * total, "meta_info": meta_info}
        measuring.feed(101.0 + number, b"data: " + json.dumps(body).encode() + b"\n\n")
    seen = measuring.finish(106.0, Ending.COMPLETE)
    assert (seen.acceptance_source, seen.acceptance_length) == (Source.ENGINE, pytest.approx(8 / 3))
    assert (seen.content_events, seen.step_seconds, seen.finish_reason) == (4, pytest.approx(1.0), "stop")


def test_messages_are_an_upper_bound_and_want_counters() -> None:
    measuring = meter("messages")
    measuring.head(100.1, 200, "text/event-stream")
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}}
    events: list[dict[str, Any]] = [start]
    events += [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}] * 4
    events += [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 10}}]
    for number, body in enumerate(events):
        measuring.feed(101.0 + number, b"event: x\ndata: " + json.dumps(body).encode() + b"\n\n")
    assert measuring.needs_counters
    seen = measuring.finish(106.0, Ending.COMPLETE)
    assert (seen.acceptance_length, seen.acceptance_quality) == (3.0, Quality.UPPER_BOUND)
    assert (seen.prompt_tokens, seen.completion_tokens, seen.ending) == (5, 10, Ending.COMPLETE)


def test_responses_without_a_last_event_were_cut() -> None:
    measuring = meter("responses")
    measuring.head(100.1, 200, "text/event-stream")
    measuring.feed(101.0, b'event: x\ndata: {"type":"response.output_text.delta","delta":"x"}\n\n')
    assert not measuring.needs_counters
    seen = measuring.finish(106.0, Ending.COMPLETE)
    assert (seen.ending, seen.acceptance_length) == (Ending.UPSTREAM_CLOSED, None)


# ---- endings and odds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "ending"),
    [
        (200, b"", Ending.UPSTREAM_CLOSED),
        (200, DONE, Ending.COMPLETE),
        (200, b"data: [DONE]\n", Ending.COMPLETE),
        (200, b'data: {"error":{"message":"x"}}\n\n' + DONE, Ending.ENGINE_ERROR),
        (200, event({"content": ""}, None, "abort") + DONE, Ending.ENGINE_ABORT),
        (200, event({"content": "x"}, None, "stop"), Ending.COMPLETE),
        (500, b'data: {"error":{"message":"x"}}\n\n', Ending.COMPLETE),
    ],
)
def test_endings_that_http_calls_complete(status: int, body: bytes, ending: Ending) -> None:
    measuring = meter()
    measuring.head(100.1, status, "text/event-stream")
    measuring.feed(101.0, body)
    assert measuring.finish(102.0, Ending.COMPLETE).ending is ending


@pytest.mark.parametrize("given_ending", [ending for ending in Ending if ending is not Ending.COMPLETE])
def test_what_the_transport_saw_fail_stays(given_ending: Ending) -> None:
    measuring = meter()
    measuring.head(100.1, 200, "text/event-stream")
    measuring.feed(101.0, event({"content": "x"}, None, "abort"))
    assert measuring.finish(102.0, given_ending).ending is given_ending


def test_no_answer_at_all() -> None:
    seen = meter().finish(102.0, Ending.CONNECT_FAILED)
    assert (seen.status, seen.sent, seen.ttft_seconds, seen.content_events) == (None, None, None, None)
    assert (seen.ended, seen.ending) == (102.0, Ending.CONNECT_FAILED)


@pytest.mark.parametrize(
    ("encoding", "measured"), [("", True), ("identity", True), ("gzip", False), ("br, gzip", False)]
)
def test_a_coded_body_is_not_read(encoding: str, measured: bool) -> None:
    measuring = meter()
    measuring.head(100.1, 200, "text/event-stream", encoding)
    for number, total in enumerate([1, 3, 5]):
        measuring.feed(101.0 + number, event({"content": "x"}, total))
    assert not measuring.needs_counters or measured
    seen = measuring.finish(106.0, Ending.COMPLETE)
    assert (seen.acceptance_length is not None) is measured
    assert (seen.content_events is not None) is measured


def test_an_event_too_long_to_read_makes_an_upper_bound() -> None:
    measuring = meter()
    measuring.head(100.1, 200, "text/event-stream")
    for number, total in enumerate([1, 3, 5]):
        measuring.feed(101.0 + number, event({"content": "x"}, total))
    measuring.feed(104.0, event({"content": "x" * (1 << 20)}, 7))
    measuring.feed(105.0, event({"content": "x"}, 9, "stop") + DONE)
    seen = measuring.finish(106.0, Ending.COMPLETE)
    assert (seen.content_events, seen.acceptance_quality) == (4, Quality.UPPER_BOUND)


def test_steps_are_drained_once() -> None:
    measuring = meter()
    measuring.head(100.0, 200, "text/event-stream")
    measuring.feed(101.0, event({"role": "assistant", "content": ""}, 0) + event({"content": "x"}, 1))
    measuring.feed(102.0, event({"content": "x"}, 4))
    assert [(step.at, step.tokens) for step in measuring.drain_steps()] == [(101.0, 1), (102.0, 3)]
    assert measuring.drain_steps() == []
    measuring.feed(103.0, event({"content": "x"}, None))
    assert [(step.at, step.tokens) for step in measuring.drain_steps()] == [(103.0, None)]


def test_memory_of_a_long_stream_is_bounded() -> None:
    measuring = meter()
    measuring.head(100.0, 200, "text/event-stream")
    piece = event({"content": "x"}, None) * 100
    for number in range(100):
        measuring.feed(101.0 + number, piece)
    assert len(measuring.drain_steps()) == MAX_UNDRAINED_STEPS
    assert measuring.finish(300.0, Ending.CLIENT_GONE).content_events == 10_000


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                event({"content": "x"}, 3),
                event({"content": "x"}, None),
                event({"role": "assistant"}, -1),
                b'data: {"choices":[{"delta":{"content":"y"},"token_ids":[]}]}\n\n',
                b'data: {"choices":[],"usage":{"completion_tokens":0}}\n\n',
                b'data: {"choices":[],"metrics":{"generation_time_ms":1e-9,"speculative_decoding":{"num_spec_steps":0,'
                b'"num_accepted_draft_tokens":9}}}\n\n',
                b"data: \xff\n\n",
                b"data: [",
                b"\n\n",
                DONE,
            ]
        ),
        max_size=10,
    ),
    content_type=st.sampled_from(["text/event-stream", "application/json", ""]),
    ending=st.sampled_from(list(Ending)),
    route=st.sampled_from(["chat", "responses", "messages", "generate", "other"]),
)
def test_nothing_that_an_engine_sends_raises(
    pieces: list[bytes], content_type: str, ending: Ending, route: Route
) -> None:
    measuring = meter(route)
    measuring.head(100.0, 200, content_type)
    for piece in pieces:
        measuring.feed(100.0, piece)
    assert measuring.needs_counters in (True, False)
    seen = measuring.finish(100.0, ending, counters=SpeculationCounts(verify_steps=0, accepted_tokens=0))
    assert seen.acceptance_length is None or seen.acceptance_length >= 1
