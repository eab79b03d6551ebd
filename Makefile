.PHONY: install lint test demo

install:  ## for development: the package as it lies here, and what the tests need
	python -m pip install -e ".[test]"

lint:
	ruff check .
	ruff format --check .

test:  ## fetches transformers' common tests the first time
	python tests/transformers_common.py
	pytest -n 2

demo:  ## in a virtual environment of its own
	python3 -m venv .venv-demo
	.venv-demo/bin/pip install -q ".[train]"
	.venv-demo/bin/dino demo --output demo
