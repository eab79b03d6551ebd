import pytest
from PIL import Image

from modeling_dino.data.frames import open_frames
from modeling_dino.pictures.options import PictureOptions
from modeling_dino.pictures.picture_files import new_folder, picture_files


def save_image(folder):
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "1.png")
    return folder


@pytest.mark.parametrize("fps", [0, -1, 10000, float("nan")])
def test_a_frame_rate_that_cannot_be(fps):
    with pytest.raises(ValueError, match=r"fps=.* must be above 0 and at most 1000"):
        PictureOptions(model="model", output="out", fps=fps)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    folder = save_image(tmp_path / "images")
    with pytest.raises(ValueError, match="images is not empty: name a new folder, or pass --overwrite"):
        new_folder(folder)
    with pytest.raises(ValueError, match=r"1.png is a file: name a folder"):
        new_folder(folder / "1.png", overwrite=True)
    assert new_folder(folder, overwrite=True) == folder
    assert not new_folder(tmp_path / "new").exists()


def test_a_video_of_frames_that_fails_leaves_no_file(tmp_path):
    frames = open_frames(str(save_image(tmp_path / "images")), 3, 32)

    def save_two():
        with picture_files(tmp_path / "out", frames, 5, ("a", "b")) as save:
            save("1", {"a": Image.new("RGB", (32, 32)), "b": Image.new("RGB", (64, 32)), "c": None})
            save("2", {"a": Image.new("RGB", (32, 32)), "b": Image.new("RGB", (32, 32)), "c": None})

    with pytest.raises(ValueError, match="different sizes"):
        save_two()
    assert not list((tmp_path / "out").iterdir())
