# SPDX-License-Identifier: Apache-2.0
"""The command `demo`."""

from ..demo.options import DemoOptions


def demo(options: DemoOptions):
    """Pretrains on scikit-image's photographs, extracts features, evaluates them, and draws pictures, in minutes."""
    from ..demo.run import run_demo

    return run_demo(options)
