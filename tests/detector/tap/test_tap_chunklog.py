"""Chunk logs: every request of every H200 capture against the engine's own counters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tap_captures import names, read

from detector.observation import Ending, Observation, Quality, Source
from detector.tap.chunklog import observe_chunk_log_request

LOGS = names("k*.jsonl")


def records(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *requests = [json.loads(line) for line in read(name).splitlines()]
    return header, requests


def test_all_logs_are_there() -> None:
    assert LOGS == ["k0.jsonl", "k12.jsonl", "k15.jsonl", "k2.jsonl", "k8_cycle_by_request.jsonl"]
    assert sum(len(records(name)[1]) for name in LOGS) == 92


def observe(*arguments: Any, **named: Any) -> Observation:
    """The Observation alone."""
    return observe_chunk_log_request(*arguments, **named)[0]


@pytest.mark.parametrize("name", LOGS)
def test_every_request_agrees_with_the_counters(name: str) -> None:
    header, requests = records(name)
    draft = int(name[1:].split("_")[0].split(".")[0])
    for record in requests:
        seen, counters = observe(record, header), record["counters_delta"]
        steps = counters["inter_token_latency_seconds_count"]
        assert seen.verify_steps == steps
        assert seen.num_speculative_tokens == draft
        assert seen.completion_tokens == record["completion_tokens"]
        assert seen.merged_events == 0
        assert seen.acceptance_source is Source.CADENCE
        assert seen.acceptance_length is not None
        if draft == 0:
            assert (seen.acceptance_length, seen.acceptance_quality) == (1.0, Quality.EXACT)
        else:
            assert steps == counters["spec_decode_num_drafts_total"]
            exact = 1 + counters["spec_decode_num_accepted_tokens_total"] / steps
            assert exact - draft / steps <= seen.acceptance_length <= exact + 1e-12
            assert seen.acceptance_quality is Quality.TRIMMED
            assert seen.position_acceptance is not None
            assert 1 + sum(seen.position_acceptance) == pytest.approx(exact)
        decode_seconds = counters["request_decode_time_seconds_sum"]
        assert seen.step_seconds == pytest.approx(decode_seconds / steps, rel=0.02)
        assert seen.decode_tokens_per_second == pytest.approx(seen.acceptance_length / seen.step_seconds)
        assert seen.ttft_seconds == pytest.approx(record["ttft_s"], abs=0.001)
        assert seen.ending is Ending.COMPLETE


def request(chunks: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "request", "index": 4, "unix_time": 1000.0, "chunks": chunks, **more}


@pytest.mark.parametrize(
    "chunks",
    [
        [[0.1, 0], [0.1, 1], [0.2, 4], [0.3, 7], [0.3, 7]],
        [[0.1, 1], [0.2, 4], [0.3, 7]],
        [[0.1, 0], [0.1, 1], [0.2, 4], [0.3, 7]],
        [[0.1, 1], [0.2, 4], [0.3, 7], [0.3, 7], [0.3, 7]],
        [[0.1, 0], [0.1, 0], [0.1, 1], [0.2, 4], [0.25, 4], [0.3, 7]],
        [[0.1, 0], [0.1, 1], [0.2, 4], [0.2, 3], [0.3, 7]],
    ],
)
def test_role_and_usage_chunks_may_be_missing_or_repeated(chunks: list[list[float]]) -> None:
    seen = observe(request(chunks), {})
    assert (seen.verify_steps, seen.acceptance_length) == (2, 3.0)
    assert seen.step_seconds == pytest.approx(0.1)
    assert (seen.request_id, seen.ttft_seconds) == ("4", pytest.approx(0.1))
    assert seen.started_unix == pytest.approx(1000.0 - chunks[-1][0])
    assert seen.ended == pytest.approx(1000.0)


@pytest.mark.parametrize("chunks", [[], [[0.1, 0]], [[0.1, 1]], [[0.1, 1], [0.2, 2]]])
def test_too_little_to_tell(chunks: list[list[float]]) -> None:
    seen = observe(request(chunks), {}, request_id="x", backend="b", started=5.0)
    assert (seen.acceptance_length, seen.step_seconds) == (None, None)
    assert (seen.request_id, seen.backend, seen.started) == ("x", "b", 5.0)


def test_merged_entries_are_noticed_and_the_counters_decide() -> None:
    header = {"served_with": ["vllm", "serve", "--speculative-config", '{"num_speculative_tokens": 2}']}
    chunks = [[0.1, 1], [0.2, 4], [0.3, 9], [0.4, 10]]
    counters = {
        "generation_tokens_total": 10.0,
        "spec_decode_num_drafts_total": 4.0,
        "spec_decode_num_accepted_tokens_total": 5.0,
    }
    alone = observe(request(chunks), header)
    assert (alone.acceptance_quality, alone.merged_events) == (Quality.UPPER_BOUND, 1)
    counted = observe(request(chunks, counters_delta=counters), header)
    assert (counted.acceptance_source, counted.acceptance_length) == (Source.COUNTERS, 2.25)
    shared = observe(request(chunks, counters_delta=counters | {"generation_tokens_total": 30}), header)
    assert shared.acceptance_source is Source.CADENCE
    broken = observe(request(chunks, counters_delta=counters | {"spec_decode_num_drafts_total": "four"}), header)
    assert broken.acceptance_source is Source.CADENCE


@pytest.mark.parametrize(
    ("header", "draft"),
    [
        ({}, None),
        ({"served_with": ["vllm", "serve", "m"]}, 0),
        ({"served_with": ["vllm", "serve", '--speculative-config={"num_speculative_tokens":5}']}, 5),
        ({"served_with": ["vllm", "-sc", "{broken"]}, None),
        ({"served_with": "vllm"}, None),
    ],
)
def test_draft_length_of_the_served_command(header: dict[str, Any], draft: int | None) -> None:
    assert observe(request([[0.1, 1]]), header).num_speculative_tokens == draft


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({}, "'chunks'"),
        (request("x"), "'chunks'"),
        (request([[0.1, 1], [0.2]]), r"chunks\[1\]"),
        (request([[0.1, "1"]]), r"chunks\[0\]"),
        (request([["0.1", 1]]), r"chunks\[0\]"),
        (request([[float("nan"), 1]]), r"chunks\[0\]"),
        (request([[0.1, 1.5]]), r"chunks\[0\]"),
    ],
)
def test_a_broken_record_is_named(record: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        observe(record, {})
