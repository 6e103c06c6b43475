# For a fresh machine: `make demo`, `make demo-services`, `make test`, `make test-faults`, `make soak`, `make simulate`, `make fuzz` and `make test-containers`. Each makes its own environment and leaves no process behind.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := iterum_sidecar tests testbed benchmarks demo examples deploy

# ASYNC124: a test without an await must be async all the same to run under Trio. ASYNC240: see pyproject.toml.
# ASYNC9xx are off by default, and so here: the hot paths save checkpoints, and say where there is one.
ASYNC_OPTIONS := --disable=ASYNC124,ASYNC240,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913 --startable-in-context-manager=_run_channel,_run_consumer,_keep_connected,_stand

.PHONY: demo demo-services test test-faults test-containers soak simulate fuzz image lock lint bench clean

demo: $(VENV)/.demo
	@$(BIN)/iterum-sidecar local examples/images/pipeline.json --input examples/images/pictures --output demo-results
	@echo
	@echo "Look at demo-results/contact-sheet.jpg. A pipeline of your own: docs/getting-started.md"

demo-services: $(VENV)/.demo-services rabbitmq
	$(BIN)/python -m demo

# One file at a time on each of JOBS processors. To look into one test: ARGS='-n 0 -s tests/unit/test_ledger.py'
JOBS := auto
test: $(VENV)/.dev rabbitmq
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Real outages of real brokers and stores, RabbitMQ 4 among them, one after the other.
test-faults: $(VENV)/.dev rabbitmq
	@testbed/ensure-rabbitmq4 >/dev/null || true
	$(BIN)/python -m pytest tests/faults $(ARGS)

# The row in memory among drawn faults, SEEDS times from the seed FIRST on. One again: .venv/bin/python -m tests.simulation SEED
SEEDS := 10000
FIRST := 0
simulate: $(VENV)/.dev
	$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS) $(ARGS)

# All faults at once, at random: for MINUTES, drawn from SEED (without one, from another each time).
MINUTES := 30
SEED :=
soak: $(VENV)/.dev rabbitmq
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# What strangers send, made up by Atheris: FUZZ_SECONDS for each of the TARGETS (all), beginning with what was found before (.fuzz).
FUZZ_SECONDS := 60
TARGETS :=
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(FUZZ_SECONDS) $(ARGS)

# Mutants of the code on which it stands that nothing is lost, on its fast tests: of all MODULES, or SAMPLE drawn ones of each.
MODULES :=
SAMPLE :=
.PHONY: mutate
mutate: $(VENV)/.dev
	$(BIN)/python -m tests.mutation $(MODULES) $(if $(SAMPLE),--sample $(SAMPLE)) $(ARGS)

test-containers: $(VENV)/.dev
	@testbed/ensure-podman || true
	$(BIN)/python -m pytest tests/containers $(ARGS)

# BASE: an image with Python 3.11 or newer, or "made" for one made here of the system's packages. LOCK=requirements-otel.lock: with traces.
IMAGE := localhost/iterum-sidecar
BASE :=
image:
ifeq ($(BASE),made)
	deploy/image/make-base localhost/python-base
	deploy/image/build $(IMAGE) localhost/python-base
else
	deploy/image/build $(IMAGE) $(BASE)
endif

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "$(BIN)/flake8-async, for each file that has something to do with Trio or AnyIO"
	@grep -rlE --include='*.py' '\basync |trio|anyio' $(SOURCES) | xargs -P 2 -n 20 $(BIN)/flake8-async $(ASYNC_OPTIONS)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The sidecar under each load, and each of its stages alone, beside the floor and others. ARGS='--json FILE' keeps the figures.
bench: $(VENV)/.dev rabbitmq
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: rabbitmq
rabbitmq:
	@testbed/ensure-rabbitmq

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("iterum_sidecar needs Python 3.11 or newer: make PYTHON=python3.11 …") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "install venv for $(PYTHON) (Debian: python3-venv)"; exit 1; }

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	@echo "installing what the demo needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,examples]'
	@touch $@

$(VENV)/.demo-services: $(VENV)/bin/python pyproject.toml
	@echo "installing what the demo with services needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	@echo "installing what the tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.demo-services

$(VENV)/.fuzz: $(VENV)/.dev
	@echo "installing what fuzzing needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

# The image's exact packages, by their hashes.
lock: $(VENV)/.dev
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version=3.11 --generate-hashes --no-header \
	  --output-file=deploy/image/requirements.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version=3.11 --generate-hashes --no-header \
	  --extra=otel --output-file=deploy/image/requirements-otel.lock
	echo 'hatchling>=1.27' | $(BIN)/uv pip compile - --quiet --upgrade --universal --python-version=3.11 --generate-hashes --no-header \
	  --output-file=deploy/image/build-requirements.lock

clean:
	rm -rf deploy/image/wheels $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-results compose-results
	rm -f examples/images/pyterum_debug.log
