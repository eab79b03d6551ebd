"""Recipes that are wrong or hostile, runs whose folders are damaged, and options of training that cannot work."""

import json
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from faulty_input import BAD_VALUES, Case, spoilt_json
from tiny_models import TINY_BACKBONES, TINY_HEAD

from modeling_dino.training.options import PretrainOptions
from modeling_dino.training.pretrain import pretrain


PRETRAIN = ["pretrain", "recipe.yaml", "--data", "images", "--num-workers", "0", "--output"]
FINETUNE = ["finetune", "--train", "images", "--test", "images", "--num-workers", "0", "--epochs", "1", "--output"]
RECIPE = {
    "batch_size": 2,
    "base_learning_rate": 0.01,
    "image_mean": [0.5, 0.5, 0.5],
    "model": {**TINY_BACKBONES["vit"], **TINY_HEAD},
    "crops": {"global_crop_size": 32, "local_crop_size": 16, "num_local_crops": 1, "global_crop_scale": [0.4, 1.0]},
    "training": {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "seed": 0, "optim": "sgd"},
}
KEYS = (
    "batch_size",
    "base_learning_rate",
    "image_mean",
    "model.backbone",
    "model.hidden_size",
    "crops.global_crop_scale",
    "crops.num_local_crops",
    "training.seed",
)
KEYS += ("training.optim", "training.save_steps", "training.report_to", "training.bf16", "training.optim_args")
OVERRIDES = [
    "batch_size",
    "=",
    "=1",
    ".=1",
    "model=1",
    "model.=1",
    "batch_size=[",
    "batch_size=1e400",
    "batch_size=9" + "9" * 5000,
    "batch_size=${oc.env:HOME}",
    "training.run_name=${oc.env:HOME}",
    "training.run_name=${oc.decode:1}",
    "training.run_name=!!python/object/apply:os.system [id]",
    "training.seed=2e500",
    "training.seed=-1",
    "training.seed=99999999999999999999",
    "training.report_to=wandb",
    "training.report_to=[wandb, comet_ml]",
    "base_learning_rate=1e300",
    "training.weight_decay=-1",
    "training.max_steps=0",
    "training.collapse_patience=1e300",
    "training.max_steps=.inf",
    "training.per_device_train_batch_size=0",
    "training.per_device_train_batch_size=-2",
    "training.deepspeed=nowhere.json",
    "training.fsdp=nonsense",
    "training.accelerator_config={a: 1}",
    "training.logging_strategy=sometimes",
    "training.lr_scheduler_type=spiral",
    "training.dataloader_num_workers=4",
    "training.unheard_of=1",
    "crops.global_crop_size=0",
    "crops.num_local_crops=100000000000",
    "crops.crop_ratio=[2, 1]",
    "model.num_hidden_layers=0",
    "model.patch_size=33",
    "image_std=[0, 0, 0]",
    "image_mean=[1, 2]",
    "rescale_factor=0",
    "x=" + "[" * 5000,
]
TEXTS = {
    "empty": "",
    "a list": "- 1",
    "an empty section": "model: ",
    "no section": "crops: 3",
    "a number": "3",
    "zeros": "\0" * 20,
    "no text": b"\xff\xfe\x00\x01",
    "UTF-16": "batch_size: 2".encode("utf-16"),
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodel: {depths: *c}",
    "merge keys": "a: &a {b: 1}\nmodel: {<<: *a}",
    "deep": "model: " + "{a: " * 3000,
    "code": "model: !!python/object/apply:os.system ['touch ran']",
    "a path": "model: !!python/object/apply:pathlib.Path [/etc/passwd]",
    "an interpolation": "batch_size: ${oc.env:HOME}",
    "a missing value": "batch_size: ???",
    "twice": "batch_size: 2\nbatch_size: 4",
    "escapes": '"\\e[31mred": 1',
    "large": "#" * 2**21,
    "a binary": "batch_size: !!binary aGVsbG8=",
    "a set": "model: !!set {a, b}",
    "a date": "training: {run_name: 2020-01-01}",
}


