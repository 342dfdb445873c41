# `make run` sets up and does the main job; `make test` sets up and runs all tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ENGINE ?= python3
WORKERS ?= 3
QUICK := not slow and not sglang and not vllm and not criu and not ray and not gpu and not alone
SLOW := (slow or sglang or vllm or criu or ray or gpu) and not alone
REQUIRED := TORPOR_REQUIRE_SGLANG=1 TORPOR_REQUIRE_VLLM=1 TORPOR_REQUIRE_RAY=1
# What failed beside other tests on a busy machine runs again by itself, and once more after a minute. Then it fails the run. Only
# pytest's exit code 1 tells of failed tests: after any other one the list of what failed is that of an earlier run.
AGAIN := $(BIN)/pytest -v --last-failed --last-failed-no-failures none --maxfail 1
.PHONY: help torpor setup bytecode engine parsers vllm criu ray measure restores run test quick check lint types docs docs-serve record bench gpu-bench gpu-bench-dummy fuzz soak clean
.DEFAULT_GOAL := help

help:            ## show this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 18

# A new version, too, is installed again: a new project of `torpor new` asks pip for it.
.venv/.made: pyproject.toml core/torpor/_version.py
	@test -n "$(PYTHON)" || { echo "make: no python3 found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.11"; exit 1; }
	@echo "setting up .venv with Torpor (150 MB; a minute without output)"
	@$(PYTHON) -m venv .venv || { echo "make: cannot create a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[testing,store]'
	@touch $@

.venv/.made-dev: .venv/.made requirements/dev.txt requirements/docs.txt
	@echo "adding what tests, lint and the site need to .venv (200 MB; a minute without output)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements/dev.txt --requirement requirements/docs.txt
	@touch $@

torpor: .venv/.made  ## set up .venv with Torpor alone

setup: .venv/.made-dev  ## set up .venv: Torpor and what its tests need

engine: torpor   ## set up the local engine: the real SGLang on the CPU
	@$(BIN)/python scripts/setup-local

parsers: engine  ## fetch the other supported SGLang versions, for their argument parsers
	@$(BIN)/python scripts/setup-local --parsers

vllm: torpor     ## set up the real vLLM on the CPU, and the deployed version's argument parser and routers
	@$(BIN)/python scripts/setup-local --engine vllm --parsers

criu: torpor     ## install CRIU into a private folder of this user; if it cannot work here, say why
	@$(BIN)/torpor snapshot setup || true

.venv/.made-ray: .venv/.made
	@echo "adding Ray Serve to .venv (430 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]'
	@touch $@

ray: .venv/.made-ray ## add Ray Serve to .venv, for the tests of torpor.platforms.ray

bytecode: torpor ## compile Torpor to byte code, as pip does for a wheel
	@$(BIN)/python -m compileall -q core plugins

run: engine criu bytecode ## set up, then start the real SGLang cold and restore it three times; time each first token
	$(BIN)/torpor snapshot compare apps/tiny_cpu.py --restores 3
	@echo "next: $(BIN)/torpor serve apps/tiny_cpu.py   serves it, to zero and back (docs/serve.md)"

test: setup parsers vllm criu ray ## set up, then run all tests, with the real SGLang and the real vLLM (20 minutes on two cores)
	@failed=0; again() { test $$? = 1 || return 1; $(AGAIN) -m "$$1" || { sleep 60; $(AGAIN) -m "$$1"; }; }; set -x; \
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m '$(QUICK)' || again '$(QUICK)' || failed=1; \
	export $(REQUIRED); \
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup --durations 20 -m '$(SLOW)' || again '$(SLOW)' || failed=1; \
	$(BIN)/pytest -v --durations 10 -m alone || again alone || failed=1; \
	exit $$failed

quick: setup     ## run the quick tests, with fewer random examples (one minute on two cores)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --hypothesis-profile quick -m '$(QUICK)'

check: setup lint types  ## lint and types

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup      ## build the site into site/; a warning is an error
	$(BIN)/python -m scripts.site.build
	@echo "open site/index.html, or: make docs-serve"

docs-serve: setup ## build the site and serve it on this machine until Ctrl-C
	$(BIN)/python -m scripts.site.build --serve

measure: engine criu bytecode ## measure cold and restored starts of the real SGLang, replicas, memory (JSON and a table; minutes)
	$(BIN)/python benchmarks/local.py

restores: engine criu bytecode ## restore 1,000 times in a row and look for leaks (five minutes)
	$(BIN)/python benchmarks/local.py --runs 0 --replicas '' --many 1000

record: setup parsers vllm criu ## run the tests that support docs/engine-results.json, and update it
	TORPOR_RECORD=docs/engine-results.json $(BIN)/pytest -m shows

bench: bytecode  ## measure the command line, a start and a wake (JSON and a table)
	$(BIN)/python benchmarks/core.py
	$(BIN)/python benchmarks/guard.py
	$(BIN)/python benchmarks/gateway.py

gpu-bench:       ## measure on a clean machine with a Hopper GPU and docker: real weights, the engine's image; says first what it takes
	$(ENGINE) -m benchmarks.gpu.rented $(if $(ROWS),--rows $(ROWS)) $(if $(IMAGE),--image $(IMAGE)) $(if $(VERSION),--version $(VERSION))

gpu-bench-dummy: ## measure on a Hopper GPU with weights made on the spot, with the engine's Python: make gpu-bench-dummy ENGINE=python3
	$(ENGINE) -m benchmarks.gpu.make_model /tmp/qwen3-8b-fp8
	$(ENGINE) -m benchmarks.gpu.bench --model /tmp/qwen3-8b-fp8

fuzz: setup      ## send 50,000 raw HTTP requests to the guard, half to each HTTP parser, then 20,000 raw streams to the gateway
	$(BIN)/python -m tests.fuzz_guard --requests 25000 --http h11
	$(BIN)/python -m tests.fuzz_guard --requests 25000 --http httptools
	$(BIN)/python -m tests.fuzz_gateway --streams 20000

soak: setup      ## 10 minutes of load with sleeps and wakes (both parsers), 5 of bad clients at the gateway, 10 of five models
	$(BIN)/python -m tests.soak --seconds 300 --http h11
	$(BIN)/python -m tests.soak --seconds 300 --http httptools
	$(BIN)/python -m tests.soak_gateway --seconds 300 --connections 10000
	$(BIN)/python -m tests.soak_serve --seconds 600

clean:           ## remove everything that make has set up here
	rm -rf .venv .engines .mypy_cache .pytest_cache .ruff_cache site
