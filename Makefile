# Other targets call `make build` first; it does nothing if nothing changed.
# VENV=DIR uses another environment, PYTHON=... makes it with another Python.
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= Tom has 3 boxes with 15 pencils in each box. He gives 10 pencils to his friend. How many pencils does Tom have left?

# A torch that is already in VENV stays. TORCH=torch==VERSION lets pip install it; without TORCH,
# release/install_torch.py installs the CPU build on a machine without a GPU.
TORCH ?=

# What any checkout compiled before is not compiled again, if there is a ccache.
CCACHE := $(shell command -v ccache)
ifneq ($(CCACHE),)
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(CCACHE)
export CMAKE_CUDA_COMPILER_LAUNCHER ?= $(CCACHE)
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1
endif

BIN := $(VENV)/bin
STAMP := $(VENV)/microspec.stamp
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc)

.PHONY: build demo test test-all test-triton test-oldest wheel test-wheel test-engines test-engines-gpu test-gpu gpu-quarter-hour lint docs bench bench-gpu bench-variants clean

build: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The install is editable: Python files need no build, and programs in this folder find the library.
# SOURCES contains folders, because a new file changes its folder.
$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet 'setuptools>=77.0.1' 'cmake>=3.25' ninja
	$(BIN)/python -c 'import torch' 2>/dev/null || \
		$(if $(TORCH),$(BIN)/pip install --quiet '$(TORCH)',$(BIN)/python release/install_torch.py)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --no-build-isolation \
		--editable '.[test,lint]'
	touch $@

# A small tree: 16 rows take a CPU 1.6 times the time of one, 61 rows several times that.
demo: build
	$(BIN)/microspec generate --pair examples/tiny_pair --compare --tree-width 3 --tree-size 15 --prompt '$(subst ','\'',$(PROMPT))'

# docs/testing.md explains the marks. One process per core, at most eight.
QUICK := not (slow or emulation or arm)
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadgroup

test: build
	$(PYTEST) -m '$(QUICK)'
	$(INTERPRETED) -m 'triton and not slow'

# All tests, in two runs: each process of a run first imports and collects all files, half a minute.
test-all: build
	$(PYTEST)
	$(INTERPRETED) -m triton

# The op tests once more, over the Triton kernels. Triton chooses its interpreter once per process, at
# its first import.
INTERPRETED = TRITON_INTERPRET=1 $(PYTEST) -W ignore::RuntimeWarning
test-triton: build
	$(INTERPRETED) -m triton

# The oldest version of every range in pyproject.toml (tests/oldest.txt), in a separate environment.
# `make test` runs with the newest versions.
OLDEST := $(VENV)-oldest
OLDEST_PYTHON ?= python3.10
test-oldest:
	mkdir -p build
	# A torch for GPUs requires the Triton that it was built with; pip replaces that with the oldest below.
	sed '/^triton=/d' tests/oldest.txt >build/oldest.txt
	PIP_CONSTRAINT=$(abspath build/oldest.txt) \
		$(MAKE) VENV=$(OLDEST) PYTHON=$(OLDEST_PYTHON) TORCH=torch build
	$(OLDEST)/bin/pip install --quiet --no-deps $$(grep '^triton=' tests/oldest.txt)
	$(MAKE) VENV=$(OLDEST) test

# dist/: a wheel for each processor with an installed compiler (docs/release.md).
WHEELS := $(shell uname -m) $(if $(shell command -v aarch64-linux-gnu-g++),aarch64)
wheel: build
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[release]'
	rm -rf dist
	for processor in $(sort $(WHEELS)); do \
		PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python release/make_wheel.py $$processor || exit; done

