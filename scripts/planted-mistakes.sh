#!/bin/sh
# Plants each mistake of tests/planted in a copy of the crate, and sees that the history checker of
# caches finds it: one of its worlds must report stale reads.
#
# With arguments: only the mistakes whose names contain one of them.
set -eu
cd "$(dirname "$0")/.."

root=$PWD
copy=$root/target/planted
# Of its own: what is built here must not be taken for the crate.
export CARGO_TARGET_DIR=$copy/target
promise=cache::history::no_process_is_given_what_another_has_invalidated

# Times are kept, so that only what has changed is built again.
mkdir -p "$copy"
git ls-files -z -- Cargo.toml Cargo.lock README.md src tests docs examples benches CHANGELOG.md |
	xargs -0 cp --parents --preserve=timestamps --target-directory "$copy"

# A copy that was left with a mistake must be built again.
for patch in tests/planted/*.patch; do
	sed -n 's/^+++ b\///p' "$patch" | while read -r file; do touch "$copy/$file"; done
done

missed=0
for patch in tests/planted/*.patch; do
	name=$(basename "$patch" .patch)
	chosen=${1+no}
	for part in "$@"; do
		case $name in *"$part"*) chosen=yes ;; esac
	done
	[ "${chosen:-yes}" = yes ] || continue

	if ! patch --quiet --dry-run --strip 1 --directory "$copy" <"$patch"; then
		missed=$((missed + 1))
		echo "MISSED: $name: the sources have changed, and it cannot be planted any more"
		continue
	fi
	patch --quiet --strip 1 --directory "$copy" <"$patch"
	found=
	# A stale read needs luck with some of them, so the worlds are run up to three times.
	for attempt in 1 2 3; do
		for world in "" _over_a_network_that_fails _while_slots_move; do
			log=$copy/$name$world.log
			if ! (cd "$copy" && cargo test --quiet --all-features --test it -- --exact "$promise$world") \
				>"$log" 2>&1; then
				found=$(grep --only-matching '[0-9]* stale reads, as .*Terms.*' "$log" | head -1) || true
				break 2
			fi
		done
	done
	patch --quiet --strip 1 --reverse --directory "$copy" <"$patch"

	if [ -n "$found" ]; then
		echo "found: $name, in attempt $attempt, by ${promise##*::}$world: $found"
	else
		missed=$((missed + 1))
		echo "MISSED: $name; see $log"
	fi
done
[ "$missed" = 0 ]
