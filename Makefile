# Everything a developer does, by one word each. Needs python3 (3.11 or later) with pip, make and git.
# The environment in .venv is made and brought up to date by itself.

PYTHON ?= python3
BIN := .venv/bin
PROTO_BIN := .venv-proto/bin
PIP := -m pip -qq --disable-pip-version-check --no-input
COMPILE := $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host --no-emit-options
GENERATED := client/syncline/v1
# Python that is linted and formatted; generated code is excluded in pyproject.toml.
PY_DIRS := $(wildcard client server tests bench examples docs)
# Workers of the test run. Each starts servers of its own; more than cores only adds waiting.
TEST_WORKERS ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
.PHONY: help setup lock proto proto-check proto-lint fmt lint check test test-all bench demo serve docs docs-check clean ci

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.stamp ## Make or update the environment in .venv

.venv/.stamp: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Syncline needs Python 3.11 or later; say which: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "setting up .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP) install --requirement requirements/dev.txt
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv-proto/.stamp: requirements/proto.txt
	@echo "setting up .venv-proto"
	@test -x $(PROTO_BIN)/python || $(PYTHON) -m venv .venv-proto
	@$(PROTO_BIN)/python $(PIP) install --requirement requirements/proto.txt
	@touch $@

lock: setup ## Compile requirements/*.txt anew from pyproject.toml and requirements/*.in
	@$(COMPILE) --extra cli --extra server --extra postgres --extra uvloop --output-file requirements/dev.txt \
		pyproject.toml requirements/dev.in
	@$(COMPILE) --output-file requirements/proto.txt requirements/proto.in

# $(call generate,DIRECTORY): the grpc plugins get only the files with services, else they write empty modules.
define generate
	@cd proto && PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" python -m grpc_tools.protoc -I. \
		--python_out="$(1)" --mypy_out=quiet:"$(1)" syncline/v1/*.proto
	@cd proto && PATH="$(CURDIR)/$(PROTO_BIN):$$PATH" python -m grpc_tools.protoc -I. \
		--grpc_python_out="$(1)" --mypy_grpc_out=only_async,quiet:"$(1)" syncline/v1/*_service.proto
	@echo '"""Generated from proto/syncline/v1: see `make proto`. Not part of the public API."""' \
		> "$(1)/syncline/v1/__init__.py"
endef

proto: .venv-proto/.stamp ## Generate client/syncline/v1 from proto/
	@rm -rf $(GENERATED) && mkdir -p $(GENERATED)
	$(call generate,$(CURDIR)/client)

proto-check: .venv-proto/.stamp ## Fail when the generated code is not what proto/ says
	@rm -rf .venv-proto/check && mkdir -p .venv-proto/check
	$(call generate,$(CURDIR)/.venv-proto/check)
	@diff --recursive --unified --exclude=__pycache__ $(GENERATED) .venv-proto/check/syncline/v1 \
		|| { echo "$(GENERATED) is out of date: run 'make proto'" >&2; exit 1; }

proto-lint: .venv/.stamp
	@$(BIN)/buf lint proto
	@$(BIN)/buf format --diff --exit-code proto
	@if git rev-parse --quiet --verify refs/heads/main >/dev/null; then \
		against='.git#branch=main,subdir=proto'; \
	else \
		echo "no branch main in this clone: looking for breaking changes against HEAD"; \
		against=".git#ref=$$(git rev-parse HEAD),subdir=proto"; \
	fi; \
	$(BIN)/buf breaking proto --against "$$against"

fmt: .venv/.stamp ## Format Python and protobuf, and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only $(PY_DIRS)
	@$(BIN)/ruff format --quiet $(PY_DIRS)
	@$(BIN)/buf format --write proto

lint: .venv/.stamp
	@$(BIN)/ruff check $(PY_DIRS)
	@$(BIN)/ruff format --check $(PY_DIRS)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint proto-lint proto-check docs-check ## Lint, types, directions of imports, protobuf, generated files and docs

test: .venv/.stamp ## Run the tests of every commit (a few minutes)
	@$(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadgroup -m "not slow" $(PYTEST_ARGS)

test-all: .venv/.stamp ## Run every test, the long ones too
	@$(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

bench: .venv/.stamp ## Measure beside etcd, NATS and SQLite; writes bench/results.json (BENCH_ARGS=--quick)
	@$(BIN)/python -m bench $(BENCH_ARGS)

demo: .venv/.stamp ## See it work: real records, a follower, kill -9, exact copies (STORE=postgres: two nodes)
	@$(BIN)/python -m examples.demo $(STORE)

serve: .venv/.stamp ## Run a server on 127.0.0.1:7420 with its data in ./syncline-data
	@$(BIN)/syncline-server serve

docs: .venv/.stamp ## Bring the generated blocks of the docs up to date with the code
	@$(BIN)/python docs/generate.py

docs-check: .venv/.stamp
	@$(BIN)/python docs/generate.py --check

clean: ## Remove environments, caches and what runs left behind
	rm -rf .venv .venv-proto build dist .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ci: ## What continuous integration runs
	@.ci/run
