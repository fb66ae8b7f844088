# Exercises of dpo_min: write the bodies that are missing under dpo_min/, and let the laws correct you.
.DEFAULT_GOAL := help
EXERCISE ?=
SECONDS ?= 20
LEARN = PYTHONSAFEPATH=1 PYTHONPATH="$(PROJECT)" "$(PY)" -m dpo_min.learn
MINE = --folder . $(if $(EXERCISE),--exercise '$(EXERCISE)')

.PHONY: help check hint reveal train

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

check: ## Try the laws on what you wrote, in the reading order, up to the first that fails; or EXERCISE=margin
	@$(LEARN) check $(MINE) --seconds '$(SECONDS)'

hint: ## Help with the exercise that comes next, three times, ever more; or make hint EXERCISE=margin
	@$(LEARN) hint $(MINE)

reveal: ## Show its body, and write it where nothing of yours stands; or make reveal EXERCISE=margin
	@$(LEARN) reveal $(MINE)

train: ## Train the demo with your functions, once all are right; make train STEPS=50 PAIRS=2000 is shorter
	@$(LEARN) check --folder . --all
	@PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR):$(abspath $(PROJECT))" \
		$(MAKE) --no-print-directory -C "$(PROJECT)" train RUN="$(RUN)" PY="$(abspath $(PY))"
