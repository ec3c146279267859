"""What a report shows, worked out of a recording: everything but words and drawings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from detector.advice import Advice, advise
from detector.judgement import JudgedAnswer, Judgement, judge
from detector.levels import MeasuredLevel
from detector.observation import Observation
from detector.summary import time_weighted_rate
from detector.watch import WatchConfig
from replay.readers import ObservationFile, read_observations
from replay.recorded import Recorded, read_recorded, session_files
from replay.tune import Scalar, by_depth, depths_of, measure, served_config

MAX_LISTED: Final = 8
"""Names of one kind that are listed: models, versions."""
_BLOCK_BYTES: Final = 1024 * 1024
_HEADER_KEYS: Final = ("engine", "gpu", "model", "drafter", "date")
"""Of a chunk log's header. Its command may hold a key and is not shown."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of many answers: tokens / time, tokens / steps, time / steps. None: not known."""

    answers: int
    tokens_per_second: float | None
    acceptance_length: float | None
    step_seconds: float | None
    decode_seconds: float | None
    position_acceptance: tuple[float, ...] = ()
    """p_i over all steps of answers that tell it."""
    position_steps: int = 0


class BackendFindings(msgspec.Struct, frozen=True, kw_only=True):
    """One backend: its answers in order, healthy and not."""

    name: str
    answers: list[JudgedAnswer]
    healthy: Figures
    collapsed: Figures


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the page says."""

    file_name: str
    sha256: str
    kind: str
    judgement: Judgement
    backends: list[BackendFindings]
    """The one with most answers first."""
    tokens_per_second: float | None
    """Of all clients' answers, tokens / time."""
    decode_seconds: float | None
    tokens_lost: float | None
    """Over all episodes; None: unknown for each of them."""
    advice: Advice | None
    """None: no K is known, or there are too few answers."""
    levels: list[MeasuredLevel]
    speculative_config: dict[str, Scalar]
    environment: list[tuple[str, str]]
    """What is known of the surroundings: name, value."""
    happened: list[tuple[str, int]]
    """What the proxy noted: kind of event, how often."""
    notes: list[str]
    mean_requests_between_false_alarms: float


def find(path: Path, series: str | None = None) -> Findings:
    """Work out what a file shows. Raises ReadError where ``detect`` does."""
    read = read_observations(path, series=series)
    config = WatchConfig()
    judgement = judge(read.observations, config, read.steps)
    recorded = read_recorded(path) if read.kind == "session" else None
    clients = [answer.observation for answer in judgement.answers if answer.request is not None]
    lost = [one.episode.tokens_lost for one in judgement.episodes if one.episode.tokens_lost is not None]
    levels, level_notes, advice = _cost_model(path, read, judgement)
    served = served_config(path, read)
    return Findings(
        file_name=path.resolve().name,
        sha256=_sha256(path),
        kind=read.kind,
        judgement=judgement,
        backends=_backends(judgement),
        tokens_per_second=time_weighted_rate(clients),
        decode_seconds=_decode_seconds(clients),
        tokens_lost=sum(lost) if lost else None,
        advice=advice,
        levels=levels,
        speculative_config=served,
        environment=_environment(path, read, recorded, judgement),
        happened=sorted(Counter(event.kind for event in recorded.events).items()) if recorded else [],
        notes=[*(note.replace(str(path), path.name) for note in read.notes), *level_notes],
        mean_requests_between_false_alarms=config.mean_requests_between_false_alarms,
    )


def _sha256(path: Path) -> str:
    """Of the file, or of the files of a session one after another, by name."""
    digest = hashlib.sha256()
    for part in session_files(path):
        with part.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _cost_model(
    path: Path, read: ObservationFile, judgement: Judgement
) -> tuple[list[MeasuredLevel], list[str], Advice | None]:
    outside = [answer for answer in judgement.answers if not judgement.in_episode(answer)]
    levels, notes = measure(by_depth(outside, depths_of(path, read)))
    if not levels:
        return [], notes, None
    advice = advise(levels, method=str(served_config(path, read).get("method", "dflash")))
    return levels, [*notes, *advice.notes], advice


def _backends(judgement: Judgement) -> list[BackendFindings]:
    by_name: dict[str, list[JudgedAnswer]] = {}
    for answer in judgement.answers:
        by_name.setdefault(answer.observation.backend, []).append(answer)
    found = []
    for name, answers in by_name.items():
        slow = [judgement.in_episode(answer) for answer in answers]
        pairs = list(zip(answers, slow, strict=True))
        found.append(
            BackendFindings(
                name=name,
                answers=answers,
                healthy=figures(answer.observation for answer, its in pairs if not its),
                collapsed=figures(answer.observation for answer, its in pairs if its),
            )
        )
    return sorted(found, key=lambda one: -len(one.answers))


