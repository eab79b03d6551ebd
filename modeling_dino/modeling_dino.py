# SPDX-License-Identifier: Apache-2.0
"""The models: a backbone with projection heads, with a classifier, or as feature maps.

Paper: Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294.
Reference: https://github.com/facebookresearch/dino/tree/7c446df, whose parameter names are kept under `backbone.` and
`head.`. All classes share them, so each loads what another saved.

Letters in shapes: B images, C channels, H x W pixels, h x w patches or cells, T = 1 + registers + h * w tokens, D
width.
"""

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .backbone import FACETS, Backbone, Stage, is_recorded
from .checkpoint_files import (
    check_weights,
    checkpoint_keys,
    checkpoint_shapes,
    follow_umask,
    is_foreign,
    location_of,
    network_prefix,
    read_tensors,
)
from .configuration_dino import CONVNEXT_SIZES, RESNET_DEPTHS, VIT_SIZES, XCIT_SIZES, DinoConfig
from .convnext import ConvNeXt
from .image_processing_dino import (
    check_image_transform,
    image_processor_config,
    is_rescaled_twice,
    read_image_transform,
    save_image_transform,
)
from .projection_head import WeightNormLinear, build_head, build_patch_head
from .resnet import ResNet
from .vision_transformer import Attention, VisionTransformer
from .xcit import Xcit


logger = logging.get_logger(__name__)

# the class that each Auto class loads from a folder that was saved with code
AUTO_MAP = {
    "AutoConfig": "configuration_dino.DinoConfig",
    "AutoModel": "modeling_dino.DinoModel",
    "AutoBackbone": "modeling_dino.DinoBackbone",
    "AutoModelForImageClassification": "modeling_dino.DinoForImageClassification",
}
# class of the model that is being loaded, shapes of its weights, and the arguments of `from_pretrained`
WEIGHTS_TO_LOAD: ContextVar[tuple] = ContextVar("weights to load", default=(None, {}, ()))
# arguments of `push_to_hub` that `save_pretrained` takes as well
HUB_ARGUMENTS = ("repo_id", "license", "folder", "tags", "private", "token", "revision")
HUB_ARGUMENTS += ("commit_message", "commit_description", "create_pr")


