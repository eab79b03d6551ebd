import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dino.pictures.attention_pictures import (
    attention_pictures,
    mass_masks,
    share_of_less,
    stretch,
)
from modeling_dino.pictures.patch_images import even_hues


def original_masks(attention: torch.Tensor, mass: float) -> torch.Tensor:
    """From the definition, patch by patch: what is left when no patch more can be taken away, the least first."""
    masks = torch.ones_like(attention, dtype=torch.bool)
    for head, mask in zip(attention.double().flatten(1), masks.view(len(masks), -1)):
        for patch in head.argsort():
            mask[patch] = False
            if head[mask].sum() < mass * head.sum():
                mask[patch] = True
                break
    return masks


@pytest.mark.parametrize(
    ("mass", "expected"),
    [(0.3, [[0, 1, 0, 0]]), (0.4, [[0, 1, 0, 0]]), (0.5, [[0, 1, 1, 0]]), (0.8, [[1, 1, 1, 0]]), (1, [[1, 1, 1, 1]])],
)
def test_masks_by_hand(mass, expected):
    attention = torch.tensor([2.0, 4.25, 3.0, 0.75]).view(1, 2, 2)
    assert mass_masks(attention, mass).int().flatten(1).tolist() == expected


def test_a_set_that_holds_exactly_the_share_is_enough():
    assert mass_masks(torch.tensor([[[2.0, 4.0, 1.0, 1.0]]]), 0.75).int().tolist() == [[[1, 1, 0, 0]]]


@pytest.mark.parametrize("mass", [0.01, 0.3, 0.6, 0.95, 1.0])
def test_masks_by_definition(mass):
    attention = torch.randn(4, 9, 7).mul(2).flatten(1).softmax(1).view(4, 9, 7)
    masks = mass_masks(attention, mass)
    assert torch.equal(masks, original_masks(attention, mass))
    # whatever the rest of the attention is, which goes to the CLS token
    assert torch.equal(mass_masks(attention * 0.25, mass), masks)
    held = (attention.double() * masks).sum((1, 2)) / attention.double().sum((1, 2))
    assert (held >= mass - 1e-12).all()


def one_patch_each(num_heads: int = 3) -> torch.Tensor:
    """Each head attends to another patch of 2 x 3."""
    attention = torch.full((num_heads, 2, 3), 0.01)
    for head in range(num_heads):
        attention[head].view(-1)[head] = 0.9
    return attention


def test_each_head_has_its_color():
    image = Image.new("RGB", (48, 32), "white")
    pictures = attention_pictures(image, one_patch_each(), 16, mass=0.5)
    heads = [f"head{i}" for i in range(3)]
    masks = [f"mask{i}" for i in range(3)]
    assert list(pictures) == [*heads, "heads", *masks, "masks", "attention"]
    assert all(picture.size == (48, 32) for name, picture in pictures.items() if name != "attention")
    colors = even_hues(3) * 255
    for head in range(3):
        place = (8 + 16 * head, 8)  # the middle of its patch
        np.testing.assert_allclose(pictures["heads"].getpixel(place), colors[head], atol=12)
        blended = 0.6 * colors[head] + 0.4 * 255  # over white, which stays white in grey
        np.testing.assert_allclose(pictures["masks"].getpixel(place), blended, atol=1)
        assert np.array(pictures[f"mask{head}"]).sum() == 255 * 16 * 16
        assert pictures[f"mask{head}"].getpixel(place) == 255
    assert pictures["masks"].getpixel((8, 24)) == (255, 255, 255)  # in no mask
    grey = pictures["heads"].getpixel((47, 31))  # attended to by none
    assert max(grey) - min(grey) < 2


def test_a_broad_head_does_not_hide_a_narrow_one():
    """Head 0 attends to all patches alike but one; head 1 to the first most, with less than head 0 there."""
    attention = torch.tensor([[4.0, 4, 4, 4, 4, 1], [1.0, 0, 0, 0, 0, 0.01]]).view(2, 2, 3) / 100
    heads = attention_pictures(Image.new("RGB", (48, 32), "white"), attention, 16)["heads"]
    red, cyan = (even_hues(2) * 255).int().tolist()
    np.testing.assert_allclose(heads.getpixel((8, 8)), cyan, atol=12)
    np.testing.assert_allclose(heads.getpixel((24, 24)), red, atol=12)


def test_the_share_of_what_a_head_attends_to_less_by_hand():
    attention = torch.tensor([[1.0, 2, 2, 5], [0.1, 0.1, 0.1, 0.1]]).view(2, 2, 2)
    expected = torch.tensor([[0, 0.2, 0.2, 1], [0, 0, 0, 0]]).view(2, 2, 2)
    torch.testing.assert_close(share_of_less(attention), expected)


def test_a_few_patches_do_not_take_all_of_the_color_map():
    attention = torch.linspace(0, 1, 400).view(1, 20, 20).clone()
    attention[0, 0, 0] = 1000
    values = stretch(attention)
    assert values.max() == 1
    torch.testing.assert_close(values[0, 10], attention[0, 10], rtol=0.02, atol=0)


def test_a_grey_image_and_a_flat_map():
    pictures = attention_pictures(Image.new("L", (32, 32), 128), torch.full((2, 2, 2), 0.25), 16, mass=0.6)
    assert pictures["heads"].mode == pictures["masks"].mode == pictures["attention"].mode == "RGB"
    assert np.isfinite(np.array(pictures["attention"])).all()
    # three of four equal patches hold 60 %
    assert np.array(pictures["mask0"]).sum() == 255 * 16 * 16 * 3
