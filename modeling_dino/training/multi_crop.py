# SPDX-License-Identifier: Apache-2.0
"""Multi-crop augmentation: two large views of an image and several small ones, each distorted in its own way.

Paper: https://arxiv.org/abs/2104.14294, section 3.1 and appendix A; the distortions are BYOL's,
https://arxiv.org/abs/2006.07733, appendix B. Source:
https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py#L419.

Where we deviate: tensors are taken too, on any device, and cropped and distorted there, from the same draws as an
image of Pillow's, with other rounding; so are images that are not of 8 bits, and of any number of channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from ..data.image_values import EIGHT_BITS, rescaled, states_8_bits
from ..image_processing_dino import channel_statistics
from ..runtime.extras import PilImage, require
from ..runtime.seeds import seeded


v2 = require("torchvision.transforms.v2", "train")
ImageFilter = require("PIL.ImageFilter", "train")
logger = logging.get_logger(__name__)

SIZES = ("global_crop_size", "local_crop_size", "gram_crop_size")
BOX_BLURS = 3  # that Pillow makes a Gaussian of


@dataclass(frozen=True)
class MultiCropConfig:
    """
    The distribution of the crops; the defaults are the original's.

    Args:
        num_global_crops, num_local_crops: views of an image. The teacher sees the global ones, the student all.
        global_crop_size, local_crop_size: side of a view in pixels; or a list of several, of which each training step
            draws one for all its images. Lists are of one length: what stands at the same place goes together.
        gram_crop_size: side of the global views as a Gram teacher sees them, if it sees others; the student's and the
            teacher's are then made smaller from these.
        size_shares: how often each of several sizes is drawn, in proportion; all equally often by default.
        gram_distorted: whether a Gram teacher sees the distorted crops; they are then distorted at its size, and made
            smaller for the student. If not, it sees the same parts of the image, mirrored alike, as they are.
        global_crop_scale, local_crop_scale: least and greatest share of the image's area in a view.
        crop_ratio: least and greatest width over height of what becomes a square view.
        flip_probability: of a horizontal flip.
        jitter_probability: of a colour jitter.
        brightness, contrast, saturation: a jitter's factor is uniform in 1 - value to 1 + value.
        hue: a jitter's turn of the colour circle is uniform in -value to value; at most 0.5.
        grey_probability: of losing all colour.
        global_blur_probability: of a Gaussian blur, of the first global view, the second, and so on; the last number
            is for all that follow, too.
        local_blur_probability: the same of the local views.
        blur_radius: least and greatest standard deviation of a blur in pixels.
        global_solarize_probability: of inverting what is bright, as `global_blur_probability`; local views never are.
        solarize_threshold: the least value, of 255, that is inverted.

    Raises:
        ValueError: if a value cannot work.
    """

    num_global_crops: int = 2
    num_local_crops: int = 8
    global_crop_size: int | tuple[int, ...] = 224
    local_crop_size: int | tuple[int, ...] = 96
    gram_crop_size: int | tuple[int, ...] | None = None
    size_shares: tuple[float, ...] | None = None
    gram_distorted: bool = True
    global_crop_scale: tuple[float, float] = (0.4, 1.0)
    local_crop_scale: tuple[float, float] = (0.05, 0.4)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_probability: float = 0.2
    global_blur_probability: tuple[float, ...] = (1.0, 0.1)
    local_blur_probability: float = 0.5
    blur_radius: tuple[float, float] = (0.1, 2.0)
    global_solarize_probability: tuple[float, ...] = (0.0, 0.2)
    solarize_threshold: int = 128

    def __post_init__(self):
        self._validate_sizes()
        self._validate_crops()
        self._validate_distortions()

    def _validate_sizes(self):
        given: dict[str, Sequence[float]] = self._lists_of_sizes()
        if not given:
            if self.size_shares is not None:
                raise ValueError("size_shares goes with several sizes of crops: give lists of them")
            self._validate_size()
            return
        if self.size_shares is not None:
            given["size_shares"] = self.size_shares
        if len({len(values) for values in given.values()}) > 1 or not all(given.values()):
            lengths = ", ".join(f"{name} has {len(values)}" for name, values in given.items())
            raise ValueError(f"the lists of crop sizes must be of one length: {lengths}")
        if not all(0 < share < math.inf for share in self.size_shares or ()):
            raise ValueError(f"size_shares={self.size_shares} must be above 0")
        self.of_each_size()

    def _validate_size(self):  # where there are not several
        for name in ("global_crop_size", "local_crop_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.gram_crop_size is not None and self.gram_crop_size < self.global_crop_size:
            raise ValueError(
                f"gram_crop_size={self.gram_crop_size} must be at least global_crop_size={self.global_crop_size}"
            )

    def _validate_crops(self):
        if self.num_global_crops < 1 or self.num_local_crops < 0 or self.num_global_crops + self.num_local_crops < 2:
            raise ValueError(
                f"num_global_crops={self.num_global_crops} and num_local_crops={self.num_local_crops} must be at "
                "least 1 and 0, and together at least 2"
            )
        for name, greatest in (
            ("global_crop_scale", 1),
            ("local_crop_scale", 1),
            ("crop_ratio", math.inf),
            ("blur_radius", math.inf),
        ):
            if len(getattr(self, name)) != 2 or not 0 < getattr(self, name)[0] <= getattr(self, name)[1] <= greatest:
                limit = "" if greatest == math.inf else f" to {greatest}"
                raise ValueError(f"{name}={getattr(self, name)} must be two numbers above 0{limit}, the lesser first")

    def _validate_distortions(self):
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue} must be between 0 and 0.5")
        if not 0 <= self.solarize_threshold <= 255:
            raise ValueError(f"solarize_threshold={self.solarize_threshold} must be between 0 and 255")
        for name in [name for name in self.__dataclass_fields__ if name.endswith("_probability")]:
            value = getattr(self, name)
            several = value if isinstance(value, (tuple, list)) else (value,)
            if not several or not all(0 <= probability <= 1 for probability in several):
                raise ValueError(f"{name}={value} must be between 0 and 1")

    @property
    def has_gram_crops(self) -> bool:
        """Whether a Gram teacher sees other global crops than the teacher."""
        return self.gram_crop_size is not None or not self.gram_distorted

    def of_each_size(self) -> list["MultiCropConfig"]:
        """Returns a distribution for each of the sizes, with one size each."""
        given = self._lists_of_sizes()
        if not given:
            return [self]
        return [replace(self, size_shares=None, **dict(zip(given, sizes))) for sizes in zip(*given.values())]

    def _lists_of_sizes(self) -> dict[str, Sequence[int]]:
        return {name: value for name in SIZES if isinstance(value := getattr(self, name), (tuple, list))}


class MultiCrop:
    """
    Makes the crops of an image as a model takes them, the global ones first.

    Cropping, flips and blur are for all images. Colour operations are applied where they make sense:

    - to three channels, which are taken for colours, all of them; they clip values to 0 and 1, after rescaling;
    - to grey images those that change them: brightness, contrast and solarisation; to any other number of channels the
      same, each channel as a grey image, all with the same factors;
    - to one channel, or more than three, whose range is not that of 8 bits: brightness and contrast alone, and nothing
      is clipped. Measurements may leave their range, so there is nothing to solarise at.

    Args:
        config: the distribution.
        num_channels: of the images.
        image_mean, image_std: of each channel, after rescaling; by default ImageNet's, or their means.
        rescale_factor: states the range of the values: a value times it is what mean and standard deviation refer to.
    """

    def __init__(
        self,
        config: MultiCropConfig,
        num_channels: int = 3,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        rescale_factor: float = EIGHT_BITS,
    ):
        self.config, self.num_channels, self.rescale_factor = config, num_channels, rescale_factor
        mean, std = channel_statistics(num_channels)
        self.mean, self.std = list(image_mean or mean), list(image_std or std)
        self.are_measurements = num_channels != 3 and not states_8_bits(rescale_factor)
        self.of_sizes = [(of_size, self._views(of_size)) for of_size in config.of_each_size()]
        if num_channels != 3:
            logger.warning(
                f"images of {num_channels} channels: of the colour operations only brightness and contrast are "
                f"applied{', to each channel alike' if num_channels > 1 else ''}"
                f"{'; no solarisation' if self.are_measurements else ''}"
            )

    def of_global_pairs(self) -> "MultiCrop":
        """Returns what makes two global crops alone, as the first ones are drawn."""
        first, _ = self.of_sizes[0]
        config = replace(first, num_global_crops=2, num_local_crops=0, gram_crop_size=None, gram_distorted=True)
        return MultiCrop(config, self.num_channels, self.mean, self.std, self.rescale_factor)

    def __call__(
        self, image: PilImage | np.ndarray | torch.Tensor, seed: int | None = None, size: int = 0
    ) -> list[torch.Tensor]:
        """
        Draws and normalises the crops of an image.

        Args:
            image: by Pillow, in RGB or grey; an array (H, W, C) that is not yet rescaled; or a tensor (C, H, W), uint8
                or floating point after rescaling.
            seed: what is drawn depends on it alone; if None, on PyTorch's global generator of the CPU.
            size: the place of the crops' size in the configuration's lists, where there are several sizes.

        Returns:
            normalised crops (C, size, size), float32, on the image's device.

        Raises:
            ValueError: if the image has other channels or another dtype.
        """
        return self.with_gram_crops(image, seed, size)["pixel_values"]

    def with_gram_crops(
        self, image: PilImage | np.ndarray | torch.Tensor, seed: int | None = None, size: int = 0
    ) -> dict[str, list[torch.Tensor]]:
        """
        Does what a call does, and gives the global crops for a Gram teacher, where it sees others.

        Returns:
            `{"pixel_values": crops}`, and with `has_gram_crops` the other global crops as `"gram_pixel_values"`.
        """
        image = rescaled(image, self.rescale_factor)
        self._check(image)
        config, views = self.of_sizes[size]
        with seeded(seed):
            drawn = [view(image) for view in views]
        crops = self._pixel_values([distorted for _, distorted in drawn])
        if not config.has_gram_crops:
            return {"pixel_values": crops}
        global_crops, local = crops[: config.num_global_crops], crops[config.num_global_crops :]
        if config.gram_distorted:
            smaller = [made_smaller(config)(crop) for crop in global_crops]
            return {"pixel_values": smaller + local, "gram_pixel_values": global_crops}
        plain = [cropped for cropped, _ in drawn[: len(global_crops)]]
        return {"pixel_values": crops, "gram_pixel_values": self._pixel_values(plain)}

    def _views(self, config: MultiCropConfig) -> "list[View]":
        """Returns what makes the crops of one size."""
        local_view = self._view(config, config.local_crop_size, config.local_crop_scale, config.local_blur_probability)
        global_views = [self._global_view(config, i) for i in range(config.num_global_crops)]
        return global_views + [local_view] * config.num_local_crops

    def _global_view(self, config: MultiCropConfig, number: int) -> "View":
        view = self._view(
            config,
            config.gram_crop_size or config.global_crop_size,
            config.global_crop_scale,
            _ith(config.global_blur_probability, number),
            _ith(config.global_solarize_probability, number),
        )
        if config.gram_crop_size is not None and not config.gram_distorted:
            # before it is distorted, so that a blur is as wide as without a Gram teacher
            view.distortions.insert(0, (made_smaller(config), None))
        return view

    def _view(
        self, config: MultiCropConfig, size: int, scale: tuple[float, float], blur: float, solarize: float = 0.0
    ) -> "View":
        cropping: list[Step] = [
            (v2.RandomResizedCrop(size, scale, config.crop_ratio, v2.InterpolationMode.BICUBIC), None),
            (v2.RandomHorizontalFlip(), config.flip_probability),
        ]
        distortions: list[Step] = [(self._jitter(), config.jitter_probability)]
        if self.num_channels == 3:
            distortions.append((v2.RandomGrayscale(), config.grey_probability))
        if blur:
            distortions.append((GaussianBlur(config.blur_radius), blur))
        if solarize and not self.are_measurements:
            distortions.append((RandomSolarize(config.solarize_threshold), solarize))
        return View(cropping, distortions)

    def _jitter(self) -> v2.Transform:
        config = self.config
        if self.num_channels == 3:
            return ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
        if self.are_measurements:
            return MeasurementJitter(config.brightness, config.contrast)
        jitter = ColorJitter if self.num_channels == 1 else ChannelJitter
        return jitter(config.brightness, config.contrast)

    def _check(self, image: PilImage | torch.Tensor):
        if not isinstance(image, torch.Tensor):
            if len(image.getbands()) != self.num_channels or image.mode not in ("RGB", "L"):
                raise ValueError(f"images of mode {image.mode} where the model takes {self.num_channels} channels")
        elif image.ndim != 3 or image.shape[0] != self.num_channels:
            raise ValueError(f"images of shape {tuple(image.shape)} where the model takes ({self.num_channels}, H, W)")
        elif image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"images of {image.dtype}: pass uint8, or floating point from 0 to 1")

    def _pixel_values(self, views: list[PilImage | torch.Tensor]) -> list[torch.Tensor]:
        """Rescales and normalises views, those of one size together: (C, h, w) each."""
        tensors = [view if isinstance(view, torch.Tensor) else v2.functional.pil_to_tensor(view) for view in views]
        found: list[torch.Tensor] = []
        for _, alike in groupby(tensors, key=torch.Tensor.size):
            pixels = torch.stack(list(alike))
            # torchvision's own conversion multiplies by 1 / 255, which rounds otherwise than the original's division
            pixels = pixels.float() if pixels.is_floating_point() else pixels.float().div_(255)
            found += v2.functional.normalize(pixels, self.mean, self.std)
        return found


def made_smaller(config: MultiCropConfig) -> v2.Transform:
    """Returns what makes a student's global crop of one that is as large as a Gram teacher's."""
    return v2.Resize([config.global_crop_size] * 2, v2.InterpolationMode.BICUBIC)


Picture = PilImage | torch.Tensor
Step = tuple[v2.Transform, float | None]  # and its probability, which stands for the transform's own; None for always


class View:
    """
    Draws one view of an image, by transforms of torchvision: (C, H, W) or Pillow's -> the same.

    The transforms are called without their search for images among the inputs, which takes longer than a small image.

    Args:
        cropping, distortions: steps in their order.
    """

    def __init__(self, cropping: list[Step], distortions: list[Step]):
        self.cropping, self.distortions = cropping, distortions

    def __call__(self, image: Picture) -> tuple[Picture, Picture]:
        """Returns a part of the image as it is, and distorted."""
        part = take_steps(self.cropping, image)
        return part, take_steps(self.distortions, part)


def take_steps(steps: list[Step], image: Picture) -> Picture:
    """Draws which steps are taken, and how, and takes them."""
    for transform, probability in steps:
        if probability is None or torch.rand(1) < probability:
            image = transform.transform(image, transform.make_params([image]))
    return image


class ColorJitter(v2.ColorJitter):
    """Jitters colours as torchvision does, to the last bit, in less time."""

    def transform(self, inpt: PilImage | torch.Tensor, params: dict) -> PilImage | torch.Tensor:
        """Changes the image by the factors, in the order that was drawn."""
        changes = (
            (v2.functional.adjust_brightness, params["brightness_factor"]),
            (v2.functional.adjust_contrast if isinstance(inpt, torch.Tensor) else contrast, params["contrast_factor"]),
            (v2.functional.adjust_saturation, params["saturation_factor"]),
            (v2.functional.adjust_hue, params["hue_factor"]),
        )
        for number in params["fn_idx"].tolist():
            change, factor = changes[number]
            if factor is not None:
                inpt = change(inpt, factor)
        return inpt


def contrast(image: PilImage, factor: float) -> PilImage:
    """Returns what Pillow's ImageEnhance.Contrast does, whose mean of the grey values is slow on small images."""
    pillow = require("PIL.Image", "train")
    mean = int(np.asarray(image.convert("L")).mean() + 0.5)
    return pillow.blend(pillow.new(image.mode, image.size, (mean,) * len(image.getbands())), image, factor)


