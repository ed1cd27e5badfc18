#!/usr/bin/env bash
# The figures of docs/gallery.md, from the runs of configs/sweeps/gallery.ini: scripts/gallery.sh [RESULTS [FIGURES]]
set -euo pipefail
cd "$(dirname "$0")/.."

results=${1:-results/gallery}
figures=${2:-docs/img/gallery}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# One report of the runs with this word in experiment.tags, and these figures of it.
draw() {
    local tag=$1 only=()
    shift
    for name in "$@"; do only+=(--only "$name"); done
    build/hetlora report "$results" --where "experiment.tags~$tag" "${only[@]}" --output "$scratch/$tag.html" \
        --figures "$scratch/$tag"
    mkdir -p "$figures"
    for file in "$scratch/$tag"/*.svg; do cp "$file" "$figures/$tag-$(basename "$file")"; done
}

draw methods perplexity perplexity-by-bytes
draw ranks perplexity
draw law perplexity
draw gamma perplexity
draw slots slots-alive perplexity
