"""The Olares chart of the published rig: specbreaker stands between its clients and the engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, document, installed

from proxy.config import load

CHART = DEPLOY / "olares/specbreakergemma4dflash"
MANIFEST: dict[str, Any] = document(CHART / "OlaresManifest.yaml")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plain(name: str) -> list[dict[str, Any]]:
    """The documents of a template whose values are left out."""
    text = (CHART / "templates" / name).read_text(encoding="utf-8")
    return list(yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "value", text)))


def configuration(directory: Path, manifest: dict[str, Any]) -> Any:
    file = directory / "specbreaker.toml"
    file.write_text(manifest["data"]["specbreaker.toml"])
    return load(str(file), environment={}, flags={})


def test_the_configuration_can_be_used_and_changes_nothing(tmp_path: Path) -> None:
    config = configuration(tmp_path, plain("config.yaml")[0])
    assert config.policy.mode == "observe"
    [deployment] = plain("deployment.yaml")
    engine, ours = deployment["spec"]["template"]["spec"]["containers"]
    assert {"--host=127.0.0.1", "--port=8000"} <= set(engine["args"])
    assert config.backends[0].url == "http://127.0.0.1:8000"
    ports = {port["name"]: port["containerPort"] for port in ours["ports"]}
    assert (config.server.listen, config.server.admin) == (f"0.0.0.0:{ports['http']}", f"0.0.0.0:{ports['admin']}")
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > config.server.drain_seconds + config.server.drain_delay_seconds


def test_every_entrance_leads_to_specbreaker() -> None:
    services = {one["metadata"]["name"]: one["spec"]["ports"][0] for one in plain("services.yaml")}
    for entrance in MANIFEST["entrances"]:
        assert services[entrance["host"]]["port"] == entrance["port"]
    assert {port["targetPort"] for port in services.values()} == {"http", "admin"}
    [admin] = [one for one in MANIFEST["entrances"] if one["name"] == "admin"]
    assert admin["authLevel"] == "private"


def test_the_names_and_versions_agree() -> None:
    chart = document(CHART / "Chart.yaml")
    assert chart["name"] == MANIFEST["metadata"]["name"] == CHART.name
    assert chart["version"] == MANIFEST["metadata"]["version"] == MANIFEST["spec"]["versionName"]


@pytest.mark.operations
def test_the_chart_gives_valid_manifests(tmp_path: Path) -> None:
    run(installed("helm"), "lint", "--strict", CHART)
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(run(installed("helm"), "template", CHART.name, CHART))
    run(installed("kubernetes-validate"), "--strict", manifests)
    found = [one for one in yaml.safe_load_all(manifests.read_text()) if one]
    assert sorted(one["kind"] for one in found) == ["ConfigMap", "Deployment", "Service", "Service"]
    assert configuration(tmp_path, next(one for one in found if one["kind"] == "ConfigMap")).backends
