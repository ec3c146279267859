"""Writes dashboard.json: ``python deploy/grafana/build.py``. The file is checked in, and a test builds it again.

Plain dictionaries: Grafana's schema needs a dozen keys of the hundreds it has, and a library would bring them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

OUTPUT: Final = Path(__file__).with_name("dashboard.json")
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
FILTER: Final = 'job=~"$job", instance=~"$instance"'
HEIGHT: Final = 8
COLUMNS: Final = 24
PHASE_COLOURS: Final = {"healthy": "green", "transition": "yellow", "collapsed": "red", "recovering": "blue"}

Panel = dict[str, Any]
Query = tuple[str, str]
"""Expression and legend."""


def rate(metric: str, by: str, window: str = "$__rate_interval", where: str = "") -> str:
    """Sum over a counter's rates."""
    matchers = f"{FILTER}, {where}" if where else FILTER
    return f"sum by ({by}) (rate(specbreaker_{metric}{{{matchers}}}[{window}]))"


def ratio(over: str, under: str, by: str, window: str = "$__rate_interval") -> str:
    """Quotient of two counters' rates: never a mean of quotients."""
    return f"{rate(over, by, window)} / ({rate(under, by, window)} > 0)"


def quantile(share: float, metric: str) -> str:
    """A quantile of a histogram, by backend."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', 'le, backend')})"


def gauge(metric: str, by: str, where: str = "") -> str:
    """Largest value of a gauge."""
    matchers = f"{FILTER}, {where}" if where else FILTER
    return f"max by ({by}) (specbreaker_{metric}{{{matchers}}})"


def panel(kind: str, title: str, text: str, unit: str, *queries: Query, width: int = 8, **options: Any) -> Panel:
    """One panel; ``options`` are those of its kind."""
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
        for index, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0} | options.pop("defaults", {}), "overrides": []},
        "options": options,
        "gridPos": {"w": width, "h": HEIGHT},
    }


def series(title: str, text: str, unit: str, *queries: Query, width: int = 8) -> Panel:
    """A panel of lines over time."""
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    return panel("timeseries", title, text, unit, *queries, width=width, legend=legend, tooltip={"mode": "multi"})


def phases() -> Panel:
    """Coloured bars: which phase each backend is in."""
    numbered = []
    for number, phase in enumerate(PHASE_COLOURS, start=1):
        active = gauge("backend_phase", "instance, backend", f'phase="{phase}"')
        numbered.append(f"{number} * ({active} == 1)")
    expression = " or ".join(numbered)
    values = {
        str(index + 1): {"text": phase, "color": colour, "index": index}
        for index, (phase, colour) in enumerate(PHASE_COLOURS.items())
    }
    return panel(
        "state-timeline",
        "Phase",
        "What the detector says of each backend.",
        "none",
        (expression, "{{instance}} {{backend}}"),
        width=16,
        showValue="never",
        mergeValues=True,
        defaults={"mappings": [{"type": "value", "options": values}]},
    )


def sections() -> list[tuple[str, list[Panel]]]:
    """Titles of the rows and their panels."""
    return [
        (
            "State",
            [
                phases(),
                series(
                    "Fallback serves",
                    "1 while new requests go to this fallback.",
                    "none",
                    (gauge("fallback_serving", "instance, backend"), "{{instance}} {{backend}}"),
                ),
            ],
        ),
        ("Speed", _speed()),
        ("Collapses", _collapses()),
        ("Traffic", _traffic()),
        ("specbreaker itself", _itself()),
    ]


def _speed() -> list[Panel]:
    decode = ratio("decode_tokens_total", "decode_seconds_total", "backend")
    length = ratio("generated_tokens_total", "verify_steps_total", "backend")
    return [
        series("Decode rate", "Tokens / time over all answers.", "suffix: tok/s", (decode, "{{backend}}")),
        series("Acceptance length", "Tokens per verify step over all answers.", "none", (length, "{{backend}}")),
        series(
            "Step time",
            "Seconds per verify step: an engine can be slow at full acceptance.",
            "s",
            *((quantile(share, "step_seconds"), f"{{{{backend}}}} p{share * 100:.0f}") for share in (0.5, 0.9)),
        ),
        series(
            "Time to first token",
            "Of streams.",
            "s",
            *(
                (quantile(share, "time_to_first_token_seconds"), f"{{{{backend}}}} p{share * 100:.0f}")
                for share in (0.5, 0.99)
            ),
        ),
        series(
            "Decode rate of single answers",
            "The slowest tenth and the median.",
            "suffix: tok/s",
            *(
                (quantile(share, "decode_tokens_per_second"), f"{{{{backend}}}} p{share * 100:.0f}")
                for share in (0.1, 0.5)
            ),
        ),
        series(
            "Acceptance length of single answers",
            "The lowest tenth and the median. Content moves it by a factor of three on a healthy engine.",
            "none",
            *((quantile(share, "acceptance_length"), f"{{{{backend}}}} p{share * 100:.0f}") for share in (0.1, 0.5)),
        ),
    ]


def _collapses() -> list[Panel]:
    episodes = f"sum by (backend, cause) (increase(specbreaker_episodes_total{{{FILTER}}}[$__interval])) > 0"
    return [
        series("Episodes", "Collapses, by the cause named first.", "none", (episodes, "{{backend}} {{cause}}")),
        series(
            "Share of decode time in degraded phases",
            "",
            "percentunit",
            (ratio("collapse_seconds_total", "decode_seconds_total", "backend", "1h"), "{{backend}}, 1 h"),
        ),
        series(
            "Tokens lost",
            "What the healthy rate would have added.",
            "none",
            (rate("tokens_lost_total", "backend"), "{{backend}} per s"),
        ),
        series(
            "Cycle: e-value",
            "20 certifies a cycle.",
            "none",
            (gauge("cycle_evalue", "instance, backend"), "{{instance}} {{backend}}"),
        ),
        series(
            "Cycle: period",
            "On the clock of the legend.",
            "none",
            (gauge("cycle_period", "backend, clock"), "{{backend}} {{clock}}"),
        ),
        series(
            "Probability that the next request is slow",
            "",
            "percentunit",
            (gauge("next_degraded_probability", "instance, backend"), "{{instance}} {{backend}}"),
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        series(
            "Requests",
            "By how they ended.",
            "reqps",
            (rate("requests_total", "backend, result"), "{{backend}} {{result}}"),
        ),
        series(
            "Broken answers",
            "Begun with status 200 and broken off by the engine.",
            "reqps",
            (
                rate("requests_total", "backend, result", where='status="200", result=~"upstream_.+|engine_.+"'),
                "{{backend}} {{result}}",
            ),
        ),
        series("Refused", "Before any backend was chosen.", "reqps", (rate("refused_total", "status"), "{{status}}")),
        series(
            "Changes of route",
            "",
            "none",
            (rate("switches_total", "from, to, reason"), "{{from}} to {{to}}: {{reason}}"),
        ),
        series(
            "Canaries",
            "By how they ended.",
            "none",
            (rate("canaries_total", "backend, result"), "{{backend}} {{result}}"),
        ),
        series(
            "Restarts",
            "And how many more may be made now.",
            "none",
            (rate("restarts_total", "instance, result"), "{{instance}} {{result}}"),
            (gauge("restart_budget_remaining", "instance"), "{{instance}} remaining"),
        ),
    ]


def _itself() -> list[Panel]:
    unknown = rate("observations_total", "backend", where='source="none"')
    unmeasured = f"{unknown} / ({rate('observations_total', 'backend')} > 0)"
    return [
        series("Source of the acceptance length", "", "none", (rate("observations_total", "source"), "{{source}}")),
        series("Answers that tell no acceptance length", "", "percentunit", (unmeasured, "{{backend}}")),
        series(
            "Losses and failures",
            "All of these should stay 0.",
            "none",
            *(
                (rate(f"{name}_total", "instance"), f"{{{{instance}}}} {name}")
                for name in ("observations_dropped", "measuring_failures", "control_failures", "record_dropped")
            ),
        ),
    ]


def placed(rows: list[tuple[str, list[Panel]]]) -> list[Panel]:
    """All panels from left to right and top to bottom, with their numbers."""
    panels: list[Panel] = []
    top = 0
    for title, members in rows:
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1}})
        top, left = top + 1, 0
        for member in members:
            if left + member["gridPos"]["w"] > COLUMNS:
                top, left = top + HEIGHT, 0
            member["gridPos"] |= {"x": left, "y": top}
            left += member["gridPos"]["w"]
            panels.append(member)
        top += HEIGHT
    for number, member in enumerate(panels, start=1):
        member["id"] = number
    return panels


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A drop-down of label values."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    source = {"type": "datasource", "name": "source", "label": "Prometheus", "query": "prometheus"}
    job = variable("job", "Job", "label_values(specbreaker_build_info, job)")
    instance = variable("instance", "Instance", 'label_values(specbreaker_build_info{job=~"$job"}, instance)')
    return {
        "uid": "specbreaker",
        "title": "specbreaker",
        "description": "Speculative decoding, watched answer by answer.",
        "tags": ["specbreaker", "vllm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": [source, job, instance]},
        "panels": placed(sections()),
    }


def text() -> str:
    """What dashboard.json should be."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
