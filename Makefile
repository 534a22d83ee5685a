PYTHON ?= python3
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: help train test test-slow demo test-demo venv clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20

train: .venv/.core  ## train the default backbone on the embedded digits and evaluate it
	$(BIN)/python train.py

test: .venv/.dev  ## lint and run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: .venv/.dev  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal

demo: .venv-demo/.done  ## show pictures to the networks in runs/, in the browser
	.venv-demo/bin/python -m training demo --run runs

test-demo: .venv-demo/.done  ## test the demo in a real browser (needs Chromium)
	.venv-demo/bin/python -m pytest -m "slow or not slow" tests/test_demo.py tests/test_demo_page.py

venv: .venv/.dev  ## create .venv with the project and everything the tests need

clean:  ## remove .venv, .venv-demo and build files (runs/ stays)
	rm -rf .venv .venv-demo build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, but $(PYTHON) is {v[0]}.{v[1]}; use make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/.core: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch .venv/.core $@

.venv-demo/.done: setup.cfg pyproject.toml requirements-demo.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --editable . -r requirements-demo.txt playwright pytest
	touch $@
