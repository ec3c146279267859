"""Container, compose, chart and units: their configuration can be used, and they ask for no more than they need."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, ROOT, document, installed, read_yaml_with_tags
from monitoring import free_port, process
from served import SPECBREAKER
from upstreams import answering, opened, until_true, upstream

from proxy.config import Config, load

CHART = DEPLOY / "helm/specbreaker"
VALUES = ("values.yaml", "values-sidecar.yaml")
UNIT = DEPLOY / "systemd/specbreaker@.service"


def merged(name: str) -> dict[str, Any]:
    """Values of the chart with those of a file over them, as Helm merges them."""

    def over(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            return below | {key: over(below.get(key), value) for key, value in above.items()}
        return above

    result: dict[str, Any] = over(document(CHART / "values.yaml"), document(CHART / name))
    return result


def configuration(text: str, directory: Path) -> Config:
    file = directory / "specbreaker.toml"
    file.write_text(text)
    return load(str(file), environment={}, flags={})


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_the_configuration_of_compose_can_be_used(tmp_path: Path) -> None:
    text = (DEPLOY / "compose/specbreaker.toml").read_text(encoding="utf-8")
    config = configuration(text, tmp_path)
    assert config.policy.mode == "observe"
    services = document(DEPLOY / "compose/compose.yaml")["services"]
    assert config.backends[0].url == "http://vllm:8000"
    assert "vllm" in services
    with_fallback = re.sub(r"^# (?=\[\[|name|role|url)", "", text, flags=re.MULTILINE)
    assert len(configuration(with_fallback, tmp_path).backends) == 2


@pytest.mark.parametrize("name", VALUES)
def test_the_configuration_of_the_chart_can_be_used(name: str, tmp_path: Path) -> None:
    values = merged(name)
    config = configuration(values["config"], tmp_path)
    assert (config.server.listen, config.server.admin) == ("0.0.0.0:8900", "0.0.0.0:8901")
    seconds = config.server.drain_delay_seconds + config.server.drain_seconds
    assert values["terminationGracePeriodSeconds"] > seconds
    if values["engine"]["enabled"]:
        assert config.backends[0].url == f"http://127.0.0.1:{values['engine']['port']}"
        assert "--host=127.0.0.1" in values["engine"]["args"]


def test_the_rules_of_the_chart_are_those_of_prometheus() -> None:
    assert (CHART / "files/specbreaker.rules.yaml").read_text() == (
        DEPLOY / "prometheus/specbreaker.rules.yaml"
    ).read_text()


def test_the_schema_of_the_values_knows_each_of_them() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(document(CHART / "values.yaml")) == set(schema["properties"]) - {"global"}
    assert set(document(CHART / "values.yaml")["engine"]) == set(schema["properties"]["engine"]["properties"])


def test_templates_use_only_values_that_exist() -> None:
    values = document(CHART / "values.yaml")
    for template in (CHART / "templates").iterdir():
        text = template.read_text(encoding="utf-8")
        assert text.count("{{") == text.count("}}"), template.name
        opened = len(re.findall(r"\{\{-? *(?:if|with|range|define) ", text))
        assert opened == len(re.findall(r"\{\{-? *end *-?\}\}", text)), template.name
        for path in re.findall(r"\.Values((?:\.\w+)+)", text):
            place: Any = values
            for key in path.strip(".").split("."):
                assert key in place, f"{template.name}: {path}"
                place = place[key]


# ---- least permission ------------------------------------------------------------------------------------------------


def test_compose_publishes_on_loopback_only_and_hardens_what_needs_no_device() -> None:
    services = document(DEPLOY / "compose/compose.yaml")["services"]
    assert set(services) == {"vllm", "specbreaker", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert ":latest" not in service["image"], name
        if name != "vllm":
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
    assert "ports" not in services["vllm"], "clients go through specbreaker"
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), volume


def test_the_emulated_engine_replaces_the_real_one() -> None:
    emulated = read_yaml_with_tags(DEPLOY / "compose/emulated.yaml")["services"]["vllm"]
    assert emulated["command"] == ["emulate", "--listen", "0.0.0.0:8000"]


def test_the_container_is_pinned_and_runs_as_nobody() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert "--require-hashes -r requirements.lock" in text
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / one).exists() for one in source.split())
    variables = dict(re.findall(r"(SPECBREAKER_\w+)=(\S+)", text))
    config = load(None, environment=variables, flags={})
    assert config.server.admin == "0.0.0.0:8901"
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packages["packages"]) <= set(re.findall(r"^COPY (\w+) ", text, re.MULTILINE))


def test_the_unit_waits_for_the_longest_drain() -> None:
    text = UNIT.read_text(encoding="utf-8")
    seconds = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert seconds > Config().server.drain_seconds + Config().server.drain_delay_seconds
    assert re.search(r"^DynamicUser=yes$", text, re.MULTILINE)
    assert re.search(r"^Sockets=specbreaker.socket$", text, re.MULTILINE)


# ---- with the real programs ------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.operations
def test_systemd_rates_the_unit_as_safe() -> None:
    said = run(installed("systemd-analyze"), "security", "--offline=true", "--threshold=19", UNIT)
    assert re.search(r"exposure level .*: [01]\.\d OK", said)


@pytest.mark.operations
async def test_systemd_hands_the_socket_over(tmp_path: Path) -> None:
    """The request that wakes the service is the first one that it answers."""
    port, log = free_port(), tmp_path / "log"
    async with upstream(answering([])) as url:
        service = (SPECBREAKER, "serve", "--upstream", url, "--admin", "127.0.0.1:0")
        command = (installed("systemd-socket-activate"), "-l", f"127.0.0.1:{port}", "-E", "PYTHONPATH", *service)
        with process(*command, log=log):

            async def listening() -> bool:
                return b"Listening" in log.read_bytes()

            await until_true(listening)
            async with opened(f"http://127.0.0.1:{port}") as client:
                await client.post()
                assert (await client.head())[0] == 200


@pytest.mark.operations
def test_compose_fits_its_schema() -> None:
    check = installed("check-jsonschema")
    run(check, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose/compose.yaml")


@pytest.mark.operations
def test_the_container_file_passes_hadolint() -> None:
    run(installed("hadolint"), DEPLOY / "Containerfile")


@pytest.mark.operations
@pytest.mark.parametrize("name", VALUES)
def test_the_chart_gives_valid_manifests_without_any_role(name: str, tmp_path: Path) -> None:
    helm, validate = installed("helm"), installed("kubernetes-validate")
    run(helm, "lint", "--strict", CHART, "-f", CHART / name)
    monitored = ("--set", "serviceMonitor.enabled=true", "--set", "prometheusRule.enabled=true")
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(run(helm, "template", "release", CHART, "-f", CHART / name, *monitored))
    run(validate, "--strict", manifests)
    kinds = [one["kind"] for one in yaml.safe_load_all(manifests.read_text()) if one]
    assert sorted(kinds) == ["ConfigMap", "Deployment", "PrometheusRule", "Service", "Service", "ServiceMonitor"]
    [deployment] = [one for one in yaml.safe_load_all(manifests.read_text()) if one and one["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.operations
def test_the_chart_refuses_values_that_it_does_not_know() -> None:
    command = [installed("helm"), "template", "release", str(CHART), "--set", "replicas=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "replicas" in done.stderr
