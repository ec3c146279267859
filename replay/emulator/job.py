"""One API request in the engine, and the parts of an answer that all routes share: usage, metrics, logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .engine import EngineRequest
from .output import ChoiceOutput, ChoiceStream, OutputCollector
from .profile import ServerProfile
from .request import GenerationRequest
from .text import token_text, top_alternatives

encode_json = msgspec.json.encode


@dataclass(frozen=True, kw_only=True)
class Job:
    """One API request that the engine works on."""

    id: str
    created: int
    request: GenerationRequest
    profile: ServerProfile
    streams: list[ChoiceStream]
    collector: OutputCollector

    @property
    def engine_requests(self) -> list[EngineRequest]:
        """One for each choice."""
        return [stream.request for stream in self.streams]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all its prompts."""
        return sum(map(len, self.request.prompts))

    @property
    def cached_tokens(self) -> int:
        """Tokens of its first prompt that the engine had cached."""
        return self.streams[0].request.cached_tokens

    @property
    def created_cache_tokens(self) -> int:
        """Tokens of its first prompt that the engine cached now."""
        return self.streams[0].request.created_cache_tokens


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The three counts, in vLLM's order."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def final_usage(job: Job, completion_tokens: int, *, whole: bool, chat: bool) -> dict[str, Any]:
    """Usage of the answer. whole: in a body, which shows what is empty; else in the last event, which does not.

    chat: chat completions also tell what was added to the cache.
    """
    modern = job.profile.modern
    counts = usage(job.prompt_tokens, completion_tokens)
    details: dict[str, Any] | None = None
    if job.profile.prompt_tokens_details and (modern or job.cached_tokens):
        details = {"cached_tokens": job.cached_tokens}
        if modern and (chat or whole):
            details["created_cache_tokens"] = job.created_cache_tokens if chat else None
        if modern and whole:
            details["multimodal_tokens"] = None
    if whole or details is not None:
        counts["prompt_tokens_details"] = details
    if whole and modern:
        counts["completion_tokens_details"] = None
    return counts


def request_metrics(job: Job, *, nulls: bool) -> dict[str, Any] | None:
    """The ``metrics`` object of one answer; None where the server was not asked for it or there are several choices."""
    profile, request = job.profile, job.streams[0].request
    if not profile.modern or job.request.choices != 1:
        return None
    speculative = None
    # A stop string is found by the server, not by the engine, whose counts of the request then never arrive.
    counted = not isinstance(request.stop_reason, str)
    if profile.spec_decode_metrics != "none" and profile.num_speculative_tokens and counted:
        speculative = _speculative_metrics(request, profile, nulls=nulls)
    if not profile.per_request_metrics and speculative is None:
        return None
    metrics = timing_metrics(request, known=profile.per_request_metrics) | {"speculative_decoding": speculative}
    return metrics if nulls else {key: value for key, value in metrics.items() if value is not None}


def timing_metrics(request: EngineRequest, *, known: bool) -> dict[str, Any]:
    """The times of one answer in milliseconds, and its tokens per second; None where not known."""
    names = ("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second")
    scheduled, first, last = request.scheduled_at, request.first_token_at, request.last_token_at
    if not known or scheduled is None or first is None or last is None:
        return dict.fromkeys(names)
    count = len(request.tokens)
    values = (
        (first - scheduled) * 1000,
        (last - first) * 1000,
        (scheduled - request.queued_at) * 1000,
        (last - first) / (count - 1) * 1000 if count > 1 else None,
        count / (last - scheduled) if last > scheduled else None,
    )
    return dict(zip(names, values, strict=True))


def _speculative_metrics(request: EngineRequest, profile: ServerProfile, *, nulls: bool) -> dict[str, Any]:
    accepted, drafted = request.accepted_per_step, request.drafted_per_step
    histogram = [0] * (profile.num_speculative_tokens + 1)
    for count in accepted:
        histogram[count] += 1
    shown: dict[str, Any] = {
        "mean_acceptance_length": 1.0 + sum(accepted) / len(accepted) if accepted else 1.0,
        "draft_acceptance_rate": sum(accepted) / sum(drafted) if drafted else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": len(accepted),
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(drafted),
        "num_spec_tokens": profile.num_speculative_tokens,
    }
    if profile.spec_decode_metrics == "detailed" and accepted:
        shown |= {"per_step_accepted": accepted, "per_step_drafted": drafted}
    elif nulls:
        shown |= {"per_step_accepted": None, "per_step_drafted": None}
    return shown


def chat_logprobs(output: ChoiceOutput, alternatives: int | None) -> dict[str, Any] | None:
    """Logprobs of an output in the chat format."""
    if alternatives is None:
        return None
    content = []
    for position, token in enumerate(output.tokens, output.first_position):
        ranked = top_alternatives(position, token, max(1, alternatives))
        entries = [_chat_logprob(index, logprob) for index, logprob in ranked]
        content.append(entries[0] | {"top_logprobs": entries[:alternatives]})
    return {"content": content}


def _chat_logprob(token: int, logprob: float) -> dict[str, Any]:
    text = token_text(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(
    tokens: Sequence[int], first_position: int, alternatives: int | None, text_offset: int
) -> dict[str, Any] | None:
    """Logprobs of tokens in the completions format; text_offset: characters before them.

    The first token of a prompt (position 0) has none: nothing stood before it.
    """
    if alternatives is None:
        return None
    offsets, texts = [], []
    chosen: list[float | None] = []
    top: list[dict[str, float] | None] = []
    for position, token in enumerate(tokens, first_position):
        ranked = top_alternatives(position, token, max(1, alternatives))
        offsets.append(text_offset)
        texts.append(token_text(token))
        text_offset += len(texts[-1])
        chosen.append(ranked[0][1] if position else None)
        top.append({token_text(index): logprob for index, logprob in ranked} if position else None)
    return {"text_offset": offsets, "token_logprobs": chosen, "tokens": texts, "top_logprobs": top}


def prompt_logprobs(prompt: Sequence[int], alternatives: int) -> list[dict[str, Any] | None]:
    """What vLLM says of each prompt token of an echoed prompt, by token id."""
    shown: list[dict[str, Any] | None] = [None]
    for position, token in enumerate(prompt[1:], 1):
        ranked = top_alternatives(position, token, max(1, alternatives))
        shown.append(
            {
                str(index): {"logprob": logprob, "rank": rank, "decoded_token": token_text(index)}
                for rank, (index, logprob) in enumerate(ranked, 1)
            }
        )
    return shown
