"""The page of a report: one HTML file without script and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from detector.advice import Advice, Level
from detector.judgement import JudgedEpisode
from detector.levels import MAX_DEPTH
from replay.report import words
from replay.report.charts import Chart, draw
from replay.report.findings import BackendFindings, Figures, Findings
from replay.report.markup import Content, Markup, element, short
from replay.tune_command import conclusions, figure

MAX_BACKENDS: Final = 8
"""Backends that are drawn, those with most answers first."""
MAX_NOTES: Final = 50

STYLE: Final = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"

CHARTS: Final = ("Decode rate", "Acceptance length", "Step time")


def page(found: Findings, version: str) -> str:
    """The whole file. The same findings give the same text."""
    title = f"Speculative decoding: {short(found.file_name)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Markup(f"<style>{STYLE}</style>"),
    )
    body = element(
        "body",
        element("h1", title),
        element(
            "p",
            f"SHA-256 {found.sha256}; specbreaker {version}. No text of a prompt or an answer is in here.",
            class_="soft",
        ),
        element("dl", [[element("dt", name), element("dd", said)] for name, said in words.summary(found)]),
        _charts(found),
        _episodes(found),
        _positions(found),
        _cost_model(found),
        _environment(found),
        _reproduce(found),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


# ---- parts -----------------------------------------------------------------------------------------------------------


def _charts(found: Findings) -> Content:
    legend = (
        "Each answer in the order of the recording, by request number; the dashed line is healthy. Shaded: transition "
        "and recovering lightly, collapsed (square points) darker. Numbered lines: where an episode began."
    )
    parts: list[Content] = [element("h2", "Course"), element("p", legend, class_="soft")]
    numbered = list(enumerate(found.judgement.episodes, start=1))
    for one in found.backends[:MAX_BACKENDS]:
        if len(found.backends) > 1:
            parts.append(element("h3", f"Backend {short(one.name)}"))
        parts.append(_charts_of(one, [(number, its) for number, its in numbered if its.backend == one.name]))
    if len(found.backends) > MAX_BACKENDS:
        parts.append(element("p", f"{len(found.backends) - MAX_BACKENDS} more backends are not drawn."))
    return parts


def _charts_of(one: BackendFindings, episodes: Sequence[tuple[int, JudgedEpisode]]) -> Content:
    healthy = one.healthy
    step = None if healthy.step_seconds is None else healthy.step_seconds * 1e3
    charts = (
        Chart(CHARTS[0], "tok/s", lambda its: its.observation.decode_tokens_per_second, healthy.tokens_per_second),
        Chart(CHARTS[1], "tokens a step", lambda its: its.observation.acceptance_length, healthy.acceptance_length),
        Chart(CHARTS[2], "ms", lambda its: _scaled(its.observation.step_seconds, 1e3), step),
    )
    drawn = [(chart.title, draw(chart, one.answers, episodes)) for chart in charts]
    missing = [title.lower() for title, svg in drawn if svg is None]
    note = element("p", f"Not known: {', '.join(missing)}.", class_="soft") if missing else None
    return [[svg for _, svg in drawn if svg is not None], note]


def _episodes(found: Findings) -> Content:
    episodes = found.judgement.episodes
    if not episodes:
        return None
    several = len(found.backends) > 1
    head = [
        "#",
        *(["backend"] if several else []),
        "onset",
        "seen",
        "end",
        "cause",
        "A",
        "step ms",
        "tokens lost",
        "tok/s",
    ]
    rows = [_episode_row(number, one, several) for number, one in enumerate(episodes, start=1)]
    caption = "Requests count from 0; 5+12 is verify step 12 of request 5. The end is the first healthy request."
    return [element("h2", "Episodes"), _table(head, rows, caption, text={"backend", "cause"})]


def _episode_row(number: int, one: JudgedEpisode, several: bool) -> list[str]:
    its = one.episode
    rate = None if not its.acceptance_length or not its.step_seconds else its.acceptance_length / its.step_seconds
    return [
        str(number),
        *([short(one.backend)] if several else []),
        _place(its.onset_request, its.onset_step),
        _place(its.detected_request, its.detected_step),
        "lasts" if its.end_request is None else str(its.end_request),
        str(its.cause),
        _shown(its.acceptance_length, 2),
        _shown(_scaled(its.step_seconds, 1e3), 2),
        _shown(its.tokens_lost, 0),
        _shown(rate, 1),
    ]


def _positions(found: Findings) -> Content:
    shown = [
        one
        for one in found.backends[:MAX_BACKENDS]
        if one.healthy.position_acceptance or one.collapsed.position_acceptance
    ]
    if not shown:
        return None
    parts: list[Content] = [
        element("h2", "Acceptance by draft position"),
        element(
            "p",
            "Share of verify steps in which the draft token at this position was accepted. The first one is the health "
            "of the drafter: healthy engines have 0.6 and more, failed drafters less than 0.1.",
            class_="soft",
        ),
    ]
    for one in shown:
        if len(found.backends) > 1:
            parts.append(element("h3", f"Backend {short(one.name)}"))
        longest = max(len(one.healthy.position_acceptance), len(one.collapsed.position_acceptance))
        depth = min(longest, MAX_DEPTH)
        rows = [
            [name, *(_position(known, position) for position in range(depth)), f"{known.position_steps:,}"]
            for name, known in (("healthy", one.healthy), ("in episodes", one.collapsed))
            if known.position_acceptance
        ]
        parts.append(_table(["", *(str(position) for position in range(depth)), "steps"], rows, None, text={""}))
    return parts


def _position(known: Figures, position: int) -> str:
    its = known.position_acceptance
    return f"{its[position]:.2f}" if position < len(its) else "-"


def _cost_model(found: Findings) -> Content:
    advice = found.advice
    if advice is None:
        text = "Not possible: K is not known, or fewer than three healthy answers are usable."
        return [element("h2", "Which num_speculative_tokens"), element("p", text, class_="soft")]
    caption = "By the cost model: tok/s = A / T, of one stream. Intervals of 95 %; wider where a step time is assumed."
    head = ["K", "A", "step ms", "expected tok/s", "measured tok/s", "break-even A", "step time is"]
    rows = [_level_row(level) for level in advice.levels]
    chosen = [level.num_speculative_tokens == advice.num_speculative_tokens for level in advice.levels]
    said = [_conclusion(line) for line in conclusions(advice, found.speculative_config)]
    table = _table(head, rows, caption, text={"step time is"}, chosen=chosen) if rows else None
    return [element("h2", "Which num_speculative_tokens"), said, table, _break_even(advice)]


def _conclusion(line: str) -> Markup:
    sentence = f"{line[0].upper()}{line[1:]}"
    said, mark, argument = sentence.partition("--speculative-config '")
    if not mark:
        return element("p", sentence)
    return element("p", said, element("code", mark + argument))


def _break_even(advice: Advice) -> Markup | None:
    if any(level.break_even_acceptance_length is not None for level in advice.levels):
        return None
    return element("p", "The break-even needs a recording without speculation (K=0) beside this one.", class_="soft")


def _level_row(level: Level) -> list[str]:
    measured, beyond = level.measured_tokens_per_second, level.extrapolated_positions
    return [
        str(level.num_speculative_tokens),
        f"{level.acceptance_length.expected:.2f}",
        f"{level.step_seconds.expected * 1e3:.2f}",
        figure(level.tokens_per_second),
        "-" if measured is None else f"{figure(measured)}, {level.measured_answers} answers",
        _shown(level.break_even_acceptance_length, 2),
        level.basis + (f", and {beyond} positions" if beyond else ""),
    ]


def _environment(found: Findings) -> Content:
    rows = [[element("dt", short(name)), element("dd", short(value))] for name, value in found.environment]
    happened = ", ".join(f"{short(kind)} {count}" for kind, count in found.happened[:20])
    notes = [short(note) for note in found.notes[:MAX_NOTES]]
    return [
        element("h2", "Environment"),
        element("dl", rows, [element("dt", "events noted"), element("dd", happened)] if happened else None),
        element("ul", [element("li", note) for note in notes]) if notes else None,
    ]


def _reproduce(found: Findings) -> Content:
    steps = [
        [element("div", what), element("pre", element("code", command))] for what, command in words.commands(found)
    ]
    return [element("h2", "See it again"), steps]


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None,
    *,
    text: set[str],
    chosen: Sequence[bool] = (),
) -> Markup:
    """A table; the columns named in ``text`` are aligned as words, the rows marked in ``chosen`` stand out."""
    classes = ["text" if name in text else None for name in head]
    titles = [element("th", name, class_=its, scope="col") for name, its in zip(head, classes, strict=True)]
    lines = [
        element(
            "tr",
            [element("td", cell, class_=its) for cell, its in zip(row, classes, strict=True)],
            class_="chosen" if number < len(chosen) and chosen[number] else None,
        )
        for number, row in enumerate(rows)
    ]
    table = element("table", element("thead", element("tr", titles)), element("tbody", lines))
    # Beside the table and not in it: a caption would scroll away with a wide one.
    return Markup(_soft(caption) + element("div", table, class_="scroll"))


def _soft(text: str | None) -> Markup:
    """A paragraph that explains."""
    return Markup("") if text is None else element("p", text, class_="soft")


def _place(request: int, step: int | None) -> str:
    return str(request) if step is None else f"{request}+{step}"


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _shown(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"
