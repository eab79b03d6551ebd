import json

import numpy as np
import pytest
import torch
from photographs import save_variants
from PIL import Image
from processes import run_python
from tiny_models import tiny_config
from torchvision import transforms
from transformers import AutoImageProcessor

from modeling_dino import DinoImageProcessor, DinoModel
from modeling_dino.data.evaluation_transform import ImageTransform
from modeling_dino.hub.loading import load_image_processor


TRANSPARENT = ("rgba.png", "palette-transparent.gif")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def originals_transform(image_size: int) -> transforms.Compose:
    """The evaluation transform of the original, in torchvision's words, on PIL images."""
    return transforms.Compose(
        [
            transforms.Resize(image_size * 256 // 224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def to_pixels(normalised: torch.Tensor) -> torch.Tensor:
    """Back to [0, 255], in double precision."""
    std, mean = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (STD, MEAN))
    return (normalised.double() * std + mean) * 255


def compare(processor, file, image_size: int) -> tuple[torch.Tensor, bool]:
    """Differences in grey levels, and whether transformers crops or converts an image like this differently."""
    with Image.open(file) as image:
        expected = originals_transform(image_size)(image.convert("RGB"))
        pixel_values = processor(image, return_tensors="pt")["pixel_values"][0]
        resized = [side * (image_size * 256 // 224) // min(image.size) for side in image.size]
    assert pixel_values.shape == (3, image_size, image_size)
    differs = any((side - image_size) % 4 == 3 for side in resized) or file.name in TRANSPARENT
    return (to_pixels(pixel_values) - to_pixels(expected)).abs(), differs


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [224, 96, 32])
def test_ours_equals_the_originals_transform_exactly(tmp_path, image_size):
    DinoModel(tiny_config(image_size=image_size)).save_pretrained(tmp_path / "model")
    processor = DinoImageProcessor.from_pretrained(tmp_path / "model")
    files = save_variants(tmp_path / "photographs")
    assert len(files) == 20
    for file in files:
        difference, _ = compare(processor, file, image_size)
        assert difference.max() < 1e-4, file  # rounding of float32


def test_grey_levels_looked_up_are_the_images_bit_for_bit(tmp_path):
    """What the workers of `dino extract` hand over: crops in 8 bits, for any number of channels."""
    for num_channels, mode in ((3, "RGB"), (1, "L")):
        config = tiny_config(num_channels=num_channels)
        DinoModel(config).save_pretrained(tmp_path / mode)
        processor = load_image_processor(str(tmp_path / mode), config)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 75, 3), np.uint8)).convert(mode)
        transform = ImageTransform(processor, num_channels)
        crop = transform(image)
        assert crop.dtype == torch.uint8
        looked_up = transform.normalize(crop[None])
        assert torch.equal(looked_up, processor(image, return_tensors="pt")["pixel_values"])


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [224, 37])
def test_images_that_are_not_cropped_are_resized_as_the_original_does(tmp_path, image_size):
    """By its retrieval (Pillow's thumbnail, which does not enlarge) and its copy detection (squashed to squares)."""
    model = DinoModel(tiny_config())
    model.save_pretrained(tmp_path / "model")
    processors = {
        resize: load_image_processor(str(tmp_path / "model"), model.config, resize, image_size)
        for resize in ("whole", "square", "crop")
    }
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    square = transforms.Resize((image_size, image_size), interpolation=transforms.InterpolationMode.BICUBIC)
    for file in save_variants(tmp_path / "photographs"):
        with Image.open(file) as image:
            whole = image.convert("RGB")
            whole.thumbnail((image_size, image_size), Image.Resampling.LANCZOS)
            expected = {
                "whole": normalise(whole),
                "square": normalise(square(image.convert("RGB"))),
                "crop": originals_transform(image_size)(image.convert("RGB")),
            }
            for resize, processor in processors.items():
                pixel_values = processor(image, return_tensors="pt")["pixel_values"][0]
                assert (to_pixels(pixel_values) - to_pixels(expected[resize])).abs().max() < 1e-4, (file, resize)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "image_size"), [("pil", 224), ("pil", 96), ("torchvision", 224)])
