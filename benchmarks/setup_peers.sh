#!/usr/bin/env bash
# .venv-bench, the environment of `make bench-peers`: torch, transformers, peft and what they need as pinned in
# requirements.txt, then pfl; once. Without pfl the benchmark says so and goes on.
set -euo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.."

venv=.venv-bench
pfl=pfl==0.6.0
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME

wanted=$(sha256sum requirements.txt benchmarks/setup_peers.sh | sha256sum)
if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "making $venv (torch is the largest package: minutes on a slow network)"
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    # The same versions as .venv: the peers and the audit use the same libraries.
    grep -E '^(torch|transformers|peft|tokenizers|safetensors|numpy|h5py)==' requirements.txt > "$venv/requirements.txt"
    "$venv/bin/python" -m pip install --quiet -r "$venv/requirements.txt"
    printf '%s' "$wanted" > "$venv/.stamp"
fi
if ! "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pfl") is None)'; then
    "$venv/bin/python" -m pip install --quiet -c "$venv/requirements.txt" "$pfl" ||
        echo "bench-peers: $pfl could not be installed (pip's message is above): it is left out" >&2
fi
