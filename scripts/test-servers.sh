#!/usr/bin/env bash
# Runs the integration suite on the installed server and on each that servers.sh obtains. Says at
# the end which ran, which were skipped and why, and which failed. The installed one must be there.
# Arguments go to the tests: scripts/test-servers.sh lock_queue
set -euo pipefail
cd "$(dirname "$0")/.."

logs=target/servers
summary=()
failed=0

main() {
    local others name version where server
    others=$(scripts/servers.sh)
    mkdir -p "$logs"
    cargo test --all-features --test it --no-run
    if server=$(installed); then
        run installed "$server" "$@"
    else
        conclude "installed: missing; scripts/setup.sh installs one"
        failed=1
    fi
    while read -r name version where; do
        if [ "$version" = skipped: ]; then
            conclude "$name: skipped: $where"
        else
            run "$name" "$where" "$@"
        fi
    done <<<"$others"
    printf '\nservers:\n'
    printf '  %s\n' "${summary[@]}"
    exit "$failed"
}

# As the tests find it.
installed() {
    if [ -n "${HEDGEROW_SERVER:-}" ]; then
        command -v "$HEDGEROW_SERVER"
    else
        command -v redis-server || command -v valkey-server
    fi
}

# name, server, arguments for the tests
run() {
    local name=$1 server=$2 log=$logs/$1.log result=failed
    shift 2
    echo "== $name: $(named "$server"), $log"
    # Rows of the fault matrix are kept apart from those that `make faults` writes its table from.
    if HEDGEROW_SERVER=$server HEDGEROW_FAULTS=$PWD/$logs/faults-$name \
        cargo test --all-features --test it -- "$@" </dev/null >"$log" 2>&1; then
        result=passed
    else
        failed=1
        sed -n '/^failures:/,$p' "$log"
    fi
    conclude "$name ($(named "$server")) $result: $(counts <"$log")"
    # What its tests could not show there, in their own words.
    while read -r line; do
        summary+=("  $line")
    done < <(grep -o 'not shown on this server: .*' "$log")
}

counts() {
    sed -nE 's/^test result: [A-Za-z]+\. (.* ignored).*; finished in (.*)/\1, in \2/p' | tail -n 1
}

# What a server says of itself, such as `Valkey 8.1.1`.
named() {
    "$1" --version | sed -E 's/^(.*) server v=([^ ]*) .*/\1 \2/'
}

conclude() {
    echo "== $*"
    summary+=("$*")
}

main "$@"
