# Every target makes the environment .venv that it needs, from python3 (3.11 or newer) and pip alone.
# Another interpreter: make clean, then make test PYTHON=python3.13. Arguments: make demo ARGS="--backend cupy". Tests run on
# all processors, each with one thread for NumPy's products, as more would wait for each other; on one: make test WORKERS=0.

PYTHON ?= python3
ARGS ?=
WORKERS ?= auto
LEVELS ?= all
SOURCES := architecture extras places typing # tests of the sources, which a wheel cannot pass or fail
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
PYTEST = OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo check bench test test-all test-distributed test-peers wheel docs lite lint types clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## train attention to translate dates, with hand-derived gradients
	@$(BIN)/attnarray demo $(ARGS)

check: $(VENV)/.demo  ## check every gradient and kernel, as a table
	@$(BIN)/attnarray check $(ARGS)

bench: $(VENV)/.bench  ## compare the speed with other libraries: a minute once kernels are compiled
	@$(BIN)/attnarray bench $(ARGS)

test: $(VENV)/.test  ## run what a change can break: ten minutes on two cores
	@$(PYTEST) -m "not slow and not distributed" $(ARGS)

test-all: $(VENV)/.test  ## run every test on one machine: some 20 minutes on two cores
	@$(PYTEST) -m "not distributed" $(ARGS)

test-distributed: $(VENV)/.test-distributed  ## run the tests with MPI and Dask
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed tests/distributed tests/docs/test_docs.py $(ARGS)

test-peers: $(VENV)/.test $(VENV)/.bridges  ## run the tests beside PyTorch (install it into .venv first), JAX, transformers and ONNX
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -m peers $(ARGS)

wheel: $(VENV)/.test  ## build a wheel with precompiled kernels, and test it where Numba is not installed
	@rm -rf build/wheel && mkdir -p build/wheel
	@echo "Building a wheel (a minute or two for each level of CPUs) ..."
	@ATTNARRAY_BUILD_LEVELS=$(LEVELS) $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@$(BIN)/python -m venv --without-pip build/wheel/venv
	@$(BIN)/python -m pip --python build/wheel/venv/bin/python install --quiet --disable-pip-version-check \
		--find-links dist "$$(ls -t dist/attnarray-*.whl | head -n 1)[checkpoints]" pytest hypothesis array-api-strict
	@cp -r tests pyproject.toml docs README.md CONTRIBUTING.md build/wheel
	@cd build/wheel && venv/bin/attnarray check && OPENBLAS_NUM_THREADS=1 venv/bin/python -m pytest -q -m "not slow" \
		--override-ini addopts="--import-mode=importlib" tests/kernels/numba/test_library.py tests/contract tests/attention \
		$(SOURCES:%=--ignore=tests/contract/test_%.py) --deselect tests/contract/test_unwritten_memory.py::test_array_code_makes_no_array_without_numbers $(ARGS)

docs: $(VENV)/.docs  ## build the pages of the site into build/docs; any warning is an error
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs $(ARGS)
	@$(BIN)/python docs/links.py build/docs
	@echo "Open build/docs/index.html"

lite: $(VENV)/.lite docs  ## add the notebooks of the course to the site, in JupyterLite: Python in the browser
	@rm -rf build/lite build/docs/lite
	@$(BIN)/python docs/notebooks.py build/lite/files
	@ATTNARRAY_BUILD_LEVELS=none $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/lite/pypi . array-api-compat
	@$(BIN)/jupyter-lite build --lite-dir build/lite --output-dir build/docs/lite > build/lite/log.txt || { cat build/lite/log.txt; exit 1; }
	@echo "Serve build/docs (python -m http.server --directory build/docs) and open lite/index.html"

lint: $(VENV)/.lint  ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

types: $(VENV)/.lint  ## check types only
	@$(BIN)/mypy $(ARGS)

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra: a second call is instant, and a change of pyproject.toml installs again. Of what pip says, a word for
# each package; errors come through whole.
$(VENV)/.%: pyproject.toml | $(VENV)/.pip
	@echo "Installing attnarray[$*] into $(VENV):"
	@{ ATTNARRAY_BUILD_LEVELS=none $(PIP) --editable '.[$*,jit]' || echo Failed; } | while read -r word name rest; do case "$$word $$name" in \
		Obtaining*) echo "  attnarray itself";; Collecting*) echo "  $${name%%[<>=!~]*}";; \
		"Installing collected") echo "  unpacking all of these";; Failed*) exit 1;; esac; done
	@touch $@

# A Python without ensurepip (Debian's without python3-venv) gets pip into the environment from its own pip.
$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "attnarray needs Python 3.11 or newer; $(PYTHON) is older or missing. Try: make test PYTHON=python3.13" >&2; exit 1; }
	@echo "Making $(VENV) ..."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	else \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet --quiet --disable-pip-version-check pip; \
	fi
	@touch $@
