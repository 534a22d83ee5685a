PYTHON ?= python3
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: help train test test-slow test-demo test-docs test-timm demo docs wheel venv clean

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

test-docs: .venv/.dev  ## run every command in README.md and docs/
	$(BIN)/python -m pytest tests/test_documented_commands.py tests/test_site.py -n auto --dist worksteal

docs: .venv/.dev  ## build the pages into site/, where no link may be broken
	$(BIN)/zensical build --clean --strict

test-timm: .venv/.dev  ## fetch timm's own tests and run them over our names; takes hours, K=nano minutes
	$(BIN)/python -m tests.timm_suite $(if $(K),-k $(K))

wheel: .venv/.core  ## build the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

demo: .venv-demo/.done  ## show pictures to the networks in runs/, in the browser
	.venv-demo/bin/python -m training demo --run runs

test-demo: .venv-demo/.done  ## test the demo in a real browser (needs Chromium)
	.venv-demo/bin/python -m pytest -m "slow or not slow" tests/test_demo.py tests/test_demo_page.py

venv: .venv/.dev  ## create .venv with the project and everything the tests need

clean:  ## remove .venv, .venv-demo and build files (runs/ stays)
	rm -rf .venv .venv-demo .cache build dist site *.egg-info

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
