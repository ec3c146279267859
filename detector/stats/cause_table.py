"""The table of diagnosis: signatures of what slows an answer down, each with its cause and what may help.

``cause.diagnose`` reads it from the top; the first row whose conditions all hold is the diagnosis. The last row has no
conditions, so there is always one.

The order: what makes the numbers wrong; the engine's own queue; speculation that is off; the drafter; what moves the
time of a step; content. Since decode tok/s = S x A exactly, rows after the queue say which factor must have moved.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import msgspec

from detector.verdict import Cause


class Remedy(StrEnum):
    """What may help against a cause. Remedies are permissions, the most useful first: the policy weighs their price."""

    ROUTE_AWAY = "route_away"
    """Give new requests to another backend."""
    LOWER_NUM_SPECULATIVE_TOKENS = "lower_num_speculative_tokens"
    SPECULATION_OFF = "speculation_off"
    RESTART = "restart"
    """Launch the engine anew at the level it has."""
    RESET_PREFIX_CACHE = "reset_prefix_cache"
    WAIT = "wait"
    """It passes by itself."""
    REDUCE_CONCURRENCY = "reduce_concurrency"
    FIX_CONFIGURATION = "fix_configuration"
    """Somebody has to change the launch command; restarting does not help."""


MOVED: Final = math.log(1.25)
"""Nats; a log ratio that differs from 0 by less is unmoved. A step rate of 0.8 of the usual is the field's limit."""
LATE: Final = math.log(3.0)
"""Nats; a first token this much later than expected is late."""
DEAD_FIRST_POSITION: Final = 0.30
"""p_0 of a drafter at fault is below: in published logs, healthy engines had 0.60 and more, failed drafters 0.035 and
less."""
HEALTHY_FIRST_POSITION: Final = 0.50
"""p_0 of a drafter that works is above, whatever the content."""
SHAPE_EXCESS: Final = 0.15
"""p_1/p_0 above p_0 by more shows an answer of two parts, one dead: with steps of any healthy p in 0.5..0.95 mixed,
p_1/p_0 - p_0 = var(p)/E(p) is at most 0.10."""


