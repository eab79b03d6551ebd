# SPDX-License-Identifier: Apache-2.0
"""Pretraining by a recipe, on the images of a source, into a folder from which `DinoModel` loads the teacher.

run.json              the recipe, the images, versions; at the end results, too
checkpoint-N/         the state at step N, from which the run goes on when it was stopped
model.safetensors     student, teacher and center at the end; config.json and preprocessor_config.json beside it
curves.png            what was logged
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..configuration_dino import DinoConfig
from ..data.image_source import ImageSource, IndexedSource
from ..data.sources import open_source
from ..hub.evaluation_results import EVALUATION_RESULTS_NAME
from ..hub.loading import load_model, model_fingerprint
from ..runtime.extras import require
from ..runtime.processes import cores_of_process, spare_workers
from ..runtime.run_folder import first_difference
from ..runtime.whole_files import is_partial, whole_file
from .checkpoints import last_whole_checkpoint
from .curves import draw_curves
from .knn_callback import KnnEvaluation, open_labelled
from .multi_crop import MultiCrop
from .recipes import Recipe, load_recipe
from .self_distillation import DinoForPreTraining, is_single_model
from .trainer import DinoTrainer
from .training_data import MultiCropDataset, SourceImages, UnreadableImage


logger = logging.get_logger(__name__)

FACTS = "run.json"
CURVES = "curves.png"
FORMAT = "modeling-dino run 1"
IMAGES_LOOKED_AT = 8
EVALUATIONS = 10  # of k-NN during a run, unless said otherwise
# what a recipe may say of a model that is trained further
FREE = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
HEAD = (
    "head_type",
    "projection_dim",
    "head_hidden_dim",
    "head_bottleneck_dim",
    "head_num_layers",
    "head_use_bn",
    "norm_last_layer",
    "head_weight_norm",
)


@dataclass(frozen=True)
class PretrainingSummary:
    """What a run came to."""

    output: Path
    results: dict[str, Any]
    unreadable: dict[str, str]
    notes: dict[str, str]

    def __str__(self) -> str:
        results = [f"{name} {value:.4g}" for name, value in self.results.items() if isinstance(value, (int, float))]
        skipped = f", {len(self.unreadable)} images could not be read" if self.unreadable else ""
        return f"{', '.join(results)}{skipped} -> {self.output}"


def pretrain(
    recipe: str,
    data: str,
    output: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    from_model: str | None = None,
    eval_knn: Sequence[str] = (),
    eval_every: int | None = None,
    image_column: str | None = None,
    num_workers: int | None = None,
    on_error: str = "skip",
    overwrite: bool = False,
) -> PretrainingSummary | None:
    """
    Pretrains a model; goes on where an earlier run of the same recipe and images stopped.

    Args:
        recipe, overrides: see [`load_recipe`].
        data, image_column: see [`open_source`].
        output: a new or empty folder, or one of the same run.
        from_model: folder or hub id of a model to start from, with or without its head.
        eval_knn: one or two sources of labelled images, see [`KnnEvaluation`].
        eval_every: epochs between two of these evaluations; by default there are ten.
        num_workers: processes that read images; by default one a spare core, none for few images.
        on_error: `"skip"` unreadable images, or `"fail"` at the first.
        overwrite: start anew where the folder has a run.

    Returns:
        what it came to; None on processes other than the main one.

    Raises:
        ValueError: if an argument, a value of the recipe or the images cannot work.
        OSError: if a model is missing, or something cannot be written; what was saved before stays.
        FloatingPointError: if the loss is not finite.
    """
    source = open_source(data, image_column=image_column).indexed()
    settled = settle(load_recipe(recipe, overrides), source, data, from_model)
    sources = open_labelled(eval_knn)
    set_seed(settled.training.get("seed", 42))
    model = make_model(settled, from_model)
    check_crops(settled, model)
    folder = RunFolder(output, describe(settled, source, data, from_model, model))
    folder.check(overwrite)
    if folder.is_complete and not overwrite:
        logger.warning(f"{folder.path} is complete: nothing is left to do")
        return PretrainingSummary(folder.path, folder.facts["results"], folder.facts["unreadable"], source.notes)

    world_size = int(os.environ.get("WORLD_SIZE", 1))
    num_workers = spare_workers(source.num_images, world_size) if num_workers is None else num_workers
    args = settled.training_arguments(
        str(output),
        world_size,
        dataloader_num_workers=num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        **precision(settled),
    )
    images = SourceImages(source, model.config.num_channels)
    dataset = MultiCropDataset(images, MultiCrop(settled.crops, model.config.num_channels), args.seed, on_error)
    trainer = DinoTrainer(model, args, train_dataset=dataset)
    if sources:
        every = eval_every or max(1, round(args.num_train_epochs / EVALUATIONS))
        trainer.add_callback(KnnEvaluation(trainer, sources, every, num_workers))
    if trainer.is_world_process_zero():
        notice_small_images(images, settled)
        folder.open(overwrite)
    trainer.accelerator.wait_for_everyone()
    with told_what_is_kept(folder.path), threads_beside(num_workers, world_size):
        results = train(trainer, folder)
        unreadable = gather_unreadable(dataset)
        if not trainer.is_world_process_zero():
            return None
        draw_curves(trainer.state.log_history, folder.path / CURVES)
        folder.close(results=results, unreadable=unreadable)
    return PretrainingSummary(folder.path, results, unreadable, source.notes)


def settle(recipe: Recipe, source: IndexedSource, data: str, from_model: str | None) -> Recipe:
    """
    The recipe for these images.

    Raises:
        ValueError: if there are none, or fewer than a batch.
    """
    if not source.num_images:
        raise ValueError(next((f"{name}: {note}" for name, note in source.notes.items()), f"{data} has no images"))
    if from_model is not None and recipe.model.get("projection_dim") == "auto":
        head = {name: getattr(config_of(from_model), name) for name in ("head_type", "projection_dim")}
        if head["head_type"] is not None:
            recipe = recipe.replace({"model.projection_dim": head["projection_dim"]})
    recipe = recipe.settle(source.num_images)
    if source.num_images < recipe.batch_size:
        raise ValueError(
            f"{source.num_images} images in {data} are fewer than a batch of {recipe.batch_size}: set "
            f"batch_size={source.num_images} or less"
        )
    return recipe


def make_model(recipe: Recipe, from_model: str | None) -> DinoForPreTraining:
    """
    Student and teacher, new or from a model; a head that the model lacks is the recipe's.

    Raises:
        ValueError: if recipe and model disagree.
        OSError: if there is no such model, or it is damaged.
    """
    if from_model is None:
        return DinoForPreTraining(recipe.config())
    config = config_of(from_model)
    said = {name: value for name, value in recipe.model.items() if name in FREE}
    if config.head_type is None:
        said |= {name: getattr(recipe.config(), name) for name in HEAD}
        said["head_type"] = said["head_type"] or "dino"
    wanted = recipe.config()
    other = {
        name: getattr(config, name, None)
        for name in recipe.model
        if name not in said and getattr(wanted, name, None) != getattr(config, name, None)
    }
    if other:
        name, theirs = next(iter(other.items()))
        raise ValueError(
            f"the recipe and {from_model} disagree on {', '.join(other)}: {name} is {getattr(wanted, name, None)} in "
            f"the recipe and {theirs} in the model; to go by the model, add "
            f"{' '.join(f'model.{name}={json.dumps(value)}' for name, value in other.items())}"
        )
    return DinoForPreTraining.from_pretrained(from_model, dtype=torch.float32, **said)


def config_of(from_model: str) -> DinoConfig:
    """The configuration of a saved model, whose `head_type` is None if it has no head."""
    if not Path(from_model).is_dir() or is_single_model(from_model):
        return load_model(from_model).config
    return DinoConfig.from_pretrained(from_model)


def check_crops(recipe: Recipe, model: DinoForPreTraining):
    """
    Raises:
        ValueError: if a crop is smaller than a patch.
    """
    crops = recipe.crops
    sizes = {"global_crop_size": crops.global_crop_size}
    if crops.num_local_crops:
        sizes["local_crop_size"] = crops.local_crop_size
    for name, size in sizes.items():
        least = model.student.backbone.min_image_size
        if size < least:
            raise ValueError(f"crops.{name}={size} is smaller than a patch of {least}")


def notice_small_images(images: SourceImages, recipe: Recipe):
    """Says so if images are smaller than crops of them, which are then enlarged."""
    sizes = []
    for index in islice(range(len(images)), IMAGES_LOOKED_AT):
        try:
            sizes.append(images[index].size)
        except UnreadableImage:
            continue
    if sizes and min(map(min, sizes)) < recipe.crops.global_crop_size:
        width, height = min(sizes, key=min)
        logger.warning(
            f"images of {width} x {height} are enlarged to crops of {recipe.crops.global_crop_size}: smaller ones, by "
            "crops.global_crop_size and crops.local_crop_size, cost less"
        )


def precision(recipe: Recipe) -> dict[str, bool]:
    """Without half precision where there is no GPU for it."""
    half = [name for name in ("bf16", "fp16") if recipe.training.get(name)]
    if not half or torch.cuda.is_available():
        return {}
    logger.warning(f"no GPU: training in float32, not in {half[0]}")
    return dict.fromkeys(half, False)


@contextmanager
def threads_beside(num_workers: int, world_size: int) -> Iterator[None]:
    """On a CPU, as many threads of PyTorch as the workers leave cores, at least one: more wait for each other."""
    num_threads = torch.get_num_threads()
    try:
        if not torch.accelerator.is_available():
            torch.set_num_threads(min(num_threads, max(1, cores_of_process(world_size) - num_workers)))
        yield
    finally:
        torch.set_num_threads(num_threads)


def train(trainer: DinoTrainer, folder: "RunFolder") -> dict[str, Any]:
    """Trains to the end, from the last checkpoint if there is one, and saves the model; gives what was logged last."""
    trained = trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder.path))
    trainer.save_model(str(folder.path))
    last: dict[str, Any] = {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    wanted = ("loss", "teacher_entropy", "kl_divergence", "center_norm", "knn_top1", "knn_top5")
    for entry in trainer.state.log_history:
        last |= {name: entry[name] for name in wanted if name in entry}
    return {**last, "seconds_since_resumed": trained.metrics["train_runtime"]}


def gather_unreadable(dataset: MultiCropDataset) -> dict[str, str]:
    """The images that some process could not read, and why."""
    found = require("accelerate.utils").gather_object([dataset.unreadable()])
    return {name: reason for part in found for name, reason in part.items()}


@contextmanager
def told_what_is_kept(folder: Path) -> Iterator[None]:
    """
    Raises:
        OSError: instead of the errors of several libraries, if something cannot be written, as on a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not is_failed_write(error):
            raise
        kept = last_whole_checkpoint(folder) or "the beginning, since nothing was saved yet"
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"cannot write to {folder}: {reason}; make room and run it again: it goes on from {kept}"
        ) from error


