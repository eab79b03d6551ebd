import random
import re
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from modeling_dino.data.video import Video, is_video, write_video


def frames(number: int = 6, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """A white square that moves over a red background, by 8 pixels a frame."""
    images = [Image.new("RGB", size, (200, 30, 60)) for _ in range(number)]
    for i, image in enumerate(images):
        image.paste("white", (8 * i, 16, 8 * i + 16, 32))
    return images


def save(path, images, fps=25):
    with write_video(path, fps) as append:
        for image in images:
            append(image)
    return path


@pytest.mark.parametrize("fps", [25, 12.5, Fraction(30000, 1001)])
def test_what_is_written_is_read(tmp_path, fps):
    images = frames()
    video = Video(save(tmp_path / "video.mp4", images, fps))
    assert (video.num_frames, video.fps) == (6, fps)
    for _ in range(2):  # as often as it is asked for
        read = list(video)
        assert [image.size for image in read] == [(64, 48)] * 6
        for image, original in zip(read, images):
            difference = np.abs(np.asarray(image).astype(int) - np.asarray(original))
            assert difference.mean() < 5
            assert np.abs(np.asarray(image)[40, 8].astype(int) - (200, 30, 60)).max() < 8  # colours stay
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_odd_sides(tmp_path):
    video = Video(save(tmp_path / "video.mp4", frames(size=(63, 49))))
    assert next(iter(video)).size == (62, 48)


def test_a_video_that_was_filmed_upright(tmp_path):
    path = save(tmp_path / "video.mp4", frames())
    content = bytearray(path.read_bytes())
    # the matrix in the track's header, see ISO/IEC 14496-12, 8.3.2: by a quarter to the right
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 20] = b"".join(x.to_bytes(4, "big", signed=True) for x in (0, 65536, 0, -65536, 0))
    path.write_bytes(content)
    first = next(iter(Video(path)))
    assert first.size == (48, 64)
    assert min(first.getpixel((48 - 24, 8))) > 200  # the square was at the left; turned to the right it is above


def test_a_video_that_cannot_be_read(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    with pytest.raises(ValueError, match=r"cannot read .*text.mp4: Invalid data"):
        Video(tmp_path / "text.mp4")
    whole = save(tmp_path / "video.mp4", frames(30, (320, 240)))
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-500])  # the index is at the end
    with pytest.raises(ValueError, match=r"cannot read .*cut.mp4: (Invalid data|End of file)"):
        Video(tmp_path / "cut.mp4")
    with pytest.raises(ValueError, match=r"cannot read .*missing.mp4: No such file"):
        Video(tmp_path / "missing.mp4")


def test_a_damaged_video(tmp_path):
    path = save(tmp_path / "video.mp4", frames())
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 4
    content[at : at + 900] = bytes(900)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*video.mp4: "):
        list(Video(path))


def test_a_video_that_is_cut_off_gives_what_is_there(tmp_path, caplog):
    with av.open(str(tmp_path / "video.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", 25)
        stream.width, stream.height = 64, 48
        for image in frames(20):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    content = (tmp_path / "video.mp4").read_bytes()
    (tmp_path / "video.mp4").write_bytes(content[: len(content) * 3 // 4])
    assert 1 < len(list(Video(tmp_path / "video.mp4"))) < 20
    assert re.search(r"video.mp4 is cut off: \d+ of 20 frames are there", caplog.text)


def test_sound_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="there is no video in it"):
        Video(tmp_path / "sound.mp4")


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"frames of different sizes make no video: \(64, 48\) and \(32, 32\)"):
        save(tmp_path / "video.mp4", [*frames(2), Image.new("RGB", (32, 32))])
    with pytest.raises(ValueError, match="no frames"):
        save(tmp_path / "video.mp4", [])
    with pytest.raises(OSError, match=r"cannot write .*video.mp4"):
        save(tmp_path / "nowhere" / "video.mp4", frames(2))
    assert not list(tmp_path.iterdir())


def test_what_was_there_is_kept(tmp_path):
    path = save(tmp_path / "video.mp4", frames(2))
    content = path.read_bytes()
    with pytest.raises(ValueError, match="different sizes"):
        save(path, [*frames(2), Image.new("RGB", (32, 32))])
    assert path.read_bytes() == content


def test_names(tmp_path):
    (tmp_path / "a.MP4").touch()
    (tmp_path / "folder.mp4").mkdir()
    assert is_video(tmp_path / "a.MP4")
    assert not is_video(tmp_path / "folder.mp4")
    assert not is_video(tmp_path / "missing.mp4")


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"av is not installed: run `pip install .*\[video\]"):
        Video("video.mp4")


@pytest.mark.parametrize(
    "error", [KeyError("codec"), OverflowError("too large"), NotImplementedError(), MemoryError()]
)
def test_whatever_a_decoder_raises_names_the_video(tmp_path, error, monkeypatch):
    with write_video(tmp_path / "a.mp4", 10) as append:
        append(Image.new("RGB", (32, 32)))

    def fail(*_):
        raise error

    monkeypatch.setattr("av.open", fail)
    with pytest.raises(ValueError, match=r"cannot read .*a\.mp4: \w+"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["http:a.mp4", "concat:a.mp4", "file,,a.mp4"])
def test_a_name_that_looks_like_a_url(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write_video(tmp_path / name, 10) as append:
        append(Image.new("RGB", (32, 32)))
    assert len(list(Video(name))) == 1


def test_damaged_videos_give_frames_or_a_reason(tmp_path):
    with write_video(tmp_path / "whole.mp4", 10) as append:
        for i in range(4):
            append(Image.effect_noise((32, 32), 40 + 20 * i))
    content, draw = (tmp_path / "whole.mp4").read_bytes(), random.Random(0)
    for at in [draw.randrange(len(content)) for _ in range(60)]:
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]):
            (tmp_path / "a.mp4").write_bytes(damaged)
            try:
                found = f"{len(list(Video(tmp_path / 'a.mp4')))} frames"
            except ValueError as error:
                found = str(error)
            assert re.fullmatch(r"[1-9] frames|cannot read .*a\.mp4: .+", found)
