import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dino.evaluation.mask_files import Mask, davis_palette, read_mask, write_mask


def objects(*numbers: int) -> torch.Tensor:
    """Each number in a row of its own, above the background."""
    mask = torch.zeros(6, 8, dtype=torch.uint8)
    for row, number in enumerate(numbers):
        mask[row, 2:5] = number
    return mask


def test_palettes_are_kept(tmp_path):
    palette = [value % 256 for value in range(7, 7 + 768)]
    write_mask(Mask(objects(1, 7, 3), palette), tmp_path / "sub" / "mask.png")
    with Image.open(tmp_path / "sub" / "mask.png") as image:
        assert (image.mode, image.getpalette()) == ("P", palette)
    mask = read_mask(tmp_path / "sub" / "mask.png")
    assert torch.equal(mask.objects, objects(1, 7, 3))
    assert mask.palette == palette
    assert mask.numbers == [1, 3, 7]
    write_mask(Mask(objects(1, 2)), tmp_path / "mask.png")  # a palette where there was none
    with Image.open(tmp_path / "mask.png") as image:
        assert image.convert("RGB").getpixel((2, 1)) == (0, 128, 0)


def test_the_palette_is_davis():
    # the first twelve colors of a mask of DAVIS 2017
    colors = ["000", "800", "080", "880", "008", "808", "088", "888", "400", "c00", "480", "c80"]
    expected = [{"0": 0, "4": 64, "8": 128, "c": 192}[digit] for color in colors for digit in color]
    assert davis_palette()[:36] == expected
    assert len(davis_palette()) == 768


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white_is_one_object(tmp_path, mode):
    Image.fromarray((objects(1, 1).numpy() * 255).astype(np.uint8)).convert(mode).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png").objects, objects(1, 1))


def test_grey_levels_are_numbers_and_255_is_nobodys(tmp_path):
    Image.fromarray(objects(2, 255, 9).numpy()).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png").objects, objects(2, 0, 9))


def test_what_is_no_mask_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "color.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"color.png has mode RGB: a mask is a palette or grey image"):
        read_mask(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"cannot read .*text.png: no image in a known format"):
        read_mask(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"cannot read .*missing.png: no such file"):
        read_mask(tmp_path / "missing.png")
    write_mask(Mask(objects(1)), tmp_path / "mask.png")
    (tmp_path / "mask.png").write_bytes((tmp_path / "mask.png").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read .*mask.png: "):
        read_mask(tmp_path / "mask.png")
