# install, demo and test do all their own set-up; Python 3.11+ and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: install demo test lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt setup.py native/build.py $(wildcard native/*.c native/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tacit needs Python 3.11 or newer; try: make PYTHON=python3.12 " + "$(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/tacit compare --dataset digits --out demo-report --overwrite

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

clean:
	rm -rf $(VENV) $(ON_FLOWER) demo-report build *.egg-info src/tacit/crypto/_native.* .pytest_cache .mypy_cache .ruff_cache

# What benchmarks compare with lives apart from the package, each peer in an environment of its own.
FLOWER  = .peers/flower

.PHONY: peers
peers: $(FLOWER)/.installed-1.41.0

$(FLOWER)/.installed-1.41.0:
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip install --quiet --disable-pip-version-check \
		flwr==1.41.0 numpy==2.4.6 cryptography==50.0.2 pycryptodome==3.24.1
	@touch $@

# tacit on Flower, in an environment of its own. flwr 1.41.0 takes no packaging from 26 on, which nothing else minds.
ON_FLOWER = .venv-flower

.PHONY: flower
flower: $(ON_FLOWER)/.installed

$(ON_FLOWER)/.installed: pyproject.toml constraints.txt setup.py native/build.py $(wildcard native/*.c native/*.h)
	$(PYTHON) -m venv $(ON_FLOWER)
	sed 's/^packaging==.*/packaging==25.0/' constraints.txt > $(ON_FLOWER)/constraints.txt
	$(ON_FLOWER)/bin/pip install --quiet --disable-pip-version-check -c $(ON_FLOWER)/constraints.txt -e '.[dev,flower]'
	@touch $@
