# SPDX-License-Identifier: Apache-2.0
"""What the formats have in common: each is a subclass that says where it differs from a bare state dict.

To add a format, copy the module of one that is like it, and add the class to `FORMATS` in `recognition.py`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, first_names, is_state_dict, rename
from conversion_scripts.sizes import check_state_dict, infer_config
from modeling_dino.configuration_dino import DinoConfig
from modeling_dino.image_processing_dino import image_processor_config
from modeling_dino.modeling_dino import backbone_class


class CheckpointFormat:
    """A foreign format of checkpoints, in both directions."""

    library: str  # whose format it is, in messages
    origin: str  # what a configuration remembers of it
    keys: list[tuple[str, str]]  # pairs of our name and theirs, as for `rename`
    prefix: str = ""  # what their names may begin with, and need not
    not_dinos: tuple[str, ...] = ()  # beginnings of the names of tensors that a DINO does not have
    carried: tuple[str, ...] = ()  # what a file has beside its networks that a conversion makes use of
    head_types: tuple[str, ...] = ()  # the projection heads that it can hold
    classifiers: dict[bool, str] = {}  # beginning of a classifier's names, by whether the backbone has patch tokens
    has_patch_tokens: bool | None = None  # whether its backbones have patch tokens; None: some have, some have not
    fixed: dict = {}  # options of `DinoConfig` that the library's code fixes, and no file tells

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Returns whether a checkpoint is of this format."""
        raise NotImplementedError

    def ambiguities(self, checkpoint: Checkpoint, config: DinoConfig) -> list[str]:
        """Returns a line if a checkpoint may be of another format, whose library computes otherwise."""
        return []

    def network_of(self, checkpoint: Checkpoint, which: str) -> StateDict:
        """Returns the tensors of teacher or student, where a checkpoint has both; else those of its only network."""
        return checkpoint.contents

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        """Returns the arguments of `infer_config` that a checkpoint tells, but none of its tensors."""
        return {}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        """Returns the tensors under our names."""
        return rename(theirs, self.keys, inverse=True)

    def to_their_names(self, ours: StateDict) -> StateDict:
        """Returns the tensors under the format's names."""
        return rename(ours, self.keys)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        """Returns the checkpoint that holds tensors under the format's names; raises ValueError if none can."""
        return Checkpoint(tensors)

    def add_image_transform(self, packed: Checkpoint, transform: dict, config: DinoConfig) -> list[str]:
        """
        Puts an image transform into a packed checkpoint.

        Returns:
            notes, a line each, if the format has no place for it, and it is not the original's, which is implied.
        """
        if same_transform(transform, image_processor_config(config)):
            return []
        return [f"left out: the image transform, for which {self.library} has no place: {describe(transform)}"]

    def reference(self, checkpoint: Checkpoint, config: DinoConfig) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """
        Returns the checkpoint as the library's own model, images -> features; None where there is no library.

        Raises ImportError if it is not installed, ValueError if the checkpoint does not say which model it is.
        """
        return None

    def tensors_of(self, checkpoint: Checkpoint, which: str = "teacher") -> StateDict:
        """Returns the tensors of a network under the format's names, without those that a DINO does not have."""
        tensors = self.network_of(checkpoint, which)
        names = {name: name.removeprefix(self.prefix) for name in tensors}
        return {names[name]: tensors[name] for name in tensors if not names[name].startswith(self.not_dinos)}

    def to_dino(
        self, checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
    ) -> tuple[DinoConfig, StateDict]:
        """
        Converts a checkpoint of this format, and notes in it what is left out.

        Raises ValueError if it is not a whole DINO, or if the number of its attention heads cannot be told.
        """
        network = self.network_of(checkpoint, which)
        if not is_state_dict(network):
            raise ValueError(f"{checkpoint.source} is not of the format of {self.library}: it is no state dict")
        theirs = self.tensors_of(checkpoint, which)
        left_out = [name for name in network if name.removeprefix(self.prefix) not in theirs]
        if not is_state_dict(checkpoint.contents):
            left_out += [name for name in checkpoint.contents if name not in (which, *self.carried)]
        if left_out:
            checkpoint.notes.append(f"left out: {first_names(left_out)}")
        state_dict = self.to_our_names(theirs)
        settings = {**self.fixed, **self.settings_of(checkpoint, state_dict)}
        config = infer_config(state_dict, **{**settings, "num_heads": num_heads or settings.get("num_heads")})
        check_state_dict(config, state_dict)
        return config, state_dict

    def add_classifier(self, packed: Checkpoint, config: DinoConfig):
        """Says in a packed checkpoint which classes the classifier among its tensors has."""

    def holds_classifier(self, config: DinoConfig) -> bool:
        """Returns whether the library's models classify by the feature that a classifier of ours does."""
        is_plain = (config.classifier_features, config.classifier_last_blocks) == ("cls", 1)
        return is_plain and backbone_class(config).has_patch_tokens in self.classifiers

    def from_dino(
        self,
        config: DinoConfig,
        state_dict: StateDict,
        image_transform: dict | None = None,
        classifier: StateDict | None = None,
    ) -> Checkpoint:
        """
        Converts a DINO into a checkpoint of this format, with notes on what the format cannot hold.

        Args:
            image_transform: what images went through, as in `preprocessor_config.json`; by default the original's.
            classifier: `classifier.weight` and `classifier.bias`, if there is one.

        Raises:
            ValueError: if the format cannot hold the backbone.
        """
        has_patch_tokens = backbone_class(config).has_patch_tokens
        if self.has_patch_tokens not in (None, has_patch_tokens):
            raise ValueError(f"the format of {self.library} cannot hold a {config.backbone}")
        notes = []
        if config.head_type not in (None, *self.head_types):
            notes.append(f"left out: the {config.head_type} projection head, which {self.library} does not have")
            state_dict = {name: tensor for name, tensor in state_dict.items() if name.startswith("backbone.")}
        for option, value in (self.fixed if has_patch_tokens else {}).items():
            if (ours := getattr(config, option)) != value:
                notes.append(f"{option} is {ours!r}, but {self.library} computes with {value!r}")
                if option == "position_interpolation":
                    notes[-1] += f": features of images that are not {config.image_size} px differ a little"
        tensors = self.to_their_names(state_dict)
        if classifier and self.holds_classifier(config):
            beginning = self.classifiers[has_patch_tokens]
            tensors |= {name.replace("classifier.", beginning): tensor for name, tensor in classifier.items()}
        elif classifier:
            notes.append(f"left out: the classifier of {config.num_labels} classes, which {self.library} cannot hold")
        packed = self.pack(config, tensors)
        if classifier and self.holds_classifier(config):
            self.add_classifier(packed, config)
        notes += self.add_image_transform(packed, image_transform or image_processor_config(config), config)
        return replace(packed, notes=notes)


def same_transform(one: dict, other: dict) -> bool:
    """Returns whether two image transforms give the same pixels."""
    return {**one, "do_convert_rgb": None} == {**other, "do_convert_rgb": None}


def describe(transform: dict) -> str:
    """Returns an image transform in words, for those who must make it elsewhere."""
    names = ("size", "crop_size") if transform.get("do_center_crop") else ("size",)
    names += ("image_mean", "image_std")
    return ", ".join(f"{name} {transform.get(name)}" for name in names)
