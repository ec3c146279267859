"""What a fault does to one verification of drafts, in torch, on any device and without waiting for it."""

from __future__ import annotations

from typing import Any

import torch

from replay.faults.schedule import Fault


def steer(fault: Fault, drafts: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts (tokens) and logits (tokens x vocabulary) of which vLLM's own verification makes what the fault says.

    A draft to be refused becomes the token that the target finds least likely: it is refused, at a temperature above 0
    but for that token's chance, and the target's own token takes its place. A draft to be accepted gets all of the
    target's probability. A negative draft stands for "no draft here" and is never accepted.
    """
    chance = torch.rand(drafts.shape, device=drafts.device)
    least_likely = logits.argmin(dim=-1).to(drafts.dtype)
    if fault.acceptance is None:
        return torch.where(chance < fault.corrupt_drafts, least_likely, drafts), logits
    accepted = (chance < fault.acceptance) & (drafts >= 0)
    certain = torch.full_like(logits, float("-inf"))
    certain.scatter_(1, drafts.clamp(min=0).to(torch.int64).unsqueeze(1), 0.0)
    return (
        torch.where(accepted, drafts, least_likely),
        torch.where(accepted.unsqueeze(1), certain, logits),
    )


def steer_rates(fault: Fault, rates: torch.Tensor) -> torch.Tensor:
    """Conditional rates for ``rejection_sample_method: synthetic``, which looks at neither drafts nor logits."""
    if fault.acceptance is not None:
        return torch.full_like(rates, fault.acceptance)
    return rates * (1.0 - fault.corrupt_drafts)


def wrap(rejection_sample: Any, current: Any) -> Any:
    """vLLM's ``rejection_sample`` (model runner V1, 0.20.2 to 0.32), under the fault that ``current()`` returns."""

    def steered(
        draft_token_ids: torch.Tensor,
        num_draft_tokens: list[int],
        max_spec_len: int,
        cu_num_draft_tokens: torch.Tensor,
        draft_probs: torch.Tensor | None,
        target_logits: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        fault: Fault = current()
        if fault.acceptance is not None or fault.corrupt_drafts:
            if kwargs.get("synthetic_mode"):
                kwargs["synthetic_conditional_rates"] = steer_rates(fault, kwargs["synthetic_conditional_rates"])
            else:
                draft_token_ids, target_logits = steer(fault, draft_token_ids, target_logits)
        result: torch.Tensor = rejection_sample(
            draft_token_ids,
            num_draft_tokens,
            max_spec_len,
            cu_num_draft_tokens,
            draft_probs,
            target_logits,
            *args,
            **kwargs,
        )
        return result

    return steered
