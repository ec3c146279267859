"""The recipes of docs/session-format.md read sessions with DuckDB and Polars as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from docs.generate import ROOT
from replay.recorded import exchange_of
from replay.session.schema import SessionHeader, encode
from replay.session.writer import SessionWriter
from tests.bench.replay_traffic import record

PAGE = ROOT / "docs/session-format.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PYTHON = CACHE / "specbreaker-operations/recipes/bin/python"
pytestmark = [
    pytest.mark.operations,
    pytest.mark.skipif(not PYTHON.exists(), reason="tests/docs/install-recipes.sh was not run (make operations does)"),
]


def recipe(language: str, word: str) -> str:
    """The code block of the page in that language that holds the word."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if word in block]
    return str(found)


def run(code: str, directory: Path) -> object:
    """What the code printed, as JSON, run where a directory ``sessions`` is."""
    command = [str(PYTHON), "-I", "-c", code]
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[float, float]]]:
    """A directory with two sealed parts, and (tokens, decode seconds) of each answer in them."""
    directory = tmp_path_factory.mktemp("recipes")
    observations, steps = record("cycle", "requests", 1, 20, 3)
    exchanges = [exchange_of(*pair) for pair in zip(observations, range(20), steps, strict=True)]
    for part in (exchanges[:10], exchanges[10:]):
        writer = SessionWriter(directory / "sessions", SessionHeader(tool_version="0.1.0", session_id="s"))
        writer.append([encode(one) for each in part for one in (each.request, each.response) if one is not None])
        writer.close()
    figures = [(float(one.completion_tokens or 0), float(one.decode_seconds or 0)) for one in observations]
    return directory, figures


def test_duckdb(recorded: tuple[Path, list[tuple[float, float]]]) -> None:
    directory, figures = recorded
    rows = run(
        f"import duckdb, json; print(json.dumps(duckdb.sql({recipe('sql', 'read_json')!r}).fetchall()))", directory
    )
    rate = sum(tokens for tokens, _ in figures) / sum(seconds for _, seconds in figures)
    assert rows == [["primary", 20, pytest.approx(rate)]]


def test_polars(recorded: tuple[Path, list[tuple[float, float]]]) -> None:
    directory, _ = recorded
    code = recipe("python", "polars") + "\nimport json\nprint(json.dumps(answers.to_dicts()))"
    answers = run(code, directory)
    assert isinstance(answers, list)
    assert len(answers) == 20
    assert {answer["backend"] for answer in answers} == {"primary"}
    assert all(1.0 <= answer["acceptance_length"] <= 9.0 for answer in answers)
    assert all(answer["decode_tokens_per_second"] > 0 for answer in answers)
