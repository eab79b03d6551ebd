"""Multi-crop against torchvision's first transforms and Pillow, and the distribution of what is drawn."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_data import assert_close
from original_crops import MEAN, STD, views_of_the_original
from photographs import open_photograph
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import ks_2samp, kstest
from torchvision import transforms as v1

from modeling_dino.training.multi_crop import (
    ChannelJitter,
    MeasurementJitter,
    MultiCrop,
    MultiCropConfig,
    box_blurs,
    contrast,
    logger,
)


pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = {  # no distortion
    "flip_probability": 0.0,
    "jitter_probability": 0.0,
    "grey_probability": 0.0,
    "global_blur_probability": (0.0,),
    "local_blur_probability": 0.0,
    "global_solarize_probability": (0.0,),
}
FEW = 1e-3  # probability that a test of a distribution fails by chance, were its seed not fixed


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "rocket.jpg"])
def test_with_the_same_draws_the_crops_are_those_of_the_first_transforms(name):
    image, multi_crop, views = open_photograph(name), MultiCrop(MultiCropConfig()), views_of_the_original()
    for seed in range(3):
        crops = multi_crop(image, seed)
        torch.manual_seed(seed)
        for crop, view in zip(crops, views, strict=True):
            assert torch.equal(crop, view(image))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["astronaut.png", "moon.png"])
def test_contrast_is_pillows(name, mode):
    image = open_photograph(name).convert(mode)
    for box in [(0, 0, 32, 32), (7, 11, 70, 40), (100, 3, 101, 5)]:
        part = image.crop(box)
        for factor in (0.0, 0.6, 1.0, 1.4):
            wanted = ImageEnhance.Contrast(part).enhance(factor)
            assert contrast(part, factor).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("size", [(96, 90), (16, 40), (7, 5)])
def test_the_blur_of_tensors_is_that_of_pillow(size):
    image = open_photograph("coffee.png").resize(size)
    pixels = v1.functional.pil_to_tensor(image)
    for radius in np.random.default_rng(0).uniform(0.1, 2.0, 15):
        expected = v1.functional.pil_to_tensor(image.filter(ImageFilter.GaussianBlur(float(radius))))
        assert torch.equal(box_blurs(pixels, float(radius)), expected)
        as_floats = box_blurs(pixels / 255, float(radius)) * 255
        assert (as_floats - expected).abs().max() < 3  # Pillow rounds six times


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_tensors_are_cropped_as_images(dtype):
    image = open_photograph("coffee.png").resize((200, 150))
    pixels = v1.functional.pil_to_tensor(image)
    pixels = pixels if dtype == torch.uint8 else pixels / 255
    for config, limit in (
        (MultiCropConfig(**{**PLAIN, "flip_probability": 0.5, "global_blur_probability": (1.0,)}), 1),
        (MultiCropConfig(jitter_probability=0.0), 1),
        (MultiCropConfig(), 4),  # Pillow turns hues in steps of 1/255
    ):
        multi_crop = MultiCrop(config)
        for seed in range(2):
            for crop, expected in zip(multi_crop(pixels, seed), multi_crop(image, seed), strict=True):
                assert crop.shape == expected.shape
                assert crop.dtype == torch.float32
                difference = (crop - expected).abs() * torch.tensor(STD).view(3, 1, 1) * 255
                assert difference.mean() < limit


def test_sizes_and_order():
    crops = MultiCrop(MultiCropConfig(num_global_crops=3, num_local_crops=2, global_crop_size=32, local_crop_size=16))(
        open_photograph("coffee.png")
    )
    assert [crop.shape for crop in crops] == 3 * [(3, 32, 32)] + 2 * [(3, 16, 16)]


def boxes(multi_crop: MultiCrop, width: int, height: int, draws: int) -> np.ndarray:
    """The share of the area and the aspect ratio of crops, seen from ramps: (draws, crops, 2)."""
    y, x = np.mgrid[0:height, 0:width] / 1000
    ramps = torch.tensor(np.stack([x, y, x]), dtype=torch.float32)
    found = []
    for seed in range(draws):
        for crop in multi_crop(ramps, seed):
            x, y = (crop[i] * STD[i] * 1000 for i in (0, 1))
            middle, far, size = crop.shape[-1] // 2, crop.shape[-1] // 4, crop.shape[-1]
            w = (x[middle, middle + far] - x[middle, middle - far]).item() / (2 * far) * size
            h = (y[middle + far, middle] - y[middle - far, middle]).item() / (2 * far) * size
            found.append((w * h / (width * height), w / h))
    return np.array(found).reshape(draws, -1, 2)


def test_boxes_are_distributed_as_torchvisions():
    config = MultiCropConfig(**PLAIN, num_local_crops=2, global_crop_size=64, local_crop_size=64)
    width, height, draws = 200, 150, 200
    shares = boxes(MultiCrop(config), width, height, draws)
    for crops, scale in ((shares[:, :2], (0.4, 1.0)), (shares[:, 2:], (0.05, 0.4))):
        torch.manual_seed(1)
        expected = []
        for _ in range(2000):
            *_, h, w = v1.RandomResizedCrop.get_params(torch.empty(3, height, width), scale, (3 / 4, 4 / 3))
            expected.append((w * h / (width * height), w / h))
        crops, expected = crops.reshape(-1, 2), np.array(expected)
        assert ks_2samp(crops[:, 0], expected[:, 0]).pvalue > FEW
        assert ks_2samp(crops[:, 1], expected[:, 1]).pvalue > FEW
    # no local crop is too large for the image, so these are as they were drawn
    local = shares[:, 2:].reshape(-1, 2)
    assert kstest((local[:, 0] - 0.05) / 0.35, "uniform").pvalue > FEW
    assert kstest(np.log(local[:, 1]) / math.log(4 / 3) / 2 + 0.5, "uniform").pvalue > FEW


def frequency(multi_crop: MultiCrop, image: Image.Image, happened, draws: int = 500) -> np.ndarray:
    """How often something happened to each view."""
    return np.mean([[happened(crop) for crop in multi_crop(image, seed)] for seed in range(draws)], axis=0)


def only(**distortions) -> MultiCrop:
    """Crops of nearly whole images, with these distortions alone: two global views and one local view."""
    sizes = {"global_crop_size": 8, "local_crop_size": 8, "num_local_crops": 1, "crop_ratio": (1.0, 1.0)}
    scales = {"global_crop_scale": (0.999, 1.0), "local_crop_scale": (0.999, 1.0)}
    return MultiCrop(MultiCropConfig(**{**PLAIN, **sizes, **scales, **distortions}))


@pytest.mark.slow
def test_how_often_each_distortion_happens():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = (200, 40, 90)
    image, usual = Image.fromarray(pixels), MultiCropConfig()
    plain = only()(image)[0]

    def is_changed(crop):
        return not torch.equal(crop, plain)

    def is_flipped(crop):
        return crop[0, 0, 0] > crop[0, 0, -1]

    def is_grey(crop):
        grey = crop * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        return torch.allclose(grey[0], grey[2], atol=1e-4)

    for happened, names, expected in (
        (is_flipped, ["flip_probability"], [0.5, 0.5, 0.5]),
        (is_grey, ["grey_probability"], [0.2, 0.2, 0.2]),
        (is_changed, ["jitter_probability"], [0.8, 0.8, 0.8]),
        (is_changed, ["global_solarize_probability"], [0, 0.2, 0]),
    ):
        multi_crop = only(**{name: getattr(usual, name) for name in names})
        np.testing.assert_allclose(frequency(multi_crop, image, happened), expected, atol=0.07)
    blur = only(
        global_blur_probability=usual.global_blur_probability,
        local_blur_probability=usual.local_blur_probability,
        blur_radius=(1.0, 2.0),
    )
    np.testing.assert_allclose(frequency(blur, image, is_changed), [1, 0.1, 0.5], atol=0.07)


def factors(value: tuple[int, int, int], measure, draws: int = 150, **jitter) -> np.ndarray:
    """What a measure of a flat image becomes by one colour operation."""
    zero = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    multi_crop = only(num_local_crops=0, jitter_probability=1.0, **{**zero, **jitter})
    image = torch.tensor(value).div(255).view(3, 1, 1).expand(3, 8, 8)
    found = []
    for seed in range(draws):
        for crop in multi_crop(image, seed):
            found.append(measure(crop[:, 4, 4].double() * torch.tensor(STD) + torch.tensor(MEAN)))
    return np.array(found, float)


def test_factors_of_the_jitter_are_uniform():
    def brightness(rgb):
        return rgb[0] * 255 / 100

    def saturation(rgb):
        return (rgb[0] - rgb[1]) * 255 / 10

    def hue(rgb):  # of a colour between red and yellow or magenta, in turns
        return (rgb[1] - rgb[2]) / (rgb.max() - rgb.min()) / 6

    for found, low, high in (
        (factors((100, 100, 100), brightness, brightness=0.4), 0.6, 1.4),
        (factors((110, 100, 100), saturation, saturation=0.2), 0.8, 1.2),
        (factors((200, 100, 100), hue, hue=0.1), -0.1, 0.1),
    ):
        assert kstest((found - low) / (high - low), "uniform").pvalue > FEW


def test_contrast_is_uniform_and_draws_towards_the_mean():
    multi_crop = only(num_local_crops=0, jitter_probability=1.0, brightness=0.0, saturation=0.0, hue=0.0)
    image = torch.full((3, 8, 8), 0.4)
    image[:, :, 4:] = 0.6
    found = [
        ((crop[0, 0, -1] - crop[0, 0, 0]) * STD[0] / 0.2).item() for i in range(150) for crop in multi_crop(image, i)
    ]
    assert kstest((np.array(found) - 0.6) / 0.8, "uniform").pvalue > FEW


def test_radii_of_the_blur_are_uniform():
    """A blurred point's variance is the radius squared."""
    multi_crop = MultiCrop(
        MultiCropConfig(
            **{**PLAIN, "global_blur_probability": (1.0,)},
            num_local_crops=0,
            global_crop_size=31,
            global_crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
        )
    )
    image = torch.zeros(3, 31, 31)
    image[:, 15, 15] = 1
    at = torch.arange(31) - 15.0
    radii = []
    for seed in range(100):
        for crop in multi_crop(image, seed):
            weights = (crop[0] * STD[0] + MEAN[0]).sum(0)
            radii.append(((weights * at**2).sum() / weights.sum()).clamp(min=0).sqrt().item())
    assert kstest((np.array(radii) - 0.1) / 1.9, "uniform").pvalue > FEW


