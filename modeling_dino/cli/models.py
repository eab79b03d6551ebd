# SPDX-License-Identifier: Apache-2.0
"""The commands that show and push models."""

from ..hub.options import InfoOptions, PushOptions


def info(options: InfoOptions):
    """Shows the sizes of a model, or of all presets: parameters, features, memory of weights, FLOPs of an image."""
    from ..hub.info import show_sizes

    return show_sizes(options)


def push(options: PushOptions):
    """Pushes a model to the hub with its image transform and a model card, and prints its address."""
    from ..hub.pushing import push_saved_model

    return push_saved_model(options)
