# SPDX-License-Identifier: Apache-2.0
"""`dino finetune`: a classifier and its backbone, trained together by transformers' Trainer.

Learning rates fall from the classifier to the first layer, by a factor a layer, as is usual for self-supervised models
since https://arxiv.org/abs/2106.08254; groups as in
https://github.com/facebookresearch/mae/blob/efb2a80/util/lr_decay.py.

Where we deviate: crops and flips are all there is of augmentation. The original does not say how it fine-tuned.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import ImageProcessingMixin, Trainer, TrainingArguments, set_seed

from ..configuration_dino import DinoConfig
from ..data.image_source import IndexedSource
from ..data.sources import open_source
from ..evaluation.evaluation_data import Label
from ..evaluation.knn import TOP, knn_accuracy
from ..evaluation.linear import classifier_of
from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_image_processor, load_model, model_fingerprint
from ..modeling_dino import DinoForImageClassification, backbone_class
from ..runtime.extras import require
from ..runtime.processes import spare_workers
from .checkpoints import last_whole_checkpoint
from .optimization import parameter_groups
from .pretrain import RunFolder, told_what_is_kept
from .training_data import SourceImages


BETAS = (0.9, 0.999)
BICUBIC = 3  # of torchvision's InterpolationMode and of Pillow


@dataclass(frozen=True)
class FinetuningSettings:
    """
    How a classifier is fine-tuned.

    Args:
        epochs: times that each training image is seen.
        batch_size: images in one step, over all processes.
        learning_rate: of the classifier, after the warm-up; then a cosine to 0.
        layer_decay: the learning rate of a layer over that of the next.
        weight_decay: of all but biases and other parameters of one dimension.
        warmup: share of the steps in which the learning rate rises.
        drop_path_rate: see [`DinoConfig`].
        crop_scale: least share of the image's area in a random crop; 1 for whole images.
        flip_probability: of a horizontal flip.
        seed: of the classifier's weights, the order of the images and their crops.

    Raises:
        ValueError: if a value cannot work.
    """

    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 5e-4
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    warmup: float = 0.1
    drop_path_rate: float = 0.1
    crop_scale: float = 0.35
    flip_probability: float = 0.5
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("layer_decay", "crop_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0 and at most 1")
        for name in ("warmup", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")


@dataclass(frozen=True)
class FinetuningSummary:
    """What fine-tuning came to: accuracies on the test images in percent, and where the model is."""

    output: str
    top1: float
    top5: float
    seconds: float

    def __str__(self) -> str:
        return f"fine-tuned: top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %, {self.seconds:.0f} s -> {self.output}"


class LabelledImages(Dataset):
    """
    The labelled images of a source, as the Trainer takes them.

    Args:
        transform: of a decoded image to (C, H, W).
        classes: names of the classes; a label that is not among them has number -1. Those of the images if None.

    Raises:
        ValueError: if the images have no labels.
    """

    def __init__(self, name: str, num_channels: int, transform: Any, classes: Sequence[Label] | None = None):
        source: IndexedSource = open_source(name).indexed()
        labels = [source.record(i).columns.get("label") for i in range(source.num_images)]
        self.indices = [i for i, label in enumerate(labels) if label is not None]
        if not self.indices:
            raise ValueError(f"the images of {name} have no labels: put those of each class into a folder of its own")
        self.classes = sorted({labels[i] for i in self.indices}) if classes is None else list(classes)
        numbers = {label: number for number, label in enumerate(self.classes)}
        self.labels = [numbers.get(labels[i], -1) for i in self.indices]
        self.source, self.images, self.transform = source, SourceImages(source, num_channels), transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[self.indices[index]]
        return {"pixel_values": self.transform(image), "labels": self.labels[index]}


def finetune(
    train: str,
    test: str,
    model: str,
    output: str | os.PathLike,
    settings: FinetuningSettings = FinetuningSettings(),
    *,
    dataset: str | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> FinetuningSummary | None:
    """
    Fine-tunes a model to classify images, and tests it once, at the end; goes on where an earlier run stopped.

    Args:
        train, test: labelled images: see [`open_source`].
        model: folder or hub id of the model to start from; its head or classifier is left aside.
        output: a new or empty folder, or one of the same run.
        dataset: name of the data set in the results; `test` if None.
        num_workers: processes that read images; by default one a spare core, none for few images.
        overwrite: start anew where the folder has a run.

    Returns:
        what it came to; None on processes other than the main one.

    Raises:
        ValueError: if an argument or the images cannot work.
        OSError: if a model is missing, or something cannot be written.
    """
    dino = load_model(model)
    processor = load_image_processor(model, dino.config)
    channels = dino.config.num_channels
    train_images = LabelledImages(train, channels, random_crop(processor, settings))
    if len(train_images.classes) == 1:
        raise ValueError(f"all images of {train} have the label {train_images.classes[0]!r}: two classes are needed")
    test_images = LabelledImages(test, channels, centre_crop(processor), train_images.classes)
    if max(test_images.labels) < 0:
        raise ValueError(f"no label of {test} is among those of {train}, such as {train_images.classes[0]!r}")
    folder = RunFolder(output, _describe(settings, train, train_images, model, model_fingerprint(dino)))
    folder.check(overwrite)

    set_seed(settings.seed)
    dino.config.drop_path_rate = settings.drop_path_rate if dino.backbone.has_drop_path else 0.0
    classifier = classifier_of(dino, train_images.classes)
    trainer = make_trainer(classifier, train_images, str(output), settings, num_workers)
    if trainer.is_world_process_zero():
        folder.open(overwrite)
    trainer.accelerator.wait_for_everyone()
    with told_what_is_kept(folder.path):
        trained = trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder.path))
        trainer.save_model(str(output))
        logits = torch.from_numpy(trainer.predict(test_images).predictions)
        if not trainer.is_world_process_zero():
            return None
        predicted = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        top1, top5 = knn_accuracy(predicted, torch.tensor(test_images.labels), TOP)
        processor.save_pretrained(output)
        add_evaluation_results(output, _results(dataset or test, settings, {1: top1, 5: top5}))
        summary = FinetuningSummary(str(output), top1, top5, trained.metrics["train_runtime"])
        folder.close(results={"top1": top1, "top5": top5, "loss": trained.training_loss})
    return summary


def random_crop(processor: ImageProcessingMixin, settings: FinetuningSettings) -> Any:
    """Transform of a training image: Pillow image -> (C, H, W)."""
    v2 = require("torchvision.transforms.v2", "train")
    size = processor.crop_size
    return v2.Compose(
        [
            v2.RandomResizedCrop((size["height"], size["width"]), (settings.crop_scale, 1.0), interpolation=BICUBIC),
            v2.RandomHorizontalFlip(settings.flip_probability),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )


def centre_crop(processor: ImageProcessingMixin) -> Any:
    """Transform of a test image: Pillow image -> (C, H, W)."""
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def layer_of(name: str, config: DinoConfig) -> int:
    """The layer of a parameter: 0 before the first block or stage, and one more than these after the last."""
    layer = backbone_class(config).layer_of(name.removeprefix("backbone."))
    return config.num_hidden_layers + 1 if layer is None else layer


def decayed_groups(model: DinoForImageClassification, learning_rate: float, layer_decay: float) -> list[dict]:
    """Groups of parameters for an optimizer: two a layer, with and without weight decay."""
    layers: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(layer_of(name, model.config), []).append(parameter)
    last = model.config.num_hidden_layers + 1
    return [
        {**group, "lr": learning_rate * layer_decay ** (last - layer)}
        for layer, parameters in sorted(layers.items())
        for group in parameter_groups(nn.ParameterList(parameters))
        if group["params"]
    ]


def make_trainer(
    model: DinoForImageClassification,
    images: LabelledImages,
    output: str,
    settings: FinetuningSettings,
    num_workers: int | None,
) -> Trainer:
    """
    The Trainer of transformers, with an optimizer of [`decayed_groups`].

    Raises:
        ValueError: if processes cannot share a batch.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    batch_size = min(settings.batch_size, len(images))
    if batch_size % world_size:
        raise ValueError(f"batch_size={batch_size} is not a multiple of {world_size} processes")
    steps = settings.epochs * -(-len(images) // batch_size)
    args = TrainingArguments(
        output,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=batch_size // world_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * steps),
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        seed=settings.seed,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=spare_workers(len(images), world_size) if num_workers is None else num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    groups = decayed_groups(model, settings.learning_rate, settings.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay)
    return Trainer(model, args, train_dataset=images, optimizers=(optimizer, None))


def _describe(
    settings: FinetuningSettings, train: str, images: LabelledImages, model: str, fingerprint: str
) -> dict[str, Any]:
    """What makes two runs the same."""
    data = {"source": train, "num_images": len(images), "fingerprint": images.source.fingerprint()}
    return {
        "finetuning": asdict(settings),
        "data": {**data, "classes": images.classes},
        "from": {"model": model, "fingerprint": fingerprint},
    }


def _results(dataset: str, settings: FinetuningSettings, accuracies: dict[int, float]) -> list[dict[str, Any]]:
    arguments = {name: getattr(settings, name) for name in ("epochs", "batch_size", "learning_rate", "layer_decay")}
    return [
        {
            "task": "image-classification",
            "dataset": dataset,
            "metric": "accuracy",
            "metric_name": f"fine-tuned top-{top}",
            "value": round(accuracy, 4),
            "top": top,
            **arguments,
        }
        for top, accuracy in accuracies.items()
    ]


__all__ = ["FinetuningSettings", "FinetuningSummary", "decayed_groups", "finetune", "layer_of"]