@cache
def run_on(images: Path) -> tempfile.TemporaryDirectory:
    """Returns a folder, which is removed at the end, with `run`: two steps of the recipe."""
    folder, place = tempfile.TemporaryDirectory(), os.getcwd()
    os.chdir(folder.name)  # the run names its recipe and images as the cases do
    try:
        Path("images").symlink_to(images)
        Path("recipe.yaml").write_text(json.dumps(RECIPE))
        pretrain(PretrainOptions(recipe="recipe.yaml", data="images", output="run", num_workers=0, progress=False))
    finally:
        os.chdir(place)
    return folder


def cases(healthy: Path) -> Iterator[Case]:
    recipe = {"recipe.yaml": json.dumps(RECIPE)}
    for wrong, text in TEXTS.items():
        yield Case(f"recipe: {wrong}", [*PRETRAIN, "out"], {"recipe.yaml": text})
    for override in OVERRIDES:
        yield Case(f"override {override[:60]}", [*PRETRAIN, "out", override], recipe, code=2)
    for number, key in enumerate(KEYS):
        for bad in BAD_VALUES[number % 3 :: 3]:
            yield Case(f"recipe: {key}={str(bad)[:20]!r}", [*PRETRAIN, "out"], {"recipe.yaml": with_value(key, bad)})
    folder = Path(run_on(healthy / "images").name)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("run/**/*") if file.is_file()}
    yield from damaged_runs(folder, {**recipe, **files})
    yield from wrong_options({**recipe, **files})


def with_value(key: str, value: object) -> str:
    """Returns the recipe with another value."""
    section, _, name = key.rpartition(".")
    if not section:
        return json.dumps({**RECIPE, key: value})
    return json.dumps({**RECIPE, section: {**RECIPE[section], name: value}})


def damaged_runs(folder: Path, run: dict[str, bytes | str]) -> Iterator[Case]:
    resumed = [*PRETRAIN, "run"]
    unfinished = {**run, "run/run.json": json.dumps({**json.loads(run["run/run.json"]), "complete": False})}
    for wrong, text in islice(spoilt_json(folder / "run/run.json"), 0, None, 3):
        yield Case(f"run.json: {wrong}", resumed, {**run, "run/run.json": text})
    for part in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
        name = f"run/checkpoint-2/{part}"
        content = None if part in ("optimizer.pt", "scheduler.pt") else run[name][:-9]
        files = {**unfinished, name: content}
        yield Case(f"{part} missing or cut", resumed, files, code=0, says="checkpoint-2 is not whole")
    name = "run/checkpoint-2/parts.json"
    for wrong, text in islice(spoilt_json(folder / name), 0, None, 6):
        yield Case(f"parts.json: {wrong}", resumed, {**unfinished, name: text})


def wrong_options(run: dict[str, bytes | str]) -> Iterator[Case]:
    for options in (
        ["--eval-knn", "images/a"],
        ["--eval-knn", "nowhere"],
        ["--eval-knn", "images", "--eval-knn", "images", "--eval-knn", "images"],
        ["--eval-every", "0"],
        ["--from", "nowhere"],
        ["--from", "images"],
        ["--from", "resnet"],
        ["--num-workers", "100000"],
        ["--num-workers", "-1"],
        ["--output", "images"],
        ["--output", "recipe.yaml"],
        ["training.max_steps=1", "--output", "run"],
    ):
        yield Case(f"pretrain {options}", [*PRETRAIN, "out", *options], run, code=2)
    for options in (
        ["--epochs", "0"],
        ["--lr", "nan"],
        ["--lr", "-1"],
        ["--layer-decay", "2"],
        ["--batch-size", "0"],
        ["--crop-scale", "0"],
        ["--flip", "7"],
        ["--drop-path", "1.5"],
        ["--drop-path", "nan"],
        ["--weight-decay", "-1"],
        ["--weight-decay", "nan"],
        ["--seed", "-1"],
        ["--seed", "99999999999999999999"],
        ["--num-workers", "100000"],
        ["--test", "images/a"],
        ["--train", "nowhere"],
        ["--output", "vit"],
        ["--output", "run"],
        ["--model", "dino_vits16"],
    ):
        yield Case(f"finetune {options}", [*FINETUNE, "out", "--model", "vit", *options], run, code=2)
