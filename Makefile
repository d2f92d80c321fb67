# rectutor: `make book` builds the book, `make check` and `make test` test it; `make` lists the rest.

PYTHON ?= python3
VENV ?= .venv
NAME ?=
PORT ?= 8000
PY := $(VENV)/bin/python
TEST_RESULTS := $(CURDIR)/_build/test-results
ifeq ($(OS),Windows_NT)  # in Git's bash
SHELL := bash
PY := $(VENV)/Scripts/python.exe
endif

export PYTHONUTF8 = 1
export JUPYTER_PLATFORM_DIRS = 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# glibc hands large blocks back to the system, which clears them anew at the next training step
export GLIBC_TUNABLES = glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184

.DEFAULT_GOAL := help
.PHONY: help setup setup-test book html pdf chapter serve record scripts check test lint unit notebooks pages \
	missing backends notebooks-only bench bench-peers study test-nightly mutation linkcheck \
	audit repository edition development edition-check lock clean

help:  ## list the targets, a line each
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
		awk -F'\t' '{ printf "make %-14s %s\n", $$1, $$2 }'

setup: $(VENV)/.ready  ## make the virtual environment and install what the book needs

$(VENV)/.ready: requirements.txt pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/install.sh -r requirements.txt
	@touch $@

setup-test: setup  ## the same, and what only some tests need (PyTorch, a browser)
	@$(PY) -m tools.extras install

book: setup  ## execute the chapters that changed, then render the book; nothing tracked changes
	@$(PY) -m tools.book run
	@$(PY) -m tools.book render

html: setup  ## render the book without executing anything
	@$(PY) -m tools.book render

pdf: setup-test html  ## print the rendered book to _build/book.pdf, where there is a Chromium
	@$(PY) -m tools.pdf

chapter: setup  ## execute one chapter: make chapter NAME=ranking
	@$(PY) -m tools.book run --force $(or $(NAME),$(error say which: make chapter NAME=ranking))

serve: setup  ## serve what `make book` left to serve: make serve [PORT=8000]
	@$(PY) -m rectutor.serve _build/results/serving --port $(PORT)

record: setup  ## take what `make book` executed over: notebooks, results, README, pages
	@$(PY) -m tools.book record

scripts: setup  ## run every chapter as a plain script
	@$(PY) -m tools.book scripts

# a class or module stays with one worker, which then makes its models and runs once
UNIT = $(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder
QUICK = not torch and not browser and not long and not nightly

check: lint  ## lint, types and the quick tests: some five minutes, and nothing else is installed
	@$(UNIT) -m "$(QUICK)" --doctest-modules tests rectutor --ignore=tests/browser \
		--ignore=tests/acceptance

# whatever needs PyTorch or a browser says so at the end where that is missing
test: setup-test lint unit notebooks pages missing  ## lint, every test, chapters, the built book

missing:
	@$(PY) -m tools.extras missing

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m tools.repository check
	@$(PY) -m tools.readme check
	@$(PY) -m benchmarks.report check

unit: setup-test
	@$(UNIT) -m "not browser and not nightly" --doctest-modules tests rectutor \
		--ignore=tests/browser --ignore=tests/acceptance --cov --cov-report=term:skip-covered

NBVAL = $(PY) -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env \
	--nbval-cell-timeout=7200 --durations=5
NOTEBOOK_JOBS ?= 2

# the chapters run into a results folder of their own, which the acceptance tests then read
notebooks: notebooks-only
	@RECTUTOR_RESULTS="$(TEST_RESULTS)" $(PY) -m pytest tests/acceptance

# two at a time (a GPU takes one: NOTEBOOK_JOBS=0); what only reads comes last
notebooks-only: setup
	@rm -rf "$(TEST_RESULTS)" && mkdir -p "$(TEST_RESULTS)"
	@RECTUTOR_RESULTS="$(TEST_RESULTS)" $(NBVAL) -n $(NOTEBOOK_JOBS) --dist loadscope \
		$$($(PY) -m tools.book list --models)
	@RECTUTOR_RESULTS="$(TEST_RESULTS)" $(NBVAL) $$($(PY) -m tools.book list --readers)

pages: setup-test
	@$(PY) -m tools.book render
	@$(PY) -m pytest -m browser tests/browser tests/test_book_pages.py

backends: setup-test  ## run the chapters' short setting on each backend: make backends [BACKEND=jax]
	@$(PY) -m pytest tests/test_backends.py -k "$(or $(BACKEND),jax or tensorflow or torch)"

test-nightly: setup-test  ## the long versions of the tests
	@RECTUTOR_HYPOTHESIS=nightly $(UNIT) -m "not browser" tests --ignore=tests/acceptance

bench: setup-test  ## measure the book beside its peers, and write its page (25 minutes)
	@$(PY) -m benchmarks.bench

bench-peers: setup  ## measure myFM and RecBole in environments of their own, for the same page
	@PYTHON="$(PYTHON)" sh benchmarks/peers.sh
	@$(PY) -m benchmarks.report write

study: setup  ## train what the book's claims rest on: make study [NAME=sasrec] (hours, goes on where it stopped)
	@$(PY) -m study run $(NAME)
	@$(PY) -m study summary

$(VENV)/.ready-mutation: $(VENV)/.ready requirements-mutation.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/install.sh -c requirements.txt -r requirements-mutation.txt
	@touch $@

mutation: $(VENV)/.ready-mutation  ## change the code in small ways: does a test fail? (half an hour)
	@RECTUTOR_HYPOTHESIS=mutation $(PY) -m mutmut run </dev/null
	@$(PY) -m mutmut results

linkcheck: setup  ## check the links to other sites (needs the internet)
	@$(PY) -m tools.book render --builder linkcheck

audit: setup  ## look for known vulnerabilities in the pinned packages (needs the internet)
	@$(PY) -m pip_audit -r requirements.txt --no-deps --disable-pip

lock:  ## pin the newest releases of requirements.in in requirements.txt, for every system
	@PYTHON="$(PYTHON)" sh tools/lock.sh

repository: setup  ## publish from elsewhere: make repository SLUG=owner/name [BRANCH=main]
	@$(PY) -m tools.repository set $(or $(SLUG),$(error say where: make repository SLUG=owner/name)) $(BRANCH)

edition: setup  ## name the tag vX.Y.Z everywhere, before tagging: make edition VERSION=X.Y.Z
	@$(PY) -m tools.repository edition $(or $(VERSION),$(error say which: make edition VERSION=0.2.0))

development: setup  ## name the branch again, after tagging
	@$(PY) -m tools.repository development

edition-check: setup  ## is this tree that tag's edition? make edition-check TAG=v0.2.0
	@$(PY) -m tools.repository tag "$(or $(TAG),$(GITHUB_REF_NAME))"

clean:  ## remove what was built and executed; keep the environment and what is committed
	rm -rf _build results/figures results/checkpoints .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .coverage
