# make demo: the whole pipeline on the bundled synthetic world.   make demo SHORT=1: the same on fewer users.
# make test: lint, types and tests.   Both make the environment in .venv first; a second call reuses it.
# make install: that environment alone.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Named after what it was installed from, so that a changed requirement set is installed anew.
STAMP := $(VENV)/.installed-$(shell cat requirements/cpu.txt pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH := $(shell grep '^torch==' requirements/cpu.txt)

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
# Threads that spin while they wait take the cores from everybody else; it must stand before torch is loaded.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help install demo test lint test-slow clean

help:
	@sed -n '1,3s/^# //p' Makefile

install: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "Lorestream needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 5 GB, some minutes; only the first time)"
	@$(BIN)/pip install -q --no-deps '$(TORCH)' || { \
		echo "not from the configured index; trying $(CPU_INDEX)"; \
		$(BIN)/pip install -q --no-deps --index-url $(CPU_INDEX) '$(TORCH)'; }
	@$(BIN)/pip install -q --no-deps -r requirements/cpu.txt
	@# By path: a reader's folder named warehouse/ would hide our package from setuptools' other way.
	@$(BIN)/pip install -q --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@rm -f $(VENV)/.installed-*; touch $@

demo: $(STAMP)
	@$(BIN)/python -m demo.demo $(if $(SHORT),--short)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) demo-output
