#!/usr/bin/env bash
# `make check-cuda`: does the program build against a CUDA LibTorch, and do the C++ tests pass on the CPU there? Twice: once
# as without a CUDA toolkit, once with the recording of steps as CUDA graphs (where CUDA's headers are found). Needs no
# GPU, and takes minutes; not part of `make test`.
#   HETLORA_CUDA_TORCH=DIR   the torch folder of an environment with a CUDA build; else one is made in build-cuda/ (5.5 GB)
#   JOBS=2
set -euo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.."

folder=build-cuda
pin=torch==2.14.1
tests=(tensor_test model_test cuda_test train_test)
torch=${HETLORA_CUDA_TORCH:-}
if [ -z "$torch" ]; then
    if [ "$(cat "$folder/venv/.stamp" 2>/dev/null)" != "$pin" ]; then
        echo "making $folder/venv with $pin (several GB: minutes on a slow network)"
        rm -rf "$folder/venv"
        "${PYTHON:-python3}" -m venv "$folder/venv"
        "$folder/venv/bin/python" -m pip install --quiet "$pin"
        printf '%s' "$pin" > "$folder/venv/.stamp"
    fi
    torch=$(echo "$PWD/$folder"/venv/lib/python3*/site-packages/torch)
fi
if [ ! -e "$torch/lib/libtorch_cuda.so" ]; then
    echo "check-cuda: $torch has no lib/libtorch_cuda.so, so it is no CUDA build of torch" >&2
    exit 4
fi

mkdir -p "$folder"
for graphs in OFF AUTO; do
    cmake -S . -B "$folder/release" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTORCH_DIR="$torch" -DHETLORA_CUDA=ON \
        -DHETLORA_CUDA_GRAPHS="$graphs" -DHETLORA_TESTS=ON > "$folder/configure.log" 2>&1 ||
        { cat "$folder/configure.log" >&2; exit 1; }
    grep -e "CUDA build:" -e "GPU support from" "$folder/configure.log"
    if [ "$graphs" = AUTO ] && ! grep -q "GPU support from.*graph_step" "$folder/configure.log"; then
        echo "check-cuda: CUDA's headers were not found: the graph part was NOT compiled (set CUDA_HOME)" >&2
        exit 1
    fi
    cmake --build "$folder/release" -j "${JOBS:-2}" --target hetlora "${tests[@]}"
    (IFS='|' && ctest --test-dir "$folder/release" --output-on-failure --no-tests=error -R "^(${tests[*]})\$")
    "$folder/release/hetlora" --version
done
echo "check-cuda: built and tested on the CPU, without and with step graphs; nothing ran on a GPU"
