# Everyday commands. They need Python 3.11 or newer (with venv), make and git, and set up everything else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-fast test-stores races coverage properties mutants check lint types imports docs recording site links dist test-dist supply-chain fuzz fuzz-short test-set-up ble-test interop keycloak-run docker-test chaos chaos-deployments soak bench debian lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/demo.done  ## a whole sign-in on this machine; DEMO=--help lists other stories
	@$(BIN)/python examples/demo.py $(DEMO)

# two for each core, since many tests wait for programs, and not more than eight; one that is idle takes over what others
# have still to do
WORKERS ?= $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))
# tests start some thousand programs: each would compile this project anew where the environment says that nothing is kept
export PYTHONDONTWRITEBYTECODE :=
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

test: $(VENV)/check.done system-packages  ## all tests, end to end included; PYTEST="-k tunnel" for some, WORKERS=0 in one process
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST)

SLOW := end_to_end rp/browser push/browser companion/browser site interop
test-fast: $(VENV)/check.done  ## the tests of the parts: no browser, no other libraries, no whole sign-in
	@scripts/install-test-packages bluetooth
	$(BIN)/python -m pytest $(PARALLEL) $(addprefix --ignore=tests/,$(SLOW)) $(PYTEST)

STORES := $(addprefix tests/relay/,test_postgres.py test_pipeline.py test_nodes.py test_store_contract.py test_app.py test_membership.py test_notifying.py \
	test_channels.py test_mutes.py test_killed_before_the_push.py) \
	$(addprefix tests/rp/,test_postgres.py test_store_contract.py test_store_copy.py test_store_migration.py test_proofs.py test_challenges.py \
	test_account.py test_removals.py test_registrations.py test_refresh.py test_sessions.py)
test-stores: $(VENV)/check.done  ## the tests of relay and relying party on PostgreSQL, Redis and Valkey, which are installed for it; STORES=tests/relay for all of them
	@scripts/install-test-packages postgresql
	@scripts/install-test-packages redis
	RELAY_TEST_STORE=postgresql $(BIN)/python -m pytest $(PARALLEL) -q $(STORES) $(STATES) $(PYTEST)
	$(if $(IN_CLUSTER),RELAY_TEST_STORE=postgresql RELAY_TEST_STATES=valkey-cluster $(BIN)/python -m pytest $(PARALLEL) -q $(IN_CLUSTER) $(PYTEST))

RACES ?= 100000
races: $(VENV)/check.done  ## 10^5 requests on every engine, two claims of each at a time: one stands; for the night; RECORD=--write
	@scripts/install-test-packages postgresql
	@scripts/install-test-packages redis
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/races.py --races $(RACES) $(RECORD) -- $(PARALLEL) $(PYTEST)

# each profile of hypothesis is in tests/conftest.py
CORE := tests/hybrid tests/trust
# account states beside the database
STATES := $(addprefix tests/relay/,test_two_stores.py test_redis.py test_redis_faults.py)
# the relay's tests once more, with all account states in a Cluster
IN_CLUSTER := $(addprefix tests/relay/,test_two_stores.py test_nodes.py test_app.py test_membership.py test_notifying.py test_channels.py \
	test_mutes.py test_killed_before_the_push.py)
coverage: $(VENV)/check.done  ## every branch of the protocol core is taken by its own tests
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=few -q \
		--cov=headless_passkey.hybrid --cov=headless_passkey.trust --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=100 $(CORE)

properties: $(VENV)/check.done  ## property tests with examples nobody has tried yet, many of them: for the night
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=new -m hypothesis --timeout 3600 $(PYTEST)

check: lint types imports test coverage  ## everything, but fuzzing and what is for the night

FUZZ_SECONDS ?= 60
MUTANTS ?= headless_passkey.trust.*
mutants: $(VENV)/mutants.done  ## changes to the core that its tests do not notice; MUTANTS="headless_passkey.hybrid.eid*" for some: for the night
	-$(BIN)/mutmut run "$(MUTANTS)"
	$(BIN)/mutmut results

fuzz: $(VENV)/check.done  ## every parser under the fuzzer, FUZZ_SECONDS each; FUZZ="cbor ring" for some of them
	@$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS) $(FUZZ)

fuzz-short: $(VENV)/check.done  ## the same in about a minute
	@$(BIN)/python -m tests.fuzz.run --total 30 --if-available

test-set-up:  ## the set-up of all of these, in a fresh environment, with the oldest pip that this Python came with
	@$(PYTHON) scripts/test-set-up

SUITE ?= sid
RUN ?= make test
debian:  ## all tests in another Debian, which is made for it, with its Python and servers; SUITE=trixie/arm64 RUN="make demo"
	@scripts/in-debian $(SUITE) $(RUN)

ble-test: $(VENV)/check.done  ## real BlueZ on emulated adapters in a throw-away guest; PYTEST="-m short" for some of it
	@scripts/ble-test $(PYTEST)

interop: $(VENV)/check.done  ## programs of others (Chromium, libwebauthn, pxp, kanidm's, snow) with ours, here and in the guest of ble-test; writes what worked into docs/interop.md
	@$(BIN)/python scripts/interop $(PYTEST)

keycloak-run: $(VENV)/check.done  ## founding and reset by sign-ins at a real Keycloak, by Maven; writes what worked into docs/how-to/openid-connect.md
	@PYTHONPATH=. $(BIN)/python scripts/keycloak-run

chaos: $(VENV)/check.done  ## hundreds of sign-ins while a conductor breaks what can break; CHAOS="--seed 7 --sign-ins 60", CHAOS=--short, CHAOS=--help
	@PYTHONPATH=examples:. $(BIN)/python -m tests.chaos.run $(CHAOS)

