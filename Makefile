# Everything a newcomer needs:  make demo  and  make test  set up what they use, in .venv; nothing needs root.
#
#   PYTHON=python3.12      the interpreter that .venv is made with
#   PYTEST="-k events -x"  more arguments for pytest
#   BENCH="--quick"        more arguments for the benchmarks
#   LOCKSTEP="--seed 7"    more arguments for lockstep
#   FUZZ="--minutes 60"    more arguments for the fuzzers

PYTHON ?= python3
PYTEST ?=
BENCH  ?=
LOCKSTEP ?=
FUZZ   ?=
VENV   := .venv
PY     := $(VENV)/bin/python
CSRC   := $(shell find csrc -name '*.[ch]' -o -name '*.def') xenlike/_build.py

.PHONY: help build demo test bench lockstep wheel-test asan-test fuzz clean

help:
	@echo 'make build       set up $(VENV) and build the C core; the command is then $(VENV)/bin/xenlike'
	@echo 'make demo        guests in Python and C, and GRUB, with real disks'
	@echo 'make test        all tests'
	@echo 'make bench       what is measured, as a table and in build/bench.json'
	@echo 'make lockstep    ten million random sequences on this CPU, the interpreter and the translator (docs/lockstep.md)'
	@echo 'make asan-test   tests of the core on a build with AddressSanitizer and UBSan (docs/sanitizers.md)'
	@echo 'make fuzz        the fuzzers with fresh seeds, for five minutes'
	@echo 'make wheel-test  source distribution and wheel: build, install, use'
	@echo 'make clean       remove all that was built, $(VENV) too'

build: $(VENV)/core.stamp

demo: build
	@$(PY) -m xenlike.demo

test: build
	$(PY) -m pytest $(PYTEST)

bench: build
	@mkdir -p build
	$(PY) tests/bench --json build/bench.json $(BENCH)

lockstep:
	tests/lockstep/build.sh build/lockstep
	jobs=$$(nproc); jobs=$$((jobs < 16 ? jobs : 16)); \
	build/lockstep/lockstep --sequences 10000000 --histogram --jobs $$jobs $(LOCKSTEP) && \
	build/lockstep/lockstep --sequences 1000000 --translate 15 --jobs $$jobs $(LOCKSTEP) && \
	build/lockstep/lockstep --sequences 200000 --translate 16 --jobs $$jobs $(LOCKSTEP)

asan-test: build
	PYTHON=$(abspath $(PY)) scripts/asan_test.sh $(PYTEST)

fuzz: build
	$(PY) scripts/fuzz.py $(FUZZ)

wheel-test: build
	PYTHON=$(abspath $(PY)) scripts/wheel_test.sh

$(VENV)/deps.stamp: pyproject.toml scripts/setup_venv.sh
	@PYTHON=$(PYTHON) scripts/setup_venv.sh $(VENV)
	@touch $@

$(VENV)/install.stamp: $(VENV)/deps.stamp setup.py
	@scripts/setup_venv.sh --install $(VENV)
	@touch $@ $(VENV)/core.fresh

# Installing has built the core; from then on it is built alone.
$(VENV)/core.stamp: $(VENV)/install.stamp $(CSRC)
	@if [ -e $(VENV)/core.fresh ]; then rm $(VENV)/core.fresh; \
	else echo "building xenlike's C core" && $(PY) xenlike/_build.py; fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info xenlike/_core.c xenlike/_core.*.so .pytest_cache .hypothesis
	find csrc xenlike -name '*.o' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
