# study: run every notebook · test: run every test · lock: renew requirements.lock · strip: empty the source notebooks
# clean: remove what set-up and caches left. Results are never removed.
# Variables: PYTHON, the interpreter that makes .venv; ARGS, more arguments for `lmclip study` or pytest; JOBS for pytest.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
# Every path is relative to this folder, so that the folder may have any name.
ENV := .venv
RUN := $(ENV)/bin/python
READY := $(ENV)/ready

.PHONY: study test lock strip clean

study: $(READY)
	@$(RUN) -m lmclip study --profile glyph $(ARGS)

test: $(READY)
	@echo "Testing with $(JOBS) processes; about 5 minutes on two cores."
	@began=$$(date +%s); \
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(JOBS) $(ARGS) || exit $$?; \
	echo "Tests took $$(( $$(date +%s) - began )) s."

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	echo "$(PYTHON) is missing or is not Python 3.11 to 3.13; name one that is, as in: make study PYTHON=python3.12" >&2; \
	exit 2; }
	@echo "Setting up $(ENV) from requirements.lock: about 5 GB of disk on Linux, 2 to 10 minutes by the connection; once only."
	@began=$$(date +%s); \
	$(PYTHON) -m venv --clear $(ENV) \
	&& $(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock \
	&& $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . \
	|| { echo "Set-up failed: see the lines above; the same command starts it afresh." >&2; exit 1; }; \
	echo "Set-up took $$(( $$(date +%s) - began )) s."
	@touch $@

lock:
	@command -v uv >/dev/null || { echo "uv is needed to renew the lock: pip install uv" >&2; exit 2; }
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-annotate --quiet --output-file requirements.lock

strip: $(READY)
	$(ENV)/bin/nbstripout --extra-keys metadata.language_info notebooks/*.ipynb

clean:
	rm -rf $(ENV) .pytest_cache .ruff_cache .hypothesis build dist
	find lmclip tests -name __pycache__ -type d -prune -exec rm -rf {} +
