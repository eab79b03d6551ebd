"""Folders of features, labels, ground truths, masks and outputs that are wrong."""

import io
import itertools
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from faulty_input import BAD_VALUES, Case, damaged, spoilt_json
from feature_folders import write_features
from PIL import Image


MANIFEST, SHARD = "features/manifest.json", "features/features-000000-000000.parquet"
SHARDS = [f"features/features-000000-00000{chunk}.parquet" for chunk in range(3)]
KNN = ["knn", "--train", "features", "--test", "features", "--k", "1"]
RETRIEVE = ["retrieve", "--index", "features"]
LINEAR = ["linear", "--train", "features", "--test", "features", "--model", "vit", "--epochs", "1"]
EXTRACT = ["extract", "--model", "vit", "--images", "images", "--output", "features", "--num-workers", "0"]
REPORT = ["report", "features"]
SEGMENT = ["segment", "--model", "vit", "--video", "images/a", "--mask", "mask.png", "--size", "32", "--output", "out"]
READERS = (KNN, RETRIEVE, LINEAR, REPORT)


def cases(healthy: Path) -> Iterator[Case]:
    yield from manifests(healthy)
    yield from shards(healthy)
    yield from labels(healthy)
    yield from numbers(healthy)
    yield from ground_truths()
    yield from masks()
    yield from outputs(healthy)


def manifests(healthy: Path) -> Iterator[Case]:
    """Each key left out or replaced; those of the settings by a few values, by each command in turn."""
    for wrong, text in itertools.islice(spoilt_json(healthy / MANIFEST), 0, None, 4):
        yield Case(f"manifest: {wrong}", KNN, {MANIFEST: text})
    content, commands = json.loads((healthy / MANIFEST).read_text()), itertools.cycle((KNN, RETRIEVE, REPORT))
    for start, key in enumerate(content["settings"]):
        for bad in BAD_VALUES[start % 16 :: 16]:
            spoilt = {**content, "settings": {**content["settings"], key: bad}}
            yield Case(f"settings: {key}={str(bad)[:20]!r}", next(commands), {MANIFEST: json.dumps(spoilt)})
        spoilt = {**content, "settings": {name: v for name, v in content["settings"].items() if name != key}}
        yield Case(f"settings: no {key}", KNN, {MANIFEST: json.dumps(spoilt)})
    for key in ("model", "transform", "images_fingerprint"):
        spoilt = {**content, "settings": {name: v for name, v in content["settings"].items() if name != key}}
        yield Case(f"settings: no {key}, resumed", EXTRACT, {MANIFEST: json.dumps(spoilt)}, code=2)
    for wrong, text in (
        ("empty", ""),
        ("cut", json.dumps(content)[:-9]),
        ("deep", "[" * 10**5),
        ("of another program", '{"name": "app", "icons": []}'),
        ("bytes", b"\xff\xfe\x00"),
        ("with NaN for rows", json.dumps({**content, "rows": float("nan")})),
        ("of seven rows", json.dumps({**content, "rows": 7})),
        ("of a negative shape", json.dumps({**content, "features": {"feature": [-8, -4]}})),
        ("of no shape", json.dumps({**content, "features": {"feature": []}})),
        ("of another width", json.dumps({**content, "features": {"feature": [16]}})),
        ("of no column", json.dumps({**content, "features": {}})),
        ("of other shards", json.dumps({**content, "shards": {"features-000000-000000.parquet": {"rows": 6}}})),
    ):
        command = next(commands)
        yield Case(f"manifest {wrong}: {command[0]}", command, {MANIFEST: text}, code=2)
    for wrong, text in (
        ("empty", ""),
        ("of other shards", '{"shards": {}}'),
        ("of another program", '{"name": "app"}'),
    ):
        for command in (EXTRACT, LINEAR):
            yield Case(f"manifest {wrong}: {command[0]}", command, {MANIFEST: text}, code=2)
    for command in READERS:
        yield Case(f"no manifest: {command[0]}", command, {MANIFEST: None}, code=2)


def folder_of(healthy: Path, features: np.ndarray, **options: object) -> dict[str, bytes]:
    """A folder of features of the images, as files; the manifest does not list the shards, as older ones."""
    with tempfile.TemporaryDirectory() as place:
        write_features(Path(place) / "features", healthy / "images", features, **options)
        files = {f"features/{file.name}": file.read_bytes() for file in Path(place, "features").iterdir()}
    manifest = json.loads(files[MANIFEST])
    return files | {MANIFEST: json.dumps({key: value for key, value in manifest.items() if key != "shards"}).encode()}


def listed(files: dict[str, bytes], change: Callable[[dict], object] = lambda manifest: None) -> dict[str, bytes]:
    """The folder with a changed manifest."""
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    return files | {MANIFEST: json.dumps(manifest).encode()}


