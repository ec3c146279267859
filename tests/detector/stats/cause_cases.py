"""Findings for the tests of the diagnosis: a hit for each row of the table, and near misses."""

import math

from detector.stats.cause import Findings

HEALTHY = {
    "acceptance_log_ratio": 0.0,
    "step_log_ratio": 0.0,
    "rate_log_ratio": 0.0,
    "ttft_log_ratio": 0.0,
    "acceptance_length": 4.5,
    "step_seconds": 0.02,
    "decode_tokens_per_second": 225.0,
    "position_acceptance": (0.8, 0.64, 0.51, 0.41, 0.33, 0.26, 0.21, 0.17),
    "expected_first_position_acceptance": 0.8,
    "verify_steps": 450.0,
    "draft_steps": 450.0,
    "num_speculative_tokens": 8,
    "completion_tokens": 2000,
    "finish_reason": "stop",
    "visible_bytes_per_token": 4.1,
    "prompt_tokens": 100,
    "longest_usual_prompt_tokens": 120,
    "cached_share": 0.0,
    "client_paced": False,
    "in_flight": 1,
    "most_usual_in_flight": 2,
    "requests_running": 1.0,
    "requests_waiting": 0.0,
    "kv_cache_usage": 0.1,
    "preemptions": 0.0,
    "sibling_busy": False,
    "engine_awake": True,
    "process_restarted": False,
}
"""The published machine at its healthy rate; two facts about other answers are left unknown."""

DEAD = {
    "acceptance_log_ratio": math.log(1.2 / 4.5),
    "rate_log_ratio": math.log(60 / 225),
    "acceptance_length": 1.2,
    "decode_tokens_per_second": 60.0,
    "position_acceptance": (0.17, 0.03, 0, 0, 0, 0, 0, 0),
    "verify_steps": 1660.0,
    "draft_steps": 1660.0,
}
OFF = {
    "acceptance_log_ratio": -math.log(4.5),
    "step_log_ratio": math.log(7.35 / 20),
    "rate_log_ratio": math.log(136 / 225),
    "acceptance_length": 1.0,
    "step_seconds": 1 / 136,
    "decode_tokens_per_second": 136.0,
    "position_acceptance": None,
    "verify_steps": 2000.0,
    "draft_steps": 0.0,
}
PROSE = {
    "acceptance_log_ratio": math.log(2.6 / 4.5),
    "rate_log_ratio": math.log(2.6 / 4.5),
    "acceptance_length": 2.6,
    "decode_tokens_per_second": 130.0,
    "position_acceptance": (0.66, 0.42, 0.25, 0.14, 0.07, 0.04, 0.02, 0),
    "verify_steps": 770.0,
}
SLOW = {
    "step_log_ratio": math.log(3.6),
    "rate_log_ratio": -math.log(3.6),
    "step_seconds": 0.072,
    "decode_tokens_per_second": 62.5,
}
LATE = {"ttft_log_ratio": math.log(20)}
LONG = {"prompt_tokens": 30_000}

