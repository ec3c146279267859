"""Ctrl-C and SIGTERM end a command in order: what it has so far stays valid."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupted(stop: Callable[[], object]) -> Iterator[None]:
    """While the context lasts, Ctrl-C and SIGTERM call ``stop``."""
    loop = asyncio.get_running_loop()
    try:
        for number in _NUMBERS:
            loop.add_signal_handler(number, stop)
    except (NotImplementedError, RuntimeError, ValueError):
        pass  # not the main thread: whoever runs us there handles signals
    try:
        yield
    finally:
        for number in _NUMBERS:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)
