# SPDX-License-Identifier: Apache-2.0
"""The commands that train: pretrain and finetune."""

import typer

from ..training.options import FinetuneOptions, PretrainOptions
from .commands import add_command


app = typer.Typer()


def pretrain(options: PretrainOptions):
    """Pretrains a model by a recipe; run again, it goes on where it stopped."""
    from ..training.pretrain import pretrain

    return pretrain(options)


def finetune(options: FinetuneOptions):
    """Trains a classifier and its backbone, and tests it; run again, it goes on where it stopped."""
    from ..training.finetune import finetune

    return finetune(options)


for command in (pretrain, finetune):
    add_command(app, command)