class ChannelJitter(ColorJitter):
    """Jitters each channel (C, H, W) as a grey image, all with the same factors."""

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        """Changes the channels by the factors, in the order that was drawn."""
        return super().transform(inpt.unsqueeze(1), params).squeeze(1)


class MeasurementJitter(v2.ColorJitter):
    """Changes brightness and contrast of each channel (C, H, W) as torchvision does, but never clips to 0 and 1."""

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        """Multiplies the values, and their distances to the mean of their channel, in the order that was drawn."""
        for step in params["fn_idx"].tolist():
            if step == 0 and params["brightness_factor"] is not None:
                inpt = inpt * params["brightness_factor"]
            elif step == 1 and params["contrast_factor"] is not None:
                inpt = torch.lerp(inpt.mean((-2, -1), keepdim=True), inpt, params["contrast_factor"])
        return inpt


class GaussianBlur(v2.Transform):
    """
    Blurs as Pillow does, which approximates a Gaussian by box blurs; tensors of uint8 get the same, to the last bit.

    A true Gaussian differs from it by up to 22 of 255 (on photographs, at a radius of 0.3), on average by less than 2.

    Args:
        radius: least and greatest standard deviation in pixels.
    """

    def __init__(self, radius: tuple[float, float]):
        super().__init__()
        self.radius = radius

    def make_params(self, flat_inputs: list) -> dict[str, float]:
        """Draws a radius."""
        return {"radius": torch.empty(1).uniform_(*self.radius).item()}

    def transform(self, inpt: PilImage | torch.Tensor, params: dict[str, float]):
        """Blurs by this radius."""
        if isinstance(inpt, torch.Tensor):
            return box_blurs(inpt, params["radius"])
        return inpt.filter(ImageFilter.GaussianBlur(params["radius"]))


