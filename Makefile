# The words people type. `make` alone lists them.
# Everything runs on loopback; nothing here needs root except `make containers`,
# which needs a Docker engine that the caller may use.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
ARGS    ?=

# Same commit, same bytes: no paths, no VCS stamp of the checkout, no cgo.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

FUZZTIME           ?= 30s
TEST_TIMEOUT       ?= 15m
CONTAINERS_TIMEOUT ?= 15m
FAULTS_TIMEOUT     ?= 90m
GOLANGCI_LINT      ?= github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.DEFAULT_GOAL := help
.PHONY: help build cross test race e2e containers images bench fuzz lint fmt demo regions faults clean helm packages

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/edge and bin/wormhole, static and reproducible
	$(BUILD) -o bin/ ./edge ./wormhole

cross: ## the agent for every system it supports, into dist/
	@for os in linux darwin windows; do for arch in amd64 arm64; do \
		out=dist/wormhole-$$os-$$arch; [ $$os = windows ] && out=$$out.exe; \
		echo "$$out"; GOOS=$$os GOARCH=$$arch $(BUILD) -o $$out ./wormhole || exit 1; \
	done; done

# Tests that judge the times of several edges, with nothing beside them: there they
# would judge the machine.
ALONE = ./edge/e2e/regions/...

test: ## every test, with the race detector, in random order
	$(GO) build -race ./...
	failed=0; \
	$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) $$($(GO) list ./... | grep -vxF "$$($(GO) list $(ALONE))") || failed=1; \
	$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) $(ALONE) || failed=1; \
	exit $$failed

race: test ## the same: tests never run without the race detector

e2e: ## whole networks and real binaries on loopback only
	$(GO) test -race -shuffle=on -count=1 -timeout $(TEST_TIMEOUT) ./edge/e2e/... ./edge/edgetest/...

containers: ## the Dockerfiles and compose files, really run (needs a Docker engine)
	$(GO) test -tags containers -count=1 -timeout $(CONTAINERS_TIMEOUT) -v ./deploy/containers/...
	$(GO) test -tags containers -count=1 -timeout $(CONTAINERS_TIMEOUT) -run 'Dockerfiles|Units|Compose' -v ./deploy/printed

images: ## the images of edge and agent, tagged wormhole/edge and wormhole/agent
	docker build -f Dockerfile.edge  --build-arg VERSION=$(VERSION) -t wormhole/edge:latest  .
	docker build -f Dockerfile.agent --build-arg VERSION=$(VERSION) -t wormhole/agent:latest .

bench: build ## this project beside nginx and HAProxy; ARGS=--quick for a short one
	$(GO) run ./deploy/bench $(ARGS)

fuzz: ## every fuzz target for FUZZTIME each
	@$(GO) list ./... | while read -r pkg; do \
		$(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' | while read -r target; do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$pkg" || exit 1; \
		done || exit 1; \
	done

lint: ## gofmt, go vet and golangci-lint
	@files=$$(git ls-files -z '*.go' | xargs -0 gofmt -l); \
	if [ -n "$$files" ]; then echo "gofmt would change:"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags containers ./deploy/...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else $(GO) run $(GOLANGCI_LINT) run; fi

fmt: ## format what git knows
	git ls-files -z '*.go' | xargs -0 gofmt -w

demo: build ## two copies of an app behind one edge, one stopped under load; ARGS=--stay to look around
	@$(GO) run ./deploy/demo $(ARGS)

regions: build ## three edges in three regions as one network, one killed under load
	@$(GO) run ./deploy/regions

FAULTS_RUN ?= ^Test[A-H][0-9]

faults: ## the long forms of the fault catalogue; one table in dist/faults.md
	$(GO) run ./edge/edgetest/oracle/faults -run '$(FAULTS_RUN)' -timeout $(FAULTS_TIMEOUT)

clean: ## remove what the targets above made
	rm -rf bin dist

# Tests of what is deployed but not Go, a module of their own: Helm and Prometheus
# come through the Go proxy and are no dependencies of the product.
helm: ## Helm chart, Kubernetes examples, alerts and dashboard, checked against schemas and live metrics
	cd deploy/lint && $(GO) vet ./... && $(GO) test -count=1 -timeout 10m ./...

packages: ## all that a release hands out, into dist/: binaries, deb, rpm, bills of materials, SHA256SUMS
	deploy/packages/build.sh $(VERSION) dist
