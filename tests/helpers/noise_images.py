# SPDX-License-Identifier: Apache-2.0
"""Images of noise in files, each of another size."""

from pathlib import Path

from PIL import Image


def write_noise_images(folder: Path, count: int) -> list[Path]:
    """Writes images into a new folder, and returns their paths, in order."""
    folder.mkdir()
    paths = [folder / f"{i:02d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.effect_noise((40 + i, 60 - i), 90).convert("RGB").save(path)
    return paths
