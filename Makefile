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
SPU     = .peers/spu
CRYPTEN = .peers/crypten
OPACUS  = .peers/opacus
ART     = .peers/art

.PHONY: peers
peers: $(FLOWER)/.installed-1.41.0 $(SPU)/.installed-0.9.5 $(CRYPTEN)/.installed-0.4.1 $(OPACUS)/.installed-1.6.0 \
	$(ART)/.installed-1.20.1

$(FLOWER)/.installed-1.41.0:
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip install --quiet --disable-pip-version-check \
		flwr==1.41.0 numpy==2.4.6 cryptography==50.0.2 pycryptodome==3.24.1
	@touch $@

# spu 0.9.5 has wheels for Python 3.11 and none for later ones: there, make peers PYTHON=python3.11
$(SPU)/.installed-0.9.5:
	$(PYTHON) -m venv $(SPU)
	$(SPU)/bin/pip install --quiet --disable-pip-version-check \
		spu==0.9.5 jax==0.4.34 jaxlib==0.4.34 numpy==1.26.4 scipy==1.17.1 ml_dtypes==0.5.4 \
		cachetools==8.0.2 termcolor==3.3.0 cloudpickle==3.1.3 multiprocess==0.70.19
	@touch $@

# crypten 0.4.1 asks for torchvision, pandas and more that its tensors do without.
$(CRYPTEN)/.installed-0.4.1:
	$(PYTHON) -m venv $(CRYPTEN)
	$(CRYPTEN)/bin/pip install --quiet --disable-pip-version-check \
		torch==2.13.0 numpy==2.4.6 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3 pyyaml==6.0.4 \
		onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0
	$(CRYPTEN)/bin/pip install --quiet --disable-pip-version-check --no-deps crypten==0.4.1
	@touch $@

$(OPACUS)/.installed-1.6.0:
	$(PYTHON) -m venv $(OPACUS)
	$(OPACUS)/bin/pip install --quiet --disable-pip-version-check \
		torch==2.13.0 numpy==2.4.6 scipy==1.17.1 opt_einsum==3.4.0
	$(OPACUS)/bin/pip install --quiet --disable-pip-version-check --no-deps opacus==1.6.0
	@touch $@

# art 1.20.1 imports packaging and does not ask for it.
$(ART)/.installed-1.20.1:
	$(PYTHON) -m venv $(ART)
	$(ART)/bin/pip install --quiet --disable-pip-version-check \
		adversarial-robustness-toolbox==1.20.1 torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 \
		six==1.17.0 tqdm==4.70.1 packaging==26.3
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
