# SPDX-License-Identifier: Apache-2.0
"""Loads the configuration, model and image processor of a preset, a folder or a hub id, for the commands."""

import hashlib
from pathlib import Path

import torch
from transformers import ImageProcessingMixin

from ..checkpoint_files import check_finite_weights, is_foreign, refuse_weights_file
from ..configuration_dino import DinoConfig
from ..image_processing_dino import DEFAULTS, image_processor_config, read_image_transform
from ..modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel, DinoPreTrainedModel
from ..runtime.extras import require


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPORT_FILE = "export.json"  # in the folder of a model that `dino export` has made a graph of
MODEL_HELP = "Folder or hub id of a saved model."


def load_config(name: str) -> DinoConfig:
    """Loads the configuration of a preset, or of a model that is saved in a folder or on the hub, in any library."""
    if not _is_saved_model(name):
        return DinoConfig.from_preset(name)
    if is_foreign(DinoConfig.get_config_dict(name)[0]):
        return load_model(name).config
    return DinoConfig.from_pretrained(name)


def load_model(
    name: str, dtype: torch.dtype | str = torch.float32, model_class: type[DinoPreTrainedModel] | None = DinoModel
) -> DinoPreTrainedModel:
    """
    Loads a saved model, ready for inference.

    Args:
        name: a folder, or an id on the hub.
        dtype: `"auto"` for that of the weights.
        model_class: None for the class that `config.json` names, or `DinoModel` if it names none.

    Raises:
        ValueError: if it is the name of a preset, which has no weights, or weights are missing or not finite.
        OSError: if there is no such model.
    """
    if not _is_saved_model(name):
        DinoConfig.from_preset(name)  # raises for an unknown name
        raise ValueError(f"{name} is a configuration without weights: pass the folder or hub id of a saved model")
    if is_exported(name):
        raise ValueError(f"{name} is exported, and has no weights for PyTorch: name the model that it was made from")
    if model_class is None:
        named = DinoConfig.get_config_dict(name)[0].get("architectures") or []
        model_class = next((c for c in (DinoBackbone, DinoForImageClassification) if c.__name__ in named), DinoModel)
    model, report = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} is not whole: it lacks {missing[0]} and {len(missing) - 1} more")
    check_finite_weights(model.state_dict(), name)
    return model.eval()


def is_exported(name: str) -> bool:
    """Returns whether a folder holds what `dino export` makes of a model: a graph, without weights for PyTorch."""
    return (Path(name) / EXPORT_FILE).is_file()


def load_image_processor(
    name: str, config: DinoConfig, resize: str = "crop", image_size: int | None = None
) -> ImageProcessingMixin:
    """
    Loads the transform that lies beside the weights, with Pillow: ours, or that of transformers or timm. Without one
    it is the evaluation transform of the original.

    Args:
        resize, image_size: see [`resized_to`].

    Raises:
        ValueError: if a value of the transform cannot work, or the images cannot be resized so.
    """
    require("PIL")
    from ..data.evaluation_transform import DinoImageProcessor, resized_to

    transform = read_image_transform(name, config.num_channels) or image_processor_config(config)
    if (kind := transform.get("image_processor_type")) != "BitImageProcessor":
        raise ValueError(f"{name} has an image processor of another kind, {kind}: known are {', '.join(DEFAULTS)}")
    if wrong := [key for key in transform if callable(getattr(DinoImageProcessor, key, None))]:
        raise ValueError(f"{name} has an image transform that is damaged: {wrong[0]!r} is not a value of one")
    processor = DinoImageProcessor(**transform)
    return resized_to(processor, resize, image_size)


def fixed_size(processor: ImageProcessingMixin) -> tuple[int, int] | None:
    """Returns height and width of all images after a transform; None if they may differ."""
    size = dict(processor.crop_size if processor.do_center_crop else processor.size if processor.do_resize else {})
    return (size["height"], size["width"]) if size.get("height") and size.get("width") else None


def model_fingerprint(model: DinoModel) -> str:
    """Computes a hash of the weights, their names and their dtypes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_saved_model(name: str) -> bool:
    """
    Returns whether a name is a folder or an id on the hub, which has one slash, and not a preset. Raises OSError if it
    looks like a path, but there is no such folder; the answer of the hub would not say so.
    """
    if Path(name).is_dir():
        return True
    refuse_weights_file(name)
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise OSError(f"{name} is not a folder with a saved model")
    return "/" in name
