"""vLLM general plug-in, for tests only: moves the acceptance of a running engine and slows its verify steps.

It does nothing unless asked by name: ``SPECBREAKER_ACCEPTANCE_FILE`` must name a JSON file. The file is read again when
it changes; while it does not exist the engine speculates as it would without the plug-in. Forms::

    {"p": 0.9}                      every draft token that is reached is accepted with probability 0.9
    {"p": 0.05, "verify_ms": 8}     and every verify step takes 8 ms longer
    {"verify_ms": 8}                only slower; acceptance stays the drafter's own
    {"schedule": [{"requests": 5, "p": 0.9}, {"requests": 3, "p": 0.05, "verify_ms": 8}]}

A schedule repeats. Its clock is the engine's own: it moves by one when a request is first scheduled, and starts at zero
with the first request after the file was written. All running requests share the setting of the newest one.

Only the CPU backend's sampling functions of vLLM 0.32 are replaced. A file that is not understood stops the engine.
"""

from __future__ import annotations

import inspect
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

FILE_VARIABLE = "SPECBREAKER_ACCEPTANCE_FILE"

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How verify steps go: ``p`` None leaves acceptance to the drafter."""

    p: Probability | None = None
    verify_ms: Milliseconds = 0.0


class Period(Setting, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A setting that lasts for a number of requests."""

    requests: Annotated[int, msgspec.Meta(ge=1)]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Periods that repeat on the engine's request clock."""

    schedule: Annotated[tuple[Period, ...], msgspec.Meta(min_length=1)]

    def at(self, request: int) -> Setting:
        """Setting for the request of this index, counted from 0."""
        position = request % sum(period.requests for period in self.schedule)
        for period in self.schedule:
            if position < period.requests:
                break
            position -= period.requests
        return period


def parse(text: bytes) -> Setting | Schedule:
    """Read the file's JSON; raises msgspec.DecodeError (or its ValidationError) that names what is wrong."""
    scheduled = "schedule" in msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(text, type=Schedule) if scheduled else msgspec.json.decode(text, type=Setting)


class Control:
    """The setting in force, from the file and the request clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int] | None = None
        self._content: Setting | Schedule = Setting()
        self._requests = 0
        self.setting = Setting()

    def step(self, new_requests: int) -> None:
        """Note one engine step in which this many requests were scheduled for the first time."""
        self._reload()
        self._requests += new_requests
        content = self._content
        self.setting = content.at(max(0, self._requests - 1)) if isinstance(content, Schedule) else content

    def _reload(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._version, self._content = None, Setting()
            return
        version = (status.st_ino, status.st_mtime_ns)
        if version != self._version:
            self._version, self._content, self._requests = version, parse(self._path.read_bytes()), 0


def verified_tokens(drafted: Sequence[int], own: Sequence[int], bonus: int, p: float) -> list[int]:
    """Tokens of one verify step: drafts up to the first refusal, then the target's own token, or the bonus after all.

    A negative draft is vLLM's placeholder for "no draft here" and is never accepted.
    """
    tokens: list[int] = []
    for draft, own_token in zip(drafted, own, strict=True):
        if draft < 0 or random.random() >= p:
            return [*tokens, own_token]
        tokens.append(draft)
    return [*tokens, bonus]


def _replace_sampler(kernel: Callable[..., None], own_name: str, greedy: bool, control: Control) -> Callable[..., None]:
    """Wrap one of vLLM's two rejection samplers; ``own_name`` is its argument with the target's own tokens."""
    signature = inspect.signature(kernel)

    def sample(*args: Any, **kwargs: Any) -> None:
        p = control.setting.p
        if p is None:
            return kernel(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        is_greedy = given["is_greedy"]
        drafted, own = given["draft_token_ids"].tolist(), given[own_name].tolist()
        bonus = given["bonus_token_ids"].reshape(-1).tolist()
        begin = 0
        for row, end in enumerate(given["cu_num_draft_tokens"].tolist()):
            if is_greedy is None or bool(is_greedy[row]) is greedy:
                for column, token in enumerate(verified_tokens(drafted[begin:end], own[begin:end], bonus[row], p)):
                    given["output_token_ids"][row, column] = token
            begin = end
        return None

    return sample


def _follow_steps(execute_model: Callable[..., Any], control: Control) -> Callable[..., Any]:
    """Wrap the worker's step: moves the request clock and adds the verify time."""

    def step(worker: Any, scheduler_output: Any) -> Any:
        control.step(len(scheduler_output.scheduled_new_reqs))
        if scheduler_output.scheduled_spec_decode_tokens:
            time.sleep(control.setting.verify_ms / 1000)
        return execute_model(worker, scheduler_output)

    return step


def register() -> None:
    """Entry point: vLLM calls it in each of its processes, before the samplers are bound."""
    file = os.environ.get(FILE_VARIABLE)
    if not file:
        return
    from vllm.utils import cpu_triton_utils as samplers
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    control = Control(Path(file))
    samplers._rejection_greedy_sample_kernel_impl = _replace_sampler(
        samplers._rejection_greedy_sample_kernel_impl, "target_argmax", True, control
    )
    samplers._rejection_random_sample_kernel_impl = _replace_sampler(
        samplers._rejection_random_sample_kernel_impl, "recovered_token_ids", False, control
    )
    WorkerWrapperBase.execute_model = _follow_steps(WorkerWrapperBase.execute_model, control)
