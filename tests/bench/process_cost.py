"""CPU time and memory of a target: its process and all that it started."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]
from stream_client import TargetFailed


def process_tree(pid: int) -> list[psutil.Process]:
    """`pid` and its descendants. Raises TargetFailed where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        raise TargetFailed(f"its process {pid} has ended") from error


def cpu_seconds(pid: int) -> float:
    """User + system time of the process tree so far, in seconds; the kernel counts it in ticks of 10 ms."""
    times = [process.cpu_times() for process in process_tree(pid)]
    return float(sum(time.user + time.system for time in times))


def resident_bytes(pid: int) -> int:
    """Resident set of the process tree; pages that its processes share count once per process."""
    return int(sum(process.memory_info().rss for process in process_tree(pid)))
