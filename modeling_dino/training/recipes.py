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

Any value can be replaced by `key=value`, as in `crops.num_local_crops=6`. `auto` is for values that depend on the
number of images: see [`AUTO`].
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..configuration_dino import DinoConfig, configuration_folder
from ..runtime.extras import require
from .multi_crop import MultiCropConfig
from .trainer import DinoTrainingArguments


RECIPE_SUFFIXES = (".yaml", ".yml")
BASE_BATCH_SIZE = 256  # to which learning rates refer
SECTIONS = ("model", "crops", "training")
# of the training arguments, those that are said elsewhere
SAID_ELSEWHERE = {
    "output_dir": "--output",
    "resume_from_checkpoint": "--output of the run that stopped",
    "overwrite_output_dir": "--overwrite",
    "gradient_accumulation_steps": "batch_size and training.per_device_train_batch_size",
    "dataloader_num_workers": "--num-workers",
    "num_global_crops": "crops.num_global_crops",
}


def _power_of_two(number: float, least: int, greatest: int) -> int:
    """The greatest one that is not above a number, within limits."""
    return min(max(2 ** math.floor(math.log2(max(number, 1))), least), greatest)


def auto_batch_size(num_images: int, recipe: "Recipe") -> int:
    """At least 8 steps an epoch."""
    return _power_of_two(num_images / 8, 8, 512)


def auto_prototypes(num_images: int, recipe: "Recipe") -> int:
    """4 to 8 images a prototype; the original's 65536 from half a million images on."""
    return _power_of_two(num_images / 4, 64, 65536)


def auto_momentum(num_images: int, recipe: "Recipe") -> float:
    """
    A teacher that is the mean of the last twentieth of the steps, but of at least 20 and at most 2000.

    The original advises 0.9995, which is 2000 steps, for batches of 256; with it, a short run would end before its
    teacher moves.
    """
    steps = recipe.training["num_train_epochs"] * max(num_images // recipe.batch_size, 1)
    return 1 - 1 / min(max(steps / 20, 20), 2000)


def auto_temperature(num_images: int, recipe: "Recipe") -> float:
    """The original's 0.04; the 0.07 of its best models for ten thousand images and more."""
    return 0.04 if num_images < 10_000 else 0.07


# the values that can be `auto`, in the order in which they are settled: functions of the number of images
AUTO: dict[str, Callable[[int, "Recipe"], Any]] = {
    "batch_size": auto_batch_size,
    "model.projection_dim": auto_prototypes,
    "training.teacher_momentum": auto_momentum,
    "training.teacher_temperature": auto_temperature,
}


@dataclass(frozen=True)
class Recipe:
    """
    A pretraining run, but for its images.

    Args:
        model: arguments of [`DinoConfig`].
        crops: how images are cropped.
        training: arguments of [`DinoTrainingArguments`]. `per_device_train_batch_size` is how many images a process
            takes at once; where that is less than its share of the batch, gradients are accumulated.
        batch_size: images a step, over all processes.
        base_learning_rate: after the warm-up, for 256 images a step; the learning rate is in proportion to the batch.

    Raises:
        ValueError: if a value cannot work.
    """

    model: dict[str, Any] = field(default_factory=dict)
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    training: dict[str, Any] = field(default_factory=dict)
    batch_size: int | str = 512
    base_learning_rate: float = 5e-4

    def __post_init__(self):
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def settle(self, num_images: int) -> "Recipe":
        """The recipe with a number in the place of each `auto`: see [`AUTO`]."""
        recipe = self
        for key, rule in AUTO.items():
            if recipe.flat().get(key) == "auto":
                recipe = recipe.replace({key: rule(num_images, recipe)})
        return recipe

    def config(self) -> DinoConfig:
        """
        Raises:
            ValueError: if the values of `model` cannot work.
        """
        return DinoConfig(**self.model)

    def training_arguments(self, output: str, world_size: int = 1, **kwargs) -> DinoTrainingArguments:
        """
        Args:
            output: folder of the run.
            world_size: number of processes.
            kwargs: further arguments.

        Raises:
            ValueError: if values cannot work, or processes cannot share the batch.
        """
        share, rest = divmod(self.batch_size, world_size)
        at_once = min(self.training.get("per_device_train_batch_size") or share, share)
        if rest or share % at_once:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of {world_size} processes x {at_once} images: "
                "change it, or training.per_device_train_batch_size"
            )
        return DinoTrainingArguments(
            **{
                "learning_rate": self.base_learning_rate * self.batch_size / BASE_BATCH_SIZE,
                **self.training,
                "output_dir": output,
                "per_device_train_batch_size": at_once,
                "gradient_accumulation_steps": share // at_once,
                "num_global_crops": self.crops.num_global_crops,
                **kwargs,
            }
        )

    def flat(self) -> dict[str, Any]:
        """All values that are set, by their dotted keys."""
        values = {}
        for name, value in self.to_dict().items():
            values |= {f"{name}.{key}": v for key, v in value.items()} if name in SECTIONS else {name: value}
        return values

    def to_dict(self) -> dict[str, Any]:
        """As in its file, with all values of `crops`."""
        crops = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.crops).items()}
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "crops": crops}

    def replace(self, values: dict[str, Any]) -> "Recipe":
        """
        The recipe with other values.

        Args:
            values: by their dotted keys.

        Raises:
            ValueError: if there is no such key (the nearest is offered), or a value is of another type.
        """
        changed = {name: dict(value) for name, value in self.to_dict().items() if name in SECTIONS}
        top = {}
        for key, value in values.items():
            default = KEYS[_known_key(key)]
            value = _of_type(key, value, default)
            section, _, name = key.rpartition(".")
            (changed[section] if section else top)[name] = value
        crops = {name: tuple(value) if isinstance(value, list) else value for name, value in changed["crops"].items()}
        return replace(self, **{**changed, "crops": MultiCropConfig(**crops)}, **top)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """
    A recipe.

    Args:
        name: of one that comes with the package, or the path of a YAML file.
        overrides: `key=value` each, the key dotted, the value as in YAML.

    Raises:
        ValueError: if there is no such recipe, or a key or value of it is wrong; says where.
    """
    file = _recipe_file(name)
    yaml = require("yaml", "train")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    try:
        recipe = Recipe().replace(_flatten(content))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return recipe.replace(dict(map(_parse_override, overrides)))


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in _recipe_folder().glob("*.yaml"))


