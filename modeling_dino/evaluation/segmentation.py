# SPDX-License-Identifier: Apache-2.0
"""Video object segmentation: the mask of a video's first frame, carried through the others, and scored.

The protocol of the original on DAVIS 2017: https://github.com/facebookresearch/dino/blob/7c446df/README.md, "Video
object segmentation". The model is not trained for it.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from ..data.frames import Frame, Frames, ImageFrames, open_frames
from ..data.video import is_video, write_video
from ..hub.evaluation_results import record_evaluation_results
from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..pictures.patch_images import PatchTransform
from ..pictures.picture_files import frame_rate, new_folder
from ..runtime.extras import require
from ..runtime.processes import processes
from ..runtime.whole_files import whole_file
from .mask_files import Mask, davis_palette, read_mask, write_mask
from .mask_propagation import MaskPropagation, PropagationSettings, grid_labels, pixel_objects, video_size
from .mask_scores import VideoScores, score_frame, statistics


if TYPE_CHECKING:
    from PIL import Image

TASK = "video-object-segmentation"
DAVIS_FPS = 24
OPACITY = 0.5


@dataclass(frozen=True)
class SegmentationSummary:
    """What was done; scores where there is a ground truth, and where they are recorded."""

    num_frames: int
    num_objects: int
    output: Path
    scores: VideoScores | None = None
    recorded: str | None = None

    def __str__(self) -> str:
        done = f"{self.num_objects} objects in {self.num_frames} frames -> {self.output}"
        if self.scores is None:
            return done
        scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.scores.means().items())
        return f"{done}; {scores}; {self.recorded}"


class VideoSegmentation:
    """
    The masks of a video's frames, which are handed in one after the other.

    Args:
        mask: of the first frame.
    """

    def __init__(self, model: DinoModel, transform: PatchTransform, settings: PropagationSettings, mask: Mask):
        self.model, self.transform, self.settings, self.mask = model, transform, settings, mask
        self._propagation: MaskPropagation | None = None

    def __call__(self, frame: Frame) -> Mask:
        """
        The objects in the next frame; in the first those that were given.

        Raises:
            ValueError: if the frame has another size than the mask, no object is large enough to be followed, or the
                features are not finite.
        """
        size = tuple(self.mask.objects.shape)
        if frame.image.size[::-1] != size:
            raise ValueError(
                f"{frame.source} has {frame.image.width} x {frame.image.height} pixels, the mask {size[1]} x {size[0]}"
            )
        features = self._features(frame.image)
        if not features.isfinite().all():
            raise ValueError(f"the features of {frame.source} are not finite: are the model's weights?")
        if self._propagation is not None:
            labels = self._propagation(features)
            objects = pixel_objects(labels, self.mask.numbers, self.transform.patch_size, size)
            return Mask(objects, self.mask.palette)
        labels = grid_labels(self.mask.objects, self.mask.numbers, features.shape[:2])
        lost = [number for number, label in zip(self.mask.numbers, labels[1:]) if not label.any()]
        if lost:
            raise ValueError(f"object {lost[0]} is smaller than a patch: resize the frames to a larger --size")
        self._propagation = MaskPropagation(features, labels.to(features.device), self.settings)
        return self.mask

    @torch.inference_mode()
    def _features(self, image: "Image.Image") -> torch.Tensor:
        """Of the patches: (h, w, D)."""
        sides = video_size(*image.size, self.transform.size, self.transform.patch_size)
        resized = image.resize(sides, require("PIL.Image").Resampling.BILINEAR)
        pixel_values = self.transform.pixel_values(resized).to(self.model.device)
        (features,) = self.model.get_intermediate_layers(pixel_values, reshape=True)
        return features[0].permute(1, 2, 0).float()  # (1, D, h, w) -> (h, w, D)


def segment_video(
    model: str,
    video: str,
    mask: str | os.PathLike,
    output: str | os.PathLike,
    *,
    size: int = 480,
    settings: PropagationSettings | None = None,
    ground_truth: str | os.PathLike | None = None,
    overlay: bool = False,
    fps: float | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> SegmentationSummary:
    """
    Carries masks of objects through a video, and writes one of each frame, `FRAME.png`.

    Args:
        model: folder or hub id of a saved ViT.
        video: a video, or a folder of frames (or see [`open_source`]), in the order of their names.
        mask: of the objects in the first frame, see [`read_mask`].
        output: a new or empty folder.
        size: to which the shorter side of the frames is resized, in pixels.
        ground_truth: a folder of masks of all frames, to score by: writes `scores.json`, and records the means beside
            the model. As in DAVIS, the first and the last frame do not count.
        overlay: also write `overlay.mp4`, the masks in colors over the frames.
        fps: frames a second there; by default the video's own, or 24.
        overwrite: replace files of the same names.

    Raises:
        ValueError: if an argument cannot work, or a frame or mask cannot be read or has another size.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    dino = load_model(model)
    if not dino.backbone.has_patch_tokens:
        raise ValueError(f"{dino.config.backbone} has no patch tokens: use a ViT")
    transform = PatchTransform.of_model(model, dino.config, size)
    frames = open_frames(video, dino.config.num_channels, size, on_error="fail")
    fps = frame_rate(frames, fps) or DAVIS_FPS
    first = read_mask(mask)
    if not first.numbers:
        raise ValueError(f"there is no object in {mask}: all of it is background")
    truth = None if ground_truth is None else GroundTruth(ground_truth, frames, first)
    folder = new_folder(output, overwrite)
    segmentation = VideoSegmentation(dino.to(processes().device), transform, settings or PropagationSettings(), first)
    num_frames = 0
    with overlay_video(folder, fps if overlay else None) as append:
        for frame in tqdm(frames, total=frames.num_frames, unit=" frames", disable=not progress):
            found = segmentation(frame)
            write_mask(found, folder / f"{frame.name}.png")
            append(frame.image, found)
            if truth is not None:
                truth.add(frame, found)
            num_frames += 1
    if truth is None:
        return SegmentationSummary(num_frames, len(first.numbers), folder)
    scores = truth.scores()
    return SegmentationSummary(num_frames, len(first.numbers), folder, scores, record(scores, model, video, folder))


