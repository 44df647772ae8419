# `make` lists the targets. Everything is installed into .venv, once, and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin

# Files of tests go to as many processes as there are cores; a file stays in one, because its tests share what is slow.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile

# What each target installs beside dfqlab itself: extras of pyproject.toml.
extras-demo := deploy,zoo
extras-test := deploy,openvino,zoo,search,lab,browser,test
extras-lab := deploy,zoo,lab

.PHONY: help demo test check lab lessons bench
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST))

demo: .venv/.installed-demo ## quantize the embedded teacher without its data, and write a report
	@$(BIN)/dfqlab quantize --out runs/demo --overwrite
	@echo "The report: $(CURDIR)/runs/demo/report.html"

test: .venv/.installed-test ## every test
	@OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL)
	@OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/pytest $(PARALLEL) tests/kernels/programs tests/lab/interpreted \
		|| [ $$? = 5 ] # no Triton, no tests

check: .venv/.installed-test ## lint, format, types, and which way imports go
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lab: .venv/.installed-lab ## open the first lesson in JupyterLab, in lessons/, a copy that is yours to write in
	@$(BIN)/dfqlab lesson 00

lessons: .venv/.installed-lab ## run every lesson anew and keep what it shows; some only: make lessons ids="01 02"
	@$(BIN)/python -m dfqlab.lab.rebuild $(ids)

bench: .venv/.installed-demo ## measure the kernels and rewrite kernels/README.md; some only: make bench ops="fake_quantize"
	@$(BIN)/python -m dfqlab_kernels.bench $(ops)
	@$(BIN)/python -m benchmarks.inversion_step
	@$(BIN)/python -m benchmarks.kernels_readme

.venv/.installed-%: pyproject.toml | $(BIN)/pip
	@echo "Installing dfqlab[$(extras-$*)] into .venv; the first time this takes some minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(extras-$*)]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'dfqlab needs Python 3.11 or newer; name one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'This Python cannot make a .venv: install its venv package (Debian and Ubuntu: apt install python3-venv).' >&2; exit 1; }
	@$(PYTHON) -m venv .venv
