"""Logging to standard error: text for people, JSON lines for machines. Never a prompt, never a key."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from detector.observation import Observation
from proxy.config import Log


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """Time, level, message, and the record's ``fields`` as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        fields = getattr(record, "fields", {})
        tail = "".join(f" {key}={value}" for key, value in fields.items() if value is not None)
        line = f"{when} {record.levelname.lower():7} {record.getMessage()}{tail}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(settings: Log) -> None:
    """Send everything to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("specbreaker").setLevel(settings.level.upper())
    logging.getLogger("replay").setLevel(settings.level.upper())


def request_fields(observation: Observation) -> dict[str, object]:
    """The numbers of an answer that people read in a log line."""
    names = (
        "request_id",
        "backend",
        "status",
        "ending",
        "ttft_seconds",
        "completion_tokens",
        "decode_tokens_per_second",
        "acceptance_length",
        "acceptance_source",
        "step_seconds",
        "in_flight",
    )
    values = {name: getattr(observation, name) for name in names}
    return rounded(values)


def rounded(values: Mapping[str, object]) -> dict[str, object]:
    """The same with six decimals, for people who read a log."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
