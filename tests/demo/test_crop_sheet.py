import numpy as np
import pytest
from PIL import Image

from modeling_dino.demo.crop_sheet import CELL, GAP, HEADING, draw_crop_sheet, picture_of
from modeling_dino.training.multi_crop import MultiCrop, MultiCropConfig
from modeling_dino.training.training_data import MultiCropDataset


@pytest.fixture
def dataset():
    """Two images of one colour each, and crops that leave them as they are."""
    images = [Image.new("RGB", (40, 40), color) for color in ("#ff0000", "#0040c0")]
    crops = MultiCropConfig(
        num_local_crops=1,
        global_crop_size=32,
        local_crop_size=16,
        jitter_probability=0.0,
        grey_probability=0.0,
        global_solarize_probability=(0.0,),
    )
    return MultiCropDataset(images, MultiCrop(crops))


def test_each_crop_is_in_its_place_at_its_size(dataset, tmp_path):
    draw_crop_sheet(dataset, [1, 0], tmp_path / "crops.png")
    sheet = np.asarray(Image.open(tmp_path / "crops.png").convert("RGB"))
    for row, color in enumerate([(0, 64, 192), (255, 0, 0)]):
        top = HEADING + GAP + row * (CELL + GAP)
        for column, side in enumerate([CELL, CELL, CELL, CELL // 2]):
            left = GAP + column * (CELL + GAP)
            assert (sheet[top : top + side, left : left + side] == color).all()
            assert (sheet[top : top + CELL, left + side : left + CELL + GAP] == 255).all()
            assert (sheet[top + side : top + CELL + GAP, left : left + side] == 255).all()


def test_a_crop_is_shown_as_it_was_before_it_was_normalised(dataset):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (crop,) = dataset.multi_crop._pixel_values([image])
    assert np.array_equal(np.asarray(picture_of(crop, dataset)), np.asarray(image))


def test_a_file_of_something_else_is_kept(dataset, tmp_path):
    (tmp_path / "crops.png").write_text("mine")
    with pytest.raises(ValueError, match=r"crops\.png"):
        draw_crop_sheet(dataset, [0], tmp_path / "crops.png")
    assert (tmp_path / "crops.png").read_text() == "mine"
