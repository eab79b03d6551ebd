# SPDX-License-Identifier: Apache-2.0
"""`dino pretrain`: pretraining by a recipe, on the images of a source, into a [`TrainingFolder`]."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import set_seed
from transformers.utils import logging

from ..checkpoint_files import check_finite_weights
from ..configuration_dino import DinoConfig
from ..data.image_source import ImageSource, IndexedSource, remarks_on_images
from ..data.image_values import rescale_factor_of, size_of
from ..data.sources import open_source
from ..hub.loading import load_model, model_fingerprint
from ..image_processing_dino import image_processor_config
from ..modeling_dino import backbone_class
from ..runtime.options import takes_options
from ..runtime.processes import cores_of_process, processes, reading_processes, started_processes
from .arguments import DinoTrainingArguments
from .knn_evaluation import KnnEvaluation, open_labelled
from .multi_crop import MultiCrop
from .objectives import check_backbone
from .options import PretrainOptions
from .outcome import outcome_of
from .pca_pictures import PcaPictures
from .recipes import AUTO, Recipe, load_recipe
from .schedules import Schedules
from .self_distillation import DinoForPreTraining, is_single_model
from .trainer import DinoTrainer, draw_step_masks
from .training_data import MultiCropDataset, SourceImages, UnreadableImage, gather_unreadable
from .training_folder import COMPONENTS, TrainingFolder, opened_together
from .view_retrieval import ViewRetrieval, draw_held_out


logger = logging.get_logger(__name__)

IMAGES_MEASURED = 8  # whose sizes are compared with the crops'
EVALUATIONS = 10  # during a run, unless eval_every says otherwise
# what a recipe may set of a model that is trained further
REGULARIZATION = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
HEAD = ("head_type", "projection_dim", "head_hidden_dim", "head_bottleneck_dim", "head_num_layers", "head_use_bn")
HEAD += ("norm_last_layer", "head_weight_norm")
PATCH_HEAD = ("patch_head", "patch_projection_dim", "patch_head_hidden_dim", "patch_head_bottleneck_dim")
PATCH_HEAD += ("patch_head_num_layers",)


@dataclass(frozen=True)
class PretrainingSummary:
    """Results of a run, and the remarks on its images."""

    output: Path
    results: dict[str, Any]
    unreadable: dict[str, str]
    notes: dict[str, str]

    @property
    def remarks(self) -> list[str]:
        """The images that could not be read, and what there is to know about others."""
        return remarks_on_images(self.unreadable, self.notes)

    def __str__(self) -> str:
        results = [f"{name} {value:.4g}" for name, value in self.results.items() if isinstance(value, (int, float))]
        skipped = f", {len(self.unreadable)} images could not be read" if self.unreadable else ""
        outcome = f"\n{self.results['outcome']}" if "outcome" in self.results else ""
        return f"{', '.join(results)}{skipped} -> {self.output}{outcome}"


@takes_options(PretrainOptions, command="pretrain")
def pretrain(options: PretrainOptions) -> PretrainingSummary | None:
    """
    Returns:
        the results; None on processes other than the main one.

    Raises:
        ValueError: if an option, a value of the recipe or the images cannot work.
        OSError: if a model is missing, or something cannot be written; what was saved before stays.
        FloatingPointError: if the loss is not finite.
    """
    given = load_recipe(options.recipe, options.overrides)
    check_start(given, options)
    source = open_source(options.data, **options.of_tables).indexed()
    labelled = open_labelled(options.eval_knn or (), **options.of_tables)
    given = with_metric(given, (KnnEvaluation if labelled else ViewRetrieval).metrics)
    watches_views = keeps_best(given) and not labelled and source.num_images > 0
    held_out = draw_held_out(source.num_images, seed_of(given)) if watches_views else []
    num_images = source.num_images - len(held_out)
    recipe = resolve_recipe(given, options, source, num_images)
    set_seed(seed_of(recipe))
    model = make_model(recipe, options.from_model)
    check_crop_sizes(recipe, model)
    folder = TrainingFolder(options.output, settings_of_run(options, recipe, source, model), lengths_of(given))
    folder.check(options.overwrite)
    if folder.is_complete and not options.overwrite:
        return summary_of_complete(folder, source)

    world_size = started_processes()
    num_workers = reading_processes(options.num_workers, source.num_images, world_size)
    args = arguments_of(recipe, options, world_size, num_workers)
    check_masks(recipe, model, args)
    if args.process_index == 0:
        say_what_another_length_means(folder, args, num_images, options.overwrite)
    images = SourceImages(source, model.config.num_channels, rescale_factor_of(model.image_transform))
    trainer = make_trainer(options, recipe, model, args, images, held_out, labelled)
    with opened_together(folder, trainer, options.overwrite), cores_left_to_workers(num_workers, world_size):
        if trainer.is_world_process_zero():
            warn_of_small_images(images, recipe)
        results = train(trainer, folder.path)
        unreadable = gather_unreadable(trainer.train_dataset)
        if isinstance(trainer.evaluation, ViewRetrieval):
            unreadable |= gather_unreadable(trainer.evaluation.views)
        if not trainer.is_world_process_zero():
            return None
        folder.close(results=results, unreadable=unreadable)
    return PretrainingSummary(folder.path, results, unreadable, source.notes)


def summary_of_complete(folder: TrainingFolder, source: IndexedSource) -> PretrainingSummary | None:
    """Returns the results of a run that is complete; None on processes other than the main one."""
    if not processes().is_main_process:
        return None
    logger.warning(f"{folder.path} is complete: nothing is left to do")
    results, unreadable = (folder.facts.get(name, {}) for name in ("results", "unreadable"))
    return PretrainingSummary(folder.path, results, unreadable, source.notes)


def arguments_of(recipe: Recipe, options: PretrainOptions, world_size: int, num_workers: int) -> DinoTrainingArguments:
    """Returns the Trainer's arguments for a recipe, in so many processes, each with workers."""
    return recipe.training_arguments(
        str(options.output),
        world_size,
        dataloader_num_workers=num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        **({} if options.progress else {"disable_tqdm": True}),
        **without_half_precision(recipe),
    )