def test_the_crops_depend_on_the_seed_alone():
    image, multi_crop = open_photograph("coffee.png"), MultiCrop(MultiCropConfig(num_local_crops=1))
    expected = multi_crop(image, 7)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = torch.random.get_rng_state()
    crops = MultiCrop(MultiCropConfig(num_local_crops=1))(image, 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, crops, expected))
    assert not torch.equal(multi_crop(image, 8)[0], expected[0])
    assert not torch.equal(multi_crop(image)[0], multi_crop(image)[0])  # without one, from the global generator
    torch.manual_seed(7)
    assert all(map(torch.equal, multi_crop(image), expected))


def test_what_is_drawn_stays_the_same_from_version_to_version():
    """A change here means that runs that were stopped before it go on with other crops."""
    config = MultiCropConfig(num_local_crops=2, global_crop_size=32, local_crop_size=16)
    crops = MultiCrop(config)(open_photograph("coffee.png"), 2024)
    means = torch.stack([crop.mean() for crop in crops])
    assert_close(means, torch.tensor(FROZEN_MEANS), 1e-3)


FROZEN_MEANS = [-0.2235, -0.2746, 0.2026, 0.0907]


def test_grey_images():
    image = open_photograph("coffee.png").convert("L")
    multi_crop = MultiCrop(MultiCropConfig(num_local_crops=1), num_channels=1)
    crops = multi_crop(image, 3)
    assert [crop.shape for crop in crops] == [(1, 224, 224)] * 2 + [(1, 96, 96)]
    of_tensor = multi_crop(v1.functional.pil_to_tensor(image), 3)
    for crop, expected in zip(of_tensor, crops):
        assert (crop - expected).abs().mean() * 0.226 * 255 < 1.5


