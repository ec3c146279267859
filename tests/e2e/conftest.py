"""What the end-to-end tests share: the demonstration, run as a user runs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The process helper and the scripted upstreams of the proxy's own tests.
sys.path.append(str(Path(__file__).parents[1] / "proxy"))

from served import Served, served


@pytest.fixture(scope="session")
def demo() -> Iterator[Served]:
    """`specbreaker serve` without arguments: the emulated engine, its fallback, and the proxy."""
    with served() as proxy:
        yield proxy
