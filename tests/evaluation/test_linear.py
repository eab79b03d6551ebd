import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_images import coloured_images
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForImageClassification

from modeling_dino import DinoForImageClassification, DinoImageProcessor, load_features
from modeling_dino.evaluation.linear import (
    LinearHead,
    best_head,
    evaluate_linear,
    feature_choices,
    held_out,
    train_heads,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model`, and `train` and `test` with images of three classes."""
    return coloured_images(tmp_path_factory.mktemp("linear"))


def standardized_digits() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32)
    return (pixels - pixels.mean(0)) / pixels.std(0).clamp(min=1e-6), torch.tensor(digits.target)


@pytest.mark.slow
def test_the_optimum_of_scikit_learns_logistic_regression():
    """With the same penalty and time enough, the same loss and the same probabilities, on digits."""
    features, labels = standardized_digits()
    train, train_labels, test = features[::2], labels[::2], features[1::2]
    decay = 0.01
    (head,) = train_heads(
        train, train_labels, 10, {("cls", 1): slice(0, 64)}, [0.1], 2000, len(train), weight_decay=decay
    )
    rival = LogisticRegression(C=1 / (decay * len(train)), tol=1e-8, max_iter=10_000)
    rival.fit(train.double().numpy(), train_labels.numpy())
    theirs = LinearHead("cls", 1, 0.0, torch.tensor(rival.coef_).float(), torch.tensor(rival.intercept_).float())

    def objective(head: LinearHead) -> float:
        return (F.cross_entropy(head(train), train_labels) + decay / 2 * head.weight.square().sum()).item()

    assert objective(head) == pytest.approx(objective(theirs), rel=1e-5)
    torch.testing.assert_close(
        head(test).softmax(1), torch.tensor(rival.predict_proba(test.double().numpy())).float(), rtol=0, atol=2e-3
    )
    assert torch.equal(head(test).argmax(1), theirs(test).argmax(1))


def test_each_head_is_trained_as_alone_by_pytorchs_sgd():
    """Heads of other features and learning rates, in the same pass over the data, change nothing."""
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(50, 12, generator=generator), torch.randint(3, (50,), generator=generator)
    choices = feature_choices("cls_patch_mean", 2, 12)
    heads = train_heads(features, labels, 3, choices, [0.1, 1.0], epochs=3, batch_size=16, seed=5)
    assert [(head.features, head.last_blocks, head.learning_rate) for head in heads][:3] == [
        ("cls", 1, 0.1),
        ("cls", 1, 1.0),
        ("cls_patch_mean", 1, 0.1),
    ]
    for head in heads:
        x = features[:, choices[head.features, head.last_blocks]]
        linear = torch.nn.Linear(x.shape[1], 3)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        optimizer = torch.optim.SGD(linear.parameters(), lr=head.learning_rate * 16 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
        order = torch.Generator().manual_seed(5)
        for _ in range(3):
            for batch in torch.randperm(50, generator=order).split(16)[:3]:
                optimizer.zero_grad()
                F.cross_entropy(linear(x[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(head.weight, linear.weight.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(head.bias, linear.bias.detach(), rtol=0, atol=1e-5)


def test_the_columns_of_each_choice():
    """Of two blocks and a mean, 4 wide each: [first, last, mean]."""
    assert feature_choices("cls_patch_mean", 2, 12) == {
        ("cls", 1): slice(4, 8),
        ("cls_patch_mean", 1): slice(4, 12),
        ("cls", 2): slice(0, 8),
        ("cls_patch_mean", 2): slice(0, 12),
    }
    assert feature_choices("cls", 1, 4) == {("cls", 1): slice(0, 4)}
    with pytest.raises(ValueError, match="projection features are not what linear classifies"):
        feature_choices("projection", 1, 4)


def test_what_is_held_out():
    labels = torch.tensor([0] * 30 + [1] * 4 + [2] + [3] * 10)
    chosen = held_out(labels, 0.2)
    assert [int(chosen[labels == label].sum()) for label in range(4)] == [6, 1, 0, 2]
    assert torch.equal(chosen, held_out(labels, 0.2))
    assert not torch.equal(chosen, held_out(labels, 0.2, seed=1))
    with pytest.raises(ValueError, match="each class has a single training image"):
        held_out(torch.arange(5))


def test_the_best_is_chosen_and_none_that_diverged():
    features, labels = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([0, 1, 0])

    def head(slope: float) -> LinearHead:
        return LinearHead("cls", 1, slope, torch.tensor([[slope], [-slope]]), torch.zeros(2))

    choices = {("cls", 1): slice(0, 1)}
    best, accuracies = best_head([head(-1.0), head(0.5), head(2.0), head(float("nan"))], choices, features, labels)
    assert best.learning_rate == 2.0  # of two without an error the one with the lesser loss
    assert accuracies[:3] == [0.0, 100.0, 100.0]
    with pytest.raises(FloatingPointError, match="not finite"):
        best_head([head(float("nan"))], choices, features, labels)


def test_a_standardized_head_and_one_of_features_as_they_are():
    features, mean, std = torch.randn(6, 4) * 3 + 5, torch.randn(4), torch.rand(4) + 0.5
    head = LinearHead("cls", 1, 0.1, torch.randn(3, 4), torch.randn(3))
    torch.testing.assert_close(head.unstandardized(mean, std)(features), head((features - mean) / std))


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_command_line(tmp_path, dino, family):
    """The model that is saved gives the accuracy that is said, and its folder tells it; the other one if asked."""
    folder = coloured_images(tmp_path, family=family)
    before = sorted((folder / "model").iterdir())
    sources = ("--train", folder / "train", "--test", folder / "test")
    code, out, err = dino(
        "linear", *sources, "--model", folder / "model", "--output", tmp_path / "out", "--dataset", "colours"
    )
    assert code == 0, err
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(model) is DinoForImageClassification
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    processor = DinoImageProcessor.from_pretrained(tmp_path / "out")
    right = []
    for file in sorted((folder / "test").glob("*/*.png")):
        logits = model(**processor(Image.open(file), return_tensors="pt")).logits
        right.append(model.config.id2label[logits.argmax().item()] == file.parent.name)
    assert f"linear: top-1 {100 * np.mean(right):.2f} %" in out
    assert np.mean(right) > 1 / 3
    top1, top5 = json.loads((tmp_path / "out" / "evaluation_results.json").read_text())
    assert (top1["metric_name"], top1["dataset"]) == ("linear top-1", "colours")
    assert (top1["value"], top5["value"]) == (pytest.approx(100 * np.mean(right), abs=1e-4), 100.0)
    assert sorted((folder / "model").iterdir()) == before
    again = evaluate_linear(
        train=folder / "train", test=folder / "test", model=folder / "model", dataset="colours", record=True
    )
    assert json.loads((folder / "model" / "evaluation_results.json").read_text()) == [top1, top5]
    assert again.found.top1 == pytest.approx(top1["value"], abs=1e-4)


def test_features_that_were_extracted_before(tmp_path, folder, dino):
    kinds = ("--features", "cls_patch_mean", "--last-blocks", 3)
    for part in ("train", "test"):
        arguments = ("--model", folder / "model", "--images", folder / part, "--output", tmp_path / part)
        assert dino("extract", *arguments, *kinds)[0] == 0
    assert load_features(tmp_path / "train")["feature"].shape == (12, 128)
    sources = ("--model", folder / "model", "--test", tmp_path / "test")
    said = dino("linear", *sources, "--train", tmp_path / "train", "--json", tmp_path / "found.json")
    assert said[0] == 0, said[2]
    of_images = dino("linear", "--model", folder / "model", "--train", folder / "train", "--test", folder / "test")
    assert said[1].splitlines()[:2] == of_images[1].splitlines()[:2]
    assert json.loads((tmp_path / "found.json").read_text())[0]["metric_name"] == "linear top-1"


def test_of_features_of_several_kinds_one_is_named(tmp_path, folder, dino):
    """As `knn` has it; and a class that was not learned counts as wrong, and is told in the same words."""
    for part in ("train", "test"):
        arguments = ("--model", folder / "model", "--images", folder / part, "--output", tmp_path / part)
        assert dino("extract", *arguments, "--features", "cls,patch_mean")[0] == 0
    (tmp_path / "classes" / "red").mkdir(parents=True)
    for label in ("red", "green"):
        shutil.copytree(folder / "train" / label, tmp_path / "classes" / label, dirs_exist_ok=True)
    model, test = ("--model", folder / "model"), ("--test", tmp_path / "test")
    for command in ("knn", "linear"):
        code, _, err = dino(command, *model, "--train", tmp_path / "train", *test)
        assert code == 2
        assert "several kinds of features, cls, patch_mean: name one with --features" in err
        code, out, err = dino(command, *model, "--train", tmp_path / "train", *test, "--features", "cls")
        assert code == 0, err
        more = ("--features", "cls", "--last-blocks", 1)
        code, out, err = dino(command, *model, "--train", tmp_path / "classes", "--test", folder / "test", *more)
        assert code == 0, err
        assert "4 of them have a class that no training image has, and count as wrong" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epochs", "0"], "epochs=0 and batch_size=256 must be at least 1"),
        (["--train", "plain"], "plain have no labels"),
        (["--test", "plain"], "plain have no labels"),
        (["--train", "train/red"], "have no labels"),
        (["--train", "two-classes", "--test", "lonely"], "no label of"),
        (["--train", "lonely"], "lonely have the label 'blue': two classes are needed"),
        (["--features", "patch_mean"], "patch_mean features are not what linear classifies"),
        (["--output", "model"], "model is not an empty folder"),
        (["--model", "vit_tiny"], "a configuration without weights"),
    ],
)
def test_what_a_user_can_do_wrong_is_one_line(tmp_path, folder, dino, arguments, says):
    named = {"--train": "train", "--test": "test", "--model": "model", **dict(zip(arguments[::2], arguments[1::2]))}
    for name, classes in (("lonely", ["blue"]), ("two-classes", ["red", "green"])):
        for label in classes:
            shutil.copytree(folder / "train" / label, tmp_path / name / label)
    places = ("--train", "--test", "--model", "--output")
    made = ("lonely", "two-classes")
    named = {
        k: (tmp_path if v in made else folder) / v if k in places and v != "vit_tiny" else v for k, v in named.items()
    }
    code, _, err = dino("linear", *(x for pair in named.items() for x in pair))
    assert code == 2
    assert says in err.splitlines()[-1]
