# make setup | test | lint | demo | doctor | clean. Each does the whole set-up in .venv first; a second run starts at once.
#   make setup PYTHON=python3.12                    another interpreter (3.10, 3.11 or 3.12)
#   make setup TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130'   another build of torch
SHELL := /bin/bash
VENV ?= .venv
TORCH ?= torch==2.13.0
MMCV := $(shell grep '^onedl-mmcv==' requirements.txt)
TEST_JOBS ?= 2
PY := $(VENV)/bin/python
# pip's whole output is in the log, warnings too; its errors are shown when it fails
pip = $(PY) -m pip install --disable-pip-version-check -qq --log $(VENV)/setup.log --progress-bar off $(1) \
  2> $(VENV)/pip.err || { cat $(VENV)/pip.err >&2; exit 1; }
STAMPS := $(VENV)/.stamps
# another TORCH or another mmcv version is another stamp, so mmcv is compiled again, never by a plain `pip install -r`
TORCH_STAMP := $(STAMPS)/torch-$(shell printf '%s' "$(TORCH)" | cksum | cut -d' ' -f1)
MMCV_STAMP := $(STAMPS)/$(subst ==,-,$(MMCV))

CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.10 python3)
SUITABLE := import os, sys, sysconfig, venv, ensurepip; \
  sys.exit(not ((3, 10) <= sys.version_info < (3, 13) and os.path.exists(sysconfig.get_path("include") + "/Python.h")))

.PHONY: setup test lint demo doctor clean
setup: $(STAMPS)/package

test: lint
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist worksteal

lint: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

demo: setup
	@$(PY) tools/demo.py

doctor: setup
	@$(PY) tools/doctor.py

clean:
	rm -rf $(VENV) build mmkerneldna.egg-info mmkerneldna/.mim

$(STAMPS)/venv:
	@set -e; command -v gcc >/dev/null && command -v g++ >/dev/null || { \
	  echo "error: mmcv's ops are compiled, and gcc/g++ are missing: install them, e.g. apt-get install g++" >&2; exit 2; }; \
	python=; for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(SUITABLE)' 2>/dev/null; \
	  then python=$$candidate; break; fi; \
	done; \
	test -n "$$python" || { \
	  echo "error: no Python 3.10, 3.11 or 3.12 with venv and headers (python3-venv, python3-dev) among:" \
	       "$(CANDIDATES); name one with make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	echo "set-up with $$("$$python" --version) into $(VENV)"; "$$python" -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(TORCH_STAMP): $(STAMPS)/venv
	@echo "installing $(TORCH), log in $(VENV)/setup.log"
	@$(call pip,'setuptools>=80' wheel packaging ninja)
	@$(call pip,$(TORCH))
	@rm -f $(STAMPS)/torch-* && touch $@

# CUDA ops are compiled when torch has CUDA and nvcc is there. No wheel cache: pip's key does not know the torch build.
$(MMCV_STAMP): $(TORCH_STAMP)
	@echo "installing $(MMCV) with ops (compiling takes some minutes unless a wheel is at hand)"
	@if command -v nvcc >/dev/null && $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; \
	 then export FORCE_CUDA=1; else export CUDA_VISIBLE_DEVICES= FORCE_CUDA=0; fi; \
	 $(call pip,--no-build-isolation --no-deps --no-cache-dir --force-reinstall $(MMCV))
	@touch $@

# the headless OpenCV last: both builds share one folder, and this one needs no libGL
$(STAMPS)/requirements: $(MMCV_STAMP) requirements.txt
	@echo "installing requirements.txt"
	@$(call pip,-r requirements.txt)
	@$(call pip,--no-deps --force-reinstall $$(grep '^opencv-python-headless==' requirements.txt))
	@$(PY) -m pip check > /dev/null || $(PY) -m pip check
	@touch $@

$(STAMPS)/package: $(STAMPS)/requirements pyproject.toml setup.py
	@echo "installing mmkerneldna itself"
	@$(call pip,--no-build-isolation --no-deps -e .)
	@touch $@
