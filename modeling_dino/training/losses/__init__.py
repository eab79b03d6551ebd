# SPDX-License-Identifier: Apache-2.0
"""The losses of the DINOs, one a module: functions of whole batches that change no state.

| module | loss | paper |
| --- | --- | --- |
| `centering` | the teacher's targets by centering and sharpening, and the center | DINO |
| `sinkhorn` | the teacher's targets by Sinkhorn-Knopp | SwAV, DINOv2 |
| `dino` | cross-entropy between crops of an image | DINO |
| `ibot` | cross-entropy at masked patches | iBOT |
| `koleo` | entropy of the features in a batch | Spreading vectors, DINOv2 |
| `gram` | similarities among the patches of an image, anchored to those of an older teacher | DINOv3 |

`..loss` joins them. What an optimizer step changes, as the center, its caller changes where the step says so.
"""
