#!/usr/bin/env bash
# Counts the client's instructions for one operation of each kind, by callgrind: a run of COUNT
# operations less a run of none, on one thread. Prints a line for each, and the ratios that the
# project watches. Needs valgrind; the counts hardly depend on the machine's load.
set -euo pipefail
cd "$(dirname "$0")/.."

COUNT=${COUNT:-2000}

command -v valgrind >/dev/null || {
    echo "valgrind is not installed: its package is called valgrind nearly everywhere" >&2
    exit 1
}
binary=$(cargo bench --all-features --bench instructions --no-run 2>&1 |
    sed -n 's/.*Executable.*(\(.*\))/\1/p')
[ -n "$binary" ] || { echo "the benchmark was not built" >&2; exit 1; }

folder=$(mktemp -d)
server=${HEDGEROW_SERVER:-$(command -v redis-server || command -v valkey-server)}
"$server" --port 0 --unixsocket "$folder/socket" --save '' --appendonly no >"$folder/log" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true; rm -rf "$folder"' EXIT
until [ -S "$folder/socket" ]; do sleep 0.05; done

# Instructions of a whole run of `$2` operations `$1`. A run that fails counts for nothing: on a
# loaded machine, calls under valgrind may miss their deadlines.
whole() {
    if ! valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        "$binary" "unix://$folder/socket" "$1" "$2" >"$folder/run" 2>&1; then
        grep -v '^==' "$folder/run" >&2
        echo "a run of $2 times $1 failed" >&2
        return 1
    fi
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$folder/run"
}

declare -A each
for operation in lock_cycle two_evalsha counter_add raw_incr memoize_hit get hit_3tags get_3tags \
    raw_get near_get near_get_3tags moka_get \
    get_many_100 raw_mget_100 set_many_100 raw_set_100 lock_cycle@50 two_evalsha@50 counter_add@50 raw_incr@50 memoize_hit@50 get@50 hit_3tags@50 raw_get@50; do
    none=$(whole "$operation" 0)
    all=$(whole "$operation" "$COUNT")
    each[$operation]=$(((all - none) / COUNT))
    echo "$operation ${each[$operation]}"
done

ratio() { awk -v ours="$2" -v theirs="$3" -v name="$1" \
    'BEGIN { printf "%s %.2f\n", name, ours / theirs }'; }
ratio lock_cycle/two_counter_adds "${each[lock_cycle]}" "$((2 * each[counter_add]))"
ratio lock_cycle/two_evalsha "${each[lock_cycle]}" "${each[two_evalsha]}"
ratio counter_add/raw_incr "${each[counter_add]}" "${each[raw_incr]}"
for hit in memoize_hit get hit_3tags get_3tags; do
    ratio "$hit/raw_get" "${each[$hit]}" "${each[raw_get]}"
done
ratio near_get/moka_get "${each[near_get]}" "${each[moka_get]}"
ratio near_get_3tags/moka_get "${each[near_get_3tags]}" "${each[moka_get]}"
ratio get_many_100/raw_mget_100 "${each[get_many_100]}" "${each[raw_mget_100]}"
ratio set_many_100/raw_set_100 "${each[set_many_100]}" "${each[raw_set_100]}"
ratio lock_cycle/two_evalsha@50 "${each[lock_cycle@50]}" "${each[two_evalsha@50]}"
ratio counter_add/raw_incr@50 "${each[counter_add@50]}" "${each[raw_incr@50]}"
for hit in memoize_hit get hit_3tags; do
    ratio "$hit/raw_get@50" "${each[$hit@50]}" "${each[raw_get@50]}"
done
"$binary" allocations | sed 's/^/allocations of /'
