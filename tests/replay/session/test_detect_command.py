"""``specbreaker detect``: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from session_samples import response_record, write_session

from replay.detect import detect_command, render

DATA = Path(__file__).parents[2] / "data" / "sessions"
CONTRACT = {
    "requests": int,
    "time_weighted_tok_s": float,
    "episodes": list,
    "cycle": {"verdict": str, "clock": None, "period": None, "e_value": None, "p_value": None},
    "alarms_budget": {"mean_requests_between_false_alarms": float},
}
EPISODE_KEYS = {
    *("onset_request", "onset_step", "detected_request", "detected_step", "end_request"),
    *("cause", "acceptance_length", "step_seconds", "tokens_lost"),
}


def detect(*arguments: object) -> Result:
    return CliRunner().invoke(detect_command, [str(argument) for argument in arguments])


def test_the_published_cycle_is_found_and_exits_1() -> None:
    result = detect(DATA / "cycle.csv", "--series", "dflash_n8", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["requests"] == 10
    assert found["time_weighted_tok_s"] == pytest.approx(116, abs=0.5)
    (episode,) = found["episodes"]
    assert (episode["onset_request"], episode["detected_request"], episode["end_request"]) == (5, 5, 9)


def test_the_json_object_has_the_keys_of_the_contract() -> None:
    found = json.loads(detect(DATA / "chunklog_one_cycle.jsonl", "--json").stdout)
    assert found.keys() == CONTRACT.keys()
    assert found["cycle"].keys() == CONTRACT["cycle"].keys()  # type: ignore[union-attr]
    assert found["alarms_budget"].keys() == CONTRACT["alarms_budget"].keys()  # type: ignore[union-attr]
    assert all(episode.keys() == EPISODE_KEYS for episode in found["episodes"])


def test_a_steady_series_is_clean_and_exits_0() -> None:
    result = detect(DATA / "cycle.csv", "--series", "mtp_n3")
    assert result.exit_code == 0
    assert "10 requests, 250.5 tok/s" in result.stdout
    assert "no collapse found" in result.stdout
    assert result.stderr == ""


def test_a_chunk_log_prints_a_table_with_its_cause() -> None:
    result = detect(DATA / "chunklog_one_cycle.jsonl")
    assert result.exit_code == 1
    *_, header, row = result.stdout.splitlines()
    assert header.split()[:4] == ["onset", "detected", "end", "cause"]
    assert "acceptance_collapse" in row
    assert "warm-up" in result.stderr


def test_a_session_file_can_be_judged(tmp_path: Path) -> None:
    path = write_session(tmp_path, [response_record(seq) for seq in range(3)], sealed=True)
    result = detect(path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["requests"] == 3


@pytest.mark.parametrize("name", ["missing.csv", ""])
def test_bad_input_is_one_line_on_stderr_and_exits_2(tmp_path: Path, name: str) -> None:
    result = detect(tmp_path / name)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("specbreaker detect: ")
    assert result.stderr.count("\n") == 1


def summary(**changes: object) -> dict[str, object]:
    episode = {
        "onset_request": 5,
        "onset_step": 12,
        "detected_request": 6,
        "detected_step": None,
        "end_request": None,
        "cause": "step_inflation",
        "acceptance_length": 3.456,
        "step_seconds": 0.0329,
        "tokens_lost": 1234.5,
    }
    whole = {"requests": 7, "time_weighted_tok_s": None, "episodes": [episode], "cycle": {"verdict": "undetermined"}}
    whole["cycle"] = {"verdict": "undetermined", "clock": None, "period": None}
    return {**whole, **changes}


def test_the_table_shows_steps_and_what_is_not_known() -> None:
    lines = render(summary()).splitlines()
    assert lines[0] == "7 requests, unknown tok/s (tokens / time)"
    assert lines[1] == "cycle: undetermined"
    assert lines[3].split() == ["5+12", "6", "lasts", "step_inflation", "3.46", "32.90", "1234"]
    assert len({len(line) for line in lines[2:]}) == 1


def test_a_cycle_is_shown_with_its_clock() -> None:
    cycle = {"verdict": "cyclic", "clock": "requests", "period": {"estimate": 10.0, "low": 9.5, "high": 10.5}}
    assert "cycle: cyclic, every 10 requests (9.5-10.5)" in render(summary(cycle=cycle))
