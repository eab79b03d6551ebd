# SPDX-License-Identifier: Apache-2.0
"""`dino linear`: linear classifiers of frozen features, many at a time.

The protocol: section 4.1 of https://arxiv.org/abs/2104.14294 and
https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py, as a search over learning rates and features by
https://github.com/facebookresearch/dinov2/blob/e1277af/dinov2/eval/linear.py.

Where we deviate:
- Features are computed once, of the evaluation transform, so that an epoch is a few matrix products; the originals
  compute them anew from random crops and flips each time.
- The best classifier is chosen by a part of the training images that it was not trained on, where DINOv2 takes the
  best on the images that it reports on; what was chosen is then trained once more, on all of the training images.
- Features are standardised, since SGD takes long where their mean is far from 0 and few images mean few steps. What is
  learned is made a classifier of the features as they are; the loss that it minimises is the same.
"""

import copy
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_config, load_image_processor, load_model
from ..modeling_dino import DinoForImageClassification, DinoModel, backbone_class
from ..runtime.processes import processes
from .evaluation_data import EvaluationFeatures, Label, is_feature_folder, labelled_pair, number_labels
from .knn import TOP, knn_accuracy


# for 256 images a step; DINOv2 has 1e-5 to 0.1, but standardised features bear, and few images need, greater ones
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
BASE_BATCH_SIZE = 256  # to which they refer
EPOCHS = 100
BATCH_SIZE = 256
MOMENTUM = 0.9
LAST_BLOCKS = 4
HELD_OUT = 0.1  # of the training images of each class, to choose by


@dataclass(frozen=True)
class LinearHead:
    """
    A linear classifier, and what it is of.

    Args:
        features, last_blocks: as `classifier_features` and `classifier_last_blocks` of [`DinoConfig`].
        learning_rate: for 256 images a step.
        weight: (classes, width).
        bias: (classes,).
    """

    features: str
    last_blocks: int
    learning_rate: float
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of features, (N, width) -> (N, classes)."""
        return F.linear(features, self.weight, self.bias)

    def unstandardized(self, mean: torch.Tensor, std: torch.Tensor) -> "LinearHead":
        """The head whose logits of features are those of this one of (features - mean) / std."""
        weight = self.weight / std
        return replace(self, weight=weight, bias=self.bias - weight @ mean)


def feature_choices(kind: str, last_blocks: int, width: int) -> dict[tuple[str, int], slice]:
    """
    The features that can be classified, as columns of features of several blocks.

    Args:
        kind: `"cls"`, or `"cls_patch_mean"`: the CLS tokens from the earliest block to the last, and the mean of the
            last one's patch tokens.
        last_blocks: how many blocks.
        width: of all of it.

    Returns:
        (features, last blocks) -> columns: the last block's and those of all blocks, with and without the mean.

    Raises:
        ValueError: if they are of another kind.
    """
    if kind not in ("cls", "cls_patch_mean"):
        raise ValueError(f"{kind} features are not what linear classifies: extract cls or cls_patch_mean features")
    width //= last_blocks + (kind == "cls_patch_mean")  # of one token
    end = last_blocks * width
    choices = {}
    for blocks in sorted({1, last_blocks}):
        start = end - blocks * width
        choices["cls", blocks] = slice(start, end)
        if kind == "cls_patch_mean":
            choices["cls_patch_mean", blocks] = slice(start, end + width)
    return choices


def features_to_classify(source: str, model: str) -> dict[str, Any]:
    """What to extract of images, all choices in one pass; of features that are there, what they are."""
    if is_feature_folder(source):
        return {}
    config = load_config(model)
    if not backbone_class(config).has_cls_token:
        return {"features": "cls"}
    return {"features": "cls_patch_mean", "last_blocks": min(LAST_BLOCKS, config.num_hidden_layers)}


def train_heads(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    choices: dict[tuple[str, int], slice],
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Callable[[range], Iterable[int]] = iter,
) -> list[LinearHead]:
    """
    Linear classifiers of each choice of features with each learning rate, trained in the same passes over the data.

    Each minimises the mean cross-entropy, and half the weight decay times the squared length of its weights, by SGD
    with momentum 0.9 and a cosine to 0, from weights of 0: that is convex, so there is nothing to be drawn.

    Args:
        features: (N, D), best of mean 0 and deviation 1; on the device to train on.
        labels: (N,), from 0.
        choices: of [`feature_choices`].
        learning_rates: for 256 images a step.
        weight_decay: of weights, not of biases.
        seed: of the order of the images.
        progress: wraps the epochs, to show how far it is.

    Returns:
        the heads, by choice and then by learning rate.

    Raises:
        ValueError: if an argument cannot work.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs} and batch_size={batch_size} must be at least 1")
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    num_steps = epochs * steps_per_epoch
    rates = features.new_tensor(list(learning_rates))[:, None, None] * batch_size / BASE_BATCH_SIZE
    # of each choice (learning rates, classes, width + 1): the last column, whose feature is 1, is the bias
    weights = [features.new_zeros(len(rates), num_classes, _width(columns) + 1) for columns in choices.values()]
    momenta = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    for epoch in progress(range(epochs)):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for i, batch in enumerate(order.split(batch_size)[:steps_per_epoch]):
            x, targets = features[batch], F.one_hot(labels[batch], num_classes)
            cosine = 0.5 * (1 + math.cos(math.pi * (epoch * steps_per_epoch + i) / num_steps))
            for weight, momentum, columns in zip(weights, momenta, choices.values()):
                inputs = F.pad(x[:, columns], (0, 1), value=1.0)
                momentum.mul_(MOMENTUM).add_(_gradient(weight, inputs, targets, weight_decay))
                weight.sub_(cosine * rates * momentum)
    return [
        LinearHead(kind, blocks, rate, weight[i, :, :-1].clone(), weight[i, :, -1].clone())
        for (kind, blocks), weight in zip(choices, weights)
        for i, rate in enumerate(learning_rates)
    ]


