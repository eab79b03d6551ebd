# Copyright 2026 The modeling-dino authors.
# SPDX-License-Identifier: Apache-2.0
"""One configuration for every DINO: backbone (ViT or ResNet) and projection head.

Paper: Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294.
The name of the backbone fixes its sizes; each of them can be overridden.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .checkpoint_files import refuse_weights_file


# width, blocks, heads (section 3.2 of the paper; ViT-tiny as in DeiT)
VIT_SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}
# residual blocks in each of the four stages
RESNET_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BOTTLENECK_RESNETS = ("resnet50", "resnet101", "resnet152")
BACKBONES = (*VIT_SIZES, *RESNET_DEPTHS)

HEAD_TYPES = ("dino", "simple", None)
POSITION_INTERPOLATIONS = ("dino", "size", "antialias")
RESNET_STEMS = ("auto", "imagenet", "cifar")
CIFAR_STEM_MAX_IMAGE_SIZE = 64
CLASSIFIER_FEATURES = ("cls", "cls_patch_mean")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# the largest values that are not a slip, or meant to take all memory: far above those of any published model
LARGEST = {
    "image_size": 2**14,
    "num_channels": 2**12,
    "hidden_size": 2**16,
    "num_hidden_layers": 256,
    "mlp_ratio": 2**10,
    "layer_norm_eps": 1,
    "projection_dim": 2**24,
    "head_hidden_dim": 2**17,
    "head_bottleneck_dim": 2**17,
    "head_num_layers": 64,
}
MAX_LABELS = 10**6
MAX_NESTING = 20  # of lists and mappings in a file
# what a file may set beside fields and attributes of its own; others are methods and settings of classes
SETTABLE = ("model_type", "num_labels", "name_or_path", "output_attentions", "out_features", "out_indices")
# what a file does not choose: the code that computes, which may come from the hub
NOT_FROM_FILES = ("attn_implementation", "experts_implementation")
QUANTIZERS = ("bitsandbytes", "torchao", "quanto")  # they compute with what is installed


def canonical_backbone(name: str) -> str:
    """
    Returns the stored spelling of a backbone's name: `ViT-Small`, `deit_small` and `vit_small` are `vit_small`.

    Raises:
        ValueError: if no backbone has this name; the nearest names are offered.
    """
    canonical = str(name).lower().replace("-", "_")
    if canonical.startswith("deit_"):
        canonical = "vit_" + canonical.removeprefix("deit_")
    if canonical.startswith("resnet_"):
        canonical = canonical.replace("_", "")
    if canonical in BACKBONES:
        return canonical
    raise ValueError(f"unknown backbone {name!r}: {_known_names(canonical, BACKBONES)}")


def _known_names(name: str, allowed: Sequence[str]) -> str:
    """Returns the end of an error message: the names nearest to an unknown one, and all that are allowed."""
    nearest = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return f"{hint}allowed are {', '.join(allowed)}"


@strict
class DinoConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`DinoModel`], [`DinoBackbone`] and [`DinoForImageClassification`].

    Args:
        backbone (`str`, defaults to `"vit_small"`):
            vit_tiny, vit_small, vit_base, vit_large, resnet18, resnet34, resnet50, resnet101 or resnet152. Hyphens,
            capitals and `deit_*` are accepted.
        image_size (`int`, defaults to 224): side of the square images in pixels; any other size works at run time.
        patch_size (`int`, defaults to 16): side of a ViT's patch in pixels.
        num_channels (`int`, defaults to 3): channels of an image.
        hidden_size (`int`, *optional*): width of the feature; a ResNet's stages scale with it.
        num_hidden_layers (`int`, *optional*): blocks of a ViT; stages of a ResNet.
        num_attention_heads (`int`, *optional*): heads of a ViT.
        depths (`list[int]`, *optional*): residual blocks in each stage; only a ResNet has (and takes) this.
        mlp_ratio (`float`, defaults to 4): width of a block's MLP over `hidden_size`.
        qkv_bias (`bool`, defaults to `True`): whether query, key and value have a bias.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of a ViT's layer norms.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0): dropout in a ViT.
        drop_path_rate (`float`, defaults to 0): stochastic depth of a ViT's last block, rising linearly from 0.
        position_interpolation (`str`, defaults to `"dino"`):
            how positions are resized to a grid other than the native one: `"dino"` as the original, `"size"` as
            transformers' ViT, `"antialias"` as timm.
        resnet_stem (`str`, defaults to `"auto"`):
            `"imagenet"` (7x7 stride 2, max pool), `"cifar"` (3x3 stride 1, no pool), or `"auto"`: cifar up to 64 px.
        zero_init_residual (`bool`, defaults to `False`): start the last batch norm of each residual block at 0.
        head_type (`str`, *optional*, defaults to `"dino"`):
            `"dino"` (MLP, L2 norm, weight-normed prototypes), `"simple"` (MLP with ReLU, L2 norm) or `None`.
        projection_dim (`int`, defaults to 65536): outputs of the head (the prototypes).
        head_hidden_dim (`int`, defaults to 2048): width of the head's MLP.
        head_bottleneck_dim (`int`, defaults to 256): output of the MLP of the `"dino"` head.
        head_num_layers (`int`, defaults to 3): linear layers of the head's MLP.
        head_use_bn (`bool`, defaults to `False`): batch norm in the head's MLP.
        norm_last_layer (`bool`, defaults to `True`): keep the gain of the last layer frozen at 1.
        head_weight_norm (`bool`, defaults to `True`): whether the last layer of the `"dino"` head is weight-normed.
        classifier_features (`str`, defaults to `"cls"`):
            input of [`DinoForImageClassification`]: `"cls"` (CLS tokens, or a ResNet's global average pool), or
            `"cls_patch_mean"` (CLS tokens and the mean of the last block's patch tokens).
        classifier_last_blocks (`int`, defaults to 1): number of last blocks that give their CLS tokens.
        weights_source (`str`, *optional*): origin of converted weights; a conversion fills it in.
        out_features, out_indices (`list`, *optional*): the stages [`DinoBackbone`] returns.

    Raises:
        ValueError: if a value cannot work; the message names it and says what is allowed.

    Example:

    ```python
    >>> from modeling_dino import DinoConfig, DinoModel

    >>> config = DinoConfig(backbone="vit_small", patch_size=16, image_size=224)
    >>> model = DinoModel(config)
    ```
    """

    model_type = "dino"

    backbone: str = "vit_small"
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    mlp_ratio: float | int = 4
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    position_interpolation: str = "dino"
    resnet_stem: str = "auto"
    zero_init_residual: bool = False
    head_type: str | None = "dino"
    projection_dim: int = 65536
    head_hidden_dim: int = 2048
    head_bottleneck_dim: int = 256
    head_num_layers: int = 3
    head_use_bn: bool = False
    norm_last_layer: bool = True
    head_weight_norm: bool = True
    classifier_features: str = "cls"
    classifier_last_blocks: int = 1
    weights_source: str | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, depths=None, out_features=None, out_indices=None, **kwargs):
        self._refuse_misspelt(kwargs)
        if kwargs.get("num_labels") is None:
            kwargs.pop("num_labels", None)
        self._validate_labels(kwargs.get("num_labels"))
        self._validate_dtype(kwargs.get("torch_dtype") if self.dtype is None else self.dtype)
        self.backbone = canonical_backbone(self.backbone)
        if self.backbone in VIT_SIZES:
            if depths is not None:
                raise ValueError(f"depths is for ResNets; set num_hidden_layers for {self.backbone}")
            self._default_to(VIT_SIZES[self.backbone])
        else:
            # An attribute of ResNets alone, so not a field: transformers takes its presence for a staged backbone.
            self.depths = self._checked_depths(RESNET_DEPTHS[self.backbone] if depths is None else depths)
            self._default_to((512 * self.resnet_expansion, len(self.depths), None))
        self.validate_values()  # before the inherited checks, which would fail less clearly
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)

    def _default_to(self, sizes: tuple[int, int, int | None]):
        for name, size in zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), sizes):
            if getattr(self, name) is None:
                setattr(self, name, size)

    def _refuse_misspelt(self, kwargs: dict):
        """Raises ValueError for likely typos; transformers keeps other unknown arguments as attributes."""
        known = [*self.__dataclass_fields__, "depths", "out_features", "out_indices", "num_labels"]
        for name in kwargs:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.89)
            if name not in known and nearest:
                raise ValueError(f"unknown argument {name!r}: did you mean {nearest[0]!r}?")

    @property
    def stage_names(self) -> list[str]:
        """`stem`, `stage1`, and so on; a stage of a ViT is a block."""
        return ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]

    @property
    def resnet_expansion(self) -> int:
        """Ratio of a residual block's output channels to its inner width: 4 with bottlenecks, else 1."""
        return 4 if self.backbone in BOTTLENECK_RESNETS else 1

    @property
    def resnet_width(self) -> int:
        """Channels of a ResNet's stem, and inner width of its first stage; it doubles from stage to stage."""
        return self.hidden_size // (self.resnet_expansion * 2 ** (len(self.depths) - 1))

    @property
    def uses_cifar_stem(self) -> bool:
        """Returns whether a ResNet has the stem for small images."""
        if self.resnet_stem == "auto":
            return self.image_size <= CIFAR_STEM_MAX_IMAGE_SIZE
        return self.resnet_stem == "cifar"

    @property
    def classifier_width(self) -> int:
        """Width of the input of [`DinoForImageClassification`]'s linear layer."""
        return self.hidden_size * (self.classifier_last_blocks + (self.classifier_features == "cls_patch_mean"))

    def validate_values(self):
        """Raises ValueError for a value that cannot work, alone or with others; the message says what is allowed."""
        self._validate_choices()
        self._validate_ranges()
        if self.backbone in VIT_SIZES:
            self._validate_vit()
        else:
            self._validate_resnet()

    def _validate_labels(self, num_labels: object):
        """Raises ValueError for labels that are too many, or none; transformers would list their names first."""
        is_number = isinstance(num_labels, int) and not isinstance(num_labels, bool)
        if num_labels is not None and not (is_number and 1 <= num_labels <= MAX_LABELS):
            raise ValueError(f"num_labels={num_labels!r} must be a whole number from 1 to {MAX_LABELS}")
        for name, kind in (("id2label", "numbers to names"), ("label2id", "names to numbers")):
            labels = getattr(self, name)
            if labels is not None and not isinstance(labels, dict):
                raise ValueError(f"{name} is a {type(labels).__name__}, but must be a mapping of {kind}")
        for number, label in (self.id2label or {}).items():
            if not str(number).isdecimal() or not isinstance(label, str):
                raise ValueError(f"id2label has {number!r}: {label!r}, but must be a mapping of numbers to names")

    def _validate_dtype(self, dtype: object):
        name = str(dtype).removeprefix("torch.")
        if dtype is not None and name not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")

    def _checked_depths(self, depths: object) -> list[int]:
        is_list = isinstance(depths, (list, tuple)) and 1 <= len(depths) <= 8
        if not is_list or any(
            type(depth) is not int or not 1 <= depth <= LARGEST["num_hidden_layers"] for depth in depths
        ):
            raise ValueError(f"depths={depths!r} must be positive integers, one for each of at most 8 stages")
        return list(depths)

    def _validate_choices(self):
        for name, allowed in (
            ("backbone", BACKBONES),
            ("position_interpolation", POSITION_INTERPOLATIONS),
            ("resnet_stem", RESNET_STEMS),
            ("head_type", HEAD_TYPES),
            ("classifier_features", CLASSIFIER_FEATURES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")

    def _validate_ranges(self):
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")
            if not value <= largest:  # NaN is not
                raise ValueError(f"{name}={value} must be at most {largest}")
        if self.hidden_size * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be at least 1 / {self.hidden_size}, the hidden_size")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if not 1 <= self.classifier_last_blocks <= self.num_hidden_layers:
            raise ValueError(
                f"classifier_last_blocks={self.classifier_last_blocks} must be between 1 and {self.num_hidden_layers}"
            )

    def _validate_vit(self):
        if not 1 <= self.patch_size <= self.image_size:
            raise ValueError(f"patch_size={self.patch_size} must be between 1 and image_size={self.image_size}")
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % heads != 0:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={heads}")

    def _validate_resnet(self):
        if (self.classifier_features, self.classifier_last_blocks) != ("cls", 1):
            raise ValueError(
                f"classifier_features={self.classifier_features!r} and classifier_last_blocks="
                f"{self.classifier_last_blocks} must be 'cls' and 1 for {self.backbone}: its feature is its pool"
            )
        if self.num_hidden_layers != len(self.depths):
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers} must be {len(self.depths)}, the stages in depths"
            )
        multiple = self.resnet_expansion * 2 ** (len(self.depths) - 1)
        if self.hidden_size % multiple != 0:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of {multiple} for {self.backbone}")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """
        Raises OSError if there is no configuration (the inherited method returns an empty one: all defaults), and
        ValueError if it is damaged, or the name is that of a file of weights.
        """
        refuse_weights_file(pretrained_model_name_or_path)
        name = pretrained_model_name_or_path
        try:
            config_dict, kwargs = super().get_config_dict(name, **kwargs)
        except (RecursionError, TypeError, AttributeError) as error:  # transformers expects a mapping
            raise ValueError(f"the config.json in {str(name)!r} is damaged ({error})") from error
        if not config_dict:
            raise OSError(f"no config.json in {str(name)!r}: is a saved model there?")
        if not isinstance(config_dict, dict):
            raise ValueError(f"the config.json in {str(name)!r} is damaged: it is not a mapping")
        return config_dict, kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        [`~transformers.PreTrainedConfig.from_pretrained`]. Raises OSError if there is no configuration, and ValueError
        if it is damaged, or that of another kind of model.
        """
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(config_dict, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """
        Makes a configuration of what a file holds, which chooses no code that computes: see `NOT_FROM_FILES`.

        Raises ValueError for the configuration of another kind of model, and for what cannot be one.
        """
        for key, value in config_dict.items():
            if nesting(value) > MAX_NESTING:
                raise ValueError(f"config.json is damaged: {key!r} holds lists or mappings in too many others")
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"config.json is of a model of type {model_type!r}, not {cls.model_type!r}")
        own = {key: value for key, value in config_dict.items() if key not in NOT_FROM_FILES and key[:1] != "_"}
        allowed = {field.name for field in fields(cls)} | set(SETTABLE)
        if wrong := [key for key in own if hasattr(cls, key) and key not in allowed]:
            raise ValueError(f"config.json is damaged: {wrong[0]!r} is not a value that a configuration can have")
        quantization = config_dict.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method is not None and method not in QUANTIZERS:
            raise ValueError(f"weights quantized by {method!r} are not supported: only by {', '.join(QUANTIZERS)}")
        return super().from_dict(own, **kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "DinoConfig":
        """
        Makes a named configuration that comes with the package, e.g. `DinoConfig.from_preset("dino_vits16")`.

        Args:
            name: one of [`~DinoConfig.presets`].
            overrides: arguments of `DinoConfig` that replace those of the preset.

        Raises:
            ValueError: if there is no such preset; the nearest names are offered.
        """
        values = {**cls._read_preset(name), **overrides}
        values.pop("published", None)
        return cls(**values)

    @classmethod
    def presets(cls) -> list[str]:
        """Returns the names of the configurations that come with the package."""
        return sorted(path.stem for path in configuration_folder().glob("*.json"))

    @classmethod
    def published(cls, name: str) -> dict | None:
        """Returns what the authors published of a preset's model (hub id, ImageNet top-1 in %), if anything."""
        return cls._read_preset(name).get("published")

    @classmethod
    def _read_preset(cls, name: str) -> dict:
        if name not in cls.presets():
            raise ValueError(f"unknown preset {name!r}: {_known_names(name, cls.presets())}")
        return json.loads((configuration_folder() / f"{name}.json").read_text(encoding="utf-8"))


def nesting(value: object) -> int:
    """Returns how many lists and mappings lie in each other, at most one more than `MAX_NESTING`."""
    depth, level = 0, [value]
    while level and depth <= MAX_NESTING:
        level = [x for x in level if isinstance(x, (list, dict))]
        depth += bool(level)
        level = [part for x in level for part in (x.values() if isinstance(x, dict) else x)]
    return depth


def configuration_folder() -> Path:
    """Returns `configuration/`: in the package in a wheel, beside it in a checkout or editable install."""
    package = Path(__file__).parent
    for folder in (package / "configuration", package.parent / "configuration"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the presets come with the package modeling-dino, which is not installed")
