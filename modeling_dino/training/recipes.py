# SPDX-License-Identifier: Apache-2.0
"""Recipes: what a pretraining run is, in a YAML file; the package brings those in `configuration/recipes/`.

    batch_size: 512                 # images a step, over all processes, however many there are
    base_learning_rate: 0.0005      # for 256 images a step
    model:                          # arguments of DinoConfig
      backbone: vit_small
    crops:                          # of MultiCropConfig
      num_local_crops: 8
    training:                       # of DinoTrainingArguments
      num_train_epochs: 100

`image_mean` and `image_std`, one number a channel, and `rescale_factor` replace what the model's image transform has
under these names, as `preprocessor_config.json`.

Any value can be replaced by `key=value`, as in `crops.num_local_crops=6`. `auto` is for values that depend on the
number of images, see [`AUTO`], or on the model that a run starts from, see [`AUTO_OF_MODEL`]. Anybody may have written
a recipe: it is data, of limited size, and is never looked up elsewhere, as in the environment.
"""

import codecs
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator
from transformers import PreTrainedConfig

from ..configuration_dino import DinoConfig, configuration_folder
from ..image_processing_dino import check_image_transform
from ..modeling_dino import backbone_class
from ..runtime.extras import require
from ..runtime.options import StrPath
from .arguments import BASE_BATCH_SIZE, DinoTrainingArguments, rates_of
from .multi_crop import MultiCropConfig


RECIPE_FOLDER = configuration_folder() / "recipes"
SECTIONS = ("model", "crops", "training")
RATES = ("learning_rate", "final_learning_rate", "weight_decay", "final_weight_decay")
TRANSFORM = ("image_mean", "image_std", "rescale_factor")
AS_BEFORE = {"gram_distorted": True}  # what crops were before there was the key: older runs can be resumed
MAX_BYTES = 2**20  # of a recipe's file
MAX_DEPTH = 20
MAX_PARTS = 1000  # of a value, and letters of a text
MAX_SHOWN = 80  # letters of a value in a message
# training arguments that are set in other ways
SET_ELSEWHERE = {
    "output_dir": "--output",
    "resume_from_checkpoint": "--output of the run that stopped",
    "overwrite_output_dir": "--overwrite",
    "gradient_accumulation_steps": "batch_size and training.per_device_train_batch_size",
    "dataloader_num_workers": "--num-workers",
    "num_global_crops": "crops.num_global_crops",
}


def auto_batch_size(num_images: int, batch_size: str, epochs: float) -> int:
    """Returns a batch size that gives at least 8 steps an epoch."""
    return _power_of_two(num_images / 8, 8, 512)


def auto_prototypes(num_images: int, batch_size: int, epochs: float) -> int:
    """Returns one prototype for 4 to 8 images; the original's 65536 from half a million images on."""
    return _power_of_two(num_images / 4, 64, 65536)


