# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that show and push models."""

from dataclasses import dataclass
from typing import ClassVar

from ..runtime.options import StrPath, option
from .loading import MODEL_HELP


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """The model whose sizes are shown."""

    summary: ClassVar[str] = (
        "Shows the sizes of a model, or of all presets: parameters, features, memory of weights, FLOPs of an image."
    )

    model: StrPath | None = option("Preset, folder or hub id; all presets if left out.", None, argument=True)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Names the model that is pushed, and the repository that it is pushed to."""

    summary: ClassVar[str] = (
        "Pushes a model to the hub with its image transform and a model card, and prints its address."
    )

    model: StrPath = option(MODEL_HELP, argument=True)
    repo_id: str = option("Name of the repository: name or namespace/name.", argument=True)
    private: bool = option("Make a new repository private.", False)
    with_code: bool = option("Push the code too, for those who have not installed this package.", False)
    license: str | None = option("License in the model card, e.g. apache-2.0.", None)