def _width(columns: slice) -> int:
    return columns.stop - columns.start


def _gradient(weight: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor, weight_decay: float) -> torch.Tensor:
    """
    Of the mean cross-entropy of many heads: (softmax - targets)^T inputs / B, and of the decay.

    Args:
        weight: (L heads, C classes, D).
        inputs: (B, D), of which the last is 1.
        targets: (B, C), 0 and 1.
    """
    logits = (inputs @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2])  # (B, L, C)
    errors = (logits.softmax(dim=-1) - targets[:, None]).flatten(1)  # (B, L * C)
    gradient = (errors.T @ inputs).view_as(weight) / len(inputs)
    gradient[..., :-1] += weight_decay * weight[..., :-1]
    return gradient


def held_out(labels: torch.Tensor, share: float = HELD_OUT, seed: int = 0) -> torch.Tensor:
    """
    Which images are held out to choose by, (N,): of each class the same share, at least one, but never its only one.

    Raises:
        ValueError: if each class has a single image.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not chosen.any():
        raise ValueError(
            "each class has a single training image: at least one class needs two, to choose by one of them"
        )
    return chosen


def choose(
    heads: Sequence[LinearHead], choices: dict[tuple[str, int], slice], features: torch.Tensor, labels: torch.Tensor
) -> tuple[LinearHead, list[float]]:
    """
    The head with the best top-1 accuracy, of those the one with the least loss; and the accuracy of each in percent.

    Raises:
        FloatingPointError: if none has a loss that is finite.
    """
    scores = []
    for head in heads:
        logits = head(features[:, choices[head.features, head.last_blocks]])
        loss = F.cross_entropy(logits, labels).item()
        accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
        scores.append((accuracy, -loss) if math.isfinite(loss) else (-1.0, -math.inf))
    best = max(range(len(heads)), key=scores.__getitem__)
    if scores[best][0] < 0:
        raise FloatingPointError("the loss of each head is not finite: are the features as they should be?")
    return heads[best], [accuracy for accuracy, _ in scores]


@dataclass(frozen=True)
class LinearAccuracy:
    """
    What a linear classifier came to, in percent.

    Args:
        head: the classifier.
        classes: what it tells apart.
        held_out: its accuracy on the training images that it was chosen by.
        top1, top5: on the test images.
        num_heads: that it was chosen from.
        epochs, batch_size: of its training.
    """

    head: LinearHead
    classes: list[Label]
    held_out: float
    top1: float
    top5: float
    num_heads: int
    epochs: int
    batch_size: int

    def results(self, dataset: str) -> list[dict[str, Any]]:
        """For [`record_evaluation_results`]."""
        arguments = {"epochs": self.epochs, "batch_size": self.batch_size}
        return [
            {
                "task": "image-classification",
                "dataset": dataset,
                "metric": "accuracy",
                "metric_name": f"linear top-{top}",
                "value": round(accuracy, 4),
                "top": top,
                **arguments,
            }
            for top, accuracy in ((1, self.top1), (5, self.top5))
        ]

    def __str__(self) -> str:
        head = self.head
        return (
            f"best of {self.num_heads} on held-out training images ({self.held_out:.2f} %): {head.features} of the "
            f"last {head.last_blocks} blocks, learning rate {head.learning_rate:g}\n"
            f"linear: top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %"
        )


def evaluate_linear(
    train: EvaluationFeatures,
    test: EvaluationFeatures,
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    progress: bool = True,
) -> LinearAccuracy:
    """
    Trains linear classifiers of the training images' features, and tests the best.

    Args:
        train, test: cls or cls_patch_mean features of any number of last blocks: see [`feature_choices`].
        epochs, batch_size, learning_rates, seed: see [`train_heads`].

    Raises:
        ValueError: if the two cannot be compared, have no labels, or are of features that cannot be classified.
        FloatingPointError: if nothing can be learned of the features.
    """
    train, test = labelled_pair(train, test)
    choices = feature_choices(train.kind, train.last_blocks, train.features.shape[1])
    classes, (labels,) = number_labels(train.labels)
    is_held_out = held_out(labels, seed=seed)

    device = processes().device
    features, labels, is_held_out = train.features.to(device), labels.to(device), is_held_out.to(device)
    mean, std = features.mean(dim=0), features.std(dim=0)
    std[std == 0] = 1.0
    features = (features - mean) / std
    settings = {"num_classes": len(classes), "epochs": epochs, "batch_size": batch_size, "seed": seed}
    settings["progress"] = lambda epochs: tqdm(epochs, unit=" epochs", disable=not progress)
    heads = train_heads(
        features[~is_held_out], labels[~is_held_out], choices=choices, learning_rates=learning_rates, **settings
    )
    best, accuracies = choose(heads, choices, features[is_held_out], labels[is_held_out])
    chosen = {(best.features, best.last_blocks): choices[best.features, best.last_blocks]}
    (head,) = train_heads(features, labels, choices=chosen, learning_rates=[best.learning_rate], **settings)

    numbers = {label: number for number, label in enumerate(classes)}
    truth = torch.tensor([numbers.get(label, -1) for label in test.labels])  # -1: of no class that was learned
    (columns,) = chosen.values()
    head = head.unstandardized(mean[columns], std[columns])
    predicted = head(test.features[:, columns].to(device)).topk(min(TOP, len(classes)), dim=1).indices.cpu()
    top1, top5 = knn_accuracy(predicted, truth, TOP)
    return LinearAccuracy(head, classes, max(accuracies), top1, top5, len(heads), epochs, batch_size)


def classifier_of(
    model: DinoModel, classes: Sequence[Label], features: str = "cls", last_blocks: int = 1
) -> DinoForImageClassification:
    """
    The model with a new classifier on its backbone.

    Args:
        classes: their names are in `config.id2label`, in this order.
        features, last_blocks: what is classified, see [`DinoConfig`].
    """
    config = copy.deepcopy(model.config)
    config.id2label = {number: str(label) for number, label in enumerate(classes)}
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.classifier_features, config.classifier_last_blocks = features, last_blocks
    classifier = DinoForImageClassification(config)
    classifier.backbone.load_state_dict(model.backbone.state_dict())
    return classifier.eval()


def save_classifier(accuracy: LinearAccuracy, model: str, output: str | os.PathLike, results: Sequence[dict]):
    """Saves a model with the classifier of its features, its transform, and what it came to."""
    head, dino = accuracy.head, load_model(model)
    classifier = classifier_of(dino, accuracy.classes, head.features, head.last_blocks)
    classifier.classifier.load_state_dict({"weight": head.weight, "bias": head.bias})
    classifier.save_pretrained(output)
    load_image_processor(model, dino.config).save_pretrained(output)
    add_evaluation_results(output, results)


def check_output(output: str | os.PathLike):
    """
    Raises:
        ValueError: if there is something already.
    """
    path = Path(output)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{output} is not an empty folder: choose another one")


__all__ = ["LinearAccuracy", "LinearHead", "classifier_of", "evaluate_linear", "feature_choices", "train_heads"]
