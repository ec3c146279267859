"""The documentation is true: examples run, generated parts are up to date, links lead somewhere, nothing is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from docs_blocks import Block, anchors, commands, links, marked_blocks
from docs_demonstration import Demonstration
from prometheus_client.metrics import MetricWrapperBase

from docs import generate
from proxy import config
from proxy.metrics import Metrics

ROOT = generate.ROOT
PAGES = generate.pages()
BLOCKS = [block for page in PAGES for block in marked_blocks(page)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- examples --------------------------------------------------------------------------------------------------------


def blocks_of(language: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=[f"{name(block.page)}:{block.line}" for block in chosen])


def run(command: list[str], demonstration: Demonstration) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=demonstration.directory,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@blocks_of("console")
def test_console_examples_print_what_the_page_shows(block: Block, demonstration: Demonstration) -> None:
    examples = commands(block.text)
    assert examples
    for example in examples:
        result = run(["bash", "-o", "pipefail", "-c", demonstration.here(example.shell)], demonstration)
        assert result.returncode == 0, result.stderr
        assert example.printed(result.stdout), f"$ {example.shell}\n{result.stdout}"


@blocks_of("python")
def test_python_examples_run(block: Block, demonstration: Demonstration) -> None:
    result = run([sys.executable, "-c", demonstration.here(block.text)], demonstration)
    assert result.returncode == 0, result.stderr


@blocks_of("toml")
def test_configuration_examples_can_be_used(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "specbreaker.toml"
    file.write_text(block.text)
    assert config.load(str(file), environment={}, flags={}).backends


def test_every_marked_block_is_run() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(BLOCKS) == text.count("<!-- run -->\n")
    assert {block.language for block in BLOCKS} == {"console", "python", "toml"}


# ---- generated parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_generated_parts_are_up_to_date(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = page.read_text(encoding="utf-8")
    assert generate.filled(text) == text, "run .venv/bin/python docs/generate.py"


def test_every_generated_part_is_on_a_page() -> None:
    marked = [found["name"] for page in PAGES for found in generate.PART.finditer(page.read_text(encoding="utf-8"))]
    assert set(marked) == set(generate.PARTS)


def test_help_of_every_command_is_on_a_page() -> None:
    paths = {"help"}
    for command in generate.main.commands.values():
        paths.add(f"help {command.name}")
        paths |= {f"help {command.name} {sub}" for sub in getattr(command, "commands", {})}
    assert paths == {part for part in generate.PARTS if part.startswith("help")}


def test_the_configuration_page_has_every_key_and_no_other() -> None:
    section, documented = "", set()
    for line in (ROOT / "docs/configuration.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## `\[+([\w.]+)\]+`$", line):
            section = heading[1]
        elif section and (row := re.match(r"\| `(\w+)` \|", line)):
            documented.add(f"{section}.{row[1]}")
    assert documented == generate.configuration_keys()


ENGINE_FIELDS = {"metrics.speculative_decoding", "metrics.generation_time_ms"}
"""Of an engine's answer; they only look like settings."""


def test_settings_named_on_any_page_exist() -> None:
    sections = "|".join({key.partition(".")[0] for key in generate.configuration_keys()})
    known = generate.configuration_keys()
    for page in PAGES:
        for key in re.findall(rf"`((?:{sections})\.[a-z_]+)\b(?![./])", page.read_text(encoding="utf-8")):
            assert key in known or key.endswith(".py") or key in ENGINE_FIELDS, f"{name(page)}: {key}"


# ---- metrics ---------------------------------------------------------------------------------------------------------


def documented_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name, from the tables of docs/metrics.md."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(specbreaker_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows}), "a metric is documented twice"
    return {metric: (kind, tuple(re.findall(r"`(\w+)`", labels))) for metric, kind, labels in rows}


def test_every_exported_metric_is_documented(demonstration: Demonstration) -> None:
    with urllib.request.urlopen(f"http://{demonstration.admin}/metrics") as answer:
        text = answer.read().decode()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    exported = {metric: kind for metric, kind in types.items() if not metric.endswith("_created")}
    assert {metric: kind for metric, (kind, _) in documented_metrics().items()} == exported


def test_documented_labels_are_the_real_ones() -> None:
    documented = documented_metrics()
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase) and metric._type != "info":
            full_name = f"{metric._name}_total" if metric._type == "counter" else metric._name
            assert documented[full_name][1] == tuple(metric._labelnames), full_name


# ---- what pages point at ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted({*PAGES, *(ROOT / "tests").rglob("*.md")}), ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if ":" in target.partition("/")[0]:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_decision_is_listed_with_its_title() -> None:
    index = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    decisions = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [file.name[:4] for file in decisions] == [f"{number:04d}" for number in range(1, len(decisions) + 1)]
    for file in decisions:
        text = file.read_text(encoding="utf-8")
        number, _, title = text.partition("\n")[0].removeprefix("# ").partition(": ")
        assert f"| [{number}]({file.name}) | {title} |" in index
        assert number == file.name[:4]
        assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE)
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_every_test_named_by_the_faults_page_exists() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/faults.md").read_text(encoding="utf-8")))
    assert named
    assert named <= set(re.findall(r"def (test_\w+)\(", code))


def test_make_targets_named_on_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, name(page)
