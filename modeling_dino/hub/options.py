# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that show and push models."""

from dataclasses import dataclass

from ..runtime.options import option
from .loading import MODEL_HELP


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """The model whose sizes are shown."""

    model: str | None = option("Preset, folder or hub id; all presets if left out.", None, argument=True)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Names the model that is pushed, and the repository that it is pushed to."""

    model: str = option(MODEL_HELP, argument=True)
    repo_id: str = option("Name of the repository: name or namespace/name.", argument=True)
    private: bool = option("Make a new repository private.", False)
    with_code: bool = option("Push the code too, for those who have not installed this package.", False)
    license: str | None = option("License in the model card, e.g. apache-2.0.", None)
