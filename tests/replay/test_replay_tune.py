"""``specbreaker tune``: recordings and a running endpoint in, the K that pays out."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from replay_samples import exchange, records_of

from detector.observation import EngineSample
from replay.emulator import Emulator, serving
from replay.recorded import Exchange
from replay.session.schema import EngineRecord, SessionHeader, encode
from replay.tune_command import setting, tune_command

DATA = Path(__file__).parents[1] / "data" / "sessions"
CHUNK_LOG = DATA / "chunklog_one_cycle.jsonl"


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(tune_command, [str(argument) for argument in arguments])


async def tune_beside(*arguments: object) -> Result:
    """Run the command beside the emulator of this event loop."""
    return await asyncio.to_thread(tune, *arguments)


def rates(path: Path, *values: float, header: str = "tok_s") -> Path:
    path.write_text("\n".join([header, *map(str, values)]) + "\n")
    return path


def session(path: Path, depth: int | None, engine_depths: tuple[int, ...], *, rate: float, length: float) -> Path:
    """Twelve answers of a backend whose /metrics said these K."""
    exchanges = []
    for index in range(12):
        one = exchange(index, 10.0 + index, completion_tokens=300)
        assert one.response is not None
        fields: dict[str, Any] = {
            "num_speculative_tokens": depth,
            "acceptance_length": length,
            "step_seconds": length / rate,
            "decode_tokens_per_second": rate * (1 + 0.001 * (index % 3)),
            "decode_seconds": 299 / rate,
        }
        measured = msgspec.structs.replace(one.response.observation, **fields)
        exchanges.append(
            Exchange(request=one.request, response=msgspec.structs.replace(one.response, observation=measured))
        )
    samples = [EngineSample(at=1.0, num_speculative_tokens=its) for its in engine_depths]
    engine = [EngineRecord(backend="primary", sample=sample) for sample in samples]
    records = [SessionHeader(tool_version="0", session_id="a"), *engine, *records_of(exchanges)]
    path.write_bytes(b"".join(encode(record).data for record in records))
    return path


def test_a_recording_of_one_level_names_what_to_measure_next() -> None:
    found = json.loads(tune(CHUNK_LOG, "--json").stdout)
    assert found["num_speculative_tokens"] is found["speculative_config"] is None
    assert found["worth_measuring"] > 8
    measured = [level for level in found["levels"] if level["basis"] == "measured"]
    assert [level["num_speculative_tokens"] for level in measured] == [8]
    assert any("of a collapse and left out" in note for note in found["notes"])


def test_the_config_to_paste_is_the_recorded_one_with_another_k() -> None:
    line = next(line for line in tune(CHUNK_LOG).stdout.splitlines() if line.startswith("worth measuring"))
    option, value = shlex.split(line.partition("assumed: ")[2])
    assert option == "--speculative-config"
    config = json.loads(value)
    assert config["method"] == "dflash"
    assert config["num_speculative_tokens"] > 8
    assert "synthetic_acceptance_rates" not in config  # one number a position: it would not fit another K


def test_speculation_off_is_no_argument_and_an_unknown_drafter_is_a_place_to_fill() -> None:
    assert setting(0, {}) is None
    assert '"model":"DRAFTER","num_speculative_tokens":4' in str(setting(4, {}))


def test_k_comes_from_the_answers_else_from_the_readings_of_the_engine(tmp_path: Path) -> None:
    slow = session(tmp_path / "off.jsonl", None, (0, 0), rate=100.0, length=1.0)
    fast = session(tmp_path / "eight.jsonl", 8, (), rate=220.0, length=4.0)
    found = json.loads(tune(slow, fast, "--ladder", "0,8", "--json").stdout)
    assert found["num_speculative_tokens"] == 8
    assert found["is_clear"]
    assert [level["measured_answers"] for level in found["levels"]] == [12, 12]
    assert found["levels"][1]["break_even_acceptance_length"] == pytest.approx(4 / 2.2, rel=0.01)


def test_an_engine_that_ran_at_several_k_needs_to_be_told(tmp_path: Path) -> None:
    file = session(tmp_path / "mixed.jsonl", None, (0, 8), rate=100.0, length=2.0)
    result = tune(file)
    assert result.exit_code == 2
    assert "--k" in result.stderr
    assert tune(file, "--k", f"{file}=4").exit_code == 0


def test_rates_of_two_levels_are_compared(tmp_path: Path) -> None:
    off, eight = rates(tmp_path / "off.csv", *[136.0] * 9), rates(tmp_path / "eight.csv", *[220.0] * 9)
    result = tune(off, eight, "--k", f"{off}=0", "--k", f"{eight}=8")
    assert result.exit_code == 0
    assert "set K=8 (surely better than the others)" in result.stdout
    assert "K=0: 136.0" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a recording"),
        (("absent.csv",), "absent.csv: cannot be read"),
        ((CHUNK_LOG, "--k", "other=8"), "--k names 'other'"),
        ((CHUNK_LOG, "--k", "8"), "write FILE=K"),
        ((CHUNK_LOG, "--ladder", "4,x"), "0,4,8"),
        ((DATA / "cycle.csv",), "the file does not say K"),
        (("--target", "localhost:8000"), "not a URL"),
        (("--target", "http://127.0.0.1:9", "--api-key-env", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_bad_input_is_one_line_and_exits_2(arguments: tuple[object, ...], said: str) -> None:
    result = tune(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_too_few_answers_are_named(tmp_path: Path) -> None:
    file = rates(tmp_path / "two.csv", 100.0, 100.0)
    result = tune(file, "--k", f"{file}=8")
    assert result.exit_code == 2
    assert "K=8: 2 answers" in result.stderr


# ---- a running endpoint ----------------------------------------------------------------------------------------------


async def test_a_target_is_measured_at_the_k_it_runs() -> None:
    emulator = Emulator("healthy", time_scale=1)
    async with serving(emulator) as url:
        result = await tune_beside("--target", url, "--requests", 6, "--max-tokens", 24, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (measured,) = [level for level in found["levels"] if level["measured_answers"]]
    assert (measured["num_speculative_tokens"], measured["measured_answers"]) == (8, 6)
    assert len(emulator.log) == 7, "one more goes first"
    assert any("own" in note for note in found["notes"])


async def test_a_target_and_a_recording_are_levels_of_one_table(tmp_path: Path) -> None:
    off = rates(tmp_path / "off.csv", *[100.0] * 6, header="tok_s")
    async with serving(Emulator("healthy", time_scale=1)) as url:
        ran = await tune_beside(off, "--k", f"{off}=0", "--target", url, "--requests", 3, "--max-tokens", 16, "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["num_speculative_tokens"] in (0, 8)


async def test_a_target_that_serves_another_model_says_so() -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        result = await tune_beside("--target", url, "--model", "absent")
    assert result.exit_code == 2
    assert "request 0 got no whole answer (HTTP 404)" in result.stderr


def test_a_target_that_is_not_there_exits_3() -> None:
    result = tune("--target", "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "cannot be reached" in result.stderr