def table_of(content: bytes) -> pa.Table:
    """The table of a shard."""
    return pq.read_table(io.BytesIO(content))


def parquet(table: pa.Table, like: pa.Table) -> bytes:
    """A table as a shard that says of itself what another says."""
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(like.schema.metadata), file)
    return file.getvalue()


def shards(healthy: Path) -> Iterator[Case]:
    """Cut, changed, missing, doubled, swapped, renamed, and with other columns."""
    for wrong, content in damaged(healthy / SHARD, 8):
        yield Case(f"shard: {wrong}", KNN, {SHARD: content}, code=2)
    for command, (wrong, content) in zip(
        itertools.cycle((RETRIEVE, REPORT, LINEAR, EXTRACT)), damaged(healthy / SHARD, 4)
    ):
        code = None if command is EXTRACT else 2  # what is there is not read again
        yield Case(f"shard: {wrong}: {command[0]}", command, {SHARD: content}, code=code)
    files = folder_of(healthy, np.arange(24.0).reshape(6, 4), shard_rows=2)
    first, second, third = (files[name] for name in SHARDS)
    table, commands = table_of(second), itertools.cycle(((KNN, REPORT), (RETRIEVE,)))
    for wrong, changed in {
        "first missing": {SHARDS[0]: None},
        "second missing": {SHARDS[1]: None},
        "last missing": {SHARDS[2]: None},
        "all missing": dict.fromkeys(SHARDS),
        "renamed": {SHARDS[2]: None, "features/features-000009-000000.parquet": third},
        "doubled": {"features/features-000001-000000.parquet": first},
        "of a shard too many": {SHARDS[1]: first, SHARDS[0]: third, SHARDS[2]: second},
        "of text": {SHARDS[1]: "text"},
        "empty": {SHARDS[1]: b""},
        "of other rows": {SHARDS[1]: parquet(table[:1], table)},
        "that say nothing": {SHARDS[1]: parquet(table, table.replace_schema_metadata({}))},
        "that say nonsense": {SHARDS[1]: parquet(table, table.replace_schema_metadata({"dino": "[" * 5000}))},
        "that say too little": {SHARDS[1]: parquet(table, table.replace_schema_metadata({"dino": "{}"}))},
        "without labels": {SHARDS[1]: parquet(table.drop_columns("label"), table)},
        "without names": {SHARDS[1]: parquet(table.drop_columns("path"), table)},
        "without features": {SHARDS[1]: parquet(table.drop_columns("feature"), table)},
        "of more columns": {SHARDS[1]: parquet(table.append_column("x", pa.array([1, 2])), table)},
        "of two of a name": {SHARDS[1]: parquet(table.append_column("path", table["path"]), table)},
        "of doubles": {SHARDS[1]: parquet(table.set_column(2, "feature", doubles()), table)},
        "of lists of any length": {SHARDS[1]: parquet(table.set_column(2, "feature", lists()), table)},
        "of no features": {SHARDS[1]: parquet(table.set_column(2, "feature", nulls(table["feature"].type)), table)},
        "of no names": {SHARDS[1]: parquet(table.set_column(0, "path", nulls(pa.string())), table)},
        "of names in bytes": {SHARDS[1]: parquet(table.set_column(0, "path", pa.array([b"a", b"b"])), table)},
    }.items():
        for command in next(commands):
            yield Case(f"shards {wrong}: {command[0]}", command, {**files, **changed}, code=2)


def doubles() -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8.0)), 4)


def lists() -> pa.Array:
    return pa.array([[1.0] * 4, [2.0] * 3], pa.list_(pa.float32()))


def nulls(kind: pa.DataType) -> pa.Array:
    return pa.array([None, None], kind)


def labels(healthy: Path) -> Iterator[Case]:
    """Odd ones, which are right, or said to be too few."""
    files = folder_of(healthy, np.random.default_rng(0).normal(size=(6, 4)))
    table = table_of(files[SHARD])
    for wrong, (values, code) in {
        "of numbers": ([1, 2] * 3, 0),
        "of large numbers": ([2**62, -(2**62)] * 3, 0),
        "of some": (["a", None, "a", "b", "b", None], 0),
        "of some numbers": ([1, None, 1, 2, 2, None], 0),
        "of escapes": (["\x1b[31ma", "\u202eb"] * 3, 0),
        "of long texts": (["a" * 10**5, "b" * 10**5] * 3, 0),
        "of empty texts": (["", "b"] * 3, 0),
        "of one class": (["a"] * 6, 2),
        "of nobody": (pa.nulls(6, pa.string()), 2),
        "of fractions": ([1.5, 2.5] * 3, 2),
        "of infinite numbers": ([float("inf"), 1.0] * 3, 2),
        "of truths": ([True, False] * 3, 2),
        "of lists": ([["a"], ["b"]] * 3, 2),
        "of bytes": ([b"a", b"\xff"] * 3, 2),
        "of times": (pa.array([0, 1] * 3, pa.timestamp("s")), 2),
    }.items():
        column = values if isinstance(values, pa.Array) else pa.array(values)
        changed = {**files, SHARD: parquet(table.set_column(1, "label", column), table)}
        yield Case(f"labels {wrong}: knn", KNN, changed, code=code)
        if code:
            yield Case(f"labels {wrong}: linear", LINEAR, changed, code=2)
            yield Case(f"labels {wrong}: retrieve", RETRIEVE, changed)
    changed = listed(files, lambda manifest: manifest["settings"].update(features="cls,patch_mean"))
    yield Case("features of two kinds, of which one is there", KNN, changed, code=2)


