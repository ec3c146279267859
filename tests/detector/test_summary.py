"""The object that ``specbreaker detect --json`` prints."""

import itertools
import json

import pytest
from watch_traffic import CHAT, DEAD, Clock, h200, published

from detector.observation import Ending
from detector.summary import summarise
from detector.watch import WatchConfig


def test_published_cycle():
    summary = summarise(published("dflash_n8"), WatchConfig())
    assert summary == {
        "requests": 10,
        "time_weighted_tok_s": pytest.approx(115.9, abs=0.05),
        "episodes": [
            {
                "onset_request": 5,
                "onset_step": None,
                "detected_request": 5,
                "detected_step": None,
                "end_request": 9,
                "cause": "unknown",
                "acceptance_length": None,
                "step_seconds": None,
                "tokens_lost": None,
            }
        ],
        "cycle": {"verdict": "undetermined", "clock": None, "period": None, "e_value": 1.0, "p_value": 1.0},
        "alarms_budget": {"mean_requests_between_false_alarms": 1000.0},
    }


def test_h200_cycle_is_tokens_over_time_and_plain_json():
    answers = [observation for observation, _ in h200("k8_cycle_by_request")]
    summary = summarise(answers, WatchConfig())
    tokens = sum(answer.decode_tokens_per_second * answer.decode_seconds for answer in answers)
    seconds = sum(answer.decode_seconds for answer in answers)
    assert summary["time_weighted_tok_s"] == pytest.approx(tokens / seconds)
    assert len(summary["episodes"]) == 4
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_with_their_steps_the_collapse_is_seen_inside_the_answer():
    answers, steps = zip(*h200("k8_cycle_by_request"), strict=True)
    assert all(one.ended <= two.started + 0.001 for one, two in itertools.pairwise(answers))
    summary = summarise(answers, WatchConfig(), steps)
    episodes = summary["episodes"]
    assert [(episode["onset_request"] // 10, episode["end_request"]) for episode in episodes] == [
        (0, 9),
        (1, 19),
        (2, 29),
        (3, 39),
    ]
    # The answer of transition is the sixth of ten; if its end does not tell, the first steps of the next one do.
    inside = [episode for episode in episodes if episode["detected_step"] is not None]
    assert len(inside) >= 2
    assert all(episode["detected_request"] % 10 == 6 and episode["detected_step"] <= 150 for episode in inside)
    assert all(episode["detected_request"] % 10 == 5 for episode in episodes if episode not in inside)
    assert {episode["cause"] for episode in episodes} == {"acceptance_collapse"}


def test_requests_are_numbered_over_all_backends_and_canaries_are_not():
    first, second = Clock("first"), Clock("second")
    answers = []
    for content in [CHAT] * 10 + [DEAD] * 2:
        answers += [second.answer(), first.answer(content), first.answer(canary=True, ending=Ending.UPSTREAM_TIMEOUT)]
    answers.append(first.answer(canary=True))
    summary = summarise(answers, WatchConfig())
    assert summary["requests"] == 24
    (episode,) = summary["episodes"]
    assert (episode["onset_request"], episode["end_request"]) == (21, 24)


def test_nothing_measured():
    clock = Clock()
    summary = summarise([clock.answer(ending=Ending.CONNECT_FAILED, decode_tokens_per_second=None)], WatchConfig())
    assert (summary["requests"], summary["time_weighted_tok_s"], summary["episodes"]) == (1, None, [])
    assert summarise([], WatchConfig())["requests"] == 0


def test_answers_without_a_length_do_not_count_where_others_have_one():
    clock = Clock()
    lengthless = clock.answer(decode_tokens_per_second=1.0, decode_seconds=None, completion_tokens=None)
    known = clock.answer(decode_tokens_per_second=100.0, decode_seconds=None, completion_tokens=1000)
    assert summarise([lengthless, known], WatchConfig())["time_weighted_tok_s"] == pytest.approx(100.0)
