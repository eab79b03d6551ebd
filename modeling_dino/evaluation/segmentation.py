# SPDX-License-Identifier: Apache-2.0
"""Video object segmentation: carries the mask of a video's first frame through the others, and scores what is found.

The protocol of the original on DAVIS 2017: https://github.com/facebookresearch/dino/blob/7c446df/README.md, "Video
object segmentation". The model is not trained for it.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..data.frames import Frame, Frames, ImageFrames
from ..data.image_source import is_hidden, natural_key
from ..data.image_values import Decoded, size_of
from ..data.video import is_video, write_video
from ..hub.evaluation_results import record_evaluation_results
from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..pictures.patch_images import PatchTransform
from ..pictures.picture_files import open_drawing
from ..runtime.extras import PilImage, require
from ..runtime.finite import check_finite
from ..runtime.marked_files import MARK, check_marked, marked_file
from ..runtime.options import takes_options
from .mask_files import Mask, davis_palette, read_mask, write_mask
from .mask_propagation import MaskPropagation, grid_labels, pixel_objects, video_size
from .mask_scores import VideoScores, boundary_f, jaccard, statistics
from .options import PropagationSettings, SegmentOptions


TASK = "video-object-segmentation"
DAVIS_FPS = 24
SCORES_FORMAT = f"{MARK} scores 1"
OPACITY = 0.5


@dataclass(frozen=True)
class SegmentationSummary:
    """Says what was segmented; with a ground truth also the scores, and lines that say where they are recorded."""

    num_frames: int
    num_objects: int
    output: Path
    scores: VideoScores | None = None
    recorded: Sequence[str] = ()

    def __str__(self) -> str:
        done = f"{self.num_objects} objects in {self.num_frames} frames -> {self.output}"
        if self.scores is None:
            return done
        scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.scores.means().items())
        return "; ".join([done, scores, *self.recorded])


@takes_options(SegmentOptions, command="segment")
def segment_video(options: SegmentOptions) -> SegmentationSummary:
    """
    It writes a mask of each frame, `FRAME.png`, and with a ground truth `scores.json`. As in DAVIS, the first and the
    last frame do not count.

    Raises:
        ValueError: if an option cannot work, or a frame or mask cannot be read or has another size.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    model = load_model(options.model)
    drawing = open_drawing(options, model, options.video, on_error="fail", is_video=True)
    first = read_mask(options.mask)
    if not first.numbers:
        raise ValueError(f"there is no object in {options.mask}: all of it is background")
    scorer = None if options.ground_truth is None else MaskScorer(options.ground_truth, drawing.frames, first.numbers)
    if scorer is not None:
        check_marked(drawing.folder / "scores.json", SCORES_FORMAT)
    segmentation = VideoSegmentation(model, drawing.transform, options, first)
    num_frames, folder = 0, drawing.folder
    with ExitStack() as stack:
        append = None
        if options.overlay:
            folder.mkdir(parents=True, exist_ok=True)
            append = stack.enter_context(write_video(folder / "overlay.mp4", drawing.fps or DAVIS_FPS))
        for frame in drawing.iterate():
            mask = segmentation(frame)
            write_mask(mask, folder / f"{frame.name}.png")
            if append is not None:
                append(draw_mask(drawing.transform.picture(frame.image), mask))
            if scorer is not None:
                scorer.add(frame, mask)
            num_frames += 1
    if scorer is None:
        return SegmentationSummary(num_frames, len(first.numbers), folder)
    scores = scorer.scores()
    recorded = record_scores(scores, options.record_folder, options.video, folder / "scores.json")
    return SegmentationSummary(num_frames, len(first.numbers), folder, scores, recorded)


class VideoSegmentation:
    """
    Finds the masks of a video's frames, which are passed to it one after the other.

    Args:
        mask: of the first frame.
    """

    def __init__(self, model: DinoModel, transform: PatchTransform, settings: PropagationSettings, mask: Mask):
        self.model, self.transform, self.settings, self.mask = model, transform, settings, mask
        self._propagation: MaskPropagation | None = None

    def __call__(self, frame: Frame) -> Mask:
        """
        Finds the objects in the next frame; in the first they are those of the given mask. Raises ValueError if the
        frame has another size than the mask, an object is too small to be followed, or the features are not finite.
        """
        size = tuple(self.mask.objects.shape)
        width, height = size_of(frame.image)
        if (height, width) != size:
            raise ValueError(f"{frame.source} has {width} x {height} pixels, the mask {size[1]} x {size[0]}")
        features = self._features(frame.image)
        check_finite(features[None], "what the model sees of", [frame.source])
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
    def _features(self, image: Decoded) -> torch.Tensor:
        """Computes the features of an image's patches: (h, w, D)."""
        sides = video_size(*size_of(image), self.transform.size, self.transform.patch_size)
        resized = self.transform.resize(image, sides, require("PIL.Image").Resampling.BILINEAR)
        pixel_values = self.transform.pixel_values(resized).to(self.model.device)
        (features,) = self.model.get_intermediate_layers(pixel_values, reshape=True)
        return features[0].permute(1, 2, 0).float()  # (1, D, h, w) -> (h, w, D)


