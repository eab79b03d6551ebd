# SPDX-License-Identifier: Apache-2.0
"""`dino linear`: trains linear classifiers of frozen features, many at a time, and tests the best.

The protocol: section 4.1 of https://arxiv.org/abs/2104.14294 and
https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py, as a search over learning rates and features by
https://github.com/facebookresearch/dinov2/blob/e1277af/dinov2/eval/linear.py.

Where we deviate:
- Features are computed once, with the evaluation transform, so that an epoch is a few matrix products; the originals
  compute them anew from random crops and flips in each epoch.
- The best classifier is chosen by a part of the training images that it was not trained on, where DINOv2 takes the
  best on the images that it reports on. The chosen one is then trained once more, on all of the training images.
- Features are standardised, since SGD takes long where their mean is far from 0 and few images mean few steps. The
  classifier that is learned is turned into one of the features as they are; the loss that it minimises is the same.
"""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..hub.evaluation_results import (
    EVALUATION_RESULTS_NAME,
    check_results_file,
    record_evaluation_results,
    write_evaluation_results,
)
from ..hub.loading import is_exported, load_config, load_image_processor, load_model
from ..modeling_dino import DinoForImageClassification, DinoModel, backbone_class
from ..runtime.options import takes_options
from ..runtime.processes import processes
from ..runtime.whole_files import whole_output
from .evaluation_data import (
    EvaluationFeatures,
    EvaluationSummary,
    Label,
    accuracy_result,
    features_of,
    is_feature_folder,
    labelled_pair,
    number_labels,
    remarks_on,
    unknown_classes,
)
from .knn import TOP, knn_accuracy
from .options import FeatureOptions, LinearOptions


# for 256 images a step; DINOv2 has 1e-5 to 0.1, but standardised features bear, and few images need, greater ones
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
BASE_BATCH_SIZE = 256  # images a step that learning rates refer to
MOMENTUM = 0.9
LAST_BLOCKS = 4
HELD_OUT = 0.1  # share of the training images of each class that the best classifier is chosen by

Choices = dict[tuple[str, int], slice]  # (features, last blocks) -> columns


@dataclass(frozen=True)
class LinearHead:
    """
    A linear classifier.

    Args:
        features, last_blocks: what it classifies, as `classifier_features` and `classifier_last_blocks` of
            [`DinoConfig`].
        learning_rate: the learning rate that it was trained with, for 256 images a step.
        weight: (classes, width).
        bias: (classes,).
    """

    features: str
    last_blocks: int
    learning_rate: float
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Computes logits of features, (N, width) -> (N, classes)."""
        return F.linear(features, self.weight, self.bias)

    def unstandardized(self, mean: torch.Tensor, std: torch.Tensor) -> "LinearHead":
        """Returns the head whose logits of features are those of this one of (features - mean) / std."""
        weight = self.weight / std
        return replace(self, weight=weight, bias=self.bias - weight @ mean)


def feature_choices(kind: str, last_blocks: int, width: int) -> Choices:
    """
    Returns which columns of features make up each kind of features that can be classified.

    These are the CLS tokens of the last block and those of all blocks, with and without the mean of the patch tokens.

    Args:
        kind: `"cls"`, or `"cls_patch_mean"`: the CLS tokens from the earliest block to the last, and the mean of the
            last block's patch tokens.
        last_blocks: number of blocks.
        width: number of columns.

    Raises:
        ValueError: if the features are of another kind, or cannot be so wide.
    """
    if kind not in ("cls", "cls_patch_mean"):
        raise ValueError(f"{kind} features are not what linear classifies: extract cls or cls_patch_mean features")
    tokens = last_blocks + (kind == "cls_patch_mean")
    if width % tokens:
        raise ValueError(f"{kind} features of {last_blocks} blocks cannot be {width} wide: they are {tokens} tokens")
    width //= tokens  # of one token
    end = last_blocks * width
    choices = {}
    for blocks in sorted({1, last_blocks}):
        start = end - blocks * width
        choices["cls", blocks] = slice(start, end)
        if kind == "cls_patch_mean":
            choices["cls_patch_mean", blocks] = slice(start, end + width)
    return choices


def features_to_classify(source: str, model: str, options: FeatureOptions) -> FeatureOptions:
    """Returns options to extract all choices of features in one pass, unless the options or the source have some."""
    if options.features is not None or is_feature_folder(source):
        return options
    config = load_config(model)
    if not backbone_class(config).has_cls_token:
        return replace(options, features="cls")
    last_blocks = options.last_blocks or (1 if config.has_stages else min(LAST_BLOCKS, config.num_hidden_layers))
    return replace(options, features="cls_patch_mean", last_blocks=last_blocks)


def train_heads(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    choices: Choices,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = LinearOptions.epochs,
    batch_size: int = LinearOptions.classifier_batch_size,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> list[LinearHead]:
    """
    Trains linear classifiers of each choice of features with each learning rate, in the same passes over the data.

    Each minimises the mean cross-entropy, and half the weight decay times the squared length of its weights, by SGD
    with momentum 0.9 and a cosine to 0. The objective is convex: weights start from 0, and no random ones are needed.

    Args:
        features: (N, D), best of mean 0 and deviation 1; on the device to train on.
        labels: (N,), from 0.
        choices: see [`feature_choices`].
        learning_rates: learning rates for 256 images a step.
        weight_decay: decay of weights, not of biases.
        seed: seed of the order of the images.

    Returns:
        the heads, by choice and then by learning rate.

    Raises:
        ValueError: if there are no epochs, or no images in a batch.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs} and batch_size={batch_size} must be at least 1")
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    num_steps = epochs * steps_per_epoch
    rates = features.new_tensor(list(learning_rates))[:, None, None] * batch_size / BASE_BATCH_SIZE
    # (learning rates, classes, width + 1) for each choice: the last column, whose feature is 1, is the bias
    widths = [columns.stop - columns.start for columns in choices.values()]
    weights = [features.new_zeros(len(rates), num_classes, width + 1) for width in widths]
    momenta = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    for epoch in tqdm(range(epochs), unit=" epochs", disable=not progress):
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


