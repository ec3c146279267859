"""The benchmark of ``tune`` works on recordings that are in the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from detector.levels import MeasuredLevel
from replay.tune import read_healthy
from tests.bench.tune_captures import CAPTURES, levels_of, page

CHUNK_LOG = Path(__file__).parents[1] / "data" / "sessions" / "chunklog_one_cycle.jsonl"


def test_levels_of_all_captures_make_a_page(tmp_path: Path) -> None:
    """The same recording under every name, as if it had been made at other K: the figures do not matter here."""
    text = CHUNK_LOG.read_text()
    for name, depth in zip(CAPTURES, (0, 2, 8, 12, 15), strict=True):
        (tmp_path / f"{name}.jsonl").write_text(
            text.replace('\\"num_speculative_tokens\\": 8', f'\\"num_speculative_tokens\\": {depth}')
        )
    levels: list[MeasuredLevel] = levels_of(tmp_path)
    assert [level.num_speculative_tokens for level in levels] == [0, 2, 8, 12, 15]
    rows = [line for line in page(levels).splitlines() if line.startswith("| ")]
    assert sum(line.startswith("| 0, 2, 8 |") for line in rows) == 1


def test_a_capture_gives_the_same_level_wherever_it_lies(tmp_path: Path) -> None:
    shutil.copy(CHUNK_LOG, tmp_path / "x.jsonl")
    assert list(read_healthy(tmp_path / "x.jsonl").answers) == [8]
