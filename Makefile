# Everything a newcomer needs:  make demo  and  make test  set up what they use, in .venv; nothing needs root.
#
#   PYTHON=python3.12   the interpreter that .venv is made with
#   PYTEST="-k events"  more arguments for pytest

PYTHON ?= python3
PYTEST ?=
VENV   := .venv
PY     := $(VENV)/bin/python
CSRC   := $(shell find csrc -name '*.[ch]' -o -name '*.def') xenlike/_build.py

.PHONY: help build demo test asan asan-test clean

help:
	@echo 'make build      set up .venv and build the C core; the command is $(VENV)/bin/xenlike'
	@echo 'make demo       two guests on a real disk image'
	@echo 'make test       all tests (PYTEST="-k name -x" adds arguments)'
	@echo 'make asan-test  the tests of the core on a build with AddressSanitizer and UBSan (docs/sanitizers.md)'
	@echo 'make clean      remove what was built, .venv too'

build: $(VENV)/core.stamp

demo: build
	@$(PY) -m xenlike.demo

test: build
	$(PY) -m pytest $(PYTEST)

asan-test: build
	PYTHON=$(abspath $(PY)) scripts/asan_test.sh $(PYTEST)

# The virtual environment, again when what it must hold has changed.
$(VENV)/deps.stamp: pyproject.toml scripts/setup_venv.sh
	@PYTHON=$(PYTHON) scripts/setup_venv.sh $(VENV)
	@touch $@

# The core. The first time it is built by installing the package in place; later only the core is built again.
$(VENV)/core.stamp: $(VENV)/deps.stamp setup.py $(CSRC)
	@echo 'building the C core'
	@if [ -e $(VENV)/installed.stamp ] && [ $(VENV)/installed.stamp -nt pyproject.toml ]; then $(PY) xenlike/_build.py; \
	else $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . && touch $(VENV)/installed.stamp; fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info xenlike/_core.c xenlike/_core.*.so .pytest_cache .hypothesis
	find csrc xenlike -name '*.o' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
