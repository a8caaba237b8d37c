# Two commands matter: `make demo` and `make test`. Everything they need is installed by `make install`.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: install demo test test-cluster check format lock bench

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml strategies/kernels/loops.c
	$(PYTHON) -m venv .venv
	awk '/^uv==/ { p = 1 } p { print } p && !/\\$$/ { exit }' requirements.lock >.venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@# Workers may not write beside the packages, so without this each would compile these anew (2 s).
	cd .venv/lib/python3*/site-packages && \
	  ../../../bin/python -m compileall -q -j 0 -x '/tests?(ing)?/' torch sympy sklearn scipy numpy
	@touch $@

demo: install
	$(BIN)/python -m examples.demo

test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore tests/cluster

# Against real servers, which the lab starts; red unless they were there. CHAOS_KEEP=1 keeps the
# table of faults in benchmarks/results/.
test-cluster: install
	FOEDUS_LAB=$${FOEDUS_LAB:-../shared/lab} $(BIN)/python -m pytest -q tests/cluster

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: install
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements.lock
