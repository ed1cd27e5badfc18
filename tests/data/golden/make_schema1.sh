#!/usr/bin/env bash
# tests/data/golden/make_schema1.sh: how the golden logs were made, with the writer of the release that brought schema 1
# (build/tests/write_sample_log). They are opened by tests/store/golden_log_test.cpp and tests/python/test_golden_logs.py
# for ever: never make them anew. A change of the schema gets a new number, a folder of its own, and a script like this.
set -euo pipefail
cd -- "${BASH_SOURCE[0]%/*}"
writer=../../../build/tests/write_sample_log
[ ! -e schema1/plain ] || { echo "schema1 exists: golden files are never replaced" >&2; exit 2; }
for kind in plain metric layers; do
    case $kind in
        plain) words=(plain) ;;
        metric) words=() ;;
        layers) words=(plain layers) ;;
    esac
    made=$(mktemp -d)
    "$writer" "$made/run" 4 "${words[@]}" >/dev/null
    mkdir -p "schema1/$kind"
    cp "$made/run/run.h5" "$made/run/progress.jsonl" "schema1/$kind/"
    rm -r "$made"
done
