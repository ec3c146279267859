"""Fills the generated parts of the documentation: run ``.venv/bin/python docs/generate.py`` in the repository's root.

A page marks such a part with ``<!-- generated: NAME -->`` and ``<!-- end -->``; NAME is a key of ``PARTS``. The test
``tests/docs/test_docs.py`` fails while a part is not what this program would write.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from click.testing import CliRunner
from msgspec import inspect as types

from detector.continuation.handover import REASONS
from detector.continuation.parameters import PARAMETERS, Fate, Parameter
from detector.policy.transitions import transition_diagram
from detector.stats.cause_table import TABLE, Condition
from proxy import config
from proxy.cli import main
from replay.formats import FORMATS

ROOT: Final = Path(__file__).resolve().parent.parent
PART: Final = re.compile(r"(<!-- generated: (?P<name>.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
UNITS: Final = {"seconds": "s", "bytes": "bytes", "tokens": "tokens"}
"""The last word of a key is its unit."""


def filled(page: str) -> str:
    """The text of a page with its generated parts as they should be. Raises KeyError for a part nobody generates."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part['name']]()}{part[3]}", page)


def pages() -> list[Path]:
    """The Markdown files of the documentation."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def console(*arguments: str) -> str:
    """A command of ``specbreaker`` and what it prints, run in the root of the repository, as a code block."""
    result = CliRunner().invoke(main, arguments, prog_name="specbreaker", terminal_width=80)
    return f"```console\n$ specbreaker {' '.join(arguments)}\n{result.output.rstrip()}\n```\n"


def help_text(*command: str) -> str:
    """The help of a command."""
    return console(*command, "--help")


def diagram() -> str:
    """The policy's state diagram, which GitHub draws."""
    return f"```mermaid\n{transition_diagram()}```\n"


# ---- the table of diagnosis ------------------------------------------------------------------------------------------


def diagnosis_table() -> str:
    """The signatures of ``detector/stats/cause_table.py`` in their order, one row each."""
    lines = ["| signature | conditions | cause | remedies |", "|---|---|---|---|"]
    for row in TABLE:
        conditions = "; ".join(_in_words(condition) for condition in row.when) or "always"
        remedies = ", ".join(row.remedies) or "none"
        lines.append(f"| **{row.name}**: {row.why} | {conditions} | {row.cause} | {remedies} |")
    return "\n".join(lines) + "\n"


def _in_words(condition: Condition) -> str:
    at_least = f"{condition.at_least:.3g} <= " if math.isfinite(condition.at_least) else ""
    at_most = f" <= {condition.at_most:.3g}" if math.isfinite(condition.at_most) else ""
    return f"{at_least}`{condition.number}`{at_most}{' or unknown' if condition.if_unknown else ''}"


# ---- the configuration -----------------------------------------------------------------------------------------------


def configuration() -> str:
    """A heading and a table for each section of the configuration."""
    parts: list[str] = []
    for name, several, section in _sections(_struct(config.Config)):
        heading = f"## `[[{name}]]`" if several else f"## `[{name}]`"
        rows = ["| key | type | unit | default | meaning |", "|---|---|---|---|---|", *_rows(section)]
        parts.append("\n".join([heading, "", inspect.getdoc(section.cls) or "", "", *rows, ""]))
    return "\n".join(parts)


def _sections(parent: types.StructType, prefix: str = "") -> Iterable[tuple[str, bool, types.StructType]]:
    """Every table: its dotted name, whether there may be several, what is in it."""
    for field in parent.fields:
        section = _table(field.type)
        if section is not None:
            yield f"{prefix}{field.name}", isinstance(field.type, types.VarTupleType), section
            yield from _sections(section, f"{prefix}{field.name}.")


def _table(kind: types.Type) -> types.StructType | None:
    """The table that a key holds, be it one, a list of them or an optional one; None for a single value."""
    match kind:
        case types.StructType():
            return kind
        case types.VarTupleType(item_type=item):
            return _table(item)
        case types.UnionType(types=members):
            return next((found for member in members if (found := _table(member)) is not None), None)
    return None


def continuation_parameters() -> str:
    """The table of what becomes of each parameter, the refused ones first."""
    order = (Fate.REFUSED, Fate.PUT_RIGHT, Fate.KEPT, Fate.LEFT_OUT)
    rows = sorted(PARAMETERS, key=lambda row: order.index(row.fate))
    lines = [
        f"| {', '.join(f'`{name}`' for name in row.names)} | {row.fate}{_as_in(row)} | {row.why} |" for row in rows
    ]
    return "\n".join(["| parameter | is | why |", "|---|---|---|", *lines, ""])


