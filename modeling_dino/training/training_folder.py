# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run: its checkpoints, and what is known of the run.

run.json              settings and versions; at the end results, too
checkpoint-N/         the state at step N, from which the run goes on when it was stopped
model.safetensors     the model at the end; config.json and preprocessor_config.json beside it
curves.png            what was logged, of pretraining
pca.png               the principal components of three images' patch tokens at each evaluation, of pretraining
"""

import copy
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME
from typing_extensions import NotRequired

from ..data.image_source import IMAGES_CHANGED
from ..hub.evaluation_results import EVALUATION_RESULTS_NAME
from ..runtime.run_folder import RunFacts, RunFolder
from ..runtime.whole_files import FAILED_WRITE
from .checkpoints import SET_ASIDE, last_whole_checkpoint, step_of


CURVES, COMPONENTS = "curves.png", "pca.png"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class TrainingFacts(RunFacts):
    """Holds what run.json has."""

    results: NotRequired[dict[str, Any]]
    unreadable: NotRequired[dict[str, str]]


class TrainingFolder(RunFolder):
    """
    The folder of a pretraining run, and of any other that leaves the same files.

    Args:
        lengths: dotted names of the settings that say how long the run is, or follow from it. A run in which they
            alone differ goes on from what is there.
    """

    file_name, format, contents, command = "run.json", "modeling-dino run 1", "a run", "dino pretrain"
    explanations = {"data.fingerprint": IMAGES_CHANGED}
    schema = TrainingFacts

    def __init__(self, path: str | os.PathLike, settings: dict, lengths: Sequence[str]):
        super().__init__(path, settings)
        self.lengths = lengths

    def goes_on_from(self, settings: dict) -> bool:
        """Returns whether this run goes on from what a run of these settings has left."""
        return without(settings, self.lengths) == without(self.settings, self.lengths)

    def step_of_other_length(self, total_steps: int, overwrite: bool) -> int | None:
        """
        Returns the step from which a run goes on with another length than it had, after `check`; None if it has the
        same length, or begins.

        Raises:
            ValueError: if it has done more steps than are asked for, or all, and has kept no checkpoint.
        """
        if overwrite or not self.facts or self.facts["settings"] == self.settings:
            return None
        checkpoint = last_whole_checkpoint(self.path)
        elsewhere = f"choose another folder, with --from {self.path} to go on from its model"
        if checkpoint is None and self.facts["complete"]:
            raise ValueError(f"{self.path} has a run of another length, and no checkpoint to go on from: {elsewhere}")
        if checkpoint is not None and step_of(checkpoint) > total_steps:
            raise ValueError(
                f"the run in {self.path} has done {step_of(checkpoint)} steps, more than the {total_steps} that are "
                f"asked for: {elsewhere}"
            )
        return None if checkpoint is None else step_of(checkpoint)

    def has_results(self) -> bool:
        """Returns whether there is a checkpoint to go on from."""
        return last_whole_checkpoint(self.path) is not None

    def clear(self):
        """Removes the checkpoints, the model and the results of another run."""
        for prefix in ("", SET_ASIDE):
            for checkpoint in self.path.glob(f"{prefix}{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(checkpoint)
        model = (SAFE_WEIGHTS_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME, TRAINING_ARGS_NAME)
        for name in (*model, CURVES, COMPONENTS, EVALUATION_RESULTS_NAME):
            (self.path / name).unlink(missing_ok=True)

    def write(self, **facts):
        """Writes what is known of the run, with the versions of the libraries."""
        names = ("modeling-dino", "torch", "torchvision", "transformers", "accelerate", "pillow")
        super().write(versions={name: version(name) for name in names}, **facts)

    @contextmanager
    def failed_writes_explained(self) -> Iterator[None]:
        """Raises OSError, instead of the errors of several libraries, if something cannot be written."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            is_full = isinstance(error, OSError) and error.errno in FULL_DISK
            if not is_full and not any(sign in str(error) for sign in FAILED_WRITE):
                raise
            kept = last_whole_checkpoint(self.path) or "the beginning, since nothing was saved yet"
            reason = " ".join(str(error).split())[:200]
            raise OSError(
                f"cannot write to {self.path}: {reason}; make room and run it again: it goes on from {kept}"
            ) from error


@contextmanager
def opened_together(folder: TrainingFolder, trainer: Trainer, overwrite: bool) -> Iterator[None]:
    """
    Opens the folder of a run in its main process, and lets the others wait until it is. Raises what
    [`RunFolder.opened`] does, and OSError if something cannot be written.
    """
    with folder.opened(overwrite) if trainer.is_world_process_zero() else nullcontext():
        trainer.accelerator.wait_for_everyone()
        with folder.failed_writes_explained():
            yield


def without(settings: dict, names: Sequence[str]) -> dict:
    """Returns settings without some, which are named by dotted keys."""
    settings = copy.deepcopy(settings)
    for name in names:
        *sections, key = name.split(".")
        part = settings
        for section in sections:
            part = part.get(section) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part.pop(key, None)
    return settings
