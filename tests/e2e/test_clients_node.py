"""openai-node in front of `specbreaker serve`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import aiohttp
import pytest
from served import Served
from upstreams import until_true

NODE = Path(__file__).parent / "node"


def tool(name: str) -> str:
    """Path of a program that this test needs."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"{name} is not installed: install Node.js 20 or later, or leave out tests/e2e/test_clients_node.py"
        )
    return path


def installed() -> Path:
    """A folder outside the repository with the locked openai-node in it, installed once."""
    lock = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specbreaker" / "e2e-node"
    folder = cache / lock
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, fresh)
        command = [tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, f"npm ci: {done.stderr}"
        try:
            fresh.rename(folder)
        except OSError:  # another worker was faster
            shutil.rmtree(fresh)
    shutil.copy(NODE / "client.mjs", folder)
    return folder


async def test_openai_node(demo: Served) -> None:
    folder = installed()
    command = [tool("node"), str(folder / "client.mjs"), demo.base_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "whole": {"tokens": 12, "finish": "length"},
        "stream": {"several": True, "text": True, "withoutChoices": 0, "finish": "length"},
        "tools": {"name": "get_weather", "arguments": ["city"]},
        "aborted": {"aborted": True},
        "unknownModel": {"kind": "NotFoundError", "status": 404},
    }

    async def nothing_runs() -> bool:
        async with aiohttp.ClientSession() as http, http.get(f"{demo.url}/metrics") as answer:
            return 'vllm:num_requests_running{engine="0",model_name="emulated"} 0.0' in await answer.text()

    await until_true(nothing_runs)