def auto_momentum(num_images: int, batch_size: int, epochs: float) -> float:
    """Returns the momentum of a teacher that is the mean of the last twentieth of the steps, of 20 to 2000 of them."""
    # the original advises 0.9995, which is 2000 steps; with it, a short run would end before its teacher moves
    steps = epochs * max(num_images // batch_size, 1)
    return 1 - 1 / min(max(steps / 20, 20), 2000)


def auto_temperature(num_images: int, batch_size: int, epochs: float) -> float:
    """Returns the original's default, 0.04, or the 0.07 of its best models from ten thousand images on."""
    return 0.04 if num_images < 10_000 else 0.07


def _power_of_two(number: float, least: int, greatest: int) -> int:
    """Returns the greatest power of two that is not above a number, within limits."""
    return min(max(2 ** math.floor(math.log2(max(number, 1))), least), greatest)


# functions of the number of images, the batch size and the number of epochs, in the order in which they are called
AUTO: dict[str, Callable[..., float]] = {
    "batch_size": auto_batch_size,
    "model.projection_dim": auto_prototypes,
    "training.teacher_momentum": auto_momentum,
    "training.teacher_temperature": auto_temperature,
}


def auto_global_crop_size(config: DinoConfig) -> int:
    """Returns the model's image size, at most 224, in whole patches."""
    return _whole_patches(min(config.image_size, 224), config)


def auto_local_crop_size(config: DinoConfig) -> int:
    """Returns 3/7 of the global crops' size, as 96 of 224, in whole patches."""
    return _whole_patches(auto_global_crop_size(config) * 3 / 7, config)


def _whole_patches(size: float, config: DinoConfig) -> int:
    """Returns the size nearest to another that is a whole number of patches, and that the backbone takes."""
    with torch.device("meta"):  # where it costs nothing to ask the backbone
        least = backbone_class(config)(config).min_image_size
    patch = config.patch_size or 1
    return max(round(size / patch) * patch, math.ceil(least / patch) * patch)


# functions of the configuration of the model that a run starts from
AUTO_OF_MODEL: dict[str, Callable[[DinoConfig], int | str]] = {
    "model.backbone": lambda config: config.backbone,
    "crops.global_crop_size": auto_global_crop_size,
    "crops.local_crop_size": auto_local_crop_size,
}


@dataclass(frozen=True)
class Recipe:
    """
    Describes a pretraining run, but for its images.

    Args:
        model: arguments of [`DinoConfig`].
        crops: how images are cropped.
        training: arguments of [`DinoTrainingArguments`]. `per_device_train_batch_size` is how many images a process
            takes at once; where that is less than its share of the batch, gradients are accumulated.
        batch_size: images a step, over all processes.
        base_learning_rate: after the warm-up, for 256 images a step; the learning rate is in proportion to the batch.
            By default that of the optimizer, as in [`DinoTrainingArguments`].
        image_mean, image_std, rescale_factor: of the image transform, where it is not the model's.
        auto_crops: names of the values of `crops` that are `auto`.

    Raises:
        ValueError: if a value cannot work.
    """

    model: dict[str, Any] = field(default_factory=dict)
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    training: dict[str, Any] = field(default_factory=dict)
    batch_size: int | str = 512
    base_learning_rate: float | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    rescale_factor: float | None = None
    auto_crops: tuple[str, ...] = ()

    def __post_init__(self):
        check_image_transform(self.image_transform, source="the recipe")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def image_transform(self) -> dict[str, Any]:
        """Returns what the recipe sets of the image transform."""
        return {name: getattr(self, name) for name in TRANSFORM if getattr(self, name) is not None}

    def without_auto(self, num_images: int, config: DinoConfig | None = None) -> "Recipe":
        """
        Returns the recipe with a value in the place of each `auto`, see [`AUTO`] and [`AUTO_OF_MODEL`], and with its
        learning rate.

        Args:
            config: of the model that the run starts from; by default the recipe's.
        """
        recipe = self.replace({"base_learning_rate": self.base_rate})
        for key, rule in AUTO.items():
            if recipe.flat().get(key) == "auto":
                epochs = recipe.training.get("num_train_epochs", DinoTrainingArguments.num_train_epochs)
                recipe = recipe.replace({key: rule(num_images, recipe.batch_size, epochs)})
        of_model = [key for key in AUTO_OF_MODEL if recipe.flat().get(key) == "auto"]
        if of_model:
            config = recipe.config() if config is None else config
            recipe = recipe.replace({key: AUTO_OF_MODEL[key](config) for key in of_model})
        return recipe

    @property
    def optim(self) -> str:
        """The name of the optimizer."""
        return self.training.get("optim", DinoTrainingArguments.optim)

    @property
    def base_rate(self) -> float:
        """The base learning rate: the recipe's, or its optimizer's."""
        return rates_of(self.optim).base_learning_rate if self.base_learning_rate is None else self.base_learning_rate

    def config(self) -> DinoConfig:
        """Returns the model's configuration. Raises ValueError if its values cannot work."""
        return DinoConfig(**self.model)

    def training_arguments(self, output: str, world_size: int = 1, **kwargs) -> DinoTrainingArguments:
        """
        Returns the arguments of a trainer, and further ones, for a folder and a number of processes. Raises ValueError
        if values cannot work, or processes cannot share the batch.
        """
        share, rest = divmod(self.batch_size, world_size)
        at_once = min(self.training.get("per_device_train_batch_size", share), share)
        if at_once < 1:
            raise ValueError(
                f"batch_size={self.batch_size} gives {world_size} processes {at_once} images each at once"
            )
        if rest or share % at_once:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of {world_size} processes x {at_once} images: "
                "change it, or training.per_device_train_batch_size"
            )
        values = {
            "learning_rate": self.base_rate * self.batch_size / BASE_BATCH_SIZE,
            **self.training,
            "output_dir": output,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": share // at_once,
            "num_global_crops": self.crops.num_global_crops,
            **kwargs,
        }
        try:
            return DinoTrainingArguments(**values)
        except (TypeError, AttributeError, KeyError, RuntimeError) as error:  # transformers', of values it cannot use
            raise ValueError(f"the values of training cannot work: {' '.join(str(error).split())}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as in its file, with the values of `crops` that are not None."""
        crops = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.crops).items()}
        crops = {key: value for key, value in crops.items() if value not in (None, AS_BEFORE.get(key))}
        crops |= dict.fromkeys(self.auto_crops, "auto")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "auto_crops"}
        return {**{name: value for name, value in values.items() if value is not None}, "crops": crops}

    def flat(self) -> dict[str, Any]:
        """Returns all values that are set, by their dotted keys."""
        return _flatten(self.to_dict())

    def without_rates(self) -> "Recipe":
        """Returns the recipe without its learning rate and weight decay, which suit its optimizer and no other."""
        training = {name: value for name, value in self.training.items() if name not in RATES}
        return replace(self, training=training, base_learning_rate=None)

    def replace(self, values: dict[str, Any]) -> "Recipe":
        """Returns the recipe with other values, by dotted keys. Raises ValueError if a key or a value is wrong."""
        given: dict[str, Any] = {name: {} for name in SECTIONS}
        for key, value in {**self.flat(), **values}.items():
            if key not in KEYS:
                raise ValueError(_unknown_key(key))
            section, _, name = key.rpartition(".")
            (given[section] if section else given)[name] = _checked(key, value)
        auto_crops = tuple(name for name, value in given["crops"].items() if value == "auto")
        crops = {name: value for name, value in given["crops"].items() if name not in auto_crops}
        return Recipe(**{**given, "crops": MultiCropConfig(**crops), "auto_crops": auto_crops})


