"""Every command of `dino` on every kind of backbone."""

import shutil

import pytest
import torch
from clips import save_clip
from evaluation_images import coloured_images
from tiny_models import ALL_BACKBONES, shallow_config

from modeling_dino import DinoModel
from modeling_dino.cli.commands import COMMANDS


pytestmark = pytest.mark.usefixtures("one_thread")

SETS = "--model model --train train --test test --num-workers 0"
CALLS = {
    "info": "info model",
    "convert": "convert model converted --to {library}",
    "export": "export model exported --outputs features",
    "extract": "extract --model model --images train --output features --num-workers 0",
    "attention": "attention --model model --image plain/test-red-0.png --output attention --size 32",
    "pca": "pca --model model --images test --output pca --size 32",
    "match": "match plain/test-red-0.png plain/test-red-1.png --model model --output matches.png --size 32",
    "segment": "segment --model model --video video.mp4 --mask mask.png --output segments --size 32",
    "knn": f"knn {SETS} --k 3",
    "linear": f"linear {SETS} --epochs 1",
    "finetune": f"finetune {SETS} --epochs 1 --batch-size 4 --output finetuned",
    "retrieve": "retrieve --index features --queries features --output found.csv",
    "report": "report features --output report.html --k 3 --num-workers 0",
    "pretrain": "pretrain recipe.yaml --from model --data plain --output run --num-workers 0",
    "bench": "bench --models model --what features --batch-size 1 --rounds 1",
}
RECIPE = """
batch_size: 4
model: {projection_dim: auto, drop_path_rate: 0.1}
crops: {global_crop_size: 64, local_crop_size: 32, num_local_crops: 1}
training: {max_steps: 2, warmup_epochs: 0, disable_tqdm: true}
"""
# to which a tiny model is converted; that of others is timm
LIBRARIES = {"resnet": "torchvision", "convnext": "transformers", "dinov3": "original"}
NOT_OF_STAGES = {"attention": "has no attention"}
NOT_OF_STAGES |= dict.fromkeys(("pca", "match", "segment"), "has no patch tokens")


@pytest.fixture(scope="module", params=ALL_BACKBONES)
def made(request, tmp_path_factory):
    """A kind, and a folder with a `model` of it and what else the commands need."""
    folder = coloured_images(tmp_path_factory.mktemp(request.param))
    shutil.rmtree(folder / "model")
    torch.manual_seed(0)
    DinoModel(shallow_config(request.param, num_layers=2)).save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    save_clip(folder, num_frames=2)
    return request.param, folder


@pytest.mark.parametrize("command", [command.name for command in COMMANDS if command.name not in ("push", "demo")])
def test_a_command(dino, made, monkeypatch, command):
    kind, folder = made
    monkeypatch.chdir(folder)
    if command in ("retrieve", "report") and not (folder / "features").exists():
        assert dino(*CALLS["extract"].split())[0] == 0
    code, out, err = dino(*CALLS[command].format(library=LIBRARIES.get(kind, "timm")).split())
    if kind in ("resnet", "convnext") and command in NOT_OF_STAGES:
        assert (code, NOT_OF_STAGES[command] in err) == (2, True), err
    else:
        assert (code, bool(out)) == (0, True), err
