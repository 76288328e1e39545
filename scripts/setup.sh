#!/bin/sh
# Checks for a Rust toolchain and a C compiler, and installs a Redis server if there is none.
# Nothing is changed when all three are there. The server is never run as a service: tests and
# examples start private ones of their own.
#
# With `browser` as its argument, it also installs Chromium and its driver on Debian, with which one
# test looks at the example shop. Without them that test says that it was skipped.
set -eu

main() {
    check_tools
    if ! has_server; then
        say "no redis-server or valkey-server on PATH: installing one"
        install_server
        has_server || fail "the server was installed, but is not on PATH; look for redis-server or valkey-server"
        say "done"
    fi
    if [ "${1:-}" = browser ] && ! has_browser; then
        install_browser || say "chromium and chromedriver were not installed: their test will be skipped"
    fi
}

check_tools() {
    has cargo || fail "cargo is missing; install Rust from https://rustup.rs and open a new shell"
    has cc || has gcc || has clang || fail "a C compiler is missing; install one:
    Debian, Ubuntu: apt-get install build-essential     Fedora: dnf install gcc
    Alpine: apk add build-base                          macOS: xcode-select --install"
}

has_server() {
    has redis-server || has valkey-server || [ -x "${HEDGEROW_SERVER:-}" ]
}

has_browser() {
    has chromium && has chromedriver
}

# Only with rights that are there already: nobody is asked for a password for one test.
install_browser() {
    has apt-get || return 1
    [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null || return 1
    say "no chromium and chromedriver on PATH: installing them"
    install_browser_packages || { as_root apt-get update && install_browser_packages; }
}

install_browser_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends chromium chromium-driver
}

install_server() {
    if has apt-get; then
        install_on_debian
    elif has dnf; then
        as_root dnf install -y redis || as_root dnf install -y valkey
    elif has apk; then
        as_root apk add --no-cache redis || as_root apk add --no-cache valkey
    elif has brew; then
        brew install redis
    else
        fail "no apt-get, dnf, apk or brew; install redis-server or valkey-server by hand"
    fi
}

# Debian's package starts and enables a service as it is installed; neither is wanted.
install_on_debian() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        # shellcheck disable=SC2064 # the path of now is meant
        trap "as_root rm -f $policy" EXIT
        trap 'exit 1' HUP INT TERM
    fi
    as_root apt-get update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends valkey-server
    if has systemctl; then
        as_root systemctl disable --now redis-server valkey-server >/dev/null 2>&1 || true
    fi
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        fail "installing a server needs root, and there is no sudo; as root: $*"
    fi
}

has() {
    command -v "$1" >/dev/null 2>&1
}

say() {
    echo "setup: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

main "$@"
