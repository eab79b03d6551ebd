import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel, load_features
from modeling_dino.evaluation.evaluation_data import check_pair, features_of, labelled_pair, number_labels
from modeling_dino.evaluation.options import FeatureOptions
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.options import ExtractOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model` and `other` (models), `train` and `test` (four images of two classes each), `plain` (no labels)."""
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        DinoModel(tiny_config()).save_pretrained(folder / name)
    for part in ("train/a", "train/b", "test/a", "test/b", "plain", "lonely/a"):
        (folder / part).mkdir(parents=True)
        for i in range(2):
            Image.effect_noise((40, 32), 90).convert("RGB").save(folder / part / f"{i}.png")
    return folder


def extract(folder, source, output, model="model", **options):
    names = {"model": str(folder / model), "images": str(folder / source), "output": str(output)}
    extract_features(ExtractOptions(**names, **options, progress=False))
    return str(output)


def test_images_and_their_extracted_features_are_the_same(tmp_path, folder):
    output = extract(folder, "train", tmp_path / "out", features="cls,patch_mean", last_blocks=2)
    for kind in ("cls", "patch_mean"):
        options = FeatureOptions(features=kind, last_blocks=2, progress=False)
        at_once = features_of(str(folder / "train"), str(folder / "model"), options)
        before = features_of(output, options=FeatureOptions(features=kind))
        assert before.kind == at_once.kind == kind
        np.testing.assert_array_equal(before.features, load_features(output)[f"feature_{kind}"])
        np.testing.assert_allclose(at_once.features, before.features, rtol=0, atol=1e-5)
        assert before.labels == at_once.labels == ["a", "a", "b", "b"]
        assert before.names == at_once.names == sorted(map(str, (folder / "train").glob("*/*.png")))
        check_pair(before, at_once)


def test_features_of_the_model_that_is_named_alone(tmp_path, folder):
    output = extract(folder, "train", tmp_path / "out")
    assert features_of(output, str(folder / "model")).settings == features_of(output).settings
    with pytest.raises(ValueError, match=r"are not of .*other"):
        features_of(output, str(folder / "other"))


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("model", {"features": "patches"}, "several vectors an image"),
        ("model", {"features": "keys@0"}, "has keys@0 features, several vectors an image"),
        (None, {}, "name a model with --model"),
        ("model", {"features": "nonsense"}, "unknown features"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(folder, model, options, says):
    with pytest.raises(ValueError, match=says):
        features_of(str(folder / "plain"), model and str(folder / model), FeatureOptions(**options, progress=False))


def test_folders_of_other_features_are_refused(tmp_path, folder):
    output = extract(folder, "train", tmp_path / "out", features="cls,patch_mean")
    with pytest.raises(ValueError, match="several kinds of features, cls, patch_mean: name one"):
        features_of(output)
    with pytest.raises(ValueError, match="cls, patch_mean features, not projection"):
        features_of(output, options=FeatureOptions(features="projection"))
    with pytest.raises(ValueError, match="of last_blocks=1, not of last_blocks=4"):
        features_of(output, options=FeatureOptions(features="cls", last_blocks=4))


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("other", {}, "differ in weights"),
        ("model", {"features": "patch_mean"}, "differ in features, cls and patch_mean"),
        ("model", {"last_blocks": 2}, "differ in width, 32 and 64"),
        ("model", {"dtype": "bfloat16"}, "differ in dtype, float32 and bfloat16"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, folder, model, options, says):
    train = features_of(extract(folder, "train", tmp_path / "train"))
    test = features_of(extract(folder, "test", tmp_path / "test", model, **options))
    with pytest.raises(ValueError, match=says):
        check_pair(train, test)


def test_labels_that_are_missing_are_refused_by_side(folder):
    train, plain, lonely = (
        features_of(str(folder / name), str(folder / "model"), FeatureOptions(progress=False))
        for name in ("train", "plain", "lonely")
    )
    for pair in ((train, plain), (plain, train)):
        with pytest.raises(ValueError, match=r"the images of .*plain have no labels"):
            labelled_pair(*pair)
    with pytest.raises(ValueError, match=r"all images of .*lonely have the label 'a'"):
        labelled_pair(lonely, train)


def test_images_without_a_label_are_left_out(tmp_path, folder):
    """Also of a table of numbers, in which Arrow gives missing ones as NaN."""
    from datasets import Dataset

    image = Image.effect_noise((32, 32), 90).convert("RGB")
    Dataset.from_dict({"image": [image] * 4, "label": [3, None, 1, 3]}).save_to_disk(str(tmp_path / "data"))
    found = features_of(str(tmp_path / "data"), str(folder / "model"), FeatureOptions(progress=False))
    assert found.labels == [3, None, 1, 3]
    labelled = found.labelled()
    assert (labelled.labels, labelled.names) == ([3, 1, 3], [0, 2, 3])
    assert torch.equal(labelled.features, found.features[[0, 2, 3]])
    train = features_of(str(folder / "train"), str(folder / "model"), FeatureOptions(progress=False))
    with pytest.raises(ValueError, match=r"no label of .*data, such as 3, is among those of .*train, such as 'a'"):
        labelled_pair(train, found)


def test_a_feature_that_is_not_finite_is_named(tmp_path, folder):
    model = DinoModel.from_pretrained(folder / "model")
    model.backbone.norm.weight.data[:] = 3e38  # features are larger
    model.save_pretrained(tmp_path / "damaged")
    with pytest.raises(ValueError, match=r"the feature of .*train/a/0\.png is not finite"):
        features_of(str(folder / "train"), str(tmp_path / "damaged"), FeatureOptions(progress=False))


def test_numbers_of_labels():
    classes, (train, test) = number_labels(["b", "a", "b"], ["c", "a"])
    assert (classes, train.tolist(), test.tolist()) == (["a", "b", "c"], [1, 0, 1], [2, 0])
    assert number_labels([10, 9])[0] == [9, 10]
    assert number_labels([10, "9"])[0] == [10, "9"]
