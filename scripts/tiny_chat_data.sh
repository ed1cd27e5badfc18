#!/usr/bin/env bash
# Makes the data of the tiny chat model from a folder of public-domain text: a tokenizer of 2,048 tokens, the
# pretraining file and the federated chat file. The output does not depend on the machine or the time.
# usage: scripts/tiny_chat_data.sh DATA_DIR OUT_DIR
set -euo pipefail
if [ "$#" -ne 2 ]; then
    echo "usage: $0 DATA_DIR OUT_DIR   (DATA_DIR holds novels/, presidents/, shakespeare_roles/, nasa_voice/)" >&2
    exit 2
fi
data=$1
out=$2
for file in novels/novels_one_per_author.jsonl.xz presidents/presidents.jsonl.xz \
            shakespeare_roles/speeches.jsonl.xz nasa_voice/nasa_voice.jsonl.xz; do
    if [ ! -f "$data/$file" ]; then
        echo "$0: no such file: $data/$file; give the folder that holds the public-domain text" >&2
        exit 3
    fi
done
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${HETLORA_PYTHON:-$repository/.venv/bin/python}
[ -x "$python" ] || python=python3
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}

# The same text for the tokenizer and for pretraining. Conversations: quoted speech of the novels, plays, radio traffic.
text=("$data/novels/novels_one_per_author.jsonl.xz" "$data/presidents/presidents.jsonl.xz" --quoted
      --dialogue "$data/shakespeare_roles/speeches.jsonl.xz:role:play,act,scene"
      --dialogue "$data/nasa_voice/nasa_voice.jsonl.xz:speaker:mission,channel")

"$python" -m hetlora prepare tokenizer "${text[@]}" --max-megabytes 4 --vocab-size 2048 --out "$out/tiny-tokenizer"
"$python" -m hetlora prepare text "${text[@]}" --max-megabytes 12 --piece-chars 2500 \
    --license "public domain" --tokenizer "$out/tiny-tokenizer" --out "$out/pretrain.h5"
"$python" -m hetlora prepare chitchat --tokenizer "$out/tiny-tokenizer" --out "$out/chitchat-tiny.h5"
