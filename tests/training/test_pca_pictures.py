"""The picture of a run's principal components: a column for each evaluation, also of a run that is resumed."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoForPreTraining
from modeling_dino.training import pca_pictures
from modeling_dino.training.pca_pictures import NUM_IMAGES, TILE, PcaPictures
from modeling_dino.training.training_data import UnreadableImage


class Images(list):
    """Of which the first cannot be read."""

    def __getitem__(self, index):
        if index == 0:
            raise UnreadableImage("first: broken")
        return super().__getitem__(index)


def images() -> Images:
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (5, 6, 6, 3), dtype=torch.uint8)
    return Images(Image.fromarray(pixels.numpy()).resize((40, 50)) for pixels in noise)


def evaluate(pictures: PcaPictures, model: DinoForPreTraining, *steps: int):
    for step in steps:
        state = SimpleNamespace(global_step=step, epoch=step / 2, is_world_process_zero=True)
        pictures.on_evaluate(None, state, None, model=model)


def columns(path) -> tuple[list[int], list[bytes]]:
    with Image.open(path) as picture:
        picture.load()
        steps, width = [int(step) for step in picture.info["steps"].split()], picture.width // (TILE + 16)
        tiles = [
            picture.crop((i * (TILE + 16), 0, (i + 1) * (TILE + 16), picture.height)).tobytes() for i in range(width)
        ]
    assert len(tiles) == 1 + len(steps)
    assert picture.height > NUM_IMAGES * TILE
    return steps, tiles


@pytest.mark.parametrize("family", ["vit", "resnet", "xcit", "convnext"])
def test_a_run_that_is_resumed_leaves_the_same_picture(tmp_path, one_thread, family):
    torch.manual_seed(0)
    model = DinoForPreTraining(tiny_config(family, image_size=64)).eval()
    whole, stopped = (PcaPictures(images(), tmp_path / f"{name}.png") for name in ("whole", "stopped"))
    evaluate(whole, model, 0, 2, 4, 6)
    evaluate(stopped, model, 0, 2)
    with torch.no_grad():
        first = next(model.teacher.backbone.parameters())
        first.neg_()
        evaluate(stopped, model, 4, 5)  # which a resumed run makes anew
        first.neg_()
    evaluate(PcaPictures(images(), tmp_path / "stopped.png"), model, 4, 6)
    assert columns(tmp_path / "whole.png")[0] == [0, 2, 4, 6]
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "stopped.png").read_bytes()
    tiles = columns(tmp_path / "whole.png")[1]
    assert tiles[0] != tiles[1]


def test_no_picture_of_a_single_patch_or_no_image(tmp_path, one_thread):
    model = DinoForPreTraining(tiny_config(image_size=8)).eval()
    evaluate(PcaPictures(images(), tmp_path / "pca.png"), model, 0)
    evaluate(PcaPictures(images()[:0], tmp_path / "pca.png"), DinoForPreTraining(tiny_config()).eval(), 0)
    assert not (tmp_path / "pca.png").exists()


def test_a_collapsed_model_is_black(tmp_path, one_thread):
    model = DinoForPreTraining(tiny_config()).eval()
    with torch.no_grad():
        model.teacher.backbone.norm.weight.zero_()
    evaluate(PcaPictures(images(), tmp_path / "pca.png"), model, 0)
    with Image.open(tmp_path / "pca.png") as picture:
        assert picture.convert("RGB").getpixel((TILE + 16 + 60, 80)) == (0, 0, 0)


def test_a_broken_model_is_painted_black_and_the_last_columns_are_kept(tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(pca_pictures, "MOST_COLUMNS", 3)
    model = DinoForPreTraining(tiny_config(image_size=64)).eval()
    pictures = PcaPictures(images(), tmp_path / "run.png")
    evaluate(pictures, model, 0, 1, 2)
    before = columns(tmp_path / "run.png")[1]
    for parameter in model.teacher.parameters():
        parameter.data.fill_(torch.nan)
    evaluate(pictures, model, 3)
    steps, tiles = columns(tmp_path / "run.png")
    assert steps == [1, 2, 3]
    assert tiles[:3] == [before[0], *before[2:]]
