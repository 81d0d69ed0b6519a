# Everything a newcomer needs. All but `make docs` needs only Python 3.11 and make.
PYTHON ?= python3.11
STUDY ?= studies/demo.toml
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
EXECUTE := $(BIN)/jupyter nbconvert --log-level=WARN --to notebook --execute --inplace --CoalesceStreamsPreprocessor.enabled=True \
	--NotebookExporter.preprocessors=l2init.internals.site.LightPictures --LightPictures.enabled=True

.PHONY: help install demo test lab notebooks reports bench docs

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: constraints.txt settings.ini setup.py
	@echo "Installing into $(VENV): some minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: $(VENV)/installed ## install l2init and all it needs into .venv

demo: install ## run the demo study (STUDY=… for another), print its table and the paths of its figures
	@$(BIN)/l2init run $(STUDY)

test: install ## run the tests, but those that take minutes
	@$(BIN)/pytest

lab: install ## read and run the notebooks in JupyterLab
	@$(BIN)/jupyter lab nbs/index.ipynb

notebooks: install ## execute every notebook in place, so that its stored outputs are those of the code
	@$(EXECUTE) nbs/*.ipynb nbs/*/*.ipynb
	@$(BIN)/nbdev_clean

reports: install ## execute the reports on the tables in results/, and draw the figures in nbs/images
	@mkdir -p nbs/images/demo
	@cd nbs/reports && ../../$(BIN)/papermill --no-progress-bar demo.ipynb /dev/null -p figures ../images/demo
	@$(EXECUTE) nbs/reports/*.ipynb
	@$(BIN)/nbdev_clean

bench: install ## measure lock-step training against plain loops and JAX, drop-ins, and on a GPU if there is one
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,bench]"
	@$(BIN)/python benchmarks/throughput.py
	@$(BIN)/python benchmarks/drop_in.py
	@$(BIN)/python benchmarks/gpu.py

docs: install ## render the site into _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto: get it from https://quarto.org/docs/get-started and put it on the PATH." >&2; exit 1; }
	@$(BIN)/python -c "from pathlib import Path; from l2init.internals.site import write_sidebars; write_sidebars(Path('.'))"
	@PATH="$(CURDIR)/$(BIN):$$PATH" quarto render
	@$(BIN)/python -c "from pathlib import Path; from l2init.internals.site import downloads; downloads(Path('.'), Path('_docs'))"
