"""Sources of images that are damaged, hostile, or named oddly: folders, lists, tars, tables, videos."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from faulty_input import Case, damaged, spoilt_json
from PIL import Image
from source_files import encoded, write_tar

from modeling_dino.data.video import write_video


READ = ["--output", "out", "--num-workers", "0", "--model", "vit"]
NAMES = ["\x1b[31mred", "a\nnew line", "\u202egnp.exe", "\u2066isolate", "a\rb", "a\tb", "%s%n", "$(id)", "-rf", "a;b"]
NAMES += ["n" * 240, "with spaces ", "quo'te\"s", "雪", os.fsdecode(b"no-utf-8-\xff"), "a::b", "http:", "[0-9]"]
NAMES += ["~", "\\"]
HOSTILE = ["http://127.0.0.1:9/a.png", "https://127.0.0.1:9/a.png", "zip://a.png::http://127.0.0.1:9/a.zip"]
HOSTILE += ["zip://a.png::file:///etc/a.zip", "simplecache::http://127.0.0.1:9/a", "s3://bucket/a", "/etc/passwd"]
HOSTILE += ["hf://datasets/a/b/c", "file:///etc/passwd", "../images/a/0.png", "../../../../../etc/passwd", "/dev/zero"]
HOSTILE += ["\x1b[2J", "\u202etxt.png", "n" * 300, "a/" * 2100, "link.png", "a\0b.png", "", ".", "//host/share/a.png"]
CSV = "path,label\nimages/a/0.png,cat\nimages/b/0.png,dog\n"


def extract(source: str, *options: str) -> list[str]:
    return ["extract", "--images", source, *READ, *options]


def cases(healthy: Path) -> Iterator[Case]:
    odd = healthy / "odd"
    if not odd.exists():
        write_odd_sources(odd)
    for kind in (lists, names, tables, archives, special_files, commands):
        yield from kind(odd)


def write_odd_sources(odd: Path):
    """Writes what cases damage, and what is no file; all cases share it."""
    for name in ("empty", "folders/x.jpg", "loops/a", "pipes", "hidden/.ipynb_checkpoints", "saved-images"):
        (odd / name).mkdir(parents=True)
    (odd / "loops" / "a" / "up").symlink_to("..")
    (odd / "loops" / "self.png").symlink_to("self.png")
    (odd / "loops" / "one.png").symlink_to("two.png")
    (odd / "loops" / "two.png").symlink_to("one.png")
    (odd / "pipes" / "nothing.png").symlink_to("nowhere.png")
    (odd / "pipes" / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "pipe.tar", "pipe.parquet", "pipe.csv", "pipe.txt", "pipe.mp4"):
        os.mkfifo(odd / "pipes" / name)
    (odd / "hidden" / ".ipynb_checkpoints" / "a.png").write_bytes(encoded(0))
    (odd / "hidden" / "._a.png").write_bytes(encoded(0))
    files = ((i, suffix) for i in range(4) for suffix in ("png", "cls"))
    members = [(f"{i:03d}.{suffix}", b"%d" % i if suffix == "cls" else encoded(i)) for i, suffix in files]
    write_tar(odd / "a.tar", members)
    write_tar(odd / "a.tar.gz", members, "w:gz")
    table = {"image": [{"bytes": encoded(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    dataset = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    dataset.to_parquet(str(odd / "a.parquet"))
    dataset.save_to_disk(odd / "saved")
    with write_video(odd / "a.mp4", 10) as append:
        for _ in range(3):
            append(Image.effect_noise((32, 32), 90))


def lists(odd: Path) -> Iterator[Case]:
    """CSV files and lists of paths as people write them."""
    right = {
        "plain": CSV,
        "of Windows": "\ufeff" + CSV.replace("\n", "\r\n"),
        "semicolons": CSV.replace(",", ";"),
        "tabs": CSV.replace(",", "\t"),
        "all in quotes": CSV.replace(",", '","').replace("\n", '"\n"').join(['"', ""]).removesuffix('"'),
        "blank lines": CSV.replace("\n", "\n\n,\n"),
        "an empty label": CSV.replace("dog", ""),
        "an empty path": CSV + ",cow\n",
        "rows twice": CSV + CSV.partition("\n")[2],
        "a missing file": CSV + "nothing.png,cow\n",
        "labels with escapes": CSV.replace("cat", "\x1b[31mcat\u202e"),
    }
    wrong = {
        "empty": ("", "no column 'path'"),
        "another header": (CSV.replace("path", "file"), "its columns are file, label"),
        "no header": (CSV.partition("\n")[2], "no column 'path'"),
        "a comma": (CSV + "with, comma.png,cow\n", "line 4"),
        "too short": (CSV + "images/a/1.png\n", "line 4"),
        "an open quote": (CSV + '"images/a/1.png,cow\n', "unexpected end"),
        "two of a column": (CSV.replace("label", "path"), "several columns 'path'"),
        "UTF-16": (CSV.encode("utf-16"), "UTF-16"),
        "UTF-16 without a mark": (CSV.encode("utf-16-le"), "UTF-16"),
        "Latin-1": (CSV.replace("cat", "é").encode("latin-1"), "not in UTF-8 (line 2)"),
        "a null": (CSV.replace("cat", "c\0t"), "null"),
        "binary": (bytes(range(256)), ""),
        "escapes in its header": ("\x1b[31mred,label\na,b\n", "no column 'path'"),
        "a huge field": (f"path,label\n{'a' * 200_000},b\n", "field limit"),
        "a header alone": ("path,label\n", ""),
        "deep quotes": ('"' * 1001, ""),
    }
    for name, text in right.items():
        yield Case(f"CSV, {name}", extract("list.csv"), {"list.csv": text}, code=0)
    for name, (text, says) in wrong.items():
        yield Case(f"CSV, {name}", extract("list.csv"), {"list.csv": text}, says=says)
    for option in ("--image-column", "--label-column"):
        yield Case(f"CSV, {option}", extract("list.csv", option, "\x1b[31mno"), {"list.csv": CSV}, code=2)
    paths = [path for path in HOSTILE if "\0" not in path]
    text = "\n".join(["images/a/0.png", *paths])
    yield Case("list of hostile paths", extract("list.txt"), {"list.txt": text}, code=0)
    rows = "".join(f'"{path}",cat\n' for path in paths)
    yield Case("CSV of hostile paths", extract("list.csv"), {"list.csv": CSV + rows}, code=0)
    for name, text in {"UTF-16": "a.png".encode("utf-16"), "nulls": bytes(999), "not text": b"\xff" * 9}.items():
        yield Case(f"list, {name}", extract("list.txt"), {"list.txt": text}, code=2)


def names(odd: Path) -> Iterator[Case]:
    """Files, folders and sources that are called oddly, of which some are no images."""
    images = {f"images/{name}.{suffix}": encoded(0) for name in NAMES for suffix in ("png", "jpg")}
    yield Case("names of images", extract("images"), images, code=0, says=f"{6 + len(images)} images")
    broken = {f"images/{name}.jpg": b"no image" for name in NAMES}
    yield Case("names of what is no image", extract("images"), broken, code=0, says=f"{len(broken)} skipped")
    classes = {f"images/{name}/0.png": encoded(0) for name in NAMES}
    yield Case("names of classes", extract("images"), classes, code=0, says=f"{6 + len(classes)} images")
    for name in NAMES:
        yield Case(f"source {name[:20]!r}", extract(f"./{name}"), {f"{name}/0.png": encoded(0)})
    for name in NAMES[::4]:
        yield Case(f"no source {name[:20]!r}", extract(f"./{name}-no"), code=2)


def tables(odd: Path) -> Iterator[Case]:
    for path in HOSTILE[::2]:
        content = parquet({"image": [{"bytes": None, "path": path}]})
        yield Case(f"Parquet, {path[:20]!r}", extract("a.parquet"), {"a.parquet": content}, code=2)
    rows = [encoded(0), *[None] * len(HOSTILE)]
    images = [{"bytes": content, "path": path} for content, path in zip(rows, ["", *HOSTILE])]
    content = parquet({"image": images})
    yield Case("Parquet, hostile paths", extract("a.parquet"), {"a.parquet": content}, code=0, says="1 images")
    other = {
        "no rows": parquet({"image": pa.array([], pa.binary())}),
        "no columns": parquet({}),
        "numbers": parquet({"image": [1, 2]}),
        "nulls": parquet({"image": pa.array([None, None], pa.binary())}),
        "lists": parquet({"image": [[encoded(0)]]}),
        "no image": parquet({"image": [b"text", b""]}),
        "labels of all kinds": parquet({"image": [encoded(0)] * 3, "label": [float("nan"), 1.5, -1.0]}),
        "labels that are lists": parquet({"image": [encoded(0)], "label": [[1, 2]]}),
        "names with escapes": parquet({"\x1b[31mred": [1], "\u202e": [2]}),
        "columns twice": parquet({"a": [encoded(0)], "b": [encoded(0)]}),
        "not Parquet": b"PAR1 text PAR1",
        "empty": b"",
    }
    for name, content in other.items():
        yield Case(f"Parquet, {name}", extract("a.parquet"), {"a.parquet": content})
    for wrong, content in damaged(odd / "a.parquet", 6):
        yield Case(f"Parquet, {wrong}", extract("a.parquet"), {"a.parquet": content})
    for wrong, text in list(spoilt_json(odd / "saved" / "state.json"))[::8]:
        yield Case(f"state.json: {wrong}", extract("odd/saved"), {"odd/saved/state.json": text})
    (arrow,) = (odd / "saved").glob("*.arrow")
    for part in (0, 1, 8, arrow.stat().st_size // 2, arrow.stat().st_size - 1):
        content = arrow.read_bytes()[:part]
        yield Case(f"Arrow, cut at {part}", extract("odd/saved"), {f"odd/saved/{arrow.name}": content})


def parquet(columns: dict) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def archives(odd: Path) -> Iterator[Case]:
    for name in ("a.tar", "a.tar.gz", "a.mp4"):
        for wrong, content in damaged(odd / name, 6):
            command = extract("odd/" + name) if "tar" in name else ["attention", "--images", "odd/a.mp4", *DRAW]
            yield Case(f"{name}, {wrong}", command, {f"odd/{name}": content})
    contents = b"".join(tar_of(f"{name}.png".replace("\0", "?"))[:-9216] for name in [*NAMES, *HOSTILE])
    yield Case("tar of names", extract("a.tar"), {"a.tar": contents + bytes(1024)}, code=0)
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
        archive = tar_of("a.png", kind, "/etc/passwd")
        yield Case(f"tar, type {kind}", extract("a.tar"), {"a.tar": archive}, code=2, says="a.tar has no images")


DRAW = ["--model", "vit", "--output", "out", "--size", "32"]


def tar_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A tar with an image under a name."""
    file, info = io.BytesIO(), tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(encoded(0)) if kind == tarfile.REGTYPE else 0
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(info, io.BytesIO(encoded(0)))
    return file.getvalue()


