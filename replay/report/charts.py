"""The charts of a report: SVG that needs no script, drawn by classes that the page's style colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from detector.judgement import JudgedAnswer, JudgedEpisode
from detector.verdict import Phase
from replay.report.markup import Markup, element

WIDTH: Final = 960
HEIGHT: Final = 200
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 36, 24
MAX_POINTS: Final = 480
"""More answers than this are drawn as bars from their least to their greatest, with the mean."""
MAX_TICKS: Final = 5
MAX_EPISODE_MARKS: Final = 64
"""More episodes than this get no line of their own; their phases are shaded."""


_SMALLEST, _LARGEST = 1e-6, 1e12
"""Values are drawn as if they were in this range, which holds all that an engine can do."""


class Point(NamedTuple):
    """One answer, or some in a row, in a chart."""

    left: float
    """In answers, from 0: where it begins."""
    right: float
    low: float
    middle: float
    high: float
    collapsed: bool


class Chart(NamedTuple):
    """What one chart shows."""

    title: str
    unit: str
    value: Callable[[JudgedAnswer], float | None]
    reference: float | None
    """Of the healthy answers; drawn as a line."""


class _Scale(NamedTuple):
    answers: int
    top: float
    """Value at the upper edge; the lower edge is 0."""

    def x(self, answer: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * answer / max(1, self.answers)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / self.top)


def draw(chart: Chart, answers: Sequence[JudgedAnswer], episodes: Sequence[tuple[int, JudgedEpisode]]) -> Markup | None:
    """One chart of one backend's answers in order, with its episodes by number; None where no value is known."""
    points = _points([(chart.value(answer), answer.phase is Phase.COLLAPSED) for answer in answers])
    if not points:
        return None
    ticks = _ticks(max(*(point.high for point in points), chart.reference or 0.0))
    scale = _Scale(len(answers), ticks[-1])
    lowest, highest = min(point.low for point in points), max(point.high for point in points)
    said = f"{chart.title}: {_short(lowest)} to {_short(highest)} {chart.unit} over {len(answers)} answers"
    return element(
        "svg",
        element("title", said),
        _bands(answers, scale),
        _grid(ticks, scale),
        _requests(answers, scale),
        element("text", f"{chart.title}, {chart.unit}", x=LEFT, y=12, class_="name"),
        _reference(chart.reference, scale),
        _marks(answers, episodes, scale),
        [_drawn(point, scale, chart.unit, answers) for point in points],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def _points(values: Sequence[tuple[float | None, bool]]) -> list[Point]:
    size = max(1, math.ceil(len(values) / MAX_POINTS))
    points = []
    for begin in range(0, len(values), size):
        part = values[begin : begin + size]
        known = [min(max(value, 0.0), _LARGEST) for value, _ in part if value is not None and math.isfinite(value)]
        if known:
            middle = sum(known) / len(known)
            collapsed = any(collapsed for _, collapsed in part)
            points.append(Point(begin, begin + len(part), min(known), middle, max(known), collapsed))
    return points


def _drawn(point: Point, scale: _Scale, unit: str, answers: Sequence[JudgedAnswer]) -> Markup:
    name = "point bad" if point.collapsed else "point"
    x, y = scale.x((point.left + point.right) / 2), scale.y(point.middle)
    if point.right - point.left > 1:
        told = f"answers {point.left:g} to {point.right - 1:g}: {_short(point.low)} to {_short(point.high)} {unit}"
        bar = element("line", x1=x, x2=x, y1=scale.y(point.high), y2=scale.y(point.low), class_="spread")
        return element("g", element("title", told), bar, element("circle", cx=x, cy=y, r=1.5, class_=name))
    answer = answers[int(point.left)]
    who = "canary" if answer.request is None else f"request {answer.request}"
    told = f"{who}: {_short(point.middle)} {unit}, {answer.phase}"
    if point.collapsed:  # another shape: colour alone must not tell
        shape = element("rect", x=x - 3, y=y - 3, width=6, height=6, class_=name)
    else:
        shape = element("circle", cx=x, cy=y, r=3, class_=name)
    return element("g", element("title", told), shape)


def _bands(answers: Sequence[JudgedAnswer], scale: _Scale) -> list[Markup]:
    """Phases other than healthy, shaded from the first answer to the last one of a row."""
    bands, begin = [], 0
    for index in range(1, len(answers) + 1):
        if index == len(answers) or answers[index].phase is not answers[begin].phase:
            phase = answers[begin].phase
            if phase is not Phase.HEALTHY:
                left, right = scale.x(begin), scale.x(index)
                size = {"width": right - left, "height": HEIGHT - TOP - BOTTOM}
                bands.append(element("rect", x=left, y=TOP, class_=f"band {phase}", **size))
            begin = index
    return bands


def _grid(ticks: Sequence[float], scale: _Scale) -> list[Markup]:
    lines = []
    for tick in ticks:
        y = scale.y(tick)
        lines.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        lines.append(element("text", _short(tick), x=LEFT - 6, y=y + 4, class_="tick y"))
    return lines


def _requests(answers: Sequence[JudgedAnswer], scale: _Scale) -> list[Markup]:
    """Numbers of requests under the chart."""
    step = max(1, math.ceil(len(answers) / 10))
    step = next(nice for nice in _nice_steps() if nice >= step)
    return [
        element("text", str(answer.request), x=scale.x(index + 0.5), y=HEIGHT - 8, class_="tick x")
        for index, answer in enumerate(answers)
        if answer.request is not None and index % step == 0
    ]


def _reference(reference: float | None, scale: _Scale) -> Markup | None:
    if reference is None or not 0 <= reference <= scale.top:
        return None
    y = scale.y(reference)
    return element(
        "g",
        element("title", f"healthy: {_short(reference)}"),
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="healthy"),
    )


def _marks(
    answers: Sequence[JudgedAnswer], episodes: Sequence[tuple[int, JudgedEpisode]], scale: _Scale
) -> list[Markup]:
    """A line where each episode began, inside its answer where the step is known."""
    if len(episodes) > MAX_EPISODE_MARKS:
        return []
    index_of = {answer.request: index for index, answer in enumerate(answers) if answer.request is not None}
    marks = []
    for number, one in episodes:
        index = index_of.get(one.episode.onset_request)
        if index is None:
            continue
        x = scale.x(index + _share(answers[index], one.episode.onset_step))
        told = f"episode {number}: {one.episode.cause}, seen at request {one.episode.detected_request}"
        marks.append(
            element(
                "g",
                element("title", told),
                element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="onset"),
                element("text", str(number), x=x, y=TOP - 4, class_="tick x"),
            )
        )
    return marks


def _share(answer: JudgedAnswer, step: int | None) -> float:
    """How far into its answer a verify step is, 0..1."""
    steps = answer.observation.verify_steps or len(answer.steps)
    return max(0.0, min(1.0, step / steps)) if step and steps else 0.0


def _ticks(highest: float) -> list[float]:
    """From 0 to at least the highest value, in round steps."""
    highest = min(max(highest, _SMALLEST), _LARGEST)
    exponent = math.floor(math.log10(highest / MAX_TICKS))
    step = next(nice * 10.0**exponent for nice in (1, 2, 5, 10, 20) if nice * 10.0**exponent * MAX_TICKS >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _nice_steps() -> list[int]:
    return [nice * 10**exponent for exponent in range(10) for nice in (1, 2, 5)]


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
