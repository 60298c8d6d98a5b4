# Every target sets itself up: on a fresh clone any of them may be the first command.
.PHONY: overfit test test-plain test-shapes lint fix slow bench weights clean

python ?= python3
bin := .venv/bin
ready := .venv/.ready

# The pins keep torch at a release whose CPU build may be offered locally (PIP_FIND_LINKS);
# without one, the same line installs the default build.
$(ready): pyproject.toml constraints.txt
	$(python) -m venv .venv
	$(bin)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

overfit: $(ready)  ## memorise 200 scenes; a verdict in under a minute
	$(bin)/python train.py experiment=overfit

# Two passes beside each other, a core each: more threads would only wait for one another.
test: $(ready)  ## the whole suite: plain, and with shapes checked at every call
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 test-plain test-shapes

test-plain: $(ready)
	$(bin)/python -m pytest

# Lightning writes one of its own types in a way that the shape checker frowns upon.
test-shapes: $(ready)
	$(bin)/python -m pytest -q --jaxtyping-packages=musicnet,callbacks,beartype.beartype \
	  -W "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning" \
	  -m "not bad_shape and not integration and not slow and not gpu"

lint: $(ready)  ## format, style, types, imports
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

fix: $(ready)  ## what ruff can mend by itself
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

# pytest ends with 5 where it finds no test: no failure, while no test is that long.
slow: $(ready)  ## tests longer than a minute
	$(bin)/python -m pytest -m "slow and not gpu" || [ $$? -eq 5 ]

bench: $(ready)  ## the tables of benchmarks/, as JSON beside the scripts' output
	mkdir -p runs/benchmarks
	$(bin)/python benchmarks/gate.py --json runs/benchmarks/gate.json
	$(bin)/python benchmarks/scenes.py --json runs/benchmarks/scenes.json

# What lies in musicnet/weights is what `auto` picks from.
names ?= ris ris_data_symbols ula ula_many near_ula
weights: $(ready)  ## train again what ships in musicnet/weights
	for name in $(names); do $(bin)/python benchmarks/train_weights.py $$name || exit 1; done

clean:  ## the environment and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