def is_failed_write(error: Exception) -> bool:
    """Whether it is about writing; PyTorch and safetensors tell it by the message alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        return True
    text = str(error)
    return any(
        sign in text
        for sign in ("No space left", "File too large", "quota exceeded", "PytorchStreamWriter", "unexpected pos")
    )


def describe(
    recipe: Recipe, source: ImageSource, data: str, from_model: str | None, model: DinoForPreTraining
) -> dict:
    """What makes two runs the same."""
    return {
        "recipe": recipe.to_dict(),
        "data": {"source": data, "num_images": source.num_images, "fingerprint": source.fingerprint()},
        "from": from_model and {"model": from_model, "fingerprint": model_fingerprint(model)},
    }


class RunFolder:
    """
    The folder of a run, and what is known of it.

    Args:
        settings: what makes two runs the same.
    """

    def __init__(self, path: str | os.PathLike, settings: dict):
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.facts: dict[str, Any] = {}

    def check(self, overwrite: bool):
        """
        Raises:
            ValueError: if the folder has another run (and `overwrite` is not given), or anything else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another output folder")
        if not self.path.is_dir() or all(map(is_partial, self.path.iterdir())):
            return
        facts = self.facts = read_facts(self.path)
        is_other = facts["settings"] != self.settings
        if is_other and not overwrite and (facts["complete"] or last_whole_checkpoint(self.path)):
            raise ValueError(
                f"{self.path} has another run, {first_difference(facts['settings'], self.settings)}: choose another "
                "folder, or --overwrite it"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the run that was found by [`check`] is complete."""
        return self.facts.get("complete", False)

    def open(self, overwrite: bool):
        """
        Makes the folder, or opens it to go on; what another run left is removed, as [`check`] allowed.

        Raises:
            OSError: if it cannot be written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / FACTS).is_file() and (overwrite or read_facts(self.path)["settings"] != self.settings):
            for checkpoint in self.path.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(checkpoint)
            stale = (CURVES, "model.safetensors", "config.json", "training_args.bin", EVALUATION_RESULTS_NAME, FACTS)
            for name in stale:
                (self.path / name).unlink(missing_ok=True)
        self._write(complete=False)

    def close(self, **facts):
        """Notes that the run is complete, and what it came to."""
        self._write(complete=True, **facts)

    def _write(self, **facts):
        names = ("modeling-dino", "torch", "torchvision", "transformers", "accelerate", "pillow")
        self.facts = {
            "format": FORMAT,
            **facts,
            "settings": self.settings,
            "versions": {name: version(name) for name in names},
        }
        with whole_file(self.path / FACTS) as partial:
            partial.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_facts(folder: str | os.PathLike) -> dict:
    """
    What is known of the run in a folder.

    Raises:
        ValueError: if there is none.
    """
    try:
        facts = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))
        if facts["format"] == FORMAT:
            return facts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{folder} holds something other than a run of `dino pretrain`: choose another folder")


__all__ = ["PretrainingSummary", "pretrain", "read_facts"]
