# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
.PHONY: run test check bench bench-detect bench-cycle bench-tune bench-fleet bench-rolling engine engine-kill replay-engine interchange main-job bench-supervise operations lock clean

run: $(VENV)/.installed  ## the proxy in front of the embedded emulator, ready for any OpenAI client
	$(BIN)/specbreaker serve $(ARGS)

test: $(VENV)/.installed  ## everything but the real engine
	$(BIN)/pytest -n auto --dist worksteal -m "not engine and not engine_kill and not interchange and not operations" $(ARGS)

check: $(VENV)/.installed  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed  ## beside nginx, HAProxy, vllm-router and LiteLLM: docs/results/overhead.md
	tests/bench/run.sh $(ARGS)

bench-detect: $(VENV)/.installed  ## the detector on traffic whose truth is known, beside peers: docs/results/detection*.md
	$(BIN)/python -m tests.bench.detect.run --jobs 2 --output docs/results/detection.md $(ARGS)
ifeq (,$(findstring --quick,$(ARGS)))
	for part in $(basename $(notdir $(wildcard tests/bench/detect/cycle_bench.py tests/bench/detect/stream_bench.py))); do \
	  $(BIN)/python -m tests.bench.detect.$$part || exit; \
	done
endif

bench-cycle: $(VENV)/.installed  ## what clients get over a collapse cycle, beside the peers: docs/results/cycle.md
	tests/bench/peers.sh install
	$(BIN)/python tests/bench/cycle.py --page docs/results/cycle.md $(ARGS)

bench-tune: $(VENV)/.installed  ## what `tune` advises from recordings at several K, ARGS="--captures DIR": docs/results/tune.md
	$(BIN)/python -m tests.bench.tune_captures --output docs/results/tune.md $(ARGS)

bench-fleet: $(VENV)/.installed  ## ten engines behind HAProxy, with specbreakers and without: docs/results/fleet.md
	tests/bench/peers.sh install
	$(BIN)/python tests/bench/fleet.py --page docs/results/fleet.md $(ARGS)

bench-rolling: $(VENV)/.installed  ## processes that take turns under 200 streams: docs/results/rolling-restart.md
	$(BIN)/python tests/bench/rolling_restart.py --page docs/results/rolling-restart.md $(ARGS)

engine: $(VENV)/.installed  ## a real vLLM with DFlash on this CPU, and the end-to-end tests against it
	tests/engine/setup.sh install
	$(BIN)/pytest -m engine $(ARGS)

engine-kill: $(VENV)/.installed  ## what needs an engine start for each test, the ways a real vLLM dies above all: about 20 minutes
	tests/engine/setup.sh install
	$(BIN)/pytest -m engine_kill $(ARGS)

main-job: $(VENV)/.installed  ## the main job on two real engines, request by request: docs/results/main-job.md
	tests/engine/setup.sh install
	$(BIN)/python -m tests.engine.main_job $(ARGS)

replay-engine: $(VENV)/.installed  ## a cycle of a real engine recorded, replayed, compared: docs/results/replay-engine.md
	tests/engine/setup.sh install
	$(BIN)/python -m tests.engine.replay_cycle --output docs/results/replay-engine.md $(ARGS)

interchange: $(VENV)/.installed  ## what we write replayed by aiperf, vLLM and guidellm, and what they write read
	tests/engine/setup.sh install
	tests/interchange/setup.sh install
	$(BIN)/pytest -m interchange $(ARGS)

bench-supervise: $(VENV)/.installed  ## restarts at other levels on a real engine, requests running: docs/results/supervise.md
	tests/engine/setup.sh install
	$(BIN)/python -m tests.engine.supervise $(ARGS)

operations: $(VENV)/.installed  ## alerts, dashboards and deployment on real Prometheus, Alertmanager, HAProxy, Envoy and Helm
	deploy/install-tools.sh
	tests/docs/install-recipes.sh
	$(BIN)/pytest -m operations $(ARGS)

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --require-hashes -r requirements-dev.lock
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	@touch $@

lock:  ## resolve the versions again (needs uv)
	uv pip compile -q pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o requirements-dev.lock
	uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -c requirements-dev.lock -o requirements.lock

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
