# make reproduce   make the environment and reproduce the papers' tables that exist so far
# make test        make the environment and pass the tests
# make parity      also install PyTorch and POT, and compare with them
# make bench       measure against PyTorch side by side
# make lint        ruff and pyright
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Folder with trained PyTorch adders; without one they are trained here.
ADDERS ?= $(wildcard ../shared/data)

.PHONY: reproduce test parity bench lint quick clean

reproduce: $(VENV)/.experiments
	$(BIN)/python -m experiments heq --seeds 1:4 --out runs/reproduce/heq --resume
	$(BIN)/python -m experiments addition --seeds 0:3 --out runs/reproduce/addition --resume \
		$(if $(ADDERS),--backbone.checkpoints $(ADDERS))

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m parity tests/parity

bench: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

quick: $(VENV)/.experiments
	rm -rf runs/quick
	$(BIN)/python -m experiments heq --quick --out runs/quick/heq
	$(BIN)/python -m experiments addition --quick --out runs/quick/addition

clean:
	rm -rf $(VENV) .cache runs

$(VENV)/.experiments: EXTRAS = experiments
$(VENV)/.test: EXTRAS = experiments,test
$(VENV)/.parity: EXTRAS = experiments,test,parity
$(VENV)/.benchmarks: EXTRAS = experiments,benchmarks

$(VENV)/.experiments $(VENV)/.test $(VENV)/.parity $(VENV)/.benchmarks: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@
