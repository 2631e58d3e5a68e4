# Each target is one command or one script. `make help` lists them.
# Every cargo command works on the whole workspace with one profile: picking packages would pick other features and compile
# RocksDB again, which takes 7 to 20 minutes of two cores.

TARGET := $(or $(CARGO_TARGET_DIR),target)
DATA ?= trunkline-data
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo test verify fix bench python e2e e2e-short chaos chaos-short chaos-clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install what is missing on this system (Debian packages by apt; says what it does)
	@tests/setup-system

demo: build ## start `trunkline dev`: a broker, an edge and a chat page to open in a browser
	$(TARGET)/debug/trunkline dev --data $(DATA)

test: setup-build run-tests ## run the tests of every crate

verify: setup-check ## check without changing anything: format, lints, docs, tests (installs nothing)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	$(MAKE) run-tests

fix: ## rewrite what can be rewritten: format, lints with a mechanical answer
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: build ## measure it (a quarter of an hour; wants a quiet machine)
	$(TARGET)/debug/trunkline-bench

python: setup ## check sdk/python: stubs, types, tests, wheel (a minute)
	sdk/python/check

e2e: setup ## run the end-to-end tests against real processes (about a quarter of an hour; disks need root)
	tests/e2e/run

e2e-short: setup ## run the quicker part of them
	tests/e2e/run -m short

chaos: setup ## faults on a cluster in namespaces: SEED=n FAULTS=a,b SECONDS=120 (needs root; a new seed if none is given)
	tests/chaos/run $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) --seconds $(or $(SECONDS),120) --brokers $(or $(BROKERS),3)

chaos-short: setup ## the mixed set of CI (minutes)
	tests/chaos/run test
	tests/chaos/run --short $(if $(SEED),--seed $(SEED)) --brokers $(or $(BROKERS),3)

chaos-clean: ## take away what a killed chaos run left: processes, namespaces, mounts
	tests/chaos/run clean

.PHONY: build run-tests setup-build setup-check
build: setup-build
	cargo build --workspace --locked
run-tests:
ifdef NEXTEST
	cargo nextest run --workspace --locked
	cargo test --workspace --locked --doc
else
	cargo test --workspace --locked
endif
setup-build:
	@tests/setup-system --build
setup-check:
	@tests/setup-system --check
