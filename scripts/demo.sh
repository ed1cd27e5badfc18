#!/usr/bin/env bash
# `make demo`: HetLoRA, and homogeneous LoRA at the smallest and at the largest lora_rank, on the same clients.
# Needs no network; the data are made once from the installed chitchat-dataset package.
set -euo pipefail
cd "$(dirname "$0")/.."

data=data/chitchat-tiny.h5
if [ ! -f "$data" ]; then
    mkdir -p data
    build/hetlora prepare chitchat --tokenizer models/tiny-chat --out "$data"
fi

out=${DEMO_OUT:-results/demo}
rm -rf "$out/hetlora" "$out/homlora-low" "$out/homlora-high"  # the demo's own folders, made anew each time
run() { build/hetlora run --config configs/demo.ini --output "$out/$1" experiment.name="$1" "${@:2}"; }
run hetlora
run homlora-low strategy.preset=homlora lora.rank_distribution=fixed lora.rank_min=2 lora.rank_max=2
run homlora-high strategy.preset=homlora lora.rank_distribution=fixed lora.rank_min=32 lora.rank_max=32

echo
build/hetlora table "$out/hetlora" "$out/homlora-low" "$out/homlora-high"
echo
build/hetlora report "$out/hetlora" "$out/homlora-low" "$out/homlora-high" --title "hetlora demo" \
    --output "$out/report.html"
echo "Open $out/report.html in a browser to see the curves, the slots and the lora_ranks."
