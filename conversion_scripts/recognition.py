# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a checkpoint, and reads it as a model of ours."""

import os
from dataclasses import dataclass, field, replace

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, first_names, read_checkpoint
from conversion_scripts.checkpoint_format import CheckpointFormat, family_of
from conversion_scripts.lesson import Lesson
from conversion_scripts.original import Original, networks_of_run
from conversion_scripts.original_dinov2 import OriginalDinov2
from conversion_scripts.original_dinov3 import OriginalDinov3
from conversion_scripts.sizes import check_state_dict
from conversion_scripts.timm_convnext import TimmConvNext
from conversion_scripts.timm_dinov2 import TimmDinov2
from conversion_scripts.timm_dinov3 import TimmDinov3
from conversion_scripts.timm_models import TimmModels
from conversion_scripts.timm_xcit import TimmXcit
from conversion_scripts.torchvision_resnets import TorchvisionResNets
from conversion_scripts.transformers_convnext import TransformersConvNext
from conversion_scripts.transformers_dinov2 import TransformersDinov2
from conversion_scripts.transformers_dinov3 import TransformersDinov3
from conversion_scripts.transformers_vit import TransformersViT
from conversion_scripts.wrappers import unwrap
from modeling_dino.checkpoint_files import NETWORKS, check_finite_weights, network_prefix
from modeling_dino.configuration_dino import DinoConfig
from modeling_dino.image_processing_dino import read_image_transform
from modeling_dino.modeling_dino import DinoForImageClassification, DinoModel, backbone_class, without_head


# the formats of each library, in the order in which they are tried: those known by a folder's configuration or by
# names of their own come first
FORMATS: dict[str, tuple[CheckpointFormat, ...]] = {
    "transformers": (TransformersDinov2(), TransformersDinov3(), TransformersConvNext(), TransformersViT()),
    "lesson": (Lesson(),),
    "timm": (TimmDinov2(), TimmDinov3(), TimmConvNext(), TimmXcit(), TimmModels()),
    "original": (OriginalDinov3(), OriginalDinov2(), Original()),
    "torchvision": (TorchvisionResNets(),),
}


@dataclass
class Conversion:
    """A checkpoint that was recognised: the name of its format, and its configuration and tensors as ours."""

    checkpoint: Checkpoint
    format: str
    config: DinoConfig
    state_dict: StateDict
    classifier: StateDict = field(default_factory=dict)  # of a `DinoForImageClassification`: `classifier.weight`, …
    image_transform: dict | None = None  # as in `preprocessor_config.json`; None if the source has none

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(tensor.dtype for tensor in self.state_dict.values() if tensor.is_floating_point())

    def build_model(self) -> DinoModel:
        """Builds a model around the tensors as they are, in their dtype."""
        model = DinoModel.from_pretrained(None, config=self.config, state_dict=self.state_dict, dtype=self.dtype)
        model.image_transform = self.image_transform
        return model.eval()

    def build_classifier(self) -> DinoForImageClassification:
        """Builds the model with its classifier."""
        state_dict = {**self.state_dict, **self.classifier}
        model = DinoForImageClassification.from_pretrained(
            None, config=self.config, state_dict=state_dict, dtype=self.dtype
        )
        model.image_transform = self.image_transform
        return model.eval()

    def __str__(self) -> str:
        size = f"{self.config.backbone}, {self.config.hidden_size} wide"
        has_patches = backbone_class(self.config).has_patch_tokens
        patch = f", patch {self.config.patch_size}" if has_patches else ""
        head = "no head" if self.config.head_type is None else f"{self.config.head_type} head"
        head += " and a head of the patches" if self.config.patch_head else ""
        classifier = f", classifier of {self.config.num_labels} classes" if self.classifier else ""
        return f"recognised {self.checkpoint.source} as {self.format}: {size}{patch}, {head}{classifier}"


def recognise(checkpoint: Checkpoint) -> str:
    """Returns the name of a checkpoint's library; raises ValueError if its format is none of those known."""
    model_type = (checkpoint.config or {}).get("model_type")
    if model_type == DinoConfig.model_type:
        return "dino"
    for name, formats in FORMATS.items():
        if any(checkpoint_format.matches(checkpoint) for checkpoint_format in formats):
            return name
    if model_type is not None:
        raise ValueError(f"{checkpoint.source} is a model of type {model_type!r}, not a DINO")
    names = first_names(checkpoint.contents) or "none"
    raise ValueError(f"{checkpoint.source} is not a DINO of any known format; its first keys are {names}")


