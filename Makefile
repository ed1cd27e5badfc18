# Thin verbs over CMake, CTest, pytest and scripts/. Each does first what it needs: `make test` works on a fresh clone.
# Settings, all optional: JOBS=2  TORCH_DIR=/path/to/libtorch  HETLORA_USE_ENV=1  HETLORA_WERROR=ON  CMAKE_ARGS="..."
SHELL := /bin/bash
.DEFAULT_GOAL := help

# As many compilers as there are cores, but one per 1.5 GB of free memory: files with torch headers need about that.
JOBS ?= $(shell awk -v cores="$$(nproc)" '/^MemAvailable/ {fit = int($$2 / 1.5e6); jobs = fit < cores ? fit : cores; print jobs < 1 ? 1 : jobs}' /proc/meminfo)
# Where `make setup` found LibTorch.
TORCH_DIR ?= $(shell cat .venv/torch_dir 2>/dev/null)
export JOBS

# Open MPI: as root in containers, more MPI ranks than cores, no cross-memory attach where ptrace is forbidden.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_rmaps_base_oversubscribe = 1
export OMPI_MCA_btl_vader_single_copy_mechanism = none
export OMPI_MCA_mpi_yield_when_idle = 1
export OMPI_MCA_hwloc_base_binding_policy = none
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
# Clones in different folders share compiler results (in ccache's own default folder, unless CCACHE_DIR is set).
export CCACHE_BASEDIR = $(CURDIR)
export CCACHE_NOHASHDIR = true

.PHONY: help setup configure build demo demo-llm test test-long bench bench-peers check-cuda lint format tidy clean

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup:  ## system packages (with root or sudo, else their exact list) and .venv from requirements.txt
	@scripts/setup.sh

configure: setup
	@cmake --preset release -DTORCH_DIR="$(TORCH_DIR)" -DHETLORA_WERROR=$(or $(HETLORA_WERROR),OFF) $(CMAKE_ARGS)

build: configure  ## the program: build/hetlora
	@cmake --build --preset release --target hetlora -j $(JOBS)

demo: build  ## a small federated run on conversations, from data to report
	@scripts/demo.sh

demo-llm: build  ## the same with a small chat model that was pretrained
	@scripts/demo_llm.sh

test: configure  ## build everything, then CTest and pytest; fails if either fails
	@scripts/test.sh

test-long: configure  ## the same tests with larger counts and the campaigns that are too long for CI
	@HETLORA_TEST_LONG=1 scripts/test.sh

bench: build  ## share of the machine's GEMM peak: sizes, threads, ranks, packs, memory; 12 minutes on an idle machine
	@.venv/bin/python benchmarks/bench.py $(BENCH)

# BENCH holds options of benchmarks/bench.py or benchmarks/bench_peers.py, e.g. BENCH="--workloads S --systems bare,hetlora"
bench-peers: build  ## hetlora beside PyTorch + PEFT, batched Python and pfl, same training; 30 minutes, BENCH="--help"
	@benchmarks/setup_peers.sh
	@.venv-bench/bin/python benchmarks/bench_peers.py $(BENCH)

check-cuda:  ## build against a CUDA LibTorch and run the C++ tests on the CPU (HETLORA_CUDA_TORCH=DIR, or 5.5 GB to download)
	@scripts/check_cuda.sh

lint: setup  ## clang-format and ruff, changing nothing
	@scripts/lint.sh check

format: setup  ## what lint checks, put right in place
	@scripts/lint.sh fix

tidy: configure  ## clang-tidy on the C++ files changed against HEAD (needs clang-tidy)
	@scripts/tidy.sh

clean:  ## remove the build folders and caches; .venv, data and results stay
	rm -rf build build-dev build-asan .pytest_cache .ruff_cache
