# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Every DINO as one Hugging Face model. Importing this registers it with transformers' Auto classes."""

from importlib import import_module

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .configuration_dino import DinoConfig
from .feature_files import load_features
from .modeling_dino import (
    DinoBackbone,
    DinoForImageClassification,
    DinoForPreTraining,
    DinoForPreTrainingOutput,
    DinoModel,
    DinoModelOutput,
    DinoPreTrainedModel,
)


__version__ = "0.1.0"

AutoConfig.register("dino", DinoConfig)
AutoModel.register(DinoConfig, DinoModel)
AutoBackbone.register(DinoConfig, DinoBackbone)
AutoModelForImageClassification.register(DinoConfig, DinoForImageClassification)
AutoModelForPreTraining.register(DinoConfig, DinoForPreTraining)


_LAZY = {  # what needs more than torch and transformers is imported when it is asked for
    "DinoImageProcessor": "evaluation_transform",
    "DinoTrainer": "trainer",
    "DinoTrainingArguments": "trainer",
}


def __getattr__(name: str):
    """What needs Pillow or accelerate is imported when it is asked for."""
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
