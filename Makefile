# make lab     set up once, then open the course in JupyterLab (PORT=8888, BROWSER=0 to open no browser)
# make test    set up once, then run every test; test-unit, test-labs and so on run one stage (STAGES below)
# make html    write executed HTML copies of all labs to html/
# make measure run every lab on one thread; note its time and memory in labs/measured.json and in its header
# make lint    check the style of the package, the tests and the notebooks

PORT ?= 8888
VENV := .venv
BIN := $(VENV)/bin
# As many test workers as there are cores, at 2 GB of free memory each, and at least one. A test of an engine starts ten
# processes, which mostly wait: at 3 GB each.
workers = $(shell awk -v cores=$$(nproc 2>/dev/null || echo 1) '/MemAvailable/ {n = int($$2 / $(1)e6)} \
	END {print n < 1 ? 1 : n < cores ? n : cores}' /proc/meminfo 2>/dev/null || echo 1)
WORKERS ?= $(call workers,2)
ENGINES ?= $(call workers,3)

export GOMP_SPINCOUNT := 0
export TOKENIZERS_PARALLELISM := false
export FLWR_TELEMETRY_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

STAGES := lint unit labs simulation engines browser
REPORTS := .reports

.PHONY: lab test $(STAGES:%=test-%) test-readme check-links check-recordings test-processors test-binder test-wheels test-lowest html measure lint clean
.DEFAULT_GOAL := lab

# The stamp files say which step of the set-up is done, so that the second time is quick.
$(VENV)/made:
	@python=; for one in $(PYTHON) python3 python3.12 python3.11 python3.13 python; do \
	  if $$one -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then python=$$one; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "FedGen Lab needs Python 3.11, 3.12 or 3.13, and none is on the PATH. Install one, or name it: make lab PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python can't make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	fi; \
	echo "Making a virtual environment in $(VENV) with $$($$python --version)."; $$python -m venv $(VENV)
	@touch $@

$(VENV)/lab-installed: $(VENV)/made pyproject.toml install_torch.py binder/jupyterlab-settings.json
	@echo "Installing the lab; the first time this takes a few minutes."
	@$(BIN)/python install_torch.py
	@$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/test-installed: $(VENV)/lab-installed
	@echo "Installing what the tests need."
	@$(BIN)/python -m pip install -q -e ".[hub,simulation,test]"
	@touch $@

lab: $(VENV)/lab-installed
	$(BIN)/jupyter lab --port=$(PORT) --LabApp.default_url=/lab/tree/labs/00_start_here.ipynb \
	  $(if $(filter 0,$(BROWSER)),--no-browser) $(if $(filter 0,$(shell id -u)),--allow-root)

# The quick tests come first, so that a mistake shows early; every lab then runs from top to bottom, its peak memory watched.
# A red stage doesn't keep the next ones from running: the summary names all that failed, and the ten slowest tests.
# Only the labs need nbval, which takes every worker three seconds to load.
PLAIN = $(BIN)/pytest -q -o addopts=-ra -p no:nbval --junitxml=$(REPORTS)/$(@:test-%=%).xml
# Ray gives its parts seconds to start, which they miss beside a second test worker.
SIMULATION := tests/engines/test_simulation.py

test: $(VENV)/test-installed
	@rm -rf $(REPORTS); red=; for stage in $(STAGES); do \
	  echo "--- $$stage"; $(MAKE) --no-print-directory test-$$stage || red="$$red $$stage"; \
	done; $(BIN)/python tests/summary.py $(REPORTS) $$red

test-lint: lint

test-unit: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PLAIN) -n $(WORKERS) --dist loadfile tests/unit tests/golden tests/labs

test-labs: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --nbval-lax --nbval-current-env --junitxml=$(REPORTS)/labs.xml labs

test-simulation: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PLAIN) $(SIMULATION)

test-engines: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PLAIN) -n $(ENGINES) --dist loadfile tests/engines --ignore $(SIMULATION)

test-browser: $(VENV)/test-installed
	$(PLAIN) -n $(ENGINES) --dist loadfile tests/browser

lint: $(VENV)/test-installed
	$(BIN)/ruff check fedgen_lab labs tests data conftest.py install_torch.py
	$(BIN)/ruff format --check -q fedgen_lab tests data conftest.py install_torch.py

measure: $(VENV)/test-installed
	$(BIN)/python tests/measure.py

# The tests as other processors would compute them: one-thread, two-threads, avx2 (labs too) and baseline; one after the
# other, or one by name: test-processors-avx2.
test-processors: $(VENV)/test-installed
	$(BIN)/python tests/processors.py --workers $(WORKERS)

test-processors-%: $(VENV)/test-installed
	$(BIN)/python tests/processors.py --workers $(WORKERS) $*

# README's commands as they stand there, some fifteen minutes; and links to other hosts. Weekly, for they need a network.
test-readme: $(VENV)/test-installed
	$(PLAIN) tests/readme

check-links: $(VENV)/test-installed
	$(BIN)/python tests/links.py

# Recorded points computed again, within the bounds that processors differ by. Weekly; a few minutes.
check-recordings: $(VENV)/test-installed
	OMP_NUM_THREADS=1 $(PLAIN) tests/recordings

# Binder's base environment as repo2docker locks it, and lab 03's dashboard there; weekly. It keeps 2.5 GB in .venv-binder/.
test-binder: $(VENV)/made
	$(BIN)/python tests/binder/base_lock.py

# Wheels for Windows, macOS and Linux: what pip would have to build has no place among the dependencies. Weekly.
test-wheels: $(VENV)/test-installed
	$(BIN)/python tests/install/wheels.py

# Unit tests and labs with the oldest versions that are allowed, on Python 3.11; weekly. It keeps .venv-lowest/.
test-lowest: $(VENV)/test-installed
	$(BIN)/python tests/install/lowest.py -n $(WORKERS) --dist loadfile

html: $(VENV)/test-installed
	$(BIN)/python -m fedgen_lab html

clean:
	rm -rf $(VENV) .venv-binder .venv-lowest $(REPORTS) html build dist
