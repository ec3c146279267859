"""Logging to standard error: text for people, JSON lines for machines. Never a prompt, never a key."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

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
