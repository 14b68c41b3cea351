# Two commands: `make demo` shows what bayesuq does, `make test` checks everything. Each builds .venv first where it is
# missing or older than the files that define it.

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1

.PHONY: demo test lint benchmark clean

demo: .venv/built
	$(BIN)/python scripts/compare_digits.py --out runs/digits

test: lint
	$(BIN)/pytest -n 2 --dist worksteal

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: .venv/built
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/ensembles.py

.venv/built: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