def make_trainer(
    options: PretrainOptions,
    recipe: Recipe,
    model: DinoForPreTraining,
    args: DinoTrainingArguments,
    images: SourceImages,
    held_out: Sequence[int],
    labelled: Sequence[tuple[str, ImageSource]],
) -> DinoTrainer:
    """
    Returns the Trainer of a run.

    Args:
        held_out: the images, by their numbers, of which augmented views watch the run.
        labelled: sources of images for k-NN, which watches it if there are any.
    """
    multi_crop = MultiCrop(recipe.crops, model.config.num_channels, *mean_and_std(model), images.rescale_factor)
    evaluation: KnnEvaluation | ViewRetrieval | None = None
    if labelled:
        evaluation = KnnEvaluation(labelled, args.dataloader_num_workers)
    elif held_out:
        views = Subset(images, held_out)
        evaluation = ViewRetrieval(views, multi_crop, args.seed, args.dataloader_num_workers, options.on_error)
    trained_on = without_held_out(images, held_out)
    return DinoTrainer(
        model,
        args,
        train_dataset=MultiCropDataset(trained_on, multi_crop, args.seed, options.on_error),
        evaluation=evaluation,
        evaluate_every=options.eval_every or max(1, round(epochs_of(args, len(trained_on)) / EVALUATIONS)),
        callbacks=[PcaPictures(images, Path(options.output) / COMPONENTS)] if evaluation else None,
    )


def seed_of(recipe: Recipe) -> int:
    """Returns the seed of a run."""
    return recipe.training.get("seed", DinoTrainingArguments.seed)


def keeps_best(recipe: Recipe) -> bool:
    """Returns whether a run ends with its best model."""
    return bool(recipe.training.get("load_best_model_at_end"))


