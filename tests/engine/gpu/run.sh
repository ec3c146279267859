#!/usr/bin/env bash
# The published cycle on one GPU: recorded, replayed, compared. About 8 minutes on an H200, start included.
#   run.sh MODELS [synthetic|standard]
# MODELS: a directory with `target` and `draft` (DFlash), configurations and tokenizer; the weights are dummies.
# Needs vLLM 0.20.2 and what specbreaker needs (pyproject.toml) on python3's path. Results go to $OUT.
# synthetic: vLLM's own rejection_sample_method, whose rates the plug-in moves; standard: real verification, which it steers.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
models=${1:?usage: run.sh MODELS [synthetic|standard]}
method=${2:-synthetic}
: "${OUT:?set OUT to the folder for the results}"
num_speculative_tokens=8

# The plug-in on the engine's path, without pip: the package, and the metadata that name its entry point.
plugin=$(mktemp -d)
trap 'rm -rf "$plugin"' EXIT
ln -s "$repo/replay" "$plugin/replay"
mkdir "$plugin/specbreaker-0.dist-info"
printf 'Metadata-Version: 2.1\nName: specbreaker\nVersion: 0\n' >"$plugin/specbreaker-0.dist-info/METADATA"
printf '[vllm.general_plugins]\nspecbreaker_faults = replay.faults.plugin:register\n' >"$plugin/specbreaker-0.dist-info/entry_points.txt"
export PYTHONPATH=$plugin:$repo${PYTHONPATH:+:$PYTHONPATH}

export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0
speculation=$(python3 - "$models/draft" "$num_speculative_tokens" "$method" <<'PYTHON'
import json, sys
drafter, k, method = sys.argv[1], int(sys.argv[2]), sys.argv[3]
found = {"method": "dflash", "model": drafter, "num_speculative_tokens": k}
if method == "synthetic":
    found |= {"rejection_sample_method": "synthetic"}
    found |= {"synthetic_acceptance_rates": [round(0.85 ** (place + 1), 6) for place in range(k)]}
print(json.dumps(found))
PYTHON
)
healthy='"acceptance": 0.85'
cycle="{\"clock\": \"requests\", \"cycle\": [{\"length\": 5, $healthy}, {\"length\": 1, \"acceptance\": 0.45},
  {\"length\": 3, \"acceptance\": 0.06}, {\"length\": 1, \"acceptance\": 0.8}]}"

alone='{}'
[[ $method == synthetic ]] || alone="{$healthy}" # dummy weights draft nothing that a target would say

# shellcheck disable=SC2086 # SESSION_OPTIONS are words, such as: --requests 40
python3 "$repo/tests/engine/gpu/session.py" --out "$OUT" --requests 80 --tokens 384 --cycle "$cycle" --left-alone "$alone" ${SESSION_OPTIONS:-} -- \
  python3 -m vllm.entrypoints.cli.main serve "$models/target" --served-model-name m --load-format dummy \
  --host 127.0.0.1 --port 18100 --max-num-seqs 4 --max-num-batched-tokens 8192 --max-model-len 8192 \
  --gpu-memory-utilization 0.85 --speculative-config "$speculation"
