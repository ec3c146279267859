"""``/metrics``: names, labels, and counters that move by exactly what an answer says."""

import pytest

COUNTERS = [
    *("vllm:spec_decode_num_drafts", "vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens"),
    *("vllm:spec_decode_num_accepted_tokens_per_pos", "vllm:prefix_cache_queries", "vllm:prefix_cache_hits"),
    *("vllm:num_preemptions", "vllm:prompt_tokens", "vllm:prompt_tokens_by_source", "vllm:prompt_tokens_cached"),
    *("vllm:generation_tokens", "vllm:request_success", "vllm:prompt_tokens_cached_by_source"),
    *("vllm:external_prefix_cache_queries", "vllm:external_prefix_cache_hits", "vllm:mm_cache_queries"),
]
GAUGES = [
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason"),
    *("vllm:engine_sleep_state", "vllm:kv_cache_usage_perc", "vllm:cache_config_info", "process_start_time_seconds"),
]
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": 23,
    "vllm:inter_token_latency_seconds": 20,
    "vllm:request_time_per_output_token_seconds": 20,
    "vllm:e2e_request_latency_seconds": 22,
    "vllm:request_queue_time_seconds": 22,
    "vllm:request_inference_time_seconds": 22,
    "vllm:request_prefill_time_seconds": 22,
    "vllm:request_decode_time_seconds": 22,
    "vllm:iteration_tokens_total": 14,
    "vllm:request_params_n": 6,
    "vllm:request_num_preemptions": 8,
    "vllm:request_prompt_tokens": 12,
    "vllm:request_generation_tokens": 12,
    "vllm:request_max_num_generation_tokens": 12,
    "vllm:request_params_max_tokens": 12,
    "vllm:request_prefill_kv_computed_tokens": 12,
}


async def test_every_series_of_a_dashboard_is_there(engine):
    response = await engine.get("/metrics")
    assert response.header("content-type") == "text/plain; version=1.0.0; charset=utf-8"
    metrics = await engine.metrics()
    for name in COUNTERS:
        assert f"{name}_total" in metrics
        assert set(metrics[f"{name}_created"]) == set(metrics[f"{name}_total"])
    assert [name for name in GAUGES if name not in metrics] == []
    for name, buckets in HISTOGRAMS.items():
        assert len(metrics[f"{name}_bucket"]) == buckets, name
        assert {f"{name}_count", f"{name}_sum", f"{name}_created"} <= set(metrics)


async def test_labels(engine):
    metrics = await engine.metrics()
    plain = f'engine="0",model_name="{engine.model}"'
    assert list(metrics["vllm:generation_tokens_total"]) == [plain]
    positions = [f'{plain},position="{index}"' for index in range(engine.num_speculative_tokens)]
    assert list(metrics["vllm:spec_decode_num_accepted_tokens_per_pos_total"]) == positions
    reasons = [
        f'engine="0",finished_reason="{reason}",model_name="{engine.model}"'
        for reason in ("stop", "length", "abort", "error", "repetition")
    ]
    assert list(metrics["vllm:request_success_total"]) == reasons


async def difference(engine, work):
    await engine.idle()
    before = await engine.metrics()
    result = await work
    after = await engine.metrics()

    def moved(name, label=""):
        return sum(after[name][key] - before[name].get(key, 0.0) for key in after[name] if label in key)

    return result, moved


@pytest.mark.parametrize("stream", [False, True])
async def test_counters_move_by_what_the_answer_says(engine, stream):
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response, moved = await difference(engine, engine.chat("Counting rain drops.", max_tokens=100, **options))
    body = response.events[-1] if stream else response.json
    speculation, usage = body["metrics"]["speculative_decoding"], body["usage"]
    steps, accepted = speculation["num_spec_steps"], speculation["per_step_accepted"]
    assert moved("vllm:spec_decode_num_drafts_total") == steps
    assert moved("vllm:spec_decode_num_draft_tokens_total") == speculation["num_draft_tokens"]
    assert moved("vllm:spec_decode_num_accepted_tokens_total") == speculation["num_accepted_draft_tokens"]
    for position in range(engine.num_speculative_tokens):
        reached = sum(count > position for count in accepted)
        assert moved("vllm:spec_decode_num_accepted_tokens_per_pos_total", f'position="{position}"') == reached
    assert moved("vllm:generation_tokens_total") == usage["completion_tokens"] == 100
    assert moved("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert moved("vllm:request_success_total", 'finished_reason="length"') == 1
    assert moved("vllm:request_success_total") == 1
    assert moved("vllm:inter_token_latency_seconds_count") == steps
    assert moved("vllm:time_to_first_token_seconds_count") == 1
    assert moved("vllm:request_generation_tokens_sum") == 100
    assert moved("vllm:request_params_max_tokens_sum") == 100


async def test_reported_times_agree_with_the_histograms(engine):
    response, moved = await difference(engine, engine.complete(max_tokens=60))
    metrics = response.json["metrics"]
    assert moved("vllm:request_decode_time_seconds_sum") == pytest.approx(
        metrics["generation_time_ms"] / 1000, rel=1e-3
    )
    assert moved("vllm:inter_token_latency_seconds_sum") == pytest.approx(
        metrics["generation_time_ms"] / 1000, rel=1e-3
    )
    assert metrics["mean_itl_ms"] == pytest.approx(metrics["generation_time_ms"] / 59, rel=1e-6)


async def test_each_choice_counts_as_a_request(engine):
    _, moved = await difference(engine, engine.chat(n=2, max_tokens=10))
    assert moved("vllm:request_success_total") == 2
    assert moved("vllm:generation_tokens_total") == 20
    assert moved("vllm:request_params_n_sum") == 2
