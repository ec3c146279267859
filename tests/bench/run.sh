#!/usr/bin/env bash
# The overhead benchmark, under 10 minutes: installs and starts the peers, measures, writes docs/results/overhead.md and
# .json, and stops everything, also on Ctrl-C. Options go to load.py; --quick shows in a minute or two that it works and
# leaves docs/results as it is.
set -euo pipefail

BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=$BENCH/../../.venv/bin/python
read -r STUB_PORT RUN <<<"$("$BENCH/peers.sh" paths)"
PAGE=$BENCH/../../docs/results/overhead.md
case " $* " in *" --quick "*) PAGE=$RUN/overhead.md ;; esac
load_pid=

cleanup() {
  trap '' INT TERM
  [ -z "$load_pid" ] || kill "$load_pid" 2>/dev/null || true
  "$BENCH/peers.sh" down
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$BENCH/peers.sh" install
"$BENCH/peers.sh" up
# In the background, since bash would handle a signal only after a command in the foreground.
"$PYTHON" "$BENCH/load.py" --stub "$STUB_PORT" --targets "$RUN/targets.tsv" --out "$RUN/result.json" "$@" &
load_pid=$!
wait "$load_pid"
load_pid=
"$PYTHON" "$BENCH/table.py" "$RUN/result.json" "$PAGE"
