"""Child processes: started in sessions of their own, waited for without threads, found and killed with all they began.

Linux only: the process tree is read from /proc, the end of a process from its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
LOOK_SECONDS: Final = 0.1
"""How often it is looked whether processes are gone that no event tells of."""

# With the proxy gone nobody would end its engine, so the kernel does. A preexec_fn could deadlock beside threads.
_END_WITH_PARENT: Final = (
    "import ctypes,os,sys;"
    f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG},{signal.SIGTERM:d},0,0,0);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(143);"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)

_own: set[int] = set()
"""Children that somebody here waits for."""
_foreign: set[int] = set()
"""Children that came to us and are none of an engine: there before, or begun by a command."""
_subreaper = threading.Event()
"""Whether orphans come to us."""


class Process(NamedTuple):
    """One row of the process table."""

    parent: int
    session: int
    state: str
    """One letter; Z: it has ended, and its parent has not asked."""


class Child:
    """A process of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.exited = asyncio.Event()
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        _own.discard(self.pid)
        self.exited.set()

    def send_signal(self, number: signal.Signals) -> None:
        """Signal this one process; nothing where it has ended."""
        if self.status is None:
            self._process.send_signal(number)


def start(
    argv: Sequence[str],
    *,
    output: int,
    environment: Mapping[str, str] | None = None,
    ends_with_parent: bool = False,
) -> Child:
    """Start a program in a session of its own; both its outputs go to a file descriptor. Raises OSError.

    ends_with_parent: it gets SIGTERM when this process dies, however that dies.
    """
    command = list(argv)
    if ends_with_parent:
        command = [sys.executable, "-ISc", _END_WITH_PARENT, str(os.getpid()), *argv]
    process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
    )
    _own.add(process.pid)
    return Child(process)


def describe_status(status: int | None) -> str:
    """An exit status in words."""
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def table() -> dict[int, Process]:
    """The process table, by pid."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name in brackets may hold anything, brackets included.
                    state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
                found[int(name)] = Process(int(parent), int(session), state.decode())
    return found


def descendants(roots: Iterable[int], processes: Mapping[int, Process]) -> set[int]:
    """All that descends from some processes, without themselves."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def begun_by(child: Child) -> set[int]:
    """Living processes that a child is or began: its session, its descendants, and the orphans that came to us."""
    processes = table()
    session = {pid for pid, process in processes.items() if process.session == child.pid}
    roots = session | _adopted(processes) | ({child.pid} if child.status is None else set())
    return {pid for pid in roots | descendants(roots, processes) if pid in processes and processes[pid].state != "Z"}


def _adopted(processes: Mapping[int, Process]) -> set[int]:
    if not _subreaper.is_set():
        return set()
    known = _own | _foreign
    return {pid for pid, process in processes.items() if process.parent == os.getpid() and pid not in known}


def become_subreaper() -> None:
    """Orphans of what we start become our children, so that they can be found and reaped; like PID 1 does."""
    _subreaper.set()
    _foreign.update(pid for pid, process in table().items() if process.parent == os.getpid())
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def reap_orphans() -> int:
    """Ask for the exit status of adopted children that have ended; how many there were."""
    reaped = 0
    with contextlib.suppress(ChildProcessError):  # there is no child at all
        # The first ended child is looked at and left alone: a child of our own is asked by who waits for it.
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in _own:
            os.waitpid(ended.si_pid, 0)
            _foreign.discard(ended.si_pid)
            reaped += 1
    return reaped


async def kill_all(child: Child, seconds: float) -> set[int]:
    """SIGKILL a child and everything it began, until nothing is left; returns what outlived that many seconds."""

    def gone() -> bool:
        left = begun_by(child)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap_orphans()
        return not left

    await wait_until(gone, seconds)
    return begun_by(child)


async def wait_until(condition: Callable[[], bool], seconds: float | None) -> bool:
    """Look until something holds; False where it does not within that time (None: for as long as it takes)."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what it asks has no event
                await asyncio.sleep(LOOK_SECONDS)
            return True
    return condition()


class Finished(NamedTuple):
    """A command that was run to its end."""

    status: int
    output: str
    """The end of what it printed."""


async def run(argv: Sequence[str], seconds: float) -> Finished:
    """Run a command to its end. Raises OSError, and TimeoutError after which nothing of it is left.

    What it leaves running on purpose is left alone.
    """
    before = _adopted(table())
    with os.fdopen(os.memfd_create("output"), "w+b") as output:
        child = start(argv, output=output.fileno())
        try:
            async with asyncio.timeout(seconds):
                await child.exited.wait()
        finally:
            if child.status is None:
                await kill_all(child, 5.0)
        output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
        text = output.read().decode(errors="replace").strip()
    _foreign.update(_adopted(table()) - before)
    assert child.status is not None
    return Finished(child.status, text)
