"""Tool calls: which tool the model calls, with which arguments, and what of that a streaming parser shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .text import stable_hash

_PLAUSIBLE: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "null": None}


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call, as the model writes it."""

    name: str
    arguments: str
    """JSON text."""

    @property
    def head(self) -> str:
        """What the model writes before the arguments."""
        return f'<tool_call>\n{{"name": {json.dumps(self.name)}, "arguments": '

    @property
    def text(self) -> str:
        """All that the model writes."""
        return f"{self.head}{self.arguments}}}\n</tool_call>"

    @property
    def id(self) -> str:
        """Identifier of the call, the same each time for the same call."""
        return f"chatcmpl-tool-{stable_hash(self.name, self.arguments):016x}"


def choose_tool_call(body: dict[str, Any], messages: list[dict[str, Any]]) -> ToolCall | None:
    """The call that the model makes: the named tool, else the first.

    On auto none, if a result was just given, or an answer has begun that is to be continued.
    """
    choice = body.get("tool_choice", "auto")
    functions = [tool.get("function", {}) for tool in body["tools"]]
    begun = body.get("continue_final_message") or (messages and messages[-1].get("role") == "tool")
    if choice == "none" or (choice == "auto" and begun):
        return None
    wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    for function in functions:
        if wanted is None or function.get("name") == wanted:
            arguments = _value(function.get("parameters") or {"type": "object"}, "")
            return ToolCall(name=str(function.get("name", "")), arguments=json.dumps(arguments))
    return None


def _value(schema: dict[str, Any], key: str) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind == "object":
        return {name: _value(child, name) for name, child in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value(schema.get("items", {}), key)]
    return _PLAUSIBLE.get(kind, f"some {key or 'value'}")


class ToolCallParser:
    """Turns the text of a call into ``tool_calls`` deltas; most of the steps of its head show nothing."""

    def __init__(self, call: ToolCall) -> None:
        self._call = call
        self._seen = 0
        self._named = False

    def delta(self, text: str) -> dict[str, Any] | None:
        """What this piece of text shows, or None."""
        start, self._seen = self._seen, self._seen + len(text)
        begin = len(self._call.head)
        if self._seen < begin:
            return None
        arguments = self._call.arguments[max(0, start - begin) : self._seen - begin]
        if not self._named:
            self._named = True
            function = {"name": self._call.name, "arguments": arguments}
            return {"id": self._call.id, "type": "function", "index": 0, "function": function}
        return {"index": 0, "function": {"arguments": arguments}} if arguments else None
