# SPDX-License-Identifier: Apache-2.0
"""`dino finetune`: a classifier and its backbone, trained together by transformers' Trainer.

Learning rates fall from the classifier to the first layer, by a factor a layer, as is usual for self-supervised models
since https://arxiv.org/abs/2106.08254; groups as in
https://github.com/facebookresearch/mae/blob/efb2a80/util/lr_decay.py.

Where we deviate: crops and flips are all there is of augmentation. The original does not say how it fine-tuned.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import ImageProcessingMixin, TrainingArguments, set_seed
from transformers.utils import logging

from ..data.image_source import IndexedSource, remarks_on_images
from ..data.image_values import EIGHT_BITS, rescaled
from ..data.sources import open_source
from ..evaluation.evaluation_data import accuracy_result, check_labels, no_labels, number_labels, unknown_classes
from ..evaluation.knn import TOP, knn_accuracy
from ..evaluation.linear import classifier_of
from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_image_processor, load_model, model_fingerprint
from ..modeling_dino import DinoForImageClassification
from ..runtime.extras import require
from ..runtime.options import takes_options
from ..runtime.processes import check_joined, on_cpu, reading_processes, started_processes
from .checkpoints import CheckpointedTrainer
from .finite_steps import check_finite_step
from .optimization import layer_of, parameter_groups
from .options import FinetuneOptions, FinetuneSettings
from .training_data import ReplacingDataset, SourceImages, UnreadableImage, gather_unreadable
from .training_folder import TrainingFolder, opened_together


logger = logging.get_logger(__name__)

BETAS = (0.9, 0.999)
RECORDED = ("epochs", "batch_size", "learning_rate", "layer_decay")  # with the results
BICUBIC = 3  # of torchvision's InterpolationMode and of Pillow


class FinetuneFolder(TrainingFolder):
    """The folder of a fine-tuning run."""

    command = "dino finetune"


@dataclass(frozen=True)
class FinetuningSummary:
    """
    Accuracies of a fine-tuned model on the test images in percent, and where it is.

    Args:
        tested: images that could be read.
        unknown: of them, those of a class that no training image has.
        unreadable: images to train or test on that could not be read, and why.
    """

    output: str
    top1: float
    top5: float
    seconds: float
    tested: int
    unknown: int
    unreadable: dict[str, str]

    @property
    def remarks(self) -> list[str]:
        """The images that could not be read."""
        return remarks_on_images(self.unreadable)

    def __str__(self) -> str:
        unknown = [f"{self.tested} images classified", *unknown_classes(self.unknown)] if self.unknown else []
        found = f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %, {self.seconds:.0f} s -> {self.output}"
        return "\n".join([*unknown, f"fine-tuned: {found}"])


class LabelledImages(ReplacingDataset):
    """
    Gives the labelled images of a source as the Trainer takes them. The next image stands in the place of one that
    cannot be read, which is warned of.

    Args:
        transform: of a decoded image to (C, H, W).
        rescale_factor: see [`SourceImages`].
        of_tables: options of [`open_source`].

    Raises:
        ValueError: if the images have no labels.
    """

    def __init__(
        self,
        name: str,
        num_channels: int,
        transform: Any,
        rescale_factor: float = EIGHT_BITS,
        **of_tables: str | None,
    ):
        source: IndexedSource = open_source(name, **of_tables).indexed()
        labels = [source.record(i).columns.get("label") for i in range(source.num_images)]
        self.indices = [i for i, label in enumerate(labels) if label is not None]
        if not self.indices:
            raise ValueError(no_labels(name, source.how_to_label))
        super().__init__(len(self.indices))
        self.name, self.source, self.transform = name, source, transform
        self.labels = [labels[i] for i in self.indices]
        self.classes, (self.numbers,) = number_labels(self.labels)
        self.images = SourceImages(source, num_channels, rescale_factor)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises UnreadableImage if no image can be read."""
        for place in [*range(index, len(self)), *range(index)]:
            pixels = self.try_to_read(place)
            if not isinstance(pixels, UnreadableImage):
                return {"pixel_values": pixels, "labels": int(self.numbers[place])}
        raise UnreadableImage(f"none of the images of {self.name} can be read")

    def read(self, index: int) -> torch.Tensor:
        """Reads and transforms an image."""
        place = self.indices[index]
        image = self.images[place]
        try:
            return self.transform(image)
        except ValueError as error:  # the image cannot be resized
            raise UnreadableImage(f"{self.source.record(place).name}: {error}") from error

    def is_readable(self) -> torch.Tensor:
        """Returns which images could be read, (N,), when all processes have read their share."""
        unreadable = require("accelerate.utils").gather_object(self._is_unreadable.nonzero().flatten().tolist())
        is_readable = torch.ones(len(self), dtype=torch.bool)
        is_readable[unreadable] = False
        return is_readable


class TestImages(Dataset):
    """Images to test on, without their labels, some of which the classifier may not know."""

    def __init__(self, images: LabelledImages):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index]["pixel_values"]}


