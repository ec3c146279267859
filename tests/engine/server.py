"""A real vLLM with DFlash on this machine's CPU, started and stopped by tests."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, Self

import aiohttp
import psutil

HERE = Path(__file__).resolve().parent
MODEL = "tiny"
"""Name that the engine serves its model under."""
START_TIMEOUT_SECONDS = 240.0
"""A start takes 25 s on two quiet cores and several times that beside other work, or when the venv is new."""
STOP_TIMEOUT_SECONDS = 3.0
"""Grace between SIGTERM and SIGKILL."""
KILL_TIMEOUT_SECONDS = 20.0
"""Time in which killed processes must have given back their memory."""


class EngineError(Exception):
    """The engine is not there, or did not start; the message says why and what to do."""


def installed_venv() -> Path:
    """The venv that ``setup.sh install`` made; raises EngineError where it is absent or of another lock file."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("SPECBREAKER_ENGINE_DIR") or f"{cache}/specbreaker-engine")
    stamp = root / "installed.lock"
    if not stamp.exists() or stamp.read_bytes() != (HERE / "requirements.lock").read_bytes():
        raise EngineError(f"the real engine of requirements.lock is not installed in {root}; run: make engine")
    return root / "venv"


@functools.cache
def installed_faults() -> Path:
    """A directory for PYTHONPATH with this tree's specbreaker, as docs/engine-faults.md installs it beside a vLLM."""
    directory = Path(tempfile.mkdtemp(prefix="specbreaker-faults-"))
    atexit.register(shutil.rmtree, directory)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(directory)]
    subprocess.run([*pip, *options, str(HERE.parents[1])], check=True, timeout=120)
    return directory


