"""Configurations, image transforms and weights that are wrong."""

from collections.abc import Iterator
from pathlib import Path

from faulty_input import Case, damaged, spoilt_json


EXTRACT = ["extract", "--images", "images", "--output", "out", "--num-workers", "0", "--model"]


def cases(healthy: Path) -> Iterator[Case]:
    for family in ("vit", "resnet"):
        for wrong, text in spoilt_json(healthy / family / "config.json"):
            yield Case(f"{family}/config.json: {wrong}", ["info", family], {f"{family}/config.json": text})
    for wrong, text in spoilt_json(healthy / "vit" / "preprocessor_config.json"):
        yield Case(f"preprocessor_config.json: {wrong}", [*EXTRACT, "vit"], {"vit/preprocessor_config.json": text})
    for wrong, content in damaged(healthy / "vit" / "model.safetensors", 20):
        yield Case(f"model.safetensors: {wrong}", [*EXTRACT, "vit"], {"vit/model.safetensors": content})
