# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Every DINO as one Hugging Face model: backbone (ViT or ResNet) and projection head.

Paper: Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294.
Reference: https://github.com/facebookresearch/dino/tree/7c446df, whose parameter names are kept under `backbone.` and
`head.`. All classes share them, so each loads what another saved.

Letters in shapes: B images, C channels, H x W pixels, h x w patches or cells, T = 1 + h * w tokens, D width.
"""

import copy
import inspect
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import IMAGE_PROCESSOR_NAME, ModelOutput, TransformersKwargs, cached_file, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_files import checkpoint_keys, is_foreign, location_of, read_center, read_tensors
from .configuration_dino import RESNET_DEPTHS, VIT_SIZES, DinoConfig
from .evaluation_results import read_evaluation_results
from .hub_repository import HubRepository
from .image_processing_dino import is_rescaled_twice, save_image_processor
from .inference import prepare_for_inference
from .loss import cross_view_entropy, mean_entropy, teacher_probabilities, update_center
from .model_card import CARD_NAME, read_card, renew_card
from .projection_head import WeightNormLinear, build_head
from .resnet import ResNet
from .stage import Stage
from .vision_transformer import Attention, VisionTransformer


logger = logging.get_logger(__name__)

# what each Auto class makes of a folder that was saved with code
AUTO_MAP = {
    "AutoConfig": "configuration_dino.DinoConfig",
    "AutoModel": "modeling_dino.DinoModel",
    "AutoBackbone": "modeling_dino.DinoBackbone",
    "AutoModelForPreTraining": "modeling_dino.DinoForPreTraining",
    "AutoModelForImageClassification": "modeling_dino.DinoForImageClassification",
}
NETWORKS = ("teacher", "student")  # of a model in pretraining


@dataclass
class DinoModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`DinoModel`].

    Args:
        last_hidden_state: ViT: (B, T, D), after the final norm; ResNet: (B, C, h, w).
        pooler_output: (B, D), the feature: CLS token, or global average pool.
        hidden_states: when asked for: the embedding (or stem) and each block's (or stage's) output, not normed.
        attentions: when asked for: (B, heads, T, T) of each block.
        projection: (B, projection_dim), the head's output; None without a head.
    """

    projection: torch.FloatTensor | None = None


@dataclass
class DinoForPreTrainingOutput(ModelOutput):
    """
    Output of [`DinoForPreTraining`], of G global crops, S crops in all, and B images.

    Args:
        loss: what the student is to minimise, in nats: the teacher's entropy and the divergence from it.
        student_projection: (S * B, projection_dim), crop by crop.
        teacher_projection: (G * B, projection_dim), of the global crops.
        teacher_entropy: of the centered and sharpened output, in nats, mean over crops and images. A collapsed teacher
            has 0, or ln(projection_dim).
        kl_divergence: from teacher to student, in nats, mean over pairs and images.
        image_information: how much of the teacher's output depends on the image, in nats, at most ln(B): the entropy
            of the mean output without the mean entropy. A teacher that says the same of every image has 0.
    """

    loss: torch.FloatTensor | None = None
    student_projection: torch.FloatTensor | None = None
    teacher_projection: torch.FloatTensor | None = None
    teacher_entropy: torch.FloatTensor | None = None
    kl_divergence: torch.FloatTensor | None = None
    image_information: torch.FloatTensor | None = None


BACKBONE_CLASSES = {**dict.fromkeys(VIT_SIZES, VisionTransformer), **dict.fromkeys(RESNET_DEPTHS, ResNet)}


def backbone_class(config: DinoConfig) -> type[VisionTransformer] | type[ResNet]:
    """The class of the backbone that a configuration names; its attributes say what such a backbone has."""
    return BACKBONE_CLASSES[config.backbone]


def build_backbone(config: DinoConfig) -> VisionTransformer | ResNet:
    """The backbone that the configuration names."""
    return backbone_class(config)(config)


