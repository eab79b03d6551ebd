import os
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import encoded, picture, save_picture, write_tar

from modeling_dino.data import image_tables
from modeling_dino.data.image_source import RemoteFile, Unreadable
from modeling_dino.data.paths import PathsOfHub
from modeling_dino.data.reader import decode_record
from modeling_dino.data.sources import open_source
from modeling_dino.training.knn_evaluation import open_labelled


def records(source, rows=2) -> list:
    return [record for part in source.parts(rows) for record in source.read(part)]


def columns(source) -> list[dict]:
    return [record.columns for record in records(source)]


def assert_pictures(source, numbers):
    """The source gives these pictures, in this order, and has the columns it says it has."""
    found = records(source)
    assert source.num_images in (None, len(found))
    assert all(list(record.columns) == list(source.columns) for record in found)
    for record, number in zip(found, numbers, strict=True):
        image, _ = decode_record(record)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(number)))


def webdataset(numbers: range) -> list[tuple[str, bytes]]:
    return [
        member
        for n in numbers
        for member in ((f"{n:03d}.json", b"{}"), (f"{n:03d}.png", encoded(n)), (f"{n:03d}.cls", b"%d" % (n % 3)))
    ]


def table_of(numbers: range, **features) -> datasets.Dataset:
    data = {"image": [{"bytes": encoded(n), "path": None} for n in numbers], "label": [n % 3 for n in numbers]}
    classes = datasets.ClassLabel(names=["cat", "dog", "owl"])
    return datasets.Dataset.from_dict(
        data, features=datasets.Features({"image": datasets.Image(), "label": classes, **features})
    )


def test_a_folder_in_the_order_of_its_paths(tmp_path):
    names = ["a/x/1.png", "a/2.PNG", "a b.png", "b.png", "B.png", "a.dir/z.png"]
    for number, name in enumerate(names):
        save_picture(tmp_path / name, number)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    expected = sorted(map(Path, names))
    assert [Path(row["path"]).relative_to(tmp_path) for row in columns(source)] == expected
    assert_pictures(source, [names.index(str(path)) for path in expected])


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    save_picture(tmp_path / "elsewhere" / "1.png", 1)
    save_picture(tmp_path / "images" / "0.png", 0)
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "circle").symlink_to(tmp_path / "images")
    assert_pictures(open_source(str(tmp_path / "images")), [0, 1])


def test_sub_folders_are_classes_if_every_image_lies_in_one(tmp_path):
    for number, name in enumerate(["cat/1.png", "cat/old/2.png", "dog/1.png"]):
        save_picture(tmp_path / name, number)
    assert [row["label"] for row in columns(open_source(str(tmp_path)))] == ["cat", "cat", "dog"]
    save_picture(tmp_path / "stray.png", 9)
    assert open_source(str(tmp_path)).columns == {"path": "string"}


def test_a_list_with_relative_and_absolute_paths(tmp_path):
    save_picture(tmp_path / "images" / "0.png", 0)
    save_picture(tmp_path / "1 and more.png", 1)
    (tmp_path / "list.txt").write_text(f"images/0.png\n\n{tmp_path}/1 and more.png\n")
    assert_pictures(open_source(str(tmp_path / "list.txt")), [0, 1])


def test_a_single_image_and_a_pattern(tmp_path):
    for number in range(3):
        save_picture(tmp_path / f"{number}.png", number)
    assert_pictures(open_source(str(tmp_path / "1.png")), [1])
    assert_pictures(open_source(str(tmp_path / "[02].png")), [0, 2])


def test_nothing_is_a_source_too(tmp_path):
    source = open_source(str(tmp_path))
    assert (source.num_images, columns(source)) == (0, [])
    assert "no images there" in source.notes[str(tmp_path)]
    (tmp_path / "empty.txt").write_text("\n")
    assert open_source(str(tmp_path / "empty.txt")).num_images == 0


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_a_tar_as_webdataset_writes_it(tmp_path, name, mode):
    tar = write_tar(tmp_path / name, webdataset(range(5)), mode)
    source = open_source(str(tar))
    assert_pictures(source, range(5))
    assert columns(source)[4] == {"path": f"{tar}/004.png", "label": "1"}