class MaskScorer:
    """
    Compares the masks that are found to those of a ground truth.

    Args:
        folder: with a mask of each frame; where the frames are image files, under the same names.
        numbers: of the objects that are scored.

    Raises:
        ValueError: if there are no masks, or not one for each frame, or an object is not in the first of them.
    """

    def __init__(self, folder: str, frames: Frames, numbers: list[int]):
        self.folder, self._by_name = folder, isinstance(frames, ImageFrames)
        files = [str(file) for file in Path(folder).glob("*.png") if not is_hidden(file.name)]
        self._files = [Path(file) for file in sorted(files, key=natural_key)]
        if not self._files:
            raise ValueError(f"there are no masks (*.png) in {folder}")
        self._check_number(frames.num_frames)
        self._check_objects(numbers)
        self._num_scored = 0
        self._scores = VideoScores({number: [] for number in numbers}, {number: [] for number in numbers})

    def _check_number(self, num_frames: int | None):
        if num_frames not in (None, len(self._files)):
            raise ValueError(f"{self.folder} has {len(self._files)} masks, but there are {num_frames} frames")

    def _check_objects(self, numbers: list[int]):
        """Raises ValueError if an object that is followed is none of those in the first mask."""
        known = read_mask(self._files[0]).numbers
        if unknown := sorted(set(numbers) - set(known)):
            raise ValueError(
                f"the mask has object {unknown[0]}, {self._files[0]} has {', '.join(map(str, known)) or 'none'}: give "
                "each object the same number in both"
            )

    def add(self, frame: Frame, mask: Mask):
        """
        Scores the mask of the next frame. Raises ValueError if its ground truth is missing, cannot be read or has
        another size.
        """
        file = self._files[self._num_scored] if self._num_scored < len(self._files) else None
        if file is None or (self._by_name and file.stem != Path(frame.name).name):
            raise ValueError(f"{self.folder} has no mask of {frame.source}")
        truth = read_mask(file).objects
        if truth.shape != mask.objects.shape:
            raise ValueError(f"{file} and {frame.source} are of different sizes")
        self._num_scored += 1
        for number, values in self._scores.j.items():
            pair = mask.objects == number, truth == number
            values.append(jaccard(*pair))
            self._scores.f[number].append(boundary_f(*pair))

    def scores(self) -> VideoScores:
        """
        Returns the scores of all frames but the first, whose mask was given, and the last, as in DAVIS. Raises
        ValueError if no other frame is left, or there are masks of further ones.
        """
        self._check_number(self._num_scored)
        if self._num_scored < 3:
            raise ValueError("there is nothing to score: the first and the last frame do not count")
        j, f = ({n: v[1:-1] for n, v in values.items()} for values in (self._scores.j, self._scores.f))
        return VideoScores(j, f)


def record_scores(scores: VideoScores, folder: str | None, video: str, file: Path) -> list[str]:
    """Writes all scores to a file, and the means to a model's results; returns lines that say where these are."""
    means = scores.means()
    objects = {number: {"J": statistics(scores.j[number]), "F": statistics(scores.f[number])} for number in scores.j}
    content = {"format": SCORES_FORMAT, "means": means, "objects": objects, "frames": asdict(scores)}
    with marked_file(file, SCORES_FORMAT) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    result = {"task": TASK, "dataset": Path(video).stem if is_video(video) else Path(video).name}
    results = [{**result, "metric": name, "value": 100 * means[name]} for name in ("J&F", "J mean", "F mean")]
    return record_evaluation_results(folder, None, results)


def draw_mask(image: PilImage, mask: Mask) -> PilImage:
    """Draws a mask over its frame, in the colors of its palette."""
    Image = require("PIL.Image")
    image, colors = image.convert("RGB"), Image.fromarray(mask.objects.numpy())
    is_object = Image.fromarray(((mask.objects > 0) * 255).to(torch.uint8).numpy())
    colors.putpalette(mask.palette or davis_palette())
    return Image.composite(Image.blend(image, colors.convert("RGB"), OPACITY), image, is_object)
