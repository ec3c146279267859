"""vLLM's own parser agrees on what is speculative in a command line, before and after it was put at a level."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from proxy.config_effects import Level
from proxy.effects.arguments import at_level, dotted
from tests.engine.server import installed_venv
from tests.proxy.effects.speculative_forms import FORMS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
for line in sys.stdin:
    got = vars(parser.parse_args(json.loads(line)))
    keys = "speculative_config", "spec_method", "spec_model", "spec_tokens"
    print("parsed", json.dumps([got[key] for key in keys]))
"""
FOUR = Level(name="four", speculative_config={"method": "dflash", "num_speculative_tokens": 4, "batches": [[1, 8, 4]]})
NOTHING = [None, None, None, None]


def parsed(command_lines: list[list[str]]) -> list[list[Any]]:
    """What the installed vLLM reads in each command line."""
    lines = "".join(json.dumps(one) + "\n" for one in command_lines)
    python = str(installed_venv() / "bin/python")
    done = subprocess.run([python, "-c", PARSE], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line.removeprefix("parsed ")) for line in done.stdout.splitlines() if line.startswith("parsed ")]


def test_vllm_reads_every_form_as_we_do(installed_engine: None) -> None:
    given = [["--model", "m", *form, "--max-num-seqs", "4"] for form in FORMS.values()]
    at_four = [at_level(argv, FOUR) for argv in given]
    off = [at_level(argv, Level(name="off")) for argv in given]
    words = ["--model", "m", *dotted(FOUR).split()]
    read = parsed([*given, *at_four, *off, words])
    number = len(FORMS)
    before, four, none, key_by_key = read[:number], read[number : 2 * number], read[2 * number : -1], read[-1]
    assert all(one != NOTHING for one in before)
    level = [FOUR.speculative_config, None, None, None]
    assert four == [level] * number
    assert none == [NOTHING] * number
    assert key_by_key == level
