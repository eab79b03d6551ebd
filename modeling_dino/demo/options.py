# SPDX-License-Identifier: Apache-2.0
"""The options of `dino demo`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..runtime.options import StrPath, option


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """
    Says where the demo is written, and how its pretraining differs from the recipe.

    Raises:
        ValueError: if the seed is negative.
    """

    summary: ClassVar[str] = (
        "Pretrains on scikit-image's photographs, extracts features, evaluates them, and draws pictures, in minutes."
    )

    overrides: Sequence[str] = option("Values to replace in the recipe.", (), flag="[KEY=VALUE]...", argument=True)
    output: StrPath = option("Folder to write to; with an interrupted demo of the same options, that goes on.", "demo")
    seed: int = option("Seed of the images and the network.", 0)
    overwrite: bool = option("Start anew where the folder has another demo.", False)
    no_open: bool = option("Do not open the report in the browser.", False)

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")
