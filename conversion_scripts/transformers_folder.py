# SPDX-License-Identifier: Apache-2.0
"""What the folders of transformers' models have in common: a `config.json` that names the model and its classes."""

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from conversion_scripts.checkpoint import Checkpoint, StateDict
from conversion_scripts.checkpoint_format import CheckpointFormat
from modeling_dino.configuration_dino import DinoConfig


def as_floats(config: DinoConfig, options: dict[str, str]) -> dict[str, float | None]:
    """Returns options under their names, as the floats that their configurations ask for."""
    values = {theirs: getattr(config, ours) for ours, theirs in options.items()}
    return {name: None if value is None else float(value) for name, value in values.items()}


class TransformersFolder(CheckpointFormat):
    """Folders of a class of transformers, which `from_pretrained` of that class loads."""

    model_types: tuple[str, ...]  # as in `config.json`

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Goes by a folder's configuration, unless the tensors are timm's."""
        is_theirs = checkpoint.config is not None and checkpoint.config.get("model_type") in self.model_types
        return is_theirs and "patch_embed.proj.weight" not in checkpoint.contents

    def their_config(self, checkpoint: Checkpoint) -> PreTrainedConfig:
        """Returns the configuration of a folder; raises ValueError if there is none, or the activation is another."""
        from transformers import CONFIG_MAPPING

        if checkpoint.config is None:
            raise ValueError(f"{checkpoint.source} is not of the format of {self.library}: it is no folder")
        model_type = checkpoint.config.get("model_type")
        theirs = CONFIG_MAPPING[model_type if model_type in self.model_types else self.model_types[0]].from_dict(
            checkpoint.config
        )
        activation = "silu" if getattr(theirs, "use_gated_mlp", False) else "gelu"
        if theirs.hidden_act != activation:
            raise ValueError(f"hidden_act is {theirs.hidden_act!r}, but DINO's ViTs have {activation!r}")
        return theirs

    def classifier_of(self, checkpoint: Checkpoint) -> StateDict:
        names = [f"{beginning}{part}" for beginning in self.classifiers.values() for part in ("weight", "bias")]
        return {name: checkpoint.contents[name] for name in names if name in checkpoint.contents}

    def add_classes(self, checkpoint: Checkpoint, config: DinoConfig):
        theirs = self.their_config(checkpoint)
        config.id2label, config.label2id = theirs.id2label, theirs.label2id
        config.classifier_features = self.classifier_features

    def add_classifier(self, packed: Checkpoint, config: DinoConfig):
        """Names the class, in which the backbone has a prefix, and the labels."""
        (model_class,) = packed.config["architectures"]
        packed.config["architectures"] = [model_class.replace("Model", "ForImageClassification")]
        packed.config |= {"id2label": config.id2label, "label2id": config.label2id}
        prefix = f"{packed.config['model_type']}."
        tensors = packed.contents
        packed.contents = {n if n.startswith("classifier.") else f"{prefix}{n}": t for n, t in tensors.items()}

    def add_image_transform(self, packed: Checkpoint, transform: dict, config: DinoConfig) -> list[str]:
        packed.image_transform = transform
        return []

    def reference(self, checkpoint: Checkpoint, config: DinoConfig) -> Callable[[torch.Tensor], torch.Tensor]:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(checkpoint.source).eval()
        return lambda images: model(images).pooler_output
