"""Entry point ``specbreaker_faults`` of the group ``vllm.general_plugins``: vLLM calls it in each of its processes."""

from __future__ import annotations

import multiprocessing
import os

from replay.faults.control import Control, log
from replay.faults.schedule import VARIABLE, ScheduleError


def register() -> None:
    """Do what ``SPECBREAKER_FAULTS`` names, and nothing without it. Ends the process where that is not valid."""
    value = os.environ.get(VARIABLE)
    starts = multiprocessing.parent_process() is None
    if not value:
        if starts:
            # A warning, because vLLM 0.32 has not set up its logging yet, and only warnings come through.
            log.warning("faults: installed, not asked for by %s: nothing is changed", VARIABLE)
        return
    try:
        control = Control(value)
        from replay.faults import hooks

        hooks.install(control)
    except ScheduleError as error:
        # One line and no traceback: vLLM calls this while it reads its arguments.
        raise SystemExit(str(error)) from error
    if starts:
        log.warning("faults: this engine is made slow on purpose, by %s", VARIABLE)