def test_transformers_own_equals_it_but_for_crops_and_transparency(tmp_path, backend, image_size):
    """Exactly under the Pillow backend; torchvision's own resampling rounds some values the other way."""
    DinoModel(tiny_config(image_size=image_size)).save_pretrained(tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend=backend)
    compared = 0
    for file in save_variants(tmp_path / "photographs"):
        difference, differs = compare(processor, file, image_size)
        if differs:
            # else ours need not be another; transformers 5.17 drops transparency as well
            assert difference.max() > 2 or file.name in TRANSPARENT, file
            continue
        compared += 1
        if backend == "pil":
            assert difference.max() < 1e-4, file
        else:
            assert difference.max() < 2.001, file
            assert (difference > 1.001).double().mean() < 1e-4, file
            assert difference.mean() < 0.1, file
    assert compared >= 8


def test_what_ours_saves_loads_without_this_package(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path / "model")
    DinoImageProcessor.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    again = AutoImageProcessor.from_pretrained(tmp_path / "again", backend="pil")
    assert type(again).__name__ == "BitImageProcessorPil"
    assert again.crop_size["height"] == 32


@pytest.mark.slow
def test_loads_without_this_package_and_without_torchvision(tmp_path):
    DinoModel(tiny_config(image_size=224)).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (320, 256, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    torch.save(originals_transform(224)(image), tmp_path / "expected.pt")
    code = """
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessorPil
try:
    processor = AutoImageProcessor.from_pretrained("model")
except ImportError:  # transformers 5.17 wants torchvision for the Auto class itself
    processor = BitImageProcessorPil.from_pretrained("model")
pixel_values = processor(Image.open("image.png"), return_tensors="pt")["pixel_values"][0]
torch.testing.assert_close(pixel_values, torch.load("expected.pt"))
print(type(processor).__name__)
"""
    done = run_python(code, tmp_path, blocked=("modeling_dino", "torchvision"))
    assert done.stdout.strip() == "BitImageProcessorPil"


@pytest.mark.parametrize(("image_size", "resized"), [(224, 256), (32, 36), (96, 109), (480, 548)])
def test_size_follows_the_model(tmp_path, image_size, resized):
    DinoModel(tiny_config(image_size=image_size)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["size"] == {"shortest_edge": resized}
    assert written["crop_size"] == {"height": image_size, "width": image_size}


@pytest.mark.parametrize(("backend", "num_channels"), [("pil", 1), ("torchvision", 1), ("torchvision", 13)])
def test_other_channels(tmp_path, num_channels, backend):
    model = DinoModel(tiny_config(num_channels=num_channels, head_type=None))
    model.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    image = np.random.default_rng(0).integers(0, 256, (num_channels, 40, 50), dtype=np.uint8)
    pixel_values = processor(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, num_channels, 32, 32)
    expected = (image.mean() / 255 - sum(MEAN) / 3) / (sum(STD) / 3)
    assert abs(pixel_values.mean() - expected) < 0.1
    assert model(pixel_values).pooler_output.shape == (1, 32)


def test_a_processor_that_is_there_is_kept_if_it_fits(tmp_path):
    model = DinoModel(tiny_config())
    model.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    own = {**json.loads(file.read_text()), "image_mean": [0.5, 0.5, 0.5]}
    file.write_text(json.dumps(own))
    model.save_pretrained(tmp_path)
    assert json.loads(file.read_text()) == own
    DinoModel(tiny_config(image_size=64)).save_pretrained(tmp_path)
    assert json.loads(file.read_text())["crop_size"]["height"] == 64
    file.write_text("{")
    model.save_pretrained(tmp_path)
    assert json.loads(file.read_text())["crop_size"]["height"] == 32
