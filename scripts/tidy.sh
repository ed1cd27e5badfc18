#!/usr/bin/env bash
# `make tidy`: clang-tidy (.clang-tidy) on the C++ sources changed against HEAD, or on those named as arguments.
set -euo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.."

if ! command -v clang-tidy >/dev/null 2>&1; then
    echo "tidy: clang-tidy not found - install the package clang-tidy (apt-get install clang-tidy)" >&2
    exit 4
fi
files=("$@")
if [ ${#files[@]} -eq 0 ]; then
    mapfile -t files < <({
        git diff --name-only --diff-filter=d HEAD -- '*.cpp' 2>/dev/null || true  # a repository without commits
        git ls-files --others --exclude-standard -- '*.cpp'
    })
fi
if [ ${#files[@]} -eq 0 ]; then
    echo "tidy: no C++ source differs from HEAD"
    exit 0
fi
# Per file, which the release preset does not compile.
cmake --preset dev -DTORCH_DIR="${TORCH_DIR:-$(cat .venv/torch_dir 2>/dev/null)}" >/dev/null
# GCC has warnings that clang does not know, and an omp.h that clang cannot read.
clang-tidy --quiet -p build-dev --extra-arg=-Wno-error --extra-arg=-Wno-unknown-warning-option --extra-arg=-fno-openmp \
    "${files[@]}"
