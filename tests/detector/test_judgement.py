"""Which answers a recorded collapse reaches into."""

from __future__ import annotations

import math

import pytest

from detector.judgement import JudgedAnswer, JudgedEpisode, Judgement, judge
from detector.observation import Observation, RequestFacts
from detector.verdict import Episode, Phase
from detector.watch import WatchConfig
from tests.bench.replay_traffic import HEALTHY_A, record


def answer(started: float, ended: float, backend: str = "b", request: int | None = 0) -> JudgedAnswer:
    observation = Observation(
        request_id="r",
        backend=backend,
        facts=RequestFacts(route="chat"),
        started_unix=0.0,
        started=started,
        ended=ended,
        canary=request is None,
    )
    return JudgedAnswer(observation=observation, request=request, phase=Phase.HEALTHY, cause=None)


@pytest.mark.parametrize(
    ("one", "inside"),
    [
        (answer(0, 10), False),
        (answer(0, 11), True),
        (answer(12, 13), True),
        (answer(12, 13, request=None), True),
        (answer(12, 13, backend="other"), False),
        (answer(19, 30), True),
        (answer(20, 30), False),
    ],
)
def test_a_collapse_reaches_into_what_runs_meanwhile(one: JudgedAnswer, inside: bool) -> None:
    episode = JudgedEpisode(backend="b", episode=Episode(onset_request=0, detected_request=0), began=10.0, ended=20.0)
    assert Judgement(answers=[one], episodes=[episode], cycles={}).in_episode(one) is inside


def test_beside_one_another_the_answers_outside_of_collapses_are_the_healthy_ones() -> None:
    observations, steps = record("cycle", "tokens", 4, 80, 1)
    found = judge(observations, WatchConfig(), steps)
    assert len(found.episodes) > 4
    outside = [one.observation for one in found.answers if not found.in_episode(one)]
    assert len(outside) > 15
    tokens = sum(one.completion_tokens or 0 for one in outside)
    assert tokens / sum(one.verify_steps or 0 for one in outside) == pytest.approx(HEALTHY_A, rel=0.1)
    inside = [one.observation for one in found.answers if found.in_episode(one)]
    tokens = sum(one.completion_tokens or 0 for one in inside)
    assert tokens / sum(one.verify_steps or 0 for one in inside) < 2


def test_an_episode_begins_at_its_step_and_ends_with_a_healthy_request() -> None:
    observations, steps = record("cycle", "requests", 1, 20, 1)
    found = judge(observations, WatchConfig(), steps)
    first = found.episodes[0]
    onset, end = first.episode.onset_request, first.episode.end_request
    assert first.episode.onset_step is not None
    assert end is not None
    assert observations[onset].started < first.began <= observations[onset].ended
    assert first.ended == observations[end].started
    assert first.remedies[0] == "route_away"
    assert found.episodes[-1].ended > first.ended or math.isinf(found.episodes[-1].ended)


def test_canaries_have_no_number() -> None:
    observations = [answer(i, i + 1, request=None if i == 1 else 0).observation for i in range(3)]
    assert [one.request for one in judge(observations, WatchConfig()).answers] == [0, None, 1]