def with_metric(recipe: Recipe, measured: Sequence[str]) -> Recipe:
    """
    Returns a recipe with the metric that tells the best model, by default the first that is measured. Raises
    ValueError if it is not measured.
    """
    if not keeps_best(recipe):
        return recipe
    metric = recipe.training.get("metric_for_best_model", measured[0])
    if metric not in measured:
        raise ValueError(
            f"training.metric_for_best_model={metric} is not measured in this run: it can be {' or '.join(measured)} "
            "(labelled images are given by --eval-knn)"
        )
    return recipe.replace({"training.metric_for_best_model": metric})


def without_held_out(images: SourceImages, held_out: Sequence[int]) -> Sequence:
    """Returns the images of a source that are trained on: all but some, by their numbers."""
    return Subset(images, sorted(set(range(len(images))) - set(held_out))) if held_out else images


def check_start(recipe: Recipe, options: PretrainOptions):
    """Raises ValueError if a recipe needs a model to start from, and none is given."""
    if options.from_model is None and recipe.model.get("backbone") == "auto":
        raise ValueError(
            f"recipe {options.recipe} continues from a model, which is not given: name it by --from MODEL"
        )


def resolve_recipe(recipe: Recipe, options: PretrainOptions, source: IndexedSource, num_images: int) -> Recipe:
    """
    Returns the recipe for these images, of which so many are trained on, without `auto`. Raises ValueError if there
    are none, or fewer than a batch.
    """
    if not source.num_images:
        notes = (f"{name}: {note}" for name, note in source.notes.items())
        raise ValueError(next(notes, f"{options.data} has no images"))
    config = None
    if options.from_model is not None and "auto" in recipe.flat().values():
        config = config_of(options.from_model)
        if recipe.model.get("projection_dim") == "auto" and config.head_type is not None:
            recipe = recipe.replace({"model.projection_dim": config.projection_dim})
    recipe = recipe.without_auto(num_images, config)
    if num_images < recipe.batch_size:
        raise ValueError(
            f"{num_images} images in {options.data} are fewer than a batch of {recipe.batch_size}: set "
            f"batch_size={num_images} or less"
        )
    return recipe


def settings_of_run(
    options: PretrainOptions, recipe: Recipe, source: IndexedSource, model: DinoForPreTraining
) -> dict[str, Any]:
    """Returns everything that makes two runs the same."""
    start = options.from_model and {"model": options.from_model, "fingerprint": model_fingerprint(model)}
    data = {"source": options.data, "num_images": source.num_images, "fingerprint": source.fingerprint()}
    settings = {"recipe": recipe.to_dict(), "data": {**data, **options.of_tables_given}, "from": start}
    if keeps_best(recipe):  # else what is watched changes nothing
        settings["watch"] = {"images": options.eval_knn or "views", "every": options.eval_every}
    return settings


def lengths_of(given: Recipe) -> list[str]:
    """Returns the settings of a run that say how long it is, or may follow from that, of a recipe with `auto`."""
    derived = [key for key, value in given.flat().items() if value == "auto" and key in AUTO]
    return [f"recipe.{key}" for key in ("training.num_train_epochs", "training.max_steps", *derived)]


def say_what_another_length_means(folder: TrainingFolder, args: DinoTrainingArguments, num_images: int, anew: bool):
    """
    Warns of what it does to the schedules if a run goes on with another length than it had. Raises ValueError if it
    cannot.
    """
    steps_per_epoch = num_images // args.total_batch_size
    total_steps = count_steps(args.max_steps, args.num_train_epochs, steps_per_epoch)
    step = folder.step_of_other_length(total_steps, anew)
    if step is None:
        return
    before = folder.facts["settings"]["recipe"]["training"]
    epochs = before.get("num_train_epochs", DinoTrainingArguments.num_train_epochs)
    total_before = count_steps(before.get("max_steps", -1), epochs, steps_per_epoch)
    old, new = (Schedules(args, steps_per_epoch, total).rates(step) for total in (total_before, total_steps))
    changes = [f"{name} {old[name]:.3g} -> {new[name]:.3g}" for name in old if old[name] != new[name]]
    logger.warning(
        f"the run in {folder.path} goes on from step {step}, to {total_steps} steps instead of {total_before}; from "
        f"there on its schedules are those of {total_steps} steps: {', '.join(changes) or 'nothing changes'}"
    )


