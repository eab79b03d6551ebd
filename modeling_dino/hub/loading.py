# SPDX-License-Identifier: Apache-2.0
"""What the commands load: configuration, model and image processor behind a preset's name, a folder or a hub id."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoImageProcessor, ImageProcessingMixin
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from ..checkpoint_files import is_foreign
from ..configuration_dino import DinoConfig
from ..image_processing_dino import image_processor_config
from ..modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel, DinoPreTrainedModel
from ..runtime.extras import require


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL_HELP = "Folder or hub id of a saved model."


def load_config(name: str) -> DinoConfig:
    """The configuration of a preset, or of a model saved in a folder or on the hub, also by timm or transformers."""
    if not _is_saved_model(name):
        return DinoConfig.from_preset(name)
    if is_foreign(DinoConfig.get_config_dict(name)[0]):
        return load_model(name).config
    return DinoConfig.from_pretrained(name)


def load_model(
    name: str, dtype: torch.dtype | str = torch.float32, model_class: type[DinoPreTrainedModel] | None = DinoModel
) -> DinoPreTrainedModel:
    """
    A saved model, ready for inference.

    Args:
        name: a folder, or an id on the hub.
        dtype: `"auto"` for that of the weights.
        model_class: None for the class that was saved.

    Raises:
        ValueError: if it is the name of a preset, which has no weights, or not all weights are there.
        OSError: if there is no such model.
    """
    if not _is_saved_model(name):
        DinoConfig.from_preset(name)  # refuses an unknown name
        raise ValueError(f"{name} is a configuration without weights: pass the folder or hub id of a saved model")
    if model_class is None:
        model_class = _saved_class(DinoConfig.get_config_dict(name)[0])
    model, report = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} is not whole: it lacks {missing[0]} and {len(missing) - 1} more")
    return model.eval()


def _saved_class(config_dict: dict) -> type[DinoPreTrainedModel]:
    """The class that a `config.json` names; `DinoModel` for those of other libraries."""
    named = config_dict.get("architectures") or []
    return next((cls for cls in (DinoBackbone, DinoForImageClassification) if cls.__name__ in named), DinoModel)


def load_image_processor(
    name: str, config: DinoConfig, resize: str = "crop", image_size: int | None = None
) -> ImageProcessingMixin:
    """
    The transform saved with the model, with Pillow; where there is none, the original's evaluation transform.

    timm's and transformers' own are left aside: they crop less, or squash the aspect ratio.

    Args:
        resize, image_size: see [`resized_to`].

    Raises:
        ValueError: if the images cannot be resized so.
    """
    require("PIL")
    from ..data.evaluation_transform import resized_to

    return resized_to(_saved_image_processor(name, config), resize, image_size)


def _saved_image_processor(name: str, config: DinoConfig) -> ImageProcessingMixin:
    from ..data.evaluation_transform import DinoImageProcessor

    ours = image_processor_config(config)
    file = cached_file(name, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False)
    if file is None or is_foreign(DinoConfig.get_config_dict(name)[0]):
        return DinoImageProcessor(**ours)
    saved = json.loads(Path(file).read_text(encoding="utf-8"))
    if saved.get("image_processor_type") == ours["image_processor_type"]:
        return DinoImageProcessor.from_pretrained(name)
    return AutoImageProcessor.from_pretrained(name, backend="pil")


def model_fingerprint(model: DinoModel) -> str:
    """A hash of the weights, their names and their dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_saved_model(name: str) -> bool:
    """
    Whether a name stands for a saved model, and not for a preset: a folder, or an id on the hub, which has one slash.

    Raises:
        OSError: if it looks like a path, but there is no such folder; the hub's answer to it would not say so.
    """
    if Path(name).is_dir():
        return True
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise OSError(f"{name} is not a folder with a saved model")
    return "/" in name