def numbers(healthy: Path) -> Iterator[Case]:
    """Features that are not finite, or too large to be compared; and single images."""
    for wrong, value in {"NaN": np.nan, "infinite": np.inf, "huge": 1e38}.items():
        features = np.ones((6, 4))
        features[3] = value
        for command in (KNN, RETRIEVE, REPORT):
            files = folder_of(healthy, features)
            yield Case(f"{wrong} features: {command[0]}", command, files, code=2, says="is not finite")
    files = folder_of(healthy, np.ones((6, 4)))
    yield Case("features that are all the same", KNN, files, code=0)
    yield Case(
        "a search for one more image than there is", [*RETRIEVE, "--top", "6"], files, code=2, says="the 5 images"
    )
    one = folder_of(healthy, np.ones((1, 4)), rows=[{"path": "a.png", "label": "a"}])
    yield Case("one image: retrieve", RETRIEVE, one, code=2, says="the only image of the index is the query itself")
    yield Case("one image: knn", KNN, one, code=2, says="two classes are needed")
    for temperature in ("0", "-1", "nan", "1e-300"):
        yield Case(f"temperature {temperature}", [*KNN, "--temperature", temperature], code=2)
    for k in ("0", "-1", "7", "1,7", "1.5", ",", ""):
        yield Case(f"k={k}", [*KNN[:-1], k], code=2)


def ground_truths() -> Iterator[Case]:
    """What says which images a query should find."""
    right = {"queries": {"a/0": {"positive": ["a/1", "a/2"], "ignored": ["b/0"]}}}
    command = [*RETRIEVE, "--ground-truth", "truth.json"]
    yield Case("a right ground truth", command, {"truth.json": json.dumps(right)}, code=0, says="mAP")
    for start, bad in enumerate(BAD_VALUES):
        name = str(bad)[:20]
        for where, content in (
            ("truth", bad),
            ("queries", {"queries": bad}),
            ("query", {"queries": {"a/0": bad}}),
            ("positive", {"queries": {"a/0": {"positive": bad}}}),
            ("image", {"queries": {"a/0": {"positive": [bad]}}}),
        )[start % 4 :: 4]:
            code = 0 if (where, bad) == ("image", "a") else 2
            yield Case(f"ground truth: {where}={name!r}", command, {"truth.json": json.dumps(content)}, code=code)
    for wrong, kinds in {
        "an unknown kind": {"positives": ["a/1"]},
        "an image twice": {"positive": ["a/1", "a/1"]},
        "an image of two kinds": {"easy": ["a/1"], "hard": ["a/1"]},
        "an ambiguous image": {"positive": ["1"]},
        "an image that is not there": {"positive": ["c/1"]},
        "nothing to find": {"ignored": ["a/1"]},
        "itself to find": {"positive": ["a/0"]},
    }.items():
        text = json.dumps({"queries": {"a/0": kinds}})
        yield Case(f"ground truth: {wrong}", command, {"truth.json": text}, code=2)
    loaded = pickle.dumps({"imlist": ["a/0"], "qimlist": ["a/1"], "gnd": [{"easy": [0], "hard": [], "junk": []}]})
    for name, content in {"truth.pkl": loaded, "truth.json": loaded, "gnd_roxford5k.pkl": b"cos\nsystem\n"}.items():
        yield Case(f"a pickle, {name}", [*RETRIEVE, "--ground-truth", name], {name: content}, code=2)
    yield Case("no ground truth", command, code=2)


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    """A picture of one colour a number."""
    file, picture = io.BytesIO(), Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(file, "PNG")
    return file.getvalue()


