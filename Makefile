# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Each target works on a fresh Debian 12 or 13 machine as root: it installs the packages that it needs, and changes
# nothing else on the machine. What is built goes to build/ and dist/.

# Debian's Python, which the package uses, whatever else is in PATH.
PYTHON = /usr/bin/python3
VENV = build/venv
FUZZ_VENV = build/fuzz-venv
BENCH_VENV = build/bench-venv
RUNS = 1000000
SESSIONS = 2000
SEED = 1
MODE = forward
SUITE = trixie
TARGET = demo
PYTEST = $(PYTHON) -m pytest

.PHONY: help
help: ## Show this help
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo
	@echo 'PYTEST_ARGS="-k name -x" narrows any of the tests.'

.PHONY: deb
deb: ## Build dist/ooodd_*.deb from the work tree, with uncommitted changes
	packaging/build-deb

.PHONY: demo
demo: test-tools deb ## Install the package on a throwaway machine and convert real documents through port 2002
	PYTHONPATH=src tests/machine/demo

.PHONY: test
test: test-tools deb test-acceptor ## Run the tests of CI: one of each feature, at most 25 minutes on 2 cores
	$(PYTEST) -m "not long" tests/unit tests/office tests/machine tests/attacks $(PYTEST_ARGS)

.PHONY: test-long
test-long: test-tools deb ## Run the long and repeated tests, which `make test` leaves out
	$(PYTEST) -m long tests/unit tests/office tests/machine tests/attacks $(PYTEST_ARGS)

.PHONY: test-full
test-full: test-tools deb ## Run tests on a Debian with all that people install (SUITE=bookworm|trixie)
	OOODD_TESTS_ROOT=$$(packaging/tests-root $(SUITE)-full) $(PYTEST) $(PYTEST_ARGS) \
		$(addprefix tests/machine/test_,convert.py corpus.py documents.py features.py installations.py programs.py)

.PHONY: test-all
test-all: ## Run everything: both rings, soak, fuzz, Debian 12 and 13; takes hours (docs/tests.md)
	packaging/test-all $(PARTS)

.PHONY: test-unit
test-unit: test-tools ## Run the tests that need neither LibreOffice nor systemd
	$(PYTEST) tests/unit $(PYTEST_ARGS)

.PHONY: test-acceptor
test-acceptor: test-tools ## Run the tests of the acceptor's C++, with AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) -C src/acceptor check

.PHONY: test-handoff
test-handoff: test-tools deb ## Run the tests of broker, machine and attacks with [data_path] mode = "handoff"
	OOODD_TESTS_MODE=handoff $(PYTEST) -m "not long" tests/unit/broker tests/machine tests/attacks $(PYTEST_ARGS)

.PHONY: test-office
test-office: test-tools ## Run the tests that need LibreOffice, but no systemd
	$(PYTEST) tests/office $(PYTEST_ARGS)

.PHONY: test-machine
test-machine: test-tools deb ## Run the tests on a booted throwaway machine, with the package installed
	$(PYTEST) tests/machine $(PYTEST_ARGS)

.PHONY: test-attacks
test-attacks: test-tools deb ## Run the tests that attack the pool and the machine, on a booted throwaway machine
	$(PYTEST) tests/attacks $(PYTEST_ARGS)

.PHONY: fresh
fresh: ## Run README's `make TARGET` on a fresh Debian that has just booted (SUITE=bookworm|trixie TARGET=demo|test)
	packaging/fresh $(SUITE) $(TARGET)

.PHONY: tests-root
tests-root: ## Make build/roots/SUITE, a Debian to test on: OOODD_TESTS_ROOT=build/roots/trixie make test-machine
	packaging/tests-root $(SUITE)

.PHONY: reproducible
reproducible: ## Build the package of HEAD twice, in different places, and compare
	packaging/reproducible

.PHONY: lintian
lintian: deb ## Check the package with the lintian of a Debian (SUITE=bookworm|trixie)
	packaging/lintian $(SUITE)

.PHONY: soak
soak: test-tools deb ## Run thousands of sessions with random faults, and account for each (SESSIONS=2000 SEED=1 MODE=forward)
	OOODD_TESTS_MODE=$(MODE) tests/soak/run --sessions $(SESSIONS) --seed $(SEED) $(SOAK_ARGS)

.PHONY: fuzz
fuzz: test-tools $(FUZZ_VENV)/made ## Fuzz the decoder of the UNO protocol, guided by coverage (RUNS=1000000)
	$(FUZZ_VENV)/bin/python tests/fuzz/fuzz_urp.py --seeds build/fuzz-corpus
	$(FUZZ_VENV)/bin/python tests/fuzz/fuzz_urp.py -runs=$(RUNS) -max_len=4096 -timeout=5 -verbosity=0 \
		-print_final_stats=1 -artifact_prefix=build/fuzz- build/fuzz-corpus

.PHONY: bench
bench: test-tools deb $(BENCH_VENV)/made build/corpus/made ## Measure what ooodd costs, and write docs/benchmarks.md
	benchmarks/run

$(BENCH_VENV)/made: benchmarks/requirements.txt
	$(PYTHON) -m venv --system-site-packages $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

build/corpus/made: packaging/test-corpus
	mkdir -p build/corpus
	packaging/test-corpus $(CURDIR)/build/corpus
	touch $@

.PHONY: lint
lint: lint-tools $(VENV)/made ## Check the source: ruff, mypy, shellcheck, units, versions, commit subjects
	packaging/lint $(VENV)

.PHONY: format
format: lint-tools $(VENV)/made ## Format the source with ruff
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -r {} +

.PHONY: test-tools lint-tools
test-tools:
	@packaging/apt-install packaging/test-packages.txt

lint-tools:
	@packaging/apt-install packaging/lint-packages.txt

# With Debian's Python packages, so that mypy sees the types of the libraries that the package uses.
$(VENV)/made: packaging/lint-requirements.txt | lint-tools
	rm -rf $(VENV)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

$(FUZZ_VENV)/made: tests/fuzz/requirements.txt | test-tools
	rm -rf $(FUZZ_VENV)
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