class EngineServer:
    """``vllm serve`` of the tiny model, as an async context manager.

    ``mode`` ``dflash`` speculates with ``num_speculative_tokens``, ``plain`` does not. ``per_request_metrics`` False
    leaves out what vLLM 0.20.2 did not have: the ``metrics`` object of the last usage chunk. ``port`` 0 takes a free
    one. ``faults`` False: the plug-in is there and not asked for. The engine has a session of its own: whatever happens
    inside, leaving the context leaves no process behind.
    """

    def __init__(
        self,
        mode: Literal["dflash", "plain"] = "dflash",
        *,
        num_speculative_tokens: int = 7,
        per_request_metrics: bool = True,
        shutdown_timeout_seconds: int = 0,
        port: int = 0,
        faults: bool = True,
    ) -> None:
        self.mode = mode
        self.model = MODEL
        self.num_speculative_tokens = num_speculative_tokens if mode == "dflash" else 0
        self.per_request_metrics = per_request_metrics
        self.shutdown_timeout_seconds = shutdown_timeout_seconds
        self.port = port
        self.faults = faults
        self.process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

    @property
    def base_url(self) -> str:
        """``http://HOST:PORT``, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Start the engine and wait until it is ready; raises EngineError with the tail of its log."""
        venv = installed_venv()
        self._directory = Path(tempfile.mkdtemp(prefix="specbreaker-engine-"))
        self.port = self.port or _free_port()
        try:
            self.set_acceptance()
            with self.log_file.open("wb") as log:
                self.process = subprocess.Popen(
                    self.command(venv),
                    env=self.environment(venv, self.faults_file if self.faults else None),
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def command(self, venv: Path) -> list[str]:
        """The command line that serves."""
        command = [
            str(venv / "bin/vllm"), "serve", str(HERE / "models/target"), "--served-model-name", MODEL,
            "--host", "127.0.0.1", "--port", str(self.port),
            "--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager", "--enable-prompt-tokens-details",
            "--shutdown-timeout", str(self.shutdown_timeout_seconds),
        ]  # fmt: skip
        if self.per_request_metrics:
            command += ["--enable-per-request-metrics"]
        if self.mode == "dflash":
            drafter = {"method": "dflash", "model": str(HERE / "models/dflash")}
            speculation = {**drafter, "num_speculative_tokens": self.num_speculative_tokens}
            command += ["--speculative-config", json.dumps(speculation)]
            if self.per_request_metrics:
                command += ["--per-request-spec-decode-metrics", "detailed"]
        return command

    def set_acceptance(self, p: float | None = None, verify_ms: float = 0.0) -> None:
        """Move the acceptance of the running engine, from its next step on.

        ``p`` is the probability that a draft token is accepted once all before it were; None leaves it to the drafter,
        and 0.85 to 0.9 is what a healthy one has. ``verify_ms`` is added to every step.
        """
        self.schedule_acceptance((1, p, verify_ms))

    def schedule_acceptance(self, *periods: tuple[int, float | None, float]) -> None:
        """Let (requests, p, verify_ms) periods repeat on the engine's own request clock, from its next request on."""
        cycle = [{"length": n, "acceptance": p, "step_delay_seconds": ms / 1000} for n, p, ms in periods]
        self.set_faults({"clock": "requests", "cycle": cycle})

    def set_faults(self, schedule: dict[str, object]) -> None:
        """Let a schedule of ``replay.faults`` hold from the engine's next step on, from zero of its clock."""
        new = self.faults_file.with_suffix(".new")
        new.write_text(json.dumps(schedule))
        new.replace(self.faults_file)

    def processes(self) -> list[psutil.Process]:
        """Every living process of the engine's session, orphans included, oldest first."""
        assert self.process is not None, "the engine was not started"
        return [process for process in psutil.process_iter() if lives_in(self.process.pid, process)]

    def log_tail(self, lines: int = 30) -> str:
        """End of what the engine printed."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    async def stop(self) -> None:
        """End every process of the engine, politely first, and remove its files. May be called twice."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.process.wait, STOP_TIMEOUT_SECONDS)
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.to_thread(self.process.wait)
            await self._wait_until_gone()
            self.process = None
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

    async def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
        while remaining := self.processes():
            if time.monotonic() > deadline:
                raise EngineError(f"processes outlived SIGKILL for {KILL_TIMEOUT_SECONDS:.0f} s: {remaining}")
            await asyncio.sleep(0.02)

    async def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await _healthy(session, f"{self.base_url}/health"):
                if self.process.poll() is not None:
                    raise EngineError(f"the engine exited with {self.process.returncode}:\n{self.log_tail()}")
                if time.monotonic() > deadline:
                    raise EngineError(f"the engine was not ready in {START_TIMEOUT_SECONDS:.0f} s:\n{self.log_tail()}")
                await asyncio.sleep(0.25)

    @property
    def log_file(self) -> Path:
        """What the engine prints; gone after ``stop``."""
        assert self._directory is not None, "the engine is not running"
        return self._directory / "engine.log"

    @property
    def faults_file(self) -> Path:
        """What steers the engine; touched, its schedule begins anew."""
        return self.log_file.with_name("faults.json")

    def environment(self, venv: Path, faults_file: Path | None = None) -> dict[str, str]:
        """The environment that it needs; faults_file: where its acceptance is steered, None: nothing is."""
        omp = {"OMP_NUM_THREADS": "1", "LD_PRELOAD": str(venv / "lib/libiomp5.so")}
        quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        log = {"VLLM_LOG_STATS_INTERVAL": "1"}  # seconds; a test reads it
        plugin = {"PYTHONPATH": str(installed_faults()), "VLLM_PLUGINS": "specbreaker_faults"}
        if faults_file is not None:
            plugin["SPECBREAKER_FAULTS"] = str(faults_file)
        cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        places = {"VLLM_CACHE_ROOT": str(venv.parent / "cache"), "PATH": f"{venv}/bin:{os.environ['PATH']}"}
        return {**os.environ, **omp, **quiet, **log, **plugin, **cpu, **places}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def lives_in(session: int, process: psutil.Process) -> bool:
    """Whether the process belongs to this session and is not a zombie."""
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False
