# SPDX-License-Identifier: Apache-2.0
"""Shows how far a training run is: a progress bar, and a line an epoch."""

import sys

from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback


# what is shown of the logs: name -> how it is called, and its format
SHOWN = {
    "loss": ("loss", ".3f"),
    "learning_rate": ("learning rate", ".2e"),
    "knn_top1": ("k-NN top-1", ".1f"),
    "knn_top5": ("top-5", ".1f"),
    "view_top1": ("retrieval of views", ".1f"),
}


class TrainingProgress(TrainerCallback):
    """
    Shows a progress bar of the steps on the main process, and at the end of an epoch a line of what was logged last.

    Both go to standard error, and are left out where the training arguments have `disable_tqdm`.
    """

    def __init__(self):
        self.bar: tqdm | None = None
        self.logged: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the bar, at the step from which the run goes on."""
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit=" steps",
                dynamic_ncols=True,
                mininterval=0.5,  # seconds
            )

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keeps what was logged, and shows the loss beside the bar."""
        self.logged |= {name: logs[name] for name in SHOWN if name in logs}
        if self.bar is not None and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Writes the line of the epoch."""
        if self.bar is not None and self.logged:
            values = ", ".join(f"{SHOWN[name][0]} {value:{SHOWN[name][1]}}" for name, value in self.logged.items())
            tqdm.write(f"epoch {round(state.epoch)} of {state.num_train_epochs}: {values}", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_progress(trainer: Trainer):
    """Replaces what the Trainer shows, which prints all that is logged as dictionaries, by [`TrainingProgress`]."""
    for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(callback)
    trainer.add_callback(TrainingProgress)
