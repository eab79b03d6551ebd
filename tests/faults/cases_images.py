"""Images of every format that are cut, changed, absurd or unfit, each in a folder beside one that is whole."""

import io
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch
from bad_images import png, replaced
from faulty_input import Case, damaged
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel


RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (36, 40, 3), np.uint8)
BANDS = RNG.integers(0, 65536, (36, 40, 5), np.uint16)
FLOATS = RNG.random((36, 40, 5), np.float32)
EXTRACT = ["extract", "--images", "mixed", "--output", "out", "--num-workers", "0", "--model"]
PICKLE = b"\x80\x04c__builtin__\nexit\n(I5\ntR."  # would end the program with 5
HUGE = struct.pack("<I", 10**9)


def encoded(values: np.ndarray, format: str, **options) -> bytes:
    file = io.BytesIO()
    if format == "npy":
        np.save(file, values, **options)
    elif format == "tifffile":
        tifffile.imwrite(file, values, **options)
    else:
        Image.fromarray(values).save(file, format, **options)
    return file.getvalue()


def satellite(values: np.ndarray, **options) -> bytes:
    return encoded(values, "tifffile", photometric="minisblack", planarconfig="contig", **options)


# suffix and contents of whole images; those of a model of five bands are the latter
PICTURES = {
    "png": encoded(COLOURS, "PNG"),
    "grey.png": encoded(BANDS[..., 0], "PNG"),
    "jpg": encoded(COLOURS, "JPEG"),
    "bmp": encoded(COLOURS, "BMP"),
    "gif": encoded(COLOURS[..., 0], "GIF"),
    "webp": encoded(COLOURS, "WEBP"),
    "lossless.webp": encoded(COLOURS, "WEBP", lossless=True),
    "tif": encoded(COLOURS, "TIFF"),
    "lzw.tif": encoded(COLOURS, "TIFF", compression="tiff_lzw"),
    "rgb16.tif": encoded(BANDS[..., :3], "tifffile", photometric="rgb"),
    "float.tif": encoded(FLOATS[..., 0] * 255, "TIFF"),
    "npy": encoded(COLOURS, "npy"),
}
SCENES = {
    "tif": satellite(BANDS),
    "deflated.tif": satellite(BANDS, compression="zlib", predictor=True),
    "tiled.tif": satellite(BANDS, tile=(16, 16)),
    "bigtiff.tif": satellite(BANDS, bigtiff=True),
    "planar.tif": encoded(np.moveaxis(BANDS, 2, 0), "tifffile", photometric="minisblack", planarconfig="separate"),
    "pages.tif": encoded(np.moveaxis(BANDS, 2, 0), "tifffile", imagej=True, metadata={"axes": "CYX"}),
    "npy": encoded(BANDS, "npy"),
}


def five_bands() -> dict[str, bytes]:
    """The files of a tiny model of five bands of 16 bits."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        DinoModel(tiny_config(num_channels=5, projection_dim=16)).save_pretrained(folder)
        files = {f"five/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}
    transform = json.loads(files["five/preprocessor_config.json"])
    files["five/preprocessor_config.json"] = json.dumps({**transform, "rescale_factor": 1 / 65535}).encode()
    return files


def cases(healthy: Path) -> Iterator[Case]:
    five = five_bands()
    for model, whole in (("vit", PICTURES), ("five", SCENES)):
        for kind, content in whole.items():
            for wrong, several in damaged_content(content, 5).items():
                files = {f"mixed/{i}.{kind}": bad for i, bad in enumerate(several)}
                yield case(model, f"{kind}, {wrong}", five, {f"mixed/good.{kind}": content, **files})
        for name, bad, says in [*(absurd_tiffs() if model == "five" else absurd()), *unfit(model)]:
            kind = "npy" if name.endswith(".npy") else "tif"  # arrays count where there are no other images
            yield case(model, name, five, {f"mixed/good.{kind}": whole[kind], f"mixed/{name}": bad}, says)
    yield Case("none that can be read", [*EXTRACT, "vit"], {"mixed/bad.tif": satellite(BANDS)}, 2, "5 channels")


def case(model: str, wrong: str, five: dict, files: dict[str, bytes], says: str = "") -> Case:
    """An extraction of a good image and of others, which are left out at most."""
    weights = five if model == "five" else {}
    return Case(f"{wrong} ({model})", [*EXTRACT, model], {**weights, **files}, code=0, says=says)


def damaged_content(content: bytes, count: int) -> dict[str, list[bytes]]:
    """So many damaged copies of each kind, the same each time."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        copies = list(damaged(Path(file.name), count))
    kinds = {kind: [bad for wrong, bad in copies if wrong.startswith(kind)] for kind in ("cut", "changed")}
    return {**kinds, "zeros to the end": [cut + bytes(len(content) - len(cut)) for cut in kinds["cut"]]}