def figures(observations: Iterable[Observation]) -> Figures:
    """Add answers up. Where no answer has a length, as in a list of rates, all count alike."""
    known = [one for one in observations if not one.ending.failed]
    timed = [(one, seconds) for one in known if (seconds := _seconds(one)) is not None]
    counted = [(one, seconds) for one, seconds in timed if one.acceptance_length]
    # By S = tok/s / A, so that the three figures agree.
    steps = [
        seconds * (one.decode_tokens_per_second or 0.0) / (one.acceptance_length or 1.0) for one, seconds in counted
    ]
    tokens = sum(seconds * (one.decode_tokens_per_second or 0.0) for one, seconds in counted)
    positions, position_steps = _positions(known)
    return Figures(
        answers=len(known),
        tokens_per_second=time_weighted_rate(known),
        acceptance_length=tokens / sum(steps) if sum(steps) else None,
        step_seconds=sum(seconds for _, seconds in counted) / sum(steps) if sum(steps) else None,
        decode_seconds=_decode_seconds(known),
        position_acceptance=positions,
        position_steps=position_steps,
    )


def _seconds(observation: Observation) -> float | None:
    """Decode time, 1 s where the answer's length is not known; None without a rate."""
    rate = observation.decode_tokens_per_second
    return (observation.rate_seconds or 1.0) if rate is not None and rate > 0 else None


def _decode_seconds(observations: Iterable[Observation]) -> float | None:
    known = [seconds for one in observations if (seconds := one.rate_seconds) is not None]
    return sum(known) if known else None


def _positions(observations: Iterable[Observation]) -> tuple[tuple[float, ...], int]:
    """p_i over all steps, and the number of steps."""
    told = [(one.position_acceptance, one.verify_steps) for one in observations]
    known = [(shares, steps) for shares, steps in told if shares and steps]
    steps_total = sum(steps for _, steps in known)
    longest = max((len(shares) for shares, _ in known), default=0)
    sums = [sum(shares[i] * steps for shares, steps in known if i < len(shares)) for i in range(longest)]
    return tuple(its / steps_total for its in sums), steps_total


# ---- surroundings ----------------------------------------------------------------------------------------------------


def _environment(
    path: Path, read: ObservationFile, recorded: Recorded | None, judgement: Judgement
) -> list[tuple[str, str]]:
    observations = [answer.observation for answer in judgement.answers]
    rows = [("recording", {"session": "session", "csv": "CSV of rates", "chunk_log": "chunk log"}[read.kind])]
    rows += _of_session(recorded) if recorded is not None else _of_chunk_log(path) if read.kind == "chunk_log" else []
    depths = sorted({one.num_speculative_tokens for one in observations if one.num_speculative_tokens is not None})
    rows += [
        ("num_speculative_tokens (K)", ", ".join(map(str, depths))),
        ("model asked for", _listed(one.facts.model for one in observations)),
        ("requests in flight", "" if read.kind == "csv" else _span([one.in_flight for one in observations])),
        ("prompt tokens", _span([one.prompt_tokens for one in observations])),
        ("answer tokens", _span([one.completion_tokens for one in observations])),
        ("launches of the engine", _launches(observations) if read.kind == "session" else ""),
        ("A comes from", _listed(one.acceptance_source for one in observations)),
        ("rates come from", _listed(one.rate_source for one in observations)),
    ]
    return [(name, value) for name, value in rows if value]


def _of_session(recorded: Recorded) -> list[tuple[str, str]]:
    header = recorded.header
    if header is None:
        return [("session", "its header is lost")]
    seen = {
        event.backend: str(event.fields.get("version")) for event in recorded.events if event.kind == "engine_version"
    }
    versions = [
        f"{one.name}: {one.engine_version or seen.get(one.name) or 'version not known'}"
        for one in header.backends[:MAX_LISTED]
    ]
    return [
        ("begun", _utc(header.started_unix)),
        ("recorded by", f"specbreaker {header.tool_version}"),
        ("format", header.format),
        ("engines", "; ".join(versions)),
    ]


def _utc(unix: float) -> str:
    """A moment for people; empty where it is none."""
    try:
        return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds") if unix > 0 else ""
    except (ValueError, OverflowError, OSError):
        return ""


def _of_chunk_log(path: Path) -> list[tuple[str, str]]:
    with path.open("rb") as file:
        header = msgspec.json.decode(file.readline(), type=dict[str, Any])
    return [(key, header[key]) for key in _HEADER_KEYS if isinstance(header.get(key), str)]


def _launches(observations: Sequence[Observation]) -> str:
    """Of the backend that was launched most often while it was recorded."""
    return str(max((one.generation for one in observations), default=0) + 1)


def _listed(names: Iterable[str | None]) -> str:
    """The names, the most frequent first."""
    counts = Counter(str(name) for name in names if name is not None)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    more = f" and {len(ordered) - MAX_LISTED} more" if len(ordered) > MAX_LISTED else ""
    return ", ".join(ordered[:MAX_LISTED]) + more


def _span(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return str(low) if low == high else f"{low} to {high}"
