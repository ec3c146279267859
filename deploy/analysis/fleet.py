"""The fleet's query on one machine: fleet.py 'sessions/host=*/*.jsonl.zst' [--json]. Needs the package duckdb."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb  # type: ignore[import-not-found]

HERE = Path(__file__).parent


def main() -> None:
    """Print a row for each engine."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    connection = duckdb.connect()
    sessions = sys.argv[1].replace("'", "''")
    connection.execute(f"SET VARIABLE sessions = '{sessions}'")
    connection.execute((HERE / "records.duckdb.sql").read_text(encoding="utf-8"))
    found = connection.sql((HERE / "fleet.sql").read_text(encoding="utf-8"))
    if "--json" in sys.argv:
        print(json.dumps([dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]))
    else:
        found.show()


if __name__ == "__main__":
    main()
