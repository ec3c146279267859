"""The findings of a recorded series of answers, as one JSON object: what ``specbreaker detect --json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from detector.observation import Observation, Step
from detector.stats.cycle import CycleVerdict
from detector.verdict import Episode
from detector.watch import Watch, WatchConfig


def summarise(
    observations: Iterable[Observation], config: WatchConfig, steps: Sequence[Sequence[Step]] = ()
) -> dict[str, Any]:
    """Run the detector over answers in the order given, or, with their ``steps``, in the order of time.

    ``steps`` holds the content events of each answer, in the same order as the answers; the detector then judges them
    as a proxy does while an answer runs. Each backend has a watch of its own. Requests are numbered from 0 over all
    backends; canaries have no number. The cycle is that of the backend with the most evidence for one.
    """
    watches: dict[str, Watch] = {}
    numbers: dict[str, list[int]] = {}
    requests = 0
    rates = _TimeWeightedRate()
    for observation, step in _timeline(list(observations), steps):
        if observation.backend not in watches:
            watches[observation.backend] = Watch(config)
        watch = watches[observation.backend]
        if step is not None:
            watch.update_step(observation.request_id, step)
            continue
        watch.update(observation)
        if not observation.canary:
            numbers.setdefault(observation.backend, []).append(requests)
            requests += 1
            rates.add(observation)
    episodes = [
        _renumbered(episode, numbers.get(backend, []), requests)
        for backend, watch in watches.items()
        for episode in watch.episodes
    ]
    episodes.sort(key=lambda episode: (episode.onset_request, episode.detected_request))
    return {
        "requests": requests,
        "time_weighted_tok_s": rates.tokens_per_second,
        "episodes": msgspec.to_builtins(episodes),
        "cycle": _cycle([watch.cycle for watch in watches.values()]),
        "alarms_budget": {"mean_requests_between_false_alarms": config.mean_requests_between_false_alarms},
    }


def _timeline(
    observations: list[Observation], steps: Sequence[Sequence[Step]]
) -> Iterable[tuple[Observation, Step | None]]:
    """What a watch is told, in order: (answer, one of its steps), and (answer, None) when it has ended."""
    if not any(step.tokens is not None for its_steps in steps for step in its_steps):
        return [(observation, None) for observation in observations]
    told: list[tuple[float, int, Observation, Step | None]] = []
    for observation, its_steps in zip(observations, steps, strict=True):
        told += [(step.at, 0, observation, step) for step in its_steps if step.tokens is not None]
        told.append((observation.ended, 1, observation, None))
    told.sort(key=lambda one: one[:2])
    return [(observation, step) for _, _, observation, step in told]


def _cycle(found: list[CycleVerdict]) -> dict[str, Any]:
    best = max(found, key=lambda one: one.e_value, default=CycleVerdict())
    return {
        "verdict": best.verdict,
        "clock": best.clock,
        "period": msgspec.to_builtins(best.period),
        "e_value": best.e_value,
        "p_value": best.p_value,
    }


class _TimeWeightedRate:
    """Tokens / decode time over all answers, never a mean of rates.

    Where no answer has a length, as in a list of rates, all count as equally long.
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._answers, self._seconds_per_token = 0, 0.0

    def add(self, observation: Observation) -> None:
        rate, seconds = observation.decode_tokens_per_second, observation.decode_seconds
        if rate is None or not rate > 0:
            return
        if seconds is None and observation.completion_tokens is not None:
            seconds = observation.completion_tokens / rate
        if seconds is None:
            self._answers += 1
            self._seconds_per_token += 1 / rate
        else:
            self._tokens += rate * seconds
            self._seconds += seconds

    @property
    def tokens_per_second(self) -> float | None:
        if self._seconds:
            return self._tokens / self._seconds
        return self._answers / self._seconds_per_token if self._answers else None


def _renumbered(episode: Episode, numbers: list[int], requests: int) -> Episode:
    """An episode by the numbers of all requests; one that a canary decided belongs to the next request."""

    def number(index: int) -> int:
        return numbers[index] if index < len(numbers) else requests

    return msgspec.structs.replace(
        episode,
        onset_request=number(episode.onset_request),
        detected_request=number(episode.detected_request),
        end_request=None if episode.end_request is None else number(episode.end_request),
    )
