import json

import pytest
import torch

from modeling_dino.evaluation.ground_truth import GroundTruth, read_ground_truth


INDEX = ["/data/jpg/a.jpg", "/data/jpg/b.jpg", "/data/jpg/c.v2.jpg", "/data/more/a.jpg"]
QUERIES = ["/data/q/x.png", "/data/q/y.png"]


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


def test_easy_and_hard(tmp_path):
    queries = {
        "y": {"easy": ["jpg/a"], "hard": ["b"], "ignored": []},
        "x": {"hard": ["c.v2.jpg"], "ignored": ["b", "jpg/a.jpg"]},
    }
    found = read_ground_truth(write(tmp_path / "truth.json", {"queries": queries})).find(QUERIES, INDEX)
    assert found.places == [1, 0]
    expected = {  # positive, ignored
        "easy": ([[0], []], [[1], [0, 1, 2]]),
        "medium": ([[0, 1], [2]], [[], [0, 1]]),
        "hard": ([[1], [2]], [[0], [0, 1]]),
    }
    assert {setup: tuple(map(places, found.masks(setup, range(2)))) for setup in found.setups} == expected


def test_pickles_are_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"gnd_roxford5k\.pkl: pickles are not read, JSON is"):
        read_ground_truth(tmp_path / "gnd_roxford5k.pkl")


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