def network_prefix(keys: list[str], which: str | None) -> str:
    """
    The prefix of the names of a network's tensors, among those of a checkpoint; none if it holds a single one.

    Raises:
        ValueError: if the network that is asked for is not there.
    """
    if which not in (None, *NETWORKS):
        raise ValueError(f"unknown network {which!r}: allowed are {', '.join(NETWORKS)}")
    there = [name for name in NETWORKS if any(key.startswith(f"{name}.") for key in keys)]
    if which is None and not there:
        return ""
    which = which or "teacher"
    if which not in there:
        raise ValueError(f"there is no {which} in the checkpoint, only a {there[0] if there else 'single network'}")
    return f"{which}."


class DinoPreTrainedModel(PreTrainedModel):
    """What all DINO models share: initialisation, checks of the input, saving and loading."""

    config_class = DinoConfig
    base_model_prefix = "dino"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "BasicBlock", "Bottleneck"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _checked_range = False
    _can_record_outputs = {"hidden_states": Stage, "attentions": Attention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, which=None, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`].

        Args:
            which: of what [`DinoForPreTraining`] saved, `"teacher"` (if not given) or `"student"`.

        Raises:
            OSError: if the weights are missing or damaged.
            ValueError: if the network that is asked for is not there.
        """
        prefix = network_prefix(checkpoint_keys(pretrained_model_name_or_path, **kwargs), which)
        return cls._load_network(prefix, pretrained_model_name_or_path, *model_args, **kwargs)

    @classmethod
    def _load_network(cls, prefix: str, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """The whole checkpoint, or the one network whose tensors' names start with the prefix."""
        if not prefix:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
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
        """As the original: https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py#L161."""
        if isinstance(module, VisionTransformer):
            init.trunc_normal_(module.cls_token, std=0.02)
            init.trunc_normal_(module.pos_embed, std=0.02)
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
        """The first convolution."""
        return self.backbone.first_convolution

    def check_pixel_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The images (B, C, H, W) in the dtype of the weights.

        Raises:
            ValueError: if they are missing, not floats, not four-dimensional, or have another number of channels.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are missing: pass images of shape (batch, channels, height, width)")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype}: scale and normalise the images (AutoImageProcessor does)"
            )
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, expected (batch, channels, height, width)"
            )
        if pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values have {pixel_values.shape[1]} channels, but the model has "
                f"num_channels={self.config.num_channels}"
            )
        if not (self._checked_range or torch.compiler.is_compiling() or pixel_values.is_meta):
            self._checked_range = True  # the first batch will do: the check waits for the device
            if is_rescaled_twice(pixel_values):
                logger.warning(
                    "pixel_values are within one grey level of black: were images already in [0, 1] rescaled again? "
                    "Then pass do_rescale=False to the image processor."
                )
        return pixel_values.to(self.get_input_embeddings().weight.dtype)

    def check_attention(self, output_attentions: bool | None = None):
        """
        Args:
            output_attentions: whether attention is asked for; `config.output_attentions` where not given.

        Raises:
            ValueError: if it is asked of a ResNet.
        """
        asked = self.config.output_attentions if output_attentions is None else output_attentions
        if asked and not backbone_class(self.config).has_attention:
            raise ValueError(f"{self.config.backbone} has no attention: use a ViT, or a ResNet's hidden_states")

    def prepare_for_inference(self) -> "DinoPreTrainedModel":
        """
        Makes the backbone faster, in place, and unable to be trained; outputs are the same to rounding.

        What is saved stays the same, bit for bit. The backbone gives no gradient any more, and whoever hooks into its
        modules may see tensors that are written over. Doing it twice does nothing.

        Returns:
            the model, in eval mode.

        Raises:
            ValueError: for a model in pretraining; prepare its teacher.
        """
        if not hasattr(self, "backbone"):
            raise ValueError("student and teacher are trained: prepare what DinoModel.from_pretrained makes of either")
        prepare_for_inference(self.backbone)
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
        [`~transformers.PreTrainedModel.save_pretrained`], with the `preprocessor_config.json` of the evaluation
        transform (one that is there and fits the model is kept).

        Args:
            push_to_hub: then also [`~DinoPreTrainedModel.push_to_hub`], with its arguments in `kwargs`; the folder's
                name is `repo_id` where that is not given.
            with_code: save the code too, so that the Auto classes load the folder with `trust_remote_code=True` where
                this package is not installed; `register_for_auto_class` asks for it once and for all.
        """
        of_pushing = inspect.signature(self.push_to_hub).parameters
        hub_arguments = {name: kwargs.pop(name) for name in of_pushing if name in kwargs}
        with_code = with_code or self._auto_class is not None
        self.config.__dict__.pop("auto_map", None)
        if with_code:
            self.config.auto_map = dict(AUTO_MAP)
        if is_main_process:
            os.makedirs(save_directory, exist_ok=True)
            save_image_processor(self.config, save_directory)
            if with_code:
                for file in [__file__, *get_relative_import_files(__file__)]:
                    shutil.copy(file, save_directory)
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if push_to_hub:
            hub_arguments = {"repo_id": Path(save_directory).resolve().name, "folder": save_directory, **hub_arguments}
            saved = {"is_main_process": is_main_process, "state_dict": state_dict, "with_code": with_code, **kwargs}
            self.push_to_hub(**hub_arguments, **saved)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        with_code: bool = False,
        license: str | None = None,
        folder: str | os.PathLike | None = None,
        tags: Sequence[str] | str = (),
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        commit_description: str | None = None,
        create_pr: bool = False,
        is_main_process: bool = True,
        **kwargs,
    ) -> CommitInfo | None:
        """
        Puts the model on the hub in one commit: weights, configuration, image transform and a model card.

        A card that somebody wrote or edited, in the folder or on the hub, is kept.

        Args:
            repo_id: `name` or `namespace/name`; the repository is made if it is not there.
            with_code: push the code too, so that it loads with `trust_remote_code=True` without this package.
            license: an identifier that the hub knows, e.g. `"apache-2.0"`, for the card.
            folder: where a `README.md` and an `evaluation_results.json` may lie; by default where the model was loaded
                from.
            tags: for the card.
            private, token, revision, commit_message, commit_description, create_pr: as everywhere in transformers.
            kwargs: of [`~transformers.PreTrainedModel.save_pretrained`].

        Returns:
            the commit, which has a `repo_url`; None in processes other than the main one.

        Raises:
            ValueError: if the name, the evaluation results or the card's metadata cannot be.
            OSError: if the hub cannot be reached, or refuses; in one line.
        """
        folder = folder or self.name_or_path or None
        results = [] if folder is None else read_evaluation_results(folder)
        repository = HubRepository(repo_id, token, private, revision) if is_main_process else None
        kwargs.pop("distributed_checkpoint", None)  # others want it whole
        with tempfile.TemporaryDirectory() as files:
            if (processor := self._find_image_processor(folder)) is not None:
                shutil.copy(processor, files)
            self.save_pretrained(files, is_main_process, with_code=with_code, **kwargs)
            if repository is None:
                return None
            card = renew_card(
                [None if folder is None else read_card(folder), repository.read(CARD_NAME)],
                self,
                repository.repo_id,
                license,
                with_code=with_code or self._auto_class is not None,
                results=results,
                tags=[*(self.model_tags or ()), *([tags] if isinstance(tags, str) else tags)],
            )
            (Path(files) / CARD_NAME).write_bytes(card.encode())
            return repository.upload(
                files, commit_message=commit_message, commit_description=commit_description, create_pr=create_pr
            )

    def _find_image_processor(self, source: str | os.PathLike | None) -> str | None:
        """The `preprocessor_config.json` in a folder, or on the hub where the model was loaded from there."""
        with suppress(OSError):  # such as that there is no such folder any more
            revision = getattr(self.config, "_commit_hash", None)
            return source and cached_file(
                source, IMAGE_PROCESSOR_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
            )
        return None


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
        self.backbone = build_backbone(config)
        self.head = build_head(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, which=None, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`], but a checkpoint without a head gives a model without one.

        Takes folders and hub ids of transformers' ViT and of timm's ViTs and ResNets as well, and says what it found.

        Args:
            head_type: `"dino"` or `"simple"` asks for a head all the same; it is initialised as for training.
            which: of what [`DinoForPreTraining`] saved, `"teacher"` (if not given) or `"student"`.

        Raises:
            OSError: if the weights are missing or damaged.
            ValueError: if the network that is asked for is not there.
        """
        if config is None and pretrained_model_name_or_path is not None:
            location = location_of(kwargs)
            config_dict, _ = DinoConfig.get_config_dict(pretrained_model_name_or_path, **location)
            if is_foreign(config_dict):
                network_prefix([], which)  # refuses what a single network has not
                return cls._from_foreign(pretrained_model_name_or_path, location, *model_args, **kwargs)
        keys = checkpoint_keys(pretrained_model_name_or_path, **kwargs)
        prefix = network_prefix(keys, which)
        if config is None and "head_type" not in kwargs and not any(key.startswith(f"{prefix}head.") for key in keys):
            kwargs["head_type"] = None
        return cls._load_network(prefix, pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    @classmethod
    def _from_foreign(cls, name: str | os.PathLike, location: dict, *model_args, **kwargs):
        """A model of another library, by the code behind `dino convert`."""
        try:
            from conversion_scripts.convert import to_dino
        except ImportError as error:
            raise ImportError(f"{name} is a model of another library: install modeling-dino to convert it") from error
        conversion = to_dino(name, **location)
        logger.warning(f"{conversion}{''.join(f'; {note}' for note in conversion.checkpoint.notes)}")
        config = conversion.config
        kwargs = {key: value for key, value in kwargs.items() if key not in location}
        for key in [key for key in kwargs if hasattr(config, key) and key != "dtype"]:
            setattr(config, key, kwargs.pop(key))
        return super().from_pretrained(
            None, *model_args, config=config, state_dict=conversion.state_dict, **{"dtype": conversion.dtype, **kwargs}
        )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> DinoModelOutput:
        """
        Args:
            pixel_values: (B, C, H, W), any H and W of at least one patch.

        Raises:
            ValueError: if the images do not fit the model, or attention is asked of a ResNet.
        """
        self.check_attention(kwargs.get("output_attentions"))
        last_hidden_state = self.backbone(self.check_pixel_values(pixel_values), **kwargs)
        pooler_output = self.backbone.pool(last_hidden_state)
        projection = None if self.head is None else self.head(pooler_output)
        return DinoModelOutput(last_hidden_state=last_hidden_state, pooler_output=pooler_output, projection=projection)

    def get_intermediate_layers(
        self,
        pixel_values: torch.Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], ...]:
        """
        Outputs of several blocks of a ViT, or stages of a ResNet.

        Args:
            pixel_values: (B, C, H, W).
            n: how many from the end, or which (counted from 0; negative ones from the end).
            reshape: patch tokens as maps.
            return_class_token: patch tokens and CLS token apart, as DINOv2 and timm give them.
            norm: apply the final norm to each (ViT).

        Returns:
            one a layer, in ascending order: all tokens (B, T, D), as the original; with `reshape` the patch tokens as
            (B, D, h, w); with `return_class_token` a pair of patch tokens (B, h * w, D), or the map, and CLS token
            (B, D). Of a ResNet always the map (B, C, h, w).

        Raises:
            ValueError: if there is no such layer, or a CLS token is asked of a ResNet.
        """
        if return_class_token and not self.backbone.has_cls_token:
            raise ValueError(f"{self.config.backbone} has no CLS token: leave return_class_token=False")
        pixel_values = self.check_pixel_values(pixel_values)
        depth = self.config.num_hidden_layers
        if isinstance(n, int) and not 1 <= n <= depth:
            raise ValueError(f"n={n} must be between 1 and {depth}")
        layers = range(depth)[-n:] if isinstance(n, int) else n
        stages = sorted({layer + 1 for layer in self._resolve_layers(layers)})
        outputs = self.backbone(pixel_values, stages=stages)
        if norm:
            outputs = [self.backbone.normalize(tokens) for tokens in outputs]
        if not (reshape or return_class_token):
            return tuple(outputs)
        if reshape:
            patches = [self.backbone.feature_map(tokens, pixel_values) for tokens in outputs]
        else:
            patches = [self.backbone.patch_tokens(tokens) for tokens in outputs]
        if return_class_token:
            return tuple((patch, self.backbone.pool(tokens)) for patch, tokens in zip(patches, outputs))
        return tuple(patches)

    def get_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The feature of each image, `pooler_output` to rounding, (B, C, H, W) -> (B, D), and no other output."""
        (feature,) = self.backbone.pooled_stages(
            self.check_pixel_values(pixel_values), [self.config.num_hidden_layers]
        )
        return feature

    def get_cls_tokens(self, pixel_values: torch.Tensor, n: int = 1) -> tuple[torch.Tensor, ...]:
        """
        The CLS tokens of a ViT's last blocks after the final norm; the last block computes its other tokens no more.

        Args:
            pixel_values: (B, C, H, W).
            n: of how many blocks.

        Returns:
            (B, D) of each, in ascending order: those of `get_intermediate_layers`, to rounding.

        Raises:
            ValueError: for a ResNet, or if there are fewer blocks.
        """
        if not self.backbone.has_cls_token:
            raise ValueError(f"{self.config.backbone} has no CLS token: use its pooler_output")
        depth = self.config.num_hidden_layers
        if not 1 <= n <= depth:
            raise ValueError(f"n={n} must be between 1 and {depth}")
        stages = list(range(depth - n + 1, depth + 1))
        return tuple(self.backbone.pooled_stages(self.check_pixel_values(pixel_values), stages))

    def get_attention_maps(
        self, pixel_values: torch.Tensor, layers: Sequence[int] = (-1,)
    ) -> tuple[torch.Tensor, ...]:
        """
        The attention of the given blocks, exact, whatever kernel the model runs on.

        Args:
            pixel_values: (B, C, H, W).
            layers: which blocks, counted from 0; negative ones from the end.

        Returns:
            (B, heads, T, T) for each of `layers`, in their order. Rows sum to 1; token 0 is the CLS token.

        Raises:
            ValueError: for a ResNet, or if there is no such layer.
        """
        self.check_attention(True)
        return self.backbone.attention_maps(self.check_pixel_values(pixel_values), self._resolve_layers(layers))

    def get_cls_attention(self, pixel_values: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """
        What the CLS token attends to among the patches, without making the T x T map
        (https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py).

        Args:
            pixel_values: (B, C, H, W).
            layer: which block, counted from 0; negative ones from the end.

        Returns:
            (B, heads, h, w); what is missing to a sum of 1 goes to the CLS token itself.

        Raises:
            ValueError: for a ResNet, or if there is no such layer.
        """
        self.check_attention(True)
        (layer,) = self._resolve_layers([layer])
        return self.backbone.cls_attention(self.check_pixel_values(pixel_values), layer)

    def _resolve_layers(self, layers: Sequence[int]) -> list[int]:
        """Layers counted from 0, of which negative ones are counted from the end."""
        depth = self.config.num_hidden_layers
        wrong = [layer for layer in layers if not -depth <= layer < depth]
        if wrong or not len(layers):
            raise ValueError(f"no such layers, {list(layers)}: {self.config.backbone} has layers 0 to {depth - 1}")
        return [layer % depth for layer in layers]

    def get_model_info(self) -> dict[str, str | int | None]:
        """Name and sizes: backbone, feature_dim, output_dim (None without a head), and numbers of parameters.

        A frozen gain of the head is a buffer, so not among the parameters.
        """
        backbone_params = sum(p.numel() for p in self.backbone.parameters())
        head_params = 0 if self.head is None else sum(p.numel() for p in self.head.parameters())
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
    """The same configuration for a model that has no projection head."""
    config = copy.deepcopy(config)
    config.head_type = None
    return config


class DinoForImageClassification(DinoPreTrainedModel):
    """
    A linear classifier on the feature, or on those of `config.classifier_features` and `classifier_last_blocks`.

    It has no projection head; one in the checkpoint is left out.
    """

    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    def __init__(self, config: DinoConfig):
        super().__init__(without_head(config))
        self.num_labels = config.num_labels
        self.backbone = build_backbone(self.config)
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
            labels: classes (B,), for several labels an image 0 or 1 (B, num_labels), for regression floats (B,) or
                (B, num_labels). `config.problem_type` says which; where it is not set, dtype and num_labels do.
        """
        self.check_attention(kwargs.get("output_attentions"))
        logits = self.classifier(self._features(self.check_pixel_values(pixel_values), **kwargs))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _features(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """What is classified: (B, C, H, W) -> (B, classifier_width)."""
        depth, last_blocks = self.config.num_hidden_layers, self.config.classifier_last_blocks
        if last_blocks == 1:
            outputs = [self.backbone(pixel_values, **kwargs)]
        else:
            stages = list(range(depth - last_blocks + 1, depth + 1))
            outputs = [self.backbone.normalize(x) for x in self.backbone(pixel_values, stages=stages, **kwargs)]
        features = [self.backbone.pool(x) for x in outputs]
        if self.config.classifier_features == "cls_patch_mean":
            features.append(self.backbone.patch_tokens(outputs[-1]).mean(dim=1))
        return torch.cat(features, dim=-1)


class DinoBackbone(BackboneMixin, DinoPreTrainedModel):
    """Feature maps of `config.out_features` for detection and segmentation. A ViT's are normed. It has no head."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    def __init__(self, config: DinoConfig):
        super().__init__(without_head(config))
        self.backbone = build_backbone(self.config)
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
        outputs = self.backbone(pixel_values, stages=stages, **kwargs)
        outputs = [self.backbone.normalize(x) for x in outputs]
        return BackboneOutput(feature_maps=tuple(self.backbone.feature_map(x, pixel_values) for x in outputs))


def project_crops(network: DinoModel, crops: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    The head's outputs on crops of any sizes; those of one size go through the backbone together, and all through the
    head (`MultiCropWrapper` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py).

    Args:
        crops: each (B, C, h, w).

    Returns:
        (crops * B, projection_dim), crop by crop.
    """
    features: list[torch.Tensor | None] = [None] * len(crops)
    for size in dict.fromkeys(crop.shape[-2:] for crop in crops):
        indices = [i for i, crop in enumerate(crops) if crop.shape[-2:] == size]
        pooled = network.get_features(torch.cat([crops[i] for i in indices]))
        for i, feature in zip(indices, pooled.chunk(len(indices))):
            features[i] = feature
    return network.head(torch.cat(features))


class DinoForPreTraining(DinoPreTrainedModel):
    """
    Student and teacher, each backbone and head, and the center of the teacher's outputs.

    The teacher has no gradient and no dropout or drop path; in train mode its batch norms go by the batch, as in the
    original. `forward` changes neither the teacher nor the center: after each optimizer step call `update_teacher` and
    `update_center`, as [`DinoTrainer`] does.

    Example:

    ```python
    >>> output = model([global_crop, global_crop_2, local_crop])  # each (B, C, h, w)
    >>> output.loss.backward()
    >>> optimizer.step()
    >>> model.update_teacher(momentum=0.996)
    >>> model.update_center(output.teacher_projection)
    ```
    """

    def __init__(self, config: DinoConfig):
        if config.head_type is None:
            raise ValueError("pretraining needs a projection head: set head_type")
        super().__init__(config)
        teacher_config = copy.deepcopy(config)
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            setattr(teacher_config, name, 0.0)
        self.student = DinoModel(config)
        self.teacher = DinoModel(teacher_config)
        self.register_buffer("center", torch.zeros(1, config.projection_dim))
        self.post_init()
        self._start_teacher()

    def _start_teacher(self):
        """The teacher starts as the student, and is never trained."""
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    @classmethod
    def from_model(cls, model: DinoModel, **overrides) -> "DinoForPreTraining":
        """
        Student and teacher that both start from a model; a head that it lacks is initialised as for training.

        Args:
            overrides: arguments of `DinoConfig` that replace the model's, e.g. `drop_path_rate`.

        Raises:
            ValueError: if the weights do not fit with the overrides.
        """
        values = {**model.config.to_dict(), **overrides}
        values["head_type"] = values["head_type"] or "dino"
        pretraining = cls(DinoConfig.from_dict(values))
        try:
            pretraining.student.load_state_dict(model.state_dict(), strict=model.head is not None)
        except RuntimeError as error:
            raise ValueError(
                f"the model's weights do not fit {overrides}: {str(error).splitlines()[1].strip()}"
            ) from None
        pretraining._start_teacher()
        return pretraining

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`]. From a single model, any that [`DinoModel`] loads, student
        and teacher both start, with the center that `dino convert` put beside it, if any.

        Raises:
            OSError: if the weights are missing or damaged.
        """
        if is_single_model(pretrained_model_name_or_path, **kwargs):
            model = DinoModel.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
            pretraining = cls.from_model(model)
            center = read_center(pretrained_model_name_or_path, **kwargs)
            if center is not None:
                pretraining.center.copy_(center)
            return pretraining
        loaded = cls._load_network("", pretrained_model_name_or_path, *model_args, **kwargs)
        pretraining = loaded[0] if isinstance(loaded, tuple) else loaded
        pretraining.teacher.requires_grad_(False)  # transformers makes all that it loads trainable
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, DinoForPreTraining):
            init.zeros_(module.center)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The student's first convolution."""
        return self.student.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Sequence[torch.Tensor] | None = None,
        num_global_crops: int = 2,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
    ) -> DinoForPreTrainingOutput:
        """
        Args:
            pixel_values: the crops of B images, global ones first, each (B, C, h, w); their sizes may differ.
            num_global_crops: how many of them are global; the teacher sees these alone.

        Raises:
            ValueError: if the crops do not fit the model or each other.
        """
        check_crops(pixel_values, num_global_crops)
        student = project_crops(self.student, pixel_values)
        with torch.no_grad():
            teacher = project_crops(self.teacher, pixel_values[:num_global_crops])
        targets = teacher_probabilities(teacher, self.center, teacher_temperature, num_global_crops)
        loss = cross_view_entropy(student, targets, student_temperature)
        entropy = mean_entropy(targets)
        return DinoForPreTrainingOutput(
            loss=loss,
            student_projection=student,
            teacher_projection=teacher,
            teacher_entropy=entropy,
            kl_divergence=loss.detach() - entropy,
            image_information=mean_entropy(targets.mean((0, 1))) - entropy,
        )

    @torch.no_grad()
    def update_teacher(self, momentum: float):
        """Moves the teacher's parameters towards the student's; not the batch norms' statistics, which are its own.

        Args:
            momentum: how much of the teacher stays.
        """
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def update_center(self, teacher_projection: torch.Tensor, momentum: float = 0.9, count: int | None = None):
        """Moves the center towards the mean of the teacher's outputs of all processes: [`update_center`] of `loss`."""
        update_center(self.center, teacher_projection, momentum, count)


