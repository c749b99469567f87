# Two commands do everything: `make demo` and `make test`. Both are safe to run twice.
VENV := .venv
BIN := $(VENV)/bin
# Where this is set, each of some thousand processes would compile again what it imports: a sixth of the tests' time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types check soak format bench clean help

help:  ## Say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/.installed  ## Train, shrink, sign, push, run, report and tell drift, all on this machine
	$(BIN)/edgeml demo

test: $(VENV)/.installed-dev  ## Lint, types and all tests; installs Debian's mosquitto and sshd if they are missing
	scripts/install-servers
	$(MAKE) --no-print-directory lint types check

lint: $(VENV)/.installed-dev  ## Lint and format, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## Types
	$(BIN)/mypy

check: $(VENV)/.installed-dev $(VENV)-tflite/.installed $(VENV)-litert/.installed $(VENV)-tflm/.installed  ## The tests alone
	$(BIN)/pytest

soak: $(VENV)/.installed-dev  ## Every kill point and a million schedules: 40 to 80 minutes on two cores
	EDGEML_SOAK=1 EDGEML_SCHEDULES=1000000 $(BIN)/pytest tests/faults

format: $(VENV)/.installed-dev  ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## Every figure of the benchmarks, next to its peer
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## Remove the environment and caches
	rm -rf $(VENV) $(VENV)-tflite $(VENV)-litert $(VENV)-tflm .mypy_cache .ruff_cache .pytest_cache

# torch first and alone: anything that depends on it would bring the CUDA build and gigabytes with it.
$(VENV)/.installed: pyproject.toml scripts/make-venv
	scripts/make-venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check 'torch==2.13.*'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[agent,serve,converters,fleet]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[agent,serve,converters,fleet,tools,dev]'
	touch $@

# A device of before: tflite-runtime, which ended with Python 3.11 and numpy 1. Where there is no such Python its tests are skipped.
$(VENV)-tflite/.installed: pyproject.toml scripts/make-venv-tflite
	scripts/make-venv-tflite $(VENV)-tflite
	touch $@

# torch to .tflite: litert-torch holds other libraries at old versions. Where it has no wheels its tests are skipped.
$(VENV)-litert/.installed: scripts/make-venv-litert
	scripts/make-venv-litert $(VENV)-litert
	touch $@

# TensorFlow Lite Micro on this processor. Where it has no wheels its tests are skipped.
$(VENV)-tflm/.installed: pyproject.toml scripts/make-venv-tflm
	scripts/make-venv-tflm $(VENV)-tflm
	touch $@