@dataclass
class DinoModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`DinoModel`].

    Args:
        last_hidden_state: (B, T, D), after the final norm: CLS token, registers and patches; ResNet: (B, C, h, w).
        pooler_output: (B, D), the feature: CLS token, or global average pool.
        hidden_states: if asked for, the outputs of the embedding (or stem) and each block (or stage), not normed.
        attentions: if asked for, (B, heads, T, T) of each block.
        projection: (B, projection_dim), the output of the head; None without a head.
        patch_tokens: (B, h * w, D), those of `last_hidden_state`, or the cells of a ResNet's map.
        register_tokens: (B, registers, D), those of `last_hidden_state`; None without registers.
        patch_projection: (B, h * w, K), the output of the head on patches, if asked for.
    """

    projection: torch.FloatTensor | None = None
    patch_tokens: torch.FloatTensor | None = None
    register_tokens: torch.FloatTensor | None = None
    patch_projection: torch.FloatTensor | None = None


BACKBONE_CLASSES = {
    **dict.fromkeys(VIT_SIZES, VisionTransformer),
    **dict.fromkeys(XCIT_SIZES, Xcit),
    **dict.fromkeys(RESNET_DEPTHS, ResNet),
    **dict.fromkeys(CONVNEXT_SIZES, ConvNeXt),
}


def backbone_class(config: DinoConfig) -> type[Backbone]:
    """Returns the class of the backbone that a configuration names."""
    return BACKBONE_CLASSES[config.backbone]


def stack_by_size(images: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """Stacks images (C, H, W) of one size; returns the batches, and where each image is in them, put side by side."""
    groups: dict[tuple, list[int]] = {}
    for number, image in enumerate(images):
        groups.setdefault((image.shape, image.dtype), []).append(number)
    numbers = [number for group in groups.values() for number in group]
    batches = [torch.stack([images[number] for number in group]) for group in groups.values()]
    return batches, sorted(range(len(numbers)), key=numbers.__getitem__)


def takes_lists(method: Callable) -> Callable:
    """Lets a method of images (B, C, H, W) take a list of (C, H, W), too, and compute those of one size together."""

    @wraps(method)
    def by_size(self: "DinoModel", pixel_values: torch.Tensor | Sequence[torch.Tensor] | None = None, *args, **kwargs):
        if not isinstance(pixel_values, (list, tuple)):
            return method(self, pixel_values, *args, **kwargs)
        if any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
            raise ValueError("bool_masked_pos does not go with a list of images: stack images of one size")
        channels, side, least = self.config.num_channels, self.config.image_size, self.backbone.min_image_size
        for number, image in enumerate(pixel_values):
            if not isinstance(image, torch.Tensor):
                raise ValueError(f"pixel_values[{number}] is no tensor but {type(image).__name__}")
            if image.ndim != 3 or image.shape[0] != channels or min(image.shape[1:]) < least:
                expected = f"({channels}, height, width) of at least {least} pixels each way"
                raise ValueError(f"pixel_values[{number}] has the shape {tuple(image.shape)}, expected {expected}")
        batches, order = stack_by_size(pixel_values)
        batches = batches or [torch.empty(0, channels, side, side, device=self.device)]
        outputs = [method(self, batch, *args, **kwargs) for batch in batches]
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs)[order]

        def in_order(*parts: torch.Tensor) -> list[torch.Tensor]:
            rows = [row for part in parts for row in part]
            return [rows[place] for place in order]

        return tree_map(in_order, *outputs)

    return by_size


class DinoPreTrainedModel(PreTrainedModel):
    """Base class of the models: initialisation, checks of the input, saving and loading."""

    config_class = DinoConfig
    base_model_prefix = "dino"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "BasicBlock", "Bottleneck", "ConvNeXtBlock", "XcitBlock", "ClassAttentionBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _checked_range = False
    _can_record_outputs = {"hidden_states": Stage, "attentions": Attention}
    _image_transform: dict | None = None

    @property
    def image_transform(self) -> dict:
        """
        The image transform that the weights go with, as in `preprocessor_config.json`; `save_pretrained` writes it.

        It is what lay beside the weights when they were loaded, or what was set; else the evaluation transform of the
        original. Whoever makes a model of another's weights hands it on: `new.image_transform = old.image_transform`.
        """
        return copy.deepcopy(self._image_transform) or image_processor_config(self.config)

    @image_transform.setter
    def image_transform(self, transform: dict | None):
        check_image_transform(transform or {}, self.config.num_channels)
        for module in self.modules():  # student and teacher, too
            if isinstance(module, DinoPreTrainedModel):
                module._image_transform = copy.deepcopy(transform)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, which=None, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`].

        Args:
            which: `"teacher"` or `"student"` of a saved `DinoForPreTraining`; the teacher by default.

        Raises:
            OSError: if the weights are missing or damaged.
            ValueError: if the checkpoint has no such network.
        """
        prefix = network_prefix(checkpoint_keys(pretrained_model_name_or_path, **kwargs), which)
        return cls._load_network(prefix, pretrained_model_name_or_path, *model_args, **kwargs)

    @classmethod
    def _load_network(cls, prefix: str, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Loads the whole checkpoint, or only the network whose tensors have names with the prefix, with the image
        transform that lies beside it.
        """
        name, location = pretrained_model_name_or_path, location_of(kwargs)
        shapes = {} if kwargs.get("ignore_mismatched_sizes") else checkpoint_shapes(name, **kwargs)
        shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        expected = WEIGHTS_TO_LOAD.set((cls, shapes, tuple(kwargs)))
        try:
            if not prefix:
                loaded = super().from_pretrained(name, *model_args, config=config, **kwargs)
            else:
                loaded = cls._load_prefixed(prefix, name, *model_args, config=config, **kwargs)
        finally:
            WEIGHTS_TO_LOAD.reset(expected)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if name is not None:
            model.image_transform = read_image_transform(name, model.config.num_channels, **location)
        return loaded

    def post_init(self):
        """
        Compares the model with the weights that are to be loaded, while it takes no memory. Raises ValueError if they
        are not of one model.
        """
        super().post_init()
        model_class, shapes, allowed = WEIGHTS_TO_LOAD.get()
        if type(self) is model_class:
            check_weights(self.config, shapes, self.state_dict(), allowed)

    @classmethod
    def _load_prefixed(cls, prefix: str, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        state_dict = read_tensors(pretrained_model_name_or_path, prefix, **kwargs)
        location = location_of(kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in (*location, "state_dict", "variant")}
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **location, **kwargs
            )
        kwargs.setdefault("dtype", next(x.dtype for x in state_dict.values() if x.is_floating_point()))
        return super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises as https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py#L161 does."""
        if hasattr(module, "init_parameters"):  # those outside of its submodules
            module.init_parameters()
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            backbone_class(self.config).init_convolution(module)
        elif isinstance(module, WeightNormLinear):
            init.kaiming_uniform_(module.weight_v, a=5**0.5)  # nn.Linear's default, which the original keeps
            init.ones_(module.weight_g)
        else:
            super()._init_weights(module)  # norms: 1 and 0
            if self.config.zero_init_residual and getattr(module, "ends_residual_branch", False):
                init.zeros_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the first convolution."""
        return self.backbone.first_convolution

    def check_pixel_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Checks images (B, C, H, W), and returns them in the dtype of the weights.

        Raises:
            ValueError: if they are missing, not floats, not four-dimensional, or have another number of channels.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are missing: pass images of shape (batch, channels, height, width)")
        if isinstance(pixel_values, (list, tuple)):
            raise ValueError(
                "pixel_values are a list, which only forward and get_features of DinoModel take: stack them"
            )
        shape, channels = tuple(pixel_values.shape), self.config.num_channels
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype}: scale and normalise the images (AutoImageProcessor does)"
            )
        if len(shape) != 4:
            raise ValueError(f"pixel_values have shape {shape}, expected (batch, channels, height, width)")
        if shape[1] != channels:
            raise ValueError(f"pixel_values have {shape[1]} channels, but the model has num_channels={channels}")
        if not (self._checked_range or is_recorded() or pixel_values.is_meta):
            self._checked_range = True  # only the first batch: the check waits for the device
            if is_rescaled_twice(pixel_values):
                logger.warning(
                    "pixel_values are within one grey level of black: were images already in [0, 1] rescaled again? "
                    "Then pass do_rescale=False to the image processor."
                )
        return pixel_values.to(self.get_input_embeddings().weight.dtype)

    def check_attention(self, output_attentions: bool | None = None):
        """
        Raises ValueError if attention is asked of a model without.

        Args:
            output_attentions: whether it is asked for; by default as `config.output_attentions` says.
        """
        asked = self.config.output_attentions if output_attentions is None else output_attentions
        if asked and not backbone_class(self.config).has_attention:
            raise ValueError(f"{self.config.backbone} has no attention: use a ViT, or a ResNet's hidden_states")

    def check_cls_attention(self):
        """Raises ValueError if the model has no CLS token that attends to patches."""
        if not backbone_class(self.config).has_cls_attention:
            raise ValueError(f"{self.config.backbone} has no attention: use a ViT or an XCiT")

    def last_stages(self, n: int) -> list[int]:
        """Returns the numbers of the last `n` blocks or stages, from 1; raises ValueError if there are fewer."""
        depth = self.config.num_hidden_layers
        if not 1 <= n <= depth:
            raise ValueError(f"n={n} must be between 1 and {depth}")
        return list(range(depth - n + 1, depth + 1))

    def prepare_for_inference(self) -> "DinoPreTrainedModel":
        """
        Puts the model into eval mode, and the convolutions of a ResNet or ConvNeXt into the order in memory in which
        they are fastest (channels_last). Outputs are the same to rounding, and what is saved is the same bit for bit.

        Returns:
            the model.
        """
        if self.config.has_stages:
            self.to(memory_format=torch.channels_last)
        return self.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *,
        with_code: bool = False,
        **kwargs,
    ):
        """
        [`~transformers.PreTrainedModel.save_pretrained`], with the `image_transform` as `preprocessor_config.json`. A
        model that was neither loaded with one nor given one keeps a file that is there, if it fits.

        Args:
            push_to_hub: also calls [`~DinoPreTrainedModel.push_to_hub`], with its arguments in `kwargs`; `repo_id` is
                the name of the folder by default.
            with_code: also saves the code, so that the Auto classes load the folder with `trust_remote_code=True`
                where this package is not installed; `register_for_auto_class` makes this the default.
        """
        hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        saved = {"is_main_process": is_main_process, "state_dict": state_dict, "with_code": with_code, **kwargs}
        self._save(save_directory, **saved)
        if push_to_hub:
            hub_arguments = {"repo_id": Path(save_directory).resolve().name, "folder": save_directory, **hub_arguments}
            self.push_to_hub(**hub_arguments, **saved)

    def _save(
        self,
        folder: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        with_code: bool = False,
        **kwargs,
    ):
        """Writes weights, configuration and image transform, and with `with_code` the code."""
        self.config.__dict__.pop("auto_map", None)
        with_code = with_code or self._auto_class is not None
        if with_code:
            self.config.auto_map = dict(AUTO_MAP)
        if is_main_process:
            os.makedirs(folder, exist_ok=True)
            save_image_transform(self.image_transform, folder, keep=self._image_transform is None)
            if with_code:
                for file in [__file__, *get_relative_import_files(__file__)]:
                    shutil.copy(file, folder)
        super().save_pretrained(folder, is_main_process, state_dict, **kwargs)
        if is_main_process:
            for file in Path(folder).glob("*.safetensors"):
                follow_umask(file)

    def push_to_hub(self, repo_id: str, *, with_code: bool = False, **kwargs):
        """
        Puts the model on the hub in one commit: weights, configuration, image transform and a model card.

        Args, return value and errors are those of `upload_model` in `hub/pushing.py`.
        """
        try:
            from modeling_dino.hub.pushing import upload_model
        except ImportError:  # the code came from the hub, and the package is not installed
            return super().push_to_hub(repo_id, **kwargs)
        with_code = with_code or self._auto_class is not None
        return upload_model(self, repo_id, self._save, with_code=with_code, **kwargs)


class DinoModel(DinoPreTrainedModel):
    """
    Backbone and projection head.

    Example:

    ```python
    >>> from modeling_dino import DinoConfig, DinoModel

    >>> model = DinoModel(DinoConfig.from_preset("dino_vits16"))
    >>> features = model(pixel_values).pooler_output  # (B, C, H, W) -> (B, hidden_size)
    ```
    """

    def __init__(self, config: DinoConfig):
        super().__init__(config)
        self.backbone = backbone_class(config)(config)
        self.head = build_head(config)
        self.patch_head = build_patch_head(config)
        absent = [name for name in ("head", "patch_head") if getattr(self, name) is None]
        if absent:  # those in the checkpoint are left out, and not reported
            self._keys_to_ignore_on_load_unexpected = [rf"^{name}\." for name in absent]
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, which=None, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`], but a checkpoint without a head gives a model without one.

        It also takes folders and hub ids of transformers' and timm's models of the same kinds, and logs what it found.

        Args:
            head_type: `"dino"` or `"simple"` asks for a head where there is none; it is initialised as for training.
                None leaves out the head.
            which: `"teacher"` or `"student"` of a saved `DinoForPreTraining`; the teacher by default.

        Raises:
            OSError: if the weights are missing or damaged.
            ValueError: if the checkpoint has no such network.
        """
        if config is None and pretrained_model_name_or_path is not None:
            location = location_of(kwargs)
            config_dict, _ = DinoConfig.get_config_dict(pretrained_model_name_or_path, **location)
            if is_foreign(config_dict):
                network_prefix([], which)  # raises if a student is asked for
                return cls._from_foreign(pretrained_model_name_or_path, location, *model_args, **kwargs)
        keys = checkpoint_keys(pretrained_model_name_or_path, **kwargs)
        prefix = network_prefix(keys, which)
        if config is None:
            for value, name, without in (("head_type", "head", None), ("patch_head", "patch_head", False)):
                if value not in kwargs and not any(key.startswith(f"{prefix}{name}.") for key in keys):
                    kwargs[value] = without
        return cls._load_network(prefix, pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    @classmethod
    def _from_foreign(cls, name: str | os.PathLike, location: dict, *model_args, **kwargs):
        """Loads a model of another library, through the code behind `dino convert`."""
        try:
            from conversion_scripts.recognition import to_dino
        except ImportError as error:
            raise ImportError(f"{name} is a model of another library: install modeling-dino to convert it") from error
        conversion = to_dino(name, **location)
        logger.warning(f"{conversion}{''.join(f'; {note}' for note in conversion.checkpoint.notes)}")
        config = conversion.config
        kwargs = {key: value for key, value in kwargs.items() if key not in location}
        for key in [key for key in kwargs if hasattr(config, key) and key != "dtype"]:
            setattr(config, key, kwargs.pop(key))
        loaded = super().from_pretrained(
            None, *model_args, config=config, state_dict=conversion.state_dict, **{"dtype": conversion.dtype, **kwargs}
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.image_transform = conversion.image_transform
        return loaded

    @takes_lists
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | Sequence[torch.Tensor] | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        project_patches: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DinoModelOutput:
        """
        Args:
            pixel_values: (B, C, H, W), any H and W of at least one patch; or a list of (C, H, W) of different sizes.
                Each tensor of the output, (B, ...), is then a list of (...), one an image, in order.
            bool_masked_pos: (B, h * w), true for patches that are replaced by the mask token.
            project_patches: whether to compute `patch_projection`.
            local_crops: whether the images are local crops, which in training may have a norm of their own.

        Raises:
            ValueError: if the images do not fit the model, or it lacks what is asked of it.
        """
        self.check_attention(kwargs.get("output_attentions"))
        if bool_masked_pos is not None:
            if not self.config.use_mask_token:
                raise ValueError("the model has no mask token: leave out bool_masked_pos, or set use_mask_token=True")
            kwargs["bool_masked_pos"] = bool_masked_pos
        last_hidden_state = self.backbone(self.check_pixel_values(pixel_values), **kwargs)
        pooler_output = self.backbone.pool(last_hidden_state)
        patch_tokens = self.backbone.patch_tokens(last_hidden_state)
        registers = last_hidden_state[:, 1 : self.backbone.num_prefix_tokens]
        return DinoModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=pooler_output,
            projection=None if self.head is None else self.head(pooler_output),
            patch_tokens=patch_tokens,
            register_tokens=registers if self.config.num_register_tokens else None,
            patch_projection=self.project_patches(patch_tokens) if project_patches else None,
        )

    def project_patches(self, patch_tokens: torch.Tensor) -> torch.Tensor:
        """
        Computes the output of the patches' head, or of the head where patches have none of their own.

        Args:
            patch_tokens: (..., D), after the final norm; the masked ones alone, for example.

        Returns:
            (..., patch_projection_dim or projection_dim).

        Raises:
            ValueError: if the model has no head.
        """
        head = self.head if self.patch_head is None else self.patch_head
        if head is None:
            raise ValueError("the model has no projection head: set patch_head, or head_type")
        return head(patch_tokens.flatten(0, -2)).unflatten(0, patch_tokens.shape[:-1])

    def get_intermediate_layers(
        self,
        pixel_values: torch.Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], ...]:
        """
        Computes the outputs of several blocks of a ViT, or stages of a ResNet.

        Args:
            pixel_values: (B, C, H, W).
            n: the number of last layers, or the layers themselves, from 0; negative ones count from the end.
            reshape: return patch tokens as maps.
            return_class_token: return patch tokens and CLS token apart, as DINOv2 and timm do.
            norm: apply the final norm to each output of a ViT.

        Returns:
            an output a layer, in ascending order: all tokens (B, T, D), as the original; with `reshape` the patch
            tokens as (B, D, h, w); with `return_class_token` a pair of patch tokens (B, h * w, D), or the map, and CLS
            token (B, D). The output of a ResNet's stage is always its map (B, C, h, w).

        Raises:
            ValueError: if there is no such layer, or a CLS token is asked of a ResNet.
        """
        if return_class_token and not self.backbone.has_cls_token:
            raise ValueError(f"{self.config.backbone} has no CLS token: leave return_class_token=False")
        pixel_values = self.check_pixel_values(pixel_values)
        stages = self.last_stages(n) if isinstance(n, int) else [layer + 1 for layer in self.resolve_layers(n)]
        stages = sorted(set(stages))
        compute = self.backbone.normed_stages if norm else self.backbone
        outputs = compute(pixel_values, stages=stages)
        if reshape:
            patches = [self.backbone.feature_map(tokens, pixel_values, i) for tokens, i in zip(outputs, stages)]
        elif return_class_token:
            patches = [self.backbone.patch_tokens(tokens) for tokens in outputs]
        else:
            return tuple(outputs)
        return tuple(zip(patches, map(self.backbone.pool, outputs))) if return_class_token else tuple(patches)

    @takes_lists
    def get_features(self, pixel_values: torch.Tensor | Sequence[torch.Tensor], **kwargs) -> torch.Tensor:
        """
        Computes only the feature of each image, `pooler_output` to rounding: (B, C, H, W), or a list of (C, H, W) of
        different sizes, -> (B, D). `kwargs` are `bool_masked_pos` and `local_crops` of `forward`.
        """
        pixel_values = self.check_pixel_values(pixel_values)
        (feature,) = self.backbone.pooled_stages(pixel_values, self.last_stages(1), **kwargs)
        return feature

    def get_cls_tokens(self, pixel_values: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, ...]:
        """
        Computes the CLS tokens of a ViT's last blocks after the final norm; the last block computes no other tokens.

        Args:
            pixel_values: (B, C, H, W).
            n: the number of blocks.

        Returns:
            (B, D) of each block, in ascending order: those of `get_intermediate_layers`, to rounding.

        Raises:
            ValueError: for a ResNet, or if there are fewer blocks.
        """
        if not self.backbone.has_cls_token:
            raise ValueError(f"{self.config.backbone} has no CLS token: use its pooler_output")
        return tuple(self.backbone.pooled_stages(self.check_pixel_values(pixel_values), self.last_stages(n)))

    def get_attention_maps(
        self, pixel_values: torch.Tensor, layers: Sequence[int] = (-1,)
    ) -> tuple[torch.Tensor, ...]:
        """
        Computes the exact attention of the given blocks, whatever kernel the model runs on.

        Args:
            pixel_values: (B, C, H, W).
            layers: blocks from 0; negative ones count from the end.

        Returns:
            (B, heads, T, T) for each of `layers`, in their order. Rows sum to 1; token 0 is the CLS token.

        Raises:
            ValueError: for a ResNet, or if there is no such layer.
        """
        self.check_attention(True)
        return self.backbone.attention_maps(self.check_pixel_values(pixel_values), self.resolve_layers(layers))

    def get_cls_attention(self, pixel_values: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """
        Computes what the CLS token attends to among the patches, without the T x T map
        (https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py).

        Args:
            pixel_values: (B, C, H, W).
            layer: a block from 0; negative ones count from the end. An XCiT's are its class-attention blocks.

        Returns:
            (B, heads, h, w); what is missing to a sum of 1 goes to the CLS token itself, and to registers.

        Raises:
            ValueError: for a model without, or if there is no such layer.
        """
        self.check_cls_attention()
        (layer,) = self.resolve_layers([layer], self.backbone.num_attention_layers)
        return self.backbone.cls_attention(self.check_pixel_values(pixel_values), layer)

    def get_facets(
        self, pixel_values: torch.Tensor, facet: str = "key", layer: int = -1, reshape: bool = False
    ) -> torch.Tensor:
        """
        Computes the descriptors of dense correspondence (https://arxiv.org/abs/2112.05814); later blocks do not run.

        Args:
            pixel_values: (B, C, H, W).
            facet: `"query"`, `"key"` or `"value"`: what the block's attention computes by `attn.qkv`, before rotary
                positions rotate it, and without the key's bias if `key_bias=False`; `"token"`: the block's output.
            layer: a block from 0; negative ones count from the end.
            reshape: return the facets of the patches as a map.

        Returns:
            (B, heads, T, D / heads) of all tokens, of an XCiT the patches alone; tokens (B, T, D), not normed; with
            `reshape` (B, D, h, w), the channels of one head after those of another.

        Raises:
            ValueError: for a ResNet or ConvNeXt, or if there is no such facet or layer.
        """
        if not self.backbone.has_facets:
            raise ValueError(f"{self.config.backbone} has no queries, keys and values: use a ViT or an XCiT")
        if facet not in FACETS:
            raise ValueError(f"unknown facet {facet!r}: allowed are {', '.join(FACETS)}")
        (layer,), pixel_values = self.resolve_layers([layer]), self.check_pixel_values(pixel_values)
        found = self.backbone.facet(pixel_values, facet, layer)
        if not reshape:
            return found
        height, width = self.backbone.grid(pixel_values)
        patches = found[..., -height * width :, :].transpose(-2, -1).unflatten(-1, (height, width))
        return patches.flatten(1, -3).contiguous()  # (B, [heads,] channels, h, w) -> (B, D, h, w)

    def resolve_layers(self, layers: Sequence[int], depth: int | None = None) -> list[int]:
        """Returns layers with negative ones counted from the end; raises ValueError if the model has no such layer."""
        depth = self.config.num_hidden_layers if depth is None else depth
        wrong = [layer for layer in layers if not -depth <= layer < depth]
        if wrong or not len(layers):
            raise ValueError(f"no such layers, {list(layers)}: {self.config.backbone} has layers 0 to {depth - 1}")
        return [layer % depth for layer in layers]

    def get_model_info(self) -> dict[str, str | int | None]:
        """Returns name and sizes. `output_dim` is None without a head; a frozen gain is a buffer, so no parameter."""
        backbone_params = sum(p.numel() for p in self.backbone.parameters())
        heads = [head for head in (self.head, self.patch_head) if head is not None]
        head_params = sum(p.numel() for head in heads for p in head.parameters())
        return {
            "backbone": self.config.backbone,
            "feature_dim": self.config.hidden_size,
            "output_dim": None if self.head is None else self.config.projection_dim,
            "total_params": backbone_params + head_params,
            "trainable_params": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "backbone_params": backbone_params,
            "head_params": head_params,
        }


def without_head(config: DinoConfig) -> DinoConfig:
    """Returns a copy of a configuration, for a model that has no projection head."""
    config = copy.deepcopy(config)
    config.head_type, config.patch_head = None, False
    return config


class DinoForImageClassification(DinoPreTrainedModel):
    """
    A linear classifier on the feature, or on those of `config.classifier_features` and `classifier_last_blocks`.

    It has no projection head, and ignores one in the checkpoint.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(patch_)?head\."]

    def __init__(self, config: DinoConfig):
        super().__init__(without_head(config))
        self.num_labels = config.num_labels
        self.backbone = backbone_class(config)(self.config)
        self.classifier = nn.Linear(config.classifier_width, config.num_labels)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, C, H, W).
            labels: classes (B,); for several labels an image 0 or 1 (B, num_labels); for regression floats (B,) or
                (B, num_labels). `config.problem_type` decides, or else their dtype and `num_labels`.
        """
        self.check_attention(kwargs.get("output_attentions"))
        logits = self.classifier(self._features(self.check_pixel_values(pixel_values), **kwargs))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _features(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """Computes what is classified: (B, C, H, W) -> (B, classifier_width)."""
        last_blocks = self.config.classifier_last_blocks
        if last_blocks == 1:  # the backbone norms it itself
            outputs = [self.backbone(pixel_values, **kwargs)]
        else:
            outputs = self.backbone.normed_stages(pixel_values, self.last_stages(last_blocks), **kwargs)
        features = [self.backbone.pool(x) for x in outputs]
        if self.config.classifier_features == "cls_patch_mean":
            features.append(self.backbone.patch_tokens(outputs[-1]).mean(dim=1))
        return torch.cat(features, dim=-1)


class DinoBackbone(BackboneMixin, DinoPreTrainedModel):
    """Feature maps of `config.out_features` for detection and segmentation, those of a ViT normed. It has no head."""

    _keys_to_ignore_on_load_unexpected = [r"^(patch_)?head\."]

    def __init__(self, config: DinoConfig):
        super().__init__(without_head(config))
        self.backbone = backbone_class(config)(self.config)
        self.num_features = self.backbone.stage_channels
        self.has_attentions = self.backbone.has_attention
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, C, H, W).

        Returns:
            `feature_maps`: (B, channels, h, w) for each of `out_features`.
        """
        self.check_attention(kwargs.get("output_attentions"))
        pixel_values = self.check_pixel_values(pixel_values)
        stages = [self.stage_names.index(name) for name in self.out_features]
        outputs = self.backbone.normed_stages(pixel_values, stages, **kwargs)
        maps = [self.backbone.feature_map(x, pixel_values, stage) for x, stage in zip(outputs, stages)]
        return BackboneOutput(feature_maps=tuple(maps))