class Condition(msgspec.Struct, frozen=True):
    """One of ``findings.NUMBERS`` must be within bounds, with the whole of its interval."""

    number: str
    at_least: float = -math.inf
    at_most: float = math.inf
    if_unknown: bool = False

    def holds(self, interval: tuple[float, float] | None) -> bool:
        """True where the number is surely within the bounds; ``if_unknown`` where it is not known."""
        if interval is None:
            return self.if_unknown
        return self.at_least <= interval[0] and interval[1] <= self.at_most


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One signature. Remedies that lower K or switch speculation off count only while A is below the break-even."""

    name: str
    when: tuple[Condition, ...]
    cause: Cause
    remedies: tuple[Remedy, ...] = ()
    why: str


_ACCEPTANCE_DOWN: Final = Condition("acceptance_log_ratio", at_most=-MOVED)
_ACCEPTANCE_UP: Final = Condition("acceptance_log_ratio", at_least=MOVED)
_ACCEPTANCE_NOT_DOWN: Final = Condition("acceptance_log_ratio", at_least=-MOVED)
_STEP_UP: Final = Condition("step_log_ratio", at_least=MOVED)
_STEP_NOT_UP: Final = Condition("step_log_ratio", at_most=MOVED)
_RATE_DOWN: Final = Condition("rate_log_ratio", at_most=-MOVED)
_RATE_UNMOVED: Final = Condition("rate_log_ratio", at_least=-MOVED, at_most=MOVED)
_DRAFTER_DEAD: Final = Condition("first_position_acceptance", at_most=DEAD_FIRST_POSITION)
_BELOW_ITS_OWN: Final = Condition("first_position_share", at_most=0.5, if_unknown=True)
_DRAFTER_WORKS: Final = Condition("first_position_acceptance", at_least=HEALTHY_FIRST_POSITION)
_DRAFTING: Final = Condition("drafting", at_least=1)
_ENOUGH_TOKENS: Final = Condition("completion_tokens", at_least=16)
_FIRST_TOKEN_LATE: Final = Condition("ttft_log_ratio", at_least=LATE)
_PROMPT_LONGER: Final = Condition("prompt_ratio", at_least=1.25)
_PROMPT_USUAL: Final = Condition("prompt_ratio", at_most=1.25, if_unknown=True)
_BUSIER: Final = Condition("load_ratio", at_least=1.5)
_LOAD_USUAL: Final = Condition("load_ratio", at_most=1.5, if_unknown=True)
_SIBLING_BUSY: Final = Condition("sibling_busy", at_least=1)
_SIBLING_QUIET: Final = Condition("sibling_busy", at_most=0, if_unknown=True)
_CONTENT_USUAL: Final = Condition("content_differs", at_most=0, if_unknown=True)
_OTHERS_HEALTHY: Final = Condition("other_answers_degraded", at_most=0)
_OTHERS_DEGRADED: Final = Condition("other_answers_degraded", at_least=1)


def _or_unknown(condition: Condition) -> Condition:
    return msgspec.structs.replace(condition, if_unknown=True)


TABLE: Final[tuple[Row, ...]] = (
    # What makes the numbers wrong, or not the engine's.
    Row(
        name="asleep",
        when=(Condition("engine_awake", at_most=0),),
        cause=Cause.UNKNOWN,
        remedies=(Remedy.ROUTE_AWAY,),
        why="The engine sleeps: it answers nothing until it is woken.",
    ),
    Row(
        name="rate_is_not_the_product",
        when=(Condition("rate_mismatch_nats", at_least=math.log(1.2)),),
        cause=Cause.ARTEFACT,
        why="tok/s is not S x A: one of the three was measured wrongly.",
    ),
    Row(
        name="steps_merged",
        when=(_ACCEPTANCE_UP, _STEP_UP, _RATE_UNMOVED),
        cause=Cause.ARTEFACT,
        why="A and step time rose together while the rate stayed: several steps arrive as one event.",
    ),
    Row(
        name="client_reads_slowly",
        when=(Condition("client_paced", at_least=1), _or_unknown(_ACCEPTANCE_NOT_DOWN)),
        cause=Cause.ARTEFACT,
        why="The client reads slower than the engine writes: the times are the client's.",
    ),
    Row(
        name="empty_output",
        when=(
            Condition("visible_bytes_per_token", at_most=0.05),
            Condition("first_position_acceptance", at_most=DEAD_FIRST_POSITION),
            _ENOUGH_TOKENS,
        ),
        cause=Cause.DEGENERATE_OUTPUT,
        remedies=(Remedy.RESTART, Remedy.ROUTE_AWAY),
        why="The engine generates tokens that show no text and accepts no draft: the answers are wrong, not only slow.",
    ),
    Row(
        name="loop",
        when=(
            Condition("accepted_share_of_drafts", at_least=0.97),
            _ACCEPTANCE_UP,
            Condition("finished_by_length", at_least=1),
            _or_unknown(_STEP_NOT_UP),
        ),
        cause=Cause.DEGENERATE_OUTPUT,
        why="Nearly every draft was accepted until max_tokens: the model repeats itself. One prompt can do that.",
    ),
    # The engine's own queue.
    Row(
        name="first_token_waits",
        when=(
            _FIRST_TOKEN_LATE,
            Condition("queue_signs", at_least=1),
            _or_unknown(_ACCEPTANCE_NOT_DOWN),
            _or_unknown(_STEP_NOT_UP),
        ),
        cause=Cause.QUEUEING,
        remedies=(Remedy.WAIT, Remedy.REDUCE_CONCURRENCY, Remedy.ROUTE_AWAY),
        why="The first token was late while the engine had requests waiting or a full KV cache; decoding was normal.",
    ),
    Row(
        name="preempted",
        when=(Condition("preemptions", at_least=1), _STEP_UP, _ACCEPTANCE_NOT_DOWN),
        cause=Cause.QUEUEING,
        remedies=(Remedy.REDUCE_CONCURRENCY, Remedy.WAIT, Remedy.ROUTE_AWAY),
        why="The engine preempted requests during the answer: the KV cache is too small for the load.",
    ),
    Row(
        name="long_prefill",
        when=(_FIRST_TOKEN_LATE, _PROMPT_LONGER, _LOAD_USUAL, _ACCEPTANCE_NOT_DOWN, _STEP_NOT_UP),
        cause=Cause.LONG_CONTEXT,
        why="The prompt is longer than any that the baseline knows, and only the first token was late.",
    ),
    Row(
        name="busy_before_the_first_token",
        when=(_FIRST_TOKEN_LATE, _BUSIER, _PROMPT_USUAL, _ACCEPTANCE_NOT_DOWN, _STEP_NOT_UP),
        cause=Cause.QUEUEING,
        remedies=(Remedy.WAIT, Remedy.REDUCE_CONCURRENCY, Remedy.ROUTE_AWAY),
        why="The first token was late with more requests in flight than the baseline knows; decoding was normal.",
    ),
    # Speculation that is off.
    Row(
        name="no_drafts",
        when=(Condition("drafting", at_most=0), _ACCEPTANCE_DOWN, _or_unknown(_ENOUGH_TOKENS)),
        cause=Cause.SPECULATION_OFF,
        remedies=(Remedy.ROUTE_AWAY, Remedy.FIX_CONFIGURATION),
        why="One token a step and no drafts: speculation is switched off, by configuration or by the engine.",
    ),
    # The drafter.
    Row(
        name="context_beyond_the_drafter",
        when=(_ACCEPTANCE_DOWN, _DRAFTING, _PROMPT_LONGER, _CONTENT_USUAL, _OTHERS_HEALTHY),
        cause=Cause.LONG_CONTEXT,
        remedies=(Remedy.ROUTE_AWAY,),
        why="A fell with a prompt longer than any that the baseline knows, while other answers are healthy.",
    ),
    Row(
        name="long_context_or_collapse",
        when=(_ACCEPTANCE_DOWN, _DRAFTING, _DRAFTER_DEAD, _PROMPT_LONGER, _or_unknown(_OTHERS_HEALTHY)),
        cause=Cause.UNKNOWN,
        remedies=(Remedy.ROUTE_AWAY,),
        why="The drafter failed on a prompt longer than any known: only an answer of usual length can tell why.",
    ),
    Row(
        name="dead_drafter_with_cached_prefix",
        when=(_ACCEPTANCE_DOWN, _DRAFTING, _DRAFTER_DEAD, _BELOW_ITS_OWN, Condition("cached_share", at_least=0.25)),
        cause=Cause.ACCEPTANCE_COLLAPSE,
        remedies=(
            Remedy.ROUTE_AWAY,
            Remedy.RESET_PREFIX_CACHE,
            Remedy.SPECULATION_OFF,
            Remedy.LOWER_NUM_SPECULATIVE_TOKENS,
            Remedy.RESTART,
            Remedy.WAIT,
        ),
        why="The first draft position is hardly ever accepted, and part of the prompt came from the prefix cache.",
    ),
    Row(
        name="dead_drafter",
        when=(_ACCEPTANCE_DOWN, _DRAFTING, _DRAFTER_DEAD, _BELOW_ITS_OWN),
        cause=Cause.ACCEPTANCE_COLLAPSE,
        remedies=(
            Remedy.ROUTE_AWAY,
            Remedy.SPECULATION_OFF,
            Remedy.LOWER_NUM_SPECULATIVE_TOKENS,
            Remedy.RESTART,
            Remedy.WAIT,
        ),
        why="The first draft position is hardly ever accepted: no content does that to a drafter that works.",
    ),
    Row(
        name="collapsed_in_part",
        when=(
            _ACCEPTANCE_DOWN,
            _or_unknown(_STEP_NOT_UP),
            Condition("second_position_excess", at_least=SHAPE_EXCESS),
            Condition("first_position_share", at_most=0.85, if_unknown=True),
        ),
        cause=Cause.ACCEPTANCE_COLLAPSE,
        remedies=(Remedy.ROUTE_AWAY, Remedy.WAIT),
        why="Steps with good drafts and steps with none: the drafter died or came back within the answer.",
    ),
    Row(
        name="later_positions_dead",
        when=(_ACCEPTANCE_DOWN, _DRAFTER_WORKS, Condition("second_position_given_first", at_most=0.2)),
        cause=Cause.ACCEPTANCE_COLLAPSE,
        remedies=(
            Remedy.ROUTE_AWAY,
            Remedy.LOWER_NUM_SPECULATIVE_TOKENS,
            Remedy.SPECULATION_OFF,
            Remedy.RESTART,
        ),
        why="The first draft position is accepted as ever, the later ones are not.",
    ),
    Row(
        name="drift",
        when=(
            _ACCEPTANCE_DOWN,
            _STEP_NOT_UP,
            _DRAFTER_WORKS,
            Condition("content_differs", at_most=0),
            _OTHERS_DEGRADED,
        ),
        cause=Cause.ACCEPTANCE_COLLAPSE,
        remedies=(
            Remedy.ROUTE_AWAY,
            Remedy.RESTART,
            Remedy.LOWER_NUM_SPECULATIVE_TOKENS,
            Remedy.SPECULATION_OFF,
        ),
        why="All answers accept fewer drafts than they did, with the same content.",
    ),
    # What moves the time of a step.
    Row(
        name="neighbour_on_the_gpu",
        when=(_STEP_UP, _ACCEPTANCE_NOT_DOWN, _SIBLING_BUSY, _PROMPT_USUAL),
        cause=Cause.STEP_INFLATION,
        remedies=(Remedy.WAIT, Remedy.REDUCE_CONCURRENCY),
        why="Steps were slow while another backend on the same GPU was serving.",
    ),
    Row(
        name="long_context_steps",
        when=(_STEP_UP, _ACCEPTANCE_NOT_DOWN, _PROMPT_LONGER, _SIBLING_QUIET, _LOAD_USUAL),
        cause=Cause.LONG_CONTEXT,
        why="Steps were slow with a prompt longer than any that the baseline knows.",
    ),
    Row(
        name="busier_than_known",
        when=(_STEP_UP, _ACCEPTANCE_NOT_DOWN, _BUSIER, _PROMPT_USUAL),
        cause=Cause.STEP_INFLATION,
        remedies=(Remedy.REDUCE_CONCURRENCY, Remedy.ROUTE_AWAY, Remedy.WAIT),
        why="Steps were slow with more requests on the engine than the baseline knows.",
    ),
    Row(
        name="cold_engine",
        when=(_STEP_UP, _ACCEPTANCE_NOT_DOWN, Condition("process_restarted", at_least=1)),
        cause=Cause.STEP_INFLATION,
        remedies=(Remedy.WAIT,),
        why="Steps were slow right after a start: the first answers of an engine are.",
    ),
    Row(
        name="slow_steps",
        when=(_STEP_UP, _ACCEPTANCE_NOT_DOWN, _PROMPT_USUAL),
        cause=Cause.STEP_INFLATION,
        remedies=(Remedy.ROUTE_AWAY, Remedy.RESTART, Remedy.WAIT),
        why="Each step takes longer and yields as many tokens as ever: clocks, power, graphs or a neighbour.",
    ),
    # Content.
    Row(
        name="long_context_acceptance",
        when=(_ACCEPTANCE_DOWN, _STEP_NOT_UP, _DRAFTER_WORKS, _PROMPT_LONGER, _CONTENT_USUAL),
        cause=Cause.LONG_CONTEXT,
        why="A fell with a prompt longer than any that the baseline knows, and the drafter still works.",
    ),
    Row(
        name="content_by_shape",
        when=(
            _ACCEPTANCE_DOWN,
            _or_unknown(_STEP_NOT_UP),
            _DRAFTER_WORKS,
            _PROMPT_USUAL,
            Condition("second_position_excess", at_most=SHAPE_EXCESS, if_unknown=True),
        ),
        cause=Cause.CONTENT,
        why="A fell and the first draft position is still accepted: the text is harder to predict.",
    ),
    Row(
        name="content_by_class",
        when=(
            _ACCEPTANCE_DOWN,
            _or_unknown(_STEP_NOT_UP),
            _PROMPT_USUAL,
            Condition("content_differs", at_least=1),
            _OTHERS_HEALTHY,
        ),
        cause=Cause.CONTENT,
        why="A fell for a class of content that differs, while other answers are healthy.",
    ),
    # What is left.
    Row(
        name="slow_for_a_reason_that_is_not_known",
        when=(_RATE_DOWN,),
        cause=Cause.UNKNOWN,
        remedies=(Remedy.ROUTE_AWAY, Remedy.WAIT),
        why="The rate is low, and the numbers do not say which factor moved, or why.",
    ),
    Row(
        name="nothing_explains_it",
        when=(),
        cause=Cause.UNKNOWN,
        why="No number moved beyond its uncertainty, or too few are known.",
    ),
)
"""The rows, in the order in which they are tried."""
