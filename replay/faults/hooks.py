"""Where the plug-in holds on to vLLM (seen: 0.20.2 on a GPU, 0.32.0 on a CPU; model runner V1).

Whichever process schedules counts the clocks and writes the fault into what it sends to the workers, so all of them do
the same in the same step, also with tensor parallelism and with asynchronous scheduling.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

from replay.faults.control import Control
from replay.faults.schedule import Fault, ScheduleError

SENT_AS = "specbreaker_fault"
"""Attribute of vLLM's SchedulerOutput."""
EXPECTED = (
    "draft_token_ids",
    "num_draft_tokens",
    "max_spec_len",
    "cu_num_draft_tokens",
    "draft_probs",
    "target_logits",
)
"""How the arguments of vLLM's ``rejection_sample`` begin."""


def install(control: Control) -> None:
    """Hold on to this process's vLLM. Raises ScheduleError, in one line, where it is one that is not known."""
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from replay.faults import verification

    if tuple(inspect.signature(rejection_sampler.rejection_sample).parameters)[: len(EXPECTED)] != EXPECTED:
        raise ScheduleError("faults: this vLLM verifies drafts in a way not known; known are 0.20.2 to 0.32")
    Scheduler.__init__ = _refusing_other_runners(Scheduler.__init__)
    Scheduler.schedule = _sending(Scheduler.schedule, control)
    Scheduler.update_from_output = _counting_tokens(Scheduler.update_from_output, control)
    BlockPool.get_new_blocks = _counting_blocks(BlockPool.get_new_blocks, control)
    in_force = InForce()
    WorkerWrapperBase.execute_model = _receiving(WorkerWrapperBase.execute_model, in_force)
    rejection_sampler.rejection_sample = verification.wrap(rejection_sampler.rejection_sample, lambda: in_force.fault)


class InForce:
    """What a worker was sent with its current step; nothing before the first, when vLLM warms up."""

    fault: Fault = Fault()


def _refusing_other_runners(original: Any) -> Any:
    def __init__(scheduler: Any, *args: Any, **kwargs: Any) -> None:
        original(scheduler, *args, **kwargs)
        # 0.20.2 says it in the scheduler, later versions in the configuration.
        if getattr(scheduler, "use_v2_model_runner", False) or getattr(
            scheduler.vllm_config, "use_v2_model_runner", False
        ):
            raise ScheduleError("faults: model runner V2 is not supported: set VLLM_USE_V2_MODEL_RUNNER=0")

    return __init__


def _sending(original: Any, control: Control) -> Any:
    def schedule(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(scheduler, *args, **kwargs)
        if output.total_num_scheduled_tokens:
            fault = control.step(
                time.monotonic(), len(output.scheduled_new_reqs), len(output.scheduled_spec_decode_tokens)
            )
            setattr(output, SENT_AS, fault)
        return output

    return schedule


def _counting_tokens(original: Any, control: Control) -> Any:
    def update_from_output(scheduler: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        control.generated(model_runner_output.sampled_token_ids or [])
        return original(scheduler, scheduler_output, model_runner_output)

    return update_from_output


def _counting_blocks(original: Any, control: Control) -> Any:
    def get_new_blocks(pool: Any, num_blocks: int) -> Any:
        blocks = original(pool, num_blocks)
        control.clock.allocated(num_blocks)
        return blocks

    return get_new_blocks


def _receiving(original: Any, in_force: InForce) -> Any:
    def execute_model(worker: Any, scheduler_output: Any) -> Any:
        in_force.fault = getattr(scheduler_output, SENT_AS, Fault())
        if in_force.fault.step_delay_seconds:
            _delay(in_force.fault.step_delay_seconds)
        return original(worker, scheduler_output)

    return execute_model


def _delay(seconds: float) -> None:
    import torch

    if torch.cuda.is_available():
        # Else the pause would hide behind the step that still runs there.
        torch.cuda.synchronize()
    time.sleep(seconds)
