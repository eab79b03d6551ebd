"""TIFFs and `.npy` files that are not 8-bit RGB, written by tifffile and NumPy, and read as they are stored."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from modeling_dino.data import array_files
from modeling_dino.data.decoding import read_image


RNG = np.random.default_rng(0)
STATED = {np.uint8: 1 / 255, np.uint16: 1 / 65535, np.uint32: 2.0**-32, np.int16: 1e-4, np.float32: 1, np.float64: 1}


def noise(dtype, bands: int = 5) -> np.ndarray:
    """(H, W, C)."""
    if np.dtype(dtype).kind == "f":
        return RNG.random((12, 17, bands)).astype(dtype)
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (12, 17, bands), dtype, endpoint=True)


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def npy(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


LAYOUTS = {
    "interleaved": {"planarconfig": "contig"},
    "planar": {"planarconfig": "separate"},
    "deflated": {"planarconfig": "contig", "compression": "zlib", "predictor": False},
    "tiled": {"planarconfig": "contig", "tile": (16, 16)},
    "big-endian": {"planarconfig": "contig", "byteorder": ">"},
    "bigtiff": {"planarconfig": "contig", "bigtiff": True},
}


@pytest.mark.parametrize("dtype", STATED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiffs_of_five_bands_are_read_as_they_were_written(dtype, layout):
    values = noise(dtype)
    written = np.moveaxis(values, 2, 0) if layout == "planar" else values
    image, note = read_image(tiff(written, photometric="minisblack", **LAYOUTS[layout]), 5, STATED[dtype])
    assert note is None
    assert (image.dtype, image.shape) == (np.float32, (12, 17, 5))
    assert np.array_equal(image, values.astype(np.float32))


@pytest.mark.parametrize("dtype", STATED)
def test_arrays_are_read_as_they_were_saved(dtype):
    values = noise(dtype)
    for saved in (values, np.asfortranarray(values), values.astype(values.dtype.newbyteorder(">"))):
        image, note = read_image(npy(saved), 5, STATED[dtype])
        assert note is None
        assert np.array_equal(image, values.astype(np.float32))
    grey, _ = read_image(npy(values[..., 0]), 1, STATED[dtype])
    assert np.array_equal(np.asarray(grey).reshape(12, 17), values[..., 0].astype(np.float32))


@pytest.mark.parametrize("encode", [png, tiff, npy])
def test_sixteen_bits_of_one_channel(encode):
    values = noise(np.uint16, 1)[..., 0]
    image, note = read_image(encode(values), 1, 1 / 65535)
    assert note is None
    assert np.array_equal(image[..., 0], values)
    assert np.array_equal(read_image(encode(values), 3, 1 / 65535)[0], np.stack(3 * [values], axis=2))
    clipped, note = read_image(encode(values))
    assert "values above 255 are clipped" in note
    assert np.array_equal(np.asarray(clipped)[..., 0], values.clip(0, 255))


def test_sixteen_bits_of_colours_keep_them_all():
    values = noise(np.uint16, 4)
    content = tiff(values, photometric="rgb", extrasamples=["UNASSALPHA"])
    assert np.array_equal(read_image(content, 4, 1 / 65535)[0], values)
    assert np.array_equal(read_image(content, 3, 1 / 65535)[0], values[..., :3])  # without transparency
    with pytest.raises(ValueError, match=r"4 channels, but the model takes 3"):
        read_image(tiff(values, photometric="minisblack", planarconfig="contig"), 3, 1 / 65535)


def test_pages_are_channels_where_the_file_says_so():
    values = noise(np.uint16)
    planes = np.moveaxis(values, 2, 0)
    for options in ({"imagej": True, "metadata": {"axes": "CYX"}}, {"metadata": {"axes": "CYX"}}, {"ome": True}):
        if "ome" in options:
            options["metadata"] = {"axes": "CYX"}
        image, note = read_image(tiff(planes, photometric="minisblack", **options), 5, 1 / 65535)
        assert note is None
        assert np.array_equal(image, values)
    frames = tiff(planes, photometric="minisblack", metadata={"axes": "TYX"})
    with pytest.raises(ValueError, match=r"1 channel, but the model takes 5"):
        read_image(frames, 5, 1 / 65535)
    image, note = read_image(frames, 1, 1 / 65535)
    assert note == "the first of several frames or pages"
    assert np.array_equal(image[..., 0], planes[0])


def test_bands_that_do_not_fit_are_refused_with_both_numbers():
    for content in (tiff(noise(np.uint8), photometric="minisblack", planarconfig="contig"), npy(noise(np.uint8))):
        with pytest.raises(ValueError, match=r"^5 channels, but the model takes 3$"):
            read_image(content)
        with pytest.raises(ValueError, match=r"^5 channels, but the model takes 13$"):
            read_image(content, 13)
    with pytest.raises(ValueError, match=r"^17 channels, but the model takes 5$"):
        read_image(npy(np.moveaxis(noise(np.uint8), 2, 0)), 5)  # (C, H, W)


def test_without_tifffile_the_message_says_how_to_install_it(monkeypatch):
    bands = tiff(noise(np.uint16), photometric="minisblack", planarconfig="contig")
    grey = tiff(noise(np.uint16, 1)[..., 0])  # which Pillow reads
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"tifffile is not installed: run `pip install .*\[tiff\]"):
        read_image(bands)
    assert read_image(grey, 1, 1 / 65535)[0].shape == (12, 17, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("encode", [tiff, npy])
def test_pixels_that_are_not_finite_make_an_image_unreadable(encode, value):
    values = noise(np.float64, 3)
    values[3, 4, 1] = value
    for num_channels, factor in ((3, 1), (3, 1 / 255), (1, 1)):
        with pytest.raises(ValueError, match=r"not all values are finite"):
            read_image(encode(values), num_channels, factor)


def test_values_that_contradict_the_stated_range_are_refused():
    for content in (tiff(noise(np.float32, 3)), tiff(noise(np.float32, 1)[..., 0]), npy(noise(np.float64, 3))):
        with pytest.raises(ValueError, match=r"floating point from 0 to 1, but rescale_factor=0.0039.* .* up to 255"):
            read_image(content)
    for content in (png(noise(np.uint8, 3)), npy(noise(np.uint8, 3))):
        with pytest.raises(ValueError, match=r"8 bits, but rescale_factor=0.0001 .* states values up to 10000"):
            read_image(content, 3, 1e-4)
    assert not np.asarray(read_image(npy(np.zeros((4, 4, 3))))[0]).any()  # black is black


def test_values_beyond_a_stated_range_stay():
    values = noise(np.int16)
    assert np.array_equal(read_image(npy(values), 5, 1e-4)[0], values)
    image, note = read_image(npy(values), 5)  # the range of 8 bits
    assert "values above 255 are clipped" in note
    assert np.array_equal(image, values.clip(0, 255))


@pytest.mark.parametrize(
    "content",
    [
        npy(np.array([{}, {}], dtype=object), allow_pickle=True),
        npy(np.zeros((3, 3), dtype="c16")),
        npy(np.zeros((3, 3), dtype="U4")),
        npy(np.zeros((3, 3), dtype=[("a", "u1")])),
        npy(np.zeros((3,))),
        npy(np.zeros((3, 3, 3, 3))),
        npy(np.zeros((0, 3))),
        npy(np.zeros((9, 9)))[:-1],
        npy(np.zeros((9, 9))) + b"x",
        npy(np.zeros((9, 9)))[:40],
        npy(np.zeros((9, 9))).replace(b"(9, 9)", b"(10**9, 9)"),
        npy(np.zeros((9, 9))).replace(b"(9, 9), }      ", b"(999999999, 9), }"[:17]),
        npy(np.zeros((9, 9))).replace(b"\x01\x00", b"\x09\x00", 1),
    ],
)
def test_arrays_that_are_no_images_are_refused(content):
    with pytest.raises(ValueError, match=r"\w+") as error:
        read_image(content, 1, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", [*LAYOUTS, "npy"])
def test_files_that_are_cut_are_refused_unless_nothing_is_missing(layout):
    values = noise(np.uint16)
    written = np.moveaxis(values, 2, 0) if layout == "planar" else values
    whole = npy(values) if layout == "npy" else tiff(written, photometric="minisblack", **LAYOUTS[layout])
    refused = 0
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        try:
            image, _ = read_image(whole[:length], 5, 1 / 65535)
        except ValueError:
            refused += 1
        else:
            assert np.array_equal(image, values)
    assert refused > 50


def test_a_deflated_bomb_is_refused(monkeypatch):
    """Compressed pixels become far more than the image has; only what may be a gigabyte is looked at, so here all."""
    monkeypatch.setattr(array_files, "MAX_UNCHECKED", 100)
    bomb = zlib.compress(bytes(2**20))
    content = tiff(noise(np.uint16), photometric="minisblack", planarconfig="contig", compression="zlib")
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = [file.pages[0].tags[name].offset for name in ("StripOffsets", "StripByteCounts")]
    assert read_image(content, 5, 1 / 65535)[0].shape == (12, 17, 5)
    spoilt = bytearray(content + bomb)
    for offset, value in zip(tags, (len(content), len(bomb))):
        spoilt[offset + 2 : offset + 12] = struct.pack("<HII", 4, 1, value)
    with pytest.raises(ValueError, match="compressed pixels are more than the image has"):
        read_image(bytes(spoilt), 5, 1 / 65535)


@pytest.mark.parametrize("factor", [0.00392156862745098, 0.0039215686, 0.003922])
def test_the_range_of_8_bits_may_be_written_with_few_digits(factor):
    content = png(noise(np.uint8, 3))
    assert read_image(content, 3, factor) == read_image(content)
