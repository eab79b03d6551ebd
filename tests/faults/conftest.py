from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_commands import ForkedCommands
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Iterator[ForkedCommands]:
    forked = ForkedCommands(tmp_path_factory.mktemp("logs"))
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def healthy(tmp_path_factory, commands) -> Path:
    """
    The folder that is copied for each case.

    vit/, resnet/           tiny models
    images/{a,b}/*.png      three images in each of two classes
    features/               features of these images, of vit
    """
    folder = tmp_path_factory.mktemp("healthy")
    torch.manual_seed(0)
    for family in ("vit", "resnet"):
        DinoModel(tiny_config(family)).save_pretrained(folder / family)
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((40, 36), 90).convert("RGB").save(folder / "images" / label / f"{i}.png")
    done = commands("extract", "--model", "vit", "--images", "images", "--output", "features", folder=folder)
    assert done.code == 0, done.err
    return folder
