"""The demonstration that the documentation's examples are run against."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from docs_demonstration import Demonstration

READY = re.compile(r"ready: base_url http://(?P<serving>\S+)/v1 .* admin http://(?P<admin>\S+)/")


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demonstration]:
    """One for all examples, on ports that are free."""
    directory = tmp_path_factory.mktemp("documentation")
    ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    command = [sys.executable, "-m", "proxy", "serve", *ports, "--record", "sessions"]
    with subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if ready := READY.match(line):
                    yield Demonstration(directory, ready["serving"], ready["admin"])
                    break
            else:
                pytest.fail(f"the demonstration did not start: {''.join(said)}")
        finally:
            process.terminate()
            process.communicate()
