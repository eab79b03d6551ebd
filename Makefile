.PHONY: install lint docs test test-fast test-gpu demo demo-table bench bench-gpu

install:  ## for development: the package as it lies here, and what the tests need
	python -m pip install -e ".[test,docs]"

lint:
	ruff check .
	ruff format --check .

docs:  ## builds the pages into site/, and checks their links
	mkdocs build --strict

test:  ## fetches transformers' common tests, and transformers.js where there is Node, the first time
	python tests/helpers/transformers_common.py
	python tests/helpers/transformers_js.py
	pytest -n 2 --dist loadgroup

test-fast:  ## what a developer runs while working: all but the tests that take long, within about four minutes on two cores
	pytest -n 2 --dist loadgroup -m "not slow"

demo:  ## in a virtual environment of its own
	python3 -m venv .venv-demo
	.venv-demo/bin/pip install ".[demo]"
	.venv-demo/bin/dino demo --output demo

demo-table:  ## the demo with five seeds, evaluated in three ways: the README's table
	python tests/benchmarks/evaluation.py photographs --folder demos --json $(RESULTS)/$(TODAY)-photographs.json

RESULTS = tests/benchmarks/results
TODAY := $(shell date +%F)

DINOV2 = training-dinov2,training-dinov2-patch-head,training-dinov2-drop-path
BENCH = --json $(RESULTS)/$(TODAY)-cpu
bench:  ## speed on a CPU, beside other libraries; keep the machine otherwise idle
	dino bench --models dino_vits16,dino_resnet50 --engines $(BENCH)-engines.json
	dino bench --models dino_vits16,dino_resnet50 --engines --threads 2 $(BENCH)-engines-2-threads.json
	dino bench --models dinov2_vits14,dinov2_vits14_reg,dinov3_vits16 --image-size 224 --engines $(BENCH)-engines-later-dinos.json
	dino bench --models dino_vits16,dino_resnet50 --what latency $(BENCH)-latency.json
	dino bench --models dino_vits8 --what attention --image-size 320 --rounds 3 $(BENCH)-attention.json
	dino bench --models vit_tiny --what training --rounds 5 $(BENCH)-training.json
	dino bench --models vit_tiny,dino_vits16 --what $(DINOV2) --rounds 3 $(BENCH)-training-dinov2.json
	dino bench --models vit_tiny,dino_vits16 --what $(DINOV2) --rounds 3 --dtype bfloat16 $(BENCH)-training-dinov2-bfloat16.json
	dino bench --models vit_tiny,dino_vitb16 --what loading --rounds 3 $(BENCH)-loading.json
	dino bench --models vit_tiny --what knn --rounds 3 $(BENCH)-knn.json
	dino bench --models vit_tiny --what extraction --extraction-images 600 --threads 2 --rounds 2 $(BENCH)-extraction.json
	dino bench --models dino_vits16 --what extraction --extraction-images 200 --threads 2 --rounds 2 $(BENCH)-extraction-vits16.json

DEVICE = cuda
SIZE = full
LIMIT = 280
bench-gpu:  ## speed on a GPU, within five minutes; DEVICE=cpu SIZE=small LIMIT=1800 runs the same lines on a CPU
	python tests/benchmarks/gpu.py --device $(DEVICE) --size $(SIZE) --limit $(LIMIT) --json $(RESULTS)/$(TODAY)-$(DEVICE)-$(SIZE).json

test-gpu:  ## what a GPU can make fail, within four minutes; DINO_TEST_DEVICE=cpu runs the same lines on a CPU
	DINO_TEST_DEVICE=$${DINO_TEST_DEVICE:-cuda} pytest tests/gpu -rs --durations 5
