# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: whole ones, from which it goes on, and others, which are passed over by name.

The file that is written last into a checkpoint, `parts.json`, lists all others with size and checksum. A checkpoint is
whole when each of them is there as it was written. One without the list, of an older version or of a process that was
killed just before, is whole when all that a run needs is there and can be read.
"""

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from typing_extensions import NotRequired, TypedDict

from ..checkpoint_files import check_finite_weights, read_tensors
from ..runtime.extras import require
from ..runtime.json_files import read_json
from ..runtime.whole_files import is_partial, whole_file
from .progress import show_progress


logger = logging.get_logger(__name__)

PARTS_NAME = "parts.json"
SET_ASIDE = "set-aside-"  # before the name of a checkpoint that a run does not go on from
CHUNK = 2**24  # bytes that are read at once


class Parts(TypedDict):
    """Holds what is in `parts.json`: the other files, each with its size and CRC-32."""

    files: dict[str, list[int]]


class TrainerFacts(TypedDict):
    """Holds what a run needs of `trainer_state.json`."""

    global_step: int
    log_history: list[dict[str, Any]]
    stateful_callbacks: NotRequired[dict[str, Any]]


class WeightIndex(TypedDict):
    """Holds the list of files of weights that are in several."""

    weight_map: dict[str, str]


class CheckpointedTrainer(Trainer):
    """
    [`~transformers.Trainer`] that knows which of its checkpoints are whole, goes on from the last of these, and shows
    its progress by [`TrainingProgress`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        show_progress(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Does what [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last whole one in the output folder.

        Raises:
            ValueError: if there is none, or the one that is named is not whole.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.checkpoint_to_resume()
            if resume_from_checkpoint is None:
                raise ValueError(f"nothing to resume: there is no whole checkpoint in {self.args.output_dir}")
        elif resume_from_checkpoint and (damage := damage_of(Path(resume_from_checkpoint))):
            raise ValueError(f"{resume_from_checkpoint} is not whole: {damage}")
        trained = super().train(resume_from_checkpoint or None, **kwargs)
        if self.args.should_save:  # a run that was killed in its last save has not removed older checkpoints
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        return trained

    def checkpoint_to_resume(self) -> str | None:
        """Returns what [`checkpoint_to_resume`] finds in the output folder, the same in all processes."""
        found = [checkpoint_to_resume(self.args.output_dir) if self.is_world_process_zero() else None]
        return require("accelerate.utils").broadcast_object_list(found)[0]

    def save_finite_model(self):
        """Saves the model at the end of a run; raises FloatingPointError if the last update has broken it."""
        try:
            check_finite_weights(self.model.state_dict(), "the end of the training")
        except ValueError as error:
            raise FloatingPointError(f"{error}: lower learning_rate") from None
        self.save_model(self.args.output_dir)

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step < self.state.max_steps:  # else the last checkpoint is that of the last step
            super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # older checkpoints are removed when the files of all processes are there

    def _load_best_model(self):
        """Does what the Trainer does; raises what [`check_best`] does, where it only warns."""
        check_best(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            list_parts(checkpoint_at(self._get_output_dir(trial), self.state.global_step))


def check_best(path: str):
    """Raises OSError if the best checkpoint of a run is not whole."""
    best = Path(path)
    damage = damage_of(best) if best.is_dir() else "it is gone"
    if damage:
        raise OSError(f"{best}, the best checkpoint, is not whole: {damage}; put it back, or pass --overwrite")


def list_parts(checkpoint: Path):
    """Writes the list of a checkpoint's files, when all of them are written."""
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and not is_partial(file)]
    parts = {
        file.relative_to(checkpoint).as_posix(): [file.stat().st_size, checksum(file)]
        for file in files
        if file.name != PARTS_NAME
    }
    with whole_file(checkpoint / PARTS_NAME) as partial:
        partial.write_text(json.dumps({"files": parts}, indent=2) + "\n", encoding="utf-8")


def checksum(file: Path) -> int:
    """Computes the CRC-32 of a file, which tells damage, but no forgery."""
    value = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def damage_of(checkpoint: Path) -> str | None:
    """
    Returns what keeps a run from going on from a checkpoint: that it lacks a part, or which part is damaged. None if
    it is whole. Raises OSError if a part cannot be read, which is no damage.
    """
    try:
        if not (checkpoint / PARTS_NAME).is_file():
            return _damage_without_list(checkpoint)
        for name, (size, expected) in read_json(checkpoint / PARTS_NAME, Parts)["files"].items():
            file = checkpoint / name
            if not file.is_file():
                return f"it lacks {name}"
            if file.stat().st_size != size or checksum(file) != expected:
                return f"{name} is damaged"
    except ValueError:  # of the list, also if it has no pairs of numbers
        return f"{PARTS_NAME} is damaged"
    return None


def _damage_without_list(checkpoint: Path) -> str | None:
    is_sharded = any(path.is_dir() for path in checkpoint.iterdir())  # as FSDP and deepspeed save
    needed = [TRAINER_STATE_NAME, SCHEDULER_NAME, *([] if is_sharded else [OPTIMIZER_NAME])]
    weights = [] if is_sharded else [SAFE_WEIGHTS_NAME]
    states = [file.name for file in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
    if (checkpoint / SAFE_WEIGHTS_INDEX_NAME).is_file():
        weights = sorted(set(read_json(checkpoint / SAFE_WEIGHTS_INDEX_NAME, WeightIndex)["weight_map"].values()))
    for name in [*needed, *states, *weights]:
        if not (checkpoint / name).is_file():
            return f"it lacks {name}"
        if not _is_readable(checkpoint / name):
            return f"{name} is damaged"
    return None


def _is_readable(file: Path) -> bool:
    try:
        if file.suffix == ".json":
            return f"-{read_json(file, TrainerFacts)['global_step']}" == file.parent.name[len(PREFIX_CHECKPOINT_DIR) :]
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return bool(tensors.keys())
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, IsADirectoryError):
        raise
    except Exception:  # whatever PyTorch's reader raises for bytes that anything may have changed
        return False
    return True


def checkpoints(run: str | os.PathLike) -> list[Path]:
    """Returns the checkpoints of a run, whole or not, the last one first."""
    folders = [path for path in Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and has_step(path)]
    return sorted(folders, key=step_of, reverse=True)


def checkpoint_at(run: str | os.PathLike, step: int) -> Path:
    """Returns the folder of a run's checkpoint after so many steps."""
    return Path(run) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def has_step(checkpoint: Path) -> bool:
    """Returns whether a folder is named after a step, as checkpoints are."""
    return checkpoint.name[len(PREFIX_CHECKPOINT_DIR) + 1 :].isdecimal()


def step_of(checkpoint: str | Path) -> int:
    """Returns the number of steps after which a checkpoint was saved."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def last_whole_checkpoint(run: str | os.PathLike) -> str | None:
    """Returns the last whole checkpoint of a run, if any."""
    return next((str(path) for path in checkpoints(run) if not damage_of(path)), None)


def last_good_checkpoint(run: str | os.PathLike, before: int) -> str | None:
    """
    Returns the last whole checkpoint whose weights are finite, of those from before a step, if any.

    The loss was finite after each of them, since a run ends at the first that is not.
    """
    earlier = (path for path in checkpoints(run) if step_of(path) < before)
    return next((str(path) for path in earlier if not damage_of(path) and is_finite(path)), None)


def checkpoint_to_resume(run: str | os.PathLike) -> str | None:
    """
    Returns the last whole checkpoint of a run, if any, with its list of parts. Warns of later ones, which are set
    aside, or removed if they were not written to their end.
    """
    for path in checkpoints(run):
        damage = damage_of(path)
        if damage is None:
            if not (path / PARTS_NAME).exists():  # the process was killed just before it wrote it
                list_parts(path)
            return str(path)
        if any((path / name).exists() for name in (TRAINER_STATE_NAME, PARTS_NAME)):  # which are written last
            logger.warning(f"{path} is not whole, {damage}: it is kept as {set_aside(path).name}")
        else:
            logger.warning(f"{path} was not written to its end, {damage}: it is removed")
            shutil.rmtree(path)
    return None


def set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint, so that no run goes on from it; returns its new path."""
    aside = checkpoint.with_name(SET_ASIDE + checkpoint.name)
    if aside.exists():
        shutil.rmtree(aside)
    return checkpoint.rename(aside)


def is_finite(checkpoint: Path) -> bool:
    """Returns whether all weights are finite numbers."""
    try:
        check_finite_weights(read_tensors(checkpoint, ""), checkpoint)
    except (OSError, ValueError):
        return False
    return True
