# SPDX-License-Identifier: Apache-2.0
"""The options of `segment`: which video is segmented, and how the labels of its patches are found."""

from dataclasses import dataclass

from ..pictures.options import PictureOptions
from ..runtime.options import option


@dataclass(frozen=True, kw_only=True)
class PropagationSettings:
    """
    From which patches a patch takes its label.

    Raises:
        ValueError: if a value cannot work.
    """

    num_last_frames: int = option("Frames before it, beside the first, that a frame takes its labels from.", 7)
    radius: int = option("How many patches an object may move; 0 for any number.", 12)
    top_k: int = option("From how many patches of all these frames a patch takes its label.", 5)
    temperature: float = 0.1  # of the affinity exp(cosine / temperature)

    def __post_init__(self):
        for name, least in (("num_last_frames", 0), ("radius", 0), ("top_k", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(PropagationSettings, PictureOptions):
    """What is segmented, and what is written."""

    video: str = option("A video, or a folder of its frames.")
    mask: str = option("Mask of the first frame: a palette PNG with the object's number at each pixel.")
    ground_truth: str | None = option("Folder of masks of all frames, to score by.", None)
    overlay: bool = option("Also write a video of the masks over the frames, overlay.mp4.", False)
    fps: float | None = option("Frames a second of the overlay; by default the video's own, or 24.", None)

    def __post_init__(self):
        PropagationSettings.__post_init__(self)
        PictureOptions.__post_init__(self)
