#!/usr/bin/env bash
# Installs DuckDB and Polars, which the recipes of docs/session-format.md use, into a virtual environment of their own:
# 270 MB, too much for the locked development dependencies.
set -euo pipefail
unset PYTHONPATH PYTHONHOME # pip would take packages from there for installed ones
venv="${XDG_CACHE_HOME:-$HOME/.cache}/specbreaker-operations/recipes"
[ -e "$venv/installed" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install -q duckdb==2.0.0 polars==2.1.0
touch "$venv/installed"