def load_recipe(name: StrPath, overrides: Sequence[str] = ()) -> Recipe:
    """
    Reads a recipe.

    Args:
        name: of one that comes with the package, or the path of a YAML file.
        overrides: `key=value` each, the key dotted, the value as in YAML.

    An optimizer among the overrides takes its own rates, not those that the recipe has for another one.

    Raises:
        ValueError: if there is no such recipe, or a key or value of it is wrong; says where.
    """
    name = os.fspath(name)
    is_path = name.endswith((".yaml", ".yml"))
    file = Path(name) if is_path else RECIPE_FOLDER / f"{name}.yaml"
    if not is_path and name not in recipes():
        offer = _did_you_mean(name, recipes())
        raise ValueError(f"unknown recipe {name!r}: {offer}allowed are {', '.join(recipes())}, or a YAML file")
    if not file.is_file():
        raise ValueError(f"{name}: no such file")
    try:
        recipe = Recipe().replace(_flatten(_read_yaml(file)))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    values: dict[str, Any] = {}
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"{text!r} is not of the form key=value")
        try:
            content = _parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"the value of {text[:MAX_SHOWN]!r} {error}") from error
        for name in reversed(key.split(".")):
            content = {name: content}
        values |= _flatten(content)
    if values.get("training.optim", recipe.optim) != recipe.optim:
        recipe = recipe.without_rates()
    return recipe.replace(values)


