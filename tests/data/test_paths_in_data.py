"""Paths in data stay below the data, and none of them makes the program contact anyone."""

import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_dino.data.frames import open_frames
from modeling_dino.data.reader import all_records, decode_record
from modeling_dino.data.sources import open_source


class CountingServer:
    """Listens on loopback, and counts who connects."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/image.png"

    def _serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture
def server() -> Iterator[CountingServer]:
    server = CountingServer()
    yield server
    server.socket.close()


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder of data beside a folder of secrets, with links from one to the other."""
    for name in ("data/inside.png", "data/sub/below.png", "secret/image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret" / "image.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "secret")
    with zipfile.ZipFile(tmp_path / "data" / "images.zip", "w") as archive:
        archive.write(tmp_path / "secret" / "image.png", "image.png")
    return tmp_path / "data"


def hostile_paths(data: Path, server: CountingServer) -> dict[str, str]:
    """Paths that must not be opened, and what is said of each."""
    return {
        server.url: "is a URL",
        server.url.replace("http", "https"): "is a URL",
        f"zip://image.png::{server.url}": "is a URL",
        f"zip://image.png::file://{data}/images.zip": "is a URL",
        f"simplecache::{server.url}": "is a URL",
        f"file://{data}/inside.png": "is a URL",
        "hf://datasets/someone/pictures@main/a.png": "is a URL",
        "s3://bucket/a.png": "is a URL",
        f"{data}/inside.png": "is absolute",
        f"{data.parent}/secret/image.png": "is absolute",
        "../secret/image.png": "leaves",
        "sub/../../secret/image.png": "leaves",
        "link.png": "leaves",
        "folder/image.png": "leaves",
        "nothing.png": "no such file",
        "a\0b.png": "null",
        "n" * 300 + ".png": "too long",
        "": "no image in this row",
    }


def as_images(paths: list[str]) -> list[dict]:
    return [{"bytes": None, "path": path} for path in paths]


def write_strings(paths: list[str], folder: Path) -> str:
    pq.write_table(pa.table({"path": paths}), folder / "strings.parquet")
    return str(folder / "strings.parquet")


def write_structs(paths: list[str], folder: Path) -> str:
    pq.write_table(pa.table({"image": as_images(paths)}), folder / "structs.parquet")
    return str(folder / "structs.parquet")


def write_saved(paths: list[str], folder: Path) -> str:
    """As an Arrow file that `datasets` would write itself, if the images were there to be put in."""
    table = pa.table({"image": pa.array(as_images(paths), pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(folder)
    return str(folder)


WRITERS = [write_strings, write_structs, write_saved]


def read_each(source) -> list[str]:
    """The reason why each image cannot be read; `read` for those that can."""
    found = []
    for record in all_records(source):
        try:
            decode_record(record)
            found.append("read")
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.fixture
def no_connections(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.usefixtures("no_connections")
def test_what_leaves_the_data_is_unreadable_and_the_rest_is_read(data, server, write, indexed):
    hostile = hostile_paths(data, server)
    paths = ["inside.png", *hostile, "sub/below.png", "sub/../inside.png", "./inside.png"]
    source = open_source(write(paths, data))
    found = read_each(source.indexed() if indexed else source)
    assert [found[0], *found[-3:]] == ["read"] * 4
    for (path, reason), said in zip(hostile.items(), found[1:-3], strict=True):
        assert reason in said, (path, said)
        assert "\n" not in said
    assert server.connections == 0


@pytest.mark.parametrize("write", WRITERS)
def test_nobody_is_contacted(data, server, write):
    """Without anything in the place of sockets, and with another reader of sources."""
    name = write([server.url, f"zip://a::{server.url}"], data)
    with pytest.raises(ValueError, match=r"none of the 2 images can be read.* is a URL"):
        list(open_frames(name, 3, 32))
    assert server.connections == 0


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_root_that_is_named(data, server, write, indexed):
    """Relative paths start there; absolute ones are opened if they lie below it, and no others."""
    paths = ["image.png", f"{data.parent}/secret/image.png", f"{data}/inside.png", "inside.png", server.url]
    source = open_source(write(paths, data), image_root=str(data.parent / "secret"))
    found = read_each(source.indexed() if indexed else source)
    assert found[:2] == ["read", "read"]
    assert [reason in said for reason, said in zip(["leaves", "no such file", "is a URL"], found[2:], strict=True)]
    everything = open_source(write(paths, data), image_root="/")
    assert read_each(everything)[1:3] == ["read", "read"]
    with pytest.raises(ValueError, match="nowhere is no folder"):
        open_source(write(paths, data), image_root="nowhere")


@pytest.mark.parametrize("indexed", [False, True])
def test_each_file_is_a_place_of_its_own(data, indexed):
    """A table of several files, and paths relative to each."""
    (data / "other").mkdir()
    Image.new("RGB", (5, 5)).save(data / "other" / "inside.png")
    for folder in (data, data / "other"):
        pq.write_table(pa.table({"path": ["inside.png", "inside.png"]}), folder / "a.parquet")
    source = open_source(str(data / "**" / "a.parquet"))
    records = all_records(source.indexed() if indexed else source)
    assert [decode_record(record)[0].width for record in records] == [4, 4, 5, 5]


@pytest.mark.usefixtures("no_connections")
def test_a_text_that_configures_a_folder_contacts_nobody(data, server):
    """A README of a data set may name files elsewhere, which `datasets` would ask for."""
    pq.write_table(pa.table({"image": [(data / "inside.png").read_bytes()]}), data / "sub" / "train.parquet")
    for file in data.rglob("*.png"):
        file.unlink()
    configs = f"---\nconfigs:\n- config_name: default\n  data_files: {server.url}\n---\n"
    for name in ("README.md", ".huggingface.yaml"):
        (data / name).write_text(configs if name == "README.md" else configs.strip("-\n") + "\n")
    assert read_each(open_source(str(data))) == ["read"]
    assert server.connections == 0


def test_files_of_a_saved_data_set_lie_in_it(data, tmp_path):
    write_saved(["inside.png"], data)
    (arrow,) = data.glob("*.arrow")
    arrow.rename(tmp_path / "elsewhere.arrow")
    state = data / "state.json"
    for path in (str(tmp_path / "elsewhere.arrow"), "../elsewhere.arrow"):
        state.write_text(state.read_text().replace(arrow.name, path))
        with pytest.raises(ValueError, match=r"elsewhere.arrow .*lies outside|leaves"):
            open_source(str(data))
        state.write_text(state.read_text().replace(path, arrow.name))


def test_a_list_of_the_users_own_names_what_it_likes(data, server):
    """Its paths are the user's, so they may be absolute; but a URL is no path."""
    paths = [f"{data.parent}/secret/image.png", "../secret/image.png", "link.png", server.url]
    (data / "list.txt").write_text("\n".join(paths))
    *read, url = read_each(open_source(str(data / "list.txt")))
    assert read == ["read"] * 3
    assert "is a URL" in url
    assert server.connections == 0
    *_, inside, above, _, _ = read_each(open_source(str(data / "list.txt"), image_root=str(data / "..")))
    assert (inside, "leaves" in above) == ("read", True)


def test_links_of_the_root_itself_are_followed(data, tmp_path, monkeypatch):
    (tmp_path / "linked").symlink_to(data)
    write_strings(["inside.png"], data)
    assert read_each(open_source(str(tmp_path / "linked" / "strings.parquet"))) == ["read"]
    monkeypatch.chdir(tmp_path / "linked")
    assert read_each(open_source("strings.parquet")) == ["read"]
