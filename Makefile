# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt
EXAMPLE = $(firstword $(wildcard examples/data/*.dcm))
TEST_VENV = .venv-test
DEMO_VENV = .venv-demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-gptq lint format clean

help:
	@echo "make demo       fresh environment, bare runtime, report on $(EXAMPLE)"
	@echo "make test       environment with every extra, all tests (ARGS='-m \"not slow\"' narrows them)"
	@echo "make test-gptq  add the extra gptq to that environment and run its tests"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff rewrite the code"
	@echo "make clean      remove both environments"

# Always from nothing, and not editable: what it shows is what `pip install` gives a hospital.
demo:
	rm -rf $(DEMO_VENV)
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) ".[cpu]"
	$(DEMO_VENV)/bin/trrg report $(EXAMPLE)

# In two processes, a file of tests in one of them, in order; with a thread each, since more of them wait for each other.
# Then those that talk with other programs, which wait for answers, by themselves. 5: ARGS leaves none of them.
test: $(TEST_VENV)/.installed
	OMP_NUM_THREADS=1 $(TEST_VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/site $(ARGS)
	$(TEST_VENV)/bin/python -m pytest tests/site $(ARGS) || [ $$? -eq 5 ]

# Apart, because torchao, which it brings, is imported by transformers and then talks in every program.
test-gptq: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python $(PIP_INSTALL) -e ".[gptq]"
	$(TEST_VENV)/bin/python -m pytest tests/export/test_int4.py $(ARGS)

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy

format: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check --fix .
	$(TEST_VENV)/bin/ruff format .

clean:
	rm -rf $(TEST_VENV) $(DEMO_VENV)

# Python compiles what is imported; pip would compile everything that is there, a minute's work.
$(TEST_VENV)/.installed: pyproject.toml constraints.txt
	rm -rf $(TEST_VENV)
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python $(PIP_INSTALL) --no-compile -e ".[cpu,openvino,tensorrt,sr,fhir,hl7,site,train,export,dev]"
	touch $@
