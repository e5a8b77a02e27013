# What a new user runs: `make demo` and `make test`. `make help` lists the rest.

CARGO ?= cargo
DENY_VERSION := 0.20.2
TOOLS := $(CURDIR)/target/tools
DENY := $(TOOLS)/bin/cargo-deny
CLUSTER := target/release/muster-cluster
FAULTS := target/release/muster-faults
# Virtual machines are made of Debian's packages: elsewhere there are none.
VM_HOST := $(shell command -v apt-get >/dev/null && [ "$$(uname -m)" = x86_64 ] && echo yes)

.PHONY: help cargo build demo demo-vm demo-ha cluster vm-image vm-packages test test-full lint unit-tests simulation \
    previous-version cluster-tests vm-tests fault-matrix chaos failure-times bench sim sim-worth host-packages fmt clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Asked before anything is installed: under sudo neither PATH nor HOME lead to the user's own toolchain.
cargo:
	@$(CARGO) --version >/dev/null || { \
	    echo 'No cargo that works: install Rust for $(shell id -un) (https://rustup.rs). Under sudo, keep your own:' >&2; \
	    echo '  sudo env PATH="$$PATH" RUSTUP_HOME="$${RUSTUP_HOME:-$$HOME/.rustup}" make $(MAKECMDGOALS)' >&2; \
	    exit 1; }

build: ## build the daemons, musterctl and muster-cluster
	$(CARGO) build --release --locked --bins

demo: cargo host-packages build ## three machines, a web server, a machine that dies: shown and cleaned up
	@tests/cluster/demo

demo-vm: cargo host-packages vm-packages build ## the same on virtual machines (QEMU; half a minute to boot where emulated)
	@tests/cluster/demo --backend vm

demo-ha: cargo host-packages build ## three schedulers on etcd: the leader dies, the next one goes on
	@tests/cluster/demo-ha

cluster: cargo host-packages build ## three machines that stay up; says how to talk to them
	@$(CLUSTER) up --machines 3

test: cargo host-packages lint unit-tests simulation build cluster-tests fault-matrix ## all that CI runs

test-full: test vm-tests ## besides, all of the fault matrix (hours; goes on where it was interrupted)
	$(FAULTS) matrix --all $(if $(VM_HOST),,--backend nspawn)

lint: $(DENY) ## formatting, lints, licences, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(DENY) --workspace check bans licenses sources
	$(CARGO) check --locked --manifest-path tests/fuzz/Cargo.toml --no-default-features --target-dir target
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked --document-private-items

unit-tests: ## unit, property and snapshot tests
	$(CARGO) test --workspace --locked --exclude muster-cluster --exclude muster-bench

simulation: ## a few minutes of simulated clusters, the same ones each time
	$(MAKE) sim SEEDS=10000 FIRST=1

vm-tests: $(if $(VM_HOST),host-packages vm-packages build) ## tests on virtual machines (root, Debian on x86_64)
	$(if $(VM_HOST),,@echo 'No tests on virtual machines: they need Debian on x86_64.'; exit 0;) \
	$(CARGO) test --locked -p muster-cluster --test vm --test muster -- --ignored --test-threads=1

cluster-tests: host-packages previous-version build ## tests on machines with a real systemd (root)
	$(CARGO) test --locked -p muster-cluster -- --test-threads=1

previous-version: ## build the version before this one, for tests of upgrades: target/previous
	@CARGO='$(CARGO)' tests/cluster/build-previous

fault-matrix: host-packages $(if $(VM_HOST),vm-packages) build ## faults in the midst of things, on both kinds of machine (root): a part
	$(FAULTS) matrix $(if $(VM_HOST),,--backend nspawn)

chaos: cargo host-packages build ## random faults and clients: MINUTES, SEED, BACKEND=vm (root)
	$(FAULTS) chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(if $(BACKEND),--backend $(BACKEND))

failure-times: cargo host-packages build ## measure what docs/failure.md promises, and write it there (root): BACKEND=vm
	$(FAULTS) times $(if $(BACKEND),--backend $(BACKEND))

bench: cargo host-packages build ## measure; prints a table and writes target/bench.json (root)
	$(CARGO) run --release --locked -p muster-bench

sim: ## simulate: SEEDS=1000 FIRST=1, or one SEED=... with its history
	$(CARGO) run --profile sim --locked -p muster-sim -- \
	    $(if $(SEED),--seed $(SEED) $(if $(ONLY),--only $(ONLY)) $(if $(HEALS),--heals $(HEALS)),--seeds $(or $(SEEDS),1000) --first $(or $(FIRST),1))

sim-worth: ## does the simulation find the faults that are planted in the code? FAULT=... for one
	$(CARGO) run --profile sim --locked -p muster-sim --features planted-faults -- \
	    $(if $(SEED),--seed $(SEED),--worth --seeds $(or $(SEEDS),1000)) $(if $(FAULT),--planted $(FAULT))

host-packages: ## install what booting machines needs, with the host's package manager
	@tests/cluster/host-packages

vm-packages: ## install what virtual machines need: QEMU, and what makes their image
	@tests/cluster/host-packages --vm

vm-image: vm-packages ## make the image of virtual machines, unless it is there: target/vm/KEY
	@tests/cluster/vm/image target/vm

fmt: ## format the code
	$(CARGO) fmt --all

clean: ## remove all that was built, and the cluster
	-@test ! -x $(CLUSTER) || $(CLUSTER) down
	$(CARGO) clean

# Unoptimized: built in less than half the time, and still done in seconds. In PATH, or cargo advises to put it there.
$(DENY):
	PATH="$$PATH:$(TOOLS)/bin" $(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --debug --root $(TOOLS)
