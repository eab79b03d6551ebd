import json
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch

from modeling_dino.evaluation.ground_truth import GroundTruth, read_ground_truth
from modeling_dino.evaluation.plain_pickle import load_plain_pickle


INDEX = ["/data/jpg/a.jpg", "/data/jpg/b.jpg", "/data/jpg/c.v2.jpg", "/data/more/a.jpg"]
QUERIES = ["/data/q/x.png", "/data/q/y.png"]
# as `gnd_roxford5k.pkl` is made
REVISITED = {
    "imlist": ["b", "c.v2", "jpg/a"],
    "qimlist": ["y", "x"],
    "gnd": [
        {
            "bbx": [1.5, np.float64(2), 3, 4],
            "easy": np.array([2]),
            "hard": np.array([0], np.int32),
            "junk": np.array([]),
        },
        {"bbx": np.zeros(4), "easy": [], "hard": [1], "junk": np.array([0, 2], ">i8")},
    ],
}


def write(path, contents) -> str:
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    return path


def places(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def test_names_are_ends_of_paths(tmp_path):
    kinds = {"positive": ["b.jpg", "jpg/a"], "ignored": ["c.v2"]}
    file = write(tmp_path / "truth.json", {"queries": {"q/y": kinds, "x": {"positive": ["/data/more/a.jpg"]}}})
    found = read_ground_truth(file).find(QUERIES, INDEX)
    assert found.places == [1, 0]
    assert list(found.setups) == [""]
    positive, ignored = found.masks("", range(2))
    assert places(positive) == [[0, 1], [3]]
    assert places(ignored) == [[2], []]
    assert places(found.masks("", range(1, 2))[0]) == [[3]]


def check_revisited(found):
    assert found.places == [1, 0]
    expected = {  # positive, ignored
        "easy": ([[0], []], [[1], [0, 1, 2]]),
        "medium": ([[0, 1], [2]], [[], [0, 1]]),
        "hard": ([[1], [2]], [[0], [0, 1]]),
    }
    assert {setup: tuple(map(places, found.masks(setup, range(2)))) for setup in found.setups} == expected


def test_easy_and_hard(tmp_path):
    queries = {
        "y": {"easy": ["jpg/a"], "hard": ["b"], "ignored": []},
        "x": {"hard": ["c.v2.jpg"], "ignored": ["b", "jpg/a.jpg"]},
    }
    check_revisited(read_ground_truth(write(tmp_path / "truth.json", {"queries": queries})).find(QUERIES, INDEX))


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("numpy_1", [False, True])
def test_the_published_pickles(tmp_path, protocol, numpy_1):
    content = pickle.dumps(REVISITED, protocol)
    if numpy_1:  # the names of its modules
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        if protocol == 4:
            content = content.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
            content = b"\x80\x04" + content[11:]  # without the frame, whose length is another
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(content)
    check_revisited(read_ground_truth(tmp_path / "gnd_roxford5k.pkl").find(QUERIES, INDEX))


def test_arrays_in_pickles(tmp_path):
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.array(["α", "bc"]),
        np.array([True, False]),
        np.zeros((0, 4), np.float32),
    ]
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps(arrays, 4))
    assert load_plain_pickle(tmp_path / "arrays.pkl") == [array.tolist() for array in arrays]


class Runs:
    """What unpickling it would do."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    "contents",
    [
        Runs(os.mkdir, "ran"),
        Runs(subprocess.call, ["mkdir", "ran"]),
        Runs(eval, "__import__('os').mkdir('ran')"),
        Runs(np.load, "truth.json"),
        Runs(np.ndarray, (3,)),
        {"gnd": [Runs(os.mkdir, "ran")]},
        np.array([Runs(os.mkdir, "ran")], dtype=object),
        np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        Runs(np.random.default_rng, 0),
        {1: np.zeros(3, "M8[s]")},
    ],
)
def test_nothing_in_a_pickle_is_run(tmp_path, monkeypatch, contents):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(contents, 4))
    with pytest.raises(ValueError, match="is not a pickle of plain containers"):
        read_ground_truth("gnd.pkl")
    assert not (tmp_path / "ran").exists()


def test_damaged_pickles(tmp_path):
    content = pickle.dumps(REVISITED, 3)
    for length in range(0, len(content), 29):
        (tmp_path / "gnd.pkl").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"gnd.pkl is not a"):
            read_ground_truth(tmp_path / "gnd.pkl")
    for contents in ([], {"imlist": []}, {**REVISITED, "qimlist": ["x"]}, {**REVISITED, "imlist": ["b"]}):
        (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(contents, 3))
        with pytest.raises(ValueError, match="is not a ground truth of the revisited Oxford or Paris"):
            read_ground_truth(tmp_path / "gnd.pkl")


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ("no JSON", "truth.json is not JSON"),
        ([], "truth.json names no queries: it needs"),
        ({"queries": {}}, "names no queries"),
        ({"queries": {"x": ["b"]}}, "query 'x' may have positive, easy, hard, ignored, each a list of names"),
        ({"queries": {"x": {"junk": ["b"]}}}, "query 'x' may have positive, easy"),
        ({"queries": {"x": {"positive": "b"}}}, "positive of query 'x' is not a list of names"),
        ({"queries": {"x": {"positive": [1]}}}, "is not a list of names"),
        ({"queries": {"x": {"positive": ["b"], "ignored": ["b"]}}}, "query 'x' names 'b' twice"),
        ({"queries": {"x": {"positive": ["b"]}, "y": {"hard": ["b"]}}}, "has positive images, and easy and hard ones"),
        ({"queries": {"x": {"positive": [], "ignored": ["b"]}}}, "no query has an image to find"),
        ({"queries": {"z": {"positive": ["b"]}}}, "truth.json: no image of the queries is called 'z'"),
        ({"queries": {"x": {"positive": ["d"]}}}, "no image of the index is called 'd'"),
        ({"queries": {"x": {"positive": ["pg/a"]}}}, "no image of the index is called 'pg/a'"),
        ({"queries": {"x": {"positive": ["a"]}}}, "'a' can be /data/jpg/a.jpg or /data/more/a.jpg: name them with"),
    ],
)
def test_what_is_no_ground_truth_is_refused(tmp_path, contents, says):
    with pytest.raises(ValueError, match=says):
        read_ground_truth(write(tmp_path / "truth.json", contents)).find(QUERIES, INDEX)


def test_images_of_tables_are_called_by_their_index():
    found = GroundTruth({"1": {"positive": ["0", "3"]}}).find([0, 1], [0, 1, 2, 3])
    assert found.places == [1]
    assert places(found.masks("", range(1))[0]) == [[0, 3]]
