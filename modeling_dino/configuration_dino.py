# Copyright 2026 The modeling-dino authors.
# SPDX-License-Identifier: Apache-2.0
"""One configuration for every DINO: backbone (ViT, XCiT, ResNet or ConvNeXt) and projection heads.

Papers: Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294; DINOv2,
https://arxiv.org/abs/2304.07193; Vision Transformers Need Registers, https://arxiv.org/abs/2309.16588; DINOv3,
https://arxiv.org/abs/2508.10104.
The name of the backbone fixes its sizes; each of them can be overridden. What distinguishes the ViTs of DINO, DINOv2
and DINOv3 is an option each, and everything else is as the defaults. `from_preset("dinov2_vitb14_reg")` and so on set
them as published (`presets()` lists the names):

| option | DINO (the default) | DINOv2 | DINOv3 |
| --- | --- | --- | --- |
| `patch_size`, `image_size` (of the positions) | 16 or 8, 224 | 14, 518 | 16, 224 |
| positions | learned | learned | `rope_theta=100`, `pos_embed_rescale=2` |
| `position_interpolation` | "dino" | "dino"; with registers "antialias" | – |
| `num_register_tokens` | 0 | 0 or 4 | 4 |
| `layerscale_value`, `use_mask_token` | None, False | 1e-5, True | 1e-5, True |
| `token_init_std` | 0.02 | 1e-6 | 0.02 |
| `key_bias`, `layer_norm_eps` | True, 1e-6 | True, 1e-6 | False, 1e-5 |
| `use_swiglu_ffn` | False | in `vit_giant` | in `vit_small_plus`, `vit_huge_plus`, `vit_7b` |
| `image_resize` | "crop" | "crop", to an `evaluation_size` of 224 | "square" |
| head | `norm_last_layer=True` | `norm_last_layer=False` | `head_weight_norm=False` (there is no gain then) |

`vit_7b` also has `qkv_bias=False`, `swiglu_multiple=64` and `untie_global_and_local_cls_norm=True`. The ConvNeXts of
DINOv3 have the defaults but for `image_resize` and the head. ResNets and XCiTs are DINO's. Only DINO's weights were
published with heads.
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


# width, blocks, heads (section 3.2 of DINO's paper; ViT-tiny as in DeiT; the larger ones of DINOv2 and DINOv3)
VIT_SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_small_plus": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge_plus": (1280, 32, 20),
    "vit_giant": (1536, 40, 24),
    "vit_7b": (4096, 40, 32),
}
XCIT_SIZES = {
    "xcit_nano_12": (128, 12, 4),
    "xcit_tiny_12": (192, 12, 4),
    "xcit_tiny_24": (192, 24, 4),
    "xcit_small_12": (384, 12, 8),
    "xcit_small_24": (384, 24, 8),
    "xcit_medium_24": (512, 24, 8),
    "xcit_large_24": (768, 24, 16),
}
# mlp_ratio of those ViTs that have SwiGLU; it is 4 for all others, with a plain MLP
SWIGLU_RATIOS = {"vit_small_plus": 6, "vit_huge_plus": 6, "vit_giant": 4, "vit_7b": 3}
# blocks and width of each of the four stages
CONVNEXT_SIZES = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
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
BACKBONES = (*VIT_SIZES, *XCIT_SIZES, *RESNET_DEPTHS, *CONVNEXT_SIZES)

HEAD_TYPES = ("dino", "simple", None)
POSITION_INTERPOLATIONS = ("dino", "size", "antialias")
ROPE_COORDINATES = ("separate", "max", "min")
IMAGE_RESIZES = ("crop", "square")
RESNET_STEMS = ("auto", "imagenet", "cifar")
CIFAR_STEM_MAX_IMAGE_SIZE = 64
CLASSIFIER_FEATURES = ("cls", "cls_patch_mean")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# options of one kind of backbone, which others do not have
OF_VITS = ("num_register_tokens", "use_mask_token", "key_bias", "use_rms_norm", "rope_theta", "rope_min_period")
OF_VITS += ("rope_max_period", "untie_cls_and_patch_norms", "untie_global_and_local_cls_norm", "use_swiglu_ffn")
OF_ROTARY_POSITIONS = ("rope_coordinates", "rope_dtype", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
OF_XCITS = ("num_class_attention_layers", "tokens_norm")

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
    "swiglu_multiple": 2**16,
    "token_init_std": 1,
    "num_class_attention_layers": 64,
}
HEAD_SIZES = ("projection_dim", "head_hidden_dim", "head_bottleneck_dim", "head_num_layers")
LARGEST_OPTIONAL = {  # values that may be None
    "evaluation_size": LARGEST["image_size"],
    **{f"patch_{name}": LARGEST[name] for name in HEAD_SIZES},
    **dict.fromkeys(("rope_theta", "rope_min_period", "rope_max_period"), 1e9),
    **dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"), 1e3),
}
XCIT_PATCH_SIZES = (8, 16)
MAX_REGISTERS = 4096
MAX_LAYERSCALE = 1e3
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
            vit_tiny, vit_small, vit_small_plus, vit_base, vit_large, vit_huge_plus, vit_giant or vit_7b; resnet18,
            resnet34, resnet50, resnet101 or resnet152; convnext_tiny, _small, _base or _large; xcit_nano_12,
            xcit_tiny_12, xcit_tiny_24, xcit_small_12, xcit_small_24, xcit_medium_24 or xcit_large_24. Hyphens,
            capitals and `deit_*` are accepted.
        image_size (`int`, defaults to 224): side of the square images in pixels; any other size works at run time.
        patch_size (`int`, *optional*, defaults to 16):
            side of a ViT's or XCiT's patch in pixels. A ConvNeXt has none by default; with one, its maps are resized
            to the grid of a ViT with such patches.
        num_channels (`int`, defaults to 3): channels of an image.
        hidden_size (`int`, *optional*): width of the feature; a ResNet's stages scale with it.
        num_hidden_layers (`int`, *optional*): blocks of a ViT or XCiT; stages of a ResNet or ConvNeXt.
        num_attention_heads (`int`, *optional*): heads of a ViT or XCiT.
        depths (`list[int]`, *optional*): blocks in each stage; only a ResNet or ConvNeXt has (and takes) this.
        hidden_sizes (`list[int]`, *optional*): width of each stage; only a ConvNeXt has (and takes) this.
        mlp_ratio (`float`, *optional*): width of a block's MLP over `hidden_size`: 4, or as the backbone's name says.
        use_swiglu_ffn (`bool`, *optional*):
            whether the feed-forward network is SwiGLU, of 2/3 of the MLP's width; as the backbone's name says.
        swiglu_multiple (`int`, defaults to 8): the width of SwiGLU is rounded up to a multiple of this.
        qkv_bias (`bool`, defaults to `True`): whether query, key and value have a bias.
        key_bias (`bool`, defaults to `True`): whether a key's bias is used; it stays in the weights if not.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of the norms over tokens.
        use_rms_norm (`bool`, defaults to `False`): RMSNorm in the place of LayerNorm.
        untie_cls_and_patch_norms (`bool`, defaults to `False`):
            whether the final norm of the CLS token and the registers is another than that of the patches.
        untie_global_and_local_cls_norm (`bool`, defaults to `False`):
            whether they have one more final norm for local crops, which is used in training alone.
        layerscale_value (`float`, *optional*):
            start of the factors of LayerScale. A ViT has none by default; an XCiT always has them (1, or 1e-5 with 24
            blocks), and so has a ConvNeXt (1e-6).
        num_register_tokens (`int`, defaults to 0): registers, tokens between the CLS token and the patches.
        use_mask_token (`bool`, defaults to `False`): whether patches can be masked.
        token_init_std (`float`, defaults to 0.02): standard deviation with which CLS token and registers start.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0): dropout in a ViT or XCiT.
        drop_path_rate (`float`, defaults to 0): stochastic depth of the last block, rising linearly from 0.
        drop_path_uniform (`bool`, defaults to `False`):
            the same rate for all blocks of a ViT, as XCiT always has it. A fixed share of the images then skips each
            branch, which is not computed for them, as in DINOv2 and DINOv3; else each image is drawn by itself.
        position_interpolation (`str`, defaults to `"dino"`):
            how positions are resized to a grid other than the native one: `"dino"` as the original, `"size"` as
            transformers' ViT, `"antialias"` as timm. DINOv2 is "dino" without registers, and "antialias" with them.
        rope_theta (`float`, *optional*):
            base of the periods of rotary positions, which take the place of learned ones.
        rope_min_period, rope_max_period (`float`, *optional*): the same, by the least and the greatest period.
        rope_coordinates (`str`, defaults to `"separate"`):
            what rows and columns of patches are divided by: each by its own number, or both by the `"max"` or `"min"`.
        rope_dtype (`str`, defaults to `"float32"`): dtype in which queries and keys are rotated.
        pos_embed_shift, pos_embed_jitter, pos_embed_rescale (`float`, *optional*):
            in training, rotary coordinates are shifted by up to the first, and stretched by factors up to the second
            (each axis by itself) and the third (both).
        num_class_attention_layers (`int`, defaults to 2): blocks of an XCiT in which the CLS token attends.
        tokens_norm (`bool`, defaults to `True`): whether they norm all tokens of an XCiT, or the CLS token alone.
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
        head_bias (`bool`, defaults to `True`): bias in the linears of the head's MLP.
        norm_last_layer (`bool`, defaults to `True`): keep the gain of the last layer frozen at 1.
        head_weight_norm (`bool`, defaults to `True`): whether the last layer of the `"dino"` head is weight-normed.
        patch_head (`bool`, defaults to `False`): whether patches have a projection head of their own (iBOT's).
        patch_projection_dim, patch_head_hidden_dim, patch_head_bottleneck_dim, patch_head_num_layers (`int`):
            sizes of that head, by default those of the other.
        classifier_features (`str`, defaults to `"cls"`):
            input of [`DinoForImageClassification`]: `"cls"` (CLS tokens, or a ResNet's global average pool), or
            `"cls_patch_mean"` (CLS tokens and the mean of the last block's patch tokens).
        classifier_last_blocks (`int`, defaults to 1): number of last blocks that give their CLS tokens.
        image_resize (`str`, defaults to `"crop"`):
            how images are resized for evaluation: `"crop"` (the shorter side to 8/7 of the size, bicubic, and a square
            from the middle), or `"square"` (squashed to the size, bilinear, as DINOv3).
        evaluation_size (`int`, *optional*): side of the images after that, in pixels; `image_size` by default.
        channel_means, channel_deviations (`list[float]`, *optional*):
            mean and standard deviation of each channel of the images; ImageNet's by default.
        weights_source, weights_license (`str`, *optional*):
            origin and license of converted weights, which a conversion fills in; the license as the hub calls it.
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
    patch_size: int | None = None
    num_channels: int = 3
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    mlp_ratio: float | int | None = None
    use_swiglu_ffn: bool | None = None
    swiglu_multiple: int = 8
    qkv_bias: bool = True
    key_bias: bool = True
    layer_norm_eps: float = 1e-6
    use_rms_norm: bool = False
    untie_cls_and_patch_norms: bool = False
    untie_global_and_local_cls_norm: bool = False
    layerscale_value: float | int | None = None
    num_register_tokens: int = 0
    use_mask_token: bool = False
    token_init_std: float = 0.02
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    drop_path_uniform: bool = False
    position_interpolation: str = "dino"
    rope_theta: float | int | None = None
    rope_min_period: float | int | None = None
    rope_max_period: float | int | None = None
    rope_coordinates: str = "separate"
    rope_dtype: str = "float32"
    pos_embed_shift: float | int | None = None
    pos_embed_jitter: float | int | None = None
    pos_embed_rescale: float | int | None = None
    num_class_attention_layers: int = 2
    tokens_norm: bool = True
    resnet_stem: str = "auto"
    zero_init_residual: bool = False
    head_type: str | None = "dino"
    projection_dim: int = 65536
    head_hidden_dim: int = 2048
    head_bottleneck_dim: int = 256
    head_num_layers: int = 3
    head_use_bn: bool = False
    head_bias: bool = True
    norm_last_layer: bool = True
    head_weight_norm: bool = True
    patch_head: bool = False
    patch_projection_dim: int | None = None
    patch_head_hidden_dim: int | None = None
    patch_head_bottleneck_dim: int | None = None
    patch_head_num_layers: int | None = None
    classifier_features: str = "cls"
    classifier_last_blocks: int = 1
    image_resize: str = "crop"
    evaluation_size: int | None = None
    channel_means: list[float] | tuple[float, ...] | None = None
    channel_deviations: list[float] | tuple[float, ...] | None = None
    weights_source: str | None = None
    weights_license: str | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, depths=None, hidden_sizes=None, out_features=None, out_indices=None, **kwargs):
        self._refuse_misspelt(kwargs)
        if kwargs.get("num_labels") is None:
            kwargs.pop("num_labels", None)
        self._validate_labels(kwargs.get("num_labels"))
        self._validate_dtype(kwargs.get("torch_dtype") if self.dtype is None else self.dtype)
        self.backbone = canonical_backbone(self.backbone)
        self._default_to_sizes_of_name(depths, hidden_sizes)
        self.validate_values()  # before the inherited checks, which would fail less clearly
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)

    def _default_to_sizes_of_name(self, depths: object, hidden_sizes: object):
        """Sets the values that are not given to those that the backbone's name stands for."""
        if depths is not None and not self.has_stages:
            raise ValueError(f"depths is for ResNets and ConvNeXts; set num_hidden_layers for {self.backbone}")
        if hidden_sizes is not None and self.backbone not in CONVNEXT_SIZES:
            raise ValueError(f"hidden_sizes is for ConvNeXts; set hidden_size for {self.backbone}")
        # Attributes of staged backbones alone, so not fields: transformers takes their presence for such a backbone.
        if self.has_stages:
            own_depths, own_sizes = CONVNEXT_SIZES.get(self.backbone) or (RESNET_DEPTHS[self.backbone], None)
            self.depths = self._checked_stages("depths", own_depths if depths is None else depths)
            width = 512 * self.resnet_expansion
            if own_sizes is not None:
                own_sizes = own_sizes if hidden_sizes is None else hidden_sizes
                self.hidden_sizes = self._checked_stages("hidden_sizes", own_sizes)
                width = self.hidden_sizes[-1]
            sizes = (width, len(self.depths), None)
        else:
            sizes = {**VIT_SIZES, **XCIT_SIZES}[self.backbone]
        self._default_to(dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), sizes)))
        self._default_to({"mlp_ratio": SWIGLU_RATIOS.get(self.backbone, 4)})
        self._default_to({"use_swiglu_ffn": self.backbone in SWIGLU_RATIOS})
        if self.backbone in CONVNEXT_SIZES:
            self._default_to({"layerscale_value": 1e-6})
        else:
            self._default_to({"patch_size": 16})
        if self.backbone in XCIT_SIZES:
            self._default_to({"layerscale_value": 1.0 if self.num_hidden_layers < 24 else 1e-5})

    def _default_to(self, values: dict):
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _refuse_misspelt(self, kwargs: dict):
        """Raises ValueError for likely typos; transformers keeps other unknown arguments as attributes."""
        known = [*self.__dataclass_fields__, "depths", "hidden_sizes", "out_features", "out_indices", "num_labels"]
        for name in kwargs:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.89)
            if name not in known and nearest:
                raise ValueError(f"unknown argument {name!r}: did you mean {nearest[0]!r}?")

    @property
    def stage_names(self) -> list[str]:
        """`stem`, `stage1`, and so on; a stage of a ViT is a block."""
        return ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]

    @property
    def has_stages(self) -> bool:
        """Returns whether the backbone has convolutional stages, each of a resolution of its own."""
        return self.backbone in RESNET_DEPTHS or self.backbone in CONVNEXT_SIZES

    @property
    def has_rotary_positions(self) -> bool:
        """Returns whether a ViT's positions are rotations; they are learned embeddings else."""
        return self.rope_theta is not None or self.rope_min_period is not None

    @property
    def feed_forward_width(self) -> int:
        """Width within a block's feed-forward network."""
        width = int(self.hidden_size * self.mlp_ratio)
        return -(-int(width * 2 / 3) // self.swiglu_multiple) * self.swiglu_multiple if self.use_swiglu_ffn else width

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
        if self.has_stages:
            self._validate_stages()
        else:
            self._validate_transformer()
        rotary = "rotary positions (rope_theta)"
        for names, has_them, kind in (
            (OF_VITS, self.backbone in VIT_SIZES, "ViTs"),
            (OF_XCITS, self.backbone in XCIT_SIZES, "XCiTs"),
            (OF_ROTARY_POSITIONS, self.has_rotary_positions, rotary),
        ):
            for name in () if has_them else names:
                value = getattr(self, name)
                if (value or False) != (self.__dataclass_fields__[name].default or False):
                    raise ValueError(f"{name}={value!r} is for {kind}; leave it out for {self.backbone}")

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

    def _checked_stages(self, name: str, values: object) -> list[int]:
        """Returns numbers, one for each stage, as a list; raises ValueError if they are something else."""
        largest = LARGEST["num_hidden_layers" if name == "depths" else "hidden_size"]
        is_list = isinstance(values, (list, tuple)) and 1 <= len(values) <= 8
        if not is_list or any(type(value) is not int or not 1 <= value <= largest for value in values):
            raise ValueError(f"{name}={values!r} must be positive integers, one for each of at most 8 stages")
        return list(values)

    def _validate_choices(self):
        for name, allowed in (
            ("backbone", BACKBONES),
            ("position_interpolation", POSITION_INTERPOLATIONS),
            ("rope_coordinates", ROPE_COORDINATES),
            ("rope_dtype", DTYPES),
            ("image_resize", IMAGE_RESIZES),
            ("resnet_stem", RESNET_STEMS),
            ("head_type", HEAD_TYPES),
            ("classifier_features", CLASSIFIER_FEATURES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")

    def _validate_ranges(self):
        optional = {name: most for name, most in LARGEST_OPTIONAL.items() if getattr(self, name) is not None}
        for name, largest in {**LARGEST, **optional}.items():
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
        for name in ("pos_embed_jitter", "pos_embed_rescale"):
            if (getattr(self, name) or 1) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, a factor")
        for name in ("channel_means", "channel_deviations"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_channels:
                raise ValueError(f"{name}={values!r} must be {self.num_channels} numbers, one for each channel")
        if not 0 <= self.num_register_tokens <= MAX_REGISTERS:
            raise ValueError(f"num_register_tokens={self.num_register_tokens} must be between 0 and {MAX_REGISTERS}")
        if self.layerscale_value is not None and not abs(self.layerscale_value) <= MAX_LAYERSCALE:  # NaN is not
            raise ValueError(f"layerscale_value={self.layerscale_value} must be a number up to {MAX_LAYERSCALE}")
        if not 1 <= self.classifier_last_blocks <= self.num_hidden_layers:
            raise ValueError(
                f"classifier_last_blocks={self.classifier_last_blocks} must be between 1 and {self.num_hidden_layers}"
            )

    def _validate_transformer(self):
        if not 1 <= self.patch_size <= self.image_size:
            raise ValueError(f"patch_size={self.patch_size} must be between 1 and image_size={self.image_size}")
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % heads != 0:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={heads}")
        if self.backbone in XCIT_SIZES and (self.patch_size not in XCIT_PATCH_SIZES or self.hidden_size % 8 != 0):
            sizes = f"patch_size={self.patch_size} must be 8 or 16, and hidden_size={self.hidden_size} a multiple of 8"
            raise ValueError(f"{sizes}, for {self.backbone}")
        given = [x is not None for x in (self.rope_theta, self.rope_min_period, self.rope_max_period)]
        if given not in ([False, False, False], [True, False, False], [False, True, True]):
            raise ValueError("rotary positions need rope_theta, or rope_min_period and rope_max_period, and not all")
        if self.has_rotary_positions and self.hidden_size // heads % 4 != 0:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 4 * num_attention_heads={4 * heads}"
            )

    def _validate_stages(self):
        if self.backbone in RESNET_DEPTHS and (self.classifier_features, self.classifier_last_blocks) != ("cls", 1):
            raise ValueError(
                f"classifier_features={self.classifier_features!r} and classifier_last_blocks="
                f"{self.classifier_last_blocks} must be 'cls' and 1 for {self.backbone}: its feature is its pool"
            )
        if self.num_hidden_layers != len(self.depths):
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers} must be {len(self.depths)}, the stages in depths"
            )
        if self.backbone in CONVNEXT_SIZES:
            return self._validate_convnext()
        multiple = self.resnet_expansion * 2 ** (len(self.depths) - 1)
        if self.hidden_size % multiple != 0:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of {multiple} for {self.backbone}")

    def _validate_convnext(self):
        if self.classifier_last_blocks != 1:
            raise ValueError(f"classifier_last_blocks={self.classifier_last_blocks} must be 1 for {self.backbone}")
        if len(self.hidden_sizes) != len(self.depths) or self.hidden_sizes[-1] != self.hidden_size:
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes} must be {len(self.depths)} numbers, as depths are, of which the "
                f"last is hidden_size={self.hidden_size}"
            )
        if self.patch_size is not None and not 1 <= self.patch_size <= self.image_size:
            raise ValueError(f"patch_size={self.patch_size} must be between 1 and image_size={self.image_size}")

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
