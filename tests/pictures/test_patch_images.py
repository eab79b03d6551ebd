"""What is written on pictures: sentences that fit, and titles."""

import numpy as np
from PIL import Image

from modeling_dino.pictures.patch_images import RANDOM_WEIGHTS, mosaic, shortened, text_width, with_lines, wrapped


def reds(picture: Image.Image) -> int:
    """The number of pixels that are clearly red."""
    red, green, _ = np.asarray(picture.convert("RGB")).astype(int).transpose(2, 0, 1)
    return int((red - green > 100).sum())


def test_sentences_are_broken_between_words_and_lose_none():
    text = "One sentence of several words, which is longer than the picture is wide."
    lines = wrapped(text, 150)
    assert len(lines) > 2
    assert " ".join(lines) == text
    assert all(text_width(line, 13) <= 150 for line in lines)


def test_a_text_that_is_too_long_keeps_its_ends():
    found = shortened("motorcycle_left-1-0", 80)
    assert found.startswith("mot")
    assert found.endswith("-0")
    assert "…" in found
    assert text_width(found, 16) <= 80
    assert shortened("short", 80) == "short"
    assert shortened("wide", 0) == ""


def test_lines_are_around_the_picture_and_random_weights_are_red():
    picture = Image.new("RGB", (400, 50), "blue")
    whole = with_lines(picture, above=["a line"], below=["b", RANDOM_WEIGHTS])
    assert whole.width == 400
    assert whole.getpixel((0, 0)) == whole.getpixel((0, whole.height - 1)) == (255, 255, 255)
    blue = (np.asarray(whole) == (0, 0, 255)).all(-1)
    assert blue.sum() == 400 * 50
    assert reds(whole) > 20
    assert reds(with_lines(picture, above=["a line"], below=["b"])) == 0
    assert with_lines(picture).size == picture.size


def test_a_mosaic_has_its_rows():
    tile = Image.new("RGB", (60, 40), "green")
    one, two = mosaic([{"a": tile, "b": tile}], []), mosaic([{"a": tile, "b": tile}, {"c": tile}], [])
    green = [(np.asarray(picture) == (0, 128, 0)).all(-1).sum() for picture in (one, two)]
    assert green == [2 * 60 * 40, 3 * 60 * 40]
    assert one.width == two.width
    assert two.height > one.height + 40
