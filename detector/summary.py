"""The findings of a recorded series of answers, as one JSON object: what ``specbreaker detect --json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from detector.judgement import judge
from detector.observation import Observation, Step
from detector.watch import WatchConfig


def summarise(
    observations: Iterable[Observation], config: WatchConfig, steps: Sequence[Sequence[Step]] = ()
) -> dict[str, Any]:
    """Run the detector over answers as ``judge`` does. The cycle is that of the backend with the most evidence."""
    judgement = judge(observations, config, steps)
    clients = [answer.observation for answer in judgement.answers if answer.request is not None]
    cycle = judgement.cycle
    return {
        "requests": judgement.requests,
        "time_weighted_tok_s": time_weighted_rate(clients),
        "episodes": msgspec.to_builtins([one.episode for one in judgement.episodes]),
        "cycle": {
            "verdict": cycle.verdict,
            "clock": cycle.clock,
            "period": msgspec.to_builtins(cycle.period),
            "e_value": cycle.e_value,
            "p_value": cycle.p_value,
        },
        "alarms_budget": {"mean_requests_between_false_alarms": config.mean_requests_between_false_alarms},
    }


def time_weighted_rate(observations: Iterable[Observation]) -> float | None:
    """Decode tokens per decode second over many answers, which a mean of rates is not; None: no rate is known.

    Answers of unknown length, whose time is not known either, do not count next to answers with a length; where no
    answer has a length, as in a list of rates, all count as equally long.
    """
    tokens = total_seconds = seconds_per_token = 0.0
    answers = 0
    for observation in observations:
        rate, seconds = observation.decode_tokens_per_second, observation.rate_seconds
        if rate is None or not rate > 0:
            continue
        if seconds is None:
            answers += 1
            seconds_per_token += 1 / rate
        else:
            tokens += rate * seconds
            total_seconds += seconds
    if total_seconds:
        return tokens / total_seconds
    return answers / seconds_per_token if answers else None