@pytest.mark.parametrize("num_channels", [2, 4, 13])
def test_each_of_many_channels_as_a_grey_image_with_the_same_factors(num_channels):
    grey = v1.functional.pil_to_tensor(open_photograph("coffee.png").convert("L")) / 255
    config = MultiCropConfig(num_local_crops=2, local_crop_size=32, global_crop_size=64)
    expected = MultiCrop(config, num_channels=1)(grey, 5)
    crops = MultiCrop(config, num_channels)(grey.expand(num_channels, -1, -1), 5)
    for crop, one in zip(crops, expected, strict=True):
        assert_close(crop, one.expand(num_channels, -1, -1))
    # another channel does not change what becomes of the first
    mixed = torch.cat([grey, 1 - grey, *[grey * 0.3] * (num_channels - 2)])
    for crop, one in zip(MultiCrop(config, num_channels)(mixed, 5), expected, strict=True):
        assert_close(crop[:1], one)


@pytest.mark.parametrize(("num_channels", "says"), [(1, "brightness and contrast"), (4, "to each channel alike")])
def test_one_line_says_which_colour_operations_are_left_out(num_channels, says, messages):
    MultiCrop(MultiCropConfig(), num_channels)
    MultiCrop(MultiCropConfig())
    (line,) = messages()
    assert says in line


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image.new("L", (9, 9)), "mode L where the model takes 3"),
        (Image.new("RGBA", (9, 9)), "mode RGBA"),
        (Image.new("CMYK", (9, 9)), "mode CMYK"),
        (torch.zeros(4, 9, 9), r"\(4, 9, 9\) where the model takes \(3, H, W\)"),
        (torch.zeros(1, 3, 9, 9), r"\(1, 3, 9, 9\)"),
        (torch.zeros(3, 9, 9, dtype=torch.int32), "int32"),
    ],
)
def test_other_images_are_refused(image, says):
    with pytest.raises(ValueError, match=says):
        MultiCrop(MultiCropConfig())(image)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_global_crops", 0),
        ("num_local_crops", -1),
        ("global_crop_size", 0),
        ("global_crop_scale", (0.5, 1.5)),
        ("local_crop_scale", (0.4, 0.05)),
        ("local_crop_scale", (0.0, 0.4)),
        ("crop_ratio", (1.0,)),
        ("flip_probability", 1.5),
        ("global_blur_probability", (1.0, -0.1)),
        ("global_solarize_probability", ()),
        ("blur_radius", (0.0, 2.0)),
        ("brightness", -0.1),
        ("hue", 0.6),
        ("solarize_threshold", 256),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        replace(MultiCropConfig(), **{name: value})