def _gradient(weight: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor, weight_decay: float) -> torch.Tensor:
    """
    Computes the gradient of the mean cross-entropy of many heads, (softmax - targets)^T inputs / B, and of the decay.

    Args:
        weight: (L heads, C classes, D).
        inputs: (B, D), of which the last column is 1.
        targets: (B, C), 0 and 1.
    """
    logits = (inputs @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2])  # (B, L, C)
    errors = (logits.softmax(dim=-1) - targets[:, None]).flatten(1)  # (B, L * C)
    gradient = (errors.T @ inputs).view_as(weight) / len(inputs)
    gradient[..., :-1] += weight_decay * weight[..., :-1]
    return gradient


def held_out(labels: torch.Tensor, share: float = HELD_OUT, seed: int = 0) -> torch.Tensor:
    """
    Returns which images are held out to choose a head by, (N,), bool.

    They are the same share of each class, and at least one image, but never the only one of a class.

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
        raise ValueError("each class has a single training image: one needs two, to choose a classifier by")
    return chosen


def best_head(
    heads: Sequence[LinearHead], choices: Choices, features: torch.Tensor, labels: torch.Tensor
) -> tuple[LinearHead, list[float]]:
    """
    Returns the head with the best top-1 accuracy (of equally good ones that with the least loss), and all accuracies.
    Raises FloatingPointError if no head has a finite loss.
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
    The accuracy of a linear classifier in percent.

    Args:
        head: the classifier.
        classes: the labels of its outputs.
        held_out: its accuracy on the training images that it was chosen by.
        top1, top5: its accuracies on the test images.
        num_heads: number of heads that it was chosen from.
        epochs, batch_size: how it was trained.
        num_tested: number of test images.
        unknown: number of test images whose class no training image has; they count as wrong.
    """

    head: LinearHead
    classes: list[Label]
    held_out: float
    top1: float
    top5: float
    num_heads: int
    epochs: int
    batch_size: int
    num_tested: int
    unknown: int

    def results(self, dataset: str) -> list[dict]:
        """Returns the accuracies on the test images, as [`record_evaluation_results`] takes them."""
        training = {"epochs": self.epochs, "batch_size": self.batch_size}
        return [
            accuracy_result(dataset, f"linear top-{top}", accuracy, top=top, **training)
            for top, accuracy in ((1, self.top1), (5, self.top5))
        ]

    def __str__(self) -> str:
        head = self.head
        unknown = [f"{self.num_tested} images classified", *unknown_classes(self.unknown)] if self.unknown else []
        best = (
            f"best of {self.num_heads} on held-out training images ({self.held_out:.2f} %): {head.features} of the "
            f"last {head.last_blocks} blocks, learning rate {head.learning_rate:g}"
        )
        return "\n".join([*unknown, best, f"linear: top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %"])


@takes_options(LinearOptions, command="linear")
def evaluate_linear(options: LinearOptions) -> EvaluationSummary[LinearAccuracy] | None:
    """
    Returns:
        a summary whose `found` is the [`LinearAccuracy`]; None on processes other than the main one.

    Raises:
        ValueError: if the output is not empty, and as [`features_of`] and [`classify_linearly`] do.
        FloatingPointError: see [`classify_linearly`].
    """
    output = None if options.output is None else Path(options.output)
    if output is not None and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder: choose another one")
    if output is not None and is_exported(options.model):
        raise ValueError(f"{options.model} is exported, without weights to save with a classifier: leave out --output")
    check_results_file(options.json_file)
    train, test = (
        features_of(source, options.model, features_to_classify(source, options.model, options))
        for source in (options.train, options.test)
    )
    if not processes().is_main_process:
        return None
    training = {"epochs": options.epochs, "batch_size": options.classifier_batch_size, "seed": options.seed}
    accuracy = classify_linearly(train, test, **training, progress=options.progress)
    results = accuracy.results(options.dataset or options.test)
    lines = [str(accuracy), *record_evaluation_results(options.record_folder, options.json_file, results)]
    if output is not None:
        save_classifier(accuracy, options.model, output, results)
        lines.append(f"saved in {output}")
    return EvaluationSummary(accuracy, "\n".join(lines), remarks_on(train, test))


def classify_linearly(
    train: EvaluationFeatures,
    test: EvaluationFeatures,
    *,
    epochs: int = LinearOptions.epochs,
    batch_size: int = LinearOptions.classifier_batch_size,
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
        ValueError: if the two cannot be compared, have no labels, or have features that cannot be classified.
        FloatingPointError: if no head has a finite loss, or the classifier's weights are not finite.
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
    settings = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": progress}
    to_learn = features[~is_held_out], labels[~is_held_out]
    heads = train_heads(*to_learn, len(classes), choices, learning_rates, **settings)
    best, accuracies = best_head(heads, choices, features[is_held_out], labels[is_held_out])
    columns = choices[best.features, best.last_blocks]
    chosen = {(best.features, best.last_blocks): columns}
    (head,) = train_heads(features, labels, len(classes), chosen, [best.learning_rate], **settings)

    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise FloatingPointError("the classifier's weights are not finite: are the features as they should be?")
    numbers = {label: number for number, label in enumerate(classes)}
    truth = torch.tensor([numbers.get(label, -1) for label in test.labels])  # -1: a class that was not learned
    head = head.unstandardized(mean[columns], std[columns])
    predicted = head(test.features[:, columns].to(device)).topk(min(TOP, len(classes)), dim=1).indices.cpu()
    top1, top5 = knn_accuracy(predicted, truth, TOP)
    counts = len(heads), epochs, batch_size, len(truth), int((truth < 0).sum())
    return LinearAccuracy(head, classes, max(accuracies), top1, top5, *counts)


def classifier_of(
    model: DinoModel, classes: Sequence[Label], features: str = "cls", last_blocks: int = 1
) -> DinoForImageClassification:
    """
    Returns a model with the backbone of another one and a new classifier.

    Args:
        classes: labels, whose names `config.id2label` has in this order.
        features, last_blocks: what is classified: `classifier_features` and `classifier_last_blocks` of
            [`DinoConfig`].
    """
    config = copy.deepcopy(model.config)
    config.id2label = {number: str(label) for number, label in enumerate(classes)}
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.classifier_features, config.classifier_last_blocks = features, last_blocks
    classifier = DinoForImageClassification(config)
    classifier.backbone.load_state_dict(model.backbone.state_dict())
    classifier.image_transform = model.image_transform
    return classifier.eval()


def save_classifier(accuracy: LinearAccuracy, model: str, output: str | os.PathLike, results: Sequence[dict]):
    """
    Saves a model with the classifier of its features, its transform, and its results, all at once. Raises ValueError
    if the output is taken.
    """
    head, dino = accuracy.head, load_model(model)
    classifier = classifier_of(dino, accuracy.classes, head.features, head.last_blocks)
    classifier.classifier.load_state_dict({"weight": head.weight, "bias": head.bias})
    with whole_output(Path(output)) as partial:
        classifier.save_pretrained(partial)
        load_image_processor(model, dino.config).save_pretrained(partial)
        write_evaluation_results(partial / EVALUATION_RESULTS_NAME, results)
