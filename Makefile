# The ways in: make demo, test, check, bench, load. Everything is installed into .venv from
# constraints.txt; nothing outside this folder changes. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
TRITON := .venv-tritonclient
LONG := workers workers_answers load log_chaos log_losses log_storm log_readers erasure privacy drift \
    routes_redis_kill routes_file shadow abort replicas hot_models redis_kill feedback split demo \
    readme_data readme_operators stop perf_analyzer image revival same_network quantized_shadow \
    gpu_measurements engines_adversary cuda_refused
CONFORMANCE := tests/conformance tests/unit/gateway/erasure tests/contract/engines/test_engine_memory.py \
    $(LONG:%=tests/e2e/test_%.py)
PEERS := fastapi mlserver kserve litserve bentoml ray
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

.PHONY: demo test coverage conformance check bench bench-smoke bench-tools bench-peers load traffic log-cost protos perf-analyzer triton-venv format clean

demo: .venv/demo-installed ## train, serve and query a digit classifier (ONCE=1: then stop)
	@$(BIN)/sluice demo $(if $(ONCE),--once) $(if $(REDIS),--redis $(REDIS))

test: .venv/dev-installed triton-venv ## the suite, in less than ten minutes on two cores
	$(BIN)/python -m pytest -q $(CONFORMANCE:%=--ignore %) $(ARGS)

coverage: .venv/dev-installed ## branch coverage of what runs in the tests' own process
	$(BIN)/python -m pytest -q --ignore tests/e2e --ignore tests/conformance --cov \
	    --cov-report=term:skip-covered --cov-fail-under=90 $(ARGS)

conformance: .venv/dev-installed ## what takes longer: transports compared, hostile clients, killed processes
	$(BIN)/python -m pytest -q $(CONFORMANCE) $(ARGS)
	TEST_GRPC_TRANSPORT=grpcio $(BIN)/python -m pytest -q tests/contract/protocols -k "not http_fast" $(ARGS)

check: .venv/dev-installed ## lint, types, import contracts, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell --skip="./.venv*,./.bench,./.fuzz,./.git,./gateway/pb,*.json,./.demo,./*cache*" --ignore-words-list="fro,nowns,ot,te,inforce,wieght,weigths,varient,unequality" .
	$(BIN)/mypy gateway router engines tests loadtests
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory protos
	git diff --exit-code -- gateway/pb

bench: .venv/dev-installed bench-tools ## what requests cost, 20 minutes; writes loadtests/results/bench.json
	$(BIN)/python -m loadtests.bench $(ARGS)

bench-smoke: .venv/dev-installed ## CPU per request against the committed baseline; fails on +15 %
	$(BIN)/python -m loadtests.smoke $(ARGS)

bench-tools: .venv/dev-installed ## load generators that package managers of Python and node carry
	@$(BIN)/python -m loadtests.bench.tools

bench-peers: $(PEERS:%=.bench/%/installed) ## other projects' servers, each in a venv under .bench
.bench/%/installed: loadtests/peers/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

load: .venv/dev-installed ## Locust, HTTP and gRPC users, one minute against the demo
	$(BIN)/python -m loadtests.run $(ARGS)

traffic: .venv/dev-installed ## how fast changes spread, what a shadow and a decision cost; 15 minutes
	$(BIN)/python -m loadtests.micro.decide
	$(BIN)/python -m loadtests.shadow
	$(BIN)/python -m loadtests.propagation

log-cost: .venv/dev-installed ## what the prediction log costs and how it is felt; 20 minutes, on a quiet machine
	$(BIN)/python -m loadtests.micro.log_rates
	for what in stopped thread disk; do $(BIN)/python -m loadtests.log_latency $$what; done

perf-analyzer: .venv/dev-installed ## Triton's perf_analyzer, unmodified, against a live gateway
	$(BIN)/python -m loadtests.perf_analyzer $(ARGS)

protos: .venv/dev-installed ## regenerate gateway/pb
	@$(BIN)/python -m grpc_tools.protoc -Igateway/pb=protos --python_out=. --pyi_out=. \
	    protos/inference.proto protos/model_config.proto protos/feedback.proto

format: .venv/dev-installed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

triton-venv: $(TRITON)/installed # tritonclient's messages clash with ours: it lives alone
$(TRITON)/installed: tests/triton/requirements.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip --disable-pip-version-check install -q -r tests/triton/requirements.txt
	@touch $@

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	    "Sluice needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo-installed: .venv/created pyproject.toml constraints.txt
	@echo "installing Sluice and the demo's packages into .venv (about a minute, once)"
	$(PIP) --editable ".[cpu,demo]"
	@touch $@

.venv/dev-installed: .venv/created pyproject.toml constraints.txt
	@echo "installing Sluice and its tools into .venv (about two minutes, once)"
	$(PIP) --editable ".[cpu,demo,load,dev]"
	@touch $@

clean:
	rm -rf .venv $(TRITON) .venv-perf .bench .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
