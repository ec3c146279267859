"""Child processes: their end is an event, and nothing of what they began is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from upstreams import until

from proxy import processes

FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
same = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
elsewhere = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
print(same.pid, elsewhere.pid, flush=True)
time.sleep(1000)
"""


def started(program: str, tmp_path: Path, **options: bool) -> tuple[processes.Child, Path]:
    output = tmp_path / "output"
    with output.open("wb") as file:
        return processes.start([sys.executable, "-c", program], output=file.fileno(), **options), output


async def family(tmp_path: Path, **options: bool) -> tuple[processes.Child, list[int]]:
    child, output = started(FAMILY, tmp_path, **options)
    await until(lambda: output.read_text().endswith("\n"))
    return child, [int(pid) for pid in output.read_text().split()]


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_the_end_of_a_child_is_an_event(tmp_path: Path) -> None:
    child, _ = started("raise SystemExit(3)", tmp_path)
    await child.exited.wait()
    assert child.status == 3
    assert processes.describe_status(child.status) == "ended with status 3"
    child.send_signal(signal.SIGTERM)


async def test_a_child_that_was_killed_says_by_what(tmp_path: Path) -> None:
    child, _ = started("import time; time.sleep(1000)", tmp_path)
    child.send_signal(signal.SIGKILL)
    await child.exited.wait()
    assert processes.describe_status(child.status) == "was killed by SIGKILL"


async def test_a_whole_family_is_killed_also_in_another_session(tmp_path: Path) -> None:
    child, others = await family(tmp_path)
    assert processes.begun_by(child) >= {child.pid, *others}
    assert os.getsid(others[1]) != child.pid
    assert await processes.kill_all(child, 60) == set()
    await child.exited.wait()
    assert not any(lives(pid) for pid in others)


async def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed in a way that it cannot notice."""
    parent = """
import asyncio, sys
from proxy import processes
async def main():
    child = processes.start(["sleep", "1000"], output=1, ends_with_parent=True)
    print(child.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid = int(await asyncio.to_thread(process.stdout.readline))
        await until(lambda: psutil.Process(pid).cmdline()[:1] == ["sleep"])
        process.kill()
    await until(lambda: not lives(pid))


async def test_a_command_is_run_to_its_end() -> None:
    done = await processes.run([sys.executable, "-c", "print('done'); raise SystemExit(4)"], 60)
    assert done == (4, "done")


async def test_a_command_that_takes_too_long_leaves_nothing(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(1000)"
    running = asyncio.ensure_future(processes.run([sys.executable, "-c", program], 1000))
    await until(lambda: note.exists() and note.read_text().endswith(" "))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not lives(int(note.read_text()))
    with pytest.raises(TimeoutError):
        await processes.run(["sleep", "1000"], 0.01)


DAEMON = """
import asyncio, os, sys
from proxy import processes
async def main():
    processes.become_subreaper()
    engine = processes.start(["sleep", "1000"], output=1)
    begin = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
    done = await processes.run([sys.executable, "-c", begin], 60)
    daemon = int(done.output)
    left = await processes.kill_all(engine, 60)
    print(left, os.kill(daemon, 0))
    os.kill(daemon, 9)
asyncio.run(main())
"""


def test_what_a_command_leaves_running_is_not_taken_for_an_orphan_of_the_engine() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", DAEMON], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set() None\n", "")


ORPHANS = """
import os, sys, time
from proxy import processes
processes.become_subreaper()
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    os._exit(0)
os.wait()
while not processes.reap_orphans():
    pass
print("reaped")
"""


def test_orphans_are_adopted_and_reaped() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ORPHANS], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("reaped\n", "")
