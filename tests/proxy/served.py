"""`specbreaker serve` as a process of its own, as users run it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SPECBREAKER = str(Path(sysconfig.get_path("scripts")) / "specbreaker")
LOOPBACK = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
LIMIT_SECONDS = 60
SWITCHED = """
name = "switched"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1000
acceptance_length = 3.6
[[cycle]]
phase = "collapsed"
length = 1000
acceptance_length = 1.0005
"""
"""An engine whose phase a test chooses: its own is too long to end."""


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without specbreaker's own variables, and with these."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SPECBREAKER_")} | variables


class Served:
    """A running `specbreaker serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        """Lines on standard error, so far as they were read."""
        self.url = ""
        """http://HOST:PORT of the serving port."""
        self.admin_url = ""

    @property
    def base_url(self) -> str:
        """What a client is given."""
        return f"{self.url}/v1"

    def wait_until_said(self, pattern: str) -> re.Match[str]:
        """Read standard error until a line matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it ended without saying {pattern!r}: {self.said}")

    def wait_until_ready(self) -> None:
        """Read where it listens."""
        found = self.wait_until_said(r"ready: base_url (http://\S+)/v1 .*admin (http://\S+)/")
        self.url, self.admin_url = found[1], found[2]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, read the rest of what it said; its exit status."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end; the exit status."""
        status = self.process.wait(LIMIT_SECONDS)
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr.read().splitlines())
        return status


@contextlib.contextmanager
def served(*arguments: str, **variables: str) -> Iterator[Served]:
    """Run `specbreaker serve` on free ports; it is gone when the context ends."""
    with _running([SPECBREAKER, "serve", *LOOPBACK, *arguments], **variables) as proxy:
        yield proxy


@contextlib.contextmanager
def activated(listener: socket.socket, *arguments: str) -> Iterator[Served]:
    """Run `specbreaker serve` on a listening socket of ours, as systemd would start it."""
    command = [*activation(listener), SPECBREAKER, "serve", "--admin", "127.0.0.1:0", *arguments]
    with _running(command, listener.fileno()) as proxy:
        yield proxy


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def activation(passed: socket.socket) -> list[str]:
    """A command that runs the rest of its arguments with this socket as descriptor 3."""
    return [sys.executable, "-c", ACTIVATE, str(passed.fileno())]


@contextlib.contextmanager
def _running(command: list[str], *passed: int, **variables: str) -> Iterator[Served]:
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=clean_environment(**variables), pass_fds=passed
    ) as process:
        try:
            proxy = Served(process)
            proxy.wait_until_ready()
            yield proxy
        finally:
            process.kill()