def test_a_tar_of_images_alone_of_several_kinds(tmp_path):
    members = [("n01/", b""), ("n01/a.b.png", encoded(0)), ("n01/c.PNG", encoded(1)), ("readme.txt", b"text")]
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    assert_pictures(source, [0, 1])
    assert source.columns == {"path": "string"}


def test_tars_of_a_folder_and_of_a_pattern(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / "shards" / f"{shard:02d}.tar", webdataset(range(3 * shard, 3 * shard + 3)))
    for name in ("shards", "shards/*.tar"):
        source = open_source(str(tmp_path / name))
        assert len(source.parts(1)) == 3
        assert_pictures(source, range(9))


@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_tar_cut_short_gives_what_is_whole_and_says_so(tmp_path, kept):
    tar = write_tar(tmp_path / "a.tar", webdataset(range(9)))
    content = tar.read_bytes()
    tar.write_bytes(content[: int(kept * len(content.rstrip(b"\0")))])
    *good, last = records(open_source(str(tar)))
    assert 2 <= len(good) < 9
    assert [decode_record(record)[0].size for record in good[:-1]] == [(7, 9)] * (len(good) - 1)
    with pytest.raises(ValueError, match=r"the tar is damaged|ends within"):
        decode_record(last)


@pytest.mark.parametrize("image_type", ["image", "bytes", "struct"])
def test_parquet(tmp_path, image_type):
    for shard in range(2):
        numbers = range(5 * shard, 5 * shard + 5)
        if image_type == "image":
            table_of(numbers).to_parquet(str(tmp_path / f"{shard}.parquet"))
            continue
        images = [encoded(n) if image_type == "bytes" else {"bytes": encoded(n), "path": "x.png"} for n in numbers]
        pq.write_table(pa.table({"id": [*numbers], "img": images, "label": [*numbers]}), tmp_path / f"{shard}.parquet")
    for name in (str(tmp_path), str(tmp_path / "*.parquet")):
        source = open_source(name)
        assert_pictures(source, range(10))
        assert source.num_images == 10
    label = "owl" if image_type == "image" else 8
    assert columns(source)[8] == {"index": 8, "label": label}


def test_a_folder_of_parquet_or_tars_with_splits(tmp_path):
    table_of(range(4)).to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    table_of(range(4, 6)).to_parquet(str(tmp_path / "parquet" / "test-00000-of-00001.parquet"))
    write_tar(tmp_path / "tars" / "train-0.tar", webdataset(range(4)))
    write_tar(tmp_path / "tars" / "test-0.tar", webdataset(range(4, 6)))
    for folder in ("parquet", "tars"):
        name = str(tmp_path / folder)
        assert_pictures(open_source(f"{name}:train"), range(4))
        assert_pictures(open_source(f"{name}:test"), range(4, 6))
        with pytest.raises(ValueError, match=f"several splits: choose one of {name}:train, {name}:test"):
            open_source(name)
        with pytest.raises(ValueError, match="no split 'validation': choose one of"):
            open_source(f"{name}:validation")


