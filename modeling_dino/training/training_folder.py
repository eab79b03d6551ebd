# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run: its checkpoints, and what is known of the run.

run.json              settings and versions; at the end results, too
checkpoint-N/         the state at step N, from which the run goes on when it was stopped
model.safetensors     the model at the end; config.json and preprocessor_config.json beside it
curves.png            what was logged, of pretraining
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoint_files import read_tensors
from ..data.image_source import IMAGES_CHANGED
from ..hub.evaluation_results import EVALUATION_RESULTS_NAME
from ..runtime.run_folder import RunFolder


CURVES = "curves.png"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# in the messages of PyTorch and safetensors, which raise other errors than OSError
FAILED_WRITE = ("No space left", "File too large", "quota exceeded", "PytorchStreamWriter", "unexpected pos")


class TrainingFolder(RunFolder):
    """The folder of a pretraining run, and of any other that leaves the same files."""

    file_name, format, contents, command = "run.json", "modeling-dino run 1", "a run", "dino pretrain"
    explanations = {"data.fingerprint": IMAGES_CHANGED}

    def has_results(self) -> bool:
        """Returns whether there is a checkpoint to go on from."""
        return last_whole_checkpoint(self.path) is not None

    def clear(self):
        """Removes the checkpoints, the model and the results of another run."""
        for checkpoint in self.path.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(checkpoint)
        for name in (CURVES, "model.safetensors", "config.json", "training_args.bin", EVALUATION_RESULTS_NAME):
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


def whole_checkpoints(run: str | os.PathLike) -> list[str]:
    """Returns the checkpoints of a run that were saved to their end, the last one first."""
    folders = [folder for folder in Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if is_whole(folder)]
    return [str(path) for path in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)]


def is_whole(checkpoint: Path) -> bool:
    """Returns whether a checkpoint has the file that is written last, which a killed process does not write."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return checkpoint.name.rpartition("-")[2].isdigit()


def last_whole_checkpoint(run: str | os.PathLike) -> str | None:
    """Returns the last checkpoint of a run that was saved to its end, if any."""
    return next(iter(whole_checkpoints(run)), None)


def last_good_checkpoint(run: str | os.PathLike) -> str | None:
    """Returns the last checkpoint of a run whose weights are all finite, if any."""
    return next(filter(is_finite, whole_checkpoints(run)), None)


def is_finite(checkpoint: str) -> bool:
    """Returns whether all weights are finite numbers."""
    try:
        return all(bool(torch.isfinite(tensor).all()) for tensor in read_tensors(checkpoint, "").values())
    except OSError:
        return False
