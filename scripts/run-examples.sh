#!/bin/sh
# Runs every example. Each asserts what it shows. The last part breaks the main one on purpose, to
# see that its checks are not empty: it must fail, and for the right reason.
set -eu
cd "$(dirname "$0")/.."

run() {
    name=$1
    shift
    cargo run --quiet --all-features --example "$name" -- "$@"
}

for file in examples/*.rs; do
    name=$(basename "$file" .rs)
    echo "== $name"
    run "$name"
done

echo "== atlas"
run atlas --seconds 5 --workers 3 --kill --json

# sabotage, and what the figures must then show
must_notice() {
    echo "== atlas, with its $1 broken"
    if figures=$(run atlas --seconds 2 --workers 2 --writers 8 --json --sabotage "$1" 2>/dev/null); then
        echo "the broken $1 went unnoticed: $figures" >&2
        exit 1
    fi
    if ! echo "$figures" | grep -q "$2"; then
        echo "it failed, but not on account of its $1: $figures" >&2
        exit 1
    fi
}

must_notice invalidation '"stale_reads":[1-9]'
must_notice lock '"lock_overlaps":[1-9]'
must_notice counter '"counter_drift":[1-9]'
echo "each was noticed"
