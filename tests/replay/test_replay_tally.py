"""When a replay may be believed."""

from __future__ import annotations

import io

import msgspec
import pytest
from replay_samples import exchange

from detector.observation import Ending, Observation
from replay.progress import line, report
from replay.tally import Tally, percentile


def answer(**changes: object) -> Observation:
    observation = exchange(0, 1.0).observation
    assert observation is not None
    return msgspec.structs.replace(observation, **changes)


def test_a_run_on_time_is_valid() -> None:
    tally = Tally(total=2, sent=2)
    tally.ended(answer(decode_seconds=2.0, decode_tokens_per_second=10.0), 0.001, None)
    tally.ended(answer(decode_seconds=1.0, decode_tokens_per_second=40.0), 0.002, None)
    assert tally.faults(0.05) == []
    assert tally.tokens_per_second == 20.0  # 60 tokens in 3 seconds, not the mean of the rates
    assert line(tally) == "replay: 2/2 answered, 2 sent, 20.0 tok/s, late p99 2.0 ms"


def test_a_run_that_was_late_is_not() -> None:
    tally = Tally(total=1, sent=1)
    tally.ended(answer(), 0.2, None)
    (fault,) = tally.faults(0.05)
    assert fault.startswith("requests were sent too late: p99 200.0 ms, limit 50 ms")


def test_a_run_with_many_failures_is_not() -> None:
    tally = Tally(total=9, sent=9)
    for _ in range(8):
        tally.ended(answer(), 0.0, None)
    tally.ended(answer(ending=Ending.ENGINE_ERROR), 0.0, None)
    assert tally.faults(0.05) == ["1 of 9 answers failed (1 engine_error)"]
    tally.sent = 10
    assert tally.faults(0.05) == []


def test_an_answer_that_the_end_broke_off_is_no_failure() -> None:
    tally = Tally(total=1, sent=1)
    tally.ended(answer(ending=Ending.CLIENT_GONE), 0.0, None)
    assert (tally.failed, tally.faults(0.05)) == (0, [])


def test_the_lengths_of_synthetic_prompts_are_checked() -> None:
    tally = Tally(total=2, sent=2)
    tally.ended(answer(prompt_tokens=90), 0.0, 100)
    tally.ended(answer(prompt_tokens=None), 0.0, 100)
    assert tally.summary()["prompt_tokens_median_error"] == pytest.approx(0.1)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([], 0.5) is None
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 2.0, 3.0, 3.0]


async def test_progress_is_whole_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    class Out(io.StringIO):
        def flush(self) -> None:
            if self.getvalue().count("answered") == 2:
                raise Enough

    monkeypatch.setattr("replay.progress.PLAIN_SECONDS", 0.0)
    out = Out()
    with pytest.raises(Enough):
        await report(Tally(total=3), out)
    assert out.getvalue() == "replay: 0/3 answered, 0 sent\n" * 2
