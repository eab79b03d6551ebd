import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_images import coloured_images
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_config
from transformers import TrainerCallback

from modeling_dino import DinoForImageClassification, DinoImageProcessor, DinoModel
from modeling_dino.training import finetune as module
from modeling_dino.training.finetune import decayed_groups, finetune
from modeling_dino.training.optimization import layer_of
from modeling_dino.training.options import FinetuneOptions


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model`, and `train` and `test` with images of three classes."""
    return coloured_images(tmp_path_factory.mktemp("finetune"))


def run(folder, output, **options):
    places = {name: str(folder / name) for name in ("train", "test", "model")}
    defaults = {"epochs": 3, "batch_size": 6, "learning_rate": 1e-3, "num_workers": 0}
    return finetune(FinetuneOptions(**places, output=str(output), **{**defaults, **options}))


def test_layers():
    """Embedding, blocks or stages, and what comes after them."""
    vit, resnet = (DinoForImageClassification(tiny_config(family)) for family in ("vit", "resnet"))
    found = {name: layer_of(name, vit.config) for name, _ in vit.named_parameters()}
    assert {name.split(".")[1] for name, layer in found.items() if layer == 0} == {
        "cls_token",
        "pos_embed",
        "patch_embed",
    }
    assert {layer for name, layer in found.items() if "blocks.1." in name} == {2}
    assert {name for name, layer in found.items() if layer == 4} == {
        "backbone.norm.weight",
        "backbone.norm.bias",
        "classifier.weight",
        "classifier.bias",
    }
    found = {name: layer_of(name, resnet.config) for name, _ in resnet.named_parameters()}
    assert {name.split(".")[1] for name, layer in found.items() if layer == 0} == {"conv1", "bn1"}
    assert {layer for name, layer in found.items() if "layer3." in name} == {3}
    assert {name for name, layer in found.items() if layer == 5} == {"classifier.weight", "classifier.bias"}


def test_learning_rates_fall_by_layer(family):
    model = DinoForImageClassification(tiny_config(family))
    groups = decayed_groups(model, 1.0, 0.5)
    rates = {id(p): (group["lr"], group.get("weight_decay")) for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    last = model.config.num_hidden_layers + 1
    for name, parameter in model.named_parameters():
        rate, decay = rates[id(parameter)]
        assert rate == 0.5 ** (last - layer_of(name, model.config))
        assert decay == (0.0 if parameter.ndim == 1 else None)


def test_the_first_step_moves_each_layer_by_its_rate(tmp_path, folder, monkeypatch):
    """Adam's first step is the learning rate in each coordinate, if there is neither decay nor warm-up."""
    before = DinoModel.from_pretrained(folder / "model").backbone.state_dict()
    run(folder, tmp_path / "run", epochs=1, batch_size=12, warmup=0, weight_decay=0, layer_decay=0.1, drop_path_rate=0)
    after = DinoForImageClassification.from_pretrained(tmp_path / "run").backbone.state_dict()
    for name, layer in (
        ("patch_embed.proj.weight", 0),
        ("blocks.0.mlp.fc1.weight", 1),
        ("blocks.2.mlp.fc1.weight", 3),
    ):
        moved = (after[name] - before[name]).abs().median().item()
        assert moved == pytest.approx(1e-3 * 0.1 ** (4 - layer), rel=0.02)


def test_the_command_line(tmp_path, family, dino):
    folder = coloured_images(tmp_path, family=family)
    arguments = ("--train", folder / "train", "--test", folder / "test", "--model", folder / "model")
    code, out, err = dino(
        "finetune", *arguments, "--output", tmp_path / "run", "--epochs", 2, "--batch-size", 6, "--dataset", "colours"
    )
    assert code == 0, err
    model = DinoForImageClassification.from_pretrained(tmp_path / "run").eval()
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    processor, right = DinoImageProcessor.from_pretrained(tmp_path / "run"), 0
    for file in (folder / "test").glob("*/*.png"):
        logits = model(**processor(Image.open(file), return_tensors="pt")).logits
        right += model.config.id2label[logits.argmax().item()] == file.parent.name
    assert f"fine-tuned: top-1 {100 * right / 12:.2f} %, top-5 100.00 %" in out
    top1, _ = json.loads((tmp_path / "run" / "evaluation_results.json").read_text())
    assert (top1["dataset"], top1["metric_name"]) == ("colours", "fine-tuned top-1")
    assert top1["value"] == pytest.approx(100 * right / 12, abs=1e-4)


class Stop(TrainerCallback):
    """Ends a run as a killed process does, after its second epoch was saved."""

    def on_save(self, args, state, control, **kwargs):
        if state.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_end(tmp_path, folder, monkeypatch):
    whole = run(folder, tmp_path / "whole")
    make_trainer = module.make_trainer

    def stopped(*arguments):
        trainer = make_trainer(*arguments)
        trainer.add_callback(Stop())
        return trainer

    monkeypatch.setattr(module, "make_trainer", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    resumed = run(folder, tmp_path / "stopped")
    assert (resumed.top1, resumed.top5) == (whole.top1, whole.top5)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(ValueError, match=r"has a run of other settings, .*seed: 0 -> 1"):
        run(folder, tmp_path / "stopped", seed=1)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(tmp_path, folder, messages):
    run(folder, tmp_path / "run", epochs=2)
    run(folder, tmp_path / "run", epochs=4)
    wanted = "goes on from step 4, to 8 steps; from there on its learning rate is that of 8 steps"
    assert any(wanted in message for message in messages())  # transformers has remarks of its own
    state = torch.load(tmp_path / "run" / "checkpoint-8" / "scheduler.pt")
    assert state["last_epoch"] == 8
    for epochs in (1, 3):
        with pytest.raises(ValueError, match=rf"has done 8 steps, more than the {2 * epochs} that are asked for"):
            run(folder, tmp_path / "run", epochs=epochs)


@pytest.mark.slow
def test_from_the_step_on_the_rates_are_those_of_the_longer_run(tmp_path, folder, monkeypatch):
    rates = {}

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.setdefault(name, {})[state.global_step] = [group["lr"] for group in optimizer.param_groups]

    make_trainer = module.make_trainer

    def watched(*arguments):
        trainer = make_trainer(*arguments)
        trainer.add_callback(Rates())
        return trainer

    monkeypatch.setattr(module, "make_trainer", watched)
    for name, epochs in (("run", (1, 3)), ("long", (3,))):
        for count in epochs:
            run(folder, tmp_path / name, epochs=count)
    assert {step: rates["run"][step] for step in (2, 3, 4, 5)} == {step: rates["long"][step] for step in (2, 3, 4, 5)}
    assert rates["run"][1] != rates["long"][1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--train", "plain"], "plain have no labels"),
        (["--test", "plain"], "plain have no labels"),
        (["--train", "lonely"], "lonely have the label 'a': two classes are needed"),
        (["--test", "lonely"], "lonely, such as 'a', is among those of"),
        (["--test", "broken"], "none of the images of {folder}/broken can be read"),
        (["--train", "broken"], "none of the images of {folder}/broken can be read"),
        (["--model", "poisoned"], "weights that are infinite or not numbers"),
        (["--lr", "0"], "learning_rate=0.0 must be greater than 0"),
        (["--layer-decay", "1.5"], "layer_decay=1.5 must be greater than 0 and at most 1"),
        (["--flip", "2"], "flip_probability=2.0 must be between 0 and 1"),
        (["--output", "model"], "choose another folder"),
    ],
)
def test_what_a_user_can_do_wrong_is_one_line(folder, dino, arguments, says):
    if not (folder / "lonely").is_dir():
        shutil.copytree(folder / "train" / "red", folder / "lonely" / "a")
        for file in Path(shutil.copytree(folder / "train", folder / "broken")).glob("*/*.png"):
            file.write_bytes(b"no image")
        model = DinoModel.from_pretrained(folder / "model")
        model.backbone.norm.bias.data[0] = float("nan")
        model.save_pretrained(folder / "poisoned")
    named = {"--train": "train", "--test": "test", "--model": "model", "--output": "out"}
    named |= dict(zip(arguments[::2], arguments[1::2]))
    places = ("--train", "--test", "--model", "--output")
    code, _, err = dino("finetune", *(x for k, v in named.items() for x in (k, folder / v if k in places else v)))
    assert code == 2
    assert says.format(folder=folder) in err.splitlines()[-1]
    assert not (folder / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_cannot_be_read_and_classes_that_were_not_learned_are_named(tmp_path, folder, dino, num_workers):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in ("train/red/0.png", "test/red/0.png", "test/blue/3.png"):
        (copy / name).write_bytes(b"no image")
    shutil.copytree(copy / "test" / "green", copy / "test" / "violet")
    places = [x for name in ("train", "test", "model") for x in (f"--{name}", copy / name)]
    code, out, err = dino(
        "finetune", *places, "--output", copy / "run", "--epochs", 2, "--batch-size", 6, "--num-workers", num_workers
    )
    assert code == 0, err
    for name in ("train/red/0.png", "test/red/0.png", "test/blue/3.png"):
        assert f"skipped {copy / name}: no image in a known format" in err
    assert "14 images classified\n4 of them have a class that no training image has, and count as wrong\n" in out
    model = DinoForImageClassification.from_pretrained(copy / "run").eval()
    processor, right = DinoImageProcessor.from_pretrained(copy / "run"), 0
    for file in (copy / "test").glob("*/*.png"):
        if file.read_bytes() != b"no image":
            logits = model(**processor(Image.open(file), return_tensors="pt")).logits
            right += model.config.id2label[logits.argmax().item()] == file.parent.name
    assert f"top-1 {100 * right / 14:.2f} %" in out


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_it(tmp_path, folder, dino):
    places = [x for name in ("train", "test", "model") for x in (f"--{name}", folder / name)]
    code, _, err = dino("finetune", *places, "--output", tmp_path / "run", "--epochs", 30, "--lr", 1e30)
    assert code == 2
    assert re.search(r"dino: the (loss|norm of the gradient) is (nan|inf) at step \d+: lower learning_rate", err)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_transform_is_that_of_the_model(tmp_path, folder):
    model = DinoModel.from_pretrained(folder / "model")
    model.image_transform = {**model.image_transform, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    copy = shutil.copytree(folder, tmp_path / "copy")
    model.save_pretrained(copy / "model")
    run(copy, copy / "run", epochs=1)
    transform = json.loads((copy / "run" / "preprocessor_config.json").read_text())
    assert (transform["image_mean"], transform["image_std"]) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_saved_is_gone_on_from(tmp_path, folder):
    """As far as a limit on the size of files is one."""
    whole, full = (run(folder, tmp_path / name) and tmp_path / name for name in ("whole", "full"))
    for path in (full / "checkpoint-6", full / "model.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    facts = json.loads((full / "run.json").read_text())
    (full / "run.json").write_text(json.dumps({**facts, "complete": False}))
    places = [x for name in ("train", "test", "model") for x in (f"--{name}", str(folder / name))]
    options = ["--epochs", "3", "--batch-size", "6", "--lr", "1e-3", "--num-workers", "0"]
    code = f"""
import resource, sys, torch
from modeling_dino import cli
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
sys.argv = ["dino", "finetune", *{[*places, *options]!r}, "--output", {str(full)!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dino: ")]
    assert f"cannot write to {full}" in line
    assert f"run it again: it goes on from {full / 'checkpoint-4'}" in line
    assert "Traceback" not in done.stderr
    run(folder, full)
    assert (full / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
