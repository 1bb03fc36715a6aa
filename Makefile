# batchmill. `make` alone lists the targets. Each makes its own virtual environment in .venv when there is none, and
# brings it up to date when pyproject.toml or constraints.txt has changed.

SAMPLE := sample_data/questions.parquet
BIN := .venv/bin
STAMP := .venv/.batchmill-installed

# Taken as they were typed (no expansion by make) and handed to the shell through the environment, so that spaces, quotes
# and dollar signs in a path are safe. ARGS alone is pasted into the command line: it may hold several words.
override DATA := $(value DATA)
override PROMPT := $(value PROMPT)
override OUT := $(value OUT)
export DATA PROMPT OUT SAMPLE

.DEFAULT_GOAL := help
.PHONY: help run test test-all check bench bench-large bench-peers clean

help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make run DATA=input.parquet [PROMPT=prompt.yaml] [OUT=answers.parquet] [ARGS=\"--limit 100 --yes\"]"
	@echo "  goes to Azure when AZURE_OPENAI_ENDPOINT is set, else to the built-in emulator, whose answers are invented."

run: $(STAMP) ## run the sample, or DATA=… [PROMPT=… OUT=… ARGS="…"]
	@set -- "$${DATA:-$$SAMPLE}"; \
	if [ -z "$$PROMPT" ] && [ "$$1" = "$$SAMPLE" ]; then PROMPT=sample_data/answer.yaml; fi; \
	if [ -n "$$PROMPT" ]; then set -- "$$@" --prompt "$$PROMPT"; fi; \
	if [ -n "$$OUT" ]; then set -- "$$@" --out "$$OUT"; fi; \
	if [ -n "$$AZURE_OPENAI_ENDPOINT" ]; then set -- "$$@" --service azure; else set -- "$$@" --service emulator; fi; \
	unset DATA PROMPT OUT SAMPLE; \
	exec $(BIN)/batchmill run "$$@" $(ARGS)

test: $(STAMP) ## the tests, without the slow ones (under five minutes)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal --hypothesis-profile=steady -m "not slow and not live"

test-all: $(STAMP) ## every test that costs no money
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not live"

check: $(STAMP) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(STAMP) ## the benchmarks (about five minutes); ARGS=--write keeps the figures
	@exec $(BIN)/python -m benchmarks $(ARGS)

bench-large: $(STAMP) ## 10,000,000 rows: is memory flat?
	@exec $(BIN)/python -m benchmarks --large $(ARGS)

bench-peers: $(STAMP) ## beside other tools, installed in environments of their own
	@exec $(BIN)/python -m benchmarks --peers $(ARGS)

clean: ## remove the environment, caches and builds; keeps runs/
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A name on the PATH proves nothing (version managers put stand-ins there): each candidate is run before it is taken.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in python3.11 python3.12 python3.13 python3; do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      found=$$candidate; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python 3.11 or newer with venv was found on the PATH: install one and run make again." >&2; exit 1; \
	  fi; \
	  echo "making .venv with $$($$found --version)"; \
	  "$$found" -m venv --clear .venv || exit 1; \
	fi
	@echo "installing batchmill into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[emulator,dev]' -c constraints.txt
	@touch $@