def masks() -> Iterator[Case]:
    """Masks of a video of three frames, of 40 x 36 pixels, and what they are scored by."""
    right = np.zeros((36, 40), np.uint8)
    right[4:30, 4:30] = 7
    one, picture = np.where(right > 0, np.uint8(1), np.uint8(0)), png(right)
    scored = [*SEGMENT, "--ground-truth", "truth"]
    truth = {f"truth/{i}.png": picture for i in range(3)}
    yield Case("a right mask", scored, {"mask.png": picture, **truth}, code=0, says="J&F")
    yield Case("objects of other numbers", scored, {"mask.png": png(one), **truth}, code=2, says="has object 1, truth")
    for wrong, content in {
        "of colours": png(np.repeat(right[..., None], 3, 2)),
        "of 16 bits": png(right.astype(np.uint16)),
        "of another size": png(right[:20]),
        "of background": png(right * 0),
        "of nobody": png(np.full_like(right, 255) * (np.arange(40) > 41).astype(np.uint8)),
        "of a small object": png(np.pad(one[4:6, 4:6], ((0, 34), (0, 38)))),
        "of nothing": b"",
        "of text": b"mask",
        "cut": picture[:60],
        "with a changed byte": picture[:60] + bytes([picture[60] ^ 255]) + picture[61:],
    }.items():
        yield Case(f"a mask {wrong}", SEGMENT, {"mask.png": content}, code=2)
        if wrong in ("of colours", "of another size", "cut"):
            yield Case(f"a truth {wrong}", scored, {"mask.png": picture, **truth, "truth/0.png": content}, code=2)
    for wrong, changed in {
        "missing": {"truth/1.png": None},
        "of another name": {"truth/1.png": None, "truth/x.png": picture},
        "of more frames": {"truth/3.png": picture},
        "all missing": dict.fromkeys(truth),
    }.items():
        yield Case(f"a truth {wrong}", scored, {"mask.png": picture, **truth, **changed}, code=2)


def outputs(healthy: Path) -> Iterator[Case]:
    """Files that a command did not write, where it is to write."""
    kept = "was not written by this command, and is kept"
    for place in ("vit/config.json", MANIFEST, SHARD, "images/a/0.png", "vit/model.safetensors"):
        yield Case(f"report over {place}", [*REPORT, "--output", place], code=2, says=kept)
        for command in (KNN, RETRIEVE, LINEAR)[: 1 if place == SHARD else 3]:
            yield Case(f"{command[0]} --json over {place}", [*command, "--json", place], code=2, says=kept)
        bench = ["bench", "--models", "vit", "--what", "knn", "--json", place]
        yield Case(f"bench over {place}", bench, code=2, says=kept)
    for option, name in (("--output", "mine.csv"), ("--output", SHARD), ("--sheet", "images/a/0.png")):
        yield Case(f"retrieve {option} {name}", [*RETRIEVE, option, name], {"mine.csv": "a,b\n"}, code=2, says=kept)
    picture = (healthy / "images" / "a" / "0.png").read_bytes()
    draw = ["--model", "vit", "--images", "images/a/0.png", "--size", "32", "--output", "out"]
    match = ["match", "images/a/0.png", "images/a/0.png", "--model", "vit", "--size", "32", "--output"]
    for places in (["images/a/0.png"], ["out.png", "--table", "mine.csv"]):
        files = {"mine.csv": "a,b\n"}
        yield Case(f"match over {places[-1]}", [*match, *places], files, code=2, says=kept)
    for command, name in (("attention", "0-head0.png"), ("pca", "0-pca.png")):
        drawn = [command, *draw]
        yield Case(f"{command} into pictures", drawn, {f"out/{name}": picture}, code=2, says="is not empty")
        yield Case(f"{command} over a picture", [*drawn, "--overwrite"], {f"out/{name}": picture}, code=2, says=kept)
    mask = png(np.pad(np.ones((30, 30), np.uint8), ((0, 6), (0, 10))))
    files = {"mask.png": mask, "out/1.png": mask}
    yield Case("segment over a mask", [*SEGMENT, "--overwrite"], files, code=2, says=kept)
    yield Case("a demo among files", ["demo", "--output", "images"], code=2, says="something other than a demo")
    yield Case("linear into a model", [*LINEAR, "--output", "resnet"], code=2, says="not an empty folder")
    yield Case(
        "features among files", [*EXTRACT[:5], "--output", "images"], code=2, says="something other than features"
    )
    for wrong, text in (("damaged", "["), ("of something else", '{"a": 1}'), ("of nonsense", "[1, null]")):
        files = {"vit/evaluation_results.json": text}
        yield Case(
            f"results {wrong}", [*KNN, "--model", "vit", "--record"], files, code=2, says="is not a list of results"
        )
    for name, images in {"empty.txt": "", "none.txt": "no.png\nnot.png\n", "text.png": "no image"}.items():
        command = ["extract", "--model", "vit", "--images", name, "--output", "out"]
        yield Case(f"features of {name}", command, {name: images}, code=2)
