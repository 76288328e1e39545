#!/usr/bin/env bash
# Obtains the servers of the matrix beside the installed one, and says of each where it is or why
# it is skipped: `redis-8.0 8.0.2 /path/to/redis-server`, or `redis-8.0 skipped: why`.
#
# They come as Debian packages of other suites, from the mirror that this system uses already, and
# are unpacked into a cache together with the libraries they need: nothing is installed, and no
# privilege is needed. What is in the cache is whole: it gets its name when it has told its version.
set -euo pipefail

cache=${HEDGEROW_SERVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/hedgerow/servers}

main() {
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    obtain redis 8.0 trixie
    obtain valkey 8.1 trixie
    obtain valkey 9.1 forky
}

# kind, version, suite
obtain() {
    local name=$1-$2 server=$cache/$1-$2/$1-server found
    if [ ! -x "$server" ] && ! unpack "$@" >"$work/log" 2>&1; then
        echo "$name skipped: $(tail -n 1 "$work/log")"
    elif found=$(version "$server"); then
        echo "$name $found $server"
    else
        echo "$name skipped: $server does not run; remove its directory to have it made anew"
    fi
}

# Puts a server into the cache. The last line that it prints is the reason if it fails.
unpack() {
    local tree=$work/$1-$2 debs=$work/debs-$1-$2 found
    prepare "$3" || return
    mkdir -p "$tree" "$debs"
    # The server is in the package of tools; the rest is what it links.
    (cd "$debs" && apt_of "$3" download "$1-tools" libc6 libssl3t64 liblzf1 libjemalloc2 libatomic1 \
        libstdc++6 libgcc-s1 libsystemd0 libcap2 zlib1g libzstd1) ||
        because "$3 cannot give the packages of $1" || return
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$tree" || because "$deb cannot be unpacked" || return
    done
    wrap "$1" "$tree" || return
    found=$(version "$tree/$1-server") || because "$1 of $3 does not run here" || return
    [[ $found == "$2".* ]] || because "$3 carries $1 $found by now" || return
    # Somebody else may have been quicker: theirs is as good.
    mv -T "$tree" "$cache/$1-$2" || [ -x "$cache/$1-$2/$1-server" ] || because "$cache/$1-$2 is in the way"
}

# The server is one of the names of the program that also checks dumps. The system's loader and
# libraries may be too old for it, so it comes with its own.
wrap() {
    local loader libraries
    loader=$(cd "$2" && find . -name 'ld-linux*.so.*' -printf %P -quit)
    libraries=$(cd "$2" && dirname "$(find . -name libc.so.6 -printf %P -quit)")
    [ -n "$loader" ] && [ -n "$libraries" ] || because "no loader is known for this machine" || return
    cat >"$2/$1-server" <<END
#!/bin/sh
here=\${0%/*}
exec "\$here/$loader" --library-path "\$here/$libraries" --argv0 $1-server "\$here/usr/bin/$1-check-rdb" "\$@"
END
    chmod +x "$2/$1-server"
}

# What a suite offers, in apt's own words but in a state of our own.
prepare() {
    local state=$work/$1 uri keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ ! -e "$state/ready" ] || return 0
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        because "they come as Debian packages, and there is no apt here" || return
    uri=$(mirror | grep .) || because "the sources of apt name no mirror of this system" || return
    mkdir -p "$state"/{parts,lists/partial,archives/partial}
    : >"$state/status"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$1" >"$state/parts/suite.sources"
    # Without it, those that the administrator trusts are asked.
    [ ! -r "$keys" ] || echo "Signed-By: $keys" >>"$state/parts/suite.sources"
    apt_of "$1" update || because "the system's mirror cannot be reached, or has no $1" || return
    touch "$state/ready"
}

# Where the system's own suite comes from.
mirror() {
    local suite
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # apt fills these in
    apt-get indextargets --format '$(RELEASE) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
        awk -v suite="$suite" '!n && ($1 == suite || $2 == suite) && $3 == "main" { print $4; n = 1 }'
}

# suite, what to do
apt_of() {
    local state=$work/$1
    shift
    apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$state/parts" \
        -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
        -o Dir::Cache::archives="$state/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
        -o Acquire::Languages=none -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 \
        -o APT::Sandbox::User= -o APT::Update::Error-Mode=any "$@"
}

# What a server says of itself, such as 8.0.2.
version() {
    "$1" --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p' | grep .
}

because() {
    echo "$*"
    return 1
}

main
