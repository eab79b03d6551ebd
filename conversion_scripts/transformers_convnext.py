# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers' ConvNeXts of DINOv3, under the names in files and those of modules; no head.

`DINOv3ConvNextModel.from_pretrained(folder)` loads what is written.
"""

from conversion_scripts.checkpoint import Checkpoint, StateDict, rename
from conversion_scripts.checkpoint_format import OF_DINOV3, loss_of_patch_size
from conversion_scripts.transformers_folder import TransformersFolder, as_floats
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs in files
    ("backbone.downsample_layers.{i}.{j}.{p}", "stages.{i}.downsample_layers.{j}.{p}"),
    ("backbone.stages.{i}.{j}.dwconv.{p}", "stages.{i}.layers.{j}.depthwise_conv.{p}"),
    ("backbone.stages.{i}.{j}.norm.{p}", "stages.{i}.layers.{j}.layer_norm.{p}"),
    ("backbone.stages.{i}.{j}.pwconv1.{p}", "stages.{i}.layers.{j}.pointwise_conv1.{p}"),
    ("backbone.stages.{i}.{j}.pwconv2.{p}", "stages.{i}.layers.{j}.pointwise_conv2.{p}"),
    ("backbone.stages.{i}.{j}.gamma", "stages.{i}.layers.{j}.gamma"),
    ("backbone.norm.{p}", "layer_norm.{p}"),
]
INSTALLED = [("stages.{p}", "model.stages.{p}")]  # theirs in files, and in the modules of transformers 5
OPTIONS = {  # ours, theirs
    "layer_norm_eps": "layer_norm_eps",
    "layerscale_value": "layer_scale_init_value",
    "drop_path_rate": "drop_path_rate",
}


class TransformersConvNext(TransformersFolder):
    library = "transformers' ConvNeXt of DINOv3"
    origin = "transformers' DINOv3"
    license = "dinov3-license"
    families = ("convnext",)
    model_types = ("dinov3_convnext",)
    keys = KEYS

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        theirs = self.their_config(checkpoint)
        settings = {ours: getattr(theirs, name) for ours, name in OPTIONS.items()}
        return {**settings, "image_size": theirs.image_size, **OF_DINOV3}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        return super().to_our_names(rename(theirs, INSTALLED, inverse=True))

    def losses(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        return loss_of_patch_size(config, self.library)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        from transformers import DINOv3ConvNextConfig

        theirs = DINOv3ConvNextConfig(
            architectures=["DINOv3ConvNextModel"],
            num_channels=config.num_channels,
            hidden_sizes=config.hidden_sizes,
            depths=config.depths,
            image_size=config.image_size,
            **as_floats(config, OPTIONS),
        )
        return Checkpoint(tensors, theirs.to_diff_dict())
