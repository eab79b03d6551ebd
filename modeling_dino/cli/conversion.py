# SPDX-License-Identifier: Apache-2.0
"""The command that converts checkpoints: convert."""

from conversion_scripts.options import ConvertOptions


def convert(options: ConvertOptions):
    """Converts any DINO checkpoint into any format; says what it recognised and what it left out."""
    from conversion_scripts.convert import convert as convert_checkpoint

    return convert_checkpoint(options)
