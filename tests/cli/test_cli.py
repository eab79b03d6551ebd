from dataclasses import fields, is_dataclass
from inspect import signature

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config

import modeling_dino
from modeling_dino import DinoModel, load_features
from modeling_dino.cli.app import app
from modeling_dino.cli.commands import COMMANDS
from modeling_dino.runtime.options import required_first


NAMES = list(typer.main.get_command(app).commands)
LISTED = ["info", "convert", "export", "extract", "attention", "pca", "match", "segment", "knn", "linear"]
LISTED += ["finetune", "retrieve", "report", "pretrain", "push", "bench", "demo"]


@pytest.fixture
def folder(tmp_path):
    """A folder with `vit`, `resnet` and five `images`."""
    for family in ("vit", "resnet"):
        DinoModel(tiny_config(family, head_type=None)).save_pretrained(tmp_path / family)
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def test_help_lists_the_commands(dino):
    code, out, _ = dino("--help")
    assert code == 0
    assert NAMES == LISTED
    lines = out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines if line[2] != " "] == LISTED
    for command in NAMES:
        assert dino(command, "--help")[0] == 0


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_the_options_of_a_command_are_those_of_one_dataclass(command):
    options = command.options_class
    assert is_dataclass(options)
    assert options.__dataclass_params__.frozen
    parameters = typer.main.get_command(app).commands[command.name].params
    names = {parameter.name for parameter in parameters if parameter.name != "help"}
    assert names == {field.name for field in fields(options) if not field.metadata["python_only"]}
    assert all(parameter.help for parameter in parameters)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_a_command_is_a_public_function_of_the_same_options(command):
    function = getattr(modeling_dino, command.function.rpartition(".")[2])
    assert function is command.load()
    assert (function.options_class, function.command) == (command.options_class, command.name)
    assert list(signature(function).parameters) == [field.name for field in required_first(command.options_class)]
    assert function.__doc__.startswith(command.options_class.summary)
    assert all(f"\n    {field.name}: " in function.__doc__ for field in fields(command.options_class))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("knn --train a --test b --num-workers -1", "--num-workers"),
        ("knn --train a --test b --record", "--record needs the folder of a model"),
        ("retrieve --index a --model me/model --record", "--record needs the folder of a model"),
        ("bench --threads 0", "threads=0 must be at least 1"),
        ("bench --what speed", "unknown benchmark 'speed'"),
        ("demo --seed -1", "seed=-1 must be at least 0"),
        ("report . --clusters 0", "clusters=0 must be at least 1"),
    ],
)
def test_options_that_cannot_work_are_refused(dino, arguments, message):
    code, _, err = dino(*arguments.split())
    assert code == 2
    assert message in err


def test_info(dino, folder):
    for model in ("dino_resnet50", folder / "resnet"):
        code, out, _ = dino("info", model)
        assert code == 0
        assert out.splitlines()[1].startswith(str(model))


def test_extract(dino, folder):
    arguments = ("extract", "--model", folder / "vit", "--output", folder / "out", "--images", folder / "images")
    code, out, err = dino(*arguments, "--features", "cls_patch_mean", "--batch-size", 2, "--dtype", "bfloat16")
    assert code == 0
    assert out.startswith("5 images, ")
    assert "5/5" in err
    assert load_features(folder / "out")["feature"].shape == (5, 64)
    code, out, err = dino(*arguments)
    assert code == 2
    assert "has features of other settings" in err
    (folder / "images" / "3.png").write_text("not an image")
    code, out, err = dino(*arguments, "--overwrite", "--num-workers", 1, "--on-error", "skip")
    assert code == 0
    assert "4 images, 1 skipped" in out
    assert f"skipped {folder / 'images' / '3.png'}: no image in a known format" in err
    code, _, err = dino(*arguments, "--overwrite", "--on-error", "fail")
    assert code == 2
    assert "3.png" in err


def test_attention(dino, folder):
    image = folder / "images" / "0.png"
    code, out, _ = dino(
        "attention", "--model", folder / "vit", "--image", image, "--output", folder / "out", "--size", 64
    )
    assert code == 0
    assert str(folder / "out" / "0-attention.png") in out
    assert len(list((folder / "out").glob("*.png"))) == 6
    assert np.asarray(Image.open(folder / "out" / "0-head3.png")).shape == (64, 80, 3)


def test_report(dino, folder):
    arguments = ("--model", folder / "vit", "--images", folder / "images", "--output", folder / "out")
    assert dino("extract", *arguments, "--features", "cls,patch_mean")[0] == 0
    code, _, err = dino("report", folder / "out")
    assert code == 2
    assert "has several kinds of features, cls, patch_mean: name one with --features" in err
    (folder / "images" / "4.png").unlink()
    code, out, err = dino(
        "report", folder / "out", "--features", "patch_mean", "--k", 2, "--output", folder / "a.html"
    )
    assert code == 0
    assert out.startswith("5 images, 1 without a picture, ")
    assert "no picture of 1: not among the images any more" in err
    assert "differs in paths or sizes" in err
    assert (folder / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info dino_vits15", "unknown preset 'dino_vits15': did you mean dino_vits16"),
        ("info ./nothing", "./nothing is not a folder with a saved model"),
        ("info images", "no config.json in 'images': is a saved model there?"),
        ("extract --model vit --images nothing --output out", "nothing is neither a folder, nor an image"),
        ("extract --model dino_vits8 --images images --output out", "dino_vits8 is a configuration without weights"),
        ("extract --model images --images images --output out", "no config.json in 'images'"),
        ("extract --model vit --images images --output resnet", "resnet holds something other than features"),
        ("extract --model vit --images images --output out --features projection", "has no projection head"),
        ("extract --model vit --images images --output out --dtype half", "unknown dtype 'half'"),
        ("extract --model vit --images images --output out --last-blocks 9", "last_blocks=9 must be between 1 and 3"),
        ("report images", "images holds something other than features of `dino extract`"),
        ("report nothing", "nothing holds something other than features"),
        ("report images --k 0", "k=0 must be between 1 and 90"),
        ("attention --model resnet --image images/0.png --output out", "resnet50 has no attention: use a ViT"),
        ("attention --model vit --image vit --output out", "vit: no images there"),
        ("attention --model vit --image images/0.png --output out --layer 7", "vit_tiny has layers 0 to 2"),
        ("extract --model vit", "Missing option '--images'"),
        ("extract --model vit --images images --output out --nonsense", "No such option"),
        ("nonsense", "No such command 'nonsense'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(dino, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    code, _, err = dino(*arguments.split())
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1
    assert not (folder / "out").exists()


def test_damaged_weights(dino, folder):
    arguments = ("extract", "--model", folder / "vit", "--images", folder / "images", "--output", folder / "out")
    weights = folder / "vit" / "model.safetensors"
    weights.with_name("whole.safetensors").write_bytes(weights.read_bytes())
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = dino(*arguments)
    assert code == 2
    assert "model.safetensors is truncated or damaged" in err
    tensors = load_file(weights.with_name("whole.safetensors"))
    save_file({k: v for k, v in tensors.items() if "norm1" not in k}, weights, metadata={"format": "pt"})
    code, _, err = dino(*arguments)
    assert code == 2
    assert "is not whole: it lacks backbone.blocks.0.norm1.bias and 5 more" in err
    weights.unlink()
    code, _, err = dino(*arguments)
    assert code == 2
    assert "no model.safetensors in" in err