DEPLOYMENTS := file postgres redis valkey-cluster
NIGHT ?= --sign-ins 120 --seed $(shell date +%Y%m%d)
chaos-deployments: $(VENV)/check.done  ## the same with each deployment of the relay, which is installed for it, and with another seed each day: for the night; NIGHT=--short
	@scripts/install-test-packages postgresql
	@scripts/install-test-packages redis
	@status=0; for each in $(DEPLOYMENTS); do \
		PYTHONPATH=examples:. $(BIN)/python -m tests.chaos.run --deployment $$each $(NIGHT) || status=$$?; \
	done; exit $$status

soak: $(VENV)/check.done  ## sign-ins at a fixed rate for an hour, and the servers' memory and event loops meanwhile; SOAK="--minutes 5"
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/soak.py $(SOAK)

bench: $(VENV)/check.done system-packages  ## how fast and how large device, core, relying party, radio, relay and tunnel service are: prints benchmarks/RESULTS.md, writes and draws it
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/device.py --write
	@PYTHONPATH=examples $(BIN)/python benchmarks/core.py --write
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/rp.py --write
	@PYTHONPATH=examples $(BIN)/python benchmarks/radio.py --write
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/relay.py --write
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/log.py --write
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/nodes.py --write
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/tunnels.py --write
	@PYTHONPATH=examples:. $(BIN)/python benchmarks/linked.py --write
	@if command -v redis-server >/dev/null; then PYTHONPATH=examples:. $(BIN)/python benchmarks/redis_states.py --write; fi
	@$(BIN)/python benchmarks/plots.py

lint: $(VENV)/check.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/cli-docs --check
	$(BIN)/python scripts/api-docs --check
	$(BIN)/python scripts/completions --check
	$(BIN)/python scripts/graphql-schema --check
	$(BIN)/python scripts/relay-openapi --check
	$(BIN)/python benchmarks/plots.py --check

docs: $(VENV)/check.done system-packages  ## what is made from the code: docs/cli.md, docs/reference/, diagrams, scripts for completion, screenshots
	$(BIN)/python scripts/cli-docs
	$(BIN)/python scripts/api-docs
	$(BIN)/python scripts/completions
	$(BIN)/python scripts/graphql-schema
	$(BIN)/python scripts/relay-openapi
	$(BIN)/python scripts/diagrams
	$(BIN)/python -m tests.interop.differences
	PYTHONPATH=examples:. $(BIN)/python -m tests.rp.browser.screenshots
	PYTHONPATH=examples:. $(BIN)/python -m tests.companion.browser.screenshots

recording: $(VENV)/demo.done  ## docs/images/demo.svg, an animated picture of a terminal with `make demo`
	@$(MAKE) --silent $(RECORDING)/done || { echo "not run: asciinema and termtosvg cannot be installed"; exit 77; }
	@$(BIN)/python scripts/recording $(RECORDING)/bin

CONTAINERS := .venv-containers
SITE := .venv-site
RELEASE := .venv-release
RECORDING := .venv-recording
# not --quiet, which counts no warnings
site: $(SITE)/done  ## the documentation as a site in build/site, without warnings; to be read without a network or a server
	@NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --clean
	@echo "open build/site/index.html in a browser"

links:  ## asks each address of others that the documentation links to, and fails where one is gone
	@$(PYTHON) scripts/links

types: $(VENV)/check.done
	$(BIN)/mypy

imports: $(VENV)/check.done
	$(BIN)/lint-imports

.PHONY: system-packages
system-packages:
	@scripts/install-test-packages

# A stamp per set of packages; a changed lock file makes it stale.
$(VENV)/demo.done: requirements/demo.txt pyproject.toml
	@scripts/set-up $(PYTHON) $(VENV) requirements/demo.txt
	@touch $@

$(VENV)/check.done: requirements/check.txt pyproject.toml
	@scripts/set-up $(PYTHON) $(VENV) requirements/check.txt
	@touch $@ $(VENV)/demo.done

$(VENV)/mutants.done: requirements/mutants.txt $(VENV)/check.done
	@scripts/set-up $(PYTHON) $(VENV) requirements/mutants.txt
	@touch $@

$(RELEASE)/done: requirements/release.txt
	@scripts/set-up $(PYTHON) $(RELEASE) requirements/release.txt without-project
	@touch $@

$(RECORDING)/done: requirements/recording.txt
	@scripts/set-up $(PYTHON) $(RECORDING) requirements/recording.txt without-project
	@touch $@

$(SITE)/done: requirements/site.txt
	@scripts/set-up $(PYTHON) $(SITE) requirements/site.txt without-project
	@touch $@

$(CONTAINERS)/done: requirements/containers.txt
	@scripts/set-up $(PYTHON) $(CONTAINERS) requirements/containers.txt without-project
	@touch $@

dist: $(VENV)/check.done  ## source distribution and wheel, in dist/; built twice, and the same bytes each time
	@$(BIN)/python scripts/dist

docker-test:  ## images, compose files and sign-ins through them, by docker or podman; TEST=--short for one image in two minutes
	@$(PYTHON) docker/test $(TEST)

test-dist: dist  ## installs wheel and source distribution elsewhere on each Python that is here, with each extra, and signs in
	@$(BIN)/python scripts/test-dist $(BIN)/uv

supply-chain: dist $(RELEASE)/done  ## what comes with it: build/sbom.json, build/licences.md, and known vulnerabilities (77: not looked up)
	@$(RELEASE)/bin/python scripts/supply-chain $(BIN)/uv

lock: $(VENV)/check.done  ## pin the newest versions, with hashes and without any index address
	@scripts/lock $(BIN)/uv

clean:
	rm -rf $(VENV) $(SITE) $(RELEASE) $(CONTAINERS) $(RECORDING) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .fuzz .coverage mutants
