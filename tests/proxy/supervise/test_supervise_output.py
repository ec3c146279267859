"""What an engine prints: passed on, kept, written to files, and never a reason to stand still."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from supervised import AT_8, supervising, until

from proxy.supervise.notify import notify
from proxy.supervise.output import MAX_LINE_BYTES, MAX_QUEUED_PIECES, EngineOutput, RotatedFile


@pytest.fixture
def terminal() -> tuple[int, int]:
    """A pipe in the place of standard error: (reading, writing)."""
    return os.pipe()


async def test_the_last_lines_are_kept_and_all_is_passed_on(terminal: tuple[int, int], tmp_path: Path) -> None:
    reading, writing = terminal
    file = tmp_path / "engine.log"
    output = EngineOutput(2, RotatedFile(str(file), 1024), stderr=writing)
    descriptor, ended = await output.pipe()
    os.write(descriptor, b"one\ntwo\r\nthr")
    os.write(descriptor, b"ee\n\xff\nno end")
    os.close(descriptor)
    await ended.wait()
    output.close()
    os.close(writing)
    assert list(output.tail) == ["three", "\ufffd"]
    assert os.read(reading, 1000) == file.read_bytes() == b"one\ntwo\r\nthree\n\xff\nno end"
    os.close(reading)


async def test_nobody_waits_for_a_terminal_that_is_not_read(terminal: tuple[int, int]) -> None:
    reading, writing = terminal
    output = EngineOutput(10, None, stderr=writing)
    for number in range(MAX_QUEUED_PIECES + 100):
        output.received(b"%d " % number + b"x" * 2000 + b"\n")
    assert output.dropped > 0
    assert output.tail[-1].startswith(str(MAX_QUEUED_PIECES + 99))
    os.close(reading)  # the writer ends with EPIPE instead of waiting for ever
    output.close()
    os.close(writing)


def test_a_line_without_end_is_cut(terminal: tuple[int, int]) -> None:
    reading, writing = terminal
    output = EngineOutput(10, None, stderr=writing)
    output.received(b"x" * (MAX_LINE_BYTES + 1))
    output.received(b"y\n")
    assert list(output.tail) == ["x" * MAX_LINE_BYTES, "y"]
    output.close()
    os.close(reading)
    os.close(writing)


def test_the_file_is_rotated_and_three_old_ones_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    file = RotatedFile(str(path), 10)
    for number in range(6):
        file.write(b"%d23456789\n" % number)
    file.close()
    assert {one.name: one.read_text()[0] for one in tmp_path.iterdir()} == {
        "engine.log": "5",
        "engine.log.1": "4",
        "engine.log.2": "3",
        "engine.log.3": "2",
    }


# ---- systemd ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """systemd's end of NOTIFY_SOCKET."""
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(path)
    return receiver


def test_a_state_is_told(listener: socket.socket) -> None:
    with listener:
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "@specbreaker-nobody")
    notify("READY=1")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_systemd_is_told_when_the_engine_is_ready_and_when_it_ends(
    listener: socket.socket, tmp_path: Path
) -> None:
    with listener:
        async with supervising(tmp_path, *AT_8, config="[supervise]\noutput_lines = 3\n") as supervised:
            assert (await asyncio.to_thread(listener.recv, 200)).startswith(b"EXTEND_TIMEOUT_USEC=30000000\n")
            while (told := await asyncio.to_thread(listener.recv, 200)) != b"READY=1":
                assert told.startswith(b"EXTEND_TIMEOUT_USEC=")
            engine = (await supervised.get("explain"))["engine"]
            assert (engine["state"], engine["level"]) == ("ready", "dflash-8")
            assert engine["output"][-1].startswith("Application startup complete on")
            environment = Path(f"/proc/{supervised.launches[0]['pid']}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in environment
            supervised.process.terminate()
            assert await asyncio.to_thread(listener.recv, 200) == b"STOPPING=1"
            assert await supervised.ended() == 0
            await until(lambda: supervised.alive() == [])
