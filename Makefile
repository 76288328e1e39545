# Two commands do everything, set-up included: `make demo` and `make test`.

CARGO ?= cargo
# Tests outside of the fault matrix that leave rows for its table.
OUTSIDE = lock_process:: memoize_process:: ten_thousand callers_cancelled lost_its_primary \
	something_else another_type foreign_type

# Passed on to the demo, or the tests: make demo ARGS='--kill --seconds 30'
ARGS ?=
# Tests wait more than they compute: on a small machine more of them run at once.
export RUST_TEST_THREADS ?= $(shell n=$$(nproc); echo $$((n < 3 ? 6 : 2 * n)))
# What `bench-cache` measures: parts of the names of rows.
CACHE_ROWS ?= near_ get_many set_many remove_matching memoize_many invalidate_ \
	open_breaker_get open_breaker_memoize
# What `bench-web` measures, and what `bench-rivals` does.
WEB_ROWS ?= page_ limit_ session_
RIVAL_ROWS ?= hit/ miss/ herd
SOAK_SECONDS ?= 1800
HISTORY_SECONDS ?= 600
TOPOLOGIES ?= cluster shards sentinel tls acl

.PHONY: help setup browser demo shop test test-servers test-topologies examples lint doc faults soak history planted \
	bench bench-quick bench-cache bench-codecs bench-rivals bench-web bench-report bench-figures \
	instructions ci clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Check the tools, and install a Redis server if none is there
	@scripts/setup.sh

browser: ## Do the same, and install Chromium and its driver on Debian, for one test of the shop
	@scripts/setup.sh browser

demo: setup ## Run the main job: a city service on real data (ARGS='--kill', ARGS=--help)
	$(CARGO) run --release --quiet --features embedded --example atlas -- $(ARGS)

shop: setup ## Run a whole service: a shop as two instances on one Redis (ARGS='--port 8000')
	$(CARGO) run --quiet --all-features --example shop -- $(ARGS)

test: browser ## Run every test: unit, integration, documentation, examples
	$(CARGO) test --all-features
	scripts/run-examples.sh

test-servers: setup ## Run the integration tests on every supported server (ARGS=lock_queue: only those)
	scripts/test-servers.sh $(ARGS)

test-topologies: setup ## Run the integration tests on a cluster, on shards, with sentinels, over TLS, with few rights
	for topology in $(TOPOLOGIES); do \
		echo "== $$topology"; \
		HEDGEROW_TOPOLOGY=$$topology HEDGEROW_FAULTS=$$PWD/target/faults-$$topology \
			$(CARGO) test --all-features --test it || exit; \
	done

examples: setup ## Run every example, and see that its checks would notice a fault
	scripts/run-examples.sh

lint: ## Check format and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features -- -D warnings

doc: ## Build the documentation; a warning is an error
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --all-features

faults: setup ## Run the fault matrix and write docs/faults.md from it
	rm -rf target/faults
	$(CARGO) test --all-features --test it -- faults:: $(OUTSIDE)
	$(CARGO) test --all-features --test it -- --ignored the_table_is_written

soak: export SOAK_SECONDS := $(SOAK_SECONDS)
soak: setup ## Run random faults for half an hour (SOAK_SECONDS=60, HEDGEROW_SEED=1)
	$(CARGO) test --all-features --test it -- --ignored --nocapture --test-threads 1 nothing_grows

history: export HISTORY_SECONDS := $(HISTORY_SECONDS)
history: setup ## Hold reads of caches to their promise under faults for ten minutes (HISTORY_SECONDS, HEDGEROW_SEED)
	$(CARGO) test --all-features --test it -- --ignored --nocapture has_invalidated_for_long

planted: setup ## Plant mistakes in a copy of the crate, and see that the history checker finds each (ARGS=near)
	scripts/planted-mistakes.sh $(ARGS)

bench: setup ## Measure against the bare driver, side by side
	$(CARGO) bench --all-features --bench side_by_side

bench-quick: setup ## The same in under 90 seconds: one server, shorter slices
	$(CARGO) bench --all-features --bench side_by_side -- --quick

bench-cache: setup ## Measure the cache alone: near hits, batches, tags, an open breaker
	$(CARGO) bench --all-features --bench side_by_side -- --json=cache $(CACHE_ROWS)

bench-codecs: ## Measure codecs and compressors, and those of django-redis (needs python3 and pip)
	$(CARGO) bench --all-features --bench codecs
	python3 benches/peers/codecs.py

bench-rivals: export CARGO_TARGET_DIR := $(CURDIR)/target
bench-rivals: setup ## Measure hits, misses and herds against the crates cached and hitbox
	$(CARGO) run --release --locked --manifest-path benches/peers/rivals/Cargo.toml -- --json=rivals $(RIVAL_ROWS)

bench-web: export CARGO_TARGET_DIR := $(CURDIR)/target
bench-web: setup ## Measure pages, limits and sessions, against other crates and Django (needs python3 and pip)
	$(CARGO) bench --all-features --bench side_by_side -- --json=web $(WEB_ROWS)
	$(CARGO) run --release --locked --manifest-path benches/peers/rivals/Cargo.toml -- --json=web-rivals $(WEB_ROWS)

bench-report: export CARGO_TARGET_DIR := $(CURDIR)/target
bench-report: ## Write the tables and charts of docs/performance.md from what was measured
	$(CARGO) run --quiet --locked --manifest-path benches/report/Cargo.toml

bench-figures: ## All of the five, one after the other: under 10 minutes when they are built
	$(MAKE) bench-cache
	$(MAKE) bench-codecs
	$(MAKE) bench-rivals
	$(MAKE) bench-web
	$(MAKE) bench-report

instructions: setup ## Count the instructions and allocations of single operations (needs valgrind)
	scripts/instructions.sh

ci: ## Everything that must hold before a change goes in
	.ci/run

clean: ## Remove what was built
	$(CARGO) clean
