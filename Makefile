# `make mnist` and `make test` do everything on a machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
ARGS ?=

.PHONY: mnist test test-slow lint types check soak bench clean

mnist: $(VENV)/run.stamp
	$(RUN) run.py --flagfile=mnist.flags $(ARGS)

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -m 'not slow' --numprocesses=2 --dist=loadfile $(ARGS)

# The tests that are marked slow: whole runs, many replicas, many seeds.
test-slow: $(VENV)/dev.stamp
	$(RUN) -m pytest -m slow --numprocesses=2 --dist=loadfile $(ARGS)

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/dev.stamp
	$(VENV)/bin/mypy trainer models run.py

check: lint types test test-slow

soak: $(VENV)/dev.stamp
	$(RUN) -m tests.soak $(ARGS)
	$(RUN) -m tests.soak_inputs
	$(RUN) -m tests.soak_readers

bench: $(VENV)/dev.stamp
	$(RUN) -m benchmarks.throughput $(ARGS)

# A stamp is newer than its requirements only when they were installed.
$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one with: make PYTHON=python3.12")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
