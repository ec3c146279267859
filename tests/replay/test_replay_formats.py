"""Recordings in the formats of others: what goes out, and what comes in."""

from __future__ import annotations

import json
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from replay_samples import CHAT, exchange, user, write_exchanges

from detector.observation import Ending, Source
from replay.cli import replay_group
from replay.formats import FORMATS, FormatError, read_recording
from replay.session.redact import Redactor
from replay.session.schema import ContentMode

DATA = Path(__file__).parents[1] / "data" / "formats"
SESSIONS = Path(__file__).parents[1] / "data" / "sessions"
FIRST = [user("Why is the sky blue, and was it always so?")]
TOOLS = [{"type": "function", "function": {"name": "look"}}]
SECOND = [*FIRST, {"role": "assistant", "content": "It scatters light."}, user("And at night?")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A conversation of two turns and another request, with their text."""
    redactor = Redactor(ContentMode.TEXT)
    exchanges = [
        exchange(0, 10.0, redactor=redactor, messages=FIRST, temperature=0.6, tools=TOOLS),
        exchange(1, 10.25, redactor=redactor, path="/v1/completions", prompt="Once"),
        exchange(2, 12.0, redactor=redactor, messages=SECOND, tools=TOOLS),
    ]
    return write_exchanges(tmp_path / "source", exchanges, mode=ContentMode.TEXT)


def convert(source: Path, output: Path, form: str, *more: str) -> Result:
    return CliRunner().invoke(replay_group, ["convert", str(source), "-o", str(output), "--to", form, *more])


def converted(source: Path, tmp_path: Path, form: str) -> list[dict[str, Any]]:
    output = tmp_path / "out"
    result = convert(source, output, form)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    return [json.loads(line) for line in output.read_text().splitlines()]


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


# ---- written ---------------------------------------------------------------------------------------------------------


def test_mooncake_has_payloads_times_and_turns(source: Path, tmp_path: Path) -> None:
    first, other, second = converted(source, tmp_path, "mooncake")
    assert (first["timestamp"], other["timestamp"]) == (0.0, 250.0)
    assert first["payload"]["messages"] == FIRST
    assert first["payload"]["temperature"] == 0.6
    assert other["payload"]["prompt"] == "Once"
    assert first["output_length"] == 30
    assert second["session_id"] == first["session_id"] != other["session_id"]
    assert (second["delay"], "timestamp" in second) == (1500.0, False)


def test_an_openai_batch_has_bodies_without_streams(tmp_path: Path) -> None:
    streamed = exchange(0, 1.0, mode=ContentMode.TEXT, messages=FIRST, stream=True, stream_options={})
    source = write_exchanges(tmp_path / "source", [streamed], mode=ContentMode.TEXT)
    (line,) = converted(source, tmp_path, "openai-batch")
    assert (line["method"], line["url"], line["custom_id"]) == ("POST", CHAT, "0-r0")
    assert line["body"] == {"model": "emulated", "max_tokens": 30, "messages": FIRST}


def test_an_openai_batch_can_be_read_again(source: Path, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "batch", "openai-batch").exit_code == 0
    read = read_recording(tmp_path / "batch")
    assert [one.request.path for one in read.exchanges] == [CHAT, "/v1/completions", CHAT]
    assert "--schedule closed" in read.notes[0]


def test_a_timed_trace_shares_the_blocks_that_prompts_shared(tmp_path: Path) -> None:
    redactor = Redactor(ContentMode.HASH)
    shared = "The same beginning of every prompt. " * 20
    exchanges = [
        exchange(index, float(index), redactor=redactor, messages=[user(shared + end)], prompt_tokens=tokens)
        for index, (end, tokens) in enumerate([("one end " * 20, 200), ("the other end " * 18, 230)])
    ]
    source = write_exchanges(tmp_path / "source", exchanges, mode=ContentMode.HASH)
    first, second = converted(source, tmp_path, "timed-trace")
    assert [(one["timestamp"], one["input_length"]) for one in (first, second)] == [(0.0, 200), (1000.0, 230)]
    assert (len(first["hash_ids"]), len(second["hash_ids"])) == (13, 15)  # blocks of 16 tokens
    assert first["hash_ids"][:9] == second["hash_ids"][:9]
    assert not set(first["hash_ids"][11:]) & set(second["hash_ids"][11:])
    assert len(set(first["hash_ids"])) == 13


def test_spans_follow_the_conventions(source: Path, tmp_path: Path) -> None:
    requests = converted(source, tmp_path, "otlp")
    first, other, second = [one["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for one in requests]
    assert first["traceId"] == second["traceId"] != other["traceId"]
    assert (len(first["traceId"]), len(first["spanId"])) == (32, 16)
    assert int(first["endTimeUnixNano"]) - int(first["startTimeUnixNano"]) == pytest.approx(0.5e9, abs=1000)
    told = attributes(second)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.usage.output_tokens"] == "30"
    messages = json.loads(told["gen_ai.input.messages"])
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["parts"] == [{"type": "text", "content": "It scatters light."}]
    assert attributes(other)["gen_ai.operation.name"] == "text_completion"


def test_plain_spans_say_the_same_as_otlp(source: Path, tmp_path: Path) -> None:
    plain = [json.loads(one) for one in _written(source, tmp_path / "plain", "otel-spans")]
    otlp = [
        json.loads(one)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        for one in _written(source, tmp_path / "otlp", "otlp")
    ]
    assert [(one["trace_id"], one["span_id"]) for one in plain] == [(one["traceId"], one["spanId"]) for one in otlp]
    for one, other in zip(plain, otlp, strict=True):
        assert one["attributes"].keys() == attributes(other).keys()
        assert one["attributes"]["gen_ai.input.messages"] == attributes(other)["gen_ai.input.messages"]
        started = datetime.fromisoformat(one["start_time"]).timestamp()
        assert started == pytest.approx(int(other["startTimeUnixNano"]) / 1e9, abs=1e-5)
    assert plain[0]["attributes"]["gen_ai.usage.output_tokens"] == 30


def _written(source: Path, output: Path, form: str) -> list[str]:
    assert convert(source, output, form).exit_code == 0
    return output.read_text().splitlines()


def test_spans_of_a_session_without_text_hold_none(tmp_path: Path) -> None:
    source = write_exchanges(tmp_path / "source", [exchange(0, 1.0, messages=[user("secret")])])
    (request,) = converted(source, tmp_path, "otlp")
    assert "secret" not in json.dumps(request)


@pytest.mark.parametrize("form", ["mooncake", "openai-batch"])
def test_a_format_that_needs_text_says_so(tmp_path: Path, form: str) -> None:
    source = write_exchanges(tmp_path / "source", [exchange(0, 1.0)])
    result = convert(source, tmp_path / "out", form)
    assert result.exit_code == 2
    assert result.stderr == (
        f"specbreaker replay convert: {form} needs the text of requests, and none was recorded: "
        "record with record.content = text\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_session_goes_through_convert_unchanged(source: Path, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "out", "session").exit_code == 0
    before, after = read_recording(source), read_recording(tmp_path / "out")
    assert after.exchanges == before.exchanges
    assert after.header is not None
    assert after.header.content is ContentMode.TEXT


def test_a_file_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = convert(source, tmp_path / "out", "session")
    assert result.exit_code == 2
    assert "File exists" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


# ---- read ------------------------------------------------------------------------------------------------------------


def aiperf_record(**changes: Any) -> dict[str, Any]:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = ["", "Once", " upon a", " time there"]
    events = [
        {**chunk, "choices": [{"index": 0, "delta": {"content": text}}], "usage": {"completion_tokens": tokens}}
        for text, tokens in zip(deltas, [0, 1, 3, 5], strict=True)
    ]
    events[-1]["choices"][0]["finish_reason"] = "length"
    data = [json.dumps(event) for event in events] + ["[DONE]"]
    return {
        "metadata": {
            "session_num": 0,
            "x_request_id": "req-1",
            "benchmark_phase": "profiling",
            "request_start_ns": 1_700_000_000_000_000_000,
            "request_end_ns": 1_700_000_000_500_000_000,
        },
        "start_perf_ns": 5_000_000_000,
        "payload": {"model": "m", "messages": FIRST, "stream": True},
        "status": 200,
        "responses": [
            {"perf_ns": 5_000_000_000 + 100_000_000 * (index + 1), "packets": [{"name": "data", "value": value}]}
            for index, value in enumerate(data)
        ],
        **changes,
    }


def test_an_aiperf_export_is_measured_event_by_event(tmp_path: Path) -> None:
    warm_up = aiperf_record(metadata={"benchmark_phase": "warmup", "request_start_ns": 0})
    read = read_recording(write(tmp_path / "raw.jsonl", warm_up, aiperf_record()))
    (one,) = read.exchanges
    observation = one.observation
    assert observation is not None
    assert (observation.completion_tokens, observation.verify_steps, observation.acceptance_length) == (5, 2, 2.0)
    assert observation.ttft_seconds == pytest.approx(0.2, abs=1e-5)
    assert observation.decode_seconds == pytest.approx(0.2, abs=1e-5)
    assert [step.tokens for step in one.steps] == [1, 2, 2]
    assert one.request.prompt is not None
    assert one.request.prompt.body is not None
    assert json.loads(one.request.prompt.body)["messages"] == FIRST
    assert "1 warm-up requests are left out" in read.notes[0]


def test_an_aiperf_request_that_failed_is_a_failure(tmp_path: Path) -> None:
    failed = aiperf_record(error={"type": "x"}, responses=[], status=None)
    (one,) = read_recording(write(tmp_path / "raw.jsonl", failed)).exchanges
    assert one.observation is not None
    assert one.observation.ending is Ending.UPSTREAM_CLOSED


def bench_result(**changes: Any) -> dict[str, Any]:
    return {
        "date": "20261122-120000",
        "endpoint_type": "openai",
        "model_id": "m",
        "request_throughput": 1.0,
        "input_lens": [32, 16],
        "output_lens": [13, 3],
        "ttfts": [0.1, 0.2],
        "itls": [[0.02] * 4, [0.03, 0.01]],
        "start_times": [50.5, 50.0],
        "errors": ["", "broken"],
        **changes,
    }


def test_a_detailed_result_of_vllm_bench_shows_the_cadence(tmp_path: Path) -> None:
    failed, whole = read_recording(write(tmp_path / "r.json", bench_result())).exchanges
    assert (failed.observation is not None, whole.observation is not None) == (True, True)
    assert failed.observation.ending is Ending.UPSTREAM_CLOSED  # type: ignore[union-attr]
    observation = whole.observation
    assert observation is not None
    assert (observation.prompt_tokens, observation.completion_tokens, observation.verify_steps) == (32, 13, 4)
    assert observation.acceptance_length == 3.0
    assert observation.acceptance_source is Source.CADENCE
    assert observation.step_seconds == pytest.approx(0.02)
    assert observation.ttft_seconds == pytest.approx(0.1)
    assert (observation.facts.route, observation.in_flight) == ("completions", 1)
    assert len(whole.steps) == 5


def test_a_chat_result_begins_with_an_event_that_has_no_token(tmp_path: Path) -> None:
    """tests/interchange: vLLM's benchmark takes the event with the role for the first token."""
    whole = read_recording(write(tmp_path / "r.json", bench_result(endpoint_type="openai-chat"))).exchanges[1]
    observation = whole.observation
    assert observation is not None
    assert (observation.facts.route, observation.verify_steps, observation.acceptance_length) == ("chat", 3, 4.0)
    assert observation.ttft_seconds == pytest.approx(0.12)


def test_a_result_without_details_says_how_to_get_them(tmp_path: Path) -> None:
    result = bench_result()
    del result["itls"], result["start_times"]
    with pytest.raises(FormatError, match="has no itls, start_times: run vllm bench serve with --save-detailed"):
        read_recording(write(tmp_path / "r.json", result))


def guidellm_report() -> dict[str, Any]:
    timings = {
        "request_start": 1000.0,
        "first_token_iteration": 1000.1,
        "last_token_iteration": 1000.5,
        "token_iterations": 5,
        "request_end": 1000.6,
    }
    speculation = {"num_spec_steps": 4, "num_accepted_draft_tokens": 6, "num_spec_tokens": 3}
    request = {
        "request_id": "g1",
        "request_args": json.dumps({"body": {"model": "m", "messages": FIRST}}),
        "info": {"timings": timings},
        "input_metrics": {"text_tokens": 12, "cached_tokens": 4},
        "output_metrics": {"text_tokens": 11},
        "response_metrics": {"generation_time_ms": 400.0, "speculative_decoding": speculation},
    }
    without = {**request, "request_id": "g2", "response_metrics": None}
    lost = {"request_id": "g3", "info": {"timings": {}}}
    requests = {"successful": [request, without], "errored": [lost], "incomplete": []}
    return {"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [{"requests": requests}]}


def test_a_guidellm_report_carries_the_engines_counts(tmp_path: Path) -> None:
    read = read_recording(write(tmp_path / "g.json", guidellm_report()))
    counted, cadence = (one.observation for one in read.exchanges)
    assert counted is not None
    assert cadence is not None
    assert (counted.acceptance_length, counted.acceptance_source) == (2.5, Source.ENGINE)
    assert (counted.prompt_tokens, counted.cached_tokens, counted.completion_tokens) == (12, 4, 11)
    assert (cadence.acceptance_length, cadence.acceptance_source) == (2.5, Source.CADENCE)
    assert cadence.decode_tokens_per_second == pytest.approx(25.0)
    assert counted.in_flight == 2
    assert "1 requests without times are left out" in read.notes[0]
    assert read.exchanges[0].request.prompt is not None


def test_a_vllm_log_is_a_series_of_intervals() -> None:
    read = read_recording(DATA / "vllm_server.log")
    first, second = (one.observation for one in read.exchanges)
    assert first is not None
    assert second is not None
    assert (first.acceptance_length, first.num_speculative_tokens, first.verify_steps) == (4.5, 8, 500)
    assert first.completion_tokens == 2250
    assert first.decode_tokens_per_second == pytest.approx(225.0)
    assert first.position_acceptance is not None
    assert first.position_acceptance[0] == 0.774
    assert second.ended - first.ended == 10.0
    assert second.acceptance_length == 1.16
    assert "each line of the log stands for all answers of its interval" in read.notes[0]


@pytest.mark.parametrize("name", ["llama_server_old.log", "llama_server_new.log"])
def test_a_llama_server_log_is_a_series_of_requests(name: str) -> None:
    first, second = (one.observation for one in read_recording(DATA / name).exchanges)
    assert first is not None
    assert second is not None
    assert (first.prompt_tokens, first.completion_tokens) == (20, 256)
    assert first.decode_seconds == pytest.approx(2.29675)
    assert first.decode_tokens_per_second == pytest.approx(255 / 2.29675)
    assert first.acceptance_length == pytest.approx(2.92, abs=0.03)
    assert first.verify_steps == pytest.approx(87, abs=1)
    assert second.acceptance_length == pytest.approx(1.1, abs=0.01)
    assert second.started >= first.ended - 1e-6


def test_our_own_files_are_read_too() -> None:
    assert len(read_recording(SESSIONS / "chunklog_one_cycle.jsonl").exchanges) == 10
    assert len(read_recording(SESSIONS / "cycle.csv").exchanges) == 10  # the first of its series


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("hello\n", "in no format that is known: session, chunk-log, aiperf"),
        ('{"what": 1}\n', "in no format that is known"),
        ('{"custom_id": "1", "url": 5, "body": {}}\n', "line 1: has no url and body"),
        ('{"custom_id": "1", "url": "/v1", "body": {}}\nno\n', "line 2: not a JSON object"),
        ('{"metadata": {}, "responses": []}\n', "line 1: KeyError"),
        ("tok_s\nfast\n", "tok_s is 'fast'"),
        ("Avg generation throughput: 3\n", "no line of 'SpecDecoding metrics'"),
        ("slot print_timing: id  0 | task 1 |\n", "no request's timings"),
        ('{"endpoint_type": "openai", "request_throughput": 1', "not a JSON object"),
        ('{"guidellm": 1}\n', "has no benchmarks"),
    ],
)
def test_an_unknown_file_is_told_in_a_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    result = convert(path, tmp_path / "out", "session")
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith(f"specbreaker replay convert: {path}: ")
    assert result.stderr.count("\n") == 1


def test_each_format_does_something_and_has_a_name_of_its_own() -> None:
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    assert all(one.read or one.write for one in FORMATS)
    assert all((one.recognise is None) == (one.read is None) for one in FORMATS)
