"""The dashboard is what its program writes, and asks for series that exist."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deployed import DEPLOY, document, installed, known_metrics, selectors

GRAFANA = DEPLOY / "grafana"
BUILD = runpy.run_path(str(GRAFANA / "build.py"))
DASHBOARD: dict[str, Any] = BUILD["dashboard"]()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_file_is_what_the_program_writes() -> None:
    written = (GRAFANA / "dashboard.json").read_text(encoding="utf-8")
    assert written == BUILD["text"](), "run python deploy/grafana/build.py"


def test_every_expression_reads_metrics_and_labels_that_exist() -> None:
    known = known_metrics()
    for panel in PANELS:
        for target in panel["targets"]:
            read = selectors(target["expr"])
            assert read, panel["title"]
            for name, labels in read:
                assert name in known, f"{panel['title']}: {name}"
                assert labels <= {*known[name], "job", "instance"}, f"{panel['title']}: {name}"
            grouped = set(re.findall(r"\w+", ",".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            assert grouped <= {"job", "instance", "le", *itertools.chain(*(known[name] for name, _ in read))}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped, panel["title"]


@pytest.mark.operations
def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__(rate_)?interval", "1m", expression)}
        for number, expression in enumerate(expressions)
    ]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [installed("promtool"), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_are_numbered_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert numbers == list(range(1, len(numbers) + 1))
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        taken = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        cells |= taken


def test_rates_are_tokens_over_time() -> None:
    [decode] = [panel for panel in PANELS if panel["title"] == "Decode rate"]
    [target] = decode["targets"]
    assert re.match(r"sum by \(backend\) \(rate\(specbreaker_decode_tokens_total\{", target["expr"])
    assert "/ (sum by (backend) (rate(specbreaker_decode_seconds_total{" in target["expr"]


def test_the_provisioning_leads_to_the_dashboard_and_to_prometheus() -> None:
    [source] = document(GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus"
    [provider] = document(GRAFANA / "provisioning/dashboards/specbreaker.yaml")["providers"]
    compose = document(DEPLOY / "compose/compose.yaml")
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/specbreaker.json" in mounts
