"""``specbreaker replay``: recorded sessions once more, side by side, and in other formats."""

from __future__ import annotations

import click

from replay.compare_command import compare_command
from replay.convert_command import convert_command
from replay.run_command import run_command


@click.group("replay", context_settings={"help_option_names": ["-h", "--help"]})
def replay_group() -> None:
    """Replay a recorded session, compare two, convert others' recordings."""


replay_group.add_command(run_command)
replay_group.add_command(compare_command)
replay_group.add_command(convert_command)