def is_single_model(name_or_path: str | os.PathLike, **kwargs) -> bool:
    """Whether a saved model is not one of [`DinoForPreTraining`]."""
    if name_or_path is not None and is_foreign(DinoConfig.get_config_dict(name_or_path, **location_of(kwargs))[0]):
        return True
    return not any(key.startswith(("teacher.", "student.")) for key in checkpoint_keys(name_or_path, **kwargs))


def check_crops(crops: Sequence[torch.Tensor] | None, num_global_crops: int):
    """
    Raises:
        ValueError: if they are not a list of batches of the same images, with as many global ones as said.
    """
    if not isinstance(crops, (list, tuple)) or not crops:
        raise ValueError(
            "pixel_values must be a list of crops, global ones first, each (batch, channels, height, width)"
        )
    if not 1 <= num_global_crops <= len(crops) or len(crops) < 2:
        raise ValueError(f"{len(crops)} crops with num_global_crops={num_global_crops}: at least two crops are needed")
    if len({len(crop) for crop in crops}) > 1:
        raise ValueError(f"the crops are of different numbers of images: {[len(crop) for crop in crops]}")


__all__ = [
    "DinoBackbone",
    "DinoForImageClassification",
    "DinoForPreTraining",
    "DinoForPreTrainingOutput",
    "DinoModel",
    "DinoModelOutput",
    "DinoPreTrainedModel",
]
