"""Pretraining in two processes that is killed at random moments, and run again until it is done.

`DINO_KILLS=50 pytest tests/training/test_killed.py` kills it as often as that.
"""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from killable import Killable
from PIL import Image
from tiny_models import TINY_BACKBONES, TINY_HEAD


KILLS = int(os.environ.get("DINO_KILLS", 5))
RECIPE = {
    "batch_size": 4,
    "base_learning_rate": 0.01,
    "model": {**TINY_BACKBONES["vit"], **TINY_HEAD, "drop_path_rate": 0.2},
    "crops": {"global_crop_size": 32, "local_crop_size": 16, "num_local_crops": 1},
    "training": {
        "num_train_epochs": 5,
        "warmup_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
    },
}


def end_of(run: Path) -> tuple[bytes, list[dict]]:
    """What the run ended with: its weights, and its log."""
    (checkpoint,) = run.glob("checkpoint-*")
    assert not list(run.rglob("*.partial"))
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return (run / "model.safetensors").read_bytes(), log


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    (tmp_path / "images").mkdir()
    for number in range(13):
        noise = np.random.default_rng(number).integers(0, 256, (48, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.png")
    arguments = ["pretrain", "recipe.yaml", "--data", "images", "--num-workers", 1, "--output"]
    killable = Killable(tmp_path, "import torch, modeling_dino.training.pretrain\ntorch.set_num_threads(1)")
    try:
        for name in ("whole", "again"):  # the first imports what the second one does not have to
            started = time.monotonic()
            assert killable.run([*arguments, name], num_processes=2)
            duration = time.monotonic() - started
        whole = end_of(tmp_path / "whole")
        assert end_of(tmp_path / "again") == whole
        kills = completed = 0
        while kills < KILLS:
            name = f"killed-{completed}"
            if killable.run([*arguments, name], 2, random.uniform(0, duration)):
                completed += 1
            else:
                kills += 1
        assert killable.run([*arguments, name], num_processes=2)
        ended = [tmp_path / f"killed-{i}" for i in range(completed + 1) if (tmp_path / f"killed-{i}").exists()]
        print(f"{kills} kills, {len(ended)} runs")
        for run in ended:
            assert end_of(run) == whole
    finally:
        killable.close()
