# SPDX-License-Identifier: Apache-2.0
"""Tells which recipes there are, and which of their keys can be replaced."""

import json
from dataclasses import MISSING, Field, fields
from typing import Any

from ..configuration_dino import DinoConfig
from .arguments import DinoTrainingArguments
from .multi_crop import MultiCropConfig
from .recipes import BASE_BATCH_SIZE, KEYS, RECIPE_FOLDER, SECTIONS, Recipe, recipes


def recipe_summaries() -> dict[str, str]:
    """Returns the first line of each recipe that comes with the package, by its name."""
    return {name: _first_line(name) for name in recipes()}


def default_values() -> dict[str, dict[str, str]]:
    """
    Returns the keys of recipes with their defaults as YAML, by what they belong to: the recipe itself, and its
    sections. Of the training arguments it has those that are DINO's own, or have another default than transformers'.
    """
    known = {field.name: field for field in fields(DinoTrainingArguments)}
    own = [known[name] for name in DinoTrainingArguments.__annotations__]
    groups = {
        "the recipe": _defaults("", [field for field in fields(Recipe) if field.name not in SECTIONS]),
        "model": _defaults("model.", fields(DinoConfig)),
        "crops": _defaults("crops.", fields(MultiCropConfig)),
        "training": _defaults("training.", own),
    }
    groups["training"]["training.learning_rate"] = f"base_learning_rate*batch_size/{BASE_BATCH_SIZE}"
    return groups


def _first_line(name: str) -> str:
    with open(RECIPE_FOLDER / f"{name}.yaml", encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _defaults(prefix: str, all_fields: list[Field] | tuple[Field, ...]) -> dict[str, str]:
    """Returns the defaults of those fields that are keys of a recipe."""
    values = {f"{prefix}{field.name}": _default(field) for field in all_fields}
    return {key: json.dumps(value, separators=(",", ":")) for key, value in values.items() if key in KEYS}


def _default(field: Field) -> Any:
    return (
        field.default if field.default is not MISSING or field.default_factory is MISSING else field.default_factory()
    )
