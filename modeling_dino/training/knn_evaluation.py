# SPDX-License-Identifier: Apache-2.0
"""Computes the k-NN accuracy of the teacher's features during pretraining."""

from collections.abc import Sequence

import torch

from ..data.evaluation_transform import DinoImageProcessor, ImageTransform
from ..data.image_source import ImageSource, IndexedSource
from ..data.reader import Batch, ImageReader, all_records, batched, read_batches
from ..data.sources import open_source
from ..evaluation.evaluation_data import check_labels, no_labels, number_labels
from ..evaluation.knn import knn_accuracy, knn_predict
from ..image_processing_dino import image_processor_config
from ..modeling_dino import DinoModel
from .teacher_features import batches_of_process, gather_features, pixel_values_of


K = 20  # "usually working the best": https://github.com/facebookresearch/dino/blob/7c446df/eval_knn.py#L214
BATCH_SIZE = 32
TEST_EVERY = 5  # of a source that is given alone, every fifth image is classified by the others


class KnnEvaluation:
    """
    Classifies labelled images by k-NN of a model's features.

    Args:
        sources: labelled images by their names: those that vote and those that are classified, or one source for both.
        num_workers: processes that read images.

    Returns:
        `knn_top1` and `knn_top5`, in percent.

    Raises:
        ValueError: if labels or features are as `dino knn` refuses them.
    """

    metrics = ("knn_top1", "knn_top5")

    def __init__(self, sources: Sequence[tuple[str, ImageSource]], num_workers: int = 0):
        self.sources, self.num_workers = sources, num_workers

    def __call__(self, model: DinoModel) -> dict[str, float]:
        parts = [labelled_features(model, source, self.num_workers) for _, source in self.sources]
        names = [name for name, _ in self.sources]
        check_labels(names[0], parts[0][1], names[-1], parts[-1][1])
        top1, top5 = accuracy(*(parts if len(parts) == 2 else split(*parts[0])))
        return dict(zip(self.metrics, (top1, top5)))


def open_labelled(names: Sequence[str], **of_tables: str | None) -> list[tuple[str, ImageSource]]:
    """
    Opens labelled images, each source with its name: those that vote and those that are classified, or one source for
    both. Raises ValueError if there are more than two sources, or their labels cannot work. `of_tables` are options
    of [`open_source`].
    """
    if len(names) > 2:
        raise ValueError(f"{len(names)} sources for k-NN: name one, or those that vote and those that are classified")
    sources = [(name, open_source(name, **of_tables)) for name in names]
    for name, source in sources:
        if "label" not in source.columns:
            raise ValueError(no_labels(name, source.how_to_label))
    if sources and all(isinstance(source, IndexedSource) for _, source in sources):  # others are read to be labelled
        labels = [[record.columns["label"] for record in all_records(source)] for _, source in sources]
        check_labels(names[0], labels[0], names[-1], labels[-1])
    return sources


def labelled_features(
    model: DinoModel, source: ImageSource, num_workers: int = 0
) -> tuple[torch.Tensor, list[str | int]]:
    """
    The features of all images that can be read and have a label, (N, D) in float32 on the model's device, and these.

    Under several processes each computes some of the batches; all get the same.
    """
    num_channels = model.config.num_channels
    processor = DinoImageProcessor(**transform_of(model))
    transform = ImageTransform(processor, num_channels, model.backbone.min_image_size)
    batches = (
        Batch(records, place=number)
        for number, records in batches_of_process(batched(all_records(source), BATCH_SIZE))
    )
    reader = ImageReader(transform, num_channels, transform.rescale_factor, transform.fit)
    loader = read_batches(reader, batches, num_workers, pin_memory=model.device.type == "cuda")
    normalize = transform.normalizer(model.device)
    gathered = gather_features(
        model,
        (
            (
                images.place,
                pixel_values_of(normalize, images.pixels, model.device),
                [row["label"] for row in images.rows],
            )
            for images in loader
            if images.pixels is not None
        ),
    )
    if gathered is None:
        raise ValueError("none of the images for k-NN can be read")
    features, labels = gathered
    has_label = torch.tensor([label is not None for label in labels])
    return features[has_label.to(features.device)], [label for label in labels if label is not None]


def transform_of(model: DinoModel) -> dict:
    """Returns the image transform of a model; if it is of a kind that only transformers knows, its mean and std."""
    own, original = model.image_transform, image_processor_config(model.config)
    if own.get("image_processor_type") == original["image_processor_type"]:
        return own
    return {**original, **{name: own[name] for name in ("image_mean", "image_std") if own.get(name)}}


Labelled = tuple[torch.Tensor, list[str | int]]


def split(features: torch.Tensor, labels: list[str | int]) -> tuple[Labelled, Labelled]:
    """Returns the images that vote, and every fifth, which is classified by them."""
    is_test = torch.arange(len(labels)) % TEST_EVERY == 0
    return tuple(
        (features[chosen.to(features.device)], [label for label, is_in in zip(labels, chosen.tolist()) if is_in])
        for chosen in (~is_test, is_test)
    )


def accuracy(train: Labelled, test: Labelled) -> tuple[float, float]:
    """Returns top-1 and top-5 accuracy in percent."""
    if not train[1] or not test[1]:
        raise ValueError("too few labelled images for k-NN")
    train_labels, test_labels = (labels.to(train[0].device) for labels in number_labels(train[1], test[1])[1])
    k = min(K, len(train_labels))
    return knn_accuracy(knn_predict(train[0], train_labels, test[0], [k])[k], test_labels, k)
