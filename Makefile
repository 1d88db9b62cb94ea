# Vireo: the commands that people type. What they do is in xtask/.
#
#   make demo    boots a Debian guest to its login prompt
#   make test    everything: rules, unit tests, guest tests
#   make check   the quick loop: rules and unit tests
#   make fuzz    every fuzz target for MINUTES each

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# rustup's folder, in case this shell does not have it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo
MINUTES ?= 1
TOOLCHAIN := 1.95

.PHONY: help setup check test unit doc-tests interleavings fuzz-seeds guest-tests demo fuzz
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

# A linker is needed before xtask can be built, which installs the rest.
setup:
	@command -v $(CARGO) >/dev/null || { \
		echo "There is no Rust toolchain. Install Rust $(TOOLCHAIN) or newer with rustup (https://rustup.rs),"; \
		echo "then open a new shell, or add ~/.cargo/bin to PATH."; exit 1; } >&2
	@command -v cc >/dev/null || { \
		if [ "$$(id -u)" = 0 ]; then \
			apt-get -q update && DEBIAN_FRONTEND=noninteractive \
				apt-get -q install --yes --no-install-recommends build-essential pkg-config; \
		else \
			echo "There is no C compiler, which Rust needs as its linker. Install one with"; \
			echo "  sudo apt-get install --no-install-recommends build-essential pkg-config"; exit 1; \
		fi; } >&2
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 || { \
		echo "rustfmt or clippy is missing. Add them with: rustup component add rustfmt clippy"; exit 1; } >&2
	$(CARGO) xtask setup

check:
	$(CARGO) xtask check
	$(MAKE) --no-print-directory unit

# nextest where it is there: it runs tests in parallel across crates.
unit:
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		echo "$(CARGO) nextest run --workspace"; $(CARGO) nextest run --workspace; \
	else \
		echo "$(CARGO) test --workspace --lib --bins --tests"; $(CARGO) test --workspace --lib --bins --tests; \
	fi

doc-tests:
	$(CARGO) test --workspace --doc

# Locks under a scheduler that tries one order of threads after the other.
interleavings:
	$(CARGO) xtask interleavings

# The fuzz targets' seeds, without the fuzzer.
fuzz-seeds:
	cd fuzz && CARGO_TARGET_DIR=../target/fuzz $(CARGO) test --no-default-features --lib

guest-tests:
	$(CARGO) xtask guest-tests

test: setup
	$(CARGO) xtask check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory doc-tests
	$(MAKE) --no-print-directory interleavings
	$(MAKE) --no-print-directory fuzz-seeds
	$(MAKE) --no-print-directory guest-tests

demo: setup
	$(CARGO) build --release --package vireo
	$(CARGO) xtask demo

fuzz: setup
	$(CARGO) xtask fuzz all --minutes $(MINUTES)
