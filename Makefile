# The one door: whatever is not a target here is not a rule.
# Needs Python 3.11 or later with venv, Rust, and a C compiler for Rust's linker.

PYTHON ?= python3
# VIRTUAL_ENV is what maturin looks for; it refuses to choose when a conda environment is active as well.
unexport CONDA_PREFIX
export VIRTUAL_ENV := $(CURDIR)/.venv
BIN := .venv/bin

RUST := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml $(wildcard Cargo.lock rust-toolchain.toml)
LINTED := python tests benches examples docs/write_reference.py docs/write_pictures.py

.DEFAULT_GOAL := help
.PHONY: help demo test check build format-check lint types rust-test python-test sweep upstream docs bench gpu wheel sdist fmt clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: build ## plan a 70B Llama beside accelerate; run small ones over two virtual accelerators and the CPU, and from the disk
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/demo_dispatch.py
	$(BIN)/python examples/demo_load.py

test: rust-test python-test ## Rust and Python tests, without the long sweeps

# Tests measure: with -j they wait until nothing else runs.
ifneq (,$(filter check,$(MAKECMDGOALS)))
python-test: | format-check lint types
endif
ifneq (,$(filter check test,$(MAKECMDGOALS)))
python-test: | rust-test
endif

check: format-check lint types test ## everything that must be green: format, lint, types, tests

build: .venv/.built ## set up .venv and compile the extension in release mode

# Dependencies: read from pyproject.toml, installed again only when it has changed.
.venv/.dependencies: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("planner needs Python 3.11 or later: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > .venv/requirements.txt
	@echo "installing what development needs; torch is large"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
	@touch $@

# The extension: compiled again only when a Rust source or a manifest has changed.
.venv/.built: .venv/.dependencies $(RUST)
	@command -v cargo > /dev/null || { echo "planner needs Rust: see https://rustup.rs" >&2; exit 1; }
	@echo "compiling the extension"
	@$(BIN)/maturin develop --release > .venv/build.log 2>&1 || { cat .venv/build.log; exit 1; }
	@touch $@

format-check: .venv/.dependencies
	cargo fmt --all --check
	$(BIN)/ruff format --check --quiet $(LINTED)

# import-linter looks the package up, so it has to be installed.
lint: build
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	$(BIN)/ruff check --quiet $(LINTED)
	$(BIN)/lint-imports --no-cache

types: .venv/.dependencies
	$(BIN)/mypy

rust-test:
	cargo test --quiet --workspace

# The layer test, the stub test and the documentation's examples are tests like any other.
python-test: build
	$(BIN)/python -m pytest -n auto --dist worksteal

sweep: build ## the long differential sweeps over every model class
	$(BIN)/python -m pytest -m sweep

upstream: build ## accelerate's and transformers' own tests with our functions in place of theirs (downloads them once)
	PYTHONPATH=tests $(BIN)/python -m upstream
	PYTHONPATH=tests $(BIN)/python -m upstream.from_pretrained

docs: build ## write docs/reference from the docstrings, and the README's picture
	$(BIN)/python docs/write_reference.py
	$(BIN)/python docs/write_pictures.py

bench: build ## the benchmark table (about fifteen minutes)
	$(BIN)/python benches/bench_plan.py
	$(BIN)/python benches/bench_auto.py
	$(BIN)/python benches/bench_timed.py
	$(BIN)/python benches/bench_largest.py
	$(BIN)/python benches/bench_config.py
	$(BIN)/python benches/bench_dispatch.py
	$(BIN)/python benches/bench_cli.py
	$(BIN)/python benches/bench_model.py
	$(BIN)/python benches/bench_huggingface.py

gpu: build ## on a machine with a GPU: its tests, and loading, streaming and borders beside others (at most 8 minutes)
	$(BIN)/python benches/gpu.py

wheel: .venv/.dependencies ## an abi3 wheel in dist/
	$(BIN)/maturin build --release --out dist

sdist: .venv/.dependencies ## a source distribution in dist/
	$(BIN)/maturin sdist --out dist

fmt: .venv/.dependencies ## format everything
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet $(LINTED)
	$(BIN)/ruff format $(LINTED)

clean: ## remove what was built, .venv included
	rm -rf .venv target dist python/planner/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
