#!/usr/bin/env bash
# Other people's tools for the tests marked interchange, each in a venv of its own: 1.2 GB and 1.5 GB, about 3 minutes.
#   setup.sh install   from aiperf.lock and guidellm.lock; returns at once if that is what is there
# Place: $SPECBREAKER_TOOLS_DIR, else ${XDG_CACHE_HOME:-~/.cache}/specbreaker-tools. Needs x86_64 Linux and Python 3.11 or later.
# vllm bench is that of tests/engine/setup.sh.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=${SPECBREAKER_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/specbreaker-tools}

fail() { echo "tests/interchange/setup.sh: $*" >&2; exit 1; }

install() {
  local name=$1 lock=$here/$1.lock venv=$root/$1
  mkdir -p "$root"
  exec 9>"$root/$name.install-in-progress" && flock 9
  cmp -s "$lock" "$root/$name.lock" && return
  rm -rf "$root/$name.lock" "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  # The +cpu build of torch, which guidellm needs, is not on PyPI: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
  "$venv/bin/pip" install -qq --no-deps --only-binary :all: -r "$lock" || fail "pip could not install $lock (its reason is above)"
  cp "$lock" "$root/$name.lock"
}

case ${1:-} in
  install) install aiperf && install guidellm ;;
  *) echo "usage: $0 install" >&2; exit 2 ;;
esac
