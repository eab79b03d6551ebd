import pytest
from PIL import Image

from modeling_dino.data.frames import open_frames
from modeling_dino.data.image_source import natural_key
from modeling_dino.data.video import write_video


def save_images(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * i, 0, 0)).save(folder / name)
    return folder


def test_names_are_unique_and_below_the_folder(tmp_path):
    folder = save_images(tmp_path / "a.b", "1.png", "1.jpg", "sub/1.png", "sub/2.png")
    frames = open_frames(str(folder), 3, 32)
    assert frames.num_frames == 4
    for _ in range(2):  # the same in each pass
        assert [frame.name for frame in frames] == ["1", "1.png", "sub/1", "sub/2"]
    (tmp_path / "list.txt").write_text("a.b/1.png\na.b/sub/1.png\na.b/1.png\n")
    names = [frame.name for frame in open_frames(str(tmp_path / "list.txt"), 3, 32)]
    assert names == ["1", "1.png", "1.png-2"]


def test_one_channel_and_frames_of_a_video(tmp_path):
    folder = save_images(tmp_path / "images", "1.png")
    (frame,) = open_frames(str(folder / "1.png"), 1, 32)
    assert (frame.name, frame.image.mode) == ("1", "L")
    with write_video(tmp_path / "video.mp4", 10) as append:
        for _ in range(3):
            append(Image.new("RGB", (64, 48)))
    frames = open_frames(str(tmp_path / "video.mp4"), 1, 32)
    assert (frames.num_frames, frames.fps) == (3, 10)
    assert [(frame.name, frame.image.mode) for frame in frames] == [("00000", "L"), ("00001", "L"), ("00002", "L")]


def test_images_that_cannot_be_read(tmp_path):
    folder = save_images(tmp_path / "images", "1.png", "3.png")
    (folder / "2.png").write_text("no image")
    Image.new("RGB", (1, 60000)).save(folder / "4.png")
    frames = open_frames(str(folder), 3, 480)
    assert [frame.name for frame in frames] == ["1", "3"]
    assert [name.rpartition("/")[2] for name in frames.skipped] == ["2.png", "4.png"]
    assert "too thin" in frames.skipped[str(folder / "4.png")]
    with pytest.raises(ValueError, match=r"cannot read .*2.png: no image in a known format"):
        list(open_frames(str(folder), 3, 480, on_error="fail"))
    with pytest.raises(ValueError, match=r"cannot read .*2.png: no image in a known format"):
        list(open_frames(str(folder / "2.png"), 3, 480))
    (folder / "1.png").unlink()
    (folder / "3.png").unlink()
    with pytest.raises(ValueError, match=r"none of the 2 images can be read; the first: .*2.png: no image"):
        list(open_frames(str(folder), 3, 480))


def test_arguments_that_cannot_work_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no images there \(looked for .*png"):
        open_frames(str(tmp_path / "empty"), 3, 32)
    with pytest.raises(ValueError, match="is neither a folder, nor an image"):
        open_frames(str(tmp_path / "missing.mp4"), 3, 32)
    with write_video(tmp_path / "video.mp4", 10) as append:
        append(Image.new("RGB", (64, 48)))
    with pytest.raises(ValueError, match="videos have 3 channels, but the model takes 4"):
        open_frames(str(tmp_path / "video.mp4"), 4, 32)
    with pytest.raises(ValueError, match="unknown on_error 'ask'"):
        open_frames(str(tmp_path), 3, 32, on_error="ask")


NUMBERED = ["frame1", "frame2", "frame10", "frame12"]


def test_frames_of_a_video_come_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    """Folders and patterns; a list has its own order, and a folder of images that of the names."""
    folder = save_images(tmp_path / "shots", *(f"{name}.png" for name in NUMBERED))
    names = sorted(str(file) for file in folder.iterdir())
    (tmp_path / "list.txt").write_text("\n".join(names))
    for source, in_natural_order, expected in (
        (folder, True, NUMBERED),
        (folder / "*.png", True, NUMBERED),
        (folder, False, sorted(NUMBERED)),
        (tmp_path / "list.txt", True, sorted(NUMBERED)),
    ):
        frames = open_frames(str(source), 3, 32, in_natural_order=in_natural_order)
        assert [frame.name for frame in frames] == expected


def test_natural_order_is_total():
    names = ["1/b", "2/a", "10/a", "a", "a1", "a01", "a1b", "a2", "a10", "a10b2", "a10b10", "b", "²", "1" * 250]
    assert len({str(natural_key(name)) for name in names}) == len(names)
    assert sorted(["a10", "a9", "a1"], key=natural_key) == ["a1", "a9", "a10"]
    padded = [f"{i:05d}.png" for i in range(0, 3000, 7)]
    assert sorted(padded, key=natural_key) == sorted(padded)
