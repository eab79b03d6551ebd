# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run: its checkpoints, and what is known of the run.

run.json              settings and versions; at the end results, too
checkpoint-N/         the state at step N, from which the run goes on when it was stopped
model.safetensors     the model at the end; config.json and preprocessor_config.json beside it
curves.png            what was logged, of pretraining
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..hub.evaluation_results import EVALUATION_RESULTS_NAME
from ..runtime.run_folder import RunFolder
from .checkpoints import SET_ASIDE, last_whole_checkpoint


CURVES = "curves.png"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# in the messages of PyTorch and safetensors, which raise other errors than OSError
FAILED_WRITE = ("No space left", "File too large", "quota exceeded", "PytorchStreamWriter", "unexpected pos")


class TrainingFolder(RunFolder):
    """The folder of a pretraining run, and of any other that leaves the same files."""

    file_name, format, contents, command = "run.json", "modeling-dino run 1", "a run", "dino pretrain"

    def has_results(self) -> bool:
        """Returns whether there is a checkpoint to go on from."""
        return last_whole_checkpoint(self.path) is not None

    def clear(self):
        """Removes the checkpoints, the model and the results of another run."""
        for prefix in ("", SET_ASIDE):
            for checkpoint in self.path.glob(f"{prefix}{PREFIX_CHECKPOINT_DIR}-*"):
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