def test_a_saved_data_set(tmp_path):
    table_of(range(5)).save_to_disk(tmp_path / "one")
    source = open_source(str(tmp_path / "one"))
    assert_pictures(source, range(5))
    assert [row["label"] for row in columns(source)] == ["cat", "dog", "owl", "cat", "dog"]
    splits = datasets.DatasetDict(train=table_of(range(3)), test=table_of(range(3, 5)))
    splits.save_to_disk(tmp_path / "two")
    assert_pictures(open_source(f"{tmp_path / 'two'}:test"), range(3, 5))
    with pytest.raises(ValueError, match="several splits: choose one of"):
        open_source(str(tmp_path / "two"))


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A data set of two files, as the hub would give `someone/pictures`."""
    for shard in range(2):
        table_of(range(5 * shard, 5 * shard + 5)).to_parquet(str(tmp_path / "hub" / f"train-{shard}.parquet"))
    for function in ("load_dataset", "load_dataset_builder"):
        original = getattr(datasets, function)

        def local(path, name=None, original=original, **options):
            assert (path, name) == ("someone/pictures", None)
            return original(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"), **options)

        monkeypatch.setattr(datasets, function, local)


@pytest.mark.usefixtures("on_the_hub")
def test_a_data_set_of_the_hub():
    source = open_source("someone/pictures:train")
    assert_pictures(source, range(10))
    assert columns(source)[9] == {"index": 9, "label": "cat"}


@pytest.mark.usefixtures("on_the_hub")
def test_a_data_set_of_the_hub_streamed():
    source = open_source("someone/pictures", streaming=True)
    assert_pictures(source, range(10))
    assert len(source.parts(1)) == 2
    assert columns(source)[9] == {"shard": 1, "index": 4, "label": "cat"}
    assert source.fingerprint() == open_source("someone/pictures", streaming=True).fingerprint()


def test_columns_are_chosen_or_asked_for(tmp_path):
    file = tmp_path / "a.parquet"
    pictures = [encoded(n) for n in range(3)]
    pq.write_table(pa.table({"left": pictures, "right": pictures[::-1], "kind": ["a", None, "c"]}), file)
    with pytest.raises(ValueError, match="several columns of images: choose one of left, right by --image-column"):
        open_source(str(file))
    source = open_source(str(file), image_column="right", label_column="kind")
    assert_pictures(source, [2, 1, 0])
    assert [row["label"] for row in columns(source)] == ["a", None, "c"]
    with pytest.raises(ValueError, match="no column 'top'; its columns are left, right, kind"):
        open_source(str(file), image_column="top")
    pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(ValueError, match="no column of images; its columns are text"):
        open_source(str(file))


def test_rows_without_an_image(tmp_path):
    pq.write_table(pa.table({"image": [encoded(0), None, b""]}), tmp_path / "a.parquet")
    first, *others = records(open_source(str(tmp_path / "a.parquet")))
    assert decode_record(first)[0].size == (7, 9)
    for record in others:
        with pytest.raises(ValueError, match="no image in this row"):
            decode_record(record)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing is neither a folder, nor an image"),
        ("nothing:train", "nothing:train is neither a folder"),
        ("no body/nothing", "is neither a folder"),
        ("nobody/nothing", "nobody/nothing is no file or folder here, and cannot be had as a data set: "),
        ("binary", "binary is neither an image, nor a tar, nor Parquet, nor a text file of paths"),
        ("*", "stands for files of several kinds"),
        ("bad.parquet", "bad.parquet cannot be read as Parquet: "),
        ("images:train", "images has no split 'train'"),
    ],
)
def test_what_is_no_source(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    save_picture(tmp_path / "images" / "0.png", 0)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "bad.parquet").write_text("PAR0")
    with pytest.raises(ValueError, match=message):
        open_source(name)


def test_a_fingerprint_changes_with_the_files(tmp_path):
    for number in range(2):
        save_picture(tmp_path / "images" / f"{number}.png", number)
    write_tar(tmp_path / "a.tar", webdataset(range(2)))
    for source, file in (("images", "images/1.png"), ("a.tar", "a.tar")):
        before = open_source(str(tmp_path / source)).fingerprint()
        assert open_source(str(tmp_path / source)).fingerprint() == before
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b"more")
        assert open_source(str(tmp_path / source)).fingerprint() != before


HIDDEN = [".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/0.png", "._0.png", "cat/._0.png"]
HIDDEN += [".cache/x.png", "__MACOSX/cat/._0.png", "__MACOSX/cat/0.png", ".hidden.png", "cat/.DS_Store"]


def test_what_is_hidden_is_neither_a_class_nor_an_image(tmp_path):
    for number, name in enumerate([*HIDDEN, "cat/0.png", "dog/0.png"]):
        save_picture(tmp_path / "images" / name, number)
    source = open_source(str(tmp_path / "images"))
    assert [row["label"] for row in columns(source)] == ["cat", "dog"]
    assert_pictures(source, [len(HIDDEN), len(HIDDEN) + 1])
    assert open_source(str(tmp_path / "images" / "**" / "*.png")).num_images == 2
    assert open_source(str(tmp_path / "images" / "cat" / "._0.png")).num_images == 1, "is named"
    (tmp_path / "images").rename(tmp_path / ".images")
    assert open_source(str(tmp_path / ".images")).num_images == 2, "the folder itself may be hidden"


def test_tars_and_parquet_that_are_hidden(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", webdataset(range(3)))
    for name in ("._a.tar", "__MACOSX/._a.tar", ".cache/a.tar"):
        save_picture(tmp_path / "shards" / name, 0)
    assert_pictures(open_source(str(tmp_path / "shards")), range(3))
    (tmp_path / "shards" / "a.tar").unlink()
    assert open_source(str(tmp_path / "shards")).num_images == 0


@pytest.fixture
def splits(tmp_path) -> Path:
    """A folder with `train` and `test`, which have folders of classes."""
    for number, name in enumerate(["train/cat/0.png", "train/dog/1.png", "test/cat/2.png", "test/dog/3.png"]):
        save_picture(tmp_path / "tiles" / name, number)
    (tmp_path / "tiles" / "README.md").touch()
    (tmp_path / "tiles" / ".cache").mkdir()
    return tmp_path / "tiles"


def test_folders_that_are_splits(splits):
    for split, numbers in (("train", [0, 1]), ("test", [2, 3])):
        source = open_source(f"{splits}:{split}")
        assert_pictures(source, numbers)
        assert [row["label"] for row in columns(source)] == ["cat", "dog"]
        assert source.fingerprint() == open_source(str(splits / split)).fingerprint()
    with pytest.raises(ValueError, match=f"several splits: choose one of {splits}:test, {splits}:train$"):
        open_source(str(splits))
    with pytest.raises(ValueError, match="no split 'val': choose one of"):
        open_source(f"{splits}:val")


def test_a_single_split_is_understood(splits):
    shutil.rmtree(splits / "test")
    assert [row["label"] for row in columns(open_source(str(splits)))] == ["cat", "dog"]


def test_a_split_beside_other_folders_is_understood_if_it_is_named(splits):
    save_picture(splits / "extra" / "4.png", 4)
    assert_pictures(open_source(f"{splits}:train"), [0, 1])
    assert open_source(str(splits)).num_images == 5
    with pytest.raises(ValueError, match=f"has no split 'extra', but a folder of this name: write {splits}/extra"):
        open_source(f"{splits}:extra")
    with pytest.raises(ValueError, match=f"has no split 'val', as it has no splits: write {splits}$"):
        open_source(f"{splits}:val")


def test_a_train_is_a_class_beside_other_vehicles(tmp_path):
    for name in ("bus/0.png", "train/1.png"):
        save_picture(tmp_path / name, 0)
    assert [row["label"] for row in columns(open_source(str(tmp_path)))] == ["bus", "train"]


def test_images_beside_folders_that_are_called_as_splits(splits):
    save_picture(splits / "4.png", 4)
    assert open_source(str(splits)).num_images == 5


def test_splits_of_parquet_and_tars_in_folders(tmp_path):
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        table_of(numbers).to_parquet(str(tmp_path / "parquet" / split / "0.parquet"))
        write_tar(tmp_path / "tars" / split / "0.tar", webdataset(numbers))
        for folder in ("parquet", "tars"):
            assert_pictures(open_source(f"{tmp_path / folder}:{split}"), numbers)
    assert_pictures(open_source(f"{tmp_path / 'parquet'}:val"), range(4, 6))
    with pytest.raises(ValueError, match="several splits: choose one of"):
        open_source(str(tmp_path / "tars"))


@pytest.mark.parametrize("names", [["fine_label", "coarse_label"], ["kind", "group"]])
@pytest.mark.parametrize("classes", [True, False])
def test_labels_that_are_called_otherwise_are_named(tmp_path, names, classes):
    """Those that may be meant, or else all columns."""
    kind = datasets.ClassLabel(names=["a", "b"]) if classes else datasets.Value("int64")
    features = datasets.Features(
        {"image": datasets.Image(), **dict.fromkeys(names, kind), "id": datasets.Value("int64")}
    )
    row = {"image": [{"bytes": encoded(0), "path": None}], **{name: [0] for name in names}, "id": [1]}
    datasets.Dataset.from_dict(row, features=features).to_parquet(tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert "label" not in source.columns
    hint = f"name their column with --label-column: {' or '.join(names)}"
    assert source.how_to_label.startswith(hint if classes or "fine_label" in names else "name their column with")
    assert "kind" in source.how_to_label or "fine_label" in source.how_to_label
    assert source.indexed().how_to_label == source.how_to_label
    with pytest.raises(ValueError, match=f"the images of .* have no labels: {source.how_to_label}"):
        open_labelled([str(tmp_path / "a.parquet")])


def test_damaged_tables_are_refused_in_one_line(tmp_path):
    table_of(range(40)).save_to_disk(tmp_path / "saved")
    table_of(range(40)).to_parquet(tmp_path / "a.parquet")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    content = arrow.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\0" * len(content)):
        arrow.write_bytes(damaged)
        with pytest.raises(ValueError, match="saved cannot be read as a saved data set") as error:
            open_source(str(tmp_path / "saved"))
        assert "\n" not in str(error.value)
    for state in ("{", "[]", "{}", '{"_data_files": [{"filename": 3}]}', "null"):
        (tmp_path / "saved" / "state.json").write_text(state)
        with pytest.raises(ValueError, match="saved cannot be read as a saved data set"):
            open_source(str(tmp_path / "saved"))
    other = pa.table({"text": ["a"]})
    pq.write_table(other, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet is damaged, or has other columns"):
        records(open_source(str(tmp_path / "*.parquet")))


def test_a_class_without_a_name(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    table = pa.table({"image": [{"bytes": encoded(0), "path": None}], "label": [7]})
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="class 7 in row 0"):
        records(open_source(str(tmp_path / "a.parquet")))


def test_a_column_that_cannot_have_images(tmp_path):
    pq.write_table(pa.table({"image": [encoded(0)], "number": [3]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"the column number of .* has neither images nor paths"):
        open_source(str(tmp_path / "a.parquet"), image_column="number")


def test_cells_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(image_tables, "MAX_FILE_BYTES", 2**16)
    pq.write_table(pa.table({"image": [bytes(2**17)]}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 2**13
    with pytest.raises(ValueError, match=r"the images in .*a.parquet are larger than 0 MiB"):
        open_source(str(tmp_path / "a.parquet"))


def test_what_a_data_set_of_the_hub_may_name(tmp_path, monkeypatch):
    """Its own files: streamed, or downloaded to where the hub's client keeps them."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    paths = PathsOfHub("someone/pictures")
    own = tmp_path / "hub" / "datasets--someone--pictures" / "a.png"
    other = tmp_path / "hub" / "datasets--someone--else" / "a.png"
    for file in (own, other):
        save_picture(file, 0)
    streamed = "hf://datasets/someone/pictures@main/a.png"
    assert paths.content(str(own)) == str(own)
    for url in (streamed, f"zip://x/a.png::{streamed}", "hf://datasets/someone/pictures/a.png"):
        assert paths.content(url) == RemoteFile(url)
    for path in (
        str(other),
        "/etc/passwd",
        "a.png",
        "",
        streamed.replace("pictures", "pictures2"),
        streamed.replace("a.png", "../../else/a.png"),
        f"http://localhost::{streamed}",
        f"zip://a::http://localhost::{streamed}",
        "http://localhost/a.png",
        f"{streamed}::http://localhost",
    ):
        assert isinstance(paths.content(path), Unreadable), path


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.csv", "a.txt", "a.mp4", "a"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"is no file of images, nor a list of them|is neither"):
        open_source(str(tmp_path / name))
