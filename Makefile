# `make demo` and `make test` set everything up in .venv and run; the other targets use the same .venv.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
RESULTS := benchmarks/results
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow test-browser check format bench gpu clean

demo: $(READY)
	-@$(BIN)/fye models get face-landmarker --quiet
	@mkdir -p out
	$(BIN)/fye animate --output out/demo.mp4 --compare --overwrite

test: $(READY)
	-@$(BIN)/fye models get face-landmarker --quiet
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What `make test` leaves out: walks over everything, such as every pipeline of diffusers, and the page in a browser.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder
	$(MAKE) test-browser

# The page in a real browser: what a person does on it. Skips with the reason where Gradio or Chromium is absent.
test-browser: $(READY)
	-@$(BIN)/python -c "import gradio, playwright" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet -c constraints-app.txt -e ".[app,browser]"
	-@$(BIN)/fye models get face-landmarker --quiet
	$(BIN)/python -m pytest tests/test_app_browser.py -m browser -rs

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every benchmark in its quick form, its results in RESULTS, and the documents made from them.
bench: $(READY)
	-@$(BIN)/fye models get face-landmarker --quiet
	$(BIN)/python -m benchmarks.kernels --quick --json $(RESULTS)/kernels.json
	-$(BIN)/python -m benchmarks.compiled_kernels --json $(RESULTS)/compiled_kernels.json
	$(BIN)/python -m benchmarks.latency --quick --json $(RESULTS)/latency.json
	$(BIN)/python -m benchmarks.acceleration --quick --json $(RESULTS)/acceleration.json
	$(BIN)/python -m benchmarks.ablation --quick --json $(RESULTS)/ablation.json
	$(BIN)/fye evaluate rendered --clips 4 --no-cross --N 3 --json $(RESULTS)/evaluation.json --overwrite
	$(BIN)/python -m benchmarks.tables --results $(RESULTS)

gpu: $(READY)
	$(BIN)/python -m pytest tests/test_ops.py tests/test_step_path.py tests/test_kernels_*.py
	$(BIN)/python -m benchmarks.kernels --json benchmarks/results/kernels.json
	$(BIN)/python -m benchmarks.latency --json benchmarks/results/latency.json
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[portrait,dev]"
	@touch $(READY)
