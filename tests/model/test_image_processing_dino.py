import io
import json

import numpy as np
import pytest
import torch
from photographs import open_photograph, save_variants
from PIL import Image
from processes import run_python
from tiny_models import tiny_config
from torchvision import transforms
from torchvision.transforms import v2
from transformers import AutoImageProcessor

from modeling_dino import DinoImageProcessor, DinoModel
from modeling_dino.data.decoding import read_image
from modeling_dino.data.evaluation_transform import ImageTransform, resized_to
from modeling_dino.hub.loading import load_image_processor
from modeling_dino.image_processing_dino import from_transformers, image_processor_config


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
        resize: load_image_processor(
            str(tmp_path / "model"), model.config, resize, None if resize == "none" else image_size
        )
        for resize in ("longest", "square", "crop", "none")
    }
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    square = transforms.Resize((image_size, image_size), interpolation=transforms.InterpolationMode.BICUBIC)
    for file in save_variants(tmp_path / "photographs"):
        with Image.open(file) as image:
            thumbnail = image.convert("RGB")
            thumbnail.thumbnail((image_size, image_size), Image.Resampling.LANCZOS)
            expected = {
                "longest": normalise(thumbnail),
                "none": normalise(image.convert("RGB")),
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


@pytest.mark.parametrize("sides", [(300, 200), (90, 64)])
def test_dinov3s_transform_equals_transformers_within_a_grey_level(sides):
    """transformers' rescales before it resizes; ours resizes in 8 bits, as the README of the original does."""
    from transformers import DINOv3ViTImageProcessor

    theirs = DINOv3ViTImageProcessor()
    settings = json.loads(theirs.to_json_string())
    transform = from_transformers({**settings, "image_processor_type": "DINOv3ViTImageProcessorFast"}, 3)
    config = tiny_config("dinov3", image_size=224, image_resize="square")
    assert {**transform, **image_processor_config(config)} == transform
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8))
    ours, expected = (
        torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
        for processor in (DinoImageProcessor(**transform), theirs)
    )
    assert ours.shape == expected.shape == (3, 224, 224)
    assert (to_pixels(ours) - to_pixels(expected)).abs().max() <= 1.01


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


def forms_of(picture: Image.Image) -> dict[str, Image.Image | np.ndarray | torch.Tensor]:
    """A picture as it comes to a processor: by Pillow, as an array (H, W, C) and as a tensor (C, H, W)."""
    values = np.array(picture)
    layers = values[..., None] if values.ndim == 2 else values
    return {
        "pillow": picture,
        "array": values,
        "channels first": np.moveaxis(layers, 2, 0),
        "tensor": torch.from_numpy(np.moveaxis(layers, 2, 0).copy()),
    }