def _as_in(row: Parameter) -> str:
    return f", as in `{msgspec.json.encode(row.example).decode()}`" if row.fate is Fate.REFUSED else ""


def continuation_reasons() -> str:
    """The table of reasons for which an answer is not continued."""
    lines = [f"| `{code}` | {meaning} |" for code, meaning in REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *lines, ""])


def configuration_keys() -> set[str]:
    """``section.key`` of every key there is."""
    return {
        f"{name}.{key.name}"
        for name, _, section in _sections(_struct(config.Config))
        for key in section.fields
        if _table(key.type) is None
    }


def _struct(cls: type[msgspec.Struct]) -> types.StructType:
    described = types.type_info(cls)
    assert isinstance(described, types.StructType)
    return described


def _rows(section: types.StructType) -> Iterable[str]:
    meanings = _attribute_docstrings(section.cls)
    for field in section.fields:
        if _table(field.type) is not None:
            continue
        unit = UNITS.get(field.name.rpartition("_")[2], "")
        meaning = meanings[field.name].replace("|", "\\|").replace("None: ", "Unset: ")
        yield f"| `{field.name}` | {_type_in_words(field.type)} | {unit} | {_default(field)} | {meaning} |"


def _attribute_docstrings(cls: type) -> dict[str, str]:
    """The string under each attribute of a class. An attribute without one is missing, which the tables do not bear."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = " ".join(text.value.split())
    return found


def _type_in_words(kind: types.Type) -> str:
    match kind:
        case types.UnionType(types=members):
            return " or ".join(_type_in_words(member) for member in members if not isinstance(member, types.NoneType))
        case types.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case types.VarTupleType(item_type=item):
            return f"list of {_type_in_words(item)}"
        case types.DictType(value_type=types.AnyType()):
            return "table"
        case types.BoolType():
            return "boolean"
        case types.StrType():
            return "text"
        case types.DictType(key_type=key, value_type=value):
            return f"table of {_type_in_words(key)} to {_type_in_words(value)}"
        case types.IntType(gt=gt, ge=ge, le=le):
            return "integer" + _bound(gt, ge) + (f", ≤ {le:g}" if le is not None else "")
        case types.FloatType(gt=gt, ge=ge):
            return "number" + _bound(gt, ge)
    raise TypeError(f"no words for {kind}")


def _bound(gt: float | None, ge: float | None) -> str:
    if gt is not None:
        return f" > {gt:g}"
    return f" ≥ {ge:g}" if ge is not None else ""


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    default: Any = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if default is None:
        return "unset"
    return f"`{msgspec.json.encode(default).decode()}`"


# ---- the formats of recordings ---------------------------------------------------------------------------------------


def formats() -> str:
    """A row for each format that recordings are read from or written to."""
    carried = list(FORMATS[0].carries.__struct_fields__)
    lines = [f"| name | what | read | written | {' | '.join(carried)} |", "|" + "---|" * (4 + len(carried))]
    for one in FORMATS:
        marks = [one.read is not None, one.write is not None, *(getattr(one.carries, name) for name in carried)]
        cells = " | ".join("yes" if mark else "" for mark in marks)
        lines.append(f"| `{one.name}` | {one.description} | {cells} |")
    return "\n".join(lines) + "\n"


PARTS: Final[dict[str, Callable[[], str]]] = {
    "configuration": configuration,
    "continuation parameters": continuation_parameters,
    "continuation reasons": continuation_reasons,
    "transition diagram": diagram,
    "diagnosis table": diagnosis_table,
    "detect": lambda: console("detect", "tests/data/sessions/cycle.csv", "--series", "dflash_n8"),
    "help": help_text,
    "help serve": lambda: help_text("serve"),
    "help supervise": lambda: help_text("supervise"),
    "help detect": lambda: help_text("detect"),
    "help emulate": lambda: help_text("emulate"),
    "formats": formats,
    "help replay": lambda: help_text("replay"),
    "help replay run": lambda: help_text("replay", "run"),
    "help replay compare": lambda: help_text("replay", "compare"),
    "help replay triage": lambda: help_text("replay", "triage"),
    "help replay reduce": lambda: help_text("replay", "reduce"),
    "help replay pack": lambda: help_text("replay", "pack"),
    "help replay convert": lambda: help_text("replay", "convert"),
    "help report": lambda: help_text("report"),
    "help tune": lambda: help_text("tune"),
    "help doctor": lambda: help_text("doctor"),
    "help config": lambda: help_text("config"),
    "help config check": lambda: help_text("config", "check"),
    "help config show": lambda: help_text("config", "show"),
    "help config schema": lambda: help_text("config", "schema"),
}
"""Generated parts by name."""

if __name__ == "__main__":
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
