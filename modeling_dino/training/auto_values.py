# SPDX-License-Identifier: Apache-2.0
"""The values of a recipe that can be `auto`, and how they follow from the number of images."""

import math
from collections.abc import Callable


def auto_batch_size(num_images: int, batch_size: str, epochs: float) -> int:
    """Returns a batch size that gives at least 8 steps an epoch."""
    return _power_of_two(num_images / 8, 8, 512)


def auto_prototypes(num_images: int, batch_size: int, epochs: float) -> int:
    """Returns one prototype for 4 to 8 images; the original's 65536 from half a million images on."""
    return _power_of_two(num_images / 4, 64, 65536)


def auto_momentum(num_images: int, batch_size: int, epochs: float) -> float:
    """Returns the momentum of a teacher that is the mean of the last twentieth of the steps, of 20 to 2000 of them."""
    # the original advises 0.9995, which is 2000 steps; with it, a short run would end before its teacher moves
    steps = epochs * max(num_images // batch_size, 1)
    return 1 - 1 / min(max(steps / 20, 20), 2000)


def auto_temperature(num_images: int, batch_size: int, epochs: float) -> float:
    """Returns the original's default, 0.04, or the 0.07 of its best models from ten thousand images on."""
    return 0.04 if num_images < 10_000 else 0.07


def _power_of_two(number: float, least: int, greatest: int) -> int:
    """Returns the greatest power of two that is not above a number, within limits."""
    return min(max(2 ** math.floor(math.log2(max(number, 1))), least), greatest)


# functions of the number of images, the batch size and the number of epochs, in the order in which they are called
AUTO: dict[str, Callable[..., float]] = {
    "batch_size": auto_batch_size,
    "model.projection_dim": auto_prototypes,
    "training.teacher_momentum": auto_momentum,
    "training.teacher_temperature": auto_temperature,
}
