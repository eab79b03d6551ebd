# SPDX-License-Identifier: Apache-2.0
"""What both backbones are made of."""


class Stage:
    """A ViT's block or a ResNet's resolution: what output capturing records as a hidden state."""


__all__ = ["Stage"]
