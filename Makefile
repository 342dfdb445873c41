# Two commands do everything: `make run` (set up, then the main job) and `make test` (set up, then all tests).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ENGINE ?= python3
QUICK := not slow and not sglang and not vllm and not criu and not gpu and not alone
SLOW := (slow or sglang or vllm or criu or gpu) and not alone
REQUIRED := TORPOR_REQUIRE_SGLANG=1 TORPOR_REQUIRE_VLLM=1
.PHONY: help setup bytecode engine parsers vllm criu measure restores run test quick check lint types docs record bench gpu-bench fuzz soak clean
.DEFAULT_GOAL := help

help:            ## show this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 18

.venv/.made: pyproject.toml requirements/dev.txt requirements/docs.txt
	@test -n "$(PYTHON)" || { echo "make: no python3 found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.11"; exit 1; }
	@echo "setting up .venv (350 MB; a minute or two)"
	@$(PYTHON) -m venv .venv || { echo "make: no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[testing]' --requirement requirements/dev.txt \
	  --requirement requirements/docs.txt
	@touch $@

setup: .venv/.made  ## set up .venv: Torpor and what its tests need

engine: setup    ## set up the local engine: the real SGLang on the CPU
	@$(BIN)/python scripts/setup-local

parsers: engine  ## fetch the other supported SGLang versions, for their argument parsers
	@$(BIN)/python scripts/setup-local --parsers

vllm: setup      ## set up the real vLLM on the CPU, and the deployed version's argument parser and routers
	@$(BIN)/python scripts/setup-local --engine vllm --parsers

criu: setup      ## get CRIU into a private folder of this user; where it cannot work, say why
	@$(BIN)/torpor snapshot setup || true

bytecode: setup  ## byte code of Torpor itself, as pip makes it of a wheel; Python makes it by itself unless it is told not to
	@$(BIN)/python -m compileall -q core plugins

run: engine criu bytecode ## set up, then the main job: one cold start of the real SGLang and three restores, first token each
	$(BIN)/torpor snapshot compare apps/tiny_cpu.py --restores 3

test: parsers vllm criu ## set up, then all tests that this machine can run, the real SGLang and the real vLLM included
	@failed=0; set -x; \
	$(BIN)/pytest -n 3 -m '$(QUICK)' || failed=1; \
	$(REQUIRED) $(BIN)/pytest -n 3 --dist loadgroup --durations 20 -m '$(SLOW)' || failed=1; \
	$(REQUIRED) $(BIN)/pytest -v --durations 10 -m alone || failed=1; \
	exit $$failed

quick: setup     ## the tests that end within a minute
	$(BIN)/pytest -n 3 -m '$(QUICK)'

check: setup lint types  ## lint and types

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup      ## build the site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

measure: engine criu bytecode ## cold and restored starts of the real SGLang, replicas, memory (JSON and a table; some minutes)
	$(BIN)/python benchmarks/local.py

restores: engine criu bytecode ## 1,000 restores in a row, and what they leave behind (some five minutes)
	$(BIN)/python benchmarks/local.py --runs 0 --replicas '' --many 1000

record: parsers vllm criu ## run what shows something of an engine, and write it into docs/engine-results.json
	TORPOR_RECORD=docs/engine-results.json $(BIN)/pytest -m shows

bench: bytecode  ## what the command line, a start and a wake cost (JSON and a table)
	$(BIN)/python benchmarks/core.py
	$(BIN)/python benchmarks/guard.py

gpu-bench:       ## on a machine with a Hopper card, by the engine's Python: make gpu-bench ENGINE=python3 (some ten minutes)
	$(ENGINE) -m benchmarks.gpu.make_model /tmp/qwen3-8b-fp8
	$(ENGINE) -m benchmarks.gpu.bench --model /tmp/qwen3-8b-fp8

fuzz: setup      ## 50,000 raw HTTP requests against the guard, half of them with either parser
	$(BIN)/python -m tests.fuzz_guard --requests 25000 --http h11
	$(BIN)/python -m tests.fuzz_guard --requests 25000 --http httptools

soak: setup      ## 10 minutes of mixed load with sleeps and wakes in between (both parsers), 5 of bad clients at the public port
	$(BIN)/python -m tests.soak --seconds 300 --http h11
	$(BIN)/python -m tests.soak --seconds 300 --http httptools
	$(BIN)/python -m tests.soak_gateway --seconds 300 --connections 10000

clean:           ## remove everything that was set up here
	rm -rf .venv .engines .mypy_cache .pytest_cache .ruff_cache site
