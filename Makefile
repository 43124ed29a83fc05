# Two commands are enough: `make demo` and `make test`. Either one sets everything up the first time.
PY    ?= python3
TORCH ?= torch==2.13.0
V     := .venv
B     := $(V)/bin
RUN   ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
.PHONY: demo test check docs constraints clean

demo: $(V)/.ready
	$(B)/weightloom fewshot --run $(RUN)
	$(B)/weightloom export $(RUN) --task 0

test: $(V)/.ready
	$(B)/python -m pytest -n auto --maxprocesses 4

check: $(V)/.ready
	$(B)/ruff format --check .
	$(B)/ruff check .
	$(B)/mypy
	$(MAKE) --no-print-directory docs

docs: $(V)/.ready
	$(B)/sphinx-build -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

# uv and all else are held against the hashes in constraints.txt. Torch is not: pip finds a CPU build of it where the
# machine offers one, and the file of each build, and so its hash, is another.
$(V)/.ready: pyproject.toml constraints.txt
	$(PY) -m venv $(V)
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > $(V)/uv.txt
	$(B)/python -m pip install -q --disable-pip-version-check --no-compile --require-hashes -r $(V)/uv.txt
	$(B)/python -m pip install -q --disable-pip-version-check --no-compile --no-deps "$(TORCH)"
	$(B)/uv pip install -q --python $(B)/python -c constraints.txt -b constraints.txt -e ".[all]" --group dev
	@touch $@

# The lock: versions and hashes, used as constraints only. The hashes of torch are left out, as said above.
constraints:
	echo "$(TORCH)" > $(V)/torch-pin.txt
	env -u UV_FIND_LINKS $(B)/uv pip compile -q --universal --python-version 3.11 --all-extras --group dev pyproject.toml \
	  -c $(V)/torch-pin.txt --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o constraints.txt
	sed -i.before '/^torch==/,/[^\\]$$/{/--hash/d;s/ *\\$$//;}' constraints.txt && rm constraints.txt.before

clean: ; rm -rf $(V) docs/_build
