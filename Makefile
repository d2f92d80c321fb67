# rectutor: `make book` builds the book, `make test` runs every test; `make` lists the rest.

PYTHON ?= python3
VENV ?= .venv
NAME ?=
PY := $(VENV)/bin/python
TEST_RESULTS := $(CURDIR)/_build/test-results

export JUPYTER_PLATFORM_DIRS = 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# for a Jupyter kernel, where chapter.prepare_process comes too late: it has threads by then
export GLIBC_TUNABLES = glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184

.DEFAULT_GOAL := help
.PHONY: help setup setup-test book html chapter scripts test lint unit notebooks pages \
	backends notebooks-only bench bench-peers bench-seeds test-nightly mutation linkcheck audit \
	repository lock clean

help:  ## list the targets, a line each
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
		awk -F'\t' '{ printf "make %-14s %s\n", $$1, $$2 }'

setup: $(VENV)/.ready  ## make the virtual environment and install what the book needs

$(VENV)/.ready: requirements.txt pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/install.sh -r requirements.txt
	@touch $@

setup-test: $(VENV)/.ready-test  ## the same, and what only the tests need (PyTorch, a browser)

$(VENV)/.ready-test: $(VENV)/.ready requirements-torch.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/install.sh -r requirements-torch.txt
	@sh tools/browser.sh $(PY)
	@touch $@

book: setup  ## execute the chapters that changed, then render the book
	@$(PY) tools/book.py run
	@$(PY) tools/readme.py write
	@$(PY) -m benchmarks.report write
	@$(PY) tools/book.py render

html: setup  ## render the book from the notebooks as they are
	@$(PY) tools/book.py render

chapter: setup  ## execute one chapter: make chapter NAME=ranking
	@$(PY) tools/book.py run --force $(or $(NAME),$(error say which: make chapter NAME=ranking))
	@$(PY) tools/readme.py write
	@$(PY) -m benchmarks.report write

scripts: setup  ## run every chapter as a plain script
	@$(PY) tools/book.py scripts

test: setup-test lint unit notebooks pages  ## lint, unit tests, chapters, a book build, its pages

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) tools/repository.py check
	@$(PY) tools/readme.py check
	@$(PY) -m benchmarks.report check

# a class or module stays with one worker, which then makes its models and runs once
UNIT = $(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

unit: setup-test
	@$(UNIT) -m "not browser and not nightly" --doctest-modules tests rectutor \
		--ignore=tests/browser --cov --cov-report=term:skip-covered \
		--reliability _build/reliability.json
	@$(PY) tools/reliability.py check

NBVAL = $(PY) -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env \
	--nbval-cell-timeout=7200 --durations=5
NOTEBOOK_JOBS ?= 2

# the chapters run into a results folder of their own, which the acceptance tests then read
notebooks: notebooks-only
	@RECTUTOR_RESULTS="$(TEST_RESULTS)" $(PY) -m pytest tests/acceptance

# two at a time (a GPU takes one: NOTEBOOK_JOBS=0); the leaderboard reads what they stored
notebooks-only: setup
	@rm -rf "$(TEST_RESULTS)" && mkdir -p "$(TEST_RESULTS)"
	@RECTUTOR_RESULTS="$(TEST_RESULTS)" $(NBVAL) -n $(NOTEBOOK_JOBS) --dist loadscope \
		$$($(PY) tools/book.py list | grep -v leaderboard)
	@RECTUTOR_RESULTS="$(TEST_RESULTS)" $(NBVAL) notebooks/leaderboard.ipynb

backends: setup-test  ## run the chapters' short setting on each backend: make backends [BACKEND=jax]
	@$(PY) -m pytest tests/test_backends.py -k "$(or $(BACKEND),backend)"

bench: setup-test  ## measure the book beside its peers, and write its page (25 minutes)
	@$(PY) -m benchmarks.bench

bench-peers: setup  ## measure RecBole in an environment of its own, for the same page
	@PYTHON="$(PYTHON)" sh benchmarks/peers.sh
	@$(PY) -m benchmarks.report write

bench-seeds: setup  ## run every chapter with two more seeds, for the same page
	@$(PY) -m benchmarks.quality seeds
	@$(PY) -m benchmarks.report write

pages: setup-test
	@$(PY) tools/book.py render
	@$(PY) -m pytest -m browser tests/browser tests/test_book_pages.py

test-nightly: setup-test  ## the long versions of the tests
	@RECTUTOR_HYPOTHESIS=nightly $(UNIT) -m "not browser"

$(VENV)/.ready-mutation: $(VENV)/.ready requirements-mutation.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/install.sh -c requirements.txt -r requirements-mutation.txt
	@touch $@

mutation: $(VENV)/.ready-mutation  ## change the code in small ways: does a test fail? (half an hour)
	@$(PY) tools/mutation.py run

linkcheck: setup  ## check the links to other sites (needs the internet)
	@$(VENV)/bin/jupyter-book build --builder linkcheck .

audit: setup  ## look for known vulnerabilities in the pinned packages (needs the internet)
	@$(PY) -m pip_audit -r requirements.txt --no-deps --disable-pip

lock:  ## pin the newest releases of requirements.in in requirements.txt
	@PYTHON="$(PYTHON)" sh tools/lock.sh

repository: setup  ## publish from elsewhere: make repository SLUG=owner/name [BRANCH=main]
	@$(PY) tools/repository.py set $(or $(SLUG),$(error say where: make repository SLUG=owner/name)) $(BRANCH)

clean:  ## remove what was built; keep the environment and the executed notebooks
	rm -rf _build results/figures results/checkpoints .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .coverage
