"""Files of deploy/, read: YAML, and which metrics an expression names."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file. Raises yaml.YAMLError."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def document(path: Path) -> Any:
    """The one document of a YAML file."""
    [one] = documents(path)
    return one


def known_metrics() -> dict[str, tuple[str, ...]]:
    """Labels by name of the series that specbreaker exports: tests of docs/ hold the page to the real ones."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    found: dict[str, tuple[str, ...]] = {}
    for name, kind, labels in re.findall(r"^\| `(specbreaker_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE):
        names = [f"{name}_{part}" for part in ("bucket", "sum", "count")] if kind == "histogram" else [name]
        found |= {one: tuple(re.findall(r"`(\w+)`", labels)) for one in names}
    return found


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Names of the series that an expression reads, each with the labels that it is filtered by."""
    found = re.findall(r"\b((?:specbreaker_|vllm:)\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))) for name, matchers in found]


def read_yaml_with_tags(path: Path) -> Any:
    """A YAML file with tags of compose's own, which are left out of what is read."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", _untagged)
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def _untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


def installed(program: str) -> str:
    """Path of a program that `make operations` installs; the test is skipped, and says so, where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specbreaker-operations/bin"
    path = shutil.which(program, path=f"{cache}:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed (make operations installs it)")
    return path