class FinetuneTrainer(CheckpointedTrainer):
    """[`CheckpointedTrainer`] that ends at the first loss or gradient that is not finite."""

    loss_of_step: torch.Tensor | float = 0.0

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Does what the Trainer does, and keeps the loss of the step, of one batch."""
        self.loss_of_step = super().training_step(*args, **kwargs)
        return self.loss_of_step

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        loss = self.accelerator.gather(self.loss_of_step.reshape(1)).mean()
        check_finite_step(self.args, self.state, float(loss), float(norm))
        return norm

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:  # whose learning rates are those of a run of another length, perhaps
            schedule = self.lr_scheduler
            for group, rate, factor in zip(self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
                group["lr"] = rate * factor(schedule.last_epoch)


@takes_options(FinetuneOptions, command="finetune")
def finetune(options: FinetuneOptions) -> FinetuningSummary | None:
    """
    The model is tested once, at the end.

    Returns:
        accuracies; None on processes other than the main one.

    Raises:
        ValueError: if an option or the images cannot work.
        OSError: if a model is missing, or something cannot be written.
        FloatingPointError: if the loss or a gradient is not finite.
    """
    dino = load_model(options.model)
    processor = load_image_processor(options.model, dino.config)
    train_images, test_images = labelled_images(options, processor, dino.config.num_channels)
    settings = settings_of_run(options, train_images, model_fingerprint(dino))
    folder = FinetuneFolder(options.output, settings, ["finetuning.epochs"])
    folder.check(options.overwrite)

    set_seed(options.seed)
    dino.config.drop_path_rate = options.drop_path_rate if dino.backbone.has_drop_path else 0.0
    trainer = make_trainer(classifier_of(dino, train_images.classes), train_images, options)
    if trainer.is_world_process_zero():
        say_what_another_length_means(folder, options, len(train_images))
    with opened_together(folder, trainer, options.overwrite):
        trained = trainer.train(resume_from_checkpoint=trainer.checkpoint_to_resume())
        trainer.save_finite_model()
        logits = torch.from_numpy(trainer.predict(TestImages(test_images)).predictions)
        is_readable = test_images.is_readable()
        unreadable = gather_unreadable(train_images) | gather_unreadable(test_images)
        if not trainer.is_world_process_zero():
            return None
        numbers = {label: number for number, label in enumerate(train_images.classes)}
        truth = torch.tensor([numbers.get(label, -1) for label in test_images.labels])[is_readable]
        predicted = logits[is_readable].topk(min(TOP, logits.shape[1]), dim=1).indices
        top1, top5 = knn_accuracy(predicted, truth, TOP)
        processor.save_pretrained(folder.path)
        arguments = {name: getattr(options, name) for name in RECORDED}
        results = [
            accuracy_result(options.dataset or options.test, f"fine-tuned top-{top}", percent, top=top, **arguments)
            for top, percent in ((1, top1), (5, top5))
        ]
        add_evaluation_results(folder.path, results)
        folder.close(results={"top1": top1, "top5": top5, "loss": trained.training_loss})
    unknown = int((truth < 0).sum())
    seconds = trained.metrics["train_runtime"]
    return FinetuningSummary(str(options.output), top1, top5, seconds, len(truth), unknown, unreadable)


def labelled_images(
    options: FinetuneOptions, processor: ImageProcessingMixin, num_channels: int
) -> tuple[LabelledImages, LabelledImages]:
    """
    Returns the images to train on and those to test on. Raises ValueError if they have no labels, only one, or none in
    common, or if none can be read.
    """
    from ..data.evaluation_transform import ImageTransform

    transform = ImageTransform(processor, num_channels)
    factor, of_tables = transform.rescale_factor, options.of_tables
    train = LabelledImages(options.train, num_channels, random_crop(processor, options), factor, **of_tables)
    test = LabelledImages(options.test, num_channels, transform.pixel_values, factor, **of_tables)
    test.instead = "it does not count"
    check_labels(options.train, train.labels, options.test, test.labels)
    for images in (train, test):
        images[0]  # or the first that can be read
    return train, test


def say_what_another_length_means(folder: FinetuneFolder, options: FinetuneOptions, num_images: int):
    """
    Warns of what it does to the learning rate if a run goes on with another length than it had. Raises ValueError if
    it cannot.
    """
    total_steps = options.epochs * -(-num_images // min(options.batch_size, num_images))
    step = folder.step_of_other_length(total_steps, options.overwrite)
    if step is not None:
        logger.warning(
            f"the run in {folder.path} goes on from step {step}, to {total_steps} steps; from there on its learning "
            f"rate is that of {total_steps} steps, which falls to 0 at the end of them, not of those it had"
        )


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


def make_trainer(
    model: DinoForImageClassification, images: LabelledImages, options: FinetuneOptions
) -> FinetuneTrainer:
    """
    Returns a trainer with an optimizer of [`decayed_groups`]. Raises ValueError if processes cannot
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
        use_cpu=on_cpu(),
        dataloader_num_workers=reading_processes(options.num_workers, len(images), world_size),
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
    )
    check_joined(args.world_size)
    groups = decayed_groups(model, options.learning_rate, options.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=BETAS, weight_decay=options.weight_decay)
    return FinetuneTrainer(model, args, train_dataset=images, optimizers=(optimizer, None))


def settings_of_run(options: FinetuneOptions, images: LabelledImages, fingerprint: str) -> dict[str, Any]:
    """Returns everything that makes two runs the same."""
    data = {"source": options.train, "num_images": len(images), "fingerprint": images.source.fingerprint()}
    return {
        "finetuning": {field.name: getattr(options, field.name) for field in fields(FinetuneSettings)},
        "data": {**data, **options.of_tables_given, "classes": images.classes},
        "from": {"model": options.model, "fingerprint": fingerprint},
    }