def absurd() -> Iterator[tuple[str, bytes, str]]:
    """Headers that promise what would take all memory, and what would run code: name, contents, message."""
    grey = encoded(COLOURS[..., 0], "npy")
    yield "wide.png", png(10**9, 10**9, b""), "skipped mixed/wide.png"
    yield "wide.bmp", replaced(encoded(COLOURS, "BMP"), 18, 2 * HUGE), "skipped mixed/wide.bmp"
    yield "wide.gif", replaced(encoded(COLOURS[..., 0], "GIF"), 6, b"\xff\xff\xff\xff"), "skipped mixed/wide.gif"
    for shape in (
        f"({10**9}, 9)",
        f"({10**9}, {10**9}, 3)",
        f"({10**30}, 1)",
        "(0, 40)",
        "(-36, 40)",
        "()",
        "(36.0, 40)",
    ):
        yield f"shape-{shape}.npy", with_shape(grey, shape), "skipped mixed/shape-"
    yield "objects.npy", pickled(), "an array of object is no image"
    yield "code-in-header.npy", with_shape(grey, "__import__('os').abort()"), "skipped mixed/code"
    yield "empty.npy", b"", "skipped mixed/empty.npy: empty"
    yield "not.npy", b"text", "no image in a known format"
    yield "version.npy", replaced(grey, 6, b"\x09"), "version 9 of .npy is unknown"


def absurd_tiffs() -> Iterator[tuple[str, bytes, str]]:
    """TIFFs of absurd width, height, samples, rows of a strip and bytes of a strip."""
    tiff = satellite(BANDS)
    for tag in (256, 257, 277, 278, 279):
        for value in (10**9, 0):
            entry = struct.pack("<HHII", tag, 4, 1, value)
            yield f"tag-{tag}-of-{value}.tif", replaced(tiff, tiff.index(struct.pack("<H", tag)), entry), ""


def with_shape(array: bytes, shape: str) -> bytes:
    """An array of 36 x 40 with another shape in its header, whose length is kept."""
    length = struct.unpack("<H", array[8:10])[0]
    header = array[10 : 10 + length].decode().replace("(36, 40)", shape).rstrip()
    return array[:8] + struct.pack("<H", 400) + (header.ljust(399) + "\n").encode() + array[10 + length :]


def pickled() -> bytes:
    array = encoded(np.array([{}], dtype=object), "npy", allow_pickle=True)
    return array[: 10 + struct.unpack("<H", array[8:10])[0]] + PICKLE


def unfit(model: str) -> Iterator[tuple[str, bytes, str]]:
    """Whole images that the model cannot take: name, contents, message."""
    takes = {"vit": 3, "five": 5}[model]
    for bands in (6, 7, 13):
        values = np.repeat(BANDS[..., :1], bands, axis=2)
        for name, content in ((f"{bands}.tif", satellite(values)), (f"{bands}.npy", encoded(values, "npy"))):
            yield name, content, f"skipped mixed/{name}: {bands} channels, but the model takes {takes}"
    channels = np.repeat(FLOATS[..., :1], takes, axis=2)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = channels.copy()
        spoilt[3, 4, 1] = value
        for name, content in ((f"{value}.tif", satellite(spoilt)), (f"{value}.npy", encoded(spoilt, "npy"))):
            yield name, content, f"skipped mixed/{name}: not all values are finite"
    for name, content in (("unit.tif", satellite(channels)), ("unit.npy", encoded(channels, "npy"))):
        yield name, content, f"skipped mixed/{name}: floating point from 0 to 1, but rescale_factor="
    for dtype in ("c8", "U3", "M8[s]", "V4"):
        yield f"{dtype}.npy", encoded(np.zeros((36, 40), dtype), "npy"), f"skipped mixed/{dtype}.npy: an array of"
    yield (
        "four.npy",
        encoded(np.zeros((2, 36, 40, 3), np.uint8), "npy"),
        "an array of shape (2, 36, 40, 3) is no image",
    )
