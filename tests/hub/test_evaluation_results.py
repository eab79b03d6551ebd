import json

import pytest
from card_results import RESULTS
from huggingface_hub import ModelCard
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.hub.evaluation_results import (
    add_evaluation_results,
    read_evaluation_results,
    record_evaluation_results,
)
from modeling_dino.hub.model_card import make_card


NAME = "evaluation_results.json"


def result(value: float, **more) -> dict:
    return {"task": "image-classification", "dataset": "digits", "metric": "accuracy", "value": value, **more}


def test_the_same_evaluation_replaces_its_result(tmp_path):
    add_evaluation_results(tmp_path, [result(90.0, k=10), result(91.0, k=20)])
    add_evaluation_results(tmp_path, [result(95.0, k=10), result(80.0, k=20, dataset_split="val")])
    found = json.loads((tmp_path / NAME).read_text())
    assert found == [result(91.0, k=20), result(95.0, k=10), result(80.0, k=20, dataset_split="val")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{NAME}.lock", NAME]


def test_they_flow_into_the_model_card(tmp_path):
    add_evaluation_results(tmp_path, RESULTS)
    results = read_evaluation_results(tmp_path)
    (index,) = ModelCard(make_card(DinoModel(tiny_config()), "me/dino", results=results)).data.to_dict()["model-index"]
    assert [r["metrics"][0]["value"] for r in index["results"]] == [r["value"] for r in RESULTS]


@pytest.mark.parametrize("wrong", [{"task": "t"}, result(None), result(1.0, dataset_name=3, metric=2)])
def test_what_is_no_result_changes_nothing(tmp_path, wrong):
    add_evaluation_results(tmp_path, [result(1.0)])
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises((ValueError, TypeError)):
        add_evaluation_results(tmp_path, [result(2.0), wrong])
    assert (tmp_path / NAME).read_bytes() == before


def test_what_others_wrote_is_refused_and_kept(tmp_path):
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(ValueError, match="is not a list of results"):
        add_evaluation_results(tmp_path, [result(1.0)])
    assert (tmp_path / NAME).read_text() == "{}"


def test_where_they_are_recorded(tmp_path):
    assert record_evaluation_results(None, None, [result(1.0)]) == []
    said = record_evaluation_results(str(tmp_path), tmp_path / "mine.json", [result(1.0)])
    assert said == [f"recorded in {tmp_path / NAME} and {tmp_path / 'mine.json'}"]
    assert json.loads((tmp_path / "mine.json").read_text()) == [result(1.0)]
