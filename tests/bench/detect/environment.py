"""The peers' own Python environment: made once under the user's cache, never the project's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")
REPOSITORY = Path(__file__).resolve().parents[3]
INSTALL_SECONDS = 600


class EnvironmentUnavailable(RuntimeError):
    """The peers cannot be installed here: one line that says why."""


def root() -> Path:
    """Where the environment is, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "specbreaker-bench" / "detect"


def python() -> Path:
    """The interpreter of the environment, which is made where it is not there or is of another lock.

    Raises:
        EnvironmentUnavailable: it could not be made.
    """
    home = root()
    interpreter, installed = home / "bin" / "python", home / "installed.lock"
    if interpreter.exists() and installed.exists() and installed.read_bytes() == LOCK.read_bytes():
        return interpreter
    installed.unlink(missing_ok=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(interpreter), "-m", "pip", "install", "-qq", "--no-deps", "-r", str(LOCK)],
    ):
        _run(command)
    installed.write_bytes(LOCK.read_bytes())
    return interpreter


def variables() -> dict[str, str]:
    """Environment variables for a program of the peers: this repository first, one thread for each library."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **single, "PYTHONPATH": str(REPOSITORY)}


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnavailable(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EnvironmentUnavailable(f"{' '.join(command[1:4])}: {reason}")
