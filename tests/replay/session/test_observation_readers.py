"""Observations out of sessions, CSVs and chunk logs; a bad file is named with its line and the way out."""

import itertools
import json
from pathlib import Path

import pytest
from session_samples import request_record, response_record, sample_records, write_session

from detector.observation import Observation
from replay.readers import ReadError, read_observations

DATA = Path(__file__).parents[2] / "data" / "sessions"
CHUNK_LOG = DATA / "chunklog_one_cycle.jsonl"


def rates(observations: list[Observation]) -> list[float | None]:
    return [observation.decode_tokens_per_second for observation in observations]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("sealed", [False, True])
def test_a_session_gives_its_answers_in_order(tmp_path: Path, sealed: bool) -> None:
    path = write_session(tmp_path, sample_records(20), sealed=sealed)
    read = read_observations(path.rename(tmp_path / "named.csv"))
    assert (read.kind, read.series, read.notes) == ("session", None, ())
    assert read.observations == [response_record(seq).observation for seq in range(20)]


def test_a_session_has_all_its_backends_or_the_one_asked_for(tmp_path: Path) -> None:
    records = [response_record(seq, backend="fallback" if seq > 2 else "primary") for seq in range(5)]
    path = write_session(tmp_path, list(records), sealed=True)
    assert len(read_observations(path).observations) == 5
    assert [o.request_id for o in read_observations(path, series="fallback").observations] == ["req-3", "req-4"]
    with pytest.raises(ReadError, match=r"no answer of a backend 'spare'; it has: primary, fallback$"):
        read_observations(path, series="spare")


def test_a_directory_is_read_as_the_one_session_in_it(tmp_path: Path) -> None:
    write_session(tmp_path, sample_records(20), sealed=True)
    read = read_observations(tmp_path)
    assert [one.request_id for one in read.observations] == [response_record(seq).request_id for seq in range(20)]
    assert [one.started for one in read.observations] == [response_record(seq).observation.started for seq in range(20)]


def test_a_directory_without_a_session_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no session file"):
        read_observations(tmp_path)


def test_damage_of_a_session_is_noted(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(3), sealed=False)
    path.write_bytes(path.read_bytes()[:-5])
    read = read_observations(path)
    assert len(read.observations) == 2
    assert [note.split(": ", 1)[1] for note in read.notes] == ["line 7: the last line is torn"]


def test_a_session_without_answers_has_no_observations(tmp_path: Path) -> None:
    assert read_observations(write_session(tmp_path, [request_record(0)], sealed=True)).observations == []


def test_a_series_of_a_csv() -> None:
    read = read_observations(DATA / "cycle.csv", series="dflash_n8")
    assert (read.kind, read.series) == ("csv", "dflash_n8")
    assert rates(read.observations) == [221, 214, 218, 222, 230, 103, 59, 62, 62, 212]
    assert [observation.request_id for observation in read.observations] == [str(run) for run in range(1, 11)]
    assert all(later.started >= earlier.ended for earlier, later in itertools.pairwise(read.observations))


def test_of_several_series_the_first_is_read_and_said_to_be() -> None:
    read = read_observations(DATA / "cycle.csv")
    assert read.observations == read_observations(DATA / "cycle.csv", series="dflash_n8").observations
    (note,) = read.notes
    assert note.endswith("read is the first one: dflash_n8 (--series: dflash_n8, mtp_n3, nospec)")


def test_a_series_that_is_not_there_is_named() -> None:
    with pytest.raises(ReadError, match=r"no series 'eagle'; it has: dflash_n8, mtp_n3, nospec$"):
        read_observations(DATA / "cycle.csv", series="eagle")


def test_a_csv_of_rates_alone(tmp_path: Path) -> None:
    read = read_observations(written(tmp_path / "f", "# a comment\n\n TOK_S \n100\n\n50.5\n"))
    assert rates(read.observations) == [100, 50.5]
    for observation in read.observations:
        assert observation.completion_tokens is observation.acceptance_length is observation.decode_seconds is None


