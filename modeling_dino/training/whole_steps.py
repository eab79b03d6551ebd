# SPDX-License-Identifier: Apache-2.0
"""What depends on all images of a step, where these come in parts: where gradients are accumulated.

Sinkhorn-Knopp balances the teacher's outputs for all of them, and KoLeo looks for neighbours among all. So a step goes
over its parts twice:

```
previews = [model(part, preview=seed) for part, seed in zip(parts, seeds)]    # without gradients
for part, known in zip(parts, know_step(previews, …)):
    (model(part, known=known).loss / len(parts)).backward()                 # targets, neighbours: of the whole step
```

The teacher sees each image once, in its preview. The student sees the global crops in both passes, with the same
randomness, where KoLeo asks for it: the features are then those of the first pass, bit for bit.

Letters in shapes: B images of a part, N of all parts in this process, G global crops, M masked patches, K prototypes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from .losses.sinkhorn import sinkhorn_knopp
from .objectives import Objectives
from .views import Views


@dataclass
class Preview:
    """
    Holds what is known of a part before any gradient is computed.

    Args:
        teacher: what the teacher says of it; None if targets do not depend on the whole step.
        features: (B, D), the student's of each global crop; None if they are not compared over the whole step.
        seed: of the student's randomness.
    """

    teacher: Views | None = None
    features: Sequence[torch.Tensor] | None = None
    seed: int | None = None


@dataclass
class KnownOfStep:
    """
    Holds what is known of the whole step when the losses of a part are computed.

    Args:
        teacher, seed: as in [`Preview`].
        targets: (G * B, K), of this part's crops.
        patch_targets: (M, K), of its masked patches.
        features: (N, D), the student's of each global crop, of all parts.
        first: the row of this part's first image in them.
    """

    teacher: Views | None = None
    targets: torch.Tensor | None = None
    patch_targets: torch.Tensor | None = None
    features: Sequence[torch.Tensor] | None = None
    first: int = 0
    seed: int | None = None


def know_step(previews: Sequence[Preview], objectives: Objectives, teacher_temperature: float) -> list[KnownOfStep]:
    """Returns what each part must know of the others."""
    targets = patch_targets = [None] * len(previews)
    features, firsts = None, [0] * len(previews)
    if objectives.balances_step:
        if objectives.dino_weight:
            targets = balance([preview.teacher.projection for preview in previews], teacher_temperature)
        if objectives.ibot_weight:
            patch_targets = balance([preview.teacher.patch_projection for preview in previews], teacher_temperature)
    if objectives.spreads_step:
        features = [torch.cat(crops) for crops in zip(*(preview.features for preview in previews))]
        firsts = [0, *accumulate(len(preview.features[0]) for preview in previews)][:-1]
    return [
        KnownOfStep(preview.teacher, of_crops, of_patches, features, first, preview.seed)
        for preview, of_crops, of_patches, first in zip(previews, targets, patch_targets, firsts)
    ]


def balance(outputs: Sequence[torch.Tensor], temperature: float) -> Sequence[torch.Tensor]:
    """Returns the targets of outputs that come in parts, by Sinkhorn-Knopp of all together."""
    return sinkhorn_knopp(torch.cat(list(outputs)), temperature).split([len(part) for part in outputs])


@contextmanager
def drawn_by(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draws what is random by a seed; leaves PyTorch's generators as they were. Does nothing without a seed."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Leaves the statistics of batch norms as they were."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
