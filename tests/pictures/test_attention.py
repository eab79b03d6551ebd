import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.pictures.attention import draw_attention
from modeling_dino.pictures.patch_images import crop_to_patches, to_pixel_values


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def photograph(tmp_path) -> str:
    Image.effect_noise((100, 75), 90).convert("RGB").save(tmp_path / "photograph.png")
    return str(tmp_path / "photograph.png")


def test_a_picture_a_head_and_all_over_the_image(tmp_path, photograph):
    model = DinoModel(tiny_config()).eval()
    pictures = draw_attention(model, photograph, tmp_path / "out", MEAN, STD, size=60)
    heads = [f"photograph-head{i}.png" for i in range(4)]
    assert [picture.name for picture in pictures] == [*heads, "photograph-heads.png", "photograph-attention.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(p.name for p in pictures)
    # 100 x 75 px, shorter side to 60: 80 x 60, cropped to whole patches of 8: 80 x 56
    assert all(Image.open(picture).size == (80, 56) for picture in pictures[:-1])
    width, height = Image.open(pictures[-1]).size
    assert width > 3 * 80
    assert height > 3 * 56
    image = crop_to_patches(Image.open(photograph).convert("RGB"), 60, 8)
    attention = model.get_cls_attention(to_pixel_values(image, MEAN, STD))[0]
    drawn = np.asarray(Image.open(pictures[1])).sum(-1)[::8, ::8]  # brightness rises with attention
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert attention[1, row, column] == attention[1].max()


def test_arguments_that_cannot_work_are_refused(tmp_path, photograph):
    vit, resnet = DinoModel(tiny_config()).eval(), DinoModel(tiny_config("resnet")).eval()
    with pytest.raises(ValueError, match="resnet50 has no attention"):
        draw_attention(resnet, photograph, tmp_path / "out", MEAN, STD)
    with pytest.raises(ValueError, match="vit_tiny has layers 0 to 2"):
        draw_attention(vit, photograph, tmp_path / "out", MEAN, STD, layer=3)
    with pytest.raises(ValueError, match="size=4 must be at least one patch of 8 pixels"):
        draw_attention(vit, photograph, tmp_path / "out", MEAN, STD, size=4)
    with pytest.raises(ValueError, match=r"cannot read .*missing.png"):
        draw_attention(vit, tmp_path / "missing.png", tmp_path / "out", MEAN, STD)
    assert not (tmp_path / "out").exists()


def test_masks_of_a_share_of_the_attention(tmp_path, photograph):
    model = DinoModel(tiny_config()).eval()
    pictures = draw_attention(model, photograph, tmp_path / "out", MEAN, STD, size=60, mass=0.3)
    assert len(pictures) == 4 + 1 + 4 + 1 + 1
    assert pictures[-1].name == "photograph-attention.png"
    image = crop_to_patches(Image.open(photograph).convert("RGB"), 60, 8)
    attention = model.get_cls_attention(to_pixel_values(image, MEAN, STD))[0, 2].detach().double().numpy()
    mask = np.asarray(Image.open(tmp_path / "out" / "photograph-mask2.png"))[::8, ::8] == 255
    assert attention[mask].sum() >= 0.3 * attention.sum()
    assert attention[mask].sum() - attention[mask].min() < 0.3 * attention.sum()
    assert attention[mask].min() >= attention[~mask].max()


def test_weights_that_are_not_finite(tmp_path, photograph):
    model = DinoModel(tiny_config()).eval()
    torch.nn.init.constant_(model.backbone.blocks[-1].norm1.weight, torch.nan)
    with pytest.raises(ValueError, match=r"the attention is not finite: are the model's weights\?"):
        draw_attention(model, photograph, tmp_path / "out", MEAN, STD)
    assert not (tmp_path / "out").exists()


def test_one_channel(tmp_path, photograph):
    model = DinoModel(tiny_config(num_channels=1)).eval()
    pictures = draw_attention(model, photograph, tmp_path / "out", [0.45], [0.22], size=40)
    assert len(pictures) == 6
    assert all(Image.open(picture).mode == "RGB" for picture in pictures)


def test_pixel_values():
    image = Image.new("RGB", (3, 2), (255, 0, 128))
    pixel_values = to_pixel_values(image, MEAN, STD)
    assert pixel_values.shape == (1, 3, 2, 3)
    expected = (torch.tensor([1, 0, 128 / 255]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(pixel_values[0, :, 1, 2], expected)
