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
number of images: see [`AUTO`]. OmegaConf reads the files and checks the types of the values.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..configuration_dino import DinoConfig, configuration_folder
from ..runtime.extras import require
from .arguments import DinoTrainingArguments
from .multi_crop import MultiCropConfig


RECIPE_FOLDER = configuration_folder() / "recipes"
BASE_BATCH_SIZE = 256  # to which learning rates refer
SECTIONS = ("model", "crops", "training")
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

    def without_auto(self, num_images: int) -> "Recipe":
        """Returns the recipe with a number in the place of each `auto`: see [`AUTO`]."""
        recipe = self
        for key, rule in AUTO.items():
            if recipe.flat().get(key) == "auto":
                epochs = recipe.training.get("num_train_epochs", DinoTrainingArguments.num_train_epochs)
                recipe = recipe.replace({key: rule(num_images, recipe.batch_size, epochs)})
        return recipe

    def config(self) -> DinoConfig:
        """Returns the model's configuration. Raises ValueError if its values cannot work."""
        return DinoConfig(**self.model)

    def training_arguments(self, output: str, world_size: int = 1, **kwargs) -> DinoTrainingArguments:
        """
        Returns the arguments of a trainer, and further ones, for a folder and a number of processes. Raises ValueError
        if values cannot work, or processes cannot share the batch.
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

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as in its file, with all values of `crops`."""
        crops = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.crops).items()}
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "crops": crops}

    def flat(self) -> dict[str, Any]:
        """Returns all values that are set, by their dotted keys."""
        return _flatten(self.to_dict())

    def replace(self, values: dict[str, Any]) -> "Recipe":
        """Returns the recipe with other values, by dotted keys. Raises ValueError if a key or a value is wrong."""
        omegaconf = require("omegaconf", "train")
        config = omegaconf.OmegaConf.structured(_schema())
        for key, value in {**self.flat(), **values}.items():
            if key not in KEYS:
                raise ValueError(_unknown_key(key))
            if value is False and key.endswith("_strategy"):
                value = "no"  # which YAML reads as false
            try:
                omegaconf.OmegaConf.update(config, key, value)
                is_finite = not isinstance(value, float) or math.isfinite(value)
                if not is_finite or (key in AUTO and isinstance(value, str) and value != "auto"):
                    raise ValueError
            except ValueError:  # OmegaConf's ValidationError is one
                wanted = next((text for sign, text in WANTED.items() if sign in str(KEYS[key])), "a text")
                hint = f"; only {', '.join(AUTO)} can be auto" if value == "auto" else ""
                raise ValueError(f"{key}={value!r} must be {wanted}{hint}") from None
        given = omegaconf.OmegaConf.to_container(config)
        for name in SECTIONS:
            given[name] = {key: value for key, value in given[name].items() if value != omegaconf.MISSING}
        crops = {key: tuple(value) if isinstance(value, list) else value for key, value in given["crops"].items()}
        return Recipe(**{**given, "crops": MultiCropConfig(**crops)})


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """
    Reads a recipe.

    Args:
        name: of one that comes with the package, or the path of a YAML file.
        overrides: `key=value` each, the key dotted, the value as in YAML.

    Raises:
        ValueError: if there is no such recipe, or a key or value of it is wrong; says where.
    """
    is_path = name.endswith((".yaml", ".yml"))
    file = Path(name) if is_path else RECIPE_FOLDER / f"{name}.yaml"
    if not is_path and name not in recipes():
        offer = _did_you_mean(name, recipes())
        raise ValueError(f"unknown recipe {name!r}: {offer}allowed are {', '.join(recipes())}, or a YAML file")
    if not file.is_file():
        raise ValueError(f"{name}: no such file")
    omegaconf, yaml = require("omegaconf", "train").OmegaConf, require("yaml", "train")
    try:
        recipe = Recipe().replace(_flatten(omegaconf.to_container(omegaconf.load(file))))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    except (ValueError, OSError) as error:  # OSError: OmegaConf's for a file that is a single value
        raise ValueError(f"{file}: {error}") from error
    values = {}
    for text in overrides:
        if "=" not in text:
            raise ValueError(f"{text!r} is not of the form key=value")
        try:
            values |= _flatten(omegaconf.to_container(omegaconf.from_dotlist([text])))
        except yaml.YAMLError as error:
            raise ValueError(f"the value of {text!r} is no YAML") from error
    return recipe.replace(values)


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
    keys = {f.name: f.type for f in fields(Recipe) if f.name not in SECTIONS}
    keys |= {f"model.{f.name}": f.type for f in fields(DinoConfig) if f.name not in inherited and f.name[0] != "_"}
    keys |= {"model.depths": list[int] | None}
    keys |= {f"crops.{f.name}": f.type for f in fields(MultiCropConfig)}
    checked = {bool: bool, int: int | float, float: int | float}  # some whole numbers may be ratios, too
    training = [f for f in fields(DinoTrainingArguments) if f.name not in SET_ELSEWHERE]
    keys |= {f"training.{f.name}": checked.get(f.type, Any) for f in training}
    return {key: kind | str if key in AUTO else kind for key, kind in keys.items()}


KEYS = _keys()
# how a type is called in messages, by what its name in Python has in it; the first that fits
WANTED = {"list": "a list of numbers", "tuple": "a list of numbers", "float": "a number", "int": "a whole number"}
WANTED |= {"bool": "true or false"}


@cache
def _schema() -> type:
    """Returns the dataclass by which OmegaConf knows the types of a recipe; all its values are missing."""
    sections: dict[str, list] = {name: [] for name in ("", *SECTIONS)}
    for key, kind in KEYS.items():
        section, _, name = key.rpartition(".")
        sections[section].append((name, kind, field(default=require("omegaconf", "train").MISSING)))
    classes = {name: make_dataclass(name, sections[name]) for name in SECTIONS}
    top = [(name, section, field(default_factory=section)) for name, section in classes.items()]
    return make_dataclass("recipe", [*sections[""], *top])


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
