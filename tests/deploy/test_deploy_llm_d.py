"""The files for llm-d's router: configurations of the endpoint picker that read what specbreaker exports."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, ROOT, document, documents, installed, known_metrics, selectors

from proxy.config import load
from replay.emulator import Emulator, serving

LLM_D = DEPLOY / "llm-d"
CHART = DEPLOY / "helm/specbreaker"
ROUTER: dict[str, Any] = document(LLM_D / "router-values.yaml")["router"]
CONFIGS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load(text) for name, text in ROUTER["epp"]["pluginsCustomConfig"].items()
}


def pods_configuration(directory: Path) -> Any:
    file = directory / "specbreaker.toml"
    file.write_text(document(LLM_D / "specbreaker-values.yaml")["config"])
    return load(str(file), environment={}, flags={})


def plugins(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of each plugin, by the name that references use."""
    return {one.get("name", one["type"]): one.get("parameters", {}) for one in config["plugins"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_reference_is_to_a_plugin_and_every_plugin_is_used(name: str) -> None:
    config = CONFIGS[name]
    used = {one["pluginRef"] for profile in config["schedulingProfiles"] for one in profile["plugins"]}
    for source in config["dataLayer"]["sources"]:
        used |= {source["pluginRef"], *(one["pluginRef"] for one in source["extractors"])}
    assert used == set(plugins(config))


@pytest.mark.parametrize("name", CONFIGS)
async def test_the_picker_reads_series_that_are_on_that_scrape(name: str, tmp_path: Path) -> None:
    [engine] = plugins(CONFIGS[name])["core-metrics-extractor"]["engineConfigs"]
    [custom] = engine["customMetrics"]
    [(series, labels)] = selectors(custom["metricSpec"])
    assert labels <= set(known_metrics()[series])
    [backend] = pods_configuration(tmp_path).backends
    assert custom["metricSpec"] == f"specbreaker_backend_degraded{{backend={backend.name}}}"
    read = {
        value
        for parameters in plugins(CONFIGS[name]).values()
        for key, value in parameters.items()
        if "ttribute" in key
    }
    assert read == {custom["attributeKey"]}
    async with serving(Emulator("healthy", time_scale=0)) as url:
        exported = await text_of(f"{url}/metrics")
    for key, spec in engine.items():
        if key.endswith("Spec"):
            assert f"\n{spec}{{" in exported, spec


async def text_of(url: str) -> str:
    import aiohttp

    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return await answer.text()


def test_the_ports_and_labels_are_those_of_the_chart(tmp_path: Path) -> None:
    config = pods_configuration(tmp_path)
    [target] = ROUTER["modelServers"]["targetPorts"]
    assert config.server.listen == f"0.0.0.0:{target['number']}"
    assert config.server.admin == f"0.0.0.0:{ROUTER['epp']['flags']['model-server-metrics-port']}"
    assert (config.metrics.include_upstream, config.policy.canaries_without_traffic) == (True, True)
    assert ROUTER["epp"]["pluginsConfigFile"] in CONFIGS
    [label] = ROUTER["modelServers"]["matchLabels"].items()
    assert "{}: {}".format(*label) == f"app.kubernetes.io/name: {document(CHART / 'Chart.yaml')['name']}"


def test_the_lease_is_all_that_its_role_may_touch() -> None:
    found = {one["kind"]: one for one in documents(LLM_D / "restart-lease.yaml")}
    name = found["Lease"]["metadata"]["name"]
    [rule] = found["Role"]["rules"]
    assert (rule["resourceNames"], rule["verbs"]) == ([name], ["get", "update"])
    assert {one["metadata"]["name"] for one in found.values()} == {name}
    assert f'name = "{name}"' in (ROOT / "docs/fleet.md").read_text(encoding="utf-8")


# ---- with the real programs ------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.operations
@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_fits_the_pickers_schema(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(yaml.safe_dump(CONFIGS[name]))
    schema = Path(__file__).with_name("endpointpickerconfig.schema.json")
    run(installed("check-jsonschema"), "--schemafile", schema, file)


@pytest.mark.operations
def test_the_lease_fits_the_schemas_of_kubernetes() -> None:
    run(installed("kubernetes-validate"), "--strict", LLM_D / "restart-lease.yaml")


@pytest.mark.operations
def test_the_schema_refuses_what_the_picker_would(tmp_path: Path) -> None:
    wrong = {**CONFIGS["specbreaker-filter.yaml"], "plugins": [{"type": "endpoint-attribute-filter", "parameters": {}}]}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    schema = Path(__file__).with_name("endpointpickerconfig.schema.json")
    done = subprocess.run([installed("check-jsonschema"), "--schemafile", str(schema), str(file)], capture_output=True)
    assert done.returncode == 1


@pytest.mark.operations
def test_the_chart_takes_the_values_and_labels_its_pods_for_the_pool() -> None:
    files = ("-f", CHART / "values-sidecar.yaml", "-f", LLM_D / "specbreaker-values.yaml")
    manifests = yaml.safe_load_all(run(installed("helm"), "template", "engine-a", CHART, *files))
    [deployment] = [one for one in manifests if one and one["kind"] == "Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert ROUTER["modelServers"]["matchLabels"].items() <= labels.items()