ROWS = [
    ("asleep", {**DEAD, "engine_awake": False}, {"engine_awake": True}, "dead_drafter"),
    (
        "rate_is_not_the_product",
        {**SLOW, "decode_tokens_per_second": 225.0},
        {"decode_tokens_per_second": 55.0},
        "slow_steps",
    ),
    (
        "steps_merged",
        {
            "acceptance_log_ratio": math.log(2),
            "step_log_ratio": math.log(2),
            "acceptance_length": 9.0,
            "step_seconds": 0.04,
        },
        {"rate_log_ratio": -math.log(2), "decode_tokens_per_second": None},
        "slow_steps",
    ),
    ("client_reads_slowly", {**SLOW, "client_paced": True}, {"client_paced": False}, "slow_steps"),
    (
        "empty_output",
        {**DEAD, "position_acceptance": (0.0,), "visible_bytes_per_token": 0.0},
        {"visible_bytes_per_token": 1.0},
        "dead_drafter",
    ),
    (
        "loop",
        {
            "acceptance_log_ratio": math.log(2),
            "acceptance_length": 8.95,
            "position_acceptance": (1.0,) * 8,
            "decode_tokens_per_second": 447.0,
            "finish_reason": "length",
        },
        {"finish_reason": "stop"},
        "nothing_explains_it",
    ),
    ("first_token_waits", {**LATE, "requests_waiting": 3.0}, {"requests_waiting": 0.0}, "nothing_explains_it"),
    ("preempted", {**SLOW, "preemptions": 2.0}, {"preemptions": 0.0}, "slow_steps"),
    ("long_prefill", {**LATE, **LONG}, {"prompt_tokens": 130}, "nothing_explains_it"),
    ("busy_before_the_first_token", {**LATE, "in_flight": 8}, {"in_flight": 2}, "nothing_explains_it"),
    ("no_drafts", OFF, {"draft_steps": 2000.0, "step_log_ratio": 0.0, "position_acceptance": (0.0,)}, "dead_drafter"),
    (
        "context_beyond_the_drafter",
        {**DEAD, **LONG, "other_answers_degraded": False},
        {"other_answers_degraded": True},
        "dead_drafter",
    ),
    ("long_context_or_collapse", {**DEAD, **LONG}, {"longest_usual_prompt_tokens": 29_000}, "dead_drafter"),
    ("dead_drafter_with_cached_prefix", {**DEAD, "cached_share": 0.9}, {"cached_share": 0.1}, "dead_drafter"),
    (
        "dead_drafter",
        DEAD,
        {"position_acceptance": (0.4, 0.05, 0, 0, 0, 0, 0, 0), "verify_steps": 400.0},
        "slow_for_a_reason_that_is_not_known",
    ),
    (
        "collapsed_in_part",
        {**PROSE, "position_acceptance": (0.5, 0.42, 0.36, 0.3, 0.25, 0.2, 0.15, 0.1), "verify_steps": 1000.0},
        {"position_acceptance": (0.5, 0.28, 0.15, 0.08, 0.04, 0.02, 0.01, 0)},
        "slow_for_a_reason_that_is_not_known",
    ),
    (
        "later_positions_dead",
        {**PROSE, "position_acceptance": (0.78, 0.02, 0, 0, 0, 0, 0, 0)},
        {"position_acceptance": (0.78, 0.3, 0.1, 0.03, 0, 0, 0, 0)},
        "content_by_shape",
    ),
    (
        "drift",
        {**PROSE, "content_differs": False, "other_answers_degraded": True},
        {"other_answers_degraded": False},
        "content_by_shape",
    ),
    (
        "neighbour_on_the_gpu",
        {**SLOW, "sibling_busy": True},
        {**LONG},
        "slow_for_a_reason_that_is_not_known",
    ),
    ("long_context_steps", {**SLOW, **LONG}, {"prompt_tokens": 130}, "slow_steps"),
    ("busier_than_known", {**SLOW, "requests_running": 6.0}, {"requests_running": 2.0}, "slow_steps"),
    ("cold_engine", {**SLOW, "process_restarted": True}, {"process_restarted": False}, "slow_steps"),
    ("slow_steps", SLOW, {"step_log_ratio": math.log(1.2)}, "slow_for_a_reason_that_is_not_known"),
    (
        "long_context_acceptance",
        {**PROSE, **LONG},
        {"position_acceptance": (0.4, 0.2), "acceptance_length": 2.6},
        "slow_for_a_reason_that_is_not_known",
    ),
    (
        "content_by_shape",
        PROSE,
        {"position_acceptance": (0.4, 0.2)},
        "slow_for_a_reason_that_is_not_known",
    ),
    (
        "content_by_class",
        {**PROSE, "position_acceptance": None, "content_differs": True, "other_answers_degraded": False},
        {"other_answers_degraded": None},
        "slow_for_a_reason_that_is_not_known",
    ),
    (
        "slow_for_a_reason_that_is_not_known",
        {"acceptance_log_ratio": None, "step_log_ratio": None, "rate_log_ratio": math.log(60 / 221)},
        {"rate_log_ratio": math.log(0.85)},
        "nothing_explains_it",
    ),
    ("nothing_explains_it", {}, {**DEAD}, "dead_drafter"),
]


