"""What a report says in sentences."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Final

from detector.judgement import JudgedEpisode
from detector.stats.cause_table import Remedy
from detector.stats.cycle import CycleVerdict
from detector.verdict import Cause
from replay.report.findings import Figures, Findings

CAUSES: Final = {
    Cause.ACCEPTANCE_COLLAPSE: "the drafter's tokens are no longer accepted",
    Cause.SPECULATION_OFF: "speculation is off: every step gives one token",
    Cause.STEP_INFLATION: "each verify step takes longer, while acceptance is as usual",
    Cause.QUEUEING: "requests wait for one another in the engine",
    Cause.LONG_CONTEXT: "the context is longer than usual",
    Cause.CONTENT: "the content is hard to draft; the engine is healthy",
    Cause.DEGENERATE_OUTPUT: "the engine repeats itself or writes nothing",
    Cause.ARTEFACT: "the measurement misleads, not the engine",
    Cause.UNKNOWN: "no known signature fits",
}
REMEDIES: Final = {
    Remedy.ROUTE_AWAY: "give new requests to another backend",
    Remedy.LOWER_NUM_SPECULATIVE_TOKENS: "start the engine with a smaller num_speculative_tokens",
    Remedy.SPECULATION_OFF: "start the engine without speculation",
    Remedy.RESTART: "start the engine anew",
    Remedy.RESET_PREFIX_CACHE: "reset the prefix cache",
    Remedy.WAIT: "wait: it passes by itself",
    Remedy.REDUCE_CONCURRENCY: "send fewer requests at a time",
    Remedy.FIX_CONFIGURATION: "change the launch command; a restart does not help",
}
CLOCKS: Final = {
    "requests": "requests",
    "tokens": "generated tokens",
    "steps": "verify steps",
    "kv_blocks": "KV blocks",
    "seconds": "seconds",
}


def summary(found: Findings) -> list[tuple[str, str]]:
    """The page's first lines: a heading and a sentence each."""
    return [
        ("Traffic", _traffic(found)),
        ("Healthy", _healthy(found)),
        ("Collapse", _collapse(found)),
        ("Lost", _lost(found)),
        ("Cycle", cycle(found.judgement.cycle)),
        ("Cause", _cause(found.judgement.episodes)),
        ("Remedy", _remedy(found.judgement.episodes)),
    ]


def _traffic(found: Findings) -> str:
    requests, backends = found.judgement.requests, len(found.backends)
    canaries = len(found.judgement.answers) - requests
    of = f"of {backends} backends" if backends > 1 else "of one backend"
    also = f" and {canaries} canaries" if canaries else ""
    rate = found.tokens_per_second
    speed = "No rate is known." if rate is None else f"{rate:.1f} tok/s: tokens by time, not a mean of rates."
    return f"{_many(requests, 'request')}{also} {of}. {speed}"


def _healthy(found: Findings) -> str:
    if not found.backends:
        return "The recording holds no answer."
    return " ".join(_of_backend(one.name, one.healthy, found) for one in found.backends[:3])


def _of_backend(name: str, known: Figures, found: Findings) -> str:
    who = f"{name}: " if len(found.backends) > 1 else ""
    if not known.answers:
        return f"{who}no answer was healthy."
    return f"{who}{figures(known)} over {_many(known.answers, 'answer')}."


def _collapse(found: Findings) -> str:
    episodes = found.judgement.episodes
    if not episodes:
        budget = f"{found.mean_requests_between_false_alarms:g}"
        return (
            f"None was found. The alarm is set to at most one false one in {budget} requests; short ones may be missed."
        )
    lasting = " The last one lasts to the end of the recording." if episodes[-1].episode.end_request is None else ""
    parts = [
        f"{one.name}: {figures(one.collapsed)}" if len(found.backends) > 1 else figures(one.collapsed)
        for one in found.backends
        if one.collapsed.answers
    ]
    during = f" Meanwhile {'; '.join(parts[:3])}." if parts else ""
    return f"{_many(len(episodes), 'episode')}.{during}{lasting}"


