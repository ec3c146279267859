"""Kills one process of a real engine: the API server, the EngineCore or the worker. Each dies in its own way."""

from __future__ import annotations

import signal

import psutil

from tests.engine.server import EngineServer


def kill_api(engine: EngineServer, number: signal.Signals) -> psutil.Process:
    """Signal the API server, the process that holds the clients' connections. Returns it."""
    assert engine.process is not None, "the engine was not started"
    engine.process.send_signal(number)
    return psutil.Process(engine.process.pid)


def kill_engine_core(engine: EngineServer, number: signal.Signals) -> psutil.Process:
    """Signal the EngineCore, the process that schedules requests. Returns it."""
    return _kill(engine, "VLLM::EngineCore", number)


def kill_worker(engine: EngineServer, number: signal.Signals) -> psutil.Process:
    """Signal the worker, the process that runs the model. Returns it."""
    return _kill(engine, "VLLM::Worker", number)


def _kill(engine: EngineServer, title: str, number: signal.Signals) -> psutil.Process:
    """Signal the one process of this title; raises LookupError where there is none."""
    for process in engine.processes():
        if " ".join(process.cmdline()).startswith(title):
            process.send_signal(number)
            return process
    raise LookupError(f"no process {title} in the engine; its log ends:\n{engine.log_tail()}")