def _recipe_folder() -> Path:
    return configuration_folder() / "recipes"


def _recipe_file(name: str) -> Path:
    if name.endswith(RECIPE_SUFFIXES):
        if not Path(name).is_file():
            raise ValueError(f"{name}: no such file")
        return Path(name)
    if name not in recipes():
        raise ValueError(
            f"unknown recipe {name!r}: {_offer(name, recipes())}allowed are {', '.join(recipes())}, or a YAML file"
        )
    return _recipe_folder() / f"{name}.yaml"


def _flatten(content: Any) -> dict[str, Any]:
    """What a file says, by dotted keys."""
    if not isinstance(content, dict):
        raise ValueError("a recipe is made of keys and values")
    values = {}
    for key, value in content.items():
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise ValueError(f"{key} must have keys and values of its own")
            values |= {f"{key}.{name}": v for name, v in value.items()}
        else:
            values[str(key)] = value
    return values


def _parse_override(text: str) -> tuple[str, Any]:
    yaml = require("yaml", "train")
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not of the form key=value")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {text!r} is no YAML") from error


def _default(f: Field) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _keys() -> dict[str, Any]:
    """The dotted keys there are, and their defaults."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    ours = [f for f in fields(DinoConfig) if f.name not in inherited and not f.name.startswith("_")]
    keys = {f.name: _default(f) for f in fields(Recipe) if f.name not in SECTIONS}
    keys |= {f"model.{f.name}": _default(f) for f in ours} | {"model.depths": None}
    keys |= {f"crops.{f.name}": _default(f) for f in fields(MultiCropConfig)}
    keys |= {f"training.{f.name}": _default(f) for f in fields(DinoTrainingArguments) if f.name not in SAID_ELSEWHERE}
    return keys


KEYS = _keys()


def _known_key(key: str) -> str:
    if key in KEYS:
        return key
    name = key.rpartition(".")[2]
    if name in SAID_ELSEWHERE and key not in KEYS:
        raise ValueError(f"{key} is no key of a recipe: it is set by {SAID_ELSEWHERE[name]}")
    ends = [known for known in KEYS if known.rpartition(".")[2] == name]
    raise ValueError(f"unknown key {key!r}: {_offer(key, KEYS, ends) or f'there are {_listed(KEYS)}'}".rstrip(": "))


def _offer(name: str, known: Iterable[str], first: Sequence[str] = ()) -> str:
    nearest = list(first) or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {' or '.join(nearest)}? " if nearest else ""


def _listed(keys: Iterable[str]) -> str:
    ours = [key for key in keys if not key.startswith("training.")]
    return f"{', '.join(ours)}, and training.NAME of each of DinoTrainingArguments"


def _of_type(key: str, value: Any, default: Any) -> Any:
    """
    A value of the type of the default.

    Raises:
        ValueError: if it is not, or `auto` where there is no rule.
    """
    if value == "auto" and not isinstance(default, str):
        if key not in AUTO:
            raise ValueError(f"{key} cannot be auto: only {', '.join(AUTO)} can")
        return value
    if isinstance(value, str) and not isinstance(default, str):
        value = _as_number(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, (list, tuple)):
        fits, wanted = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value), "a list of numbers"
    elif isinstance(default, int) and not key.startswith("training."):  # many of those are ints or ratios
        fits, wanted = is_number and value == int(value), "a whole number"
        value = int(value) if fits else value
    elif isinstance(default, (int, float)):
        fits, wanted = is_number and math.isfinite(value), "a number"
    else:
        fits, wanted = True, ""
    if not fits:
        raise ValueError(f"{key}={value!r} must be {wanted}")
    return value


def _as_number(text: str) -> Any:
    """YAML takes 1e-4, without a point, for a text."""
    try:
        return float(text)
    except ValueError:
        return text
