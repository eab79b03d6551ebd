# SPDX-License-Identifier: Apache-2.0
"""Every DINO as one Hugging Face model. Importing this registers it with transformers' Auto classes."""

import sys
from importlib import import_module


# `python -m modeling_dino` imports this first, which takes seconds
if sys.argv[:1] == ["-m"] and " -m modeling_dino" in " ".join(sys.orig_argv):
    from dino_command import keep_interrupts_quiet

    keep_interrupts_quiet()

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .configuration_dino import DinoConfig
from .modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel, DinoModelOutput, DinoPreTrainedModel
from .training.self_distillation import DinoForPreTraining, DinoForPreTrainingOutput


__version__ = "0.1.0"

AutoConfig.register("dino", DinoConfig)
AutoModel.register(DinoConfig, DinoModel)
AutoBackbone.register(DinoConfig, DinoBackbone)
AutoModelForImageClassification.register(DinoConfig, DinoForImageClassification)
AutoModelForPreTraining.register(DinoConfig, DinoForPreTraining)


_LAZY = {  # what needs more than torch and transformers is imported when it is asked for
    "DinoImageProcessor": "data.evaluation_transform",
    "DinoTrainer": "training.trainer",
    "DinoTrainingArguments": "training.trainer",
    "load_features": "extraction.feature_files",
}


def __getattr__(name: str):
    """Imports what needs Pillow, accelerate or pyarrow when it is asked for."""
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DinoBackbone",
    "DinoConfig",
    "DinoForImageClassification",
    "DinoForPreTraining",
    "DinoForPreTrainingOutput",
    "DinoImageProcessor",
    "DinoModel",
    "DinoModelOutput",
    "DinoPreTrainedModel",
    "DinoTrainer",
    "DinoTrainingArguments",
    "load_features",
]
