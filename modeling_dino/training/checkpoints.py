# SPDX-License-Identifier: Apache-2.0
"""The checkpoints in the folder of a training run: which were saved whole, and which are good."""

import json
import os
from pathlib import Path

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoint_files import read_tensors


def whole_checkpoints(run: str | os.PathLike) -> list[Path]:
    """The checkpoints of a run that were saved to their end, the last one first."""
    folders = [folder for folder in Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if is_whole(folder)]
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has the file that is written last; a process that is killed while it saves leaves none."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return checkpoint.name.rpartition("-")[2].isdigit()


def last_whole_checkpoint(run: str | os.PathLike) -> str | None:
    """The last checkpoint of a run that was saved to its end, if any."""
    return next(map(str, whole_checkpoints(run)), None)


def last_good_checkpoint(run: str | os.PathLike) -> str | None:
    """The last checkpoint of a run whose weights are all finite, if any."""
    return next((str(folder) for folder in whole_checkpoints(run) if is_finite(folder)), None)


def is_finite(checkpoint: Path) -> bool:
    """Whether all weights are finite numbers."""
    try:
        return all(bool(torch.isfinite(tensor).all()) for tensor in read_tensors(checkpoint, "").values())
    except OSError:
        return False


__all__ = ["last_good_checkpoint", "last_whole_checkpoint", "whole_checkpoints"]
