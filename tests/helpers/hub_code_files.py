# SPDX-License-Identifier: Apache-2.0
"""The files that go to the hub with a model that is saved with code: all that is the model's."""

CODE_FILES = {
    "backbone.py",
    "block_parts.py",
    "checkpoint_files.py",
    "configuration_dino.py",
    "convnext.py",
    "image_processing_dino.py",
    "modeling_dino.py",
    "positions.py",
    "projection_head.py",
    "resnet.py",
    "vision_transformer.py",
    "xcit.py",
}
