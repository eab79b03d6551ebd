# SPDX-License-Identifier: Apache-2.0
"""`dino knn`: measures how many images their nearest neighbours classify rightly.

The protocol: https://github.com/facebookresearch/dino/blob/7c446df/eval_knn.py. Where we deviate, see `knn.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..hub.evaluation_results import check_results_file, record_evaluation_results
from ..runtime.extras import require
from ..runtime.options import takes_options
from ..runtime.processes import processes
from .evaluation_data import (
    EvaluationFeatures,
    EvaluationSummary,
    Label,
    accuracy_result,
    features_of,
    labelled_pair,
    number_labels,
    remarks_on,
    unknown_classes,
)
from .knn import DEFAULT_K, TEMPERATURE, knn_accuracy, knn_predict
from .options import KnnOptions


@dataclass(frozen=True)
class KnnAccuracy:
    """
    The accuracy of k-NN in percent.

    Args:
        train, test: the features that voted, and those that were classified.
        temperature: the temperature of the votes.
        top1, top5: accuracies by k; for top-5 no more classes count than neighbours vote.
        per_class: by k, the top-1 accuracy of each class of the test images.
        class_sizes: number of test images of each class.
        unknown: number of test images whose class no training image has; they count as wrong.
    """

    train: EvaluationFeatures
    test: EvaluationFeatures
    temperature: float
    top1: dict[int, float]
    top5: dict[int, float]
    per_class: dict[int, dict[Label, float]]
    class_sizes: dict[Label, int]
    unknown: int

    def results(self, dataset: str) -> list[dict]:
        """Returns top-1 and top-5 for each k, as [`record_evaluation_results`] takes them."""
        return [
            self._result(dataset, k, f"k-NN top-{top}, k={k}", accuracy, top=top)
            for k in self.top1
            for top, accuracy in ((1, self.top1[k]), (5, self.top5[k]))
        ]

    def class_results(self, dataset: str) -> list[dict]:
        """Returns top-1 of each class for each k, as [`record_evaluation_results`] takes them."""
        return [
            self._result(dataset, k, f"k-NN top-1 of class {label}, k={k}", accuracy, top=1, label=label)
            for k, classes in self.per_class.items()
            for label, accuracy in classes.items()
        ]

    def _result(self, dataset: str, k: int, name: str, accuracy: float, **arguments: Any) -> dict[str, Any]:
        arguments = {"k": k, "temperature": self.temperature, **arguments}
        features = {"features": self.test.kind, "last_blocks": self.test.last_blocks}
        return accuracy_result(dataset, name, accuracy, **arguments, **features)

    def __str__(self) -> str:
        lines = [
            f"{len(self.test.names)} images classified by {len(self.train.names)}, {len(set(self.train.labels))} "
            f"classes, {self.test.kind} features of width {self.test.features.shape[1]}"
        ]
        lines += unknown_classes(self.unknown)
        lines += [f"k={k}: top-1 {self.top1[k]:.2f} %, top-5 {self.top5[k]:.2f} %" for k in self.top1]
        return "\n".join(lines)

    def class_table(self) -> str:
        """Returns the accuracy of each class for each k, as a table."""
        width = max(map(len, map(str, ["class", *self.class_sizes])))
        lines = [f"{'class':<{width}}  images  " + "  ".join(f"{f'k={k}':>7}" for k in self.per_class)]
        for label, size in self.class_sizes.items():
            accuracies = "  ".join(f"{classes[label]:>7.2f}" for classes in self.per_class.values())
            lines.append(f"{label!s:<{width}}  {size:>6}  {accuracies}")
        return "\n".join(lines)


@takes_options(KnnOptions, command="knn")
def evaluate_knn(options: KnnOptions) -> EvaluationSummary[KnnAccuracy] | None:
    """
    Returns:
        a summary whose `found` is the [`KnnAccuracy`]; None on processes other than the main one.

    Raises:
        ValueError, OSError: see [`features_of`] and [`classify_by_neighbours`].
    """
    check_results_file(options.json_file)
    train, test = (features_of(source, options.model, options) for source in (options.train, options.test))
    accuracy = classify_by_neighbours(train, test, options.k, options.temperature)
    if not processes().is_main_process:
        return None
    dataset = options.dataset or options.test
    details = accuracy.class_results(dataset) if options.per_class else []
    recorded = record_evaluation_results(options.record_folder, options.json_file, accuracy.results(dataset), details)
    lines = [str(accuracy), *([accuracy.class_table()] if options.per_class else []), *recorded]
    return EvaluationSummary(accuracy, "\n".join(lines), remarks_on(train, test))


def classify_by_neighbours(
    train: EvaluationFeatures,
    test: EvaluationFeatures,
    k: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
) -> KnnAccuracy:
    """
    Classifies the test images by votes of the training images.

    Under `accelerate launch` or torchrun each process classifies a share of them, on its device; all get the same.

    Args:
        k: numbers of neighbours that vote; by default those of 10, 20, 100 and 200 that there are training images for.
        temperature: see [`knn_predict`].

    Raises:
        ValueError: if the two cannot be compared, one has no labels, or a k is larger than the training set.
    """
    train, test = labelled_pair(train, test)
    classes, (train_labels, test_labels) = number_labels(train.labels, test.labels)
    if k is None:
        k = [k for k in DEFAULT_K if k <= len(train_labels)] or [len(train_labels)]
    predictions = _predict_together(train.features, train_labels, test.features, k, temperature)
    accuracies = {k: knn_accuracy(predicted, test_labels, k) for k, predicted in predictions.items()}
    sizes = test_labels.bincount(minlength=len(classes))
    tested = sizes.nonzero().flatten().tolist()
    per_class = {}
    for k, predicted in predictions.items():
        right = test_labels[predicted[:, 0] == test_labels].bincount(minlength=len(classes))
        per_class[k] = {classes[i]: 100 * right[i].item() / sizes[i].item() for i in tested}
    return KnnAccuracy(
        train,
        test,
        temperature,
        top1={k: top1 for k, (top1, _) in accuracies.items()},
        top5={k: top5 for k, (_, top5) in accuracies.items()},
        per_class=per_class,
        class_sizes={classes[i]: sizes[i].item() for i in tested},
        unknown=int((~torch.isin(test_labels, train_labels)).sum()),
    )


def _predict_together(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, k: Sequence[int], temperature: float
) -> dict[int, torch.Tensor]:
    """Does what [`knn_predict`] does, each process for a share of the test images; the result is on the CPU."""
    state = processes()
    share = test.tensor_split(state.num_processes)[state.process_index]
    found = knn_predict(train.to(state.device), labels.to(state.device), share.to(state.device), k, temperature)
    shares = require("accelerate.utils").gather_object([{k: predicted.cpu() for k, predicted in found.items()}])
    return {k: torch.cat([share[k] for share in shares]) for k in found}
