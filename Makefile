# `make demo` and `make test` need Python >= 3.11 and make; they set up .venv themselves, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

# An environment made in another folder (a checkout that was moved or copied) is installed again.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

.PHONY: help demo example test lint types unit distributed slow coverage site notebook fresh bench clean oldest
.DEFAULT_GOAL := help

help:
	@echo "make demo    an attack on a simulated client; prints where the report is"
	@echo "make example the worked audit of docs/audit-example: ten minutes on two cores"
	@echo "make test    lint, types, site, unit and distributed"
	@echo "make lint    ruff: rules and format; hadolint: the Dockerfile"
	@echo "make types   mypy, strict"
	@echo "make unit    the unit tests alone; WORKERS=... processes side by side (now: $(WORKERS))"
	@echo "make distributed  the tests that start Ray or the real command, but for the slow ones"
	@echo "make slow    these: three hosts, random faults, a lost head, a lost node of a grid"
	@echo "make oldest  the unit tests with the oldest versions that pyproject.toml allows, in build/oldest"
	@echo "make coverage  the lines and branches that make test runs, file by file; twice as long"
	@echo "make site    the documentation as pages, in build/site"
	@echo "make notebook  the notebook of the documentation, run again"
	@echo "make fresh   the wheel in a new environment, with all that it asks for: gigabytes; PYTHON=python3.13 for another"
	@echo "make bench   the table beside the peer"
	@echo "make clean   remove .venv and everything that was built"
	@echo "PYTHON=...   the Python to make .venv with (now: $(PYTHON))"

# In a folder of its own: what a run left there is cleared.
demo: $(INSTALLED)
	$(RUN) run.py out=out/demo restart=true

EXAMPLE := build/audit-example
example: $(INSTALLED)
	$(RUN) docs/audit-example/prepare.py $(EXAMPLE)
	$(RUN) run.py audit out=$(EXAMPLE)/out budget=12m agents.iterations=600 \
	  client.images=$(EXAMPLE)/client audit.pool=$(EXAMPLE)/pool client.weights=$(EXAMPLE)/late.safetensors \
	  sweep.states=untrained,$(EXAMPLE)/late.safetensors sweep.batch_sizes=1,4,8 sweep.bn=eval \
	  sweep.defences=none,noise:1,noise:10 sweep.train_images=$(EXAMPLE)/train

# Two lanes side by side, each process with one thread. Ray's own limits for the start of a process are short: tests that
# start it run one after another, and the unit tests take what these leave of all cores (Ray's workers have niceness 15).
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
# The shapes that annotations state are checked; to import the package then takes some seconds more, so it is asked for.
SHAPES = --jaxtyping-packages=gradinversion,array_shapes.check
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest $(SHAPES)
test: lint types site
	$(MAKE) --jobs=2 unit distributed

unit: $(INSTALLED)
	OMP_NUM_THREADS=1 nice -n 19 $(RUN) -m pytest $(SHAPES) tests/unit -n $(WORKERS) --dist loadfile --no-loadscope-reorder

distributed: $(INSTALLED)
	$(PYTEST) tests/distributed tests/end_to_end -m "not slow"

# The rest of them: three hosts, random faults, a lost head, a lost node of a grid. Two cores need ten minutes.
slow: $(INSTALLED)
	$(PYTEST) tests/distributed tests/end_to_end -m slow

# Before a release: the lower bounds in pyproject.toml are what this passes with.
OLDEST := build/oldest
oldest: $(INSTALLED)
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv venv --quiet --clear --seed $(OLDEST)
	$(RUN) -m uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e '.[dev]'
	OMP_NUM_THREADS=1 nice -n 19 $(OLDEST)/bin/python -m pytest tests/unit -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Without the check of shapes: it changes no line that runs.
coverage: $(INSTALLED)
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/unit -n $(WORKERS) --dist loadfile --cov --cov-report=
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/distributed tests/end_to_end -m "not slow" --cov --cov-append --cov-report=
	$(RUN) -m coverage report

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/hadolint Dockerfile

# mypy sees the package under its name through a link, whatever the checkout is called.
types: $(INSTALLED)
	@mkdir -p build/types
	@ln -sfn ../.. build/types/gradinversion
	$(RUN) -m mypy

# The documentation as pages, in build/site; a link that leads nowhere is an error.
site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

# Runs the notebook of the documentation, and keeps what its cells show.
notebook: $(INSTALLED)
	$(RUN) docs/site/notebook.py docs/notebook.ipynb

# As whoever installs the package has it: everything from the index, nothing of the checkout.
FRESH := build/fresh
fresh: $(INSTALLED)
	rm -rf $(FRESH)
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir $(FRESH)/dist .
	$(PYTHON) -m venv $(FRESH)/environment
	$(FRESH)/environment/bin/pip install --quiet $(FRESH)/dist/*.whl
	cd $(FRESH) && environment/bin/gradinversion --version
	cd $(FRESH) && environment/bin/gradinversion out=run agents.count=1 agents.iterations=20 export=csv

bench: $(INSTALLED)
	$(RUN) -m pip install --quiet -e '.[bench]'
	$(RUN) -m benchmarks.peers

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gradinversion needs Python 3.11 or newer, and '$(PYTHON)' is not: name one, such as make PYTHON=python3.12"; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: install the venv module of this Python (on Debian: apt install python3-venv)"; \
	  exit 1; }
	$(RUN) -m pip install -e '.[dev]'
	@printf '%s\n' '$(CURDIR)' > $@
