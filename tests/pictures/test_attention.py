import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.pictures.attention import AttentionSummary, draw_attention
from modeling_dino.pictures.options import AttentionOptions
from modeling_dino.pictures.patch_images import PatchTransform


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TRANSFORM = PatchTransform(8, MEAN, STD, 60)


@pytest.fixture
def folder(tmp_path):
    """A folder with a `photograph.png`."""
    Image.effect_noise((100, 75), 90).convert("RGB").save(tmp_path / "photograph.png")
    return tmp_path


def draw(folder, model: DinoModel, image: str = "photograph.png", **options) -> AttentionSummary:
    model.save_pretrained(folder / "model")
    paths = {"model": folder / "model", "images": folder / image, "output": folder / "out"}
    paths = {name: str(path) for name, path in paths.items()}
    return draw_attention(AttentionOptions(**paths, progress=False, **options))


def attention_of_photograph(folder, model: DinoModel) -> torch.Tensor:
    image = TRANSFORM.crop(Image.open(folder / "photograph.png").convert("RGB"))
    return model.get_cls_attention(TRANSFORM.pixel_values(image))[0].detach()


def test_a_picture_a_head_and_all_over_the_image(folder):
    model = DinoModel(tiny_config()).eval()
    pictures = draw(folder, model, size=60).files
    heads = [f"photograph-head{i}.png" for i in range(4)]
    assert [picture.name for picture in pictures] == [*heads, "photograph-heads.png", "photograph-attention.png"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(p.name for p in pictures)
    # 100 x 75 px, shorter side to 60: 80 x 60, cropped to whole patches of 8: 80 x 56
    assert all(Image.open(picture).size == (80, 56) for picture in pictures[:-1])
    width, height = Image.open(pictures[-1]).size
    assert width > 3 * 80
    assert height > 3 * 56
    attention = attention_of_photograph(folder, model)
    drawn = np.asarray(Image.open(pictures[1])).sum(-1)[::8, ::8]  # brightness rises with attention
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert attention[1, row, column] >= attention[1].quantile(0.98)  # the brightest color is for the last percent


def test_arguments_that_cannot_work_are_refused(folder):
    vit, resnet = DinoModel(tiny_config()), DinoModel(tiny_config("resnet"))
    with pytest.raises(ValueError, match="resnet50 has no attention"):
        draw(folder, resnet)
    with pytest.raises(ValueError, match="vit_tiny has layers 0 to 2"):
        draw(folder, vit, layer=3)
    with pytest.raises(ValueError, match="size=4 must be at least one patch of 8 pixels"):
        draw(folder, vit, size=4)
    with pytest.raises(ValueError, match=r"missing.png is neither a folder, nor an image"):
        draw(folder, vit, "missing.png")
    (folder / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read .*text.png"):
        draw(folder, vit, "text.png")
    assert not (folder / "out").exists()


def test_masks_of_a_share_of_the_attention(folder):
    model = DinoModel(tiny_config()).eval()
    pictures = draw(folder, model, size=60, mass=0.3).files
    assert len(pictures) == 4 + 1 + 4 + 1 + 1
    assert pictures[-1].name == "photograph-attention.png"
    attention = attention_of_photograph(folder, model)[2].double().numpy()
    mask = np.asarray(Image.open(folder / "out" / "photograph-mask2.png"))[::8, ::8] == 255
    assert attention[mask].sum() >= 0.3 * attention.sum()
    assert attention[mask].sum() - attention[mask].min() < 0.3 * attention.sum()
    assert attention[mask].min() >= attention[~mask].max()


def test_attention_that_is_not_finite(folder):
    model = DinoModel(tiny_config())
    torch.nn.init.constant_(model.backbone.blocks[-1].norm1.weight, 3e38)
    with pytest.raises(
        ValueError, match=r"the attention to .* is not finite: the model's weights or its image transform"
    ):
        draw(folder, model)
    assert not (folder / "out").exists()


def test_one_channel(folder):
    pictures = draw(folder, DinoModel(tiny_config(num_channels=1)), size=40).files
    assert len(pictures) == 6
    assert all(Image.open(picture).mode == "RGB" for picture in pictures)


def test_pixel_values():
    image = Image.new("RGB", (3, 2), (255, 0, 128))
    pixel_values = TRANSFORM.pixel_values(image)
    assert pixel_values.shape == (1, 3, 2, 3)
    expected = (torch.tensor([1, 0, 128 / 255]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(pixel_values[0, :, 1, 2], expected)