class GroundTruth:
    """
    The masks that should be found, and how those that are match them.

    Args:
        folder: with a mask of each frame; of frames that are images in files, under the same names.
        frames: whose they are.
        first: mask of the first frame, whose objects are scored.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, folder: str | os.PathLike, frames: Frames, first: Mask):
        self.folder, self._by_name = Path(folder), isinstance(frames, ImageFrames)
        self._files = sorted(self.folder.glob("*.png"))
        if not self._files:
            raise ValueError(f"there are no masks (*.png) in {folder}")
        if frames.num_frames not in (None, len(self._files)):
            raise ValueError(f"{folder} has {len(self._files)} masks, but there are {frames.num_frames} frames")
        self._numbers = first.numbers
        self._scores: list[dict[int, tuple[float, float]]] = []

    def add(self, frame: Frame, found: Mask):
        """
        Scores the mask of the next frame.

        Raises:
            ValueError: if its ground truth is missing, cannot be read or has another size.
        """
        file = self._files[len(self._scores)] if len(self._scores) < len(self._files) else None
        if file is None or (self._by_name and file.stem != Path(frame.name).name):
            raise ValueError(f"{self.folder} has no mask of {frame.source}")
        truth = read_mask(file).objects
        if truth.shape != found.objects.shape:
            raise ValueError(f"{file} and {frame.source} are of different sizes")
        self._scores.append({number: score_frame(found.objects, truth, number) for number in self._numbers})

    def scores(self) -> VideoScores:
        """
        Of all frames but the first, which was given, and the last, as in DAVIS.

        Raises:
            ValueError: if no other is left, or there are masks of further ones.
        """
        if len(self._scores) < len(self._files):
            raise ValueError(f"{self.folder} has {len(self._files)} masks, but there are {len(self._scores)} frames")
        inner = self._scores[1:-1]
        if not inner:
            raise ValueError("there is nothing to score: the first and the last frame do not count")
        j, f = ({number: [frame[number][i] for frame in inner] for number in self._numbers} for i in range(2))
        return VideoScores(j, f)


def record(scores: VideoScores, model: str, video: str, folder: Path) -> str:
    """Writes `scores.json`, and puts the means into the model's results; returns a line that says where they are."""
    objects = {
        number: {"J": asdict(statistics(scores.j[number])), "F": asdict(statistics(scores.f[number]))}
        for number in scores.j
    }
    content = {"means": scores.means(), "objects": objects, "frames": asdict(scores)}
    with whole_file(folder / "scores.json") as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    means = {name: value for name, value in scores.means().items() if name in ("J&F", "J mean", "F mean")}
    dataset = Path(video).stem if is_video(video) else Path(video).name
    results = [
        {"task": TASK, "dataset": dataset, "metric": name, "value": 100 * value} for name, value in means.items()
    ]
    return record_evaluation_results(model, None, results)


@contextmanager
def overlay_video(folder: Path, fps: Fraction | float | None) -> Iterator[Callable]:
    """A function that appends a frame with its mask in colors to `overlay.mp4`; without `fps` it does nothing."""
    if fps is None:
        yield lambda image, mask: None
        return
    Image = require("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    with write_video(folder / "overlay.mp4", fps) as append:

        def append_masked(image: "Image.Image", mask: Mask):
            image, colors = image.convert("RGB"), Image.fromarray(mask.objects.numpy())
            is_object = Image.fromarray(((mask.objects > 0) * 255).to(torch.uint8).numpy())
            colors.putpalette(mask.palette or davis_palette())
            append(Image.composite(Image.blend(image, colors.convert("RGB"), OPACITY), image, is_object))

        yield append_masked


__all__ = ["SegmentationSummary", "VideoSegmentation", "segment_video"]
