"""Limits that vLLM puts on a request when it has read it: context length and sampling parameters."""

from __future__ import annotations

import math

from .errors import ApiError, invalid_parameter, prompt_too_long
from .request import GenerationRequest
from .scenario import Scenario

MAX_CHOICES = 16384
MAX_LOGPROBS = 20


def check_limits(request: GenerationRequest, scenario: Scenario) -> None:
    """Raise ApiError for the first limit that the request exceeds."""
    _check_context(request, scenario.max_model_len)
    if request.n < 1:
        raise ApiError(f"n must be at least 1, got {request.n}.")
    if request.n > MAX_CHOICES:
        raise ApiError(f"n must be at most {MAX_CHOICES}, got {request.n}.")
    _check_sampling(request)
    if scenario.num_speculative_tokens and (request.body.get("logit_bias") or request.body.get("min_p")):
        raise ApiError("The min_p and logit_bias sampling parameters are not yet supported with speculative decoding.")


def _check_context(request: GenerationRequest, max_model_len: int) -> None:
    if request.max_tokens is not None and request.max_tokens > max_model_len:
        raise invalid_parameter(
            f"max_tokens={request.max_tokens} cannot be greater than max_model_len={max_model_len}."
            " Please request fewer output tokens.",
            "max_tokens",
            request.max_tokens,
        )
    for prompt in request.prompts:
        if len(prompt) > max_model_len:
            raise prompt_too_long(len(prompt), max_model_len, max_model_len)
        room = max_model_len - len(prompt)
        allowed = room if request.max_tokens is None else min(request.max_tokens, room)
        if allowed < 1:
            raise invalid_parameter(f"max_tokens must be at least 1, got {allowed}.", "max_tokens", allowed)
        if request.min_tokens > allowed:
            raise ApiError(f"min_tokens must be less than or equal to max_tokens={allowed}, got {request.min_tokens}.")


def _check_sampling(request: GenerationRequest) -> None:
    temperature = request.temperature
    if not math.isfinite(temperature) or temperature < 0:
        raise invalid_parameter(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2:
        raise invalid_parameter(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    if not 0 < request.top_p <= 1:
        raise invalid_parameter(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)
    if request.logprobs is not None and request.logprobs > MAX_LOGPROBS:
        raise invalid_parameter(
            f"Requested sample logprobs of {request.logprobs}, which is greater than max allowed: {MAX_LOGPROBS}",
            "logprobs",
            request.logprobs,
        )