def _lost(found: Findings) -> str:
    if not found.judgement.episodes:
        return "Nothing."
    lost = found.tokens_lost
    if lost is None:
        return "Not known: lengths or times of the answers are missing."
    healthy = next((one.healthy.tokens_per_second for one in found.backends if one.collapsed.answers), None)
    text = f"{lost:,.0f} tokens that the healthy rate would have given in the same time"
    if healthy and found.decode_seconds:
        seconds = lost / healthy
        text += f": {seconds:,.1f} s of {found.decode_seconds:,.1f} s of decoding"
    return f"{text}."


def cycle(verdict: CycleVerdict) -> str:
    """Whether there is a cycle, with which period, on which clock, and how sure that is."""
    evidence = (
        f"e-value {verdict.e_value:.3g} from {_many(verdict.runs, 'healthy run')}: a backend without a cycle gets to "
        f"{max(verdict.e_value, 1):.3g} with a probability of at most {min(1.0, 1 / max(verdict.e_value, 1)):.2g}"
    )
    if verdict.verdict == "not_cyclic":
        return f"No: the collapses come no more regularly than chance has them ({_many(verdict.runs, 'healthy run')})."
    if verdict.verdict == "undetermined":
        return f"Undetermined: {evidence}. More collapses decide."
    if verdict.period is not None and verdict.clock is not None:
        return f"Yes, every {_period(verdict)} {CLOCKS[verdict.clock]} from onset to onset; {evidence}."
    if verdict.period is not None:
        return f"Yes, every {_period(verdict)} from onset to onset; {evidence}. Its clock cannot be told."
    clocks = ", ".join(
        f"{period.estimate:.4g} {CLOCKS[clock]} ({period.low:.4g}-{period.high:.4g})"
        for clock, period in verdict.periods.items()
    )
    return f"Yes; {evidence}. Its clock cannot be told: from onset to onset, {clocks or 'no period is known'}."


def _period(verdict: CycleVerdict) -> str:
    period = verdict.period
    return "" if period is None else f"{period.estimate:.4g} ({period.low:.4g}-{period.high:.4g})"


def _cause(episodes: list[JudgedEpisode]) -> str:
    if not episodes:
        return "None."
    counts = Counter(one.episode.cause for one in episodes)
    parts = []
    for cause, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        often = "" if len(counts) == 1 else f" ({_many(count, 'episode')})"
        parts.append(f"{cause}{often}: {CAUSES[cause]}.")
    why = next((one.why for one in reversed(episodes) if one.why), "")
    return " ".join([*parts, *([f"Last diagnosis: {why}"] if why else [])])


def _remedy(episodes: list[JudgedEpisode]) -> str:
    if not episodes:
        return "None needed."
    given = list(dict.fromkeys(remedy for one in reversed(episodes) for remedy in one.remedies))
    known = [REMEDIES[Remedy(remedy)] for remedy in given if remedy in set(Remedy)]
    if not known:
        return "None is known for this cause; docs/detection-cause.md has the table."
    text = "; ".join(known)
    return f"{text[0].upper()}{text[1:]}."


def figures(known: Figures) -> str:
    """Figures in one line."""
    parts = [
        None if known.tokens_per_second is None else f"{known.tokens_per_second:.1f} tok/s",
        None if known.acceptance_length is None else f"acceptance length {known.acceptance_length:.2f}",
        None if known.step_seconds is None else f"step {known.step_seconds * 1e3:.2f} ms",
    ]
    return ", ".join(part for part in parts if part) or "nothing known"


def commands(found: Findings) -> list[tuple[str, str]]:
    """How to see it again: what a command does, and the command."""
    file = shlex.quote(f"./{found.file_name}" if found.file_name.startswith("-") else found.file_name)
    steps = [("These findings as text", f"specbreaker detect {file}")]
    if found.advice is not None:
        steps.append(("The cost model of K", f"specbreaker tune {file}"))
    session = file
    if found.kind == "csv":
        return steps
    if found.kind == "chunk_log":
        session = "session.jsonl"
        steps.append(("As a session", f"specbreaker replay convert {file} --to session -o {session}"))
    return [
        *steps,
        (
            "The same requests to your engine (prompts are made up where their text was not recorded)",
            f"specbreaker replay run {session} --target http://127.0.0.1:8000 -o replayed",
        ),
        ("Whether the cycle is there, too", f"specbreaker replay compare {session} replayed"),
    ]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
