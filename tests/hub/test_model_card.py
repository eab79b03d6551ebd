import json

import pytest
from card_results import RESULTS
from hub_server import card_errors
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from tiny_models import tiny_config

from modeling_dino import DinoBackbone, DinoForImageClassification, DinoForPreTraining, DinoModel
from modeling_dino.hub.evaluation_results import read_evaluation_results
from modeling_dino.hub.model_card import is_ours, make_card, renew_card


def write_results(folder, results):
    (folder / "evaluation_results.json").write_text(json.dumps(results))
    return read_evaluation_results(folder)


@pytest.mark.parametrize("with_code", [True, False])
@pytest.mark.parametrize("model_class", [DinoModel, DinoBackbone, DinoForImageClassification, DinoForPreTraining])
def test_metadata(tmp_path, family, model_class, with_code):
    results = write_results(tmp_path, RESULTS)
    model = model_class(tiny_config(family))
    card = make_card(model, "me/dino", with_code, "apache-2.0", results, ["extra"])
    assert card_errors(card) == []
    (tmp_path / "README.md").write_text(card)
    metadata = metadata_load(tmp_path / "README.md")
    task = "image-classification" if model_class is DinoForImageClassification else "image-feature-extraction"
    assert metadata["pipeline_tag"] == task
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "apache-2.0"
    assert metadata["tags"] == ["dino", "self-supervised", family, "extra"]
    data = ModelCard(card).data
    assert data.model_name == "dino"
    assert data.eval_results == results
    assert ModelCardData(**metadata).to_dict() == metadata  # nothing in it that their reader drops or renames
    assert ("trust_remote_code=True" in card) == with_code
    assert ("pip install modeling-dino" in card) != with_code


def test_the_model_index(tmp_path):
    card = make_card(DinoModel(tiny_config()), "me/dino", results=write_results(tmp_path, RESULTS))
    (index,) = ModelCard(card).data.to_dict()["model-index"]
    assert index["name"] == "dino"
    first, second = index["results"]
    assert first["task"] == {"type": "image-classification"}
    assert first["dataset"] == {"type": "ImageNet-1k-val", "name": "ImageNet 1k, val"}
    assert first["metrics"] == [{"type": "accuracy", "value": 74.5, "args": {"k": 20}}]
    assert second["dataset"] == {"type": "cifar10", "name": "cifar10"}
    assert second["metrics"] == [{"type": "accuracy", "value": 0.9, "name": "linear"}]
    assert "| image-classification | cifar10 | linear | 0.9 |" in card


def test_what_is_not_known_is_not_said():
    card = make_card(DinoModel(tiny_config()), "me/dino")
    assert set(ModelCard(card).data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "| weights from | not recorded |" in card
    source = "facebook/dino-vits16 (transformers' ViT)"
    assert f"| weights from | {source} |" in make_card(DinoModel(tiny_config(weights_source=source)), "me/dino")


def test_numbers_of_parameters(family):
    model = DinoModel(tiny_config(family))
    info = model.get_model_info()
    card = make_card(model, "me/dino")
    assert f"{info['backbone_params']:,} in the backbone, {info['total_params']:,} in all; float32" in card


def test_a_card_that_was_edited_is_kept():
    model = DinoModel(tiny_config())
    card = make_card(model, "me/dino", license="mit")
    assert is_ours(card)
    for theirs in (card.replace("mit", "apache-2.0"), card + "More.\n", "---\nlicense: mit\n---\n", "", "# Mine\r\n"):
        assert not is_ours(theirs)
        assert renew_card([None, card, theirs], model, "me/dino", license="other") == theirs
    renewed = renew_card([card, None], model, "me/dino", with_code=True)
    assert renewed == make_card(model, "me/dino", with_code=True, license="mit")
    assert ModelCard(renew_card([card], model, "me/dino", license="cc-by-4.0")).data.license == "cc-by-4.0"


RESULT = '{"task": "t", "dataset": "d", "metric": "m", "value": 1}'


@pytest.mark.parametrize("given", [True, False])
def test_the_license_of_dinov3_is_named_with_its_page(given):
    """It is given, or known from the conversion of the weights, or stands in an earlier card."""
    model = DinoModel(tiny_config("dinov3", weights_license=None if given else "dinov3-license"))
    card = make_card(model, "me/dino", license="dinov3-license" if given else None)
    metadata = ModelCard(card).data.to_dict()
    assert (metadata["license"], metadata["license_name"]) == ("other", "dinov3-license")
    assert metadata["license_link"] == "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
    assert renew_card([card], model, "me/dino") == card
    assert "2 registers" in card


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        "[3]",
        "{}",
        '[{"task": "t"}]',
        f"[{RESULT}".replace("1}", "null}]"),
        f"[{RESULT}]".replace('"d"', "3"),
        f"[{RESULT}]".replace('"t"', "[]"),
    ],
)
def test_other_evaluation_results_are_refused(tmp_path, text):
    (tmp_path / "evaluation_results.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation_results.json is not a list of results, each with a task"):
        read_evaluation_results(tmp_path)
    assert read_evaluation_results(tmp_path / "elsewhere") == []
