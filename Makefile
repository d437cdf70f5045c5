# `make demo` and `make test` are each enough on a machine with Python 3.11 or newer and make. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
DEMO_OUTPUT ?= demo
# As many candidates as a card of the showcase has places.
DEMO_CANDIDATES ?= 9
DEMO_PROMPTS ?= \
  "a snail to the left of a red car" "a cake on top of a piano" "two cats under a rainbow" \
  "a rocket on a black background" "a sunflower in the top left corner on a light blue background" \
  "an octopus below a crown on a sea gradient"
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

SITE := build/docs
# The script that draws the diagrams of the site.
MERMAID := build/mermaid.min.js
# The tests of the page in a browser.
WEB := tests/web
FIGURES ?= figures

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-hours test-golden test-golden-oldest test-golden-newest test-smoke test-smoke-lowest test-smoke-newest docs figures clean

# The lowest jax that setup.cfg allows, and an interpreter for which pip finds the newest. Python 3.11 stays at jax 0.10.
OLDEST_JAX := 0.10.0
NEWEST_PYTHON ?= $(firstword $(wildcard $(shell pyenv root 2>/dev/null)/versions/3.13*/bin/python3.13) python3.13)
# Compiled as users' programs are: the other tests leave out most optimisations (tests/conftest.py).
OPTIMIZED := JAX_DISABLE_MOST_OPTIMIZATIONS=0
# The slow ones too, but for those that need the TPU's compiler.
GOLDEN_TESTS := -m "not hours" --ignore tests/generation/test_tpu.py $(PYTEST_ARGS) \
  tests/generation tests/models tests/runtime/test_xla.py tests/test_pipeline.py tests/test_shipped.py tests/training/test_golden_curve.py

help:
	@echo "make demo       six prompts drawn with the model in the package, into ./$(DEMO_OUTPUT)/showcase.png"
	@echo "make test       lint, format, layers and types, and the quick tests"
	@echo "make test-slow  the tests that take minutes, with torch and the TPU's compiler"
	@echo "make test-hours  the longest of them: before a release"
	@echo "make test-golden  the comparisons with the original program, on the oldest and the newest jax (-oldest, -newest: one)"
	@echo "make docs       the site, into ./$(SITE)/html/index.html"
	@echo "make figures    the tables of the docs that quote the shipped model, into ./$(FIGURES); hours, on a quiet machine"
	@echo "make test-smoke  a minute's work with the lowest versions of all libraries, and with the newest (-lowest, -newest: one)"
	@echo "make clean      remove $(VENV)* and ./$(DEMO_OUTPUT)"
	@echo "Each sets up $(VENV) first where it must. PYTHON=python3.12 picks the interpreter (now: $(PYTHON))."

# The stamps depend on setup.cfg alone: a second `make demo` installs nothing.
$(VENV)/.core: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setting up $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: python could not make $(VENV); on Debian and Ubuntu install python3-venv first" >&2; exit 2; }
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "installing the test tools into $(VENV)"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@

# Programs that the slow tests compare ours with: torch, and the TPU's compiler.
$(VENV)/.oracles: $(VENV)/.test
	@echo "installing torch, transformers and libtpu into $(VENV)"
	@$(PIP_INSTALL) --editable '.[test,oracle,plan]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "installing what builds the site into $(VENV)"
	@$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

$(MERMAID):
	@mkdir -p $(@D)
	@npm pack --silent --pack-destination $(@D) mermaid@11.17.2 > $@.log 2>&1 || { cat $@.log; \
	  echo "error: npm could not fetch mermaid, which draws the site's diagrams; on Debian and Ubuntu install npm" >&2; exit 2; }
	@tar -xzO -f $(@D)/mermaid-11.17.2.tgz package/dist/mermaid.min.js > $@.part
	@mv $@.part $@
	@rm $(@D)/mermaid-11.17.2.tgz $@.log

demo: $(VENV)/.core
	@$(BIN)/dalle-mini generate $(DEMO_PROMPTS) --candidates $(DEMO_CANDIDATES) --keep $(DEMO_CANDIDATES) --output $(DEMO_OUTPUT) --overwrite
	@$(BIN)/python tools/inference/showcase.py $(DEMO_OUTPUT) $(DEMO_OUTPUT)/showcase.png --prompts $(DEMO_PROMPTS)

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -rs $(PYTEST_ARGS)

# Drives the page of `dalle-mini serve` in chromium.
$(WEB)/node_modules/.package-lock.json: $(WEB)/package-lock.json
	@cd $(WEB) && npm ci --silent --no-audit --no-fund || \
	  { echo "error: npm could not install what the page's tests need; on Debian and Ubuntu install npm" >&2; exit 2; }
	@touch $@

test-slow: $(VENV)/.oracles $(WEB)/node_modules/.package-lock.json
	$(BIN)/python -m pytest -m "slow and not hours" -rs $(PYTEST_ARGS)

test-hours: $(VENV)/.oracles
	$(BIN)/python -m pytest -m hours -rs $(PYTEST_ARGS)

# A warning, such as a link that leads nowhere, is an error. The notebook is run again only where it has changed.
docs: $(VENV)/.docs $(MERMAID)
	$(BIN)/python -m sphinx --quiet --nitpicky --fail-on-warning --keep-going -d $(SITE)/doctrees docs $(SITE)/html
	@echo "the site is in $(SITE)/html/index.html"

# What is there is kept: run it again after a stop, or delete a file to make it anew.
figures: $(VENV)/.test
	@$(BIN)/python tools/docs/figures.py --output $(FIGURES)

# `make test` has jax as pip chooses it for $(PYTHON); these have environments of their own beside it.
test-golden: test-golden-oldest test-golden-newest

test-golden-oldest: $(VENV)-oldest/.test
	$(OPTIMIZED) $(VENV)-oldest/bin/python -m pytest $(GOLDEN_TESTS)

test-golden-newest:
	@if $(NEWEST_PYTHON) -c '' 2>/dev/null; then $(MAKE) $(VENV)-newest/.test && \
	    $(OPTIMIZED) $(VENV)-newest/bin/python -m pytest $(GOLDEN_TESTS); \
	  else echo "not run on the newest jax: there is no $(NEWEST_PYTHON) (NEWEST_PYTHON=... names one)"; fi

# A minute's work with the lowest versions of all libraries (Python 3.11), and with the newest.
test-smoke: test-smoke-lowest test-smoke-newest

test-smoke-lowest: $(VENV)-lowest/.test
	$(OPTIMIZED) $(VENV)-lowest/bin/python -m pytest -m smoke tests/test_smoke.py

test-smoke-newest:
	@if $(NEWEST_PYTHON) -c '' 2>/dev/null; then $(MAKE) $(VENV)-newest/.test && \
	    $(OPTIMIZED) $(VENV)-newest/bin/python -m pytest -m smoke tests/test_smoke.py; \
	  else echo "not run on the newest jax: there is no $(NEWEST_PYTHON) (NEWEST_PYTHON=... names one)"; fi

$(VENV)-lowest/.test: setup.cfg tests/lowest.txt
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train]' \
	  --constraint tests/lowest.txt msgpack safetensors pytest
	@touch $@

$(VENV)-oldest/.test: setup.cfg
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train]' \
	  jax==$(OLDEST_JAX) jaxlib==$(OLDEST_JAX) msgpack safetensors pytest pytest-xdist
	@touch $@

$(VENV)-newest/.test: setup.cfg
	@$(NEWEST_PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[train]' msgpack safetensors pytest pytest-xdist
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-oldest $(VENV)-newest $(DEMO_OUTPUT) $(SITE) $(MERMAID) build/tests
