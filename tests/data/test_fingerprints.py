"""A source whose images or labels change in any way has another fingerprint, and one that stays has the same."""

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_files import encoded, write_tar
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.data import image_source
from modeling_dino.data.sources import open_source
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.options import ExtractOptions
from modeling_dino.training.training_folder import TrainingFolder


def write_bitmap(file: Path, pixel: int):
    """Writes a BMP, of always the same length."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8))
    image.putpixel((4, 4), (pixel, 0, 0))
    image.save(file, "BMP")


def folder(root: Path, change: int) -> Path:
    for name in ("cat/a.bmp", "dog/b.bmp"):
        write_bitmap(root / "images" / name, change)
    return root / "images"


def single_image(root: Path, change: int) -> Path:
    write_bitmap(root / "a.bmp", change)
    return root / "a.bmp"


def text_list(root: Path, change: int) -> Path:
    folder(root, change)
    (root / "list.txt").write_text("images/cat/a.bmp\nimages/dog/b.bmp\n")
    return root / "list.txt"


def order_of_a_list(root: Path, change: int) -> Path:
    folder(root, 0)
    names = ["images/cat/a.bmp", "images/dog/b.bmp"]
    (root / "list.txt").write_text("\n".join(names if change else names[::-1]))
    return root / "list.txt"


def labels_of_a_list(root: Path, change: int) -> Path:
    folder(root, 0)
    (root / "list.csv").write_text(f"path,label\nimages/cat/a.bmp,{'cat' if change else 'dog'}\n")
    return root / "list.csv"


def labels_of_a_folder(root: Path, change: int) -> Path:
    write_bitmap(root / "images" / ("cat" if change else "dog") / "a.bmp", 0)
    return root / "images"


def tar(root: Path, change: int) -> Path:
    return write_tar(root / "a.tar", [("a.bmp", bytes([change]) * 100), ("a.cls", b"0")])


def labels_of_a_tar(root: Path, change: int) -> Path:
    return write_tar(root / "a.tar", [("a.png", encoded(0)), ("a.cls", b"%d" % change)])


def parquet(root: Path, change: int) -> Path:
    table = pa.table({"image": [bytes([change]) * 100], "label": [0]})
    pq.write_table(table, root / "a.parquet", compression="none")
    return root / "a.parquet"


def labels_of_parquet(root: Path, change: int) -> Path:
    pq.write_table(pa.table({"image": [encoded(0)], "label": [change]}), root / "a.parquet", compression="none")
    return root / "a.parquet"


def images_that_parquet_names(root: Path, change: int) -> Path:
    write_bitmap(root / "a.bmp", change)
    pq.write_table(pa.table({"path": ["a.bmp"]}), root / "a.parquet")
    return root / "a.parquet"


def images_that_parquet_names_in_structs(root: Path, change: int) -> Path:
    write_bitmap(root / "a.bmp", change)
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.bmp"}]}), root / "a.parquet")
    return root / "a.parquet"


def saved_data_set(root: Path, change: int) -> Path:
    """Of which only the Arrow file changes, as if a copy had replaced it."""
    if not change:
        datasets.Dataset.from_dict({"image": [b"0123456789" * 9]}).save_to_disk(root / "saved")
        return root / "saved"
    (arrow,) = (root / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes().replace(b"0123456789", b"0123456780"))
    return root / "saved"


KINDS = [
    folder,
    single_image,
    text_list,
    order_of_a_list,
    labels_of_a_list,
    labels_of_a_folder,
    tar,
    labels_of_a_tar,
    parquet,
    labels_of_parquet,
    images_that_parquet_names,
    images_that_parquet_names_in_structs,
    saved_data_set,
]


def facts(root: Path) -> tuple[int, list[int]]:
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    return len(files), [file.stat().st_size for file in files]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_change_that_keeps_every_size(tmp_path, kind: Callable[[Path, int], Path], indexed, monkeypatch):
    """Even if the times of the files stay, too."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def fingerprint(change: int) -> str:
        name = str(kind(tmp_path / "source", change))
        for file in (tmp_path / "source").rglob("*"):
            os.utime(file, (1e9, 1e9))
        source = open_source(name)
        return (source.indexed() if indexed else source).fingerprint()

    (tmp_path / "source").mkdir()
    before = fingerprint(0)
    sizes = facts(tmp_path / "source")
    assert open_source(str(kind(tmp_path / "source", 0))).fingerprint() == before
    assert fingerprint(1) != before
    if kind is not labels_of_a_folder:
        assert facts(tmp_path / "source") == sizes
    assert fingerprint(0) == before or kind in (labels_of_a_folder, saved_data_set)


@pytest.mark.parametrize("kind", KINDS)
def test_much_data_is_judged_by_the_times_of_its_files(tmp_path, kind, monkeypatch):
    """The content is not read, which would take as long as an epoch."""
    monkeypatch.setattr(image_source, "MAX_HASHED_BYTES", 0)
    name = str(kind(tmp_path, 0))
    before = open_source(name).fingerprint()
    assert open_source(name).fingerprint() == before
    for file in tmp_path.rglob("*"):
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))
    assert open_source(name).fingerprint() != before


def test_what_cannot_be_read_has_a_fingerprint_too(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("link.png")
    (tmp_path / "list.txt").write_text("pipe.png\nlink.png\nnothing.png\n/dev/zero\n" + "n" * 300)
    assert open_source(str(tmp_path)).fingerprint()
    assert open_source(str(tmp_path / "list.txt")).fingerprint()


def test_extraction_says_what_changed_and_what_to_do(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path / "model")

    def extract(**options):
        names = {"model": str(tmp_path / "model"), "images": str(tmp_path / "images")}
        options = ExtractOptions(**names, output=str(tmp_path / "out"), progress=False, num_workers=0, **options)
        return extract_features(options).computed

    folder(tmp_path, 0)
    assert extract() == 2
    for file in (tmp_path / "images").rglob("*.bmp"):
        file.touch()  # as by a copy of the same
    assert extract() == 0
    folder(tmp_path, 1)
    with pytest.raises(ValueError, match=r"images_fingerprint: .* \(the images .*or pass --overwrite"):
        extract()
    assert extract(overwrite=True) == 2


def test_training_says_what_changed_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingFolder, "has_results", lambda self: True)
    TrainingFolder(tmp_path, {"data": {"fingerprint": "a"}}, ()).open(False)
    with pytest.raises(ValueError, match=r"data.fingerprint: a -> b \(the images .*or pass --overwrite"):
        TrainingFolder(tmp_path, {"data": {"fingerprint": "b"}}, ()).check(False)