def format_of(checkpoint: Checkpoint, library: str) -> CheckpointFormat:
    """Returns the format that a checkpoint of a library has; the last one if it has none of them."""
    formats = FORMATS[library]
    return next((one for one in formats if one.matches(checkpoint)), formats[-1])


def format_for(config: DinoConfig, library: str) -> CheckpointFormat:
    """Returns the format in which a library holds a model; the last one, which then refuses it, if it has none."""
    formats = FORMATS[library]
    return next((one for one in formats if family_of(config) in one.families), formats[-1])


def to_dino(
    source: str, which: str = "teacher", num_heads: int | None = None, from_format: str | None = None, **location
) -> Conversion:
    """
    Reads a checkpoint of any format.

    Args:
        source: file, folder, or id on the hub.
        which: `"teacher"` or `"student"` of a full checkpoint.
        num_heads: attention heads, where neither the width (64 a head) nor a configuration tells.
        from_format: a name in `FORMATS`; by default the format is recognised.
        location: `revision`, `token`, `cache_dir`, … for the hub.

    Raises:
        ValueError: if it is not a whole DINO of a known format, unsafe to load, or not finite; in one line.
        OSError: if there is no such thing.
    """
    if which not in NETWORKS:
        raise ValueError(f"unknown network {which!r}: allowed are {', '.join(NETWORKS)}")
    checkpoint = read_checkpoint(source, **location)
    if checkpoint.config is None:
        contents, notes = unwrap(checkpoint.contents)
        checkpoint = replace(checkpoint, contents=contents, notes=notes)
    name = from_format or recognise(checkpoint)
    classifier: StateDict = {}
    if name == "dino":
        config, state_dict, classifier = own_network(checkpoint, which)
    else:
        checkpoint_format = format_of(checkpoint, name)
        config, state_dict = checkpoint_format.to_dino(checkpoint, which, num_heads)
        config.weights_source = weights_source(checkpoint, checkpoint_format, which)
        config.weights_license = checkpoint_format.license_of(checkpoint)
        if classifier := checkpoint_format.classifier_of(checkpoint):
            checkpoint_format.add_classes(checkpoint, config)
        if from_format is None:
            checkpoint.notes += checkpoint_format.ambiguities(checkpoint, config)
    check_classifier(config, classifier)
    check_finite_weights({**state_dict, **classifier}, source)
    has_place = checkpoint.config is not None  # for an image transform; a file has none
    transform = read_image_transform(source, config.num_channels, **location) if has_place else None
    return Conversion(checkpoint, name, config, state_dict, classifier, transform)


def own_network(checkpoint: Checkpoint, which: str) -> tuple[DinoConfig, StateDict, StateDict]:
    """
    Returns configuration, tensors, and those of a classifier, of a folder of ours. Raises ValueError if they do not
    belong together.
    """
    config, contents = DinoConfig.from_dict(checkpoint.config), checkpoint.contents
    prefix = network_prefix(list(contents), None) and f"{which}."  # there are two networks after pretraining
    tensors = {name.removeprefix(prefix): tensor for name, tensor in contents.items() if name.startswith(prefix)}
    is_backbone = not any(name.startswith("head.") for name in tensors)
    config = without_head(config) if is_backbone else config
    classifier = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
    state_dict = {name: tensor for name, tensor in tensors.items() if name not in classifier}
    check_state_dict(config, state_dict)
    return config, state_dict, classifier


def check_classifier(config: DinoConfig, classifier: StateDict):
    """Raises ValueError if a classifier is not that of the configuration."""
    expected = {"classifier.weight": (config.num_labels, config.classifier_width)}
    expected["classifier.bias"] = expected["classifier.weight"][:1]
    if classifier and {name: tuple(tensor.shape) for name, tensor in classifier.items()} != expected:
        raise ValueError(f"the classifier is not that of {config.num_labels} classes, as the configuration says")


def weights_source(checkpoint: Checkpoint, checkpoint_format: CheckpointFormat, which: str) -> str:
    """Says where weights came from, for others: the id on the hub, or a name without the folders it lay in."""
    source = checkpoint.source
    name = os.path.basename(os.path.abspath(source)) if os.path.exists(source) else source
    network = f", its {which}" if networks_of_run(checkpoint) else ""
    return f"{name} ({checkpoint_format.origin}{network})"
