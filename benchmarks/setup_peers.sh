#!/usr/bin/env bash
# .venv-bench, the environment of `make bench-peers`: torch, transformers, peft and what they need as pinned in
# requirements.txt, then pfl and what PEERS asks for (PEERS="flower appfl"); once. Without one of them the benchmark
# says so and goes on.
set -euo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.."

venv=.venv-bench
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

framework() {  # the module that it is imported by, and what pip installs
    local module=$1
    shift
    "$venv/bin/python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" ||
        "$venv/bin/python" -m pip install --quiet -c "$venv/requirements.txt" "$@" ||
        echo "bench-peers: $* could not be installed (pip's message is above): it is left out" >&2
}
for name in pfl ${PEERS:-}; do
    case $name in
        pfl) framework pfl pfl==0.6.0 ;;
        flower) framework flwr "flwr[simulation]==1.41.0" ;;
        appfl)
            # Without its own dependencies: some 150 packages (Globus, ProxyStore, Ray, ...), a dill too old for pfl and
            # a torchvision that fails beside a torch for the CPU. A serial run imports only these, and piq, which needs
            # that torchvision: appfl_peer.py does without.
            framework opacus opacus omegaconf colorama wandb seaborn scikit-learn
            framework appfl --no-deps appfl==1.12.0
            ;;
        *)
            echo "bench-peers: PEERS names $name; it knows flower and appfl" >&2
            exit 2
            ;;
    esac
done
