"""Reading /metrics."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_captures import read

from detector.observation import EngineSample
from detector.tap.promtext import difference, parse, speculation_between

BEFORE = "dflash_trained_metrics_before.txt"
AFTER = "dflash_trained_metrics_after.txt"


def sample(**changes: float | None) -> EngineSample:
    """An engine of K=2 that generated 100 tokens."""
    engine = EngineSample(
        at=1.0,
        process_started_unix=50.0,
        num_speculative_tokens=2,
        drafts=40.0,
        draft_tokens=80.0,
        accepted_tokens=59.0,
        accepted_per_position=(35.0, 24.0),
        generation_tokens=100.0,
    )
    return msgspec.structs.replace(engine, **changes)


def test_a_capture_of_vllm_0_32() -> None:
    engine = parse(read(AFTER), at=3.0)
    assert engine == EngineSample(
        at=3.0,
        process_started_unix=1.79533009755e09,
        num_speculative_tokens=7,
        drafts=402.0,
        draft_tokens=2814.0,
        accepted_tokens=550.0,
        accepted_per_position=(235.0, 80.0, 57.0, 52.0, 42.0, 42.0, 42.0),
        generation_tokens=960.0,
        prompt_tokens=371.0,
        cached_prompt_tokens=0.0,
        requests_running=0.0,
        requests_waiting=0.0,
        kv_cache_usage=0.0,
        preemptions=0.0,
        engine_steps=402.0,
        decode_seconds=2.1147631110002294,
        awake=True,
    )
    assert parse(read(AFTER).decode(), at=3.0) == engine


def test_a_capture_of_vllm_0_20() -> None:
    engine = parse(read("k8_cycle_by_request.metrics.txt"), at=0.0)
    assert (engine.num_speculative_tokens, engine.drafts, engine.generation_tokens) == (8, 9503.0, 21504.0)
    assert sum(engine.accepted_per_position) == engine.accepted_tokens == 12031.0


def test_difference_of_the_captures() -> None:
    change = difference(parse(read(BEFORE), at=1.0), parse(read(AFTER), at=4.0))
    assert change is not None
    assert (change.seconds, change.drafts, change.generation_tokens, change.prompt_tokens) == (3.0, 402.0, 960.0, 371.0)
    assert sum(change.accepted_per_position) == change.accepted_tokens
    counts = speculation_between(parse(read(BEFORE), at=1.0), parse(read(AFTER), at=4.0), 960)
    assert counts is not None
    assert (counts.verify_steps, counts.accepted_tokens, counts.num_speculative_tokens) == (402, 550, 7)


def test_engines_are_summed() -> None:
    engine = parse(
        'vllm:generation_tokens_total{engine="0",model_name="a}b"} 3.0\n'
        'vllm:generation_tokens_total{engine="1",model_name="a}b"} 4.0\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.25\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 1\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 5\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="0"} 6 1395066363000\n'
        'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n'
        'vllm:engine_sleep_state{engine="1",sleep_state="awake"} 1.0\n'
        'vllm:generation_tokens_created{engine="0"} 77.5\n',
        at=0.0,
    )
    assert engine.generation_tokens == 7.0
    assert engine.kv_cache_usage == 0.5
    assert engine.accepted_per_position == (11.0, 1.0)
    assert engine.num_speculative_tokens == 2
    assert engine.awake is False
    assert engine.process_started_unix == 77.5


def test_an_engine_without_speculation() -> None:
    engine = parse("vllm:generation_tokens_total 5\n", at=0.0)
    assert (engine.num_speculative_tokens, engine.drafts, engine.awake) == (0, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# vllm:generation_tokens_total 5\n",
        "vllm:generation_tokens_total{ 5",
        "vllm:generation_tokens_total nonsense\n",
        "vllm:generation_tokens_total NaN\n",
        "vllm:generation_tokens_total +Inf\n",
        "xvllm:generation_tokens_total 5\n",
        "vllm:generation_tokens_totals 5\n",
        "<html>not metrics</html>",
    ],
)
def test_what_is_no_sample_is_skipped(text: str) -> None:
    assert parse(text, at=2.0) == EngineSample(at=2.0)


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(["vllm:", "num_requests_running", "{", "}", 'position="', "9", '"', " ", "\n", "e", "-"])
    )
)
def test_hostile_text_never_raises(text: list[str]) -> None:
    assert parse("".join(text), at=1.0).at == 1.0


@pytest.mark.parametrize(
    "after",
    [
        sample(at=2.0, process_started_unix=51.0),
        sample(at=2.0, process_started_unix=None),
        sample(at=2.0, generation_tokens=99.0),
        sample(at=2.0, drafts=0.0),
        sample(at=2.0, accepted_per_position=(36.0, 23.0)),
        sample(at=2.0, accepted_per_position=(35.0, 24.0, 0.0)),
        sample(at=0.5),
    ],
)
def test_samples_that_do_not_belong_together(after: EngineSample) -> None:
    assert difference(sample(), after) is None
    assert speculation_between(sample(), after, 0) is None


def test_speculation_of_the_one_request_between() -> None:
    after = sample(
        at=2.0,
        drafts=45.0,
        accepted_tokens=65.0,
        draft_tokens=90.0,
        accepted_per_position=(39.0, 26.0),
        generation_tokens=111.0,
    )
    counts = speculation_between(sample(), after, 11)
    assert counts is not None
    assert (counts.verify_steps, counts.accepted_tokens, counts.drafted_tokens) == (5, 6, 10)
    assert (counts.accepted_per_position, counts.num_speculative_tokens) == ((4, 2), 2)
    assert speculation_between(sample(), after, 10) is None
    assert speculation_between(sample(), after, None) is None
    assert speculation_between(sample(drafts=None), after, 11) is None


def test_a_missing_counter_is_none() -> None:
    change = difference(sample(draft_tokens=None), sample(at=2.0))
    assert change is not None
    assert (change.draft_tokens, change.drafts, change.engine_steps) == (None, 0.0, None)