def count_steps(max_steps: int, epochs: float, steps_per_epoch: int) -> int:
    """Returns the number of steps of a run, as the Trainer counts them."""
    return max_steps if max_steps > 0 else math.ceil(epochs * steps_per_epoch)


def epochs_of(args: DinoTrainingArguments, num_images: int) -> float:
    """Returns how many epochs a run of so many images has, also where it goes by its number of steps."""
    steps_per_epoch = max(num_images // args.total_batch_size, 1)
    return count_steps(args.max_steps, args.num_train_epochs, steps_per_epoch) / steps_per_epoch


def make_model(recipe: Recipe, from_model: str | None) -> DinoForPreTraining:
    """
    Returns student and teacher, new or from a model, with the image transform that they go with: the model's, with
    what the recipe sets of it. A head that the model lacks is the recipe's.

    Raises:
        ValueError: if recipe and model disagree, or the model has weights that are not finite.
        OSError: if there is no such model, or it is damaged.
    """
    model = DinoForPreTraining(recipe.config()) if from_model is None else start_from(recipe, from_model)
    if recipe.image_transform:
        model.image_transform = {**model.image_transform, **recipe.image_transform}
    return model


def start_from(recipe: Recipe, from_model: str) -> DinoForPreTraining:
    """Returns student and teacher that start from a model; raises what [`make_model`] does."""
    config = config_of(from_model)
    wanted = recipe.config()
    changed = {name: value for name, value in recipe.model.items() if name in REGULARIZATION}
    if is_single_model(from_model):  # student and teacher then start with the same new parts
        changed |= parts_for_patches(config, wanted)
    if config.head_type is None:
        changed |= {name: getattr(wanted, name) for name in HEAD}
        changed["head_type"] = changed["head_type"] or "dino"
    other = {
        name: getattr(config, name, None)
        for name in recipe.model
        if name not in changed and getattr(wanted, name, None) != getattr(config, name, None)
    }
    if other:
        name, theirs = next(iter(other.items()))
        raise ValueError(
            f"the recipe and {from_model} disagree on {', '.join(other)}: {name} is {getattr(wanted, name, None)} in "
            f"the recipe and {theirs} in the model; to go by the model, add "
            f"{' '.join(f'model.{name}={json.dumps(value)}' for name, value in other.items())}"
        )
    model = DinoForPreTraining.from_pretrained(from_model, dtype=torch.float32, **changed)
    check_finite_weights(model.state_dict(), from_model)
    return model


def parts_for_patches(config: DinoConfig, wanted: DinoConfig) -> dict[str, Any]:
    """Returns what a recipe sets of the parts that the patch loss needs and a model lacks: mask token and head."""
    lacks_token = wanted.use_mask_token and not config.use_mask_token and backbone_class(config).has_patch_tokens
    lacks_head = wanted.patch_head and not config.patch_head
    return ({"use_mask_token": True} if lacks_token else {}) | (
        {name: getattr(wanted, name) for name in PATCH_HEAD} if lacks_head else {}
    )


def mean_and_std(model: DinoForPreTraining) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel, by which the model's images are normalised."""
    transform = model.image_transform
    if not transform.get("do_normalize", True):
        return [0.0] * model.config.num_channels, [1.0] * model.config.num_channels
    defaults = image_processor_config(model.config)
    values = (transform.get(name) or defaults[name] for name in ("image_mean", "image_std"))
    return tuple([v] * model.config.num_channels if isinstance(v, (int, float)) else list(v) for v in values)


def config_of(from_model: str) -> DinoConfig:
    """Returns the configuration of a saved model, whose `head_type` is None if it has no head."""
    if not Path(from_model).is_dir() or is_single_model(from_model):
        return load_model(from_model).config
    return DinoConfig.from_pretrained(from_model)


def check_crop_sizes(recipe: Recipe, model: DinoForPreTraining):
    """Raises ValueError if a crop is smaller than a patch, or is for a loss that is not computed."""
    least = model.student.backbone.min_image_size
    for crops in recipe.crops.of_each_size():
        for name, count in (("global_crop_size", crops.num_global_crops), ("local_crop_size", crops.num_local_crops)):
            if count and (size := getattr(crops, name)) < least:
                raise ValueError(f"crops.{name}={size} is smaller than a patch of {least}")
    if recipe.crops.has_gram_crops and not recipe.training.get("gram_weight"):
        raise ValueError(
            "crops.gram_crop_size and gram_distorted are of Gram anchoring: set training.gram_weight, too"
        )


def check_masks(recipe: Recipe, model: DinoForPreTraining, args: DinoTrainingArguments):
    """Raises ValueError if there is a patch loss and no patch can be masked in crops of some size."""
    if not args.ibot_weight:
        return
    check_backbone(model.config, args.objectives())
    for crops in recipe.crops.of_each_size():
        shape = (1, model.config.num_channels, crops.global_crop_size, crops.global_crop_size)
        draw_step_masks(args, 0, model.student.backbone.grid(torch.empty(shape, device="meta")))


def warn_of_small_images(images: SourceImages, recipe: Recipe):
    """Warns if images are smaller than crops of them, which are then enlarged."""
    sizes = []
    for index in islice(range(len(images)), IMAGES_MEASURED):
        try:
            sizes.append(size_of(images[index]))
        except UnreadableImage:
            continue
    largest = max(crops.global_crop_size for crops in recipe.crops.of_each_size())
    if sizes and min(map(min, sizes)) < largest:
        width, height = min(sizes, key=min)
        logger.warning(
            f"images of {width} x {height} are enlarged to crops of {largest}: smaller ones, by "
            "crops.global_crop_size and crops.local_crop_size, cost less"
        )


def without_half_precision(recipe: Recipe) -> dict[str, bool]:
    """Returns the training arguments that turn half precision off where there is no GPU for it."""
    half = [name for name in ("bf16", "fp16") if recipe.training.get(name)]
    if not half or torch.cuda.is_available():
        return {}
    logger.warning(f"no GPU: training in float32, not in {half[0]}")
    return dict.fromkeys(half, False)


@contextmanager
def cores_left_to_workers(num_workers: int, world_size: int) -> Iterator[None]:
    """Leaves cores of a CPU to the workers; with more threads PyTorch and the workers would wait for each other."""
    num_threads = torch.get_num_threads()
    try:
        if not torch.accelerator.is_available():
            torch.set_num_threads(min(num_threads, max(1, cores_of_process(world_size) - num_workers)))
        yield
    finally:
        torch.set_num_threads(num_threads)


def train(trainer: DinoTrainer, folder: Path) -> dict[str, Any]:
    """
    Trains from the last whole checkpoint, if there is one, to the end; returns the results that were logged last.
    Raises FloatingPointError if a loss, a gradient or the weights at the end are not finite.
    """
    trained = trainer.train(resume_from_checkpoint=trainer.checkpoint_to_resume())
    trainer.save_finite_model()
    last: dict[str, Any] = {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    wanted = (
        "loss",
        "teacher_entropy",
        "kl_divergence",
        "center_norm",
        *KnnEvaluation.metrics,
        *ViewRetrieval.metrics,
    )
    for entry in trainer.state.log_history:
        last |= {name: entry[name] for name in wanted if name in entry}
    if trainer.args.load_best_model_at_end:
        last |= outcome_of(trainer.state, trainer.args.metric_for_best_model)
    return {**last, "seconds_since_resumed": trained.metrics["train_runtime"]}
