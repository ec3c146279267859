"""A recorded series of answers under the detector: what it said of each answer, and what it found in all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from detector.observation import Observation, Step
from detector.stats.cycle import CycleVerdict
from detector.verdict import Cause, Episode, Phase
from detector.watch import Watch, WatchConfig


class JudgedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer and the state of its backend at its end."""

    observation: Observation
    steps: tuple[Step, ...] = ()
    """Its content events, as far as they are known."""
    request: int | None
    """Its number among all requests, from 0; None: a canary, which has no number."""
    phase: Phase
    cause: Cause | None


class JudgedEpisode(msgspec.Struct, frozen=True, kw_only=True):
    """One collapse of one backend."""

    backend: str
    episode: Episode
    """By the numbers of all requests."""
    began: float
    """Monotonic seconds of the step at which it began, or of the arrival of its first request."""
    ended: float = math.inf
    """When the first healthy request arrived; inf: it lasts."""
    why: str = ""
    """The last diagnosis in a sentence; empty where there is none."""
    remedies: tuple[str, ...] = ()
    """What may help against the cause, the most useful first."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What the detector made of a series of answers."""

    answers: list[JudgedAnswer]
    """In the order in which they were judged: of the file, or of their ends where steps were known."""
    episodes: list[JudgedEpisode]
    """In the order of their onsets."""
    cycles: dict[str, CycleVerdict]
    """By backend; where its level changed, of the level with the most evidence."""

    @property
    def requests(self) -> int:
        """Answers, canaries left out."""
        return sum(answer.request is not None for answer in self.answers)

    @property
    def cycle(self) -> CycleVerdict:
        """Of the backend with the most evidence for one."""
        return max(self.cycles.values(), key=lambda one: one.e_value, default=CycleVerdict())

    def in_episode(self, answer: JudgedAnswer) -> bool:
        """Whether a collapse of its backend reaches into this answer: they overlap in time."""
        its = answer.observation
        return any(
            one.backend == its.backend and its.started < one.ended and its.ended > one.began for one in self.episodes
        )


def judge(observations: Iterable[Observation], config: WatchConfig, steps: Sequence[Sequence[Step]] = ()) -> Judgement:
    """Run the detector over answers in the order given, or, with their ``steps``, in the order of time.

    ``steps`` holds the content events of each answer, in the same order as the answers; the detector then judges them
    as a proxy does while an answer runs. Each backend has a watch of its own. Requests are numbered from 0 over all
    backends; canaries have no number.
    """
    watches: dict[str, Watch] = {}
    numbers: dict[str, list[int]] = {}
    diagnoses: dict[str, dict[int, tuple[str, tuple[str, ...]]]] = {}
    answers: list[JudgedAnswer] = []
    requests = 0
    for observation, step, its_steps in _timeline(list(observations), steps):
        backend = observation.backend
        if backend not in watches:
            watches[backend] = Watch(config)
        watch = watches[backend]
        if observation.generation > watch.generation:
            watch.restart(observation.generation)  # its first step would come too early for the answer's own update
        if step is not None:
            watch.update_step(observation.request_id, step)
            continue
        verdict = watch.update(observation)
        if verdict.degraded and verdict.why:
            diagnoses.setdefault(backend, {})[watch.episodes_total - 1] = (verdict.why, verdict.remedies)
        number = None if observation.canary else requests
        if number is not None:
            numbers.setdefault(backend, []).append(number)
            requests += 1
        answers.append(
            JudgedAnswer(
                observation=observation,
                steps=tuple(its_steps),
                request=number,
                phase=verdict.phase,
                cause=verdict.cause,
            )
        )
    by_number = {answer.request: answer for answer in answers if answer.request is not None}
    episodes = [
        _judged(backend, episode, numbers.get(backend, []), by_number, diagnoses.get(backend, {}).get(index))
        for backend, watch in watches.items()
        for index, episode in enumerate(watch.episodes, start=watch.episodes_total - len(watch.episodes))
    ]
    episodes.sort(key=lambda one: (one.episode.onset_request, one.episode.detected_request))
    return Judgement(
        answers=answers,
        episodes=episodes,
        cycles={backend: watch.strongest_cycle for backend, watch in watches.items()},
    )


def _timeline(
    observations: list[Observation], steps: Sequence[Sequence[Step]]
) -> Iterable[tuple[Observation, Step | None, Sequence[Step]]]:
    """What a watch is told, in order: (answer, one of its steps), and (answer, None) when it has ended."""
    its = list(steps) or [()] * len(observations)
    if not any(step.tokens is not None for its_steps in its for step in its_steps):
        return [(observation, None, its_steps) for observation, its_steps in zip(observations, its, strict=True)]
    told: list[tuple[float, int, Observation, Step | None, Sequence[Step]]] = []
    for observation, its_steps in zip(observations, its, strict=True):
        told += [(step.at, 0, observation, step, ()) for step in its_steps if step.tokens is not None]
        told.append((observation.ended, 1, observation, None, its_steps))
    told.sort(key=lambda one: one[:2])
    return [(observation, step, its_steps) for _, _, observation, step, its_steps in told]


def _judged(
    backend: str,
    episode: Episode,
    numbers: list[int],
    answers: dict[int, JudgedAnswer],
    diagnosis: tuple[str, tuple[str, ...]] | None,
) -> JudgedEpisode:
    """An episode by the numbers of all requests; one that a canary decided belongs to the next request."""

    def number(index: int) -> int:
        return numbers[index] if index < len(numbers) else len(answers)

    renumbered = msgspec.structs.replace(
        episode,
        onset_request=number(episode.onset_request),
        detected_request=number(episode.detected_request),
        end_request=None if episode.end_request is None else number(episode.end_request),
    )
    why, remedies = diagnosis or ("", ())
    last = answers.get(renumbered.end_request) if renumbered.end_request is not None else None
    return JudgedEpisode(
        backend=backend,
        episode=renumbered,
        began=_began(answers.get(renumbered.onset_request), renumbered.onset_step),
        ended=math.inf if last is None else last.observation.started,
        why=why,
        remedies=remedies,
    )


def _began(first: JudgedAnswer | None, step: int | None) -> float:
    """When an episode began that is known by its first answer and perhaps the step in it."""
    if first is None:
        return math.inf
    if step is not None and 0 <= step < len(first.steps):
        return first.steps[step].at
    return first.observation.started
