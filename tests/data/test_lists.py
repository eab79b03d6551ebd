"""Lists of images with labels, as people and their programs write them."""

from pathlib import Path

import pytest
from source_files import picture, save_picture

from modeling_dino.data.reader import all_records, decode_record
from modeling_dino.data.sources import open_source


NAMES = ["images/0.png", "images/with, comma.png", 'images/with "quotes".png', "images/ünïcödé;semicolon.png"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(NAMES):
        save_picture(tmp_path / name, number)
    return tmp_path


def read(source) -> list[tuple]:
    """Numbers of the pictures, or why they cannot be read; and labels."""
    numbers = {picture(number).tobytes(): number for number in range(len(NAMES))}
    found = []
    for record in all_records(source):
        try:
            image = numbers[decode_record(record)[0].tobytes()]
        except ValueError as error:
            image = str(error)
        assert list(record.columns) == list(source.columns)
        found.append((image, record.columns.get("label")))
    return found


PLAIN = "path,label\nimages/0.png,cat\nimages/0.png,dog\n"
TWO = [(0, "cat"), (0, "dog")]
QUOTED = (
    'path,label\n"images/with, comma.png",a\n"images/with ""quotes"".png","b, c"\nimages/ünïcödé;semicolon.png,é\n'
)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("a.csv", PLAIN, TWO),
        ("a.CSV", PLAIN, TWO),
        ("a.csv", PLAIN.replace("\n", "\r\n"), TWO),
        ("a.csv", PLAIN.replace("\n", "\r"), TWO),
        ("a.csv", "\ufeff" + PLAIN, TWO),
        ("a.csv", "\ufeff" + PLAIN.replace("\n", "\r\n").replace(",", ";"), TWO),
        ("a.csv", PLAIN.replace(",", "\t"), TWO),
        ("a.tsv", PLAIN.replace(",", "\t"), TWO),
        ("a.tsv", PLAIN, TWO),
        ("a.csv", '"path","label"\r\n"images/0.png","cat"\r\n"images/0.png","dog"\r\n', TWO),
        ("a.csv", "path, label\nimages/0.png, cat\n images/0.png ,dog ", TWO),
        ("a.csv", "\n\npath,label\n\nimages/0.png,cat\n,\n   \n\nimages/0.png,dog\n,,\n".replace(",,", ","), TWO),
        ("a.csv", "id,label,path\n1,cat,images/0.png\n2,dog,images/0.png\n", TWO),
        ("a.csv", QUOTED, [(1, "a"), (2, "b, c"), (3, "é")]),
        ("a.csv", "path,label\nimages/0.png,\nimages/0.png,7\n", [(0, None), (0, "7")]),
        ("a.csv", "path,label\nimages/0.png,1.0\nimages/0.png,01\n", [(0, "1.0"), (0, "01")]),
        ("a.csv", "path\nimages/0.png\n", [(0, None)]),
        ("a.csv", "path,class\nimages/0.png,cat\n", [(0, "cat")]),
        ("a.csv", "path,label\n,cat\nimages/0.png,dog\n", [("no image in this row", "cat"), (0, "dog")]),
        ("a.csv", "path,label\nnothing.png,cat\nimages/0.png,dog\n", [("no such file", "cat"), (0, "dog")]),
        ("a.csv", "path,label\n../images/0.png,cat\nhttp://localhost:1/0.png,dog\n", None),
        ("a.txt", "\ufeffimages/0.png\r\n\r\nimages/with, comma.png\r\n", [(0, None), (1, None)]),
    ],
)
def test_what_is_read(folder, file, content, expected):
    (folder / file).write_bytes(content.encode())
    source = open_source(str(folder / file))
    found = read(source)
    if expected is None:
        assert [label for _, label in found] == ["cat", "dog"]
        assert (found[0][0], "is a URL" in found[1][0]) == ("no such file", True)
    else:
        assert found == expected
    assert source.indexed() is source
    assert source.num_images == len(found)


