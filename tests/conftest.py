import os
import sys


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's client reads it

import pytest
import torch
from transformers.models.auto import modeling_auto
from transformers_common import PACKAGE

from modeling_dino import DinoConfig, cli


# The common tests look up by these names what kind of model a class is.
modeling_auto.MODEL_MAPPING_NAMES["dino"] = "DinoModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["dino"] = "DinoForImageClassification"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["dino"] = "DinoBackbone"

collect_ignore = [] if PACKAGE.is_dir() else ["test_transformers_common.py"]

TINY_HEAD = {"projection_dim": 24, "head_hidden_dim": 20, "head_bottleneck_dim": 12}
TINY_BACKBONES = {
    "vit": {
        "backbone": "vit_tiny",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": 32,
    },
    "resnet": {"backbone": "resnet50", "hidden_size": 64, "depths": [1, 2, 1, 1], "image_size": 32},
}


def pytest_report_header():
    if not PACKAGE.is_dir():
        return "transformers' common tests are left out: `make test` fetches them"


def tiny_config(family: str = "vit", **overrides) -> DinoConfig:
    """A small configuration of either family, with the dino head unless told otherwise."""
    return DinoConfig(**{**TINY_BACKBONES[family], **TINY_HEAD, **overrides})


@pytest.fixture(params=sorted(TINY_BACKBONES))
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def one_thread():
    """Many small operations, which several threads slow down, above all where others keep the cores busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def dino(monkeypatch, capsys):
    """Runs the command line; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dino", *map(str, arguments)])
        capsys.readouterr()  # what was printed before
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return stop.value.code, output.out, output.err

    return run