def box_blurs(image: torch.Tensor, radius: float) -> torch.Tensor:
    """
    Blurs three times by a box along each side, together nearly by a Gaussian: (C, H, W) -> (C, H, W).

    Gwosdek et al., Theoretical Foundations of Gaussian Convolution by Extended Box Filtering, 2011: a box of 2 l + 1
    pixels, and beyond each of its ends a share of one more. The last pixel is repeated over the border.
    """
    variance = radius**2 / BOX_BLURS
    reach = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)  # l
    share = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance) / (6 * (variance - (reach + 1) ** 2))
    weights = torch.tensor([share, *[1.0] * (2 * reach + 1), share], device=image.device)
    weights /= weights.sum()
    pixels = image.float().unsqueeze(1)  # (C, 1, H, W)
    beyond = reach + 1
    for shape, padding in (((1, -1), (beyond, beyond, 0, 0)), ((-1, 1), (0, 0, beyond, beyond))):
        for _ in range(BOX_BLURS):
            pixels = F.conv2d(F.pad(pixels, padding, mode="replicate"), weights.view(1, 1, *shape))
            if not image.is_floating_point():
                pixels = pixels.add(0.5).floor()
    return pixels.squeeze(1).to(image.dtype)


class RandomSolarize(v2.RandomSolarize):
    """Solarizes as torchvision does, with a threshold of 255 for floating point too."""

    def transform(self, inpt: PilImage | torch.Tensor, params: dict):
        """Inverts what is bright."""
        is_float = isinstance(inpt, torch.Tensor) and inpt.is_floating_point()
        return v2.functional.solarize(inpt, self.threshold / 255 if is_float else self.threshold)


def _ith(values: tuple[float, ...], i: int) -> float:
    """Returns the value of the i-th view; the last one is for all that follow."""
    return values[min(i, len(values) - 1)]