A_SAME, A_DOWN = {"acceptance_log_ratio": 0.0}, {"acceptance_log_ratio": -0.6}
T_SAME, T_UP = {"step_log_ratio": 0.0}, {"step_log_ratio": 0.7}
NOT_KNOWN, NOTHING = "slow_for_a_reason_that_is_not_known", "nothing_explains_it"
NO_STEP_TIME = {
    "draft_steps": None,
    "position_acceptance": None,
    "acceptance_length": 1.0,
    "step_log_ratio": None,
    "decode_tokens_per_second": None,
}

NEAR_MISSES = [
    ("steps_merged", A_SAME, "slow_steps"),
    ("steps_merged", T_SAME, NOTHING),
    ("client_reads_slowly", {**A_DOWN, **T_SAME, "position_acceptance": (0.1,)}, "dead_drafter"),
    ("empty_output", {"position_acceptance": (0.5, 0.1)}, NOT_KNOWN),
    ("empty_output", {"completion_tokens": 3}, "dead_drafter"),
    ("loop", {"acceptance_length": 8.0}, NOTHING),
    ("loop", A_SAME, NOTHING),
    ("loop", {**T_UP, "rate_log_ratio": -0.6}, "slow_steps"),
    ("first_token_waits", {"ttft_log_ratio": 0.5}, NOTHING),
    ("first_token_waits", A_DOWN, "content_by_shape"),
    ("first_token_waits", T_UP, "slow_steps"),
    ("preempted", T_SAME, NOT_KNOWN),
    ("preempted", A_DOWN, NOT_KNOWN),
    ("long_prefill", {"ttft_log_ratio": 0.5}, NOTHING),
    ("long_prefill", {"in_flight": 8}, NOTHING),
    ("long_prefill", A_DOWN, "long_context_acceptance"),
    ("long_prefill", T_UP, "long_context_steps"),
    ("busy_before_the_first_token", {"ttft_log_ratio": 0.5}, NOTHING),
    ("busy_before_the_first_token", LONG, NOTHING),
    ("busy_before_the_first_token", A_DOWN, "content_by_shape"),
    ("busy_before_the_first_token", T_UP, "busier_than_known"),
    ("no_drafts", A_SAME, NOT_KNOWN),
    ("no_drafts", {"completion_tokens": 4}, NOT_KNOWN),
    ("context_beyond_the_drafter", A_SAME, NOT_KNOWN),
    ("context_beyond_the_drafter", {"draft_steps": 0.0}, "no_drafts"),
    ("context_beyond_the_drafter", NO_STEP_TIME, NOT_KNOWN),
    ("context_beyond_the_drafter", {"prompt_tokens": 100}, "dead_drafter"),
    ("context_beyond_the_drafter", {"content_differs": True}, "long_context_or_collapse"),
    ("long_context_or_collapse", A_SAME, NOT_KNOWN),
    ("long_context_or_collapse", NO_STEP_TIME, NOT_KNOWN),
    ("long_context_or_collapse", {"position_acceptance": (0.4, 0.1)}, NOT_KNOWN),
    ("long_context_or_collapse", {"other_answers_degraded": True}, "dead_drafter"),
    ("dead_drafter_with_cached_prefix", A_SAME, NOT_KNOWN),
    ("dead_drafter_with_cached_prefix", NO_STEP_TIME, NOT_KNOWN),
    (
        "dead_drafter_with_cached_prefix",
        {"position_acceptance": (0.4, 0.1), "expected_first_position_acceptance": 0.95},
        NOT_KNOWN,
    ),
    ("dead_drafter_with_cached_prefix", {"expected_first_position_acceptance": 0.25}, NOT_KNOWN),
    ("dead_drafter", A_SAME, NOT_KNOWN),
    ("dead_drafter", NO_STEP_TIME, NOT_KNOWN),
    ("dead_drafter", {"expected_first_position_acceptance": 0.25}, NOT_KNOWN),
    ("collapsed_in_part", A_SAME, NOT_KNOWN),
    ("collapsed_in_part", T_UP, NOT_KNOWN),
    ("collapsed_in_part", {"expected_first_position_acceptance": 0.5}, NOT_KNOWN),
    ("later_positions_dead", A_SAME, NOT_KNOWN),
    ("later_positions_dead", {"position_acceptance": (0.4, 0.01)}, NOT_KNOWN),
    ("drift", A_SAME, NOT_KNOWN),
    ("drift", T_UP, NOT_KNOWN),
    ("drift", {"position_acceptance": (0.45, 0.2)}, NOT_KNOWN),
    ("drift", {"content_differs": True}, "content_by_shape"),
    ("neighbour_on_the_gpu", T_SAME, NOT_KNOWN),
    ("neighbour_on_the_gpu", A_DOWN, NOT_KNOWN),
    ("neighbour_on_the_gpu", {"sibling_busy": False}, "slow_steps"),
    ("long_context_steps", T_SAME, NOT_KNOWN),
    ("long_context_steps", A_DOWN, NOT_KNOWN),
    ("long_context_steps", {"sibling_busy": True}, NOT_KNOWN),
    ("long_context_steps", {"in_flight": 8}, NOT_KNOWN),
    ("busier_than_known", T_SAME, NOT_KNOWN),
    ("busier_than_known", A_DOWN, NOT_KNOWN),
    ("busier_than_known", LONG, NOT_KNOWN),
    ("cold_engine", T_SAME, NOT_KNOWN),
    ("cold_engine", A_DOWN, NOT_KNOWN),
    ("slow_steps", A_DOWN, NOT_KNOWN),
    ("slow_steps", {**LONG, "in_flight": 8}, NOT_KNOWN),
    ("slow_steps", {**LONG, "sibling_busy": True}, NOT_KNOWN),
    ("long_context_acceptance", A_SAME, NOT_KNOWN),
    ("long_context_acceptance", T_UP, NOT_KNOWN),
    ("long_context_acceptance", {"prompt_tokens": 100}, "content_by_shape"),
    ("long_context_acceptance", {"content_differs": True}, NOT_KNOWN),
    ("content_by_shape", A_SAME, NOT_KNOWN),
    ("content_by_shape", T_UP, NOT_KNOWN),
    ("content_by_shape", {**LONG, "content_differs": True}, NOT_KNOWN),
    (
        "content_by_shape",
        {"position_acceptance": (0.6, 0.52, 0.4), "expected_first_position_acceptance": 0.65},
        NOT_KNOWN,
    ),
    ("content_by_class", A_SAME, NOT_KNOWN),
    ("content_by_class", T_UP, NOT_KNOWN),
    ("content_by_class", LONG, NOT_KNOWN),
    ("content_by_class", {"content_differs": False}, NOT_KNOWN),
]
"""(row, change to its hit, what is diagnosed instead): each breaks one condition more than ``ROWS`` does."""


