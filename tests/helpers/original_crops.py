"""The original's views, made of torchvision's first transforms and Pillow."""

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as v1


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """The original's, its random numbers drawn from PyTorch."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(torch.empty(1).uniform_(0.1, 2.0).item()))


class Solarize:
    """The original's, its random numbers drawn from PyTorch."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if torch.rand(1) < 0.2 else image


def views_of_the_original(
    size: int = 224,
    local_size: int = 96,
    num_local_crops: int = 8,
    cropped_at: int | None = None,
    end: tuple = (v1.ToTensor(), v1.Normalize(MEAN, STD)),
) -> list:
    """
    https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py#L419, as its defaults make it.

    Args:
        cropped_at: size of the global crops before they are made smaller and distorted, as DINOv3 makes them where its
            Gram teacher sees larger ones, which are not distorted.
    """
    flip = v1.RandomHorizontalFlip(p=0.5)
    colour = [
        v1.RandomApply([v1.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
        v1.RandomGrayscale(p=0.2),
    ]
    bicubic = v1.InterpolationMode.BICUBIC
    crop = [v1.RandomResizedCrop(cropped_at or size, scale=(0.4, 1.0), interpolation=bicubic), flip]
    crop += [v1.Resize(size, bicubic)] if cropped_at else []
    small = [v1.RandomResizedCrop(local_size, scale=(0.05, 0.4), interpolation=bicubic), flip]
    first = v1.Compose([*crop, *colour, Blur(1.0), *end])
    second = v1.Compose([*crop, *colour, Blur(0.1), Solarize(), *end])
    return [first, second] + num_local_crops * [v1.Compose([*small, *colour, Blur(0.5), *end])]
