# Two commands on a fresh Linux machine: `make repro` runs the pipeline, `make test` the tests; either makes .venv first.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env repro test test-all lint lock bench clean FORCE

PYTHON ?= python3
ARGS ?=

# An environment that exists keeps its flavour: a cluster's login node, which has no GPU, must not rebuild the environment
# of the nodes that have one.
ifndef FLAVOUR
FLAVOUR := $(shell cat .venv/flavour 2>/dev/null || { nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu; } || echo cpu)
endif
ifeq ($(filter cpu gpu,$(FLAVOUR)),)
$(error FLAVOUR is cpu or gpu, not '$(FLAVOUR)')
endif

LOCK := requirements/$(FLAVOUR).txt
# Compared by content, as git touches times; the copy is made last, so an install that was interrupted is begun again.
READY := $(shell cmp -s $(LOCK) .venv/lock.txt && .venv/bin/python -c '' 2>/dev/null && echo yes)
# The scripts in an environment name its folder: in a project that was moved or renamed, another one.
MOVED := $(shell [ -e .venv/place ] && [ "$$(cat .venv/place)" != '$(CURDIR)' ] && echo yes)
# Packages of your own, for rewards and trackers: a file like any of pip's, which need not exist.
OWN := $(wildcard requirements/own.txt)
TORCH := $(shell sed -n 's/^torch==//p' $(LOCK))
CPU_WHEELS := https://download.pytorch.org/whl/cpu

# .venv is made by a Python outside it, also in a shell where it is activated: none can clear the ground it stands on.
OUTSIDE := PATH='$(subst $(CURDIR)/.venv/bin:,,$(PATH))'
# DVC and the launchers find `python` and `deepspeed` by PATH, as in a shell where .venv is activated.
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Nothing here reports its use to anyone.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@echo "make repro     run what is stale in the pipeline (gift repro, dvc repro); ARGS='evaluate@r1' for a part of it"
	@echo "make test      run the tests but for the slow, JOBS=2 at a time; ARGS='tests/test_x.py -k name' for any of them"
	@echo "make test-all  run the slow tests: more cases of laws of which make test runs one"
	@echo "make lint      check format, rules and types"
	@echo "make env       make .venv, which the four above do too when it is missing or a lock has changed"
	@echo "make lock      resolve requirements/*.txt anew from pyproject.toml"
	@echo "make bench     list the benchmarks; ARGS='update --model wide' runs one (benchmarks/README.md)"
	@echo "make clean     delete .venv and the tools' caches; data/ and the DVC cache stay"
	@echo "PYTHON=python3.12 chooses the Python; FLAVOUR=cpu or FLAVOUR=gpu the environment (here: $(FLAVOUR))"

env: .venv/project.toml .dvc/plots.html $(if $(OWN),.venv/own.txt) $(if $(MOVED),moved)

.venv/lock.txt: $(if $(READY),,FORCE)
	@$(OUTSIDE) $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "make: '$(PYTHON)' is no Python of 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(OUTSIDE) $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: '$(PYTHON)' lacks venv; install it (on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	@echo "env: 1 of 3, an empty .venv for $(FLAVOUR) (seconds)"
	@rm -f $@
	@$(OUTSIDE) $(PYTHON) -m venv --clear .venv
	@echo $(FLAVOUR) > .venv/flavour
	@echo "env: 2 of 3, torch (under a minute for a CPU build; several GB to download for a CUDA build)"
ifeq ($(FLAVOUR),cpu)
# The build without CUDA, a tenth of the size: from where pip looks, or from PyTorch's own index. Other systems have one.
	@.venv/bin/python -m pip install -qq --constraint $(LOCK) 'torch==$(TORCH)+cpu' setuptools 2>/dev/null || \
	.venv/bin/python -m pip install -qq --retries 1 --no-deps --index-url $(CPU_WHEELS) 'torch==$(TORCH)+cpu' 2>/dev/null || \
	echo "env: no torch without CUDA was found for this Python; on Linux the one with it works too, and .venv takes 7 GB in place of 3"
endif
	@.venv/bin/python -m pip install -qq --constraint $(LOCK) torch setuptools
	@echo "env: 3 of 3, $$(grep -c == $(LOCK)) locked packages (two minutes on two cores; for gpu another few GB)"
# DeepSpeed and antlr4 come as source and are built with the locked setuptools. DeepSpeed's own kernels are compiled when
# first used, for the machine that uses them, so its build needs neither CUDA nor a GPU.
	@DS_BUILD_OPS=0 DS_ACCELERATOR=cpu .venv/bin/python -m pip install -qq --no-deps --no-build-isolation -r $(LOCK)
	@echo '$(CURDIR)' > .venv/place
	@cp $(LOCK) $@

# The project itself, in place: this makes the `gift` command.
.venv/project.toml: pyproject.toml .venv/lock.txt
	@.venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@cp pyproject.toml $@

.venv/own.txt: $(OWN) .venv/lock.txt
	@echo "env: the packages of $(OWN)"
	@.venv/bin/python -m pip install -qq --constraint $(LOCK) -r $(OWN)
	@cp $(OWN) $@

.PHONY: moved
moved: .venv/project.toml
	@echo "env: the project was moved from $$(cat .venv/place); the scripts in .venv are told"
	@grep -lrIF "$$(cat .venv/place)/.venv" .venv/bin | xargs -r sed -i "s|$$(cat .venv/place)/.venv|$(CURDIR)/.venv|g"
	@.venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@echo '$(CURDIR)' > .venv/place

# The page of `dvc plots show` with its scripts inside: DVC's own loads them from the network. Named in .dvc/config.local,
# so that a clone without this environment uses DVC's own.
.dvc/plots.html: .venv/lock.txt | .venv/project.toml
	@.venv/bin/python -m gift.cli plots-template $@ >/dev/null
	@.venv/bin/python -m dvc config --local plots.html_template plots.html

repro: env
	@.venv/bin/python -m gift.cli repro $(ARGS)

# Two at a time where all are run: most of the time goes into starting Python, and a worker needs up to 3 GiB.
JOBS ?= 2
ALL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
test: env
	@.venv/bin/python -m pytest $(or $(ARGS),$(ALL) -m 'not slow')

test-all: env
	@.venv/bin/python -m pytest $(ALL) -m slow

lint: env
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m mypy

lock:
	@$(OUTSIDE) $(PYTHON) requirements/lock.py

bench: env
	@$(if $(ARGS),.venv/bin/python -m benchmarks.$(ARGS),grep '^make bench ARGS' benchmarks/README.md)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis gift.egg-info
