"""Writes images into the files that sources are made of."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8))


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, format="PNG")
    return file.getvalue()


def save_picture(path: Path, number: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))


def write_tar(path: Path, members: list[tuple[str, bytes]], mode="w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
