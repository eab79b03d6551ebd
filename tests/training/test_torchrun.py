"""The command line under torchrun on CPUs, as users start it: processes work together, once, and end in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_images import coloured_images
from safetensors.torch import load_file
from tiny_models import TINY_BACKBONES, TINY_HEAD

from modeling_dino.runtime.processes import check_joined, started_processes
from modeling_dino.training.arguments import DinoTrainingArguments


RECIPE = {
    "batch_size": 4,
    "model": {**TINY_BACKBONES["vit"], **TINY_HEAD},
    "crops": {"global_crop_size": 32, "local_crop_size": 16, "num_local_crops": 1},
    "training": {"num_train_epochs": 1, "logging_steps": 1, "save_strategy": "epoch"},
}


def torchrun(*arguments: object, num_processes: int = 2) -> subprocess.CompletedProcess:
    """Runs `dino ARGUMENTS` in several processes, which learn from nothing but torchrun that there are several."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return subprocess.run(
        [*command, "-m", "modeling_dino", *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Coloured images, a model, and `recipe.yaml`."""
    path = coloured_images(tmp_path_factory.mktemp("torchrun"))
    (path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return path


@pytest.mark.slow
def test_pretraining_shares_the_batch(folder):
    done = torchrun("pretrain", folder / "recipe.yaml", "--data", folder / "train", "--output", folder / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("->") == 1  # the main process alone speaks
    checkpoint = folder / "run" / "checkpoint-3"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["train_batch_size"] == 2
    assert len({entry["step"] for entry in state["log_history"] if "loss" in entry}) == 3
    assert {file.name for file in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert load_file(folder / "run" / "model.safetensors")


@pytest.mark.slow
def test_finetuning_works_once(folder):
    places = ("--train", folder / "train", "--test", folder / "test", "--model", folder / "model")
    done = torchrun("finetune", *places, "--output", folder / "tuned", "--epochs", 1, "--batch-size", 6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1


@pytest.mark.parametrize("started", ["", "none", "0", "-1"])
def test_what_the_environment_says_must_be_a_number(monkeypatch, started):
    monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(ValueError, match=f"WORLD_SIZE={started} must be a number of processes"):
        started_processes()


def test_processes_that_do_not_work_together_are_refused(tmp_path, monkeypatch):
    """As where the Trainer uses a GPU for each process, and there is none."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started .* each works for itself: set ACCELERATE_USE_CPU"):
        check_joined(1)
    check_joined(2)
    monkeypatch.setattr(DinoTrainingArguments, "world_size", 1)
    monkeypatch.setattr(DinoTrainingArguments, "_setup_devices", "cpu")
    with pytest.raises(ValueError, match="each works for itself"):
        DinoTrainingArguments(str(tmp_path))
