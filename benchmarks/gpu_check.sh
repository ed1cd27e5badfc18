#!/usr/bin/env bash
# One call on a machine with a GPU: builds the program against a CUDA LibTorch, checks it (the same losses as on the CPU, a
# client cannot tell that it was batched), times it beside a bare transformers + peft loop on the same device, and writes
# gpu_check.json and gpu_check.md. See docs/gpu.md.
#   benchmarks/gpu_check.sh [--out DIR] [--device cuda|cpu] [--tiny] [--seconds S] [--no-peer]
#   --device cpu --tiny      tries the script itself where there is no GPU
#   HETLORA_CUDA_TORCH=DIR   an existing torch folder (CUDA build) with transformers, peft and h5py beside it
#   HETLORA_PROGRAM=FILE     a program that is built already;  PYTHON=FILE  the Python that runs the check
set -euo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.."

folder=build-cuda
mkdir -p "$folder"
program=${HETLORA_PROGRAM:-}
python=${PYTHON:-}
if [ -z "$python" ]; then
    if [ ! -e "$folder/venv/.peers" ]; then
        echo "making $folder/venv: torch, transformers, peft (several GB)"
        [ -e "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
        [ -n "${HETLORA_CUDA_TORCH:-}" ] || "$folder/venv/bin/python" -m pip install --quiet torch==2.14.1
        grep -E '^(transformers|peft|tokenizers|safetensors|numpy|h5py)==' requirements.txt > "$folder/peers.txt"
        "$folder/venv/bin/python" -m pip install --quiet -r "$folder/peers.txt"
        touch "$folder/venv/.peers"
    fi
    python=$folder/venv/bin/python
fi
if [ -z "$program" ]; then
    torch=${HETLORA_CUDA_TORCH:-$(echo "$PWD/$folder"/venv/lib/python3*/site-packages/torch)}
    cmake -S . -B "$folder/release" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTORCH_DIR="$torch" -DHETLORA_CUDA=ON \
        -DHETLORA_CUDA_GRAPHS=AUTO
    cmake --build "$folder/release" -j "${JOBS:-$(nproc)}" --target hetlora
    program=$folder/release/hetlora
fi
exec "$python" benchmarks/gpu_check.py --program "$program" "$@"
