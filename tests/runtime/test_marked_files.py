from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modeling_dino.data.video import VIDEO_MARK, write_video
from modeling_dino.pictures.picture_files import ARRAYS_MARK, PICTURE_MARK, save_picture, save_tensors
from modeling_dino.runtime.marked_files import check_marked, has_mark, marked_file


def write_frames(file: Path, side: int = 32):
    with write_video(file, 5) as append:
        append(Image.effect_noise((side, side), 90))


NOISE = Image.effect_noise((400, 400), 90).convert("RGB")
WRITERS = {
    "picture.png": (lambda file: save_picture(NOISE, file), PICTURE_MARK),
    "arrays.safetensors": (lambda file: save_tensors({"a": torch.rand(200, 200)}, file), ARRAYS_MARK),
    "video.mp4": (lambda file: write_frames(file, 256), VIDEO_MARK),
}
FOREIGN = {
    "picture.png": NOISE.save,
    "arrays.safetensors": lambda file: save_file({"a": torch.rand(200, 200)}, file),
    "video.mp4": lambda file: file.write_bytes(b"somebody's video"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_function_wrote_it_replaces_and_nothing_else(tmp_path, name):
    write, mark = WRITERS[name]
    file = tmp_path / name
    for _ in range(2):
        write(file)
        assert has_mark(file, mark)
    before = file.read_bytes()
    FOREIGN[name](file)
    foreign = file.read_bytes()
    assert foreign != before
    with pytest.raises(ValueError, match=rf"{name} was not written by this command, and is kept"):
        write(file)
    assert file.read_bytes() == foreign


def test_a_mark_stands_at_either_end(tmp_path):
    for name, content in {"begin": b"mark" + b"x" * 10**6, "end": b"x" * 10**6 + b"mark", "short": b"-mark-"}.items():
        (tmp_path / name).write_bytes(content)
        assert has_mark(tmp_path / name, "mark")
    (tmp_path / "none").write_bytes(b"x" * 10**6 + b"mark" + b"x" * 10**6)
    assert not has_mark(tmp_path / "none", "mark")
    check_marked(None, "mark")
    check_marked(tmp_path / "missing", "mark")
    with pytest.raises(ValueError, match="is a folder"), marked_file(tmp_path, "mark"):
        pass
