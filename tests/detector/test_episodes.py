"""Bookkeeping of episodes."""

import pytest

from detector.episodes import MAX_EPISODES, Account, EpisodeLog
from detector.stats.sample import Sample
from detector.verdict import Cause


def sample(**changes):
    fields = {
        "started": 0.0,
        "in_flight": 1,
        "acceptance_length": 1.1,
        "verify_steps": 100.0,
        "step_seconds": 0.02,
        "tokens": 110.0,
        "decode_seconds": 2.0,
    }
    return Sample(**(fields | changes))


def test_an_account_weighs_answers_by_their_steps():
    account = Account(onset_request=0)
    account.add(sample(), 200.0)
    account.add(sample(acceptance_length=2.0, verify_steps=300.0, step_seconds=0.04), 200.0)
    assert account.acceptance_length == pytest.approx((110 + 600) / 400)
    assert account.step_seconds == pytest.approx((2 + 12) / 400)
    assert account.tokens_lost == pytest.approx(2 * (400 - 110))


def test_what_is_unknown_stays_unknown():
    account = Account(onset_request=0)
    account.add(sample(acceptance_length=None, step_seconds=None), None)
    assert (account.acceptance_length, account.step_seconds, account.tokens_lost) == (None, None, None)


def test_an_answer_faster_than_healthy_gives_nothing_back():
    account = Account(onset_request=0)
    account.add(sample(), 200.0)
    account.add(sample(tokens=10_000.0), 200.0)
    assert account.tokens_lost == pytest.approx(290)


def test_an_episode_opens_grows_closes_and_resumes():
    log = EpisodeLog()
    account = Account(onset_request=3)
    account.add(sample(), 200.0)
    log.open(account, 4, 17, Cause.ACCEPTANCE_COLLAPSE)
    log.grow(sample(), 200.0)
    log.close(6)
    (episode,) = log.episodes
    assert (episode.onset_request, episode.detected_request, episode.detected_step, episode.end_request) == (
        3,
        4,
        17,
        6,
    )
    assert episode.tokens_lost == pytest.approx(580)
    log.resume()
    log.grow(sample(), 200.0)
    assert (episode.end_request, episode.tokens_lost) == (None, pytest.approx(870))


def test_only_the_last_episodes_are_kept():
    log = EpisodeLog()
    for number in range(MAX_EPISODES + 10):
        log.open(Account(onset_request=number), number, None, Cause.UNKNOWN)
        log.close(number + 1)
    assert len(log.episodes) == MAX_EPISODES
    assert (log.episodes[0].onset_request, log.count) == (10, MAX_EPISODES + 10)


@pytest.mark.parametrize(
    ("causes", "share"),
    [
        ([], 1 / 2),
        ([Cause.ACCEPTANCE_COLLAPSE] * 8, 9 / 10),
        ([Cause.STEP_INFLATION] * 30, 1 / 22),
        ([Cause.SPECULATION_OFF, Cause.STEP_INFLATION, Cause.UNKNOWN], 1 / 2),
    ],
)
def test_what_failed_before_is_expected_to_fail_again(causes, share):
    log = EpisodeLog()
    for cause in causes:
        log.open(Account(onset_request=0), 1, None, cause)
        log.close(2)
    assert log.acceptance_share() == pytest.approx(share)
