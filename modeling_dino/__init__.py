# SPDX-License-Identifier: Apache-2.0
"""Every DINO as one Hugging Face model. Importing this registers it with transformers' Auto classes."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING


# `python -m modeling_dino` imports this first, which takes seconds
if sys.argv[:1] == ["-m"] and " -m modeling_dino" in " ".join(sys.orig_argv):
    from dino_command import keep_interrupts_quiet

    keep_interrupts_quiet()

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .configuration_dino import DinoConfig
from .modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel, DinoModelOutput, DinoPreTrainedModel
from .training.objectives import Objectives
from .training.self_distillation import DinoForPreTraining, DinoForPreTrainingOutput


if TYPE_CHECKING:  # type checkers read these, and Python `_LAZY`
    from conversion_scripts.convert import convert_checkpoint

    from .benchmark.run import run_bench
    from .data.evaluation_transform import DinoImageProcessor
    from .demo.run import run_demo
    from .evaluation.knn_classification import evaluate_knn
    from .evaluation.linear import evaluate_linear
    from .evaluation.retrieval import retrieve
    from .evaluation.segmentation import segment_video
    from .export.export import export_model
    from .extraction.extract import extract_features
    from .extraction.feature_files import load_features
    from .hub.info import show_info
    from .hub.pushing import push_model
    from .pictures.attention import draw_attention
    from .pictures.components import draw_pca
    from .pictures.matches import match_images
    from .report.page import write_report
    from .training.arguments import DinoTrainingArguments
    from .training.finetune import finetune
    from .training.multi_crop import MultiCrop, MultiCropConfig
    from .training.pretrain import pretrain
    from .training.recipes import load_recipe
    from .training.trainer import DinoTrainer
    from .training.training_data import MultiCropDataset

__version__ = "0.1.0"

AutoConfig.register("dino", DinoConfig)
AutoModel.register(DinoConfig, DinoModel)
AutoBackbone.register(DinoConfig, DinoBackbone)
AutoModelForImageClassification.register(DinoConfig, DinoForImageClassification)
AutoModelForPreTraining.register(DinoConfig, DinoForPreTraining)


# what needs more than torch and transformers is imported from these modules when it is asked for
_LAZY = {
    "DinoImageProcessor": "modeling_dino.data.evaluation_transform",
    "DinoTrainer": "modeling_dino.training.trainer",
    "DinoTrainingArguments": "modeling_dino.training.arguments",
    "MultiCrop": "modeling_dino.training.multi_crop",
    "MultiCropConfig": "modeling_dino.training.multi_crop",
    "MultiCropDataset": "modeling_dino.training.training_data",
    "convert_checkpoint": "conversion_scripts.convert",
    "draw_attention": "modeling_dino.pictures.attention",
    "draw_pca": "modeling_dino.pictures.components",
    "evaluate_knn": "modeling_dino.evaluation.knn_classification",
    "evaluate_linear": "modeling_dino.evaluation.linear",
    "export_model": "modeling_dino.export.export",
    "extract_features": "modeling_dino.extraction.extract",
    "finetune": "modeling_dino.training.finetune",
    "load_features": "modeling_dino.extraction.feature_files",
    "load_recipe": "modeling_dino.training.recipes",
    "match_images": "modeling_dino.pictures.matches",
    "pretrain": "modeling_dino.training.pretrain",
    "push_model": "modeling_dino.hub.pushing",
    "retrieve": "modeling_dino.evaluation.retrieval",
    "run_bench": "modeling_dino.benchmark.run",
    "run_demo": "modeling_dino.demo.run",
    "segment_video": "modeling_dino.evaluation.segmentation",
    "show_info": "modeling_dino.hub.info",
    "write_report": "modeling_dino.report.page",
}


def __getattr__(name: str):
    """Imports what needs Pillow, accelerate or pyarrow when it is asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the public names; imported modules are attributes, too, but none of them."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


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
    "MultiCrop",
    "MultiCropConfig",
    "MultiCropDataset",
    "Objectives",
    "convert_checkpoint",
    "draw_attention",
    "draw_pca",
    "evaluate_knn",
    "evaluate_linear",
    "export_model",
    "extract_features",
    "finetune",
    "load_features",
    "load_recipe",
    "match_images",
    "pretrain",
    "push_model",
    "retrieve",
    "run_bench",
    "run_demo",
    "segment_video",
    "show_info",
    "write_report",
]