def _read_yaml(file: Path) -> Any:
    """Reads a recipe's file; raises ValueError if it is none, and OSError if it cannot be read."""
    with open(file, "rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes, too large for a recipe")
    try:
        parsed = _parse_yaml(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is no YAML in UTF-8: {error}") from error
    return {} if parsed is None else parsed  # an empty file


def _parse_yaml(text: str) -> Any:
    """
    Parses YAML. Raises ValueError if it is none, is nested deeply, or has aliases, of which a few lines can make more
    than fits the memory.
    """
    yaml = require("yaml", "train")
    try:
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError("is no recipe: it is nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("has an alias (*), which recipes must not have: write out what it stands for")
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {' '.join(str(error).split())}") from error


@cache
def _loader() -> type:
    """Returns the loader of plain values of YAML, which takes no key twice, and `5e-4` for a number, as YAML 1.2."""
    yaml = require("yaml", "train")

    class RecipeLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            seen: set[str] = set()
            for key, _ in node.value:
                if (name := str(key.value)) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {name} is there twice")
                seen.add(name)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d[\d_]*)?\.?\d+[eE][-+]?\d+$")
    RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return RecipeLoader


def _checked(key: str, value: Any) -> Any:
    """Returns the value of a key, in its type; raises ValueError if it is of none that the key can have."""
    if value is False and key.endswith("_strategy"):
        return "no"  # which YAML reads as false
    if key in (*AUTO, *AUTO_OF_MODEL) and value == "auto":
        return value
    try:
        _check_plain(value)
        converted = _converted(value, KEYS[key])
        type_validator(key, converted, KEYS[key])
    except (TypeError, ValueError, OverflowError):
        wanted = next((text for sign, text in WANTED.items() if sign in str(KEYS[key])), "a text")
        hint = f"; only {', '.join((*AUTO, *AUTO_OF_MODEL))} can be auto" if value == "auto" else ""
        raise ValueError(f"{key}={_shortened(value)} must be {wanted}{hint}") from None
    return value if key.startswith("training.") and type(converted) is float else converted


def _check_plain(value: Any):
    """Raises ValueError if a value is not made of a limited number of finite numbers, texts, lists and mappings."""
    parts = [value]
    for count, part in enumerate(parts):
        is_plain = part is None or isinstance(part, (bool, int, float, str, list, dict))
        is_large = isinstance(part, int) and abs(part) >= 2**63
        if count > MAX_PARTS or not is_plain or is_large or (isinstance(part, float) and not math.isfinite(part)):
            raise ValueError
        if isinstance(part, str) and ("${" in part or len(part) > MAX_PARTS):
            raise ValueError
        parts += [*part.keys(), *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else []


def _converted(value: Any, kind: Any) -> Any:
    """Returns a number as a float where only these are taken, or whole where only whole ones are; lists alike."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    for listed in (kind for kind in kinds if get_origin(kind) in (list, tuple)):
        if isinstance(value, (list, tuple)):
            return get_origin(listed)(_converted(item, get_args(listed)[0]) for item in value)
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 and int in kinds and float not in kinds:
        return int(value)  # 2e5
    return value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def recipes() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(file.stem for file in RECIPE_FOLDER.glob("*.yaml"))


def _flatten(content: Any) -> dict[str, Any]:
    """Returns the values of a recipe by their dotted keys."""
    if not isinstance(content, dict):
        raise ValueError("a recipe is made of keys and values")
    values = {}
    for key, value in content.items():
        if key in SECTIONS and not isinstance(value, dict):
            raise ValueError(f"{key} must have keys and values of its own")
        values |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {str(key): value}
    return values


def _keys() -> dict[str, Any]:
    """Returns the type of each dotted key that a recipe may have."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    types = get_type_hints(Recipe)
    keys = {"batch_size": int, "base_learning_rate": float}
    keys |= {f"model.{f.name}": f.type for f in fields(DinoConfig) if f.name not in inherited and f.name[0] != "_"}
    keys |= {"model.depths": list[int] | None}
    keys |= {f"crops.{f.name}": f.type for f in fields(MultiCropConfig)}
    keys |= {name: types[name] for name in TRANSFORM}
    training = get_type_hints(DinoTrainingArguments)
    return keys | {f"training.{name}": kind for name, kind in training.items() if name not in SET_ELSEWHERE}


KEYS = _keys()
# how a type is called in messages, by what its name in Python has in it; the first that fits
WANTED = {"list[str]": "a text, or a list of texts", "int | tuple": "a whole number, or a list of them"}
WANTED |= {"list": "a list of numbers", "tuple": "a list of numbers"}
WANTED |= {"dict": "keys and values", "float": "a number", "int": "a whole number", "bool": "true or false"}


def _unknown_key(key: str) -> str:
    """Returns what to say of a key that recipes do not have: which is meant, or how else it is set."""
    name = key.rpartition(".")[2]
    if name in SET_ELSEWHERE:
        return f"{key} is no key of a recipe: it is set by {SET_ELSEWHERE[name]}"
    same_name = [known for known in KEYS if known.rpartition(".")[2] == name]
    ours = ", ".join(known for known in KEYS if not known.startswith("training."))
    listed = f"there are {ours}, and training.NAME of each of DinoTrainingArguments"
    return f"unknown key {key!r}: {_did_you_mean(key, KEYS, same_name).strip() or listed}"


def _did_you_mean(name: str, known: Iterable[str], best: Sequence[str] = ()) -> str:
    nearest = list(best) or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {' or '.join(nearest)}? " if nearest else ""
