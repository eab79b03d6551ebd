# SPDX-License-Identifier: Apache-2.0
"""timm's ConvNeXts, of which some are DINOv3's: hub folders, and files of their state dicts; no head."""

from conversion_scripts.checkpoint import Checkpoint, StateDict
from conversion_scripts.checkpoint_format import CONVNEXT_STAGES, OF_DINOV3, loss_of_patch_size
from conversion_scripts.timm_folder import TimmFormat
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs
    ("backbone.downsample_layers.0.{j}.{p}", "stem.{j}.{p}"),
    ("backbone.downsample_layers.{i}.{j}.{p}", "stages.{i}.downsample.{j}.{p}"),
    ("backbone.stages.{i}.{j}.dwconv.{p}", "stages.{i}.blocks.{j}.conv_dw.{p}"),
    ("backbone.stages.{i}.{j}.norm.{p}", "stages.{i}.blocks.{j}.norm.{p}"),
    ("backbone.stages.{i}.{j}.pwconv1.{p}", "stages.{i}.blocks.{j}.mlp.fc1.{p}"),
    ("backbone.stages.{i}.{j}.pwconv2.{p}", "stages.{i}.blocks.{j}.mlp.fc2.{p}"),
    ("backbone.stages.{i}.{j}.gamma", "stages.{i}.blocks.{j}.gamma"),
    ("backbone.norm.{p}", "head.norm.{p}"),
]


class TimmConvNext(TimmFormat):
    license = "dinov3-license"
    families = ("convnext",)
    needed = CONVNEXT_STAGES
    keys = KEYS
    not_dinos = ("head.fc.",)
    classifiers = {"convnext": "head.fc."}

    def fits(self, names: set[str]) -> bool:
        return {"stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.norm.weight"} <= names

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        return dict(OF_DINOV3)

    def losses(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        return loss_of_patch_size(config, self.library)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        model_args = {"depths": config.depths, "dims": config.hidden_sizes, "ls_init_value": config.layerscale_value}
        return self.packed(config.backbone, model_args, config, tensors)
