"""Accidents: kills, two commands at once, a full disk, a lost permission; nothing is lost, nothing is mixed.

`DINO_KILLS` sets how often each command is killed.
"""

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from forked_commands import ForkedCommands

from modeling_dino.runtime.whole_files import LOCK


# what is set up once takes long, so all of it runs in one process
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

KILLS = int(os.environ.get("DINO_KILLS", "2"))
FULL_DISK = 4000  # bytes that a file can have
NOBODY = 65534
RUN = ["--epochs", 2, "--batch-size", 2, "--num-workers", 0, "--output", "out"]
RECIPE = ["small_data", "batch_size=2", "model.projection_dim=16", "training.num_train_epochs=4"]
RECIPE += ["model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.image_size=32"]
RECIPE += ["crops.global_crop_size=32", "crops.local_crop_size=16", "crops.num_local_crops=1", "training.save_steps=1"]
CLASSES = ["--train", "images", "--test", "images"]
FEATURES = ["--train", "features", "--test", "features"]
COMMANDS = {
    "convert_file": ["convert", "vit", "out", "--to", "original"],
    "convert_folder": ["convert", "vit", "out", "--to", "timm"],
    "extract": ["extract", "--model", "vit", "--images", "images", "--output", "out", "--num-workers", 0],
    "attention": ["attention", "--model", "vit", "--images", "images/a", "--output", "out", "--size", 32],
    "pca": ["pca", "--model", "vit", "--images", "images", "--output", "out", "--size", 32],
    "match": ["match", "images/a/0.png", "images/a/0.png", "--model", "vit", "--output", "out.png", "--size", 32],
    "report": ["report", "features", "--output", "out", "--k", 1],
    "retrieve": ["retrieve", "--index", "features", "--output", "out.csv"],
    "knn": ["knn", *FEATURES, "--k", 1, "--json", "out"],
    "linear": ["linear", *FEATURES, "--model", "vit", "--epochs", 2, "--output", "out"],
    "finetune": ["finetune", *CLASSES, "--model", "vit", *RUN],
    "pretrain": ["pretrain", *RECIPE, "--data", "images", "--output", "out", "--num-workers", 0],
}
GOES_ON = {"attention": ["--overwrite"], "pca": ["--overwrite"]}  # options with which a command goes on
COMPARED = (".safetensors", ".parquet", ".png", ".csv", "")  # others hold times, or paths


@pytest.fixture(scope="module")
def expected(healthy, commands, tmp_path_factory) -> dict[str, dict[str, bytes | None]]:
    """What each command writes if nothing happens."""
    found = {}
    for name, arguments in COMMANDS.items():
        place = copy(healthy, tmp_path_factory.mktemp(name) / "place")
        outcome = commands(*arguments, folder=place)
        assert outcome.code == 0, outcome.err
        found[name] = written(place)
    return found


def copy(healthy: Path, place: Path) -> Path:
    """Copies the healthy folder, with files that anybody may write to."""
    shutil.copytree(healthy, place)
    return place


def written(place: Path) -> dict[str, bytes | None]:
    """What is in a folder beside what the healthy one has: name -> bytes of what is the same each time."""
    outputs = [path for path in place.iterdir() if path.name.partition(".")[0] == "out" or path.name.startswith(".")]
    files = [path for output in outputs for path in (output.rglob("*") if output.is_dir() else [output])]
    return {
        str(file.relative_to(place)): file.read_bytes() if file.suffix in COMPARED else None
        for file in files
        if file.is_file() and file.name != LOCK
    }


def check_goes_on(name: str, place: Path, commands: ForkedCommands, expected: dict):
    """Asserts that the command, run again, ends with what it writes if nothing happens."""
    outcome = commands(*COMMANDS[name], *GOES_ON.get(name, ()), folder=place)
    is_written_before = outcome.code == 2 and written(place) == expected[name]
    assert outcome.code == 0 or is_written_before, outcome.err
    assert written(place) == expected[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments_it_goes_on(name, healthy, commands, expected, tmp_path):
    """At so many moments; where it completes before, it begins anew."""
    place = copy(healthy, tmp_path / "begin" / "place")
    started = time.monotonic()
    commands(*COMMANDS[name], folder=place)
    duration = time.monotonic() - started
    draw, kills, begin = random.Random(name), 0, 0
    place = copy(healthy, tmp_path / "0" / "place")
    while kills < KILLS:
        outcome = commands(*COMMANDS[name], *GOES_ON.get(name, ()), folder=place, kill_after=draw.uniform(0, duration))
        assert "Traceback" not in outcome.err
        if outcome.code == -9:
            kills += 1
            continue
        assert written(place) == expected[name], outcome.err
        begin += 1
        place = copy(healthy, tmp_path / str(begin) / "place")
    check_goes_on(name, place, commands, expected)


@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once_do_not_mix(name, healthy, commands, expected, tmp_path):
    place = copy(healthy, tmp_path / "place")
    outcomes = commands.at_once([COMMANDS[name]] * 2, place)
    assert {outcome.code for outcome in outcomes} <= {0, 2}
    assert any(outcome.code == 0 for outcome in outcomes), outcomes
    assert written(place) == expected[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line(name, healthy, commands, expected, tmp_path):
    place = copy(healthy, tmp_path / "place")
    outcome = commands(*COMMANDS[name], folder=place, file_bytes=FULL_DISK)
    assert outcome.code == (
        2 if any(len(file or b"") > FULL_DISK for file in expected[name].values()) else outcome.code
    )
    check_is_one_line(outcome)
    check_goes_on(name, place, commands, expected)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user's permissions")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_not_be_written_to_is_one_line(name, healthy, commands, expected, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    place = copy(healthy, tmp_path / "place")
    outcome = commands(*COMMANDS[name], folder=place, user=NOBODY)
    assert outcome.code == 2, outcome.err
    check_is_one_line(outcome)
    assert written(place) == {}
    check_goes_on(name, place, commands, expected)


def check_is_one_line(outcome):
    """Asserts that an error, if there is one, is one line."""
    assert outcome.code in (0, 2), outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.code == 0 or [line.startswith("dino: ") for line in outcome.err.splitlines()].count(True) == 1
