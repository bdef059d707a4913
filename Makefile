# Lists its targets: make help
.DEFAULT_GOAL := help

# The race detector needs a C compiler.
RACE := $(shell command -v gcc >/dev/null && echo -race)
# A regular expression for the names of the end-to-end tests to run.
T ?= .
FUZZTIME ?= 10s

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

.PHONY: deps
deps: ## install the Debian packages that the demo and the tests need (root)
	@script/deps

.PHONY: build
build: ## build bin/netdriver, one static program; its version comes from git
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -ldflags '-s -w' -o bin/netdriver ./cmd/netdriver

.PHONY: demo
demo: ## two Docker hosts on this machine, one network over both (root)
	@script/deps demo
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 go build -trimpath -o bin/demo ./test/demo
	@bin/demo --binary bin/netdriver

.PHONY: demo-swarm
demo-swarm: ## a swarm of three hosts on this machine, a service called by its name (root)
	@script/deps demo
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 go build -trimpath -o bin/demo ./test/demo
	@bin/demo --binary bin/netdriver --swarm

.PHONY: test
test: deps ## everything that CI runs: lint, unit, moby, page, e2e (root)
	@script/test lint unit moby page e2e

.PHONY: unit
unit: ## unit, golden, property and kernel tests, with the race detector (root)
	go test $(RACE) -timeout 10m ./...

.PHONY: moby
moby: build ## Docker's own libnetwork drives the plugin (root)
	cd test/moby && go test -count=1 -timeout 5m ./...

.PHONY: e2e
e2e: build ## end-to-end tests on real Docker hosts; T=REGEXP chooses some (root)
	go test -tags e2e -count=1 -v -timeout 75m -run '$(T)' $$(go list -tags e2e ./test/e2e/... | grep -v '/page$$')

.PHONY: page
page: ## the page about the cluster in a real browser; pictures in out/page (root)
	go test -tags e2e -count=1 -v -timeout 10m ./test/e2e/page

.PHONY: virtual
virtual: build ## end-to-end tests on hosts with kernels of their own; slow (root)
	go test -tags e2e,virtual -count=1 -v -timeout 120m -run 'Virtual' ./test/e2e

.PHONY: healthy
healthy: build ## ask a hundred times whether healthy networks are well, under load, restarts and updates (root)
	HEALTHY_RUNS=100 go test -tags e2e -count=1 -v -timeout 30m -run 'TestHealthyNetworksRaiseNoAlarm' ./test/e2e/faults

.PHONY: bench
bench: build ## side by side with the layout of Docker's overlay (root)
	go run ./test/bench

.PHONY: bench-encryption
bench-encryption: build ## side by side with the layout of Docker's encrypted overlay, on virtual nodes (root)
	go run ./test/bench -table encryption

.PHONY: bench-volumes
bench-volumes: build ## backups against tar, zstd and restic; NFS through a volume against a plain mount (root)
	go run ./test/bench -table volumes

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (10s)
	@script/fuzz $(FUZZTIME)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, shellcheck
	@script/lint

.PHONY: generate
generate: ## compile the eBPF program that balances services (clang 14.0.6, as of Debian 12)
	@script/generate

.PHONY: clean
clean: ## remove what was built
	rm -rf bin out
