import re
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bad_images import BadImage, cut_off, write_bad_images
from PIL import Image, ImageFile
from processes import run_python
from tiny_models import tiny_config

from modeling_dino import DinoModel, load_features
from modeling_dino.data.decoding import IMAGE_SUFFIXES, as_text, read_image
from modeling_dino.data.image_source import is_hidden
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.feature_files import FeatureFolder
from modeling_dino.extraction.options import ExtractOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def bad_images(folder) -> dict[str, BadImage]:
    return write_bad_images(folder)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*arguments):
        pytest.fail(f"takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def difference(source: str | bytes, expected: BadImage) -> str | None:
    """What is made of an image, where it is not what is right."""
    try:
        with time_limit(5):
            image, note = read_image(source)
    except ValueError as error:
        reason = str(error)
        is_right = expected.reason is not None and re.search(expected.reason, reason) and "\n" not in reason
        return None if is_right else reason
    if expected.reference is None or image.tobytes() != expected.reference.tobytes():
        return "other pixels"
    is_right = re.search(expected.note, note or "") if expected.note else note is None
    return None if is_right else f"noted: {note}"


@pytest.mark.parametrize("load_truncated", [False, True])
def test_each_is_right_or_reported(folder, bad_images, load_truncated, monkeypatch):
    """Whatever else the program has told Pillow to let pass."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", load_truncated)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: difference(str(folder / name), expected) for name, expected in bad_images.items()}
        found |= {
            f"{name}, its content": difference(expected.content, expected)
            for name, expected in bad_images.items()
            if expected.content is not None
        }
    assert {name: what for name, what in found.items() if what} == {}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is load_truncated


def test_the_reason_does_not_repeat_the_path(folder, bad_images):
    for name, expected in bad_images.items():
        if expected.reason:
            with pytest.raises(ValueError, match=r"\w+") as error:
                read_image(str(folder / name))
            assert str(folder) not in str(error.value)


READ_EACH = """
from pathlib import Path
from modeling_dino.data.decoding import read_image
for file in Path("bad").iterdir():
    try:
        read_image(str(file))
    except ValueError:
        pass
"""


@pytest.mark.slow
def test_nothing_on_stderr(tmp_path, folder, bad_images):
    """In a process of its own, without pytest, which takes warnings and logs to itself."""
    (tmp_path / "bad").symlink_to(folder)
    assert run_python(READ_EACH, tmp_path).stderr == ""


def test_several_threads(monkeypatch):
    """They share what is set in Pillow."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    files = [image.content for _, image in cut_off()]
    with ThreadPoolExecutor(4) as pool:
        for reading in [pool.submit(read_image, file) for file in 3 * files]:
            with pytest.raises(ValueError, match=r"\w+"):
                reading.result()
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_of_them_goes_through(tmp_path, folder, bad_images, num_workers, capfd):
    DinoModel(tiny_config()).save_pretrained(tmp_path / "model")
    capfd.readouterr()  # its progress bar
    found = {
        as_text(str(folder / name)): image
        for name, image in bad_images.items()
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(name)
    }
    Image.new("1", (100_000, 1)).save(folder / "too-thin.png")
    found[as_text(str(folder / "too-thin.png"))] = BadImage(reason="too thin")
    readable = {path: image.reference for path, image in found.items() if image.reference}
    (tmp_path / "references").mkdir()
    for i, reference in enumerate(readable.values()):
        reference.save(tmp_path / "references" / f"{i:04d}.png")
    with time_limit(30):
        for images in (folder, tmp_path / "references"):
            names = {"model": str(tmp_path / "model"), "images": str(images)}
            output = str(tmp_path / f"{images.name}-out")
            extract_features(ExtractOptions(**names, output=output, num_workers=num_workers, progress=False))

    table, manifest = (read(tmp_path / f"{folder.name}-out") for read in (load_features, FeatureFolder.read))
    reasons = {path: image.reason for path, image in found.items() if image.reason}
    assert manifest["skipped"].keys() == reasons.keys()
    assert all(re.search(reasons[path], said) for path, said in manifest["skipped"].items())
    assert manifest["notes"].keys() == {path for path, image in found.items() if image.note}
    rows = dict(zip(table["path"], table["feature"], strict=True))
    assert rows.keys() == readable.keys()
    expected = load_features(tmp_path / "references-out")["feature"]
    np.testing.assert_allclose(np.stack([rows[path] for path in readable]), expected, rtol=0, atol=1e-5)
    said = capfd.readouterr().err.replace("\r", "\n").splitlines()
    assert [line for line in said if line and not line.startswith("Loading weights")] == []  # transformers' bar
