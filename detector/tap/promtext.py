"""Reading vLLM's ``/metrics`` (Prometheus text 0.0.4, vLLM 0.20.2 to 0.33): a sample, and the difference of two.

Values are summed over the ``engine`` labels (data parallel ranks). Only the families below are looked at; everything
else in the text is skipped without being parsed.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from detector.observation import EngineSample, SpeculationCounts

_FAMILIES: Final = {
    b"vllm:spec_decode_num_drafts_total": "drafts",
    b"vllm:spec_decode_num_draft_tokens_total": "draft_tokens",
    b"vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens",
    b"vllm:generation_tokens_total": "generation_tokens",
    b"vllm:prompt_tokens_total": "prompt_tokens",
    b"vllm:prompt_tokens_cached_total": "cached_prompt_tokens",
    b"vllm:num_requests_running": "requests_running",
    b"vllm:num_requests_waiting": "requests_waiting",
    b"vllm:kv_cache_usage_perc": "kv_cache_usage",
    b"vllm:num_preemptions_total": "preemptions",
    b"vllm:inter_token_latency_seconds_count": "engine_steps",
    b"vllm:request_decode_time_seconds_sum": "decode_seconds",
}
_PER_POSITION: Final = b"vllm:spec_decode_num_accepted_tokens_per_pos_total"
_SLEEP_STATE: Final = b"vllm:engine_sleep_state"
_STARTED: Final = b"process_start_time_seconds"
_CREATED: Final = b"vllm:generation_tokens_created"

_SAMPLE: Final = re.compile(
    rb"^(%b)(?:\{([^\n]*)\})?[ \t]+([^ \t\n]+)"
    % b"|".join(re.escape(name) for name in (*_FAMILIES, _PER_POSITION, _SLEEP_STATE, _STARTED, _CREATED)),
    re.MULTILINE,
)
_POSITION: Final = re.compile(rb'\bposition="(\d{1,4})"')
_AWAKE: Final = b'sleep_state="awake"'


class EngineDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine did between two samples. A counter that one of them lacks is None."""

    seconds: float
    drafts: float | None = None
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    accepted_per_position: tuple[float, ...] = ()
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    preemptions: float | None = None
    engine_steps: float | None = None
    decode_seconds: float | None = None


_COUNTERS: Final = tuple(
    name for name in EngineDifference.__struct_fields__ if name not in ("seconds", "accepted_per_position")
)


def parse(text: bytes | str, at: float) -> EngineSample:
    """One reading of ``/metrics``, taken at monotonic second ``at``. Lines that are not finite samples are skipped.

    ``kv_cache_usage`` is the highest over the engines, everything else their sum. ``awake`` is None where no engine
    says whether it sleeps, False as soon as one does.
    """
    data = text.encode() if isinstance(text, str) else text
    sums: dict[str, float] = {}
    positions: dict[int, float] = {}
    moments: dict[bytes, float] = {}
    awake: bool | None = None
    for name, labels, digits in _SAMPLE.findall(data):
        try:
            value = float(digits)
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        if name == _PER_POSITION:
            position = _POSITION.search(labels)
            if position is not None:
                index = int(position[1])
                positions[index] = positions.get(index, 0.0) + value
        elif name == _SLEEP_STATE:
            if _AWAKE in labels:
                awake = value == 1.0 and awake is not False
        elif name in (_STARTED, _CREATED):
            moments[name] = value
        elif name == b"vllm:kv_cache_usage_perc":
            sums["kv_cache_usage"] = max(value, sums.get("kv_cache_usage", 0.0))
        else:
            field = _FAMILIES[name]
            sums[field] = sums.get(field, 0.0) + value
    whole = sorted(positions) == list(range(len(positions)))
    return EngineSample(
        at=at,
        process_started_unix=moments.get(_STARTED, moments.get(_CREATED)),
        num_speculative_tokens=_num_speculative_tokens(sums, positions),
        accepted_per_position=tuple(positions[index] for index in sorted(positions)) if whole else (),
        awake=awake,
        **sums,
    )


def _num_speculative_tokens(sums: dict[str, float], positions: dict[int, float]) -> int | None:
    """vLLM makes every position's series at start-up, and none at all without speculation."""
    if positions:
        return max(positions) + 1
    return 0 if "generation_tokens" in sums and "drafts" not in sums else None


def difference(before: EngineSample, after: EngineSample) -> EngineDifference | None:
    """What happened between two samples of one engine, or None where they do not belong together.

    They do not if the process was restarted, a counter went backwards, the number of draft positions changed, or the
    samples are in the wrong order.
    """
    if before.process_started_unix != after.process_started_unix or after.at < before.at:
        return None
    if len(before.accepted_per_position) != len(after.accepted_per_position):
        return None
    changes: dict[str, float] = {}
    for name in _COUNTERS:
        old, new = getattr(before, name), getattr(after, name)
        if old is None or new is None:
            continue
        if not new >= old:
            return None
        changes[name] = new - old
    pairs = zip(before.accepted_per_position, after.accepted_per_position, strict=True)
    per_position = tuple(new - old for old, new in pairs)
    if any(not change >= 0 for change in per_position):
        return None
    return EngineDifference(seconds=after.at - before.at, accepted_per_position=per_position, **changes)


def speculation_between(
    before: EngineSample, after: EngineSample, completion_tokens: int | None
) -> SpeculationCounts | None:
    """Speculation of the one request that ran between two samples and yielded ``completion_tokens``.

    None unless the engine generated exactly that many tokens in between: anything else means that another request used
    it too, or that a sample was taken while the request still ran. None also where the process changed.
    """
    change = difference(before, after)
    if change is None or completion_tokens is None or change.generation_tokens != completion_tokens:
        return None
    if change.drafts is None or change.accepted_tokens is None:
        return None
    return SpeculationCounts(
        verify_steps=int(change.drafts),
        accepted_tokens=int(change.accepted_tokens),
        drafted_tokens=None if change.draft_tokens is None else int(change.draft_tokens),
        num_speculative_tokens=after.num_speculative_tokens,
        accepted_per_position=tuple(map(int, change.accepted_per_position)) or None,
    )
