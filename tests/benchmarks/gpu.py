"""
Measures on a GPU, within minutes, what the page on speed promises, and says which goals are reached.

    python tests/benchmarks/gpu.py                              # make bench-gpu
    python tests/benchmarks/gpu.py --device cpu --size small    # runs the same lines on a CPU, within minutes

It needs torch, transformers and timm alone; `dino` itself needs more. What is not installed takes no part, and is
named. Each part is measured by `run_bench` in this process, in which all participants take turns. Before that all
parts compile at the same time, each in a process of its own, for the caches of PyTorch's compiler: that takes the
longest. A part that would begin after the limit is left out, and is named; what was measured before is in the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from modeling_dino import DinoConfig
from modeling_dino.benchmark.options import LIBRARIES, BenchOptions
from modeling_dino.benchmark.run import RESULTS_FORMAT, run_bench
from modeling_dino.runtime.marked_files import check_marked, marked_file


RESULTS = Path(__file__).parent / "results"
# by part: what is measured of which model, in the order of their worth
PARTS = {
    "ViT-S/16": ("features,latency", "dino_vits16"),
    "training": ("training", "dino_vits16"),
    "ResNet-50": ("features,latency", "dino_resnet50"),
    "ViT-B/16": ("features,latency", "dino_vitb16"),
    "ViT-L/16": ("features", "vit_large"),
}
# the least ratio to the fastest rival, and share of the rate of a matrix product
RATIOS = {"ViT-S/16": 1.25, "ViT-B/16": 1.12, "ViT-L/16": 1.08, "ResNet-50": 1.1}
SHARES = {"ViT-S/16": 0.45, "ViT-B/16": 0.65, "ViT-L/16": 0.75}
LATENCY_RATIO, TRAINING_RATIO, TRAINING_MEMORY = 1.1, 3.0, 0.5
WARM_UP_SHARE = 0.5  # of the time, in which all parts compile


def options_of(part: str, arguments: argparse.Namespace, models: Path) -> BenchOptions:
    """Returns the options of a part; small ones have a model of a layer and small images."""
    what, model = PARTS[part]
    options = BenchOptions(
        models=[model],
        what=what.split(","),
        device=arguments.device,
        dtype="bfloat16",
        batch_size=256,
        training_batch_size=64,
        compile=True,
        rounds=arguments.rounds,
        threads=torch.get_num_threads(),
    )
    if arguments.size == "full":
        return options
    preset = DinoConfig.from_preset(model)
    small = {"backbone": preset.backbone, "image_size": 32, "projection_dim": 64, "head_type": preset.head_type}
    config = DinoConfig(**small, **({} if preset.has_stages else {"num_hidden_layers": 1, "patch_size": 16}))
    folder = models / part.replace("/", "-")
    config.save_pretrained(folder)
    return replace(options, models=[str(folder)], batch_size=2, training_batch_size=2)


def compile_at_once(arguments: argparse.Namespace, seconds: float):
    """Fills the compiler's caches by all parts at the same time, whose numbers do not count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // len(PARTS)))}
    command = [sys.executable, __file__, "--device", arguments.device, "--size", arguments.size, "--rounds", "1"]
    started, processes = time.monotonic(), []
    for part in PARTS:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen([*command, "--part", part], env=environment, **quiet))
    for process in processes:
        try:
            process.wait(max(0, started + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)


def goals_of(part: str, line: dict) -> list[str]:
    """Says for each goal of a line what was reached."""
    if "ratio" not in line:
        return [f"{part} {line['what']}: no rival took part"]
    best = max(line["ratio"].values())
    if line["what"] == "latency":
        return [verdict(f"{part} latency, ratio", best, LATENCY_RATIO)]
    if line["what"] == "training":
        peaks = line.get("peak_mib", {})
        memory = peaks["dino"] / peaks["plain step"] if peaks.get("plain step") else float("nan")
        return [
            verdict("training step, ratio", best, TRAINING_RATIO),
            verdict("training step, memory over the plain step's", memory, TRAINING_MEMORY, at_most=True),
        ]
    found = [verdict(f"{part} features, ratio", best, RATIOS[part])]
    if part in SHARES:
        share = max(share for who, share in line["share_of_product"].items() if who.startswith("dino"))
        found.append(verdict(f"{part} features, share of a matrix product's rate", share, SHARES[part]))
    return found


def verdict(what: str, value: float, goal: float, at_most: bool = False) -> str:
    """Says whether a goal is reached, which is the least value, or the greatest."""
    is_reached = value <= goal if at_most else value >= goal
    return f"{what}: {value:.2f}, goal {'at most ' if at_most else ''}{goal}: {'' if is_reached else 'not '}reached"


def measure_all(arguments: argparse.Namespace, models: Path):
    """Measures part by part until the limit, and writes what there is after each."""
    started, results, goals = time.monotonic(), {}, []
    if not arguments.part:
        compile_at_once(arguments, WARM_UP_SHARE * arguments.limit)
    for part in [arguments.part] if arguments.part else PARTS:
        if time.monotonic() - started > arguments.limit:
            print(f"left out after {arguments.limit} s: {part}", flush=True)
            continue
        try:
            measured = run_bench(options_of(part, arguments, models))
        except (RuntimeError, ImportError) as error:  # of one part, as too little memory; the others go on
            print(f"left out: {part}: {str(error).splitlines()[0]}", flush=True)
            continue
        print(measured, flush=True)
        for line in measured["lines"]:
            goals += goals_of(part, line)
            for who, reason in line.get("left_out", {}).items():
                print(f"left out: {part}, {who}: {reason}", flush=True)
        results = {**measured, "lines": [*results.get("lines", []), *measured["lines"]], "goals": goals}
        if arguments.json is not None:
            with marked_file(arguments.json, RESULTS_FORMAT) as file:
                file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(goals))
    print(f"{time.monotonic() - started:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, default=280, help="seconds after which no part begins")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    arguments = parser.parse_args()
    if arguments.json is not None:
        check_marked(arguments.json, RESULTS_FORMAT)
    for library in LIBRARIES:
        if find_spec(library) is None:
            print(f"left out: {library} is not installed")
    with tempfile.TemporaryDirectory(prefix="dino-") as models:
        measure_all(arguments, Path(models))


if __name__ == "__main__":
    main()