MAY_BE_UNKNOWN = {
    "client_reads_slowly": {"acceptance_log_ratio"},
    "loop": {"step_log_ratio"},
    "first_token_waits": {"acceptance_log_ratio", "step_log_ratio"},
    "long_prefill": {"load_ratio"},
    "busy_before_the_first_token": {"prompt_ratio"},
    "no_drafts": {"completion_tokens"},
    "context_beyond_the_drafter": {"content_differs"},
    "long_context_or_collapse": {"other_answers_degraded"},
    "dead_drafter_with_cached_prefix": {"first_position_share"},
    "dead_drafter": {"first_position_share"},
    "collapsed_in_part": {"step_log_ratio", "first_position_share"},
    "neighbour_on_the_gpu": {"prompt_ratio"},
    "long_context_steps": {"sibling_busy", "load_ratio"},
    "busier_than_known": {"prompt_ratio"},
    "slow_steps": {"prompt_ratio"},
    "long_context_acceptance": {"content_differs"},
    "content_by_shape": {"step_log_ratio", "prompt_ratio", "second_position_excess"},
    "content_by_class": {"step_log_ratio", "prompt_ratio"},
}
"""Numbers that only exclude another explanation: a row hits without them, and without no other one that it reads."""


def findings(*changes):
    fields = dict(HEALTHY)
    for change in changes:
        fields |= change
    return Findings(**fields)
