"""``specbreaker replay``: recorded sessions once more, side by side, and in other formats."""

from __future__ import annotations

import click

from replay.compare_command import compare_command
from replay.convert_command import convert_command
from replay.help_options import HELP_OPTIONS
from replay.pack_command import pack_command
from replay.reduce_command import reduce_command
from replay.run_command import run_command
from replay.triage_command import triage_command


@click.group("replay", context_settings=HELP_OPTIONS)
def replay_group() -> None:
    """Replay a recorded session, compare two, tell what drives a cycle, convert others' recordings."""


replay_group.add_command(run_command)
replay_group.add_command(compare_command)
replay_group.add_command(triage_command)
replay_group.add_command(reduce_command)
replay_group.add_command(pack_command)
replay_group.add_command(convert_command)
