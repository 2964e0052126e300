# Each target makes its own environment in .venv; nothing but Python >= 3.10, git and make is needed.
#   make demo ARGS="video.mp4 out.mp4 --headless"     make test     make check     make bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# JetPack's own OpenCV has GStreamer, and was built for NumPy 1; an environment on a Jetson must see it.
ON_JETSON := $(wildcard /etc/nv_tegra_release)
VENV_FLAGS := $(if $(ON_JETSON),--system-site-packages)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-slow check format bench matrix clean

demo: $(VENV)/.demo
	@$(BIN)/centeredge run $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks $(ARGS)

# The runtime on every Python that it promises, without PyTorch; those that are not installed are skipped.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
matrix:
	@for python in $(PYTHONS); do \
	  $$python -c '' 2>/dev/null || { echo "$$python: skipped, not installed"; continue; }; \
	  $$python -m venv .venv-matrix/$$python && \
	  .venv-matrix/$$python/bin/python -m pip --disable-pip-version-check install --quiet '.[cpu,calibration]' pytest hypothesis && \
	  echo "$$python" && .venv-matrix/$$python/bin/python -m pytest -q tests/sdk || exit 1; \
	done

clean:
	rm -rf $(VENV) .venv-matrix .venv-yolo build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "CenterEdge needs Python 3.10 or newer; $$($(PYTHON) --version 2>&1) is $(PYTHON). Try: make PYTHON=python3.11 demo" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV) || { \
	  echo "cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing CenterEdge into $(VENV) ..." >&2
	@$(PIP) $(if $(ON_JETSON),--editable . onnxruntime 'numpy<2',--editable '.[cpu]')
	@$(if $(ON_JETSON),$(BIN)/python -c 'import cv2' 2>/dev/null || $(PIP) opencv-python,true)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[cpu,calibration,train,export,dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.demo