def measurements(num_channels: int, low: float = -2.0, high: float = 3.0) -> np.ndarray:
    """Values (H, W, C) of floating point that leave [0, 1] after rescaling by a hundredth."""
    values = np.random.default_rng(0).uniform(low, high, (60, 80, num_channels)).astype(np.float32)
    return values * 100


@pytest.mark.parametrize("num_channels", [1, 3, 5, 13])
def test_arrays_are_rescaled_and_cropped_as_tensors(num_channels):
    values = measurements(num_channels)
    mean, std = np.linspace(0.1, 0.9, num_channels).tolist(), np.linspace(0.5, 2, num_channels).tolist()
    config = MultiCropConfig(**{**PLAIN, "flip_probability": 0.5, "global_blur_probability": (1.0, 0.5)})
    multi_crop = MultiCrop(config, num_channels, mean, std, rescale_factor=0.01)
    rescaled = torch.from_numpy(values).permute(2, 0, 1).contiguous() * 0.01
    for seed in range(3):
        for crop, expected in zip(multi_crop(values, seed), multi_crop(rescaled, seed), strict=True):
            assert crop.shape[0] == num_channels
            assert torch.equal(crop, expected)
    whole = MultiCropConfig(**PLAIN, global_crop_scale=(1.0, 1.0), crop_ratio=(4 / 3, 4 / 3), global_crop_size=32)
    crop = MultiCrop(whole, num_channels, mean, std, rescale_factor=0.01)(values, 0)[0]
    resized = v1.functional.resize(rescaled, [32, 32], v1.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(crop, v1.functional.normalize(resized, mean, std))


@pytest.mark.parametrize("num_channels", [1, 5])
def test_measurements_are_distorted_but_not_clipped(num_channels):
    """Brightness and contrast of each channel as torchvision's, which clips to [0, 1]; values beyond stay beyond."""
    config = MultiCropConfig(**{**PLAIN, "jitter_probability": 1.0, "global_solarize_probability": (1.0,)})
    multi_crop = MultiCrop(config, num_channels, num_channels * [0.0], num_channels * [1.0], rescale_factor=0.01)
    for seed in range(5):
        for crop in multi_crop(measurements(num_channels), seed):
            assert crop.min() < -0.3
            assert crop.max() > 1.2
    inside = torch.rand(num_channels, 40, 40) * 0.2 + 0.4
    jitter, clipping = MeasurementJitter(0.4, 0.4), ChannelJitter(0.4, 0.4)
    for seed in range(5):
        torch.manual_seed(seed)
        found = jitter(inside)
        torch.manual_seed(seed)
        torch.testing.assert_close(found, clipping(inside))


@pytest.mark.parametrize(
    ("num_channels", "factor", "said"),
    [
        (1, 1 / 255, "only brightness and contrast are applied"),
        (5, 1 / 255, "only brightness and contrast are applied, to each channel alike"),
        (5, 1e-4, "only brightness and contrast are applied, to each channel alike; no solarisation"),
        (3, 1e-4, None),
    ],
)
def test_what_is_left_out_is_said(num_channels, factor, said, monkeypatch):
    lines = []
    monkeypatch.setattr(logger, "warning", lines.append)
    MultiCrop(MultiCropConfig(), num_channels, rescale_factor=factor)
    assert [line.partition(": of the colour operations ")[2] for line in lines] == ([said] if said else [])


def test_a_gram_teacher_sees_the_global_crops_larger():
    """The draws are those of larger crops; the student's are made smaller from these."""
    image = torch.rand(3, 70, 50)
    sizes = {"local_crop_size": 16, "num_local_crops": 2}
    larger = MultiCrop(MultiCropConfig(global_crop_size=64, **sizes))(image, seed=3)
    found = MultiCrop(MultiCropConfig(global_crop_size=32, gram_crop_size=64, **sizes)).with_gram_crops(image, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found["gram_pixel_values"], larger[:2], strict=True))
    assert [crop.shape[-1] for crop in found["pixel_values"]] == [32, 32, 16, 16]
    smaller = [torch.nn.functional.avg_pool2d(crop, 2) for crop in larger[:2]]
    assert all((a - b).abs().mean() < 0.2 * a.std() for a, b in zip(found["pixel_values"], smaller))
    assert all(torch.equal(a, b) for a, b in zip(found["pixel_values"][2:], larger[2:], strict=True))


@pytest.mark.parametrize("gram_crop_size", [None, 64])
def test_a_gram_teacher_can_see_what_is_not_distorted(gram_crop_size):
    """
    The same parts of the image, mirrored alike. The student's are those of the first transforms, made smaller before
    they are distorted, so that blur and colours are as without a Gram teacher.
    """
    image = open_photograph("coffee.png")
    sizes = MultiCropConfig(global_crop_size=32, gram_crop_size=gram_crop_size, local_crop_size=16, num_local_crops=2)
    multi_crop = MultiCrop(replace(sizes, gram_distorted=False))
    views = views_of_the_original(32, 16, num_local_crops=2, cropped_at=gram_crop_size)
    for seed in range(3):
        found = multi_crop.with_gram_crops(image, seed)
        torch.manual_seed(seed)
        for crop, view in zip(found["pixel_values"], views, strict=True):
            assert torch.equal(crop, view(image))
        plain = replace(sizes, gram_crop_size=None, **{**PLAIN, "flip_probability": 0.5})
        plain = MultiCrop(replace(plain, global_crop_size=gram_crop_size or 32))(image, seed)
        assert torch.equal(found["gram_pixel_values"][0], plain[0])  # the first that is drawn
        assert len(found["gram_pixel_values"]) == 2
