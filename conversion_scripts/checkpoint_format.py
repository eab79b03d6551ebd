# SPDX-License-Identifier: Apache-2.0
"""What the formats have in common: each is a subclass that says where it differs from a bare state dict.

To add a format, copy the module of one that is like it, and add the class to `FORMATS` in `recognition.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, first_names, is_state_dict, rename
from conversion_scripts.sizes import check_state_dict, infer_config
from modeling_dino.configuration_dino import CONVNEXT_SIZES, RESNET_DEPTHS, XCIT_SIZES, DinoConfig
from modeling_dino.image_processing_dino import image_processor_config
from modeling_dino.positions import RotaryPositions


PERIODS = "backbone.rope_embed.periods"
# our fused `attn.qkv` holds these one below the other, in this order
QUERY_KEY_VALUE = (".attn.query.", ".attn.key.", ".attn.value.")
# gate and value of SwiGLU, which some formats have as one tensor in this order
GATE_VALUE = (".mlp.w1.", ".mlp.w2.")
# parts of a backbone that only its training needs, which few formats have a place for
OF_TRAINING = ("backbone.mask_token", "backbone.local_cls_norm.")
# options that the ViTs, and the ConvNeXts, of most libraries have, and no others: for `needed`
VIT_OF_DINO = {"use_rms_norm": False, "untie_cls_and_patch_norms": False}
VIT_OF_DINOV3 = {**VIT_OF_DINO, "rope_min_period": None, "rope_coordinates": "separate"}
CONVNEXT_STAGES = {"num_hidden_layers": 4}
# options of all published models of a family that no tensor tells, and that do not change their features: how tokens
# start, which images they were evaluated on, and the kind of the head's last layer (whose gains, if it has any, are
# trained, also where they are all 1)
OF_DINOV2 = {"token_init_std": 1e-6, "evaluation_size": 224, "norm_last_layer": False}
OF_DINOV3 = {"image_resize": "square", "head_weight_norm": False}
# of the satellite images of DINOv3
IMAGES_OF_SAT = {"channel_means": [0.430, 0.411, 0.296], "channel_deviations": [0.213, 0.156, 0.143]}


class CheckpointFormat:
    """A foreign format of checkpoints, in both directions."""

    library: str  # whose format it is, in messages
    origin: str  # what a configuration remembers of it
    license: str | None = None  # of all weights that are published in it, as the hub calls it
    families: tuple[str, ...]  # kinds of backbones that it can hold, as `family_of` names them
    keys: list[tuple[str, str]]  # pairs of our name and theirs, as for `rename`
    prefixes: tuple[str, ...] = ()  # what their names may begin with, and need not
    not_dinos: tuple[str, ...] = ()  # beginnings of the names of tensors that a DINO does not have
    no_place: tuple[str, ...] = OF_TRAINING  # beginnings of the names of our tensors that it has no place for
    carried: tuple[str, ...] = ()  # what a file has beside its networks that a conversion makes use of
    head_types: tuple[str, ...] = ()  # the projection heads that it can hold
    holds_patch_heads = False  # whether it can hold the patches' own head
    classifiers: Mapping[str, str] = {}  # beginning of a classifier's names, by the family of the backbone
    classifier_features = "cls"  # what its classifiers classify, as in `DinoConfig`
    needed: Mapping[str, object] = {}  # options of `DinoConfig` that its backbones must have
    fixed: Mapping[str, object] = {}  # options of transformers that the library's code fixes, and no file tells

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Returns whether a checkpoint is of this format."""
        raise NotImplementedError

    def ambiguities(self, checkpoint: Checkpoint, config: DinoConfig) -> list[str]:
        """Returns a line if a checkpoint may be of another format, whose library computes otherwise."""
        return []

    def network_of(self, checkpoint: Checkpoint, which: str) -> StateDict:
        """Returns the tensors of teacher or student, where a checkpoint has both; else those of its only network."""
        return checkpoint.contents

    def fixed_options(self, state_dict: StateDict) -> dict:
        """Returns the options of `DinoConfig` that the library's code fixes for a model with tensors of our names."""
        return dict(self.fixed) if "backbone.cls_token" in state_dict else {}

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        """Returns the arguments of `infer_config` that a checkpoint tells, but none of its tensors."""
        return {}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        """Returns the tensors under our names."""
        return rename(theirs, self.keys, inverse=True)

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        """Returns the tensors under the format's names."""
        return rename(ours, self.keys)

    def needed_of(self, config: DinoConfig) -> dict:
        """Returns the options that the format's backbones of this kind have, and no others."""
        return self.needed

    def check_holds(self, config: DinoConfig, state_dict: StateDict):
        """Raises ValueError if the format cannot hold a backbone of one of its families."""
        for option, value in self.needed_of(config).items():
            if (ours := getattr(config, option)) != value:
                raise ValueError(
                    f"the format of {self.library} cannot hold a {config.backbone} with {option}={ours!r}, only with "
                    f"{value!r}"
                )

    def losses(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        """Returns what of a backbone the format does not keep, beside the tensors in `no_place`, a line each."""
        return []

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
        tensors = {self.without_prefix(name): tensor for name, tensor in self.network_of(checkpoint, which).items()}
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(self.not_dinos)}

    def without_prefix(self, name: str) -> str:
        """Returns one of their names without what it may begin with."""
        return name.removeprefix(next((prefix for prefix in self.prefixes if name.startswith(prefix)), ""))

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
        known = {*theirs, *self.classifier_of(checkpoint)}
        left_out = [name for name in network if self.without_prefix(name) not in known]
        if not is_state_dict(checkpoint.contents):
            left_out += [name for name in checkpoint.contents if name not in (which, *self.carried)]
        if left_out:
            checkpoint.notes.append(f"left out: {first_names(left_out)}")
        state_dict = self.to_our_names(theirs)
        settings = {**self.fixed_options(state_dict), **self.settings_of(checkpoint, state_dict)}
        config = infer_config(state_dict, **{**settings, "num_heads": num_heads or settings.get("num_heads")})
        if config.has_rotary_positions and PERIODS not in state_dict:
            state_dict[PERIODS] = computed_periods(config)
        check_state_dict(config, state_dict)
        checkpoint.notes += other_than_original(config)
        return config, state_dict

    def license_of(self, checkpoint: Checkpoint) -> str | None:
        """Returns the license of a checkpoint's weights, as the hub calls it; None if it is not known."""
        return self.license

    def classifier_of(self, checkpoint: Checkpoint) -> StateDict:
        """Returns the tensors of a classifier under our names, `classifier.*`, where a checkpoint has one."""
        return {}

    def add_classes(self, checkpoint: Checkpoint, config: DinoConfig):
        """Sets the options of a configuration that a checkpoint's classifier goes by."""

    def add_classifier(self, packed: Checkpoint, config: DinoConfig):
        """Says in a packed checkpoint which classes the classifier among its tensors has."""

    def holds_classifier(self, config: DinoConfig) -> bool:
        """Returns whether the library's models classify by the feature that a classifier of ours does."""
        features = (config.classifier_features, config.classifier_last_blocks)
        return features == (self.classifier_features, 1) and family_of(config) in self.classifiers

    def without_heads_it_lacks(self, config: DinoConfig, state_dict: StateDict) -> tuple[StateDict, list[str]]:
        """Returns the tensors without the projection heads that the format cannot hold, and a note on each of them."""
        notes, left_out = [], []
        if config.head_type not in (None, *self.head_types):
            notes.append(f"left out: the {config.head_type} projection head, which {self.library} does not have")
            left_out.append("head.")
        if config.patch_head and (notes or not self.holds_patch_heads):
            notes.append(f"left out: the projection head of the patches, which {self.library} does not have")
            left_out.append("patch_head.")
        return {name: t for name, t in state_dict.items() if not name.startswith(tuple(left_out))}, notes

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
        if family_of(config) not in self.families:
            raise ValueError(f"the format of {self.library} cannot hold a {config.backbone}")
        self.check_holds(config, state_dict)
        state_dict, notes = self.without_heads_it_lacks(config, state_dict)
        if left_out := [name for name in state_dict if name.startswith(self.no_place)]:
            notes.append(f"left out: {first_names(left_out)}, for which {self.library} has no place")
        notes += self.losses(config, state_dict) + self.other_options(config, state_dict)
        kept = {name: tensor for name, tensor in state_dict.items() if name not in left_out}
        tensors = self.to_their_names(kept, config)
        holds_classifier = bool(classifier) and self.holds_classifier(config)
        if holds_classifier:
            beginning = self.classifiers[family_of(config)]
            tensors |= {name.replace("classifier.", beginning): tensor for name, tensor in classifier.items()}
        elif classifier:
            notes.append(f"left out: the classifier of {config.num_labels} classes, which {self.library} cannot hold")
        packed = self.pack(config, tensors)
        if holds_classifier:
            self.add_classifier(packed, config)
        notes += self.add_image_transform(packed, image_transform or image_processor_config(config), config)
        return replace(packed, notes=notes)

    def other_options(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        """Returns a line for each option that the library's code fixes to another value than the model has."""
        notes = []
        for option, value in self.fixed_options(state_dict).items():
            if (ours := getattr(config, option)) == value:
                continue
            notes.append(f"{option} is {ours!r}, but {self.library} computes with {value!r}")
            if option == "position_interpolation":
                how = "a little" if family_of(config) == "vit" else "by some percent"
                notes[-1] += f": features of images that are not {config.image_size} px differ {how}"
        return notes


def family_of(config: DinoConfig) -> str:
    """
    Returns which kind of model a library takes a backbone for.

    `"vit"` is DINO's, `"dinov2"` has layer scale, registers or SwiGLU besides, and `"dinov3"` rotary positions;
    `"convnext"`, `"xcit"` and `"resnet"` go by the name of the backbone.
    """
    for family, names in (("resnet", RESNET_DEPTHS), ("convnext", CONVNEXT_SIZES), ("xcit", XCIT_SIZES)):
        if config.backbone in names:
            return family
    if config.has_rotary_positions:
        return "dinov3"
    is_plain = config.layerscale_value is None and not config.num_register_tokens and not config.use_swiglu_ffn
    return "vit" if is_plain else "dinov2"


def other_than_original(config: DinoConfig) -> list[str]:
    """Returns a line if a DINOv2 of another library computes otherwise than the original."""
    method = "antialias" if config.num_register_tokens else "dino"
    if family_of(config) != "dinov2" or config.position_interpolation == method:
        return []
    return [
        f"features of images that are not {config.image_size} px are those of the library, which differ from the "
        f"original's by some percent: position_interpolation={method!r} gives the original's"
    ]


def computed_periods(config: DinoConfig) -> torch.Tensor:
    """Computes the periods of rotary positions in float32, (D / heads / 4,), as a new model has them."""
    positions = RotaryPositions(config)
    positions.dtype = torch.float32
    positions.init_parameters()
    return positions.periods


def loss_of_periods(config: DinoConfig, state_dict: StateDict, library: str) -> list[str]:
    """Returns a line if the periods of rotary positions are not those that a library computes."""
    theirs, ours = computed_periods(config), state_dict[PERIODS].float()
    if torch.allclose(theirs, ours, rtol=1e-6, atol=0):
        return []
    difference = (ours / theirs - 1).abs().max()
    return [
        f"left out: the periods of the rotary positions, which {library} computes: the model's differ from them by up "
        f"to {difference:.1e}, and features by about as much"
    ]


def with_all_biases(tensors: StateDict, parts: tuple[str, ...]) -> StateDict:
    """
    Returns tensors with a bias of zeros for a query, key or value that has none, where another of the three has one.

    Args:
        parts: what the names of the three have before `bias`.
    """
    complete = dict(tensors)
    for name in tensors:
        for part in parts:
            if name.endswith(f"{part}bias"):
                others = [name.replace(part, other) for other in parts]
                complete |= {other: torch.zeros_like(tensors[name]) for other in others if other not in tensors}
    return complete


def has_key_bias(state_dict: StateDict) -> bool:
    """Returns whether keys have a bias that is not zero."""
    biases = [tensor.chunk(3)[1] for name, tensor in state_dict.items() if name.endswith(".attn.qkv.bias")]
    return any(bool(bias.any()) for bias in biases)


def loss_of_key_bias(config: DinoConfig, state_dict: StateDict, library: str) -> list[str]:
    """Returns a line if keys have a bias that has no effect, which a library does not keep."""
    if config.key_bias or not has_key_bias(state_dict):
        return []
    return [f"left out: the bias of the keys, which has no effect, and for which {library} has no place"]


def loss_of_patch_size(config: DinoConfig, library: str) -> list[str]:
    """Returns a line if the maps of a ConvNeXt are resized to a grid of patches, as a library's are not."""
    if config.patch_size is None:
        return []
    return [f"left out: patch_size={config.patch_size}, the grid to which maps are resized, which {library} lacks"]


def same_transform(one: dict, other: dict) -> bool:
    """Returns whether two image transforms give the same pixels."""
    return {**one, "do_convert_rgb": None} == {**other, "do_convert_rgb": None}


def describe(transform: dict) -> str:
    """Returns an image transform in words, for those who must make it elsewhere."""
    names = ("size", "crop_size") if transform.get("do_center_crop") else ("size",)
    names += ("image_mean", "image_std")
    return ", ".join(f"{name} {transform.get(name)}" for name in names)
