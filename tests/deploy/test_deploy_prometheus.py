"""Alerts and recording rules: complete, on metrics that exist, explained, and each shown to fire and not to fire."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from deployed import DEPLOY, ROOT, document, installed, known_metrics, selectors
from upstreams import answering, proxy_to
from yarl import URL

from proxy.config import Config
from replay.emulator import Emulator, serving

PROMETHEUS = DEPLOY / "prometheus"
RUNBOOKS = ROOT / "docs/runbooks"
RULE_FILES = sorted(PROMETHEUS.glob("*.rules.yaml"))
RULES: list[dict[str, Any]] = [
    rule for file in RULE_FILES for group in document(file)["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
NAMES = sorted({rule["alert"] for rule in ALERTS})
WANTED = {
    *("SpecbreakerDown", "BackendCollapsed", "DegradationCycle", "FallbackActiveLong", "RestartLoop"),
    *("RestartBudgetExhausted", "DetectorBlind", "RecorderDropping", "ConfigReloadFailed", "EngineDiedMidStream"),
}


def test_the_alerts_of_the_contract_are_there() -> None:
    assert set(NAMES) >= WANTED


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_what_how_bad_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["summary"].endswith(".")
    assert "{{" not in notes["summary"], "a summary is the same for all alerts of a kind"
    assert "$labels." in notes["description"]
    assert notes["runbook_url"] == f"http://{Config().server.admin}/runbooks/{rule['alert']}"


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_has_a_runbook_with_its_severities(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\nSeverity: ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    said = text.splitlines()[2]
    assert all(rule["labels"]["severity"] in said for rule in ALERTS if rule["alert"] == name)
    assert f"[{name}]({name}.md)" in (RUNBOOKS / "README.md").read_text(encoding="utf-8")


async def test_the_link_of_each_alert_leads_to_its_runbook() -> None:
    async with proxy_to(answering([])) as proxy, aiohttp.ClientSession() as http:
        for rule in ALERTS:
            path = rule["annotations"]["runbook_url"].removeprefix(f"http://{Config().server.admin}")
            async with http.get(proxy.admin_url + path) as answer:
                assert answer.status == 200
                assert (await answer.text()).startswith(f"# {rule['alert']}\n")
        async with http.get(f"{proxy.admin_url}/runbooks/") as answer:
            assert (await answer.text()).split() == [f"/runbooks/{name}" for name in NAMES]
        for path in ("/runbooks/README", "/runbooks/Unknown", "/runbooks/..%2F..%2FREADME"):
            async with http.get(URL(proxy.admin_url + path, encoded=True)) as answer:
                assert answer.status == 404


def test_a_runbook_has_an_alert() -> None:
    assert sorted(file.stem for file in RUNBOOKS.glob("[A-Z]*.md") if file.stem != "README") == NAMES


def test_rules_read_only_metrics_and_labels_that_exist() -> None:
    known = known_metrics()
    read = [one for rule in RULES for one in selectors(rule["expr"]) if one[0].startswith("specbreaker_")]
    assert len(read) > 10
    for name, labels in read:
        assert name in known, name
        assert labels <= {*known[name], "job", "instance"}, name


async def test_rules_for_vllm_read_only_what_an_engine_exports() -> None:
    async with (
        serving(Emulator("healthy", time_scale=0)) as url,
        aiohttp.ClientSession() as http,
        http.get(f"{url}/metrics") as answer,
    ):
        exported = set(re.findall(r"^(vllm:\w+)", await answer.text(), re.MULTILINE))
    read = {name for rule in RULES for name, _ in selectors(rule["expr"]) if name.startswith("vllm:")}
    assert read
    assert read <= exported


def test_recorded_names_say_level_metric_and_operation_and_are_read_as_recorded() -> None:
    assert all(re.fullmatch(r"[a-z]+:\w+:\w+", name) for name in RECORDED)
    for rule in RULES:
        for name in re.findall(r"\b(?:backend|instance|model):\w+:\w+", rule["expr"]):
            assert name in RECORDED


def test_each_alert_is_shown_to_fire_and_not_to_fire() -> None:
    cases = [
        (check["alertname"], bool(check["exp_alerts"]))
        for file in PROMETHEUS.glob("tests/*.test.yaml")
        for test in document(file)["tests"]
        for check in test.get("alert_rule_test", ())
    ]
    for name in NAMES:
        assert (name, True) in cases, f"{name}: no case fires it"
        assert (name, False) in cases, f"{name}: no case leaves it silent"


def test_each_severity_of_each_alert_is_shown_to_fire() -> None:
    fired = {
        (check["alertname"], alert["exp_labels"]["severity"])
        for file in PROMETHEUS.glob("tests/*.test.yaml")
        for test in document(file)["tests"]
        for check in test.get("alert_rule_test", ())
        for alert in check["exp_alerts"]
    }
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS}


def test_each_recording_is_shown_to_be_right() -> None:
    tests = document(PROMETHEUS / "tests/recordings.test.yaml")["tests"]
    right = {check["expr"] for test in tests for check in test["promql_expr_test"] if check["exp_samples"]}
    assert right == RECORDED


# ---- with the real programs ------------------------------------------------------------------------------------------


def run(*command: str | Path, directory: Path = PROMETHEUS) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.operations
def test_promtool_finds_nothing_wrong() -> None:
    promtool = installed("promtool")
    run(promtool, "check", "rules", "--lint=all", *RULE_FILES)
    run(promtool, "check", "config", "prometheus.yaml")
    said = run(promtool, "test", "rules", *sorted(PROMETHEUS.glob("tests/*.test.yaml")))
    assert said.count("SUCCESS") == 3


@pytest.mark.operations
def test_amtool_accepts_the_configuration() -> None:
    run(installed("amtool"), "check-config", "alertmanager.yaml")
