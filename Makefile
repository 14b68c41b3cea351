# Two commands: `make demo` shows what bayesuq does, `make test` checks everything. Each builds .venv first where it is
# missing or older than the files that define it.

PYTHON ?= python3
BIN := .venv/bin
METHODS := map,variational,dropout,ensemble
export OMP_NUM_THREADS := 1
unexport PYTHONDONTWRITEBYTECODE # the tests start many processes, which would compile the package over and over

.PHONY: demo test test-python lint collected docs bench bench-peers clean

demo: .venv/built
	$(BIN)/bayesuq compare --data digits-0to8 --methods $(METHODS),temperature,temperature:ensemble --num_epochs 200 \
		--out runs/compare-digits --overwrite
	if $(BIN)/bayesuq data list | grep -qx "  uci/boston"; then \
		$(BIN)/bayesuq compare --data uci/boston --methods $(METHODS) --num_epochs 1000 \
			--out runs/compare-boston --overwrite; \
	fi

# Types are checked by one core. The other one reads the tests meanwhile, so that the workers find them compiled.
test: .venv/built
	+$(MAKE) --no-print-directory -j2 lint collected
	$(BIN)/pytest -n 2 --dist worksteal

collected: .venv/built
	-$(BIN)/pytest --collect-only -q > /dev/null

# The suite in another interpreter and with the newest libraries: make test-python PYTHON=python3.13 ARVIZ='arviz>=1,<2'
ARVIZ := arviz
LANE = build/lane-$(notdir $(PYTHON))
test-python:
	$(PYTHON) -m venv --clear $(LANE)
	$(LANE)/bin/pip install --quiet --editable '.[test]' '$(ARVIZ)' torch==2.13.0
	$(LANE)/bin/pytest -n 2 --dist worksteal

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/built
	$(BIN)/python -m scripts.gallery
	$(BIN)/sphinx-build -W --keep-going -t source -b html docs build/docs

# Ratios to plain PyTorch, a line each in bench.jsonl; `benchmarks/suite.py --against` tells what another file has lost.
bench: .venv/built
	$(BIN)/python benchmarks/suite.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/ensembles.py
	$(BIN)/python benchmarks/measures.py

# Other packages beside ours, each in an environment of its own under build/peers, which is made where it is missing.
bench-peers: .venv/built
	$(BIN)/python -m benchmarks.peers

# Twenty thousand files are compiled by all cores; pip would do it by one.
.venv/built: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true # some are of other Pythons
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
