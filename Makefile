# kvq-batch: `make` lists the targets. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-browser test-faults test-metrics lint bench test-numerics

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install everything

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--config-settings editable_mode=compat -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## make clips, score them, run four queries, draw a picture
	$(BIN)/kvq-batch demo

test: $(STAMP) lint ## lint, then every test but the long ones of test-faults
	$(BIN)/python -m pytest -n 3 tests

test-browser: $(STAMP) ## open the pages in Chromium; `make test` does it too, where there is one
	$(BIN)/python -m pytest tests -m browser

test-faults: $(STAMP) ## run every fault of docs/reliability.md and all whole runs, with real kills; long
	$(BIN)/python -m pytest tests/faults tests/engine tests/cluster tests/benchmarks tests/research \
		tests/media tests/tables/test_sql_fuzz.py tests/catalog/test_three_nights.py -m ''

test-metrics: $(STAMP) ## run a real Prometheus: check every dashboard query and alert
	$(BIN)/python -m pytest tests/engine/test_metrics.py tests/engine/test_prometheus.py -m ''

NUMERIC_TESTS := tests/models tests/training tests/metrics tests/media/test_resize.py

test-numerics: $(STAMP) ## run the numeric tests with several CPU instruction sets and thread counts; long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(NUMERIC_TESTS)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(NUMERIC_TESTS)
	@# oneDNN is limited as well: torch would ask it for bf16 code that needs the AVX-512 that ATen leaves out.
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(NUMERIC_TESTS)
	OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(NUMERIC_TESTS)
	OMP_NUM_THREADS=2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(NUMERIC_TESTS)

lint: $(STAMP) ## ruff, mypy strict, the word list of the style guide, commit subjects
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	.ci/commit-subjects

bench: $(STAMP) ## measure the tables of benchmarks/README.md
	$(BIN)/python -m benchmarks
