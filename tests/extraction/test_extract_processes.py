"""Extraction in processes of its own: many at a time, killed, and without room to write."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killable import Killable
from noise_images import write_noise_images
from tiny_models import tiny_config

from modeling_dino import DinoModel, load_features


NUM_IMAGES = 11
KILLS = {1: 20, 2: 8}  # of one process, and of two together
SMALL_SHARDS = """
from modeling_dino.extraction import feature_files
feature_files.MIN_SHARD_ROWS = 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with `model`, `images`, and lists of some of these, which no test changes."""
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    DinoModel(tiny_config()).save_pretrained(folder / "model")
    paths = write_noise_images(folder / "images", NUM_IMAGES)
    for count in (1, 2, NUM_IMAGES):
        (folder / f"{count}.txt").write_text("\n".join(map(str, paths[:count])) + "\n")
    return folder


@pytest.fixture(scope="module")
def killable(tmp_path_factory):
    """A process that has imported what runs need."""
    process = Killable(tmp_path_factory.mktemp("killable"), f"{SMALL_SHARDS}\nimport modeling_dino.extraction.extract")
    yield process
    process.close()


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


LAUNCHED = f"""
import json, sys
from accelerate import PartialState
{SMALL_SHARDS}
from modeling_dino.cli.app import app
for arguments in json.load(open(sys.argv[1])):
    app(args=["extract", *arguments], standalone_mode=False)
assert PartialState().num_processes == int(sys.argv[2])
"""


def launch(folder: Path, num_processes: int, runs: list[list[object]], num_threads: int) -> list[str]:
    """Runs `dino extract` several times under one `accelerate launch`; returns the lines that it prints."""
    (folder / "launched.py").write_text(LAUNCHED)
    (folder / "runs.json").write_text(json.dumps([list(map(str, arguments)) for arguments in runs]))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", num_processes, "--multi_gpu"]
    launcher += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    command = [*map(str, launcher), "launched.py", "runs.json", str(num_processes)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_table(tmp_path, folder, killable):
    """
    Also with fewer images than processes, with another number of threads, and what others began. Two processes are
    started by `accelerate launch`, others as it has them find each other.
    """
    counts = (NUM_IMAGES, 2, 1)
    common = ["--model", folder / "model", "--batch-size", 3]

    def runs(name: str) -> list[list[object]]:
        (tmp_path / name).mkdir()
        return [[*common, "--images", folder / f"{n}.txt", "--output", tmp_path / name / str(n)] for n in counts]

    for num_processes in (1, 2, 3):
        name = str(num_processes)
        planned = runs(name)
        if num_processes > 1:
            begun = tmp_path / name / str(NUM_IMAGES)
            shutil.copytree(tmp_path / "1" / str(NUM_IMAGES), begun)
            (begun / "features-000001-000000.parquet").unlink()
        if num_processes == 2:
            lines = launch(tmp_path, 2, planned, num_threads=2)
            assert [line.split(" images")[0] for line in lines] == list(map(str, counts))  # the main process alone
            assert "7 of them from before" in lines[0]
        else:
            assert all(killable.run(["extract", *arguments], num_processes) for arguments in planned)
        for count in counts:
            assert contents(tmp_path / name / str(count)) == contents(tmp_path / "1" / str(count))
    for count in counts:
        rows = load_features(tmp_path / "3" / str(count))
        assert [Path(path).name for path in rows["path"]] == [f"{i:02d}.png" for i in range(count)]
        assert rows["feature"].shape == (count, 32)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_at_random_moments_it_goes_on(tmp_path, folder, killable, num_processes):
    """Until it has been killed often enough; then the table is that of a run that was left alone."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    arguments = ["extract", "--model", folder / "model", "--images", folder / "images"]
    arguments += ["--batch-size", 2, "--num-workers", 1]
    for name in ("whole", "again"):  # the first imports what the second one does not have to
        started = time.monotonic()
        assert killable.run([*arguments, "--output", tmp_path / name], num_processes)
        duration = time.monotonic() - started
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    kills = completed = 0
    while kills < KILLS[num_processes]:
        output = tmp_path / f"killed-{completed}"
        if killable.run([*arguments, "--output", output], num_processes, random.uniform(0, duration)):
            completed += 1
        else:
            kills += 1
    assert killable.run([*arguments, "--output", output], num_processes)
    for i in range(completed + 1):
        if (tmp_path / f"killed-{i}").exists():
            assert contents(tmp_path / f"killed-{i}") == contents(tmp_path / "whole")


# in a mount namespace of its own: the file system is gone with the process
FULL = f"""
import subprocess, sys
from pathlib import Path
{SMALL_SHARDS}
from modeling_dino.cli.app import app, run
model, images, disk, whole = sys.argv[1:]
output = disk + "/out"


def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", disk], check=True)


def extract(output=output):
    try:
        run(app, args=["extract", "--model", model, "--images", images, "--features", "patches", "--output", output])
    except SystemExit as stop:
        return stop.code


def shards():
    return {{path.name: path.read_bytes() for path in Path(disk, "out").glob("features-*")}}


assert extract(whole) == 0
size = sum(file.stat().st_size for file in Path(whole).iterdir())
mount("-o", f"size={{size * 3 // 4}}")
assert extract() == 2
begun = shards()
assert begun and not list(Path(disk, "out").glob(".*.partial")), begun.keys()
mount("-o", "remount,ro")
assert extract() == 2
assert shards() == begun
mount("-o", "remount,size=48m,rw")
assert extract() == 0
assert begun.items() <= shards().items()
for name, content in shards().items():
    Path("mended", name).write_bytes(content)
"""


def can_mount() -> bool:
    return not subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
    ).returncode


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_full_disk_and_one_that_cannot_be_written_to(tmp_path, folder):
    """One line each; what was written is kept, and it goes on when there is room."""
    for name in ("disk", "mended"):
        (tmp_path / name).mkdir()
    arguments = [folder / "model", folder / "images", tmp_path / "disk", tmp_path / "whole"]
    command = ["unshare", "-rm", sys.executable, "-c", FULL, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if "dino: " in line]
    assert "No space left on device" in errors[0]
    assert "Read-only file system" in errors[1]
    whole = contents(tmp_path / "whole")
    whole = {name: content for name, content in whole.items() if name.startswith("features-")}
    assert contents(tmp_path / "mended") == whole
