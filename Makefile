# The one entry point. Everything a target needs is installed by it; see deploy/install.sh.

PYTHON := .venv/bin/python

# Network namespaces need root. With the user's HOME, so that the kernel built once is found again.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=HOME,XDG_CACHE_HOME)

.PHONY: help dev uml check test demo bench fuzz soak proto format clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

dev: ## install what is missing: Debian packages and the virtual environment
	@bash deploy/install.sh

uml: dev ## build the User-Mode Linux kernel that stands in where the host has no ipip (once, then cached)
	@$(PYTHON) -m lab.uml build

check: dev ## format, lint, types, meta tests: the fast gate
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest -q tests/meta

test: dev uml ## the whole suite, on real kernels, routers and stores, in two processes (tests/shares.py)
	@$(AS_ROOT) $(PYTHON) -m pytest -q -n 2 --durations=10

demo: dev uml ## a two-rack cluster on real routers, checked step by step
	@$(AS_ROOT) $(PYTHON) -m lab.demo

bench: dev ## every benchmark, each beside its peer
	@$(AS_ROOT) $(PYTHON) -m bench --all

fuzz: dev ## the deep run of the property tests: compiled tables against the book, mutated BGP messages
	@MUSLIN_FUZZ=deep $(PYTHON) -m pytest -q --timeout=0 tests/policy/test_policy_properties.py tests/policy/test_policy_planes.py \
		tests/bgp/test_bgp_fuzz.py

soak: dev ## blocks that flap for ten minutes, a thousand pods while everything is killed, forty nodes that start at once
	@$(AS_ROOT) env MUSLIN_SOAK=long $(PYTHON) -m pytest -q -s --timeout=0 tests/bgp/test_bgp_soak.py tests/survive

proto: dev ## generate the wire code anew
	@$(PYTHON) -m grpc_tools.protoc -I . \
	  --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc \
	  --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. proto/v1/datastore.proto

format: dev ## make the code look as `check` wants it
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

clean: ## remove what the build made in this folder (the kernel cache stays)
	@rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