def test_of_rate_acceptance_and_step_time_any_two_give_the_third(tmp_path: Path) -> None:
    text = "request,tok_s,completion_tokens,acceptance_length,step_seconds\na,200,500,4,\nb,100,,,0.02\nc,50,,5,0.1\n"
    first, second, third = read_observations(written(tmp_path / "f", "\ufeff" + text)).observations
    assert (first.request_id, first.step_seconds, first.decode_seconds, first.completion_tokens) == (
        "a",
        0.02,
        2.5,
        500,
    )
    assert (second.request_id, second.acceptance_length) == ("b", 2.0)
    assert (third.acceptance_length, third.step_seconds) == (5, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a session file or a directory with one, a CSV with a tok_s column, or a chunk log"),
        ("a,b\n1,2\n", "line 1: no tok_s column; expected a session file"),
        ("tok_s\n", "has a header and no rows"),
        ("tok_s,run\n200,1\n180\n", "line 3: 1 cells where the header names 2: correct or remove the line"),
        ("tok_s\n200\nfast\n", "line 3: tok_s is 'fast', not a number above 0: correct or remove it"),
        ("tok_s\n200\n-3\n", "line 3: tok_s is '-3', not a number above 0"),
        ("tok_s\ninf\n", "line 2: tok_s is 'inf', not a number above 0"),
        ("tok_s,run\n,1\n", "line 2: tok_s is empty: fill it in or remove the line"),
        ("tok_s,acceptance_length\n10,high\n", "line 2: acceptance_length is 'high'"),
        ("tok_s\n\x00\n", "line 2: tok_s is"),
        ('tok_s\n"' + "x" * 200_000, "line 2: not CSV .field larger"),
        ('{"type":"session","format":"specbreaker-session/99"}\n', "newer than specbreaker-session/1"),
        ('{"some":"json"}\n', "not a session file"),
        ('{"kind":"header"}\nnot json\n', "line 2: not a JSON object .*: remove the line"),
        ('{"kind":"header"}\n[1]\n', "line 2: not a JSON object .*: remove the line"),
        ('{"kind":"header"}\n\n{"kind":"note"}\n', "line 3: kind is 'note', not 'request': remove the line"),
        ('{"kind":"header"}\n{"kind":"request"}\n', "line 2: .*'chunks'.*: correct or remove the line"),
        ('{"kind":"header"}\n{"kind":"request","chunks":[[0.1,0],"x"]}\n', "line 2: .*'x'.*correct or remove"),
    ],
)
def test_a_bad_file_is_told_in_one_line_with_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "input", text)
    with pytest.raises(ReadError, match=message) as caught:
        read_observations(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe" * 50, bytes(range(256)), b"\x28\xb5\x2f\xfd" + bytes(50)])
def test_bytes_that_are_nothing_are_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(ReadError, match="input: "):
        read_observations(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="none: cannot be read: No such file"):
        read_observations(tmp_path / "none")


def test_a_chunk_log_gives_its_requests_without_the_warm_ups() -> None:
    read = read_observations(CHUNK_LOG)
    assert read.kind == "chunk_log"
    assert [observation.request_id for observation in read.observations] == [str(index) for index in range(10)]
    assert len(read.notes) == 1
    assert "2 warm-up requests" in read.notes[0]
    acceptance = [observation.acceptance_length or 0 for observation in read.observations]
    assert min(acceptance[:5]) > 3 > 1.5 > max(acceptance[6:9])


def test_a_chunk_log_holds_one_series() -> None:
    with pytest.raises(ReadError, match="leave --series out"):
        read_observations(CHUNK_LOG, series="k8")


def test_a_chunk_log_without_a_clock_is_read_in_order(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in CHUNK_LOG.read_text().splitlines()]
    text = "".join(json.dumps({k: v for k, v in line.items() if k != "unix_time"}) + "\n" for line in lines)
    observations = read_observations(written(tmp_path / "f", text)).observations
    assert len(observations) == 10
    assert all(later.started == earlier.ended for earlier, later in itertools.pairwise(observations))
