"""Run by the engine's Python (test_engine_faults.py): what a fault makes of drafts, logits and rates, in torch."""

from __future__ import annotations

import torch

from replay.faults.schedule import Fault
from replay.faults.verification import steer, steer_rates, wrap

TOKENS, VOCABULARY = 20_000, 50
HALF = 0.02
"""How far a share of 20,000 coins may be off: more than five standard deviations."""


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Random drafts, one in ten of them a placeholder, and random logits."""
    torch.manual_seed(0)
    drafts = torch.randint(0, VOCABULARY, (TOKENS,), dtype=torch.int32)
    drafts[::10] = -1
    return drafts, torch.randn(TOKENS, VOCABULARY)


def accepted(drafts: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """What a greedy verification accepts."""
    return drafts == logits.argmax(dim=-1)


def check_forced() -> None:
    """Accepted is the draft itself, with the chance that was asked for; what is refused leaves the target's token."""
    drafts, logits = sample()
    steered, changed = steer(Fault(acceptance=0.7), drafts, logits)
    taken = accepted(steered, changed)
    assert not taken[drafts < 0].any(), "a placeholder was accepted"
    assert abs(taken[drafts >= 0].float().mean().item() - 0.7) < HALF
    assert torch.equal(steered[taken], drafts[taken]), "another token than the draft was accepted"
    assert torch.equal(changed[~taken], logits[~taken]), "a refused draft changed what the target says"
    assert changed.softmax(dim=-1)[taken].max(dim=-1).values.eq(1).all(), "sampling might refuse what is to be taken"


def check_extremes() -> None:
    """Chances of 0 and 1 are certain."""
    drafts, logits = sample()
    drafts = drafts.clamp(min=0)
    assert accepted(*steer(Fault(acceptance=1.0), drafts, logits)).all()
    assert not accepted(*steer(Fault(acceptance=0.0), drafts, logits)).any()
    assert not accepted(*steer(Fault(corrupt_drafts=1.0), drafts, logits)).any()


def check_corrupted() -> None:
    """A share of drafts becomes the least likely token; the target is left alone."""
    drafts, logits = sample()
    steered, same = steer(Fault(corrupt_drafts=0.9), drafts, logits)
    assert same is logits
    assert steered.dtype == drafts.dtype
    changed = steered != drafts
    assert abs(changed.float().mean().item() - 0.9) < HALF + 1 / VOCABULARY
    assert torch.equal(steered[changed], logits.argmin(dim=-1)[changed].to(drafts.dtype))


def check_synthetic() -> None:
    """vLLM's synthetic acceptance looks at rates alone: the rates move, and only while there is a fault."""
    rates = torch.tensor([0.9, 0.8])
    assert steer_rates(Fault(acceptance=0.25), rates).tolist() == [0.25, 0.25]
    assert torch.allclose(steer_rates(Fault(corrupt_drafts=0.5), rates), torch.tensor([0.45, 0.4]))
    given: list[torch.Tensor] = []

    def rejection_sample(*_: object, synthetic_conditional_rates: torch.Tensor, **__: object) -> torch.Tensor:
        given.append(synthetic_conditional_rates)
        return torch.zeros(1)

    faults = iter([Fault(), Fault(acceptance=0.25)])
    steered = wrap(rejection_sample, lambda: next(faults))
    for _ in range(2):
        drafts, logits = sample()
        steered(drafts, [2], 2, None, None, logits, synthetic_mode=True, synthetic_conditional_rates=rates)
    assert given[0] is rates
    assert given[1].tolist() == [0.25, 0.25]


if __name__ == "__main__":
    check_forced()
    check_extremes()
    check_corrupted()
    check_synthetic()
