"""Names, help texts, label values and buckets of vLLM's series: what a dashboard made for vLLM expects to find."""

from __future__ import annotations

CounterFamilies = dict[str, tuple[str, str, tuple[str, ...]]]
"""name -> (help, extra label or "", its values)"""

SPECULATION_COUNTERS: CounterFamilies = {
    "spec_decode_num_drafts": ("Number of spec decoding drafts.", "", ()),
    "spec_decode_num_draft_tokens": ("Number of draft tokens.", "", ()),
    "spec_decode_num_accepted_tokens": ("Number of accepted tokens.", "", ()),
    "spec_decode_num_accepted_tokens_per_pos": ("Accepted tokens per draft position.", "position", ()),
}
COUNTERS: CounterFamilies = {
    "prefix_cache_queries": ("Prefix cache queries, in terms of number of queried tokens.", "", ()),
    "prefix_cache_hits": ("Prefix cache hits, in terms of number of cached tokens.", "", ()),
    "external_prefix_cache_queries": ("External prefix cache queries, in tokens.", "", ()),
    "external_prefix_cache_hits": ("External prefix cache hits, in tokens.", "", ()),
    "mm_cache_queries": ("Multi-modal cache queries, in terms of number of queried items.", "", ()),
    "mm_cache_hits": ("Multi-modal cache hits, in terms of number of cached items.", "", ()),
    "num_preemptions": ("Cumulative number of preemption from the engine.", "", ()),
    "prompt_tokens": ("Number of prefill tokens processed.", "", ()),
    "prompt_tokens_by_source": (
        "Number of prompt tokens by source.",
        "source",
        ("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    "prompt_tokens_cached": ("Number of cached prompt tokens (local + external).", "", ()),
    "generation_tokens": ("Number of generation tokens processed.", "", ()),
    "request_success": (
        "Count of successfully processed requests.",
        "finished_reason",
        ("stop", "length", "abort", "error", "repetition"),
    ),
}
COUNTERS_SINCE_0_29: CounterFamilies = {
    "prompt_tokens_cached_by_source": (
        "Prefix-cache hit tokens by the cache tier that supplied them.",
        "source",
        ("device", "host", "p2p", "disk", "external_unspecified"),
    ),
}

_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
HTTP_DURATION_BUCKETS = (0.1, 0.5, 1)
HTTP_DURATION_HIGH_RESOLUTION_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "request_prompt_tokens": ("Number of prefill tokens processed.", ()),
    "request_generation_tokens": ("Number of generation tokens processed.", ()),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _ITERATION),
    "request_max_num_generation_tokens": ("Histogram of maximum number of requested generation tokens.", ()),
    "request_params_n": ("Histogram of the n request parameter.", (1, 2, 5, 10, 20)),
    "request_params_max_tokens": ("Histogram of the max_tokens request parameter.", ()),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _FIRST_TOKEN),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _TOKEN),
    "request_time_per_output_token_seconds": (
        "Histogram of time_per_output_token_seconds per request.",
        _TOKEN,
    ),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _REQUEST),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _REQUEST),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _REQUEST),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _REQUEST),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _REQUEST),
    "request_num_preemptions": (
        "Histogram of the number of times a request was preempted.",
        (1, 2, 3, 4, 5, 10, 20),
    ),
    "request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        (),
    ),
}
"""name -> (help, upper bounds; none: the length buckets)"""


def length_buckets(max_model_len: int) -> tuple[float, ...]:
    """Buckets of token counts: 1, 2, 5, 10, ... up to the longest context."""
    bounds: list[float] = []
    magnitude = 1
    while True:
        for digit in (1, 2, 5):
            if digit * magnitude > max_model_len:
                return tuple(bounds)
            bounds.append(float(digit * magnitude))
        magnitude *= 10
