# Short names. Everything here is one command that can be typed without make, too.
.PHONY: run test lint format types contracts check ci lock openapi vendor migrations help

BIN := $(or $(RUN_VENV),.venv)/bin

help:        ## show this
	@sed -n 's/^\([a-z]*\): *.*## /\1\t/p' $(MAKEFILE_LIST)
run:         ## start everything
	python3 run.py
test:        ## all tests
	python3 run.py test
lint:        ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
format:      ## put the code into the one format
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
types:       ## mypy
	$(BIN)/mypy
contracts:   ## who may import whom
	$(BIN)/lint-imports
check: lint types contracts migrations   ## what pre-commit checks, on all files
migrations:  ## fail if a model has changed without a migration
	$(BIN)/python manage.py makemigrations --check --dry-run
ci:          ## what must pass before a change lands
	bash .ci/run
openapi:     ## write the API's schema anew after a change of the API
	$(BIN)/python manage.py spectacular --validate --fail-on-warn --file tradingsite/openapi.yaml
vendor:      ## fetch the browser libraries anew
	python3 scripts/fetch_vendor.py --fetch
lock:        ## pin the newest allowed versions of all libraries (needs uv)
	for name in requirements requirements-scale requirements-dask requirements-tuning requirements-dev; do \
	    uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	        --no-header $$name.in --output-file $$name.txt || exit 1; \
	done
