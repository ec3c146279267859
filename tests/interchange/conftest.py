"""One recording for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interchange.tools import ToolError, record, tool


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """Fails, in one line that says what to run, where a tool is not installed."""
    reason = None
    try:
        for name in ("aiperf", "guidellm", "vllm"):
            tool(name)
    except ToolError as error:
        reason = str(error)
    if reason:
        pytest.fail(reason, pytrace=False)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with text, recorded at the proxy."""
    return record(tmp_path_factory.mktemp("source"))
