# SPDX-License-Identifier: Apache-2.0
"""`dino finetune`: a classifier and its backbone, trained together by transformers' Trainer.

Learning rates fall from the classifier to the first layer, by a factor a layer, as is usual for self-supervised models
since https://arxiv.org/abs/2106.08254; groups as in
https://github.com/facebookresearch/mae/blob/efb2a80/util/lr_decay.py.

Where we deviate: crops and flips are all there is of augmentation. The original does not say how it fine-tuned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import ImageProcessingMixin, Trainer, TrainingArguments, set_seed

from ..configuration_dino import DinoConfig
from ..data.image_source import IndexedSource
from ..data.image_values import EIGHT_BITS, rescaled
from ..data.sources import open_source
from ..evaluation.evaluation_data import Label, accuracy_result
from ..evaluation.knn import TOP, knn_accuracy
from ..evaluation.linear import classifier_of
from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_image_processor, load_model, model_fingerprint
from ..modeling_dino import DinoForImageClassification, backbone_class
from ..runtime.extras import require
from ..runtime.processes import reading_processes, started_processes
from .optimization import parameter_groups
from .options import FinetuneOptions, FinetuneSettings
from .training_data import SourceImages
from .training_folder import TrainingFolder, last_whole_checkpoint


BETAS = (0.9, 0.999)
RECORDED = ("epochs", "batch_size", "learning_rate", "layer_decay")  # with the results
BICUBIC = 3  # of torchvision's InterpolationMode and of Pillow


class FinetuneFolder(TrainingFolder):
    """The folder of a fine-tuning run."""

    command = "dino finetune"


@dataclass(frozen=True)
class FinetuningSummary:
    """Accuracies of a fine-tuned model on the test images in percent, and where it is."""

    output: str
    top1: float
    top5: float
    seconds: float

    def __str__(self) -> str:
        return f"fine-tuned: top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %, {self.seconds:.0f} s -> {self.output}"


class LabelledImages(Dataset):
    """
    Gives the labelled images of a source as the Trainer takes them.

    Args:
        transform: of a decoded image to (C, H, W).
        classes: names of the classes; a label that is not among them has number -1. By default
            those of the images.

    Raises:
        ValueError: if the images have no labels.
    """

    def __init__(
        self,
        name: str,
        num_channels: int,
        transform: Any,
        classes: Sequence[Label] | None = None,
        rescale_factor: float = EIGHT_BITS,
    ):
        source: IndexedSource = open_source(name).indexed()
        labels = [source.record(i).columns.get("label") for i in range(source.num_images)]
        self.indices = [i for i, label in enumerate(labels) if label is not None]
        if not self.indices:
            raise ValueError(f"the images of {name} have no labels: put those of each class into a folder of its own")
        self.classes = sorted({labels[i] for i in self.indices}) if classes is None else list(classes)
        numbers = {label: number for number, label in enumerate(self.classes)}
        self.labels = [numbers.get(labels[i], -1) for i in self.indices]
        self.source, self.images, self.transform = (
            source,
            SourceImages(source, num_channels, rescale_factor),
            transform,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[self.indices[index]]
        return {"pixel_values": self.transform(image), "labels": self.labels[index]}


def finetune(options: FinetuneOptions) -> FinetuningSummary | None:
    """
    Fine-tunes a model to classify images, and tests it once, at the end; goes on where an earlier run stopped.

    Returns:
        accuracies; None on processes other than the main one.

    Raises:
        ValueError: if an option or the images cannot work.
        OSError: if a model is missing, or something cannot be written.
    """
    dino = load_model(options.model)
    processor = load_image_processor(options.model, dino.config)
    train_images, test_images = labelled_images(options, processor, dino.config.num_channels)
    folder = FinetuneFolder(options.output, settings_of_run(options, train_images, model_fingerprint(dino)))
    folder.check(options.overwrite)

    set_seed(options.seed)
    dino.config.drop_path_rate = options.drop_path_rate if dino.backbone.has_drop_path else 0.0
    trainer = make_trainer(classifier_of(dino, train_images.classes), train_images, options)
    if trainer.is_world_process_zero():
        folder.open(options.overwrite)
    trainer.accelerator.wait_for_everyone()
    with folder.failed_writes_explained():
        trained = trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder.path))
        trainer.save_model(str(folder.path))
        logits = torch.from_numpy(trainer.predict(test_images).predictions)
        if not trainer.is_world_process_zero():
            return None
        predicted = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        top1, top5 = knn_accuracy(predicted, torch.tensor(test_images.labels), TOP)
        processor.save_pretrained(folder.path)
        arguments = {name: getattr(options, name) for name in RECORDED}
        results = [
            accuracy_result(options.dataset or options.test, f"fine-tuned top-{top}", percent, top=top, **arguments)
            for top, percent in ((1, top1), (5, top5))
        ]
        add_evaluation_results(folder.path, results)
        folder.close(results={"top1": top1, "top5": top5, "loss": trained.training_loss})
    return FinetuningSummary(str(options.output), top1, top5, trained.metrics["train_runtime"])


def labelled_images(
    options: FinetuneOptions, processor: ImageProcessingMixin, num_channels: int
) -> tuple[LabelledImages, LabelledImages]:
    """
    Returns the images to train on and those to test on. Raises ValueError if they have no labels, only one, or none in
    common.
    """
    from ..data.evaluation_transform import ImageTransform

    transform = ImageTransform(processor, num_channels)
    train = LabelledImages(
        options.train, num_channels, random_crop(processor, options), rescale_factor=transform.rescale_factor
    )
    if len(train.classes) == 1:
        raise ValueError(f"all images of {options.train} have the label {train.classes[0]!r}: two classes are needed")
    test = LabelledImages(
        options.test,
        num_channels,
        transform.pixel_values,
        train.classes,
        transform.rescale_factor,
    )
    if max(test.labels) < 0:
        raise ValueError(f"no label of {options.test} is among those of {options.train}, such as {train.classes[0]!r}")
    return train, test


def random_crop(processor: ImageProcessingMixin, settings: FinetuneSettings) -> Any:
    """Returns the transform of a training image, by Pillow or an array (H, W, C), to (C, H, W)."""
    v2 = require("torchvision.transforms.v2", "train")
    size = processor.crop_size
    return v2.Compose(
        [
            partial(rescaled, rescale_factor=processor.rescale_factor),
            v2.RandomResizedCrop((size["height"], size["width"]), (settings.crop_scale, 1.0), interpolation=BICUBIC),
            v2.RandomHorizontalFlip(settings.flip_probability),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )


def layer_of(name: str, config: DinoConfig) -> int:
    """Returns the layer of a parameter: 0 before the first block or stage, and one more than these after the last."""
    layer = backbone_class(config).layer_of(name.removeprefix("backbone."))
    return config.num_hidden_layers + 1 if layer is None else layer


def decayed_groups(model: DinoForImageClassification, learning_rate: float, layer_decay: float) -> list[dict]:
    """Returns groups of parameters for an optimizer: two a layer, with and without weight decay."""
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


def make_trainer(model: DinoForImageClassification, images: LabelledImages, options: FinetuneOptions) -> Trainer:
    """
    Returns the Trainer of transformers, with an optimizer of [`decayed_groups`]. Raises ValueError if processes cannot
    share a batch.
    """
    world_size = started_processes()
    batch_size = min(options.batch_size, len(images))
    if batch_size % world_size:
        raise ValueError(f"batch_size={batch_size} is not a multiple of {world_size} processes")
    args = TrainingArguments(
        str(options.output),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=batch_size // world_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(options.warmup * options.epochs * -(-len(images) // batch_size)),
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        disable_tqdm=None if options.progress else True,
        remove_unused_columns=False,
        seed=options.seed,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=reading_processes(options.num_workers, len(images), world_size),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    groups = decayed_groups(model, options.learning_rate, options.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=BETAS, weight_decay=options.weight_decay)
    return Trainer(model, args, train_dataset=images, optimizers=(optimizer, None))


def settings_of_run(options: FinetuneOptions, images: LabelledImages, fingerprint: str) -> dict[str, Any]:
    """Returns everything that makes two runs the same."""
    data = {"source": options.train, "num_images": len(images), "fingerprint": images.source.fingerprint()}
    return {
        "finetuning": {field.name: getattr(options, field.name) for field in fields(FinetuneSettings)},
        "data": {**data, "classes": images.classes},
        "from": {"model": options.model, "fingerprint": fingerprint},
    }