def special_files(odd: Path) -> Iterator[Case]:
    """Pipes, links in circles, folders that are called as images, and nothing at all."""
    for folder in ("empty", "folders", "folders/x.jpg", "loops", "pipes", "hidden"):
        yield Case(f"folder {folder}", extract(f"odd/{folder}"))
        yield Case(f"pictures of {folder}", ["attention", "--images", f"odd/{folder}", *DRAW], code=2)
        sets = ["--train", f"odd/{folder}", "--test", "images", "--model", "vit", "--num-workers", "0"]
        yield Case(f"classes of {folder}", ["knn", *sets], code=2)
    for pipe in sorted((odd / "pipes").iterdir()):
        yield Case(f"source {pipe.name}", extract(f"odd/pipes/{pipe.name}"), code=2)
    for file in ("self.png", "one.png"):
        yield Case(f"link {file}", extract(f"odd/loops/{file}"), code=2)


def commands(odd: Path) -> Iterator[Case]:
    """Sources that are mistaken for others."""
    right = {"odd/saved": 4, "odd/a.tar": 4, "odd/a.tar.gz": 4, "odd/a.parquet": 4, "images/*/*.png": 6, "images": 6}
    for source, number in right.items():
        yield Case(f"{source}", extract(source), code=0, says=f"{number} images")
    yield Case("a split that is a folder", extract("images:a"), code=2, says="write images/a")
    for name in (
        "images:c",
        "odd/a.tar:train",
        "",
        ":",
        "::",
        "odd/*",
        "/dev/zero",
        "n" * 5000,
        "**",
        "images/a/0.png:x",
    ):
        yield Case(f"source {name[:20]!r}", extract(name), code=2)
    for root in ("nowhere", "images/a/0.png", "\x1b[31m"):
        yield Case(f"root {root!r}", extract("images", "--image-root", root), code=2)
    for command in ("knn", "linear"):
        sets = ["--train", "odd/a.parquet", "--test", "odd/a.parquet", "--model", "vit", "--num-workers", "0"]
        yield Case(
            f"{command}, a missing column", [command, *sets, "--label-column", "no"], code=2, says="its columns are"
        )
    sets = ["--train", "odd/a.tar", "--test", "images", "--model", "vit", "--num-workers", "0", "--output", "out"]
    yield Case("finetune on a tar", ["finetune", *sets], code=2)
