# SPDX-License-Identifier: Apache-2.0
"""Refuses numbers that are not finite, before anything is written, drawn or computed of them."""

from collections.abc import Sequence

import torch


def check_finite(values: torch.Tensor, what: str, names: Sequence[str | int], dtype: str | torch.dtype = "float32"):
    """
    Raises ValueError if a value is NaN or infinite; the message names the first image that has one.

    Args:
        values: (N, ...), of N images.
        what: begins the message, before the name: "the feature of".
        names: of the images, (N,).
        dtype: in which the values were computed.
    """
    finite = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
    if finite.all():
        return
    name = names[int((~finite).nonzero()[0])]
    is_half = dtype in ("float16", torch.float16)
    raise ValueError(
        f"{what} {name} is not finite: the model's weights or its image transform are damaged"
        + (", or float16 overflows: use float32 or bfloat16" if is_half else "")
    )
