import os
from pathlib import Path

import pytest
from photographs import save_variants
from PIL import Image

from modeling_dino.data.decoding import check_resized, read_image


def make(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return str(path)


@pytest.mark.slow
def test_every_mode_is_read_as_the_original_reads_it(tmp_path):
    for file in save_variants(tmp_path):
        image, note = read_image(str(file))
        assert read_image(file.read_bytes()) == (image, note)
        with Image.open(file) as original:
            assert image.tobytes() == original.convert("RGB").tobytes(), file
        assert (note is not None) == (file.name == "sixteen-bit.png")
    assert "values above 255 are clipped" in read_image(str(tmp_path / "sixteen-bit.png"))[1]


def test_grey_for_a_model_of_one_channel(tmp_path):
    image, _ = read_image(make(tmp_path / "a.png"), num_channels=1)
    assert image.mode == "L"
    with pytest.raises(ValueError, match="3 channels, but the model takes 13"):
        read_image(str(tmp_path / "a.png"), num_channels=13)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"])
def test_damaged_files_are_refused_with_a_reason(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.effect_noise((60, 60), 80).convert("RGB").save(path)
    whole = path.read_bytes()
    for part in (b"", whole[:3], whole[: len(whole) // 2], b"text" * 50):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"\w+") as error:
            read_image(str(path))
        assert "\n" not in str(error.value)
        assert str(path) not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_image(str(tmp_path / "missing.png"))
    with pytest.raises(ValueError, match="null"):
        read_image("a\0b.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="no such file"):
        read_image(str(tmp_path / "broken.png"))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(ValueError, match="not a file"):
            read_image(str(tmp_path / name))


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (50, 50)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="could be decompression bomb"):
        read_image(str(tmp_path / "bomb.png"))


def test_what_is_too_thin_to_be_resized_is_refused(monkeypatch):
    thin = Image.new("RGB", (1, 60000))
    with pytest.raises(ValueError, match=r"1 x 60000 pixels are too thin: .* of 256, the longer one has 15360000"):
        check_resized(thin, 256)
    check_resized(thin, 36)
    check_resized(Image.new("RGB", (60000, 1000)), 256)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # no limit, as the user wants
    check_resized(thin, 256)
