import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_folders import write_features
from PIL import Image

from modeling_dino import load_features
from modeling_dino.extraction.feature_files import open_features


SHARDS = [f"features-000000-00000{chunk}.parquet" for chunk in range(3)]
FEATURES = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Features of six images in three shards."""
    for i in range(6):
        (tmp_path / "images" / f"class-{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"class-{i % 2}" / f"{i}.png")
    write_features(tmp_path / "features", tmp_path / "images", FEATURES, shard_rows=2)
    return tmp_path / "features"


def edit(folder: Path, change: Callable[[dict], object]):
    """Changes the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def as_older(folder: Path):
    """Makes the manifest one of those that do not list the shards."""
    edit(folder, lambda manifest: manifest.pop("shards"))


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table], shard: str = SHARDS[1]):
    """Changes a shard, and keeps what it says about itself."""
    table = pq.read_table(folder / shard)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), folder / shard)


@pytest.mark.parametrize("older", [False, True])
def test_shards_are_put_together(folder, older):
    if older:
        as_older(folder)
    table = load_features(folder)
    np.testing.assert_array_equal(table["feature"], FEATURES)
    assert table["label"].tolist() == ["class-0"] * 3 + ["class-1"] * 3
    stored = open_features(folder)
    assert (stored.rows, len(stored.shards), stored.shapes) == (6, 3, {"feature": [4]})


def swap(folder: Path):
    (folder / SHARDS[0]).rename(folder / "other")
    (folder / SHARDS[1]).rename(folder / SHARDS[0])
    (folder / "other").rename(folder / SHARDS[1])


def add_foreign(folder: Path):
    write_features(folder.parent / "foreign", folder.parent / "images", FEATURES + 1, shard_rows=2)
    shutil.copy(folder.parent / "foreign" / SHARDS[1], folder / SHARDS[1])


def flip(folder: Path, place: float):
    content = bytearray((folder / SHARDS[1]).read_bytes())
    content[int(place * len(content))] ^= 255
    (folder / SHARDS[1]).write_bytes(content)


def null_rows(table: pa.Table, name: str) -> pa.Table:
    column = pa.array([None] * len(table), table[name].type)
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)


LACKS = "lacks features .*: run the same `dino extract` again"
DAMAGED = r"0000\d\.parquet is damaged \(.*\): remove it, and run the same `dino extract` again"
SPOILT_SHARDS = {
    "first missing": (lambda folder: (folder / SHARDS[0]).unlink(), LACKS),
    "second missing": (lambda folder: (folder / SHARDS[1]).unlink(), LACKS),
    "last missing": (lambda folder: (folder / SHARDS[2]).unlink(), LACKS),
    "all missing": (lambda folder: [(folder / shard).unlink() for shard in SHARDS], LACKS),
    "renamed": (lambda folder: (folder / SHARDS[2]).rename(folder / "features-000007-000000.parquet"), DAMAGED),
    "doubled": (lambda folder: shutil.copy(folder / SHARDS[0], folder / "features-000001-000000.parquet"), DAMAGED),
    "swapped": (swap, DAMAGED),
    "of other features": (add_foreign, DAMAGED),
    "cut": (lambda folder: (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-100]), DAMAGED),
    "empty": (lambda folder: (folder / SHARDS[1]).write_bytes(b""), DAMAGED),
    "no Parquet": (lambda folder: (folder / SHARDS[1]).write_text("text"), DAMAGED),
    "fewer rows": (lambda folder: rewrite(folder, lambda table: table[:1]), DAMAGED),
    "more columns": (lambda folder: rewrite(folder, lambda t: t.append_column("x", pa.array([1, 2]))), DAMAGED),
    "fewer columns": (lambda folder: rewrite(folder, lambda table: table.drop_columns("label")), DAMAGED),
    "no features": (lambda folder: rewrite(folder, lambda table: table.drop_columns("feature")), DAMAGED),
    "no names": (lambda folder: rewrite(folder, lambda table: table.drop_columns("path")), DAMAGED),
    "names of numbers": (lambda folder: rewrite(folder, lambda t: t.set_column(0, "path", pa.array([1, 2]))), DAMAGED),
    "null features": (lambda folder: rewrite(folder, lambda table: null_rows(table, "feature")), DAMAGED),
    "null names": (lambda folder: rewrite(folder, lambda table: null_rows(table, "path")), DAMAGED),
    "narrow features": (
        lambda folder: rewrite(
            folder, lambda t: t.set_column(2, "feature", pa.FixedSizeListArray.from_arrays(pa.array(FEATURES[0]), 2))
        ),
        DAMAGED,
    ),
    "features of other numbers": (
        lambda folder: rewrite(
            folder,
            lambda t: t.set_column(2, "feature", pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8.0)), 4)),
        ),
        DAMAGED,
    ),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", SPOILT_SHARDS)
def test_shards_that_are_not_as_they_were_written_are_refused(folder, name, older):
    """Older manifests do not tell which shards there were, but whether rows are missing."""
    if older:
        as_older(folder)
    spoil, says = SPOILT_SHARDS[name]
    spoil(folder)
    if older and name in ("swapped", "of other features"):
        return
    with pytest.raises(ValueError, match=f"{says}|{LACKS}" if older else says):
        load_features(folder)


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8, 0.9, 0.97])
def test_a_changed_byte_is_noticed(folder, place):
    flip(folder, place)
    with pytest.raises(ValueError, match=DAMAGED):
        load_features(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: manifest.pop("rows"), "it lacks rows"),
        (lambda manifest: manifest.pop("features"), "it lacks features"),
        (lambda manifest: manifest.update(rows="6"), "rows"),
        (lambda manifest: manifest.update(skipped=[]), "skipped"),
        (lambda manifest: manifest.update(shards={SHARDS[0]: 2}), "shards"),
        (lambda manifest: manifest.update(features={"feature": [-2, -2]}), "shape"),
        (lambda manifest: manifest.update(features={"feature": []}), "shape"),
        (lambda manifest: manifest.update(features={"other": [4]}), "features='cls' does not fit"),
        (lambda manifest: manifest["settings"].pop("last_blocks"), "it lacks last_blocks"),
        (lambda manifest: manifest["settings"].update(last_blocks=0), "last_blocks=0 does not fit"),
        (lambda manifest: manifest["settings"].update(dtype="float8"), "dtype='float8' does not fit"),
        (lambda manifest: manifest["settings"].update(features="nonsense"), "features='nonsense' does not fit"),
        (lambda manifest: manifest["settings"].update(features="keys@x"), "features='keys@x' does not fit"),
        (lambda manifest: manifest["settings"].update(transform=None), "transform"),
    ],
)
def test_a_damaged_manifest_is_refused(folder, change, says):
    edit(folder, change)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: ") as caught:
        open_features(folder)
    assert says in str(caught.value)


def test_rows_that_do_not_add_up_are_refused(folder):
    edit(folder, lambda manifest: manifest.update(rows=7))
    with pytest.raises(ValueError, match="there are 6 rows of 7"):
        open_features(folder)
