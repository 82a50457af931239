.DEFAULT_GOAL := help
PYTHON_IN_VENV := .venv/bin/python

# Most of a test's time is waiting. Each of these processes has a RabbitMQ of its own.
TEST_PROCESSES := 4

.PHONY: help
help: ## Show these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Make .venv with the pinned packages, and install RabbitMQ when it is missing.
	@scripts/setup

.PHONY: demo
demo: setup ## Watch tasks travel through RabbitMQ, and one worker be killed: the main job, in a minute.
	@$(PYTHON_IN_VENV) examples/demo.py

.PHONY: test
test: ## Run all tests, against a private RabbitMQ on free ports.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) -m pytest --numprocesses=$(TEST_PROCESSES)

.PHONY: test-trixie
test-trixie: setup ## Run all tests on a bare Debian 13 in a folder, whose RabbitMQ is 4 (for root on Debian).
	@scripts/on-debian trixie make test

.PHONY: check
check: setup ## Lint, check imports and types, and run all tests.
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/mypy
	@$(MAKE) --no-print-directory test

.PHONY: up
up: setup ## Run broker (if none answers), worker and Flower until Ctrl-C.
	@$(PYTHON_IN_VENV) scripts/up || test $$? -eq 130  # Ctrl-C is how it ends

.PHONY: env
env: ## Write .env with fresh passwords, for docker compose.
	@test ! -e .env || { echo "Error: .env is there already; move it away for a new one" >&2; exit 2; }
	@umask 077 && awk '/=$$/ { cmd = "openssl rand -hex 24"; cmd | getline password; close(cmd); $$0 = $$0 password } 1' \
		.env.example > .env && echo "wrote .env" >&2

.PHONY: bench
bench: setup ## Measure what starting costs, and how soon the task of a killed worker starts again.
	@$(PYTHON_IN_VENV) benchmarks/startup.py
	@$(PYTHON_IN_VENV) benchmarks/takeover.py

.PHONY: help-text
help-text: setup ## Write anew what `proj --help` prints.
	@$(PYTHON_IN_VENV) -m proj -h > proj/cli/help.txt

.PHONY: definitions
definitions: setup ## Write deploy/rabbitmq/definitions.json anew, from proj/queues.py.
	@$(PYTHON_IN_VENV) scripts/definitions

.PHONY: screenshot
screenshot: ## Take the documentation's pictures of the demo and of Flower again.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) examples/demo.py --deadline=300 --picture=docs/demo.svg
	@$(PYTHON_IN_VENV) -m pytest -q tests/browser/test_pages.py --screenshots=docs

.PHONY: pin
pin: ## Write requirements.txt anew (needs uv).
	@scripts/pin
