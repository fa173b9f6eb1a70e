# Needs cargo and, for whatever runs containers, root on a Debian machine. Nothing else: conformance/setup.sh installs
# the packages that are missing.

PREFIX ?= /usr/local
DESTDIR ?=
DOC = $(DESTDIR)$(PREFIX)/share/doc/podwright
ENDPOINT ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
CONFORMANCE := $(TARGET)/conformance
# Where Debian keeps libseccomp.a; .cargo/config.toml names x86-64's folder for those who call cargo themselves.
export LIBSECCOMP_LIB_PATH ?= /usr/lib/$(shell uname -m)-linux-gnu
SCRIPTS := $(shell git ls-files '*.sh' .ci/run conformance/node/node-vm 2>/dev/null)

.PHONY: help build demo test lint fmt unit conformance test-node fuzz bench images install setup clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## build both programs, optimised
	@conformance/setup.sh build
	cargo build --release --locked --bins

demo: ## run one pod from nothing: packages, build, registry, daemon, pod, clean-up
	@conformance/setup.sh demo
	cargo build --release --locked --bins
	@conformance/demo.sh

# One run of nextest, so that its summary tells of all tests; the census speaks up only if something was left behind.
test: setup lint images ## check everything this machine can check
	@touch "$(TARGET)/test-begun"
	cargo nextest run --locked
	@left=$$(SINCE="$(TARGET)/test-begun" conformance/census.sh) || { echo "$$left" >&2; exit 1; }

setup:
	@conformance/setup.sh test

lint: ## format, clippy, licences of the dependencies, shell scripts
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@echo 'cargo deny: licenses, bans, sources (advisories need a database from the network: cargo deny check advisories)'
	cargo deny --locked --log-level error check --hide-inclusion-graph licenses bans sources
	shellcheck -x $(SCRIPTS)

fmt: ## format the sources
	cargo fmt

unit: ## the tests beside the code
	cargo nextest run --locked --lib --bins --test cri-bench

fuzz: ## fuzz the parsers of outside bytes, FUZZ_SECONDS (60) each
	fuzz/run.sh

images: ## build the test images
	@conformance/images/make-images.sh

conformance: images ## drive the daemon over its socket
	cargo nextest run --locked --test conformance

test-node: ## the conformance suite in a virtual node with cgroup v2 and systemd
	@conformance/setup.sh node
	@conformance/images/make-images.sh
	@conformance/node/test-node.sh

bench: ## measure any CRI socket: make bench ENDPOINT=unix:///run/podwright/podwright.sock
	@test -n "$(ENDPOINT)" || { echo 'usage: make bench ENDPOINT=unix:///path/to/cri.sock [ARGS="..."]' >&2; exit 2; }
	cargo bench --locked --bench cri -- --endpoint "$(ENDPOINT)" $(ARGS)

# README.md is installed with all that it links to, in the same places beside it.
install: ## install both programs, the unit and the handlers below $(DESTDIR)$(PREFIX)
	install -D -m 755 -t "$(DESTDIR)$(PREFIX)/bin" "$(TARGET)/release/podwright" "$(TARGET)/release/podwright-monitor"
	install -D -m 644 -t "$(DOC)" README.md ARCHITECTURE.md BENCHMARKS.md CONTRIBUTING.md LICENSE
	install -D -m 644 -t "$(DOC)/conformance" conformance/fields.md
	install -D -m 644 -t "$(DOC)/conformance/node" conformance/node/README.md
	install -D -m 644 -t "$(DOC)/fuzz" fuzz/README.md
	install -D -m 644 -t "$(DOC)/examples" examples/*.yaml examples/config.toml
	install -D -m 644 -t "$(DOC)/examples/cni" examples/cni/*
	sed 's|/usr/local/bin|$(PREFIX)/bin|g' examples/podwright.service > "$(DOC)/examples/podwright.service"
	ln -sfn ../../podwright/runtime-handlers "$(DOC)/runtime-handlers"
	install -D -m 644 -t "$(DESTDIR)$(PREFIX)/lib/systemd/system" "$(DOC)/examples/podwright.service"
	install -D -m 644 -t "$(DESTDIR)$(PREFIX)/share/podwright/runtime-handlers" runtime-handlers/*

clean:
	cargo clean