def test_paths_that_are_absolute_or_lead_elsewhere(folder):
    """As in a plain list, which is the user's own."""
    (folder / "lists").mkdir()
    (folder / "lists" / "a.csv").write_text(f"path,label\n../images/0.png,cat\n{folder}/images/0.png,dog\n")
    assert read(open_source(str(folder / "lists" / "a.csv"))) == TWO
    root = str(folder / "images")
    (folder / "lists" / "a.csv").write_text(f"path,label\n0.png,cat\n{folder}/images/0.png,dog\n../images/0.png,cow\n")
    assert read(open_source(str(folder / "lists" / "a.csv"), image_root=root)) == [*TWO, (0, "cow")]
    (folder / "lists" / "a.csv").write_text("path,label\n../lists/a.csv,cat\n/etc/passwd,dog\n")
    reasons = [reason for reason, _ in read(open_source(str(folder / "lists" / "a.csv"), image_root=root))]
    assert all("leaves" in reason for reason in reasons)


def test_columns_by_options(folder):
    (folder / "a.csv").write_text("file;kind;label\nimages/0.png;cat;x\n")
    source = open_source(str(folder / "a.csv"), image_column="file", label_column="kind")
    assert read(source) == [(0, "cat")]
    assert read(open_source(str(folder / "a.csv"), image_column="file")) == [(0, "x")]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("file,kind\na,b\n", {}, r"a.csv has no column 'path'; its columns are file, kind: .*--image-column"),
        ("file;kind\na;b\n", {}, "its columns are file, kind"),
        ("images/0.png\nimages/1.png\n", {}, "its columns are images/0.png: .*another suffix, such as .txt"),
        ("path,kind\na,b\n", {"label_column": "cls"}, "no column 'cls'; its columns are path, kind"),
        ("path,kind\na,b\n", {"image_column": "file"}, "no column 'file'; its columns are path, kind"),
        ("path,label,label\na,b,c\n", {}, "several columns 'label'"),
        ("path,label\na,b\nwith, comma.png,c\n", {}, r"line 3: 3 fields for 2 columns .*',' in it stands in quotes"),
        ("path,label\na,b\nc\n", {}, "line 3: 1 fields for 2 columns"),
        ('path,label\na,b\n"c,d\ne,f\n', {}, "after line 2: unexpected end of data"),
        ('path,label\na,b\n"c"d,e\n', {}, "after line 2: ',' expected after"),
        (f"path,label\n{'a' * 200_000},b\n", {}, "field larger than field limit"),
        ("", {}, "a.csv has no column 'path'"),
        ("\n\n", {}, "a.csv has no column 'path'"),
        (PLAIN.encode("utf-16"), {}, "a.csv is in UTF-16: save it in UTF-8"),
        (PLAIN.encode("utf-16-le"), {}, "a.csv is in UTF-16: save it in UTF-8"),
        (PLAIN.encode("utf-16-be"), {}, "a.csv is in UTF-16: save it in UTF-8"),
        ("path,label\né.png,b\n".encode("cp1252"), {}, r"a.csv is not in UTF-8 \(line 2\): save it in UTF-8"),
        (b"path,label\na\0b.png,c\n", {}, "null characters"),
    ],
)
def test_what_is_refused_in_one_line(folder, content, options, message):
    (folder / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        open_source(str(folder / "a.csv"), **options)
    assert "\n" not in str(error.value)


def test_a_header_alone(folder):
    (folder / "a.csv").write_text("path,label\n")
    source = open_source(str(folder / "a.csv"))
    assert (source.num_images, source.columns) == (0, {"path": "string", "label": "string"})
    assert source.notes == {str(folder / "a.csv"): "no images there"}


def test_a_plain_list_in_another_encoding(folder):
    (folder / "a.txt").write_bytes("images/0.png\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a.txt is in UTF-16: save it in UTF-8"):
        open_source(str(folder / "a.txt"))