def colours(mode: str = "RGBA") -> Image.Image:
    """Noise with every transparency."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 50, 4), np.uint8), "RGBA").convert(mode)


def processor_of(num_channels: int, **values) -> DinoImageProcessor:
    transform = image_processor_config(tiny_config(num_channels=num_channels))
    return DinoImageProcessor(**{**transform, **values})


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "1"])
def test_a_picture_is_the_same_however_it_comes(mode, num_channels):
    """As its file: transparency is dropped, grey and colours become what the model takes."""
    processor = processor_of(num_channels)
    picture = colours(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    expected = processor(read_image(file.getvalue(), num_channels)[0], return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, num_channels, 32, 32)
    for name, form in forms_of(picture).items():
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected), name
    for do_normalize in (True, False):
        both = [
            processor(form, do_normalize=do_normalize)["pixel_values"] for form in (list(forms_of(picture).values()))
        ]
        assert all(np.array_equal(one, both[0]) for one in both)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_palettes_and_inks_are_converted_as_in_files(num_channels):
    processor = processor_of(num_channels)
    palette = colours("RGB").quantize(64)
    palette.info["transparency"] = 3
    for picture in (palette, colours("RGB").convert("CMYK"), colours("RGB").convert("YCbCr")):
        expected = processor(picture.convert("RGB" if num_channels == 3 else "L"))["pixel_values"]
        assert np.array_equal(processor(picture)["pixel_values"], expected)


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_values_of_more_bits_are_the_same_however_they_come(dtype, mode, num_channels):
    values = np.random.default_rng(0).integers(0, 60000, (41, 50)).astype(dtype)
    picture = Image.fromarray(values)
    assert picture.mode == mode
    eight = processor_of(num_channels)(values.clip(0, 255).astype(np.uint8))["pixel_values"]
    wide = processor_of(num_channels, rescale_factor=1 / 65535)
    expected = wide(picture)["pixel_values"]
    for form in forms_of(picture).values():
        assert np.array_equal(processor_of(num_channels)(form)["pixel_values"], eight)  # clipped, as the original does
        assert np.array_equal(wide(form)["pixel_values"], expected)
    mean = np.mean(expected) * 0.2257 + 0.449
    assert abs(mean - values.mean() / 65535) < 0.02


@pytest.mark.parametrize("num_channels", [1, 3])
def test_eight_bits_sixteen_bits_and_floating_point_of_one_picture_agree(num_channels):
    """Each by the range that is stated for it, within a grey level: only 8 bits are rounded in between."""
    picture = np.array(open_photograph("coffee.png").resize((81, 60)))
    level = 1 / 255 / min(STD)
    eight = processor_of(num_channels)(picture)["pixel_values"][0]
    sixteen = processor_of(num_channels, rescale_factor=1 / 65535)(picture.astype(np.uint16) * 257)["pixel_values"][0]
    assert np.abs(eight - sixteen).max() < 1.5 * level
    for form in (picture / 255, (picture / 255).astype(np.float32), torch.from_numpy(picture / 255).permute(2, 0, 1)):
        floats = processor_of(num_channels, rescale_factor=1)(form)["pixel_values"][0]
        np.testing.assert_allclose(floats, sixteen, atol=1e-4)
        unscaled = processor_of(num_channels)(form, do_rescale=False)["pixel_values"][0]
        np.testing.assert_allclose(unscaled, sixteen, atol=1e-4)
        with pytest.raises(ValueError, match=r"floating point from 0 to 1, but rescale_factor=0.00392157"):
            processor_of(num_channels)(form)


def test_channels_that_do_not_fit_are_refused_with_both_numbers():
    five = np.zeros((41, 50, 5), np.uint8)
    with pytest.raises(ValueError, match="5 channels, but the model takes 3"):
        processor_of(3)(five, input_data_format="channels_last")
    with pytest.raises(ValueError, match=r"an array of shape \(41, 50, 5\), but the model takes 3 channels"):
        processor_of(3)(five)
    with pytest.raises(ValueError, match="3 channels, but the model takes 5"):
        processor_of(5)(colours("RGB"))
    assert processor_of(5)(five)["pixel_values"][0].shape == (5, 32, 32)
    assert processor_of(4)(colours())["pixel_values"][0].shape == (4, 32, 32)


@pytest.mark.parametrize("resize", ["crop", "square", "longest"])
@pytest.mark.parametrize("image_size", [32, 96])
def test_floating_point_is_resized_as_eight_bits_within_a_grey_level(resize, image_size):
    eight = resized_to(processor_of(3), resize, image_size)
    wide = resized_to(processor_of(3, rescale_factor=1 / 65535), resize, image_size)
    pictures = [open_photograph(name).resize((133, 101)) for name in ("coffee.png", "astronaut.png", "rocket.jpg")]
    for picture in [*pictures, colours("RGB"), colours("RGB").point(lambda value: 255 * (value > 127))]:
        expected = eight.crop(picture).float()
        values = np.array(picture).astype(np.uint16) * 257
        floats = torch.tensor(wide(values, do_normalize=False)["pixel_values"][0]) * 255
        assert (floats.round() - expected).abs().max() <= 1


@pytest.mark.parametrize("sides", [(41, 77), (60, 33), (90, 120)])
def test_floating_point_is_resized_as_by_torchvision(sides):
    """Of values that no filter clips."""
    values = np.random.default_rng(0).normal(0.5, 0.05, (*sides, 7)).astype(np.float32)
    processor = processor_of(7, rescale_factor=1, do_center_crop=False)
    found = torch.tensor(processor(values, do_normalize=False)["pixel_values"][0])
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    expected = v2.functional.resize(tensor, [36], v2.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
