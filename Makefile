# dpo_min: `make train` and `make test` start from a bare machine with Python 3.11 or newer.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DATA := runs/demo-data
RUN := runs/demo
PAIRS ?= 10000
SFT_STEPS ?= 300
STEPS ?= 250
FRESH ?= 3000
LINKED := derivation losses questions symptoms
PAGES := $(shell grep -ls "from tests.browser import" tests/*/test_*.py)

.PHONY: help setup train evaluate learn test test-browser hunt proof figures symptoms explainer walkthrough frontier rounds mutants torture golden real bench bench-gpu links lint format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/installed ## Make .venv and install the tested version of every package

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DATA)/prefs.jsonl: experiments/demo.py | $(VENV)/installed
	$(PY) -m experiments.demo --pairs $(PAIRS) --seed 0 --out $@ --tokenizer $(DATA)/tokenizer

$(DATA)/reviews.jsonl: experiments/demo.py | $(VENV)/installed
	$(PY) -m experiments.demo --pairs $(PAIRS) --seed 1 --out $@ --unlabelled

# An interrupted run goes on where it stopped.
$(RUN)/model/config.json: $(DATA)/prefs.jsonl $(DATA)/reviews.jsonl
	$(PY) train.py --data $(DATA)/prefs.jsonl --sft-data $(DATA)/reviews.jsonl --tokenizer $(DATA)/tokenizer \
		--out $(RUN) --max-length 96 --micro-batch-size 32 --sft-steps $(SFT_STEPS) --max-steps $(STEPS) \
		--beta 0.4 --learning-rate 3e-4 --warmup-steps 25 --lr-schedule linear --eval-every 50 $(if $(wildcard $(RUN)/config.json),--resume)

$(RUN)/report.md: $(RUN)/model/config.json
	$(PY) -m experiments.report $(RUN) $(REPORT)

train: $(RUN)/report.md ## Make the demo's preferences, train on them, and report what was learnt
	@echo "written: $(RUN)/report.md, $(RUN)/report.png, $(RUN)/curves.png, $(RUN)/model"

docs/demo.png: $(RUN)/report.md
	cp $(RUN)/report.png $@

# Preferences that follow the same rule; no run was trained on them.
$(DATA)/fresh.jsonl: experiments/demo.py | $(VENV)/installed
	$(PY) -m experiments.demo --pairs $(FRESH) --seed 2 --out $@

docs/credit.png: $(RUN)/report.md $(DATA)/fresh.jsonl
	$(PY) -m experiments.credit_picture $(RUN) --data $(DATA)/fresh.jsonl --out $@

evaluate: $(RUN)/report.md $(DATA)/fresh.jsonl ## Measure the demo's model on preferences that it never saw
	$(PY) -m dpo_min.judge.evaluate --model $(RUN)/model --reference $(RUN)/reference --data $(DATA)/fresh.jsonl \
		--scorer experiments.demo:score --png $(RUN)/evaluation.png $(EVALUATE)

learn: $(VENV)/installed ## Learn by writing: makes learning/, empties functions, and tests what you write against its laws
	@$(PY) -m dpo_min.learn

test: $(VENV)/installed ## Run every test, on all cores
	$(PY) tests/together.py

$(VENV)/browser: requirements-browser.txt | $(VENV)/installed
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	@touch $@

test-browser: $(VENV)/browser ## Test the pages in a real browser: apt install chromium chromium-driver
	BROWSER=1 $(PY) -m pytest -q $(PAGES)

hunt: $(VENV)/installed ## Search for failures: try every property on 20 times the examples, on others each time
	HUNT=20 $(PY) -m pytest -q $(HUNTED)

proof: $(VENV)/installed ## Run the theorem and check seven results: writes docs/proof.md and its pictures
	$(PY) -m experiments.proof

figures: proof ## Draw every picture of docs/derivation.md, docs/proof.md and docs/losses.md again
	$(PY) -m experiments.figures
	$(PY) -m experiments.losses_page

symptoms: $(VENV)/installed ## Make runs go wrong on purpose: writes the curves and numbers of docs/symptoms.md
	OMP_NUM_THREADS=1 $(PY) -m experiments.symptoms

explainer: $(VENV)/installed ## Write docs/explainer.html, the interactive page
	OMP_NUM_THREADS=1 $(PY) -m experiments.explainer

walkthrough: $(VENV)/installed ## Write docs/walkthrough.ipynb, the notebook to read
	OMP_NUM_THREADS=1 $(PY) -m experiments.walkthrough

frontier: $(RUN)/model/config.json ## Compare DPO with what it replaces: writes docs/frontier.md and docs/data.md; goes on where it stopped
	$(PY) -m experiments.frontier --demo $(RUN) --data $(DATA)/prefs.jsonl $(FRONTIER)
	$(PY) -m experiments.lessons

rounds: $(RUN)/model/config.json ## Spend labels in rounds and at once: writes docs/rounds.md; goes on where it stopped
	$(PY) -m experiments.rounds --init $(RUN)/reference $(ROUNDS)

mutants: $(VENV)/installed ## Break every operator and constant of the mathematics, and count what the tests catch
	$(PY) tests/mutants.py

torture: $(VENV)/installed ## Kill runs, break files and fill disks: writes docs/reliability.md
	OMP_NUM_THREADS=1 $(PY) tests/torture.py $(TORTURE)

golden: $(VENV)/installed ## Record the losses again that the tests compare with, after a change that is meant
	OMP_NUM_THREADS=1 $(PY) tests/test_golden.py

real: $(VENV)/installed ## Make a real model better: make real MODEL=DIR DATA=train.jsonl EVAL=heldout.jsonl
	$(PY) -m experiments.real_model --model $(MODEL) --data $(DATA) --eval-data $(EVAL) $(REAL)

bench: $(VENV)/installed ## Measure on this machine what each lever gains: writes docs/benchmarks.md
	$(PY) -m experiments.benchmark $(BENCH)

bench-gpu: $(VENV)/installed ## Measure the same on a CUDA GPU, for GPT-2's 124M and 1.5B shapes
	$(PY) -m experiments.benchmark --device cuda --pairs 2048 --batch-size 64 --compile --out docs/benchmarks-gpu.md $(BENCH)
	$(PY) -m experiments.benchmark --device cuda --pairs 256 --batch-size 16 --compile --shape 50257 1024 48 25 1600 \
		--out docs/benchmarks-gpu-1.5B.md $(BENCH)

links: $(VENV)/installed ## Correct the line numbers in the links of docs/ to code and tests
	$(PY) -m experiments.links $(LINKED:%=docs/%.md)

lint: $(VENV)/installed ## Check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## Remove the demo's data and run
	rm -rf $(DATA) $(RUN)