# Before a release: install the wheel in clean environments, each with the wheel's requirements only: every
# installed Python with the newest torch, and the oldest Python with the oldest torch. Then run the op tests
# outside this folder, under WHEEL_PYTHON.
PYTHONS := $(foreach minor,10 11 12 13 14,$(shell python3.$(minor) -c 'print("python3.$(minor)")' 2>/dev/null))
WHEEL_PYTHON ?= python3.13
WHEEL := dist/*_$(shell uname -m).whl
INSTALLED := build/installed
test-wheel: wheel
	rm -rf $(INSTALLED)
	mkdir -p $(INSTALLED)
	for python in $(PYTHONS); do sh release/smoke.sh $$python torch $(WHEEL) $(INSTALLED) || exit; done
	sh release/smoke.sh $(OLDEST_PYTHON) "$$(grep '^torch=' tests/oldest.txt)" $(WHEEL) $(INSTALLED)
	$(INSTALLED)/$(WHEEL_PYTHON)-torch/bin/pip install --quiet numpy pytest pytest-xdist hypothesis
	cp -r tests pyproject.toml $(INSTALLED)
	cd $(INSTALLED) && $(WHEEL_PYTHON)-torch/bin/pytest -n auto --maxprocesses 8 -m '$(QUICK)' \
		$(addprefix tests/,$(WHEEL_TESTS))
WHEEL_TESTS := test_head_*.py test_4bit_*.py test_int4_*.py test_nvfp4_*.py test_gather.py \
	test_vocab_count.py test_vocab_observe.py test_vocab_refill.py test_vocab_update.py test_active_vocab.py \
	test_weight_slab.py test_registration.py

# The plugins inside vLLM and SGLang, installed as users install them, each in a separate environment
# (gigabytes of downloads; no GPU needed). No other target runs this, and CI does not either.
ENGINES := vllm sglang
test-engines: build $(ENGINES:%=$(VENV)-%/engine.stamp)
	rm -rf build/engines/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip wheel --quiet --no-build-isolation --no-deps \
		--wheel-dir build/engines/wheel .
	for engine in $(ENGINES); do $(VENV)-$$engine/bin/pip install --quiet --no-deps \
		--force-reinstall build/engines/wheel/*.whl || exit; done
	MICROSPEC_TEST_VLLM=$(abspath $(VENV))-vllm/bin/python \
		MICROSPEC_TEST_SGLANG=$(abspath $(VENV))-sglang/bin/python $(BIN)/pytest tests/engines

# The same tests on a GPU, without and with CUDA graphs. VLLM=PYTHON and SGLANG=PYTHON name the Python of an
# environment that has the engine for that GPU and this package.
test-engines-gpu: build
	$(if $(VLLM)$(SGLANG),,$(error VLLM=PYTHON or SGLANG=PYTHON or both))
	for device in cuda cuda-graphs; do MICROSPEC_TEST_DEVICE=$$device \
		MICROSPEC_TEST_VLLM=$(VLLM) MICROSPEC_TEST_SGLANG=$(SGLANG) \
		$(BIN)/pytest $(if $(VLLM),tests/engines/test_vllm*.py) \
		$(if $(SGLANG),tests/engines/test_sglang.py) || exit; done

$(VENV)-%/engine.stamp: tests/engines/%_environment.sh
	sh $< $(PYTHON) $(VENV)-$*
	touch $@

# On a machine with a GPU: run all tests, then compute-sanitizer over every kernel, and write a report into
# bench/results.
test-gpu: build
	$(BIN)/python tests/gpu/run.py

# The first thing to run on a GPU: what matters most, in ten minutes, as two files in build/quarter-hour
# (docs/testing.md).
gpu-quarter-hour: build
	$(BIN)/python tests/gpu/quarter_hour.py

lint: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' \
		| xargs $(BIN)/clang-format --dry-run -Werror

# The API reference, from the docstrings: build/docs/index.html.
docs: build
	$(BIN)/python docs/reference.py build/docs

bench: build
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.decoding.engine_overhead

bench-gpu: build
	$(BIN)/python -m bench.run --device cuda
	$(BIN)/python -m bench.decoding.engine_overhead --device cuda
	$(BIN)/python -m bench.e2e

# Compare variants of the CUDA head (on an H100 or H200; needs nvcc).
bench-variants: build
	$(BIN)/python -m bench.tuning.kernel_variants build
	$(BIN)/python -m bench.tuning.kernel_variants run
	$(BIN)/python -m bench.tuning.slab_in_l2

clean:
	rm -rf $(VENV) build dist *.egg-info microspec_kernels/*.so
