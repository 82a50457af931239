.DEFAULT_GOAL := help
PYTHON_IN_VENV := .venv/bin/python

# Tests mostly wait. A process begins with neighbouring tests, so that few processes make what the tests of a module
# share; idle ones take over tests at the end.
TEST_PROCESSES := 8

# What `make test` runs.
TESTS := tests

# Those that depend on the release of RabbitMQ or Python. The producers need Node.js and Go.
RELEASE_TESTS := tests/unit tests/enqueue tests/worker tests/dead_letters tests/rabbitmq tests/depths tests/doctor \
	tests/private_node tests/beat tests/application/test_definitions.py tests/application/test_security.py \
	tests/flower/test_metrics.py tests/flower/test_prometheus.py tests/flower/test_ends.py tests/celery_docs \
	tests/results/test_ageing.py $(filter-out tests/ingest/test_producers.py,$(wildcard tests/ingest/*.py))

# If it is set, each process compiles all tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Create .venv with the pinned packages, and install RabbitMQ if it is missing.
	@scripts/setup

.PHONY: demo
demo: setup ## Run the demo, one minute: tasks go through RabbitMQ, a worker is killed, nothing is lost.
	@$(PYTHON_IN_VENV) examples/demo.py

.PHONY: test
test: ## Run all tests, against a private RabbitMQ on free ports.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) -m pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal $(TESTS)

.PHONY: fuzz
fuzz: ## Send a worker 1,000 messages that are wrong in some places; `make test` sends 100.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) -m pytest tests/worker/test_fuzz.py --fuzz-messages=1000

.PHONY: test-trixie
test-trixie: setup ## Run the tests that depend on RabbitMQ or Python in a chroot with Debian 13 (needs root on Debian).
	@scripts/on-debian trixie make test TESTS="$(RELEASE_TESTS)"

.PHONY: check
check: ## Lint, check imports and types, and run all tests.
	@scripts/setup tests
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/mypy
	@$(MAKE) --no-print-directory test

.PHONY: up
up: setup ## Run a broker (unless one is running), a worker, ingest, beat and Flower until Ctrl-C.
	@trap : INT; $(PYTHON_IN_VENV) scripts/up || test $$? -eq 130  # Ctrl-C is the normal end

.PHONY: photos
photos: ## Run the example examples/photos until Ctrl-C: a broker (unless one is running), a worker and the page.
	@scripts/setup photos
	@trap : INT; $(PYTHON_IN_VENV) scripts/up examples/photos || test $$? -eq 130  # Ctrl-C is the normal end

.PHONY: env
env: ## Write .env with new passwords, for docker compose.
	@test ! -e .env || { echo "Error: .env exists already; move it away first" >&2; exit 2; }
	@umask 077 && awk '/=$$/ { cmd = "openssl rand -hex 24"; cmd | getline password; close(cmd); $$0 = $$0 password } 1' \
		.env.example > .env && echo "wrote .env" >&2

.PHONY: bench
bench: setup ## Measure the project beside its peers (half an hour), and write docs/speed.md.
	@scripts/peers
	@$(PYTHON_IN_VENV) -m benchmarks --write

.PHONY: bench-short
bench-short: setup ## Run each benchmark once, briefly, to see that it works.
	@scripts/peers
	@$(PYTHON_IN_VENV) -m benchmarks --short

.PHONY: chaos
chaos: ## Inject faults under load, count what is lost (half an hour), and write docs/evidence.md.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) -m tests.chaos --write

.PHONY: chaos-short
chaos-short: ## Inject a few faults, one of them into a cluster, and see that a control loses.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) -m tests.chaos --short

.PHONY: soak
soak: ## Inject faults at random for an hour, and write docs/evidence.md: MINUTES=60 SEED=1.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) -m tests.chaos.soak --write $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

.PHONY: definitions
definitions: setup ## Generate deploy/rabbitmq/definitions.json from proj/queues.py.
	@$(PYTHON_IN_VENV) scripts/definitions

.PHONY: upstream
upstream: setup ## Update docs/upstream.md, the uses of other projects' private parts.
	@$(PYTHON_IN_VENV) scripts/upstream

.PHONY: screenshot
screenshot: ## Update the documentation's pictures of the demo, of Flower and of the photos.
	@scripts/setup tests
	@$(PYTHON_IN_VENV) examples/demo.py --deadline=300 --picture=docs/demo.svg
	@$(PYTHON_IN_VENV) -m pytest -q tests/flower/test_pages.py tests/photos/test_page.py --screenshots=docs

.PHONY: pin
pin: ## Update requirements.txt (needs uv).
	@scripts/pin
