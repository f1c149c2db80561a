# The commands that do all the set-up on a machine with only make and Python 3.11, 3.12 or 3.13 (uv is used if it is there).
#
#   make play        a served world in your browser: http://localhost:8000
#   make test        ruff, pyright, the import contract and the tests; Python 3.11 or 3.12, brings Chromium if there is none
#   make test-aot    everything compiles for TPUs and GPUs that are not here; brings their compilers (1 GB) into .venv/aot
#   make test-core   the core tests only; with PYTHON=3.11 in their own .venv-3.11
#   make games       the real games into .venv (CoinRun, ViZDoom, Atari): to record, or to switch between real and dream
#   make install     everything into .venv: games, TensorBoard, test tools
#   make readme      write the README's one line a file again
#   make lock        resolve requirements/*.txt again (needs uv)
#
#   PYTHON=3.11      another Python: a version, a command or a path
#   WORLD=runs/toy PORT=8001 make play

PYTHON ?=
WORLD ?= worlds/coinrun
PORT ?= 8000
WORKERS ?= 2
PYTEST_FLAGS ?=
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
VENV ?= .venv
BIN = $(VENV)/bin
export MAKECMDGOALS

.PHONY: play test plays-coinrun chromium lint pytest test-core test-aot games install readme lock

play: $(VENV)/.play
	$(BIN)/python serve.py $(WORLD) --port $(PORT)

test: plays-coinrun lint chromium pytest

plays-coinrun: $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || { echo \
	    "The tests play CoinRun, and procgen has no wheel for the Python 3.13 of $(VENV): make test VENV=.venv-3.12" \
	    "PYTHON=3.12 tests beside it, make test-core leaves CoinRun out." >&2; exit 1; }

# For the test that plays the served page. Where this fails that test says so; the others need no browser.
chromium: $(VENV)/.test
	@test -n "$(CHROMIUM)" || $(BIN)/playwright install --no-shell chromium || \
	    echo "No Chromium on PATH, and playwright could not bring one: the page test will say so." >&2

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

pytest: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 15 $(PYTEST_FLAGS)

# The compilers lie beside the environment, not in it: with the CUDA plugin inside, every other start would look for a GPU.
test-aot: $(VENV)/.test $(VENV)/aot/.done
	PYTHONPATH=$(CURDIR)/$(VENV)/aot $(MAKE) pytest PYTEST_FLAGS="-m 'aot and not full' --dist load $(PYTEST_FLAGS)"

$(VENV)/aot/.done: requirements/aot.txt | $(BIN)/python
	@echo "Installing $< into $(VENV)/aot"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || uv pip install --quiet --python $(BIN)/python pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/aot --requirement $<
	@touch $@

test-core:
	$(MAKE) pytest VENV=$(if $(PYTHON),.venv-$(notdir $(PYTHON)),.venv) PYTEST_FLAGS="-m 'core and not full' $(PYTEST_FLAGS)"

games: $(VENV)/.games

install: $(VENV)/.test

$(VENV)/.%: requirements/%.txt | $(BIN)/python
	@echo "Installing $< into $(VENV)"
	@{ command -v uv >/dev/null 2>&1 && uv pip install --compile-bytecode --python $(BIN)/python --no-deps --requirement $<; } || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@{ command -v uv >/dev/null 2>&1 && uv pip install --quiet --python $(BIN)/python --no-deps --editable .; } || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(BIN)/python:
	@python=$$(sh scripts/find_python.sh "$(PYTHON)") && echo "Making $(VENV) from $$python" && \
	    if "$$python" -c "import ensurepip" 2>/dev/null; then "$$python" -m venv $(VENV); \
	    else uv venv --quiet --allow-existing --python "$$python" $(VENV); fi

readme: $(BIN)/python
	$(BIN)/python scripts/readme_files.py

RESOLVE = uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
          --no-emit-index-url --no-emit-find-links --no-annotate --no-header --upgrade
lock:
	$(RESOLVE) --extra serve --extra rtc --extra scale --extra games --extra track --extra eval --extra hub --extra dev --output-file requirements/test.txt
	$(RESOLVE) --extra serve --extra games --extra track --extra eval --constraint requirements/test.txt --output-file requirements/games.txt
	$(RESOLVE) --extra serve --constraint requirements/test.txt --output-file requirements/play.txt
	@echo "# The compilers of accelerators that are not here, for the newest JAX of test.txt; no driver, no CUDA libraries." > requirements/aot.txt
	$(subst 3.11,3.12,$(RESOLVE)) --extra aot --constraint requirements/test.txt | grep -E '^(flatbuffers|jax-cuda13-|libtpu)' >> requirements/aot.txt
