# NovaCron. `make` alone lists what can be made.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTEST := $(VENV)/bin/pytest

unexport PYTHONDONTWRITEBYTECODE # tests start hundreds of processes: each would compile what it imports, a second's work

.PHONY: help setup system demo test check format bench-migration bench-provision bench-api bench-store bench-wan bench-scheduler bench-scale bench-events bench-failover sim chaos slow lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) system ## Install what is missing: system packages (apt) and the project's own environment

system: $(STAMP)
	@scripts/system-packages

$(STAMP): requirements/dev.txt pyproject.toml scripts/python-environment
	@scripts/python-environment $(VENV)
	@touch $@

demo: setup ## Boot a VM and live-migrate it while a client talks to it (ONCE=1: end by itself, print JSON)
	@$(PY) -m novacron.lab.demo $(if $(ONCE),--once,)

test: setup ## All tests but the slow sets
	@scripts/system-packages test
	@$(PYTEST) -q -n 2 -m "not system and not chaos and not slow" tests
	@$(PYTEST) -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25 -m "system and not alone and not chaos and not slow" tests
	@$(PYTEST) -q --durations=10 -m "alone and not chaos and not slow" tests

check: setup ## Format, lint, types, layers, documents in step with the code
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache
	@$(PYTEST) -q tests/style

format: setup ## Format the code and mend what can be mended
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench-migration: setup ## Live, warm and cold moves against a bare QMP script and, if installed, libvirt; the prediction's error (long)
	@$(PY) -m tests.bench.migration

bench-provision: setup ## Starting, cloning and importing against bare tools; a hundred VMs; a network's gap
	@$(PY) -m tests.bench.provision
	@$(PY) -m tests.bench.gap

bench-api: setup ## Reads and pages of the API with 5,000 VMs in the store
	@$(PY) -m tests.bench.api

bench-store: setup ## Durable commits of the stores against plain sqlite3 and bare etcd transactions; what a lost etcd member costs
	@$(PY) -m tests.bench.store
	@scripts/system-packages test
	@$(PY) -m tests.bench.etcd

bench-wan: setup ## Bytes on a WAN for 2 to 8 like guests against plain QEMU and multifd with zstd (long)
	@$(PY) -m tests.bench.wan

bench-scheduler: setup ## Placing VMs on 100 to 5,000 nodes, alone and in batches, against a bare NumPy argmax
	@$(PY) -m tests.bench.scheduler

bench-scale: setup ## 1,000 simulated agents with 100,000 VMs on one server and etcd: reads, lists, a failed node, a new server's start (long)
	@scripts/system-packages test
	@$(PY) -m tests.bench.scale

bench-events: setup ## Events to 1,000 WebSocket clients, 500 a second, also beside one that does not read, against a bare writer
	@scripts/system-packages test
	@$(PY) -m tests.bench.events

bench-failover: setup ## From a node's loss to its guest answering elsewhere, at the usual times and a fifth of them (long)
	@scripts/system-packages test
	@$(PY) -m tests.bench.failover

sim: setup ## Ownership on virtual time: 2,000 seeds of faults, drawn plans, and every rule broken on purpose
	@$(PY) -m tests.sim.ownership.run --seeds 2000
	@NOVACRON_SIM_EXAMPLES=500 $(PYTEST) -q tests/sim/test_ownership_plans.py tests/sim/test_ownership_mutants.py

chaos: setup ## Thousands of simulated faults and of requests, then real kills in real migrations (slow)
	@NOVACRON_SIM_SEEDS=2000 $(PYTEST) -q -n 2 tests/sim
	@NOVACRON_FUZZ_EXAMPLES=60 $(PYTEST) -q -n 2 tests/control/test_api_fuzz.py
	@$(PYTEST) -q -m chaos tests

slow: setup ## What takes minutes: a Debian image built, booted and set up by cloud-init; a Ceph cluster
	@scripts/system-packages slow
	@$(PYTEST) -q -m slow tests

lock: setup ## Renew requirements/dev.txt (versions and hashes) from pyproject.toml
	@scripts/lock $(VENV)

clean: ## Remove what builds left; ends a demo that was cut off
	@if [ -x $(PY) ]; then $(PY) -m novacron.lab.demo --clean; fi
	rm -rf .build .mypy_cache .ruff_cache .pytest_cache .hypothesis
